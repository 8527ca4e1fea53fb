"""A run that is watched and steered while it happens: `train` in a thread of its own."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any, NamedTuple

from torch import nn

from ..data import Data, Split
from ..history import History, Report
from ..models import count_weights
from ..passes import buffers_kept, calibrate
from ..run import folder as runs
from ..settings import function_of
from ..train import Step, evaluate, sweeps, train
from . import worker
from .worker import RUNNING

READY, PAUSED, STOPPED, FINISHED, FAILED = "ready", "paused", "stopped", "finished", "failed"

SCORED_IMAGES = 2000
"""Images behind a point of the curves, at most: a command waits while they are scored."""
SCORE_SECONDS, SHOW_SECONDS = 0.5, 0.1
"""The least time between two scores, and between two pictures."""
TURN_SECONDS = 0.02
"""How long a run trains before another run, or a command, has its turn."""
SHARE = 0.2
"""The most of the time that scores may take, and pictures."""
RECENT_STEPS = 500
"""The steps in which the wins of w, w + Δ and w − Δ are counted."""


class Score(NamedTuple):
    """A point of the curves.

    updates          full updates: how often all weights have been visited
    image_forwards   images that Algorithm 1 has sent through the net
    seconds          of training, without scores and pictures
    batch_loss       mean loss of the winners since the last score, each on its own batch; NaN if there were none
    loss, accuracy   on the first 2,000 images of `LiveRun.part`; the accuracy is the mean of the metric
    """

    updates: float
    image_forwards: int
    seconds: float
    batch_loss: float
    loss: float
    accuracy: float


class LiveRun:
    """A run that takes commands between two steps.

    net        a name in `models`, "module:function", or a callable that makes a fresh net
    show       is called with the run after every command, and at most ten times a second while it runs
    scored_by  loss and metric, as in `train`

    One thread, the `worker`, trains all live runs, in turns, and all that changes a run happens there: commands wait
    in a queue, and the thread takes them one by one behind the step that is under way. So nothing needs a lock,
    and runs that race get the same time. An exception is kept in `error`, and the run waits in the state
    "failed" for a change and a start. A new run pauses all others, since they would share its time.
    """

    error: Exception | None = None
    ended = False

    def __init__(
        self,
        net: str | Callable[[], nn.Module],
        data: Data,
        settings: Any,
        show: Callable[["LiveRun"], None] = lambda run: None,
        **scored_by: Any,
    ):
        function_of("net", net, runs.NETS)
        self.make_net, self.data, self.settings, self.show, self.scored_by = net, data, settings, show, scored_by
        # nobody should turn knobs by the test part
        self.part, scored = ("validation", data.val) if len(data.val) else ("test", data.test)
        self.scored = Split(scored.images[:SCORED_IMAGES], scored.labels[:SCORED_IMAGES])
        worker.ask(self.join)

    # Commands, for any thread

    def do(self, command: Callable[[], None]) -> None:
        """Let the thread carry out a command between two steps, and show the run."""
        if not self.ended:
            worker.send(partial(self.act, command))

    def start(self) -> None:
        """Start the run, or let it go on."""
        self.do(lambda: self.enter(RUNNING))

    def pause(self) -> None:
        """Pause the run after the step that is under way."""
        self.do(lambda: self.enter(PAUSED) if self.state == RUNNING else None)

    def step(self) -> None:
        """Visit one weight, and pause the run."""
        self.do(self.visit)

    def stop(self) -> None:
        """Stop the run; the net and the history stay as they are."""
        self.do(lambda: self.enter(STOPPED))

    def reset(self) -> None:
        """Reset the run to a fresh net; the settings stay as they are."""
        self.do(self.begin)

    def change(self, **changes: Any) -> None:
        """Change settings (fields of `RSO`), from the next step on."""
        self.do(lambda: self.apply(**changes))

    def end(self) -> None:
        """End the run for good, and free net, images and caches. Later commands do nothing."""
        if not self.ended:
            self.ended = True
            worker.send(self.release)

    def wait(self, until: Callable[["LiveRun"], bool], seconds: float = 60) -> bool:
        """Block until all commands are taken and a condition on the run holds, for some seconds at most.

        Returns whether it holds. Raises the exception that the run failed with.
        """
        end = time.perf_counter() + seconds
        taken = Event()
        self.do(taken.set)
        taken.wait(max(seconds, 0))
        while not until(self) and time.perf_counter() < end:
            if self.state == FAILED and self.error:
                raise self.error
            time.sleep(0.005)
        return until(self)

    # What the thread does

    def join(self) -> None:
        """Pause the other runs, begin this run, and let it take turns from now on."""
        for run in list(worker.runs):
            run.pause()
            run.do(run.rest)
        self.begin()
        worker.runs.add(self)

    def act(self, action: Callable[[], None]) -> None:
        """Carry out an action, and show the run; an exception is kept in `error`."""
        if self.ended:
            return
        try:
            action()
            self.score_and_show()
        except Exception as error:
            self.state, self.error = FAILED, error
            with suppress(Exception):
                self.show(self)

    def train(self) -> None:
        """Make as many steps as fit into a turn, and at least one."""
        end = time.perf_counter() + TURN_SECONDS
        self.advance()
        while self.state == RUNNING and time.perf_counter() < end:
            self.advance()

    def begin(self) -> None:
        """Begin the run with a fresh net and an empty history."""
        self.net = self.fresh_net()
        self.items: Iterator[Report | Step] | None = None
        self.history = History()
        self.last: Step | None = None
        self.made_with = self.settings  # the last step
        self.recent: deque[int] = deque(maxlen=RECENT_STEPS)
        self.steps = self.image_forwards = 0
        self.begun: list[Step] = []  # of a sweep that is not reported yet
        self.seconds = self.next_score = self.next_show = 0.0
        self.losses: list[float] = []
        self.curve: list[Score] = []
        self.error, self.state = None, READY
        self.keep()
        self.score()

    def fresh_net(self) -> nn.Module:
        if callable(self.make_net):
            return self.make_net()
        net = runs.build_net(self.make_net, self.data.shape, len(self.data.classes), self.settings.seed)
        return net.to(self.scored.images.device)

    def enter(self, state: str) -> None:
        """Enter another state; only a reset leads out of STOPPED and FINISHED."""
        if self.state in (STOPPED, FINISHED):
            return
        self.state, self.error = state, None
        if state == STOPPED:
            self.items = None
            self.begun.clear()
        if state != RUNNING:
            self.score()

    def rest(self) -> None:
        """Free the caches of the search. They are made again when the run goes on, with the same steps."""
        if self.items is not None and self.settings.strategy == "sequential":
            self.close()
        elif self.items is not None:
            self.rewind()

    def release(self) -> None:
        """Free the net, the images and the caches."""
        worker.runs.discard(self)
        self.state, self.items, self.show = STOPPED, None, lambda run: None
        del self.make_net, self.net, self.data, self.scored, self.kept

    def close(self, whole: bool = False) -> None:
        """Close the generator of steps. The next one opens at the same place, or after the end of the sweep."""
        while self.begun and (whole or self.ends_sweep()):
            self.advance()
        self.items = None

    def keep(self) -> None:
        """Keep the weights and counts at a report, for `rewind`."""
        weights = [weight.detach().clone() for weight in self.net.parameters()]
        self.kept = weights, self.steps, self.image_forwards

    def rewind(self) -> None:
        """Go back to the last report, as a sweep whose steps do not see each other cannot be cut."""
        weights, self.steps, self.image_forwards = self.kept
        for weight, value in zip(self.net.parameters(), weights, strict=True):
            weight.data.copy_(value)
        self.items = None
        self.begun.clear()

    def visit(self) -> None:
        """Make one step, after any reports before it, and pause the run."""
        before = self.steps
        while self.steps == before and self.state not in (STOPPED, FINISHED):
            self.advance()
        self.enter(PAUSED)

    def apply(self, **changes: Any) -> None:
        """Change the settings of the run, after the end of the sweep if it cannot be cut."""
        settings = replace(self.settings, **changes)
        self.close(whole={self.settings.strategy, settings.strategy} != {"sequential"})
        if sweeps(self.net, settings) != sweeps(self.net, self.settings):  # the cycle begins anew
            done = len(self.history.cycles.rows)
            self.history.rows[:] = [row for row in self.history.rows if row.cycle <= done]
            self.begun.clear()
        self.settings = settings

    def ends_sweep(self) -> bool:
        """Return whether all steps of a sweep are done, but its report is still to come."""
        if self.last is None:
            return False
        return len(self.begun) == sweeps(self.net, self.settings)[self.last.at.sweep].steps

    def advance(self) -> None:
        """Take the next item of the run: a step or a report."""
        self.items = self.items or self.open()
        began = time.perf_counter()
        try:
            item = next(self.items, None)
        except Exception:
            self.items = None
            if self.settings.strategy != "sequential":
                self.rewind()
            raise
        self.seconds += time.perf_counter() - began
        if item is None:
            self.enter(FINISHED)
        else:
            self.count(item)

    def open(self) -> Iterator[Report | Step]:
        """Return the steps and reports of the run from here on."""
        return train(self.net, self.data, self.settings, self.history, steps=True, begun=self.begun, **self.scored_by)

    def count(self, item: Report | Step) -> None:
        """Count a step, or add a report to the history."""
        if isinstance(item, Report):
            self.history.append(item)
            self.begun.clear()
            return self.keep()
        self.last, self.made_with = item, self.settings
        self.begun.append(item)
        self.steps += 1
        choice, candidates = float(item.choice), self.settings.candidates
        self.image_forwards += len(candidates) * self.settings.batch(item.at.cycle)
        self.recent.append(0 if choice == 0 else 1 if choice > 0 else 2)
        written = min(range(len(candidates)), key=lambda k: abs(candidates[k] - choice))
        self.losses.append(float(item.losses[written]))

    def score_and_show(self) -> None:
        """Score and show the run, where it is time for that."""
        now = time.perf_counter()
        if self.state == RUNNING and now >= self.next_score:
            self.score()
            self.next_score = next_time(now, SCORE_SECONDS)
        now = time.perf_counter()
        if self.state != RUNNING or now >= self.next_show:
            self.show(self)
            self.next_show = next_time(now, SHOW_SECONDS)

    @property
    def updates(self) -> float:
        """Return how often all weights have been visited."""
        return self.steps / count_weights(self.net)

    def score(self) -> None:
        """Add a point to the curves. Only batch norm's running statistics change, and no step reads them."""
        with buffers_kept(self.net, statistics=False):
            calibrate(self.net, self.data.train.images)
            loss, accuracy = evaluate(self.net, self.scored, **self.scored_by)
        batch_loss = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.losses.clear()
        self.curve.append(Score(self.updates, self.image_forwards, self.seconds, batch_loss, loss, accuracy))


def next_time(began: float, least: float) -> float:
    """Return the time when some work that began then may happen again, to keep to its share of the time."""
    now = time.perf_counter()
    return now + max(least, (now - began) * (1 / SHARE - 1))
