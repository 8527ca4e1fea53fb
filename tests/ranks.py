"""Processes that a test starts, and that end with it."""

import socket
import time
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def spawn(work: Callable[..., None], count: int, *arguments: Any, seconds: float = 900) -> None:
    """Run work(rank, *arguments) in some processes. What one of them raises is raised here, with its traceback.

    None outlives this call, and none is waited for longer than a hang would take to be one: the library itself would
    wait for the others for 30 days.
    """
    ranks = mp.spawn(work, arguments, count, join=False)
    end = time.monotonic() + seconds
    try:
        while not ranks.join(timeout=1):
            assert time.monotonic() < end, f"some of {count} processes have not ended after {seconds} s"
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
