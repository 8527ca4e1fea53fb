"""The baseline: the same nets, data and reports, trained by backpropagation (sections 4.4 and 4.5)."""

import csv
import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from .files import PART, alone, check_files, folder_at, in_turn, make, replacing

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

    Ends early at the target, or, with a warning, where the loss is not finite any more. Errors as in `check` and
    `check_floats`.
    """
    check(data, settings)
    check_floats(net)
    check_fit(net, data, settings.batch_size)
    optimiser = torch.optim.SGD(
        net.parameters(), settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    began = time.perf_counter()
    for epoch in range(settings.epochs):
        steps = _epoch(net, optimiser, data, settings, epoch)
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


def check_floats(net: nn.Module) -> None:
    """Raise ValueError where weights of a net lie on a grid."""
    if grids(net):
        raise ValueError("SGD would take weights off the grid that they lie on: build the net with levels=0")


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
    check_floats(fresh[0])
    paths = [folder / f"{seed}.csv" for seed in range(seeds)]
    check_files(folder, "settings.json", *(path.name for path in paths))
    _check_settings(folder / "settings.json", asked)
    make(folder)
    with alone(folder):
        _check_settings(folder / "settings.json", asked)
        with replacing(folder / "settings.json") as part:
            part.write_text(json.dumps(asked, indent=2) + "\n")
        asked_for = zip(paths, fresh, range(seeds), strict=True)
        return [_history(path, one, data, replace(settings, seed=seed)) for path, one, seed in asked_for]


def _check_settings(path: Path, asked: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds runs with other settings, or histories and no settings."""
    if not path.exists():
        if strange := sorted(other for other in path.parent.glob("*.csv") if other.stem.isdecimal()):
            raise ValueError(f"{strange[0]} belongs to no run, as there is no {path}; choose another folder")
        return
    try:
        there = json.loads(path.read_text())
        known = {**there, "data": {**asked["data"], **there["data"]}}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is not the settings of runs of SGD, or torn; choose another folder") from None
    unlike = runs.differences({**known, "data": None}, {**asked, "data": None})
    if unlike := "\n".join(filter(None, [unlike, runs.differences(known["data"], asked["data"])])):
        raise ValueError(
            f"{path.parent} holds runs with other settings or images; choose another folder, or its own:\n{unlike}"
        )


def _history(path: Path, net: nn.Module, data: Data, settings: SGD) -> History:
    """Of the run whose history is at a path, which is trained if it is not there, and saved after every epoch."""
    from tqdm import tqdm

    if not path.exists():
        part = path.with_name(path.name + PART)
        reports = train(net.to(data.train.labels.device), data, settings)
        history = History()
        for report in tqdm(reports, total=settings.epochs, unit="epoch"):
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
    path: str | Path,
    net: str,
    data: Data,
    settings: SGD,
    *,
    batch_sizes: Sequence[int],
    rates: Sequence[float],
    net_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> "pandas.DataFrame":
    """The search of section 4.4: a run for every batch size and rate, a frame with a row for each.

    path   a CSV that is written after every run, by any number of processes; runs that it holds are not repeated.
           Beside it lies a file of the same name with .json, which knows the images
    net    of `models`, initialised with the seed of the settings

    A row holds net, data, the settings, and what `summary` says. Raises ValueError where the CSV is another table, and
    as `check` and `runs.build` do, before the first run.
    """
    import pandas
    from tqdm import tqdm

    path = folder_at(Path(path).parent) / Path(path).name
    options = dict(net_options or {})
    images = path.with_suffix(".json")
    check_files(path.parent, path.name, images.name)
    done = _read(path)
    cells = [replace(settings, batch_size=size, rate=rate) for size in batch_sizes for rate in rates]
    about = (net, ",".join(f"{name}={value}" for name, value in options.items()), data.name, len(data.train))
    for cell in cells:
        check(data, cell)
    check_floats(runs.build(net, data.shape, len(data.classes), settings.seed, **options))
    keys = [_words(*about, *asdict(cell).values()) for cell in cells]
    _note_images(images, data)
    for key, cell in tqdm(list(zip(keys, cells, strict=True)), unit="run", disable=not progress):
        if key not in done:
            fresh = runs.build(net, data.shape, len(data.classes), cell.seed, **options)
            history = fit(fresh.to(data.train.labels.device), data, cell, progress=False)
            done = _add(path, key, _words(*summary(history, cell.target).values()))
    places = list(done)
    return pandas.read_csv(path).iloc[[places.index(key) for key in keys]].reset_index(drop=True)


def summary(history: History, target: float | None) -> dict[str, float | None]:
    """What a run reached at its end, and after how many full updates the accuracies first reached the target."""
    last = history.last
    first = [updates_to(history, target, part) if target else None for part in ("val", "test")]
    return dict(zip(CAME_OUT, (last.cycle, last.val_accuracy, last.test_accuracy, *first, last.seconds), strict=True))


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


# The table of a grid: what is asked → what came out, in words as they stand in the CSV.

ASKED = ("net", "net_options", "dataset", "images", *(field.name for field in fields(SGD)))
CAME_OUT = ("updates", "val_accuracy", "test_accuracy", "updates_to_val_target", "updates_to_test_target", "seconds")
Words = tuple[str, ...]


def _words(*values: Any) -> Words:
    return tuple("" if value is None else str(value) for value in values)


def _read(path: Path) -> dict[Words, Words]:
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(map(tuple, csv.reader(file)))
    if lines[:1] != [(*ASKED, *CAME_OUT)]:
        raise ValueError(f"{path} is not the table of a grid search: its columns are not {', '.join(ASKED + CAME_OUT)}")
    if not _whole(path) or any(len(line) != len(ASKED + CAME_OUT) for line in lines):
        raise ValueError(f"{path} is torn: {_ANEW}")
    return {line[: len(ASKED)]: line[len(ASKED) :] for line in lines[1:]}


def _note_images(path: Path, data: Data) -> None:
    """Write down the images of a table's rows. Raises ValueError where those of this name were others before."""
    make(path.parent)
    with in_turn(path.parent):
        try:
            there = json.loads(path.read_text()) if path.exists() else {}
            name, here = f"{data.name}, {len(data.train)} for training", runs.facts(data)
            lines = runs.differences(there.get(name, here), here)
        except (ValueError, AttributeError):
            raise ValueError(f"{path} is not about the images of a grid search, or torn: move it away") from None
        if lines:
            raise ValueError(f"the images are not those of the runs in {path.parent}; choose another folder:\n{lines}")
        with replacing(path) as part:
            part.write_text(json.dumps({**there, name: here}, indent=2) + "\n")


def _add(path: Path, key: Words, row: Words) -> dict[Words, Words]:
    """Add a row to the table as it is by now: another process may have added some too."""
    with in_turn(path.parent):
        rows = {**_read(path), key: row}
        _write(path, rows)
    return rows


def _write(path: Path, rows: Mapping[Words, Words]) -> None:
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*ASKED, *CAME_OUT))
        table.writerows((*asked, *came_out) for asked, came_out in rows.items())


@dataclass
class Several:
    """How many runs are made."""

    seeds: int = 1
    """trains so many times, with the seeds 0, 1 …"""
    grid_batch_sizes: str | None = None
    """a search over these, such as 128,1000, in FOLDER/grid.csv"""
    grid_rates: str | None = None
    """and over these, such as 0.02,0.1"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train by backpropagation: FOLDER/settings.json and FOLDER/SEED.csv, the history, are written.

    With several batch sizes and rates it is a grid search, and FOLDER/grid.csv is written:

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
        folder / "grid.csv",
        net,
        data,
        settings,
        batch_sizes=numbers("grid_batch_sizes", given.get("grid_batch_sizes", settings.batch_size)),
        rates=numbers("grid_rates", given.get("grid_rates", settings.rate), float),
        net_options=options,
    )
    print(table[["batch_size", "rate", *CAME_OUT]].to_string(index=False))
