"""A run in a folder: killed, resumed, refused, read back."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rso_lib import RSO, History, evaluate, load, runs
from rso_lib.models import Block, Head, Net, calibrate
from rso_lib.runs import Run

SETTINGS = RSO(cycles=5, batch_size=200, seed=3)


def tiny(shape: tuple[int, int, int], classes: int, *, seed: int = 0, width: int = 2) -> Net:
    """A net with batch norm, a skip and few weights."""
    blocks = Block(shape[0], width, pool="avg", skip="open"), Block(width, width, skip="close", closes=width)
    return Net(blocks, Head(width, classes, pool="mean"), seed)


runs.NETS["tiny"] = tiny


def begin(folder: Path, settings: RSO = SETTINGS, **other: Any) -> Run:
    return runs.start(folder, **{"dataset": "digits", "net": "tiny", "progress": False, **other}, settings=settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return begin(tmp_path_factory.mktemp("runs") / "unbroken")


def bits(run: Run) -> dict[str, bytes]:
    """Weights and batch-norm statistics; not the number of batches that batch norm has seen, which nothing reads."""
    state = run.net.state_dict()
    return {name: value.numpy().tobytes() for name, value in state.items() if not name.endswith("batches_tracked")}


def facts(history: History) -> list[str]:
    """The rows without the time, as text, so that NaN equals NaN."""
    return [repr(replace(row, seconds=0)) for row in history.rows]


def assert_same(run: Run, other: Run) -> None:
    assert facts(run.history) == facts(other.history)
    assert bits(run) == bits(other)


@contextlib.contextmanager
def stopping_after(reports: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> Iterator[None]:
    """Raise in the step behind the given number of reports."""
    train = runs.train

    def stopped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        seen = 0
        for item in train(*args, **kwargs):
            yield item
            seen += isinstance(item, runs.Report)
            if seen == reports and not isinstance(item, runs.Report):
                raise error

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", stopped)
        yield


def test_the_folder_holds_what_was_run(unbroken: Run) -> None:
    assert unbroken.finished
    assert len(unbroken.history.cycles.rows) == 5
    assert (unbroken.settings["net"], unbroken.settings["batch_size"], unbroken.settings["seed"]) == ("tiny", 200, 3)
    assert_same(runs.load(unbroken.folder), unbroken)
    assert facts(History.load(unbroken.folder / "history.csv")) == facts(unbroken.history)
    data = load("digits")
    calibrate(unbroken.net, data.train.images)
    assert evaluate(unbroken.net, data.test)[1] == unbroken.history.last.test_accuracy


KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from test_runs import Path, begin, load
load("digits")  # imports what is needed once, for all children
folder, rows = Path({folder!r}), []
history = folder / "history.csv"
count = lambda: len(history.read_text().splitlines()) - 1 if history.exists() else 0
for kill in range(5):
    child = os.fork()
    if not child:
        begin(folder)
        os._exit(0)
    while kill and count() == rows[-1]:  # the first may die before it has saved anything, the others go on for a bit
        assert not os.waitpid(child, os.WNOHANG)[0], "it has ended"
        time.sleep(0.001)
    time.sleep(random.uniform(0, {limit}))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it had ended"
    rows.append(count())
print(*rows)
"""


def test_killed_at_five_random_moments_it_ends_with_the_same_bits(unbroken: Run, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    seconds = unbroken.history.rows[-1].seconds
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), limit=seconds / 15)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = list(map(int, done.stdout.split()))
    assert rows == sorted(rows)
    assert 3 <= rows[-1] < len(unbroken.history.rows)
    assert_same(begin(folder), unbroken)
