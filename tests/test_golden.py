"""Recorded runs that every later version has to reproduce, and files of today that it has to read.

    python -m tests.test_golden

records the runs of RUNS anew, after a change that is meant to change runs. Everything that goes in is exact on every
machine: pixels are whole numbers, initial weights and Δ are rounded to multiples of 1/64.

golden/run, golden/run_finished and golden/run_normed are never made anew. They are folders of `runs.start`: Ctrl-C
stopped the first behind the first sweep of the last cycle, and the third behind its first sweep.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from rso_lib.data import Data, Split
from rso_lib.history import History, Report
from rso_lib.models import Block, Head, Net, count_weights
from rso_lib.proposals import gaussian
from rso_lib.run import folder as runs
from rso_lib.settings import RSO
from rso_lib.train import Step, sweeps, train

GOLDEN = Path(__file__).parent / "golden"
EXACT, CLOSE = ["cycle", "layer", "index", "choice"], ["w", "plus", "minus"]
COLUMNS = ["cycle", "layer", "index", "w", "plus", "minus", "choice"]
COUNTS = ["kept", "plus", "minus"]
Row = Mapping[str, str]


class Run(NamedTuple):
    """A run of two cycles, or the first steps of some sweeps of the first cycle, each time with a new net."""

    net: Callable[[], Net]
    settings: Mapping[str, Any] = {}
    steps: Mapping[int, int] = {}


def tiny() -> Net:
    return Net([Block(1, 2, pool="avg")], Head(2, 10, pool="max", bias=True), seed=0)


def small() -> Net:
    blocks = [Block(1, 2, pool="avg", skip="open"), Block(2, 2), Block(2, 2, skip="close", closes=2, pool="avg")]
    return Net(blocks, Head(2, 10, pool="max", bias=True), seed=0)


def wide() -> Net:
    """Of sizes that have compiled kernels. Its sweeps are 0 (head), 1 to 3 (block3), 4 to 6 and 7 to 9."""
    return Net([Block(1, 16), Block(16, 16, pool="avg"), Block(16, 16)], Head(16, 10, pool="max"), seed=0)


def growing() -> Net:
    """Its sweeps are 0 (head), 1 to 6 (block3), 7 to 9 and 10 to 12. In 5, the shortcut's shift, rounding decides."""
    blocks = [
        Block(1, 16, skip="open"),
        Block(16, 16),
        Block(16, 32, pool="avg", activation=None, skip="close", closes=16),
    ]
    return Net(blocks, Head(32, 10, pool="max"), seed=0)


RUNS = {
    "digits": Run(small),
    "neuron": Run(small, {"strategy": "neuron"}),
    "layer": Run(small, {"strategy": "layer"}),
    "level_layer": Run(tiny, {"level": "layer"}),
    "level_network": Run(tiny, {"level": "network"}),
    "input": Run(small, {"order": "input"}),
    "shuffled": Run(small, {"order": "shuffled"}),
    "forward": Run(small, {"direction": "forward", "first_batch": 20}),
    "wide": Run(wide, {}, {0: 20, 1: 20, 4: 160, 5: 20, 7: 40}),
    "wide_input": Run(wide, {"order": "input"}, {4: 160, 7: 40}),
    "wide_shuffled": Run(wide, {"order": "shuffled"}, {4: 40, 5: 20, 7: 40}),
    "wide_neuron": Run(wide, {"strategy": "neuron"}, {4: 48, 5: 20, 7: 48}),
    "wide_layer": Run(wide, {"strategy": "layer"}, {4: 40, 5: 20, 7: 40}),
    "wide_level_network": Run(wide, {"level": "network"}, {0: 10}),
    "growing": Run(growing, {}, {1: 20, 4: 20, 6: 20, 7: 20, 10: 20}),
    "growing_level_layer": Run(growing, {"level": "layer"}, {4: 10, 7: 10}),
    "growing_large": Run(growing, {"batch_size": 150}, {7: 10, 10: 20}),
}
PLAIN = [name for name in RUNS if name in ("digits", "neuron", "layer") or name.startswith(("wide", "growing"))]
"""What other code does where there are no compiled kernels."""


def coarse(x: Tensor) -> Tensor:
    return (x * 64).round() / 64


@cache
def digits() -> Data:
    pixels, labels = (torch.from_numpy(x)[:160] for x in load_digits(return_X_y=True))
    part = Split((pixels.view(160, 1, 8, 8) - 5) / 6, labels)
    return Data("digits", part, part, part, tuple("0123456789"), torch.tensor([5.0]), torch.tensor([6.0]))


def start(run: Run, sweep: int) -> tuple[Net, Iterator[Step | Report]]:
    """A net, and what comes of training it from a sweep of the first cycle on."""
    net = run.net().double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(coarse(weight))
    distribution = lambda shape, rng: coarse(gaussian(shape, rng))  # noqa: E731
    usual = {"cycles": 2, "batch_size": 50, "weight_decay": 2**-10, "distribution": distribution}
    none = dict.fromkeys(["sigma", "steps", *COUNTS, "evaluations", "image_forwards"], 0)
    settings = RSO(**{**usual, **run.settings})
    before = [Report(cycle=1, layer=one.layer, seconds=0.0, **none) for one in sweeps(net, settings)[:sweep]]
    return net, train(net, digits(), settings, History(before), steps=True)


def replay(run: Run) -> tuple[list[Row], float | None]:
    """The steps of a run, and what the weights come to at its end."""
    if not run.steps:
        net, items = start(run, 0)
        return [*map(as_row, counted(items))], digest(net)
    parts = [islice(counted(start(run, sweep)[1]), steps) for sweep, steps in run.steps.items()]
    return [as_row(step) for part in parts for step in part], None


def counted(items: Iterator[Step | Report]) -> Iterator[Step]:
    """The steps. The reports have to count what their losses say."""
    losses: list[list[float]] = []
    for item in items:
        if isinstance(item, Step):
            losses.append(item.losses.tolist())
            yield item
        elif not item.is_cycle:
            wins = [best(three) for three in losses]
            assert [getattr(item, name) for name in COUNTS] == [wins.count(k) for k in range(3)]
            assert item.train_loss == pytest.approx(sum(map(min, losses)) / len(losses), abs=1e-9)
            losses = []


def best(losses: list[float]) -> int:
    """A tie keeps the earlier."""
    return losses.index(min(losses))


def as_row(step: Step) -> Row:
    losses = step.losses.tolist()
    values = step.at.cycle + 1, step.layer, step.index, *losses, best(losses)
    return dict(zip(COLUMNS, ("" if value is None else str(value) for value in values), strict=True))


def digest(net: Net) -> float:
    """A number that another value of a weight, or another place, changes."""
    flat = torch.cat([weight.detach().flatten() for weight in net.parameters()])
    return float(torch.arange(1, len(flat) + 1).to(flat) @ flat / len(flat))


def record(folder: Path, names: Iterable[str]) -> None:
    digests = {}
    for name in names:
        rows, digests[name] = replay(RUNS[name])
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    (folder / "digests.json").write_text(json.dumps(digests, indent=2) + "\n")


def recorded(name: str, folder: Path = GOLDEN) -> tuple[list[Row], float | None]:
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "digests.json").read_text())[name]


def assert_as_recorded(name: str, rows: list[Row], digest: float | None) -> None:
    old_rows, old_digest = recorded(name)
    for number, (row, old) in enumerate(zip(rows, old_rows, strict=True), 1):
        same = all(row[column] == old[column] for column in EXACT)
        near = all(abs(float(row[column]) - float(old[column])) < 1e-9 for column in CLOSE)
        assert same and near, f"step {number}: {row}, recorded {old}"
    assert digest == pytest.approx(old_digest, abs=1e-9)


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run(name: str) -> None:
    assert_as_recorded(name, *replay(RUNS[name]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """Recorded just now, in a process without compiled kernels."""
    folder = tmp_path_factory.mktemp("plain")
    command, env = [sys.executable, "-m", "tests.test_golden", str(folder), *PLAIN], {**os.environ, "RSO_KERNELS": "0"}
    subprocess.run(command, cwd=project, env=env, check=True)
    return folder


@pytest.mark.parametrize("name", PLAIN)
def test_a_recorded_run_without_kernels(name: str, plain: Path) -> None:
    assert_as_recorded(name, *recorded(name, plain))


@pytest.mark.parametrize("name", RUNS)
def test_what_is_recorded_is_enough_and_hangs_on_no_rounding(name: str) -> None:
    rows, _ = recorded(name)
    assert len(rows) == (sum(RUNS[name].steps.values()) or 2 * count_weights(RUNS[name].net()))
    for row in rows:
        low, *others = sorted(float(row[column]) for column in CLOSE)
        assert all(loss == low or loss - low > 1e-8 for loss in others), row


# Files of today


FOLDERS = ["run", "run_finished", "run_normed"]
SETTINGS = RSO(cycles=3, first_batch=100, batch_size=200, order="input", weight_decay=2**-10, seed=4)
start_again = partial(runs.start, dataset="digits", net="one_conv", settings=SETTINGS)


def lines(folder: str) -> list[Row]:
    with open(GOLDEN / folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("folder", FOLDERS)
def test_histories_read_exactly(folder: str) -> None:
    run, old = runs.load(GOLDEN / folder), lines(folder)
    for history in (run.history, History.load(GOLDEN / folder / "history.csv")):
        assert [{column: str(getattr(row, column)) for column in old[0]} for row in history.rows] == old
    assert len(old) == {"run": 11, "run_finished": 15, "run_normed": 1}[folder]
    assert run.finished == (folder == "run_finished")
    assert folder == "run_normed" or run.rso == SETTINGS


@pytest.mark.parametrize("again", [runs.resume, start_again], ids=["resume", "start"])
def test_a_run_is_taken_up(again: Callable[..., runs.Run], tmp_path: Path) -> None:
    """Weights are in float32 here, but in the 50 steps that are left no decision is closer than 1e-5."""
    folder = shutil.copytree(GOLDEN / "run", tmp_path / "run")
    with pytest.warns(UserWarning, match=r"may decide or round otherwise(.*\n)*  engine is None there"):
        run = again(folder, progress=False)
    for row, old in zip(run.history.rows, lines("run_finished"), strict=True):
        for column in old.keys() - {"seconds"}:
            value, near = getattr(row, column), 0.01 if column.endswith("accuracy") else 3e-6
            assert value == pytest.approx(type(value)(old[column]), abs=near, nan_ok=True), f"{column}: {row}"
    for weight, old in zip(run.net.parameters(), runs.load(GOLDEN / "run_finished").net.parameters(), strict=True):
        torch.testing.assert_close(weight, old, rtol=0, atol=1e-5)


def test_a_net_with_batch_norm_is_taken_up() -> None:
    run = runs.load(GOLDEN / "run_normed")
    step = next(train(run.net, run.data(), run.rso, run.history, steps=True))
    assert (step.layer, step.index) == ("block6.conv.weight", 0)
    assert step.losses.tolist() == pytest.approx([1.9817884, 1.9826362, 1.9810107], abs=1e-5)


@pytest.mark.parametrize(
    "change", [lambda line: f"{line},1", lambda line: line.rpartition(",")[0]], ids=["more", "less"]
)
def test_a_history_with_another_column_reads(change: Callable[[str], str], tmp_path: Path) -> None:
    path = GOLDEN / "run" / "history.csv"
    (tmp_path / "history.csv").write_text("\n".join(map(change, path.read_text().splitlines())) + "\n")
    assert repr(History.load(tmp_path / "history.csv")) == repr(History.load(path))


if __name__ == "__main__":
    record(Path(sys.argv[1]) if sys.argv[1:] else GOLDEN, sys.argv[2:] or RUNS)
