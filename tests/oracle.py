"""The plain algorithm, written from its definition and from nothing else, with small nets and images to try it on.

It knows the modules of a net and the keys of a run's random generators, and neither `rso_lib.engine` nor
`rso_lib.train` nor `rso_lib.algorithm`: what those do is compared with what is written here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rso_lib.data import Data, Split
from rso_lib.models import Block, Flow, Head, Net
from rso_lib.proposals import generator
from rso_lib.settings import RSO

# A cycle visits the tensors of a layer in this order (the authors' code: the shift before the scale).
TENSORS = ["conv.weight", "conv.bias", "norm.bias", "norm.weight"]
TENSORS += ["shortcut.0.weight", "shortcut.1.bias", "shortcut.1.weight", "linear.weight", "linear.bias"]

SHUFFLE, DRAWS = 1, 2

Where = int | slice
"""What a step moves in a flat tensor: one weight, or all."""


class Visit(NamedTuple):
    """One step: `losses` [3], float64, of w, w + Δ and w − Δ on one batch, and the `choice` among them."""

    layer: str
    where: Where
    losses: Tensor
    choice: int


@torch.no_grad()
def plain(net: Net, data: Data, settings: RSO, cycle: int = 0, sweep: int = 0, step: int = 0) -> Iterator[Visit]:
    """Train `net` in place from a position of the run on: three full passes from the searched layer for each step."""
    start = (cycle, sweep, step)
    for c in range(cycle, settings.cycles):
        done: dict[int, int] = {}  # steps since a layer's shuffle, by its position in the net
        for k, (position, names) in enumerate(plan(net, settings)):
            weights = [net.get_parameter(name).data.view(-1) for name in names]
            first, count = done.get(position, 0), sum(map(len, weights))
            done[position] = first + count
            if (c, k) < start[:2]:
                continue
            x, skip, labels = cached(net, data, settings, c, position)
            if settings.strategy != "sequential":
                assert step == 0, "merged sweeps begin at their beginning"
                yield from merged(net, position, names[0], settings, (c, k), first, (x, skip, labels))
                continue
            for t, (where, deltas) in enumerate(draws(net, names, settings, c, k)):
                if (c, k, t) < start:
                    continue
                size = settings.batch(c)
                begin = (first + t) % (len(labels) // size) * size
                batch = slice(begin, begin + size)
                open_skip = None if skip is None else skip[batch]
                score = partial(loss, list(net)[position:], x[batch], open_skip, labels[batch])
                searched, levels = [weight[where] for weight in weights], [levels_of(net, name) for name in names]
                losses, choice = visit(searched, deltas, settings.weight_decay, score, levels)
                yield Visit(names[0] if len(names) == 1 else "network", where, losses, choice)


def merged(
    net: Net, position: int, name: str, settings: RSO, at: tuple[int, int], first: int, data: Sequence[Tensor | None]
) -> Iterator[Visit]:
    """A sweep whose steps do not see those of other output neurons ("neuron"), or none ("layer"), until its end."""
    x, skip, labels = data
    weight = net.get_parameter(name).data
    weight *= 1 - settings.weight_decay
    before, results = weight.clone(), weight.clone()
    turns: dict[int, int] = {}
    size = settings.batch(at[0])
    steps = list(enumerate(draws(net, [name], settings, *at)))
    if "linear" not in name:  # steps that do not see each other are made at once: by slice, or one of each neuron
        rows = [where // weight[0].numel() for _, (where, _) in steps]
        turn_of = {"layer": lambda t: (first + t) % (len(labels) // size), "neuron": lambda t: rows[:t].count(rows[t])}
        steps.sort(key=lambda step: turn_of[settings.strategy](step[0]))
    for t, (where, [delta]) in steps:
        row = where // weight[0].numel()
        turn = turns.get(row, 0) if settings.strategy == "neuron" else t
        turns[row] = turn + 1
        weight.copy_(before)
        if settings.strategy == "neuron":
            weight[row] = results[row]
        if "linear" in name:  # the final layer is searched sequentially
            turn = t
            weight.copy_(results)
        begin = (first + turn) % (len(labels) // size) * size
        batch = slice(begin, begin + size)
        score = partial(loss, list(net)[position:], x[batch], None if skip is None else skip[batch], labels[batch])
        losses, choice = visit([weight.view(-1)[where]], [delta], 0.0, score, [levels_of(net, name)])
        results.view(-1)[where] = weight.view(-1)[where]
        weight.copy_(results)  # what is written back, though the other steps do not see it
        yield Visit(name, where, losses, choice)
        results.view(-1)[where] = weight.view(-1)[where]  # a test may have taken over what rounding chose elsewhere


def visit(
    weights: Sequence[Tensor],
    deltas: Sequence[Tensor],
    weight_decay: float,
    score: Callable[[], Tensor],
    levels: Sequence[Tensor | None],
) -> tuple[Tensor, int]:
    """Shrink the weights, which are views into the net, score the three candidates, and leave the best in place."""
    for w in weights:
        w *= 1 - weight_decay
    old = [w.clone() for w in weights]
    plus = [changed(*triple) for triple in zip(old, deltas, levels, strict=True)]
    minus = [changed(w, -d, values) for w, d, values in zip(old, deltas, levels, strict=True)]
    losses = []
    for candidate in (old, plus, minus):
        put(weights, candidate)
        losses.append(float(score()))
    choice = best(losses)
    put(weights, (old, plus, minus)[choice])
    return torch.tensor(losses, dtype=torch.float64), choice


def changed(w: Tensor, delta: Tensor, levels: Tensor | None) -> Tensor:
    """w + Δ; where a weight has levels, the one above or below, by the sign of Δ, if there is one."""
    if levels is None:
        return w + delta
    here = (w.unsqueeze(-1) == levels).nonzero()[:, -1].view(w.shape)  # of each weight one, if all are on their levels
    return levels[(here + delta.sign().long()).clamp(0, len(levels) - 1)]


def levels_of(net: Net, name: str) -> Tensor | None:
    """The values that the weights of a tensor may have, ascending; None for floats.

    They are equally spaced around 0, by the power of two for which their mean square is above half of 2 / fan_in, and
    at most its double.
    """
    weight, count = net.get_parameter(name), net.get_submodule(name.split(".")[0]).levels
    if not count or weight.dim() == 1:
        return None
    units = torch.arange(count, dtype=weight.dtype) - (count - 1) / 2
    ratio = float(units.square().mean()) * weight[0].numel() / 2
    [spacing] = [2.0**k for k in range(-20, 5) if 1 / 2 < 4.0**k * ratio <= 2]
    return spacing * units


def best(losses: Sequence[float]) -> int:
    """The lowest loss; a tie keeps the earlier; what is not finite wins nothing."""
    choice = 0
    lowest = losses[0] if math.isfinite(losses[0]) else math.inf
    for k in (1, 2):
        if math.isfinite(losses[k]) and losses[k] < lowest:
            choice, lowest = k, losses[k]
    return choice


def put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def plan(net: Net, settings: RSO) -> list[tuple[int, list[str]]]:
    """The sweeps of a cycle: the position of a layer in the net, and the names of the tensors searched together."""
    if settings.level == "network":
        return [(0, [name for name, _ in net.named_parameters()])]
    layers = list(enumerate(net.named_children()))
    if settings.direction == "backward":
        layers.reverse()
    return [
        (position, [f"{name}.{tensor}"])
        for position, (name, layer) in layers
        for tensor in TENSORS
        if tensor in dict(layer.named_parameters())
    ]


def cached(net: Net, data: Data, settings: RSO, cycle: int, position: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """The searched layer's input, the open skip and the labels, all in the order of the layer's shuffle."""
    net.train()
    net(data.train.images[:2000])  # batch norm with momentum 1 keeps the statistics of this one batch
    net.eval()
    rng = generator(settings.seed, cycle, SHUFFLE, position)
    order = torch.randperm(len(data.train), generator=rng).to(data.train.images.device)
    flow = Flow(data.train.images[order])
    for layer in list(net)[:position]:
        flow = layer(flow)
    for layer in list(net)[position:]:
        layer.train()
    return *flow, data.train.labels[order]


def loss(layers: Sequence[nn.Module], x: Tensor, skip: Tensor | None, labels: Tensor) -> Tensor:
    """Mean cross entropy behind the layers."""
    flow = Flow(x, skip)
    for layer in layers:
        flow = layer(flow)
    return F.cross_entropy(flow.double(), labels)


def draws(net: Net, names: list[str], settings: RSO, cycle: int, sweep: int) -> Iterator[tuple[Where, list[Tensor]]]:
    """What each step of a sweep moves, and by how much."""
    weights = [net.get_parameter(name) for name in names]
    factor = schedule(settings, cycle) * (1.0 if settings.level == "weight" else 0.1)
    sigmas = [sigma(weight) * factor for weight in weights]
    if settings.level == "weight":
        rng = generator(settings.seed, cycle, DRAWS, sweep)
        indices = visits(weights[0].shape, settings.order, rng)
        changes = sample(settings, (len(indices),), rng) * sigmas[0]
        yield from ((i, [d.to(weights[0])]) for i, d in zip(indices, changes, strict=True))
        return
    for t in range(sum(weight.numel() for weight in weights)):
        rng = generator(settings.seed, cycle, DRAWS, sweep, t)
        changes = [sample(settings, tuple(w.shape), rng) * s for w, s in zip(weights, sigmas, strict=True)]
        yield slice(None), [d.flatten().to(weights[0]) for d in changes]


def sigma(weight: Tensor) -> float:
    """√(2 / fan_in), and 1/6 for scales, shifts and biases."""
    return math.sqrt(2 / math.prod(weight.shape[1:])) if weight.dim() > 1 else 1 / 6


def schedule(settings: RSO, cycle: int) -> float:
    if callable(settings.schedule):
        return settings.schedule(cycle, settings.cycles)
    return {"constant": 1.0, "linear": 1 - 0.9 * (cycle / max(settings.cycles - 1, 1))}[settings.schedule]


def visits(shape: Sequence[int], order: str, rng: torch.Generator) -> list[int]:
    """Flat indices of a tensor [outputs, inputs, ...] in the order of the visits."""
    count = math.prod(shape)
    if order == "shuffled":
        return torch.randperm(count, generator=rng).tolist()
    if order == "output" or len(shape) == 1:
        return list(range(count))
    outputs, inputs, taps = shape[0], shape[1], math.prod(shape[2:])
    return [(o * inputs + i) * taps + t for i in range(inputs) for o in range(outputs) for t in range(taps)]


def sample(settings: RSO, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draws in units of σ."""
    if callable(settings.distribution):
        return settings.distribution(shape, rng)
    if settings.distribution == "uniform":
        return torch.rand(shape, generator=rng) * 4 - 2
    if settings.distribution == "template":
        return torch.randint(-1, 2, shape, generator=rng).float()
    return torch.randn(shape, generator=rng)


# Small images and nets


def images(
    count: int,
    shape: tuple[int, int, int],
    classes: int = 3,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> Data:
    """Noise around a picture of each class: a training part of `count` images, and two smaller parts."""
    rng = torch.Generator().manual_seed(count)
    pictures = torch.randn((classes, *shape), generator=rng, dtype=torch.float64)

    def split(size: int) -> Split:
        labels = torch.randint(classes, (size,), generator=rng)
        noise = torch.randn((size, *shape), generator=rng, dtype=torch.float64)
        return Split((pictures[labels] + noise).to(device, dtype), labels.to(device))

    names = tuple(map(str, range(classes)))
    zeros = torch.zeros(shape[0])
    return Data("toy", split(count), split(count // 2), split(count // 2), names, zeros, zeros + 1)


def narrow(kind: str) -> tuple[Net, tuple[int, int, int]]:
    """A net of a few channels, as `stirred` leaves it, and its images' shape; three classes."""
    shape, blocks, head = NARROW[kind]()
    return stirred(Net(blocks, head, seed=1)), shape


@torch.no_grad()
def stirred(net: Net) -> Net:
    """The net in float64, its scales, shifts and biases moved away from one and zero."""
    rng = torch.Generator().manual_seed(2)
    for weight in net.double().parameters():
        if weight.dim() == 1:
            weight += 0.3 * torch.randn(weight.shape, generator=rng)
    return net


Parts = tuple[tuple[int, int, int], list[Block], Head]


def _flat() -> Parts:
    blocks = [Block(2, 2, pool="max", norm=False), Block(2, 3, pool="avg", norm=False)]
    return (2, 8, 8), blocks, Head(12, 3, pool="flatten", bias=True)


def _folded() -> Parts:
    blocks = [Block(1, 3, pool="avg"), Block(3, 2), Block(2, 3, pool="avg", activation=None)]
    return (1, 9, 12), blocks, Head(3, 3, pool="max")


def _max_pooled() -> Parts:
    return (1, 8, 8), [Block(1, 3, pool="max"), Block(3, 3, pool="max", activation=None)], Head(3, 3, pool="mean")


def _pool_last() -> Parts:
    blocks = [Block(1, 3, pool="avg", pool_last=True), Block(3, 2, pool="max", pool_last=True), Block(2, 3)]
    return (1, 10, 9), blocks, Head(3, 3, pool="mean")


def _skips() -> Parts:
    blocks = [
        Block(1, 2, skip="open"),
        Block(2, 2),
        Block(2, 2, skip="both", closes=2),
        Block(2, 2, skip="close", closes=2),
    ]
    return (1, 3, 4), blocks, Head(24, 3, pool="flatten", bias=True)


def _growing() -> Parts:
    blocks = [
        Block(1, 2, skip="open"),
        Block(2, 2),
        Block(2, 3, skip="both", closes=2, pool="avg"),
        Block(3, 2),
        Block(2, 2, skip="close", closes=3, pool="max"),
    ]
    return (1, 8, 8), blocks, Head(2, 3, pool="max", bias=True)


def _growing_pool_last() -> Parts:
    blocks = [
        Block(2, 2, skip="open", pool="avg", pool_last=True),
        Block(2, 2),
        Block(2, 3, skip="both", closes=2, pool="avg", pool_last=True),
        Block(3, 3, skip="close", closes=3, activation=None),
    ]
    return (2, 9, 8), blocks, Head(3, 3, pool="mean")


def _unnormed_skips() -> Parts:
    blocks = [
        Block(1, 2, norm=False, skip="open", pool="max"),
        Block(2, 3, norm=False, skip="both", closes=2, activation=None),
        Block(3, 3, skip="close", closes=3, pool="avg", norm=False),
    ]
    return (1, 8, 8), blocks, Head(3, 3, pool="max")


NARROW: dict[str, Callable[[], Parts]] = {
    "flat": _flat,
    "folded": _folded,
    "max_pooled": _max_pooled,
    "pool_last": _pool_last,
    "skips": _skips,
    "growing": _growing,
    "growing_pool_last": _growing_pool_last,
    "unnormed_skips": _unnormed_skips,
}
