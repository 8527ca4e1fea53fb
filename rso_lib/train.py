"""Cycles, sweeps and steps: the loops of Algorithm 1 around the search engine."""

import math
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import algorithm as reference
from .algorithm import Batches
from .data import Data, Split, check_data, check_split
from .engine import block as engine
from .engine import memory
from .engine.layers import CHUNK, forward, stages
from .engine.strategies import BLOCK_SEARCHES, LayerSearch, NeuronSearch
from .history import NAN, History, Report
from .models import (
    Head,
    Net,
    buffers_kept,
    calibrate,
    check_weights,
    count_weights,
    least_size,
    mode,
    searched,
    unlike,
)
from .proposals import ORDERS, generator, noise, sigma
from .settings import RSO, arithmetic

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

SHUFFLE, DRAWS, NOISE = 1, 2, 3
"""What a generator is for: the shuffle of a layer's batches, the order and the Δ of a sweep, or what a net draws."""


class Alone:
    """A run of one process. `run.processes.World` is the same for several, which share the steps of a sweep.

    rank, size  the number of this process, and how many there are
    """

    rank, size = 0, 1

    def exchange(self, choices: Tensor, owners: Tensor) -> Tensor:
        """Return the choices [steps] of all processes, given those of this one and the owner of each step."""
        return choices

    def add(self, x: Tensor) -> Tensor:
        """Return the sum of x over the processes."""
        return x

    def agree(self, net: nn.Module) -> None:
        """Raise RuntimeError where the weights of the processes differ."""

    def take_sent(self) -> int:
        """Return the bytes sent since the last call."""
        return 0


ALONE = Alone()

OneByOne = engine.BlockSearch | engine.HeadSearch | reference.ModuleSearch
Search = OneByOne | NeuronSearch


class Position(NamedTuple):
    """Where a run stands: finished cycles, finished sweeps of this cycle, finished steps of this sweep."""

    cycle: int = 0
    sweep: int = 0
    step: int = 0

    @classmethod
    def after(cls, history: History) -> "Position":
        """The position behind the last row of a history."""
        cycles = len(history.cycles.rows)
        return cls(cycles, sum(row.cycle > cycles for row in history.rows))


class Sweep(NamedTuple):
    """What one row of a history is about.

    number    of the sweep in its cycle, from 0
    layer     the tensor, or "network"
    position  of the searched layer in the net
    names     of the tensors that are searched together
    before    steps of the layer that precede the sweep
    steps     visits of the sweep
    """

    number: int
    layer: str
    position: int
    names: Sequence[str]
    before: int
    steps: int


class Step(NamedTuple):
    """One visit of a sweep.

    at      where the run stands behind this step; with another strategy than "sequential", which makes the steps of a
            sweep in another order, the step's own place in the sweep
    layer   the tensor
    index   of the weight in it, flat; None where all weights move together
    delta   Δ, 0-dim; NaN where all weights move together
    losses  of w, w + Δ and w − Δ: shape [3], float64. `reference.choose(losses)` is what was kept.
    """

    at: Position
    layer: str
    index: int | None  # type: ignore[assignment]  # tuples have a method of this name
    delta: Tensor
    losses: Tensor


class Outcome(NamedTuple):
    """Of a sweep: which candidate won at each step (0, 1, 2), and the sum of the winners' losses."""

    choices: Tensor
    loss: Tensor

    @classmethod
    def of(cls, losses: Sequence[Tensor]) -> "Outcome":
        """Of losses [3] of each step."""
        scores = torch.stack(list(losses)) if losses else torch.empty(0, 3, dtype=torch.float64)
        choices = reference.choose(scores.T)
        return cls(choices, scores.gather(1, choices[:, None]).sum())


def sweeps(net: nn.Module, settings: RSO) -> list[Sweep]:
    """The sweeps of a cycle in order. Frozen parameters (`requires_grad=False`) have none."""
    if settings.level == "network":
        layers = [(0, {"network": list(searched(net))})]
    else:
        layers = [(position, {name: [name] for name in names}) for position, names in enumerate(_layers(net))]
    if settings.direction == "backward":
        layers.reverse()
    plan: list[Sweep] = []
    for position, tensors in layers:
        before = 0
        for layer, names in tensors.items():
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
    begun: Sequence[Tensor] = (),
    world: Alone = ALONE,
) -> Iterator[Report | Step]:
    """Train `net` in place, yielding a `Report` after each sweep and each cycle.

    net       a `models.Net` goes through the fast engine; any other module, and a `Net` that somebody has changed
              (`models.unlike`), through Algorithm 1 as printed. Frozen parameters stay as they are
    history   the reports of earlier sittings: the run goes on behind them, with the draws it would have had
    steps     yield a `Step` after every visit too
    begun     the losses of the current sweep's first steps, where a sitting ended within it: these steps are
              not made again, but count
    world     the processes that share the run; all of them call this with the same arguments

    All that is kept is the net: whoever consumes the reports decides about bars, plots, checkpoints,
    pausing and stopping.

    Raises, before the first step, ValueError or TypeError where net, data and settings do not go together (`check`),
    and MemoryError where the engine's caches would not fit; later, where a function of the settings returns nonsense.
    """
    check(net, data, settings, begun, world)
    if reason := unlike(net):
        warnings.warn(f"{reason}: every step sends its batch through the whole net three times", stacklevel=2)
    memory.keep_freed()
    for weight in net.parameters():
        weight.data = weight.data.contiguous()
    rows = history.rows if history else []
    seconds = rows[-1].seconds if rows else 0.0
    reports = _reports(net, data, settings, rows, begun, world)
    while True:
        began = time.perf_counter()
        with arithmetic(settings.precision):
            item = next(reports, None)
        seconds += time.perf_counter() - began
        if item is None:
            return
        if isinstance(item, Report):
            yield replace(item, seconds=seconds)
        elif steps:
            yield item


def fit(net: nn.Module, data: Data, settings: RSO, history: History | None = None, *, progress: bool = True) -> History:
    """Train with a progress bar and return the history.

    An interrupt ends the run and leaves net and history as behind the last report: the same call, with this history,
    goes on. So does an error, which is raised. Arguments and errors as in `train`. `history` is continued in place.
    """
    check(net, data, settings)
    history = History() if history is None else history
    reported = len(history.rows), _copies(net)
    try:
        for _ in with_bar(train(net, data, settings, history, steps=True), net, settings, history, progress):
            reported = len(history.rows), _copies(net)
    except BaseException as error:
        rows, values = reported
        del history.rows[rows:]
        for tensor, value in zip(_tensors(net), values, strict=True):
            tensor.copy_(value)
        if not isinstance(error, KeyboardInterrupt):
            raise
        warnings.warn("stopped before the end; net and history are as behind the last finished sweep", stacklevel=2)
    return history


def _copies(net: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(net)]


def _tensors(net: nn.Module) -> list[Tensor]:
    """What a net consists of: parameters and buffers."""
    return [tensor.detach() for tensor in chain(net.parameters(), net.buffers())]


def with_bar(
    items: Iterator[Report | Step], net: nn.Module, settings: RSO, history: History, progress: bool = True
) -> Iterator[Report]:
    """The reports of a run, each added to its history, under a bar with the time left."""
    from tqdm import tqdm

    steps = lambda: sum(row.steps for row in history.rows if not row.is_cycle)  # noqa: E731
    total = settings.cycles * count_weights(net)
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules  # a log file wants fewer lines
    # smoothing=0: layers differ in the time of a step, so only the mean over the sitting tells the time left
    with tqdm(
        total=total,
        initial=steps(),
        unit="step",
        smoothing=0,
        mininterval=0.5 if watched else 30.0,
        disable=not progress,
    ) as bar:
        for item in items:
            if isinstance(item, Step):
                bar.update()
                continue
            history.append(item)
            bar.update(steps() - bar.n)  # those of all processes
            bar.set_description(f"cycle {item.cycle}/{settings.cycles} {item.layer}", refresh=False)
            if item.is_cycle:
                shown = {"val": item.val_accuracy, "test": item.test_accuracy}
                bar.set_postfix({part: f"{score:.4f}" for part, score in shown.items() if not math.isnan(score)})
            yield item


@torch.no_grad()
@arithmetic("float32")
def evaluate(net: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross entropy (nats) and accuracy (a fraction) of the net as it stands, in eval mode; NaN for no images.

    Raises ValueError or TypeError where images and labels, or net and images, do not go together.
    """
    check_split("split", split)
    if not len(split):
        return NAN, NAN
    _check_device(net, split)
    _check_logits(_probe(net, split.images[:2], training=False), split.labels[:2], int(split.labels.max()))
    loss, right = 0.0, 0.0
    cuts = stages(net.layers, calibrated=True) if isinstance(net, Net) and not unlike(net) else None
    with mode(net, training=False), noise(split.images.device, 0):
        for x, labels in zip(split.images.split(CHUNK), split.labels.split(CHUNK), strict=True):
            logits = net(x.clone()) if cuts is None else forward(cuts, x).x  # a net may write into what it is given
            loss += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
            right += float((logits.argmax(1) == labels).sum())
    return loss / len(split), right / len(split)


def scores(net: nn.Module, data: Data) -> dict[str, Any]:
    """Loss and accuracy of all parts of the data, as in `Report`, with batch norm calibrated on the training part."""
    calibrate(net, data.train.images)
    found = {}
    for part in ("train", "val", "test"):
        found[f"{part}_loss"], found[f"{part}_accuracy"] = evaluate(net, getattr(data, part))
    return found


def _reports(
    net: nn.Module, data: Data, settings: RSO, rows: list[Report], begun: Sequence[Tensor], world: Alone
) -> Iterator[Report | Step]:
    """All reports and steps behind those that there are: rows, and losses in the sweep behind them.

    With each report batch norm has the statistics of the weights as they are. Within a layer's sweeps those of the
    blocks before it stay as they were, and the search reads no others.
    """
    plan, start = sweeps(net, settings), Position.after(History(rows))
    calibrate(net, data.train.images)
    for cycle in range(start.cycle, settings.cycles):
        rows = [row for row in rows if row.cycle == cycle + 1]
        search = None
        for sweep in plan[len(rows) :]:
            if search is None or not sweep.before:
                search = None  # its caches go before those of the next layer come
                memory.release()
                search = _search(net, data, settings, cycle, sweep.position)
            losses = [*begun] if (cycle, sweep.number) == start[:2] else []
            outcome = yield from _walk(net, search, settings, cycle, sweep, losses, world)
            calibrate(net, data.train.images)
            rows.append(_sweep_report(net, settings, cycle, sweep, outcome, world.take_sent()))
            yield rows[-1]
        world.agree(net)
        yield _cycle_report(net, data, settings, rows, world.take_sent())


def _layers(net: nn.Module) -> list[list[str]]:
    """The tensors of each layer in the order of their sweeps.

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


def _search(net: nn.Module, data: Data, settings: RSO, cycle: int, position: int) -> Search:
    """The search of the layer at a position, on a fresh shuffle of the training part."""
    order = torch.randperm(len(data.train), generator=generator(settings.seed, cycle, SHUFFLE, position))
    size = settings.batch(cycle)
    order = order.to(data.train.labels.device)
    batches = Batches(data.train.images[order], data.train.labels[order], size)
    if not isinstance(net, Net) or unlike(net):
        return reference.ModuleSearch(net, batches, (settings.seed, cycle, NOISE, position))
    if settings.level != "weight":
        return engine.JointSearch(net, position, batches, settings.cache)
    if isinstance(net[position], Head):
        return engine.HeadSearch(net, position, batches)
    return BLOCK_SEARCHES[settings.strategy](net, position, batches, settings.cache)


class Visits(NamedTuple):
    """The steps of a sweep of one tensor, as they are drawn before the first of them.

    name     of the tensor in its layer
    indices  of the weights in the tensor, flat: [steps], int64, on the CPU
    deltas   Δ of each: [steps], on the weights' device
    before   steps of the layer that precede the sweep
    """

    name: str
    indices: Tensor
    deltas: Tensor
    before: int


def _walk(
    net: nn.Module, search: Search, settings: RSO, cycle: int, sweep: Sweep, losses: list[Tensor], world: Alone
) -> Generator[Step, None, Outcome]:
    """The steps of a sweep, and what came out.

    losses  of the first steps, which are not made again; those of the others come behind them
    """
    if settings.level != "weight":
        return (yield from _walk_jointly(net, search, settings, cycle, sweep, losses))
    weight = net.get_parameter(sweep.layer).detach()
    rng = generator(settings.seed, cycle, DRAWS, sweep.number)
    indices = ORDERS[settings.order](tuple(weight.shape), rng)
    scale = sigma(weight) * settings.sigma_factor(cycle)
    deltas = (settings.draw()((len(indices),), rng) * scale).to(weight)
    if settings.strategy != "sequential":
        weight *= 1 - settings.weight_decay
    flat = weight.view(-1)
    old, places = flat[indices], indices.tolist()
    name = sweep.layer if isinstance(search, reference.ModuleSearch) else sweep.layer.split(".", 1)[1]
    visits = Visits(name, indices, deltas, sweep.before)
    search.begin()
    owners = _owners(search, indices, weight.shape[:1].numel(), sweep.before, world.size)
    own = (owners == world.rank).nonzero().flatten()[len(losses) :]
    if isinstance(search, NeuronSearch):
        found = _at_once(search, visits, own)
    else:
        decay = settings.weight_decay if settings.strategy == "sequential" else 0.0
        found = _one_by_one(search, visits, own, flat, decay)
    made = []
    for t, scores in found:
        made.append(t)
        losses.append(scores)
        yield Step(Position(cycle, sweep.number, t + 1), sweep.layer, places[t], deltas[t], scores)
    if world.size == 1:
        return Outcome.of(losses)
    return _merged(flat, indices, torch.stack([old, old + deltas, old - deltas]), owners, made, losses, world)


def _one_by_one(
    search: OneByOne, visits: Visits, own: Tensor, weight: Tensor, decay: float
) -> Iterator[tuple[int, Tensor]]:
    """The place in the sweep, and the losses, of each step that this process makes: those at the places `own`."""
    indices = visits.indices.tolist()
    for t in own.tolist():
        if decay:
            weight[indices[t]] *= 1 - decay
        yield t, search.step(visits.name, indices[t], visits.deltas[t], visits.before + t)


def _at_once(search: NeuronSearch, visits: Visits, own: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The same where steps do not see each other: in the order of their turns, several of the same turn at once."""
    name, indices, deltas, before = visits
    turns, order = search.turns(indices, before)[own].sort(stable=True)
    own = own[order]
    turns, counts = turns.unique_consecutive(return_counts=True)
    groups = zip(turns.tolist(), own.split(counts.tolist()), strict=True)
    parts = [(turn, part) for turn, group in groups for part in group.split(search.steps_at_once)]
    sizes, device = [len(part) for _, part in parts], deltas.device
    on_device = indices[own].to(device).split(sizes), deltas[own.to(device)].split(sizes)
    for (turn, part), at, some in zip(parts, *on_device, strict=True):
        yield from zip(part.tolist(), search.steps(name, indices[part].tolist(), at, some, turn), strict=True)


def _owners(search: Search, indices: Tensor, rows: int, before: int, processes: int) -> Tensor:
    """Return the number of the process that makes each visit: that of its output neuron or slice."""
    if not isinstance(search, NeuronSearch):
        return torch.zeros_like(indices)
    shares = indices // (len(indices) // rows)
    if isinstance(search, LayerSearch):
        every_process_has_slices = len(search.labels) >= processes
        shares = search.turns(indices, before) if every_process_has_slices else torch.arange(len(indices)) + before
    return shares % processes


def _merged(
    flat: Tensor,
    indices: Tensor,
    candidates: Tensor,
    owners: Tensor,
    places: list[int],
    losses: list[Tensor],
    world: Alone,
) -> Outcome:
    """Tell the other processes what won here, at some places of the sweep, and write back what won in all of them."""
    own = Outcome.of(losses)
    choices = torch.zeros_like(indices)
    choices[places] = own.choices.cpu()
    choices = world.exchange(choices, owners)
    flat[indices] = candidates.gather(0, choices[None].to(flat.device))[0]
    return Outcome(choices, world.add(own.loss.cpu()))


def _walk_jointly(
    net: nn.Module, search: Search, settings: RSO, cycle: int, sweep: Sweep, losses: list[Tensor]
) -> Generator[Step, None, Outcome]:
    """The same where all weights of the sweep's tensors move together."""
    assert isinstance(search, reference.ModuleSearch)
    weights = [net.get_parameter(name).detach() for name in sweep.names]
    sigmas = [sigma(weight) * settings.sigma_factor(cycle) for weight in weights]
    for t in range(len(losses), sweep.steps):
        rng = generator(settings.seed, cycle, DRAWS, sweep.number, t)
        deltas = [(settings.draw()(tuple(w.shape), rng) * s).to(w) for w, s in zip(weights, sigmas, strict=True)]
        for weight in weights:
            weight *= 1 - settings.weight_decay
        losses.append(search.step_jointly(weights, deltas, sweep.before + t))
        at = Position(cycle, sweep.number, t + 1)
        yield Step(at, sweep.layer, None, torch.tensor(torch.nan), losses[-1])
    return Outcome.of(losses)


def _sweep_report(net: nn.Module, settings: RSO, cycle: int, sweep: Sweep, outcome: Outcome, sent: int) -> Report:
    weights = [net.get_parameter(name) for name in sweep.names]
    return Report(
        cycle=cycle + 1,
        layer=sweep.layer,
        sigma=sum(sigma(w) * w.numel() for w in weights) / sweep.steps * settings.sigma_factor(cycle),
        **_counts(outcome.choices.bincount(minlength=3).tolist(), settings.batch(cycle)),
        train_loss=float(outcome.loss) / len(outcome.choices) if len(outcome.choices) else NAN,
        bytes_sent=sent,
    )


def _cycle_report(net: nn.Module, data: Data, settings: RSO, rows: list[Report], sent: int) -> Report:
    steps = sum(row.steps for row in rows)
    wins = [sum(getattr(row, name) for row in rows) for name in ("kept", "plus", "minus")]
    return Report(
        cycle=rows[0].cycle,
        layer="",
        sigma=sum(row.sigma * row.steps for row in rows) / steps,
        **_counts(wins, settings.batch(rows[0].cycle - 1)),
        **scores(net, data),
        bytes_sent=sum(row.bytes_sent for row in rows) + sent,
    )


def _counts(wins: Sequence[int], batch_size: int) -> dict[str, int]:
    """What a report counts, given how often w, w + Δ and w − Δ won."""
    kept, plus, minus = wins
    steps = kept + plus + minus
    return {
        "steps": steps,
        "kept": kept,
        "plus": plus,
        "minus": minus,
        "evaluations": 3 * steps,
        "image_forwards": 3 * steps * batch_size,
    }


def check(net: nn.Module, data: Data, settings: RSO, begun: Sequence[Tensor] = (), world: Alone = ALONE) -> None:
    """Raise what `train` would raise before its first step: ValueError, TypeError or MemoryError."""
    check_data(data)
    images = len(data.train)
    if settings.batch_size > images:
        raise ValueError(
            f"batch_size is {settings.batch_size}, but the training part of {data.name} has {images} images: "
            f"set batch_size to at most {images}"
        )
    if world.size > 1 and settings.strategy == "sequential":
        raise ValueError(
            f"{world.size} processes cannot share sequential steps, each of which waits for the one before: "
            f'set strategy to "neuron" or "layer", or start one process'
        )
    if begun and settings.strategy != "sequential":
        raise ValueError(f'within a sweep a run goes on only with strategy="sequential", not {settings.strategy!r}')
    reason = unlike(net)
    if reason and (world.size > 1 or settings.strategy != "sequential"):
        raise ValueError(
            f'a net that is not a models.Net is searched by one process, with strategy="sequential": {reason}'
        )
    _check_device(net, data.train)
    check_weights(net)
    check_fit(net, data, settings.batch(0))
    if not reason and isinstance(net, Net):
        _check_engine(net, data)
        memory.check(net, data, settings)


@torch.no_grad()
@arithmetic("float32")
def check_fit(net: nn.Module, data: Data, batch_size: int) -> None:
    """Raise ValueError where a net does not take the images of some data, or gives no logits for their labels.

    Two of the images go through it, in train and in eval mode, and it stays as it is.
    """
    _check_device(net, data.train)
    if isinstance(net, Net) and not unlike(net):
        least, sides = least_size(net), data.train.images.shape[2:]
        if min(sides, default=0) < least:
            raise ValueError(
                f"the net needs images of at least {least}×{least} pixels, not {'×'.join(map(str, sides))}"
            )
    highest = max(int(part.labels.max()) for part in (data.train, data.val, data.test) if len(part))
    for training in (True, False):
        x = data.train.images[: min(batch_size, 2) if training else 2]
        logits = _probe(net, x, training)
        _check_logits(logits, data.train.labels[: len(x)], highest)


def _probe(net: nn.Module, x: Tensor, training: bool) -> Any:
    try:
        with mode(net, training), buffers_kept(net), noise(x.device, 0):
            return net(x.clone())
    except Exception as error:  # whatever goes wrong in a net of the user's
        shape, how = "×".join(map(str, x.shape)), "train" if training else "eval"
        raise ValueError(
            f"the net cannot take images of the shape {shape} ({x.dtype}) in {how} mode: "
            f"{type(error).__name__}: {error}; give it one that is made for the data's shape"
        ) from error


def _check_device(net: nn.Module, split: Split) -> None:
    """Raise ValueError where a net has parameters elsewhere than on the device of the images."""
    device = split.images.device
    for name, weight in net.named_parameters():
        if weight.device != device:
            raise ValueError(
                f"{name} of the net is on {weight.device}, but the images are on {device}: "
                f"call .to({str(device)!r}) on the net, or load the data with device={weight.device.type!r}"
            )


def _check_logits(logits: Any, labels: Tensor, highest: int) -> None:
    """Raise ValueError where what a net returns are no logits for images of some labels, or not for the highest."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"the net returns a {type(logits).__name__}; it must return one tensor of logits [N, classes]")
    if logits.dim() != 2 or len(logits) != len(labels) or not logits.is_floating_point():
        raise ValueError(
            f"the net returns {logits.dtype} of the shape {tuple(logits.shape)} for {len(labels)} images; "
            f"it must return floating-point logits [N, classes]"
        )
    if highest >= logits.shape[1]:
        raise ValueError(
            f"the net has {logits.shape[1]} outputs, but there is a label {highest}: "
            f"make it with at least {highest + 1} classes"
        )


def _check_engine(net: Net, data: Data) -> None:
    """Raise ValueError where the engine would compute another net than this one is."""
    x = data.train.images[:2]
    kinds = {tensor.dtype for tensor in _tensors(net) if tensor.is_floating_point()} | {x.dtype}
    if len(kinds) > 1:
        raise ValueError(f"net and images must be of one type, not {', '.join(sorted(map(str, kinds)))}: call .float()")
    with torch.no_grad(), mode(net, training=False):
        own, engines = net(x.clone()), forward(stages(net.layers, calibrated=True), x).x
    if own.isfinite().all() and not torch.allclose(own, engines, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise ValueError("the engine and the net's own forward give different logits: something has changed the net")
