"""A run that is watched and steered while it happens: `train` in a thread of its own."""

import atexit
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar, NamedTuple

from torch import nn

from . import models
from .data import Data, Split
from .history import History, Report
from .models import calibrate, count_weights
from .reference import choose
from .settings import RSO, _check_choice
from .train import Step, evaluate, sweeps, train

NETS = ("one_conv", "two_conv", "mnist_net", "cifar_net")
READY, RUNNING, PAUSED, STOPPED, FINISHED, FAILED = "ready", "running", "paused", "stopped", "finished", "failed"

SCORED_IMAGES = 2000
"""Test images behind a point of the curves, at most: a command waits while they are scored."""
SCORE_SECONDS, SHOW_SECONDS = 0.5, 0.1
"""The least time between two scores, and between two pictures."""
SHARE = 0.2
"""The most of the time that scores may take, and pictures."""
RECENT_STEPS = 500
"""The steps that the shares of w, w + Δ and w − Δ are counted in."""


class Score(NamedTuple):
    """A point of the curves.

    updates          full updates: steps / weights
    image_forwards   images that Algorithm 1 has sent through the net
    seconds          of training, without scores and pictures
    batch_loss       mean loss of the winners since the last score, each on its own batch; NaN if there were none
    test_loss, test_accuracy   on the first 2,000 images of the test part
    """

    updates: float
    image_forwards: int
    seconds: float
    batch_loss: float
    test_loss: float
    test_accuracy: float


class LiveRun:
    """A run that takes commands between two steps.

    net       a name in `models`, or a callable that makes a fresh net
    show      is called with the run after every command, and at most ten times a second while it runs
    method    `train`, or what takes and yields the same

    The run has one thread, and all that changes it happens there: the commands wait in a queue, and the
    thread takes them one by one, each behind the step that is under way. So nothing needs a lock. What is
    raised there is kept in `error`, and the run waits in the state "failed" for a change and a start.
    A new run pauses all others: they would share its time.
    """

    others: ClassVar[list["LiveRun"]] = []
    state: str
    error: Exception | None
    items: Iterator[Report | Step] | None

    def __init__(
        self,
        net: str | Callable[[], nn.Module],
        data: Data,
        settings: RSO,
        show: Callable[["LiveRun"], None] = lambda run: None,
        method: Callable[..., Iterator[Report | Step]] = train,
    ):
        if isinstance(net, str):
            _check_choice("net", net, NETS)
        self.make_net, self.data, self.settings, self.show, self.method = net, data, settings, show, method
        self.scored = Split(data.test.images[:SCORED_IMAGES], data.test.labels[:SCORED_IMAGES])
        self.commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.begin()
        for other in self.others:
            other.pause()
        self.others.append(self)
        self.thread = Thread(target=self.work, daemon=True)
        self.thread.start()

    # Commands, for any thread.

    def start(self) -> None:
        """Begin, or go on."""
        self.commands.put(lambda: self.enter(RUNNING))

    def pause(self) -> None:
        """Wait behind the step that is under way."""
        self.commands.put(lambda: self.enter(PAUSED) if self.state == RUNNING else None)

    def step(self) -> None:
        """Visit one weight, and wait."""
        self.commands.put(self.visit)

    def stop(self) -> None:
        """End the run; the net and the history stay as they are."""
        self.commands.put(lambda: self.enter(STOPPED))

    def reset(self) -> None:
        """Back to a fresh net; the settings stay as they are."""
        self.commands.put(self.begin)

    def change(self, **changes: Any) -> None:
        """Other settings (fields of `RSO`), from the next step on."""
        self.commands.put(lambda: self.take(**changes))

    def refresh(self) -> None:
        """Have it shown again."""
        self.commands.put(lambda: None)

    def close(self) -> None:
        """End the thread."""
        self.commands.put(sys.exit)
        self.thread.join()

    def wait(self, until: Callable[["LiveRun"], bool], seconds: float = 60) -> bool:
        """Block until a condition on the run holds, or for some seconds: whether it holds.

        Raises what the run failed with.
        """
        end = time.perf_counter() + seconds
        while not until(self) and time.perf_counter() < end:
            if self.state == FAILED and self.error:
                raise self.error
            time.sleep(0.005)
        return until(self)

    # What the thread does.

    def work(self) -> None:
        """A step after the other while the run is on, commands as they come."""
        while True:
            try:
                if self.state == RUNNING and self.commands.empty():
                    self.advance()
                else:
                    self.commands.get()()
                self.look()
            except Exception as error:
                self.items, self.state, self.error = None, FAILED, error
                with suppress(Exception):
                    self.show(self)

    def begin(self) -> None:
        self.net = self.fresh_net()
        self.weights = count_weights(self.net)
        self.items = None
        self.history = History()
        self.last: Step | None = None
        self.recent: deque[int] = deque(maxlen=RECENT_STEPS)
        self.steps = self.skip = self.image_forwards = 0
        self.seconds = self.next_score = self.next_show = 0.0
        self.losses: list[float] = []
        self.curve: list[Score] = []
        self.error = None
        self.state = READY
        self.score()

    def fresh_net(self) -> nn.Module:
        if not isinstance(self.make_net, str):
            return self.make_net()
        make = getattr(models, self.make_net)
        net = make(shape=self.data.shape, classes=len(self.data.classes), seed=self.settings.seed)
        return net.to(self.data.train.images.device)

    def enter(self, state: str) -> None:
        if self.state in (STOPPED, FINISHED):
            return
        self.state, self.error = state, None
        if state != RUNNING:
            self.score()

    def visit(self) -> None:
        seen = self.steps
        while self.steps == seen and self.state not in (STOPPED, FINISHED):
            self.advance()
        self.enter(PAUSED)

    def take(self, **changes: Any) -> None:
        settings = replace(self.settings, **changes)
        while self.ends_sweep():
            self.advance()
        if sweeps(self.net, settings) != sweeps(self.net, self.settings):  # the cycle begins anew
            done = len(self.history.cycles.rows)
            self.history.rows[:] = [row for row in self.history.rows if row.cycle <= done]
            self.skip = 0
        self.items, self.settings = None, settings

    def ends_sweep(self) -> bool:
        """Whether all steps of a sweep are done, but its report is still to come."""
        if not self.skip or self.last is None:
            return False
        names = sweeps(self.net, self.settings)[self.last.at.sweep].names
        return self.skip == sum(self.net.get_parameter(name).numel() for name in names)

    def advance(self) -> None:
        """The next item of the run: a step or a report."""
        if self.items is None:
            self.items = self.method(self.net, self.data, self.settings, self.history, steps=True, skip=self.skip)
        began = time.perf_counter()
        item = next(self.items, None)
        self.seconds += time.perf_counter() - began
        if isinstance(item, Step):
            self.count(item)
        elif item is None:
            self.enter(FINISHED)
        else:
            self.history.append(item)
            self.skip = 0

    def count(self, step: Step) -> None:
        self.last, self.skip = step, step.at.step
        self.steps += 1
        self.image_forwards += 3 * self.settings.batch_size
        winner = int(choose(step.losses))
        self.recent.append(winner)
        self.losses.append(float(step.losses[winner]))

    def look(self) -> None:
        """Score and show, where it is time to."""
        now = time.perf_counter()
        if self.state == RUNNING and now >= self.next_score:
            self.score()
            self.next_score = later(now, SCORE_SECONDS)
        now = time.perf_counter()
        if self.state != RUNNING or now >= self.next_show:
            self.show(self)
            self.next_show = later(now, SHOW_SECONDS)

    def score(self) -> None:
        """Add a point to the curves. Only batch norm's running statistics change, and no step reads them."""
        calibrate(self.net, self.data.train.images)
        test_loss, test_accuracy = evaluate(self.net, self.scored)
        batch_loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses.clear()
        updates = self.steps / self.weights
        self.curve.append(Score(updates, self.image_forwards, self.seconds, batch_loss, test_loss, test_accuracy))


def later(began: float, least: float) -> float:
    """When something that began then may happen again, so that it keeps to its share of the time."""
    now = time.perf_counter()
    return now + max(least, (now - began) * (1 / SHARE - 1))


@atexit.register
def close_all() -> None:
    """Python must not end while a thread is in a step."""
    for run in LiveRun.others:
        run.close()
