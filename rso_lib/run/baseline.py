"""Runs of SGD in folders: one for each seed, or a search for the best batch size and rate; the command `sgd`."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..algorithm import Loss
from ..data import Data, load
from ..history import History
from ..losses import LOSSES, METRICS, Metric
from ..settings import check_whole, numbers, qualified
from . import cli as command
from . import folder as runs
from . import presets, sgd
from .about import NEWER, Scored, scored_by
from .files import PART, Busy, alone, check_files, folder_at, make, replacing
from .provenance import machine
from .sgd import SGD

if TYPE_CHECKING:
    import pandas


def train_seeds(
    folder: str | Path,
    net: str,
    data: Data,
    settings: SGD,
    seeds: int,
    net_options: Mapping[str, Any] | None = None,
    *,
    loss: Loss | str = "cross_entropy",
    metric: Metric | str = "accuracy",
    progress: bool = True,
) -> list[History]:
    """Train a net of `models` with the seeds 0, 1 …, `seeds` of them: SEED.csv in a folder, which is made.

    A run that is there is not repeated; one that was stopped leaves SEED.csv.part and SEED.pt, and goes on from there.
    Raises ValueError where the folder holds runs with other settings or on other images, RuntimeError where another
    process trains in it, and as `sgd.check` and `runs.build` do, which leaves no folder.
    """
    check_whole("seeds", seeds, least=1)
    folder, options = folder_at(folder), dict(net_options or {})
    about_net = {"net": net, **({"net_options": options} if options else {})}
    scored = scored_by(loss, metric)
    about_score = {"loss": qualified(loss, LOSSES), "metric": qualified(metric, METRICS)}
    asked = {"dataset": data.name, "data": runs.facts(data), **about_net, **about_score, **asdict(settings)}
    sgd.check(data, settings, scored["loss"])
    fresh = [runs.build(net, data.shape, len(data.classes), seed, **options) for seed in range(seeds)]
    sgd.learner_of(fresh[0], settings)
    paths = [folder / f"{seed}.csv" for seed in range(seeds)]
    check_files(folder, "settings.json", *(path.name for path in paths))
    _check_settings(folder / "settings.json", asked)
    make(folder)
    with alone(folder):
        _check_settings(folder / "settings.json", asked)
        here = [] if all(path.exists() for path in paths) else [machine(data.train.images.device)]
        _note(folder / "settings.json", asked, here)
        each = [replace(settings, seed=seed) for seed in range(seeds)]
        asked_for = zip(paths, fresh, each, strict=True)
        return [_history(path, one, data, of_seed, scored, progress) for path, one, of_seed in asked_for]


def _check_settings(path: Path, asked: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds runs with other settings, or histories and no settings."""
    if not path.exists():
        if strange := sorted(other for other in path.parent.glob("*.csv") if other.stem.isdecimal()):
            raise ValueError(f"{strange[0]} belongs to no run, as there is no {path}; choose another folder")
        return
    try:
        there = json.loads(path.read_text())
        known = {**vars(SGD()), **NEWER, **there, "data": {**asked["data"], **there["data"]}}
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


def _history(path: Path, net: nn.Module, data: Data, settings: SGD, scored: Scored, progress: bool) -> History:
    """Read the history at a path, or train the rest of it, and save history and checkpoint after every epoch."""
    from tqdm import tqdm

    if not path.exists():
        part, checkpoint = path.with_name(path.name + PART), path.with_suffix(".pt")
        run = sgd.Descent(net.to(data.train.labels.device), data, settings, **scored)
        history = _begun(run, part, checkpoint)
        for report in tqdm(run, initial=run.done, total=settings.epochs, unit="epoch", disable=not progress):
            history.append(report)
            with replacing(part) as whole:
                history.save(whole)
            with replacing(checkpoint) as whole:
                torch.save(run.state(), whole)
        os.replace(part, path)
        checkpoint.unlink(missing_ok=True)
    return _read_history(path, settings)


def _begun(run: sgd.Descent, part: Path, checkpoint: Path) -> History:
    """Return the history of a run that was stopped, which goes on behind it; an empty one where there is none.

    Raises ValueError where the checkpoint is torn.
    """
    if not checkpoint.exists():
        return History()
    try:
        run.restore(torch.load(checkpoint, map_location=run.data.train.labels.device, weights_only=True))
        return History(History.load(part).rows[: run.done])
    except Exception as error:  # whatever the readers trip over in a damaged file
        raise ValueError(f"{checkpoint} is torn or no checkpoint ({error}): {_ANEW}") from error


def _read_history(path: Path, settings: SGD) -> History:
    """The history at a path. Raises ValueError where it does not hold the whole run."""
    try:
        history = History.load(path)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is torn or no history ({error}): {_ANEW}") from error
    if not _whole(path) or not history.rows or not sgd.ended(history.rows[-1], len(history.rows), settings):
        raise ValueError(f"{path} is torn, after {len(history.rows)} of {settings.epochs} epochs: {_ANEW}")
    return history


_ANEW = "move it away, and its runs are made anew"


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
    loss: Loss | str = "cross_entropy",
    metric: Metric | str = "accuracy",
    progress: bool = True,
) -> "pandas.DataFrame":
    """Train a net of `models` with every batch size and rate, each with the seed 0 (the search of section 4.4).

    Each run has a folder of its own in `folder`, as `train_seeds` makes it: a stopped search goes on, and several
    processes may share one. Returns a frame with a row for each run, which holds its settings and its `summary`.
    Raises, before the first run, what `sgd.check` and `runs.build` raise; and what `train_seeds` raises.
    """
    import pandas

    folder, options = folder_at(folder), dict(net_options or {})
    cells = [replace(settings, batch_size=size, rate=rate, seed=0) for size in batch_sizes for rate in rates]
    for cell in cells:
        sgd.check(data, cell, scored_by(loss, metric)["loss"])
    sgd.learner_of(runs.build(net, data.shape, len(data.classes), 0, **options), settings)
    done: dict[SGD, History] = {}
    while left := [cell for cell in cells if cell not in done]:
        for cell in left:
            place = folder / f"batch_{cell.batch_size}_rate_{cell.rate:g}"
            with suppress(Busy):
                [done[cell]] = train_seeds(
                    place, net, data, cell, 1, options, loss=loss, metric=metric, progress=progress
                )
        if set(left) - done.keys():
            time.sleep(1)  # another process makes these
    rows = [{**asdict(cell), **summary(done[cell], cell.target)} for cell in cells]
    return pandas.DataFrame(rows)


def summary(history: History, target: float | None) -> dict[str, float | None]:
    """Return the scores at the end of a run, and the full updates until the accuracies first reached the target."""
    last = history.last
    first = [updates_to(history, target, part) if target else None for part in ("val", "test")]
    return dict(zip(CAME_OUT, (last.cycle, last.val_accuracy, last.test_accuracy, *first, last.seconds), strict=True))


CAME_OUT = ("updates", "val_accuracy", "test_accuracy", "updates_to_val_target", "updates_to_test_target", "seconds")


@dataclass
class Several:
    """Options: the number of runs."""

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
    kinds = command.What, command.Score, SGD, Several, command.Place
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
    scored = {name: given[name] for name in ("loss", "metric") if name in given}
    if not given.keys() & {"grid_batch_sizes", "grid_rates"}:
        for history in train_seeds(folder, net, data, settings, given.get("seeds", 1), options, **scored):
            row = history.last
            end = "" if math.isfinite(row.train_loss) else "; it diverged: set rate lower"
            what = "loss" if math.isnan(row.test_accuracy) else "accuracy"
            score = getattr(row, f"test_{what}")
            print(f"test {what} {score:.4f} after {row.cycle:,} updates, {row.seconds:.0f} seconds{end}")
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
        **scored,
    )
    print(table[["batch_size", "rate", *CAME_OUT]].to_string(index=False))
