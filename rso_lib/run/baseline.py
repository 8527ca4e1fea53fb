"""Runs of SGD in a folder, one for each seed, and the command `sgd`.

settings.json    what is run, and the machines that it ran on
SEED.csv         the history of a finished run
SEED.pt          the checkpoint of one that is not finished, from which it goes on
SEED.csv.part    a copy of the history in that checkpoint, to read and plot
lock             held by the process that trains in the folder
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..algorithm import Loss
from ..data import Data, load
from ..history import History, read_row
from ..losses import LOSSES, METRICS, Metric
from ..settings import check_whole, plain, qualified
from . import cli as command
from . import presets, sgd
from .about import (
    FORMAT,
    NEWER,
    check_dataset,
    describe_differences,
    machines_of,
    note_machine,
    scored_by,
    warn_of_own_code,
)
from .checkpoint import check_state, read_checkpoint
from .files import PART, alone, folder_at, make, replacing
from .nets import build_net, plain_options
from .provenance import facts, own_code
from .sgd import SGD

ANEW = "move it away, and its runs are made anew"


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
    """Train a net of `models` with the seeds 0, 1 …, `seeds` of them, in a folder, which is made if it is not there.

    A finished run is not repeated, and one that was stopped goes on behind its last epoch with the same bits.
    Raises ValueError where the folder holds runs with other settings or on other images, RuntimeError where another
    process trains in it, and as `sgd.check_descent` and `nets.build_net` do, which leaves no folder.
    """
    seeds = plain(seeds)
    check_whole("seeds", seeds, least=1)
    folder, options = folder_at(folder), plain_options(net, net_options)
    scored = scored_by(loss, metric)
    asked = {
        "dataset": data.name,
        "data": facts(data),
        "net": net,
        **({"net_options": options} if options else {}),
        "loss": qualified(loss, LOSSES),
        "metric": qualified(metric, METRICS),
        **asdict(settings),
    }
    own = own_code(asked)
    sgd.check_descent(data, settings, scored["loss"])
    fresh = [build_net(net, data.shape, len(data.classes), seed, **options) for seed in range(seeds)]
    tried = fresh[0].to(data.train.labels.device)
    check_state(tried, data.train.images)
    sgd.Descent(tried, data, settings, **scored)  # raises where SGD cannot train it
    _check_settings(folder / "settings.json", asked)
    make(folder)
    with alone(folder):
        _check_settings(folder / "settings.json", asked)  # another process may have written it before the lock was held
        paths = [folder / f"{seed}.csv" for seed in range(seeds)]
        about = {**asked, "machines": machines_of(folder / "settings.json")}
        if all(path.exists() for path in paths):
            warn_of_own_code(folder, about, own)
        else:
            note_machine(folder, about, data.train.images.device, own)
        return [
            _history(path, one, data, replace(settings, seed=seed), scored, {**asked, "seed": seed}, progress)
            for seed, (path, one) in enumerate(zip(paths, fresh, strict=True))
        ]


def _check_settings(path: Path, asked: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds runs with other settings, or histories and no settings."""
    if not path.exists():
        if strange := sorted(path.parent.glob("[0-9]*.csv")):
            raise ValueError(f"{strange[0]} belongs to no run, as there is no {path}; choose another folder")
        return
    try:
        about = json.loads(path.read_text())
        about["epochs"]  # which a search has not
        unlike = _differences(about, asked)
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is not the settings of runs of SGD, or torn; choose another folder") from None
    if unlike:
        raise ValueError(
            f"{path.parent} holds runs with other settings or images; choose another folder, or its own:\n{unlike}"
        )


def _differences(about: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the differences of settings in a file, which may be older, and those asked for, a line for each."""
    there = {**vars(SGD()), **NEWER, **about, "data": {**asked["data"], **about["data"]}}
    return describe_differences(_flat(there), _flat(asked))


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings and the facts about the images in one table, without the machines."""
    return {**about, **about["data"], "data": None, "machines": None}


def _history(
    path: Path,
    net: nn.Module,
    data: Data,
    settings: SGD,
    scored: dict[str, Any],
    asked: Mapping[str, Any],
    progress: bool,
) -> History:
    """Return the history at a path, which is trained first where it is not there.

    asked  what the run is, as settings.json has it, with the seed of this run

    Raises ValueError where the file is torn.
    """
    if not path.exists():
        _train(path, sgd.Descent(net.to(data.train.labels.device), data, settings, **scored), asked, progress)
    try:
        history = History.load(path)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is torn or no history ({error}): {ANEW}") from error
    whole = path.read_bytes().endswith(b"\n")
    if not whole or not history.rows or not sgd.ended(history.rows[-1], len(history.rows), settings):
        raise ValueError(f"{path} is torn, after {len(history.rows)} of {settings.epochs} epochs: {ANEW}")
    return history


def _train(path: Path, run: sgd.Descent, asked: Mapping[str, Any], progress: bool) -> None:
    """Train the missing epochs of a run, and save checkpoint and history after every epoch."""
    from tqdm import tqdm

    checkpoint = path.with_suffix(".pt")
    history = _restore(checkpoint, run, asked) if checkpoint.exists() else History()
    for report in tqdm(run, initial=run.done, total=run.settings.epochs, unit="epoch", disable=not progress):
        history.append(report)
        rows = [vars(row) for row in history.rows]
        with replacing(checkpoint) as whole:
            torch.save({"format": FORMAT, "settings": dict(asked), "history": rows, "net": run.state()}, whole)
        with replacing(path.with_name(path.name + PART)) as whole:
            history.save(whole)
    with replacing(path) as whole:
        history.save(whole)
    checkpoint.unlink(missing_ok=True)


def _restore(checkpoint: Path, run: sgd.Descent, asked: Mapping[str, Any]) -> History:
    """Put a run where its checkpoint has it, and return its history.

    Raises ValueError for a checkpoint that is torn, or that is one of another run.
    """
    content = read_checkpoint(checkpoint, ANEW)
    try:
        unlike = _differences(content["settings"], asked)
        history = History([*map(read_row, content["history"])])
        if not unlike:
            run.restore(content["net"])
    except Exception as error:  # whatever the readers trip over in a checkpoint that was changed
        raise ValueError(f"{checkpoint} does not fit the run ({error}): {ANEW}") from error
    if unlike:
        raise ValueError(f"{checkpoint} is of another run; {ANEW}:\n{unlike}")
    return history


@dataclass
class Several:
    """Options: the number of runs."""

    seeds: int = 1
    """trains so many times, with the seeds 0, 1 …"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train by backpropagation: FOLDER/settings.json and FOLDER/SEED.csv, the history, are written."""
    kinds = command.What, command.Score, SGD, Several, command.Place
    given = command.parse("sgd", main, arguments, *kinds, folder="FOLDER", leave_out=("data_seed", "seed"))
    with command.ending("sgd"):
        folder, place = folder_at(given.pop("folder"), "FOLDER"), command.take_place(given)
        what = {**vars(command.What()), **vars(command.Score()), **vars(Several()), **given}
        asked = {field.name: given[field.name] for field in fields(SGD) if field.name in given}
        settings = SGD(**{"batch_size": presets.batch_size(what["dataset"]), **asked})
        options = command.options_of(what["net"], what["net_options"])
        check_dataset(what["dataset"])
        data = load(what["dataset"], **place, val_size=what["val_size"])
        scored = {name: what[name] for name in ("loss", "metric")}
        for history in train_seeds(folder, what["net"], data, settings, what["seeds"], options, **scored):
            print(_summary(history))


def _summary(history: History) -> str:
    """Return the result of a run of SGD in a line."""
    last, (what, score) = history.last, command.score_of(history.last)
    end = "" if math.isfinite(last.train_loss) else "; it diverged: set rate lower"
    return f"test {what} {score:.4f} after {last.cycle:,} updates, {last.seconds:.0f} seconds{end}"
