"""The baseline: the same nets, data and reports, trained by backpropagation (sections 4.4 and 4.5)."""

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from ..checks import check_fit
from ..data import Data, check_data, load
from ..engine.layers import channels_last
from ..history import NAN, History, Report
from ..models import grids
from ..proposals import generator
from ..settings import arithmetic, check_choice, check_number, check_whole, numbers
from ..train import scores
from . import cli as command
from . import folder as runs
from . import presets
from .files import PART, Busy, alone, check_files, folder_at, make, replacing
from .provenance import machine
from .straight import StraightThrough

if TYPE_CHECKING:
    import pandas

SCHEDULES = ("step", "constant")
SHUFFLE = 1


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The settings of a run of SGD with momentum.

    Raises ValueError or TypeError, naming the argument and the remedy.
    """

    epochs: int = 50
    """passes over the training images"""
    batch_size: int = 5000
    """images of a step; what an epoch leaves over is not used in it"""
    rate: float = 0.5
    """the learning rate, once warmed up"""
    momentum: float = 0.9
    """share of the last change that is added to the next"""
    weight_decay: float = 1e-4
    """added to the gradient, times the weight"""
    warmup: int = 5
    """epochs in which the rate grows linearly from 0 to `rate`, before it is stepped down"""
    schedule: str = "step"
    """step, a tenth of the rate after half of the epochs and a hundredth after three quarters (the paper steps down
    twice and does not say when), or constant"""
    target: float | None = None
    """accuracy on the validation part at which training stops; without one all epochs are trained"""
    straight_through: bool = False
    """passes the gradient through signs, steps and grids as if they were not there (`straight.StraightThrough`)"""
    seed: int = 0
    """of the order of the images"""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("seed", 0)):
            check_whole(name, getattr(self, name), least=least)
        for name in ("rate", "momentum", "weight_decay", *([] if self.target is None else ["target"])):
            check_number(name, getattr(self, name))
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be above 0 and finite, not {self.rate!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {self.momentum!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, not {self.weight_decay!r}")
        if self.target is not None and not 0 < self.target <= 1:
            raise ValueError(f"target must be None or a fraction such as 0.9912, not {self.target!r}")
        check_choice("schedule", self.schedule, SCHEDULES)
        if not isinstance(self.straight_through, bool):
            raise TypeError(f"straight_through must be True or False, not {self.straight_through!r}")
        most = self.epochs if self.schedule == "constant" else self.epochs // 2
        if self.warmup > most:
            raise ValueError(
                f"warmup must be at most {most} of {self.epochs} epochs, not {self.warmup}, or the rate is never "
                f"reached: set warmup to {most}, or epochs higher"
            )

    def rate_at(self, step: int, per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        progress = step / (self.epochs * per_epoch)
        drops = (progress >= 0.5) + (progress >= 0.75) if self.schedule == "step" else 0
        warm = min(1.0, (step + 1) / (self.warmup * per_epoch)) if self.warmup else 1.0
        return self.rate * warm / 10**drops


def train(net: nn.Module, data: Data, settings: SGD) -> Iterator[Report]:
    """Train `net` in place, yielding a `Report` after each epoch.

    In these rows `cycle` is the number of times that all weights have been updated since the beginning, the
    unit in which Figure 3 compares the two methods: once for each step of SGD. `steps` counts those of the
    epoch, `sigma` is NaN, and nothing is kept, plus or minus. An image counts as three image-forwards, as
    backpropagation costs about two forward passes more.

    Ends early at the target, or, with a warning, where the loss is not finite any more. Errors as in `check`, and
    ValueError for a net whose weights lie on a grid, where `straight_through` is not set.
    """
    check(data, settings)
    check_fit(net, data, settings.batch_size)
    learner = _learner(net, settings)
    optimiser = torch.optim.SGD(
        learner.parameters(), settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    began = time.perf_counter()
    for epoch in range(settings.epochs):
        steps = _epoch(learner, optimiser, data, settings, epoch)
        if isinstance(learner, StraightThrough):
            learner.write(net)
        report = replace(_report(net, data, settings, epoch, steps), seconds=time.perf_counter() - began)
        yield report
        if not math.isfinite(report.train_loss):
            warnings.warn(
                f"SGD diverged in epoch {epoch + 1} of {settings.epochs}: the loss is {report.train_loss}, and the run "
                f"ends here; set rate lower than {settings.rate:g}, or warmup higher than {settings.warmup}",
                stacklevel=2,
            )
        if _ended(report, epoch + 1, settings):
            return


def _learner(net: nn.Module, settings: SGD) -> nn.Module:
    """Return what is trained: the net itself, or its twin that has a gradient.

    Raises ValueError for a net on a grid that SGD would take off it, and for a twin of a net that can have none.
    """
    if settings.straight_through:
        return StraightThrough(net, settings.seed)
    if grids(net):
        raise ValueError(
            "the weights of the net lie on a grid, which SGD would leave: set straight_through to True, or build the "
            "net with levels=0"
        )
    return net


def check(data: Data, settings: SGD) -> None:
    """Raise ValueError where the batch is larger than the training part, or a target has no validation part.

    And what `check_data` raises.
    """
    check_data(data)
    if settings.batch_size > len(data.train):
        raise ValueError(f"batch_size must be at most the {len(data.train)} training images, not {settings.batch_size}")
    if settings.target is not None and not len(data.val):
        raise ValueError(
            "target is reached on the validation part, which is empty: leave it out, or load with val_size"
        )


def fit(net: nn.Module, data: Data, settings: SGD, *, progress: bool = True) -> History:
    """Train with a progress bar and return the history. Arguments and errors as in `train`."""
    from tqdm import tqdm

    reports = tqdm(train(net, data, settings), total=settings.epochs, unit="epoch", disable=not progress)
    return History(list(reports))


def baseline(
    folder: str | Path,
    net: str,
    data: Data,
    settings: SGD,
    seeds: int,
    net_options: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
) -> list[History]:
    """Train a net of `models` with the seeds 0, 1 …, `seeds` of them: SEED.csv in a folder, which is made.

    A run that is there is not repeated; one that was stopped leaves SEED.csv.part and begins anew.
    Raises ValueError where the folder holds runs with other settings or on other images, RuntimeError where another
    process trains in it, and as `check` and `runs.build` do, which leaves no folder.
    """
    check_whole("seeds", seeds, least=1)
    folder, options = folder_at(folder), dict(net_options or {})
    about_net = {"net": net, **({"net_options": options} if options else {})}
    asked = {"dataset": data.name, "data": runs.facts(data), **about_net, **asdict(settings)}
    check(data, settings)
    fresh = [runs.build(net, data.shape, len(data.classes), seed, **options) for seed in range(seeds)]
    _learner(fresh[0], settings)
    paths = [folder / f"{seed}.csv" for seed in range(seeds)]
    check_files(folder, "settings.json", *(path.name for path in paths))
    _check_settings(folder / "settings.json", asked)
    make(folder)
    with alone(folder):
        _check_settings(folder / "settings.json", asked)
        here = [] if all(path.exists() for path in paths) else [machine(data.train.images.device)]
        _note(folder / "settings.json", asked, here)
        asked_for = zip(paths, fresh, range(seeds), strict=True)
        return [_history(path, one, data, replace(settings, seed=seed), progress) for path, one, seed in asked_for]


def _check_settings(path: Path, asked: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds runs with other settings, or histories and no settings."""
    if not path.exists():
        if strange := sorted(other for other in path.parent.glob("*.csv") if other.stem.isdecimal()):
            raise ValueError(f"{strange[0]} belongs to no run, as there is no {path}; choose another folder")
        return
    try:
        there = json.loads(path.read_text())
        known = {"straight_through": False, **there, "data": {**asked["data"], **there["data"]}}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is not the settings of runs of SGD, or torn; choose another folder") from None
    plain = {"data": None, "machines": None}
    unlike = runs.differences({**known, **plain}, {**asked, **plain})
    if unlike := "\n".join(filter(None, [unlike, runs.differences(known["data"], asked["data"])])):
        raise ValueError(
            f"{path.parent} holds runs with other settings or images; choose another folder, or its own:\n{unlike}"
        )


def _note(path: Path, asked: Mapping[str, Any], here: Sequence[Mapping[str, Any]]) -> None:
    """Write the settings, and the machine that trains now, if it is another than the last one."""
    machines = json.loads(path.read_text()).get("machines", []) if path.exists() else []
    machines += [one for one in here if one not in machines[-1:]]
    with replacing(path) as part:
        part.write_text(json.dumps({**asked, "machines": machines}, indent=2) + "\n")


def _history(path: Path, net: nn.Module, data: Data, settings: SGD, progress: bool) -> History:
    """Read the history at a path, or train and save it after every epoch where it is not there."""
    from tqdm import tqdm

    if not path.exists():
        part = path.with_name(path.name + PART)
        reports = train(net.to(data.train.labels.device), data, settings)
        history = History()
        for report in tqdm(reports, total=settings.epochs, unit="epoch", disable=not progress):
            history.append(report)
            with replacing(part) as whole:
                history.save(whole)
        os.replace(part, path)
    return _read_history(path, settings)


def _read_history(path: Path, settings: SGD) -> History:
    """The history at a path. Raises ValueError where it does not hold the whole run."""
    try:
        history = History.load(path)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is torn or no history ({error}): {_ANEW}") from error
    if not _whole(path) or not history.rows or not _ended(history.rows[-1], len(history.rows), settings):
        raise ValueError(f"{path} is torn, after {len(history.rows)} of {settings.epochs} epochs: {_ANEW}")
    return history


_ANEW = "move it away, and its runs are made anew"


def _ended(row: Report, epochs: int, settings: SGD) -> bool:
    """Whether a run ends with a row: all epochs are done, the target is reached, or the loss is not finite."""
    reached = row.val_accuracy >= (settings.target or math.inf)
    return epochs == settings.epochs or reached or not math.isfinite(row.train_loss)


def _whole(path: Path) -> bool:
    return path.read_bytes().endswith(b"\n")


def updates_to(history: History, target: float, part: str = "val") -> int | None:
    """After how many full updates the accuracy on a part first reached the target; None if it never did."""
    return next((row.cycle for row in history.cycles.rows if getattr(row, f"{part}_accuracy") >= target), None)


def grid(
    folder: str | Path,
    net: str,
    data: Data,
    settings: SGD,
    *,
    batch_sizes: Sequence[int],
    rates: Sequence[float],
    net_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> "pandas.DataFrame":
    """Train a net of `models` with every batch size and rate, each with the seed 0 (the search of section 4.4).

    Each run has a folder of its own in `folder`, as `baseline` makes it: a search that was stopped goes on, and several
    processes may share one. Returns a frame with a row for each run, which holds its settings and its `summary`.
    Raises, before the first run, what `check` and `runs.build` raise; and what `baseline` raises.
    """
    import pandas

    folder, options = folder_at(folder), dict(net_options or {})
    cells = [replace(settings, batch_size=size, rate=rate, seed=0) for size in batch_sizes for rate in rates]
    for cell in cells:
        check(data, cell)
    _learner(runs.build(net, data.shape, len(data.classes), 0, **options), settings)
    done: dict[SGD, History] = {}
    while left := [cell for cell in cells if cell not in done]:
        for cell in left:
            place = folder / f"batch_{cell.batch_size}_rate_{cell.rate:g}"
            with suppress(Busy):
                [done[cell]] = baseline(place, net, data, cell, 1, options, progress=progress)
        if set(left) - done.keys():
            time.sleep(1)  # another process makes these
    rows = [{**asdict(cell), **summary(done[cell], cell.target)} for cell in cells]
    return pandas.DataFrame(rows)


def summary(history: History, target: float | None) -> dict[str, float | None]:
    """What a run reached at its end, and after how many full updates the accuracies first reached the target."""
    last = history.last
    first = [updates_to(history, target, part) if target else None for part in ("val", "test")]
    return dict(zip(CAME_OUT, (last.cycle, last.val_accuracy, last.test_accuracy, *first, last.seconds), strict=True))


CAME_OUT = ("updates", "val_accuracy", "test_accuracy", "updates_to_val_target", "updates_to_test_target", "seconds")


@arithmetic("float32")
def _epoch(net: nn.Module, optimiser: torch.optim.Optimizer, data: Data, settings: SGD, epoch: int) -> int:
    """One pass over the training part in a random order. Returns the number of steps."""
    net.train()
    steps = len(data.train) // settings.batch_size
    order = torch.randperm(len(data.train), generator=generator(settings.seed, epoch, SHUFFLE))
    order = order.to(data.train.labels.device)
    for k in range(steps):
        batch = order[k * settings.batch_size : (k + 1) * settings.batch_size]
        optimiser.param_groups[0]["lr"] = settings.rate_at(epoch * steps + k, steps)
        optimiser.zero_grad()
        F.cross_entropy(net(channels_last(data.train.images[batch])), data.train.labels[batch]).backward()
        optimiser.step()
        if isinstance(net, StraightThrough):
            net.clamp()
    return steps


def _report(net: nn.Module, data: Data, settings: SGD, epoch: int, steps: int) -> Report:
    """The row of an epoch."""
    return Report(
        cycle=(epoch + 1) * steps,
        layer="",
        sigma=NAN,
        steps=steps,
        kept=0,
        plus=0,
        minus=0,
        evaluations=steps,
        image_forwards=3 * steps * settings.batch_size,
        **scores(net, data),
    )


@dataclass
class Several:
    """How many runs are made."""

    seeds: int = 1
    """trains so many times, with the seeds 0, 1 …"""
    grid_batch_sizes: str | None = None
    """a search over these, such as 128,1000, each run in a folder of its own"""
    grid_rates: str | None = None
    """and over these, such as 0.02,0.1"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train by backpropagation: FOLDER/settings.json and FOLDER/SEED.csv, the history, are written.

    With several batch sizes and rates it is a grid search, and each run has its folder in FOLDER:

    python -m rso_lib sgd FOLDER --target 0.98 --grid-batch-sizes 128,1000 --grid-rates 0.02,0.1,0.5 ...
    """
    kinds = command.What, SGD, Several, command.Place
    given = command.parse("sgd", main, arguments, *kinds, folder="FOLDER", leave_out=("data_seed", "seed"))
    with command.ending("sgd"):
        folder, place = folder_at(given.pop("folder"), "FOLDER"), command.take_place(given)
        what = {**vars(command.What()), "net_options": {}, **given}
        asked = {field.name: given[field.name] for field in fields(SGD) if field.name in given}
        settings = SGD(**{"batch_size": presets.batch_size(what["dataset"]), **asked})
        options = command.options_of(what["net"], what["net_options"])
        runs.check_dataset(what["dataset"])
        data = load(what["dataset"], **place, val_size=what["val_size"])
        _run(folder, what["net"], options, data, settings, given)


def _run(
    folder: Path, net: str, options: Mapping[str, Any], data: Data, settings: SGD, given: Mapping[str, Any]
) -> None:
    """A run for each seed, or a grid search where one is asked for, as the command line gives them."""
    if not given.keys() & {"grid_batch_sizes", "grid_rates"}:
        for history in baseline(folder, net, data, settings, given.get("seeds", 1), options):
            row = history.last
            end = "" if math.isfinite(row.train_loss) else "; it diverged: set rate lower"
            print(f"test accuracy {row.test_accuracy:.4f} after {row.cycle:,} updates, {row.seconds:.0f} seconds{end}")
        return
    if "seeds" in given:
        raise ValueError("seeds is for a run: a grid search makes one of each kind, with the seed 0")
    table = grid(
        folder,
        net,
        data,
        settings,
        batch_sizes=numbers("grid_batch_sizes", given.get("grid_batch_sizes", settings.batch_size)),
        rates=numbers("grid_rates", given.get("grid_rates", settings.rate), float),
        net_options=options,
    )
    print(table[["batch_size", "rate", *CAME_OUT]].to_string(index=False))
