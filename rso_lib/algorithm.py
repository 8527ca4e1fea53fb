"""Algorithm 1 as the paper prints it: slow, short, and for any `nn.Module` and any loss.

`train` makes the same decisions in `engine/`; for a net that the engine does not know, `engine/module.py` sends whole
batches through it. The search engine is tested against another writing of the algorithm, which shares no code with
this file or with the engine: tests/oracle.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import models
from .discrete import Grid
from .models import grids, searched
from .proposals import gaussian, generator, sigma
from .rules import choose


@torch.no_grad()
def step(
    loss: Callable[[], Tensor],
    weights: Sequence[Tensor],
    deltas: Sequence[Tensor],
    grids: Sequence[Grid | None] | None = None,
) -> Tensor:
    """Score W, W + Δ and W − Δ, and write back the best (line 13). Returns the three losses, float64.

    loss      computes the loss of the net as it stands, always on the same batch
    weights   the tensors that this step perturbs: one for a weight or a layer, all for the network
    deltas    ΔW, of the same shapes; zero but for one element if a single weight is searched
    grids     for each tensor its grid, on which the nearest values to W ± Δ are candidates, or None

    `choose` says which candidate was kept: 0 for W, 1 for W + Δ, 2 for W − Δ. After an exception, such as an interrupt,
    the tensors hold W.
    """
    best = kept = [w.clone() for w in weights]
    on = [None] * len(weights) if grids is None else grids
    candidates = [kept, _add(kept, deltas, 1, on), _add(kept, deltas, -1, on)]
    losses = []
    try:
        for values in candidates:
            _write(weights, values)
            losses.append(loss().double())
        scores = torch.stack(losses)
        best = candidates[int(choose(scores))]
    finally:
        _write(weights, best)
    return scores


def one_hot(weight: Tensor, index: int, delta: float | Tensor) -> Tensor:
    """Return ΔW_j: zero for all weights but the one with the flat index j."""
    change = torch.zeros_like(weight)
    change[torch.unravel_index(torch.tensor(index), weight.shape)] = delta
    return change


class Batches(NamedTuple):
    """The training part in the order of a sweep: images [N, C, H, W] and labels [N], cut into slices of a size."""

    images: Tensor
    labels: Tensor
    size: int

    def slices(self, x: Tensor) -> Sequence[Tensor]:
        """Cut x [N, ...] into whole slices; what is left over is not used in this sweep."""
        return x[: len(self.labels) // self.size * self.size].split(self.size)


Loss = Callable[[Tensor, Tensor], Tensor]
"""From a net's outputs [N, ...] and targets [N, ...] to the loss of each image: [N], float64."""


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each image, in nats: [N], float64.

    logits  [N, classes], or [K, N, classes] for the K candidates of a step, whose losses are [K, N]
    labels  [N]
    """
    if logits.dim() == 2:
        return cross_entropies(logits[None], labels)[0]
    by_class = logits.double().transpose(1, 2)  # the softmax runs along the images: twice as fast
    return F.cross_entropy(by_class, labels.expand(len(logits), -1), reduction="none")


def losses_of(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each image for each candidate's outputs [K, N, ...]: [K, N], float64.

    Each candidate is scored in memory of the same layout, so that equal outputs have equal losses to the last bit.
    """
    if loss is cross_entropies:
        return loss(outputs, targets)
    return torch.stack([loss(one, targets) for one in outputs])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of logits [N, classes] and labels [N], in float64."""
    return cross_entropies(logits, labels).mean()


@torch.no_grad()
def algorithm_1(
    net: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    cycles: int,
    batch_size: int,
    seed: int = 0,
    initialise: bool = True,
) -> nn.Module:
    """Run the whole of Algorithm 1, line by line, for a constant σ. Trains `net` in place and returns it.

    loss            (net, x, l) → scalar
    images, labels  X, of shape [N, ...], and L, of shape [N, ...]
    initialise      False goes on with the weights that the net has; σ is then that of initial weights on average

    Every step scores its own random batch, with the whole net. Nothing is cached. Weights on a grid
    (`models.Block`) move to a neighbouring value.
    """
    rng = generator(seed)
    images = (images - images.mean()) / images.std()  # line 1
    if initialise:
        models.initialise(net, seed)  # lines 2 to 5
    names, layers = list(searched(net)), list(searched(net).values())
    on_grid = [grids(net).get(name) for name in names]
    sigmas = [_deviation(w) if initialise else sigma(w) for w in layers]  # line 6
    for _ in range(cycles):  # line 8
        for weight, deviation, grid in reversed([*zip(layers, sigmas, on_grid, strict=True)]):  # lines 9, 10, 16
            for j in range(weight.numel()):  # line 11
                batch = torch.randperm(len(images), generator=rng)[:batch_size]
                delta = float(gaussian((1,), rng)) * deviation  # line 12
                if grid is not None:
                    delta = math.copysign(grid.spacing, delta)
                score = lambda b=batch: loss(net, images[b], labels[b])  # noqa: E731
                step(score, [weight], [one_hot(weight, j, delta)], [grid])  # lines 13 and 14
    return net


def _deviation(weight: Tensor) -> float:
    """Return the standard deviation of a layer's weights, or `sigma` of the layer where all weights are equal."""
    varied = weight.dim() > 1 and bool((weight != weight.view(-1)[0]).any())
    return float(weight.std()) if varied else sigma(weight)


def _add(weights: Sequence[Tensor], deltas: Sequence[Tensor], sign: int, grids: Sequence[Grid | None]) -> list[Tensor]:
    sums = [w + sign * d for w, d in zip(weights, deltas, strict=True)]
    return [there if grid is None else grid.nearest(there) for there, grid in zip(sums, grids, strict=True)]


def _write(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for w, value in zip(weights, values, strict=True):
        w.copy_(value)
