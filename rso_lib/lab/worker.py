"""One thread for all live runs: it takes commands as they come, and in between lets each run train for a turn."""

import atexit
import sys
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any
from weakref import WeakSet

RUNNING = "running"
runs: WeakSet[Any] = WeakSet()
"""The runs that take turns while their state is RUNNING. A run that nobody else holds is gone: net, images and caches.
Only the thread adds and removes."""
_commands: SimpleQueue[Callable[[], object]] = SimpleQueue()
_threads: list[Thread] = []


def send(command: Callable[[], object]) -> None:
    """Send a command to the thread, after the commands that were sent before."""
    if not _threads:
        _threads.append(Thread(target=_work, daemon=True))
        _threads[0].start()
    _commands.put(command)


def ask(command: Callable[[], None]) -> None:
    """Send a command to the thread, and wait for its end. Raises what the command raises."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            command()
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)

    send(run)
    done.result()


def _work() -> None:
    while True:
        _take_turns()  # in a frame of its own, which holds no run while the thread waits


def _take_turns() -> None:
    running = [run for run in runs if run.state == RUNNING]
    if not running or not _commands.empty():
        _commands.get()()
        return
    for run in running:
        if _commands.empty():
            run.act(run.train)


@atexit.register
def _stop() -> None:
    """End the thread: Python must not end while it is in a step."""
    if _threads:
        send(sys.exit)
        _threads[0].join()
