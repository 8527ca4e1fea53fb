"""How exact the arithmetic is, and how many decisions that changes: `python -m rso_lib precision RUNFOLDER`.

A decision is which of w, w + Δ and w − Δ has the lowest loss. Some weights of every tensor are visited as in the run's
next cycle. Every visit is scored twice, with the same weights, images and Δ: in float64, whose choice is kept, and as a
run would score it.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..algorithm import Batches, cross_entropies
from ..data import Data
from ..engine import Moves
from ..engine.head import HeadScorer
from ..engine.sequential import SequentialScorer
from ..known import unlike
from ..models import Head, Net, grids, searched
from ..passes import calibrate
from ..proposals import generator
from ..rules import argmin
from ..run import cli as command
from ..run.folder import Run, load
from ..settings import RSO, arithmetic, check_whole
from ..sweep import drawn, scales

CPU: dict[str, dict[str, Any]] = {"float32": {}, 'float32, cache="half"': {"cache": "half"}}
CUDA = CPU | {"tf32": {"precision": "tf32"}}
"""What is measured, by device: settings that change the arithmetic."""


class Decisions(NamedTuple):
    """Of the visits of one tensor: how many, and at how many of them float64 chose something else."""

    tensor: str
    visits: int
    differ: int


@torch.no_grad()
def compare(
    net: Net, data: Data, settings: RSO, cycle: int, visits: int = 100, slices: int = 10
) -> Iterator[Decisions]:
    """Visit up to so many weights of every tensor of a net, one after the other, in a cycle (from 0) of some settings.

    The net stays as it is. `slices` batches of the training part are used in turn.
    """
    rng, batch_size = generator(settings.seed, cycle), settings.batch(cycle)
    for position, (layer, module) in enumerate(net.named_children()):
        tried = _scorer(copy.deepcopy(net), position, data, settings, batch_size, slices)
        full = replace(settings, cache="full")
        exact = _scorer(copy.deepcopy(net).double(), position, data, full, batch_size, slices)
        turn = 0
        for name, weight in searched(module).items():
            first = int(torch.randint(max(weight.numel() - visits, 0) + 1, (), generator=rng))
            indices = range(first, min(first + visits, weight.numel()))
            [scale] = scales(net, [f"{layer}.{name}"], settings, cycle)
            deltas = drawn(settings, (len(indices),), rng, grids(module).get(name)) * scale
            exact.begin()
            tried.begin()
            differ = 0
            for index, delta in zip(indices, deltas.to(weight), strict=True):
                with arithmetic(settings.precision):
                    scores = tried.score(Moves.of(name, index, delta, turn % len(tried.labels)))
                moves = Moves.of(name, index, delta.double(), turn % len(exact.labels))
                choice = argmin(exact.score(moves))
                exact.commit(moves, choice)
                differ += int(argmin(scores) != choice)
                tried.w[name].copy_(exact.w[name])
                turn += 1
            yield Decisions(f"{layer}.{name}", len(indices), differ)


def _scorer(
    net: Net, position: int, data: Data, settings: RSO, batch_size: int, batches: int
) -> SequentialScorer | HeadScorer:
    """Return the scorer of a layer, on the first images of the training part in the net's type."""
    images = data.train.images[: batches * batch_size].to(next(net.parameters()))
    part = Batches(images, data.train.labels[: len(images)], batch_size)
    scorer = HeadScorer if isinstance(net.layers[position], Head) else SequentialScorer
    with arithmetic(settings.precision):
        calibrate(net, images)
        return scorer(net.eval(), position, part, settings, cross_entropies)


@dataclass
class Visits:
    """How much is counted."""

    visits: int = 100
    """of every tensor"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Count the decisions of a run that another arithmetic makes otherwise, with its net, images, batch and σ.

    Some weights of every tensor are visited as in the run's next cycle, and scored in float64 and as a run would.
    """
    given = command.parse("precision", main, arguments, Visits, command.Place, folder="RUNFOLDER")
    with command.ending("precision"):
        place, visits = command.take_place(given), given.get("visits", Visits.visits)
        check_whole("visits", visits, least=1)
        _count(load(given["folder"]), visits, **place)


def _count(run: Run, count: int, device: str, root: str | None) -> None:
    """The table for the net of a run, a line for each arithmetic."""
    settings, data = run.rso, run.data(root, device)
    if (reason := unlike(run.net)) or run.scored["loss"] is not cross_entropies:
        why = reason or f"{run.settings['loss']} is not cross entropy"
        raise ValueError(
            f"decisions are counted of a models.Net that the engine knows, trained by cross entropy: {why}"
        )
    net: Any = run.net.to(data.train.images.device)
    print("| arithmetic | decisions | other than in float64 | share |\n|---|---:|---:|---:|")
    for label, changed in (CUDA if data.train.images.is_cuda else CPU).items():
        cycle = min(len(run.history.cycles.rows), settings.cycles - 1)
        found = compare(net, data, replace(settings, **changed), cycle, count)
        rows = list(tqdm(found, total=len(list(net.parameters())), unit="tensor", desc=label))
        visits, differ = sum(row.visits for row in rows), sum(row.differ for row in rows)
        print(f"| {label} | {visits:,} | {differ} | {differ / visits:.2%} |")
