"""Cycles, sweeps and steps: the loops of Algorithm 1 around the search engine."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import engine
from .algorithm import Batches, Loss, cross_entropies
from .checks import check_outputs, check_run, warn_of_rule, warn_of_state
from .data import Data, Split, check_split
from .engine import Scorer, evaluator, memory
from .history import NAN, History, Report
from .known import check_weights, unlike
from .losses import Metric, accuracies, checked_score
from .models import Net, searched
from .passes import buffers_kept, calibrate, trial
from .proposals import generator
from .settings import RSO, check_kind, exact_products
from .sweep import ALONE, NOISE, SHUFFLE, Alone, Position, Step, Sweep, SweepResult, scales, steps_of

WITHIN_A_BLOCK = (
    "conv.weight",
    "conv.bias",
    "norm.bias",
    "norm.weight",
    "shortcut.0.weight",
    "shortcut.1.bias",
    "shortcut.1.weight",
)
"""The order of a block's tensors: the authors' code searches the shift before the scale."""


def sweeps(net: nn.Module, settings: RSO) -> list[Sweep]:
    """Return the sweeps of a cycle in order. Frozen parameters (`requires_grad=False`) have none."""
    if settings.level == "network":
        layers = [(0, {"network": list(searched(net))})]
    else:
        layers = [(position, {name: [name] for name in names}) for position, names in enumerate(_layers(net))]
    if settings.direction == "backward":
        layers.reverse()
    plan: list[Sweep] = []
    for position, names_of in layers:
        before = 0
        for layer, names in names_of.items():
            steps = sum(net.get_parameter(name).numel() for name in names)
            plan.append(Sweep(len(plan), layer, position, names, before, steps))
            before += steps
    return plan


@torch.no_grad()
def train(
    net: nn.Module,
    data: Data,
    settings: RSO,
    history: History | None = None,
    *,
    steps: bool = False,
    begun: Sequence[Step] = (),
    loss: Loss = cross_entropies,
    metric: Metric = accuracies,
    world: Alone = ALONE,
) -> Iterator[Report | Step]:
    """Train `net` in place, yielding a `Report` after each sweep and each cycle.

    net       a `models.Net` goes through the fast engine; for any other module, and for a `Net` that somebody has
              changed (`known.unlike`), each candidate sends its batch through the whole net. Frozen parameters stay as
              they are, also those that are frozen between two reports
    history   the reports of earlier sittings: the run goes on behind them, with the draws it would have had
    steps     yield a `Step` after every visit too
    begun     the current sweep's first steps, where a sitting ended within it: they are not made again, but count
    loss      from outputs [N, ...] and targets [N, ...] to the loss of each image, [N]; cross entropy by default. It
              needs no gradient
    metric    from the same to a number for each image, [N], whose mean the reports call accuracy; more is better
    world     the processes that share the run; all of them call this with the same arguments

    All that is kept is the net: whoever consumes the reports decides about bars, plots, checkpoints,
    pausing and stopping. Early stopping is a break:

        history = History()
        for report in train(net, data, settings):
            history.append(report)
            if report.is_cycle and report.cycle - history.best.cycle >= 5:
                break

    Raises, before the first step, ValueError or TypeError where net, data and settings do not go together,
    and MemoryError where the engine's caches would not fit; later, where a function of the settings returns nonsense,
    or a cycle goes on with other sweeps than those that it has begun with.
    """
    history = History() if history is None else history
    check_kind("history", history, History)
    check_run(net, data, settings, begun, world, loss, metric)
    warn_of_state(net, data.train, min(settings.batch(0), 2), loss)
    warn_of_rule(settings, data.train.images.device)
    loss, metric = checked_score("loss", loss), checked_score("metric", metric)
    if reason := unlike(net):
        warnings.warn(f"{reason}: every step sends its batch through the whole net three times", stacklevel=2)
    memory.keep_freed()
    for weight in net.parameters():
        weight.data = weight.data.contiguous()
    rows = history.rows
    seconds = rows[-1].seconds if rows else 0.0
    reports = _reports(net, data, settings, rows, begun, (loss, metric), world)
    while True:
        began = time.perf_counter()
        with exact_products():
            item = next(reports, None)
        seconds += time.perf_counter() - began
        if item is None:
            return
        if isinstance(item, Report):
            yield replace(item, seconds=seconds)
        elif steps:
            yield item


@torch.no_grad()
@exact_products()
def evaluate(
    net: nn.Module, split: Split, loss: Loss = cross_entropies, metric: Metric = accuracies
) -> tuple[float, float]:
    """Return the means of loss and metric for the net as it stands, in eval mode; NaN for no images.

    loss    from outputs [N, ...] and targets [N, ...] to the loss of each image, [N]; cross entropy in nats by default
    metric  from the same to a number for each image, [N]; by default 1 for the right class, else 0, so that the mean
            is the accuracy, a fraction; NaN where targets are not numbers of classes

    Raises ValueError or TypeError where images and labels, or net and images, do not go together, or where the outputs
    do not fit loss and metric.
    """
    check_kind("split", split, Split)
    check_split("split", split, labels=loss is cross_entropies)
    if not len(split):
        return NAN, NAN
    check_outputs(net, split, loss, metric)
    loss, metric = checked_score("loss", loss), checked_score("metric", metric)
    total, right = 0.0, 0.0
    outputs_of = evaluator(net) if isinstance(net, Net) and not unlike(net) else net
    with trial(net, training=False, device=split.images.device):
        size = engine.chunk(split.images.device)
        for x, targets in zip(split.images.split(size), split.labels.split(size), strict=True):
            outputs = outputs_of(x.clone())  # a net may write into its input
            total += float(loss(outputs, targets).sum())
            right += float(metric(outputs, targets).sum())
    return total / len(split), right / len(split)


def scores(net: nn.Module, data: Data, loss: Loss = cross_entropies, metric: Metric = accuracies) -> dict[str, Any]:
    """Return loss and metric of all parts, as in `Report`, with batch norm calibrated on the training part."""
    calibrate(net, data.train.images)
    found = {}
    for part in ("train", "val", "test"):
        found[f"{part}_loss"], found[f"{part}_accuracy"] = evaluate(net, getattr(data, part), loss, metric)
    return found


def _reports(
    net: nn.Module,
    data: Data,
    settings: RSO,
    rows: list[Report],
    begun: Sequence[Step],
    scored: tuple[Loss, Metric],
    world: Alone,
) -> Iterator[Report | Step]:
    """Yield the reports and steps that follow `rows`.

    begun  the steps of the next sweep that have been made already

    At each report batch norm has the statistics of the weights as they are. Within the sweeps of a layer, the
    statistics of the blocks before it stay as they were, and the search reads no others.
    """
    start = Position.after(History(rows))
    with buffers_kept(net, statistics=False) if rows or begun else nullcontext():  # the run has changed them already
        calibrate(net, data.train.images)
    for cycle in range(start.cycle, settings.cycles):
        rows = [row for row in rows if row.cycle == cycle + 1]
        scorer = None
        while sweep := _next_sweep(net, settings, rows):
            if scorer is None or not sweep.before:
                scorer = None  # its caches go before those of the next layer come
                memory.release()
                scorer = _scorer(net, data, settings, cycle, sweep.position, scored[0])
            made = begun if (cycle, sweep.number) == start[:2] else []
            result = yield from steps_of(net, scorer, settings, cycle, sweep, made, world)
            calibrate(net, data.train.images)
            rows.append(_sweep_report(net, settings, cycle, sweep, result, world.take_sent()))
            yield rows[-1]
        world.agree(net)
        yield _cycle_report(net, data, settings, rows, scored, world.take_sent())


def _next_sweep(net: nn.Module, settings: RSO, rows: Sequence[Report]) -> Sweep | None:
    """Return the sweep of a cycle that follows some rows; None at its end. A tensor that is frozen by now has no sweep.

    Raises ValueError where the cycle has begun with other sweeps, or where there is no sweep.
    """
    plan, done = sweeps(net, settings), [row.layer for row in rows]
    if not plan:
        check_weights(net)
    if done != (begins := [sweep.layer for sweep in plan[: len(done)]]):
        raise ValueError(
            f"a cycle that has begun with sweeps of {', '.join(done)} cannot go on as one of {', '.join(begins)}: "
            f"freeze what is swept already, and change direction and level, between two cycles"
        )
    return plan[len(done)] if len(done) < len(plan) else None


def _layers(net: nn.Module) -> list[list[str]]:
    """Return the tensors of each layer in the order of their sweeps.

    Where the engine does not know the net, each submodule is a layer. Frozen tensors have no sweep, but their layer
    keeps its position.
    """
    layers: dict[str, list[str]] = {}
    known, wanted = not unlike(net), searched(net)
    for name, _ in net.named_parameters():
        layer = name.split(".")[0] if known else name.rpartition(".")[0]
        layers.setdefault(layer, []).extend([name] if name in wanted else [])
    return [sorted(names, key=_place_in_block) for names in layers.values()]


def _place_in_block(name: str) -> int:
    inner = name.partition(".")[2]
    return WITHIN_A_BLOCK.index(inner) if inner in WITHIN_A_BLOCK else 0


def image_order(data: Data, settings: RSO, cycle: int, position: int) -> Tensor:
    """Return the order of the training images in the sweeps of a layer, whose slices are its batches: [N]."""
    order = torch.randperm(len(data.train), generator=generator(settings.seed, cycle, SHUFFLE, position))
    return order.to(data.train.labels.device)


def _scorer(net: nn.Module, data: Data, settings: RSO, cycle: int, position: int, loss: Loss) -> Scorer:
    """Return the scorer of the layer at a position, on a fresh shuffle of the training part."""
    order = image_order(data, settings, cycle, position)
    batches = Batches(data.train.images[order], data.train.labels[order], settings.batch(cycle))
    return engine.scorer_of(net, position, batches, settings, loss, (settings.seed, cycle, NOISE, position))


def _sweep_report(net: nn.Module, settings: RSO, cycle: int, sweep: Sweep, result: SweepResult, sent: int) -> Report:
    weights = [net.get_parameter(name) for name in sweep.names]
    of_each = zip(weights, scales(net, sweep.names, settings, cycle), strict=True)
    choices = result.choices
    wins = {"kept": int((choices == 0).sum()), "plus": int((choices > 0).sum()), "minus": int((choices < 0).sum())}
    return Report(
        cycle=cycle + 1,
        layer=sweep.layer,
        sigma=sum(w.numel() * scale for w, scale in of_each) / sweep.steps,
        **_costs(settings, cycle, wins),
        train_loss=float(result.loss) / sweep.steps,
        bytes_sent=sent,
    )


def _cycle_report(
    net: nn.Module, data: Data, settings: RSO, rows: list[Report], scored: tuple[Loss, Metric], sent: int
) -> Report:
    steps = sum(row.steps for row in rows)
    wins = {name: sum(getattr(row, name) for row in rows) for name in ("kept", "plus", "minus")}
    return Report(
        cycle=rows[0].cycle,
        layer="",
        sigma=sum(row.sigma * row.steps for row in rows) / steps,
        **_costs(settings, rows[0].cycle - 1, wins),
        **scores(net, data, *scored),
        bytes_sent=sum(row.bytes_sent for row in rows) + sent,
    )


def _costs(settings: RSO, cycle: int, wins: dict[str, int]) -> dict[str, int]:
    """Return the counts of a report: how often w was kept, moved along Δ and against it, and what these steps cost."""
    steps = sum(wins.values())
    evaluations = len(settings.candidates) * steps
    return {
        **wins,
        "steps": steps,
        "evaluations": evaluations,
        "image_forwards": evaluations * settings.batch(cycle),
    }
