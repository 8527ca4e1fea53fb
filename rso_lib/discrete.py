"""Parts of a net without a gradient: activations that are steps, and weights on a grid."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .settings import check_whole

ACTIVATIONS = ("relu", "sign", "step")


def activate(z: Tensor, activation: str | None) -> Tensor:
    """Apply an activation to each element: max(z, 0), the sign (±1; +1 for 0), a step from 0 to 1 at 0, or none.

    Autograd finds a slope of zero everywhere for sign and step. NaN stays NaN.
    """
    if activation is None:
        return z
    if activation == "relu":
        return F.relu(z)
    below = z.clamp(-1, 0).floor_()  # -1 where z < 0, else 0
    return below.mul_(2).add_(1) if activation == "sign" else below.add_(1)


class Grid(NamedTuple):
    """The values that a weight may have: `levels` of them, `spacing` apart, symmetric around 0.

    The spacing is a power of two, so that each value is exact in every floating-point type.
    """

    levels: int
    spacing: float

    @classmethod
    def of(cls, weight: Tensor, levels: int) -> "Grid":
        """Choose the grid of a tensor by its fan-in.

        Values drawn uniformly have the variance spacing² · (levels² − 1) / 12. The spacing is the power of
        two that brings this nearest to He's 2 / fan_in: above one half of that, and at most twice that.
        """
        square = 24 / (weight[0].numel() * (levels**2 - 1))
        return cls(levels, 2.0 ** math.floor((math.log2(square) + 1) / 2))

    def nearest(self, values: Tensor) -> Tensor:
        """Return the value of the grid that is nearest to each of some values."""
        middle = (self.levels - 1) / 2
        return ((values / self.spacing + middle).round().clamp(0, self.levels - 1) - middle) * self.spacing

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Draw values of the grid, all equally likely."""
        return (torch.randint(self.levels, shape, generator=rng) - (self.levels - 1) / 2) * self.spacing


def check_levels(levels: int) -> None:
    """Raise TypeError or ValueError for a number of levels that no grid has; 0 stands for floats."""
    check_whole("levels", levels, least=0, most=2**16)
    if levels == 1:
        raise ValueError("levels must be 0 for floats or at least 2, such as 3 for ternary weights, not 1")


def candidates(w: Tensor, deltas: Tensor, multiples: Tensor, grid: Grid | None = None) -> Tensor:
    """Return the candidates w + m·Δ; on a grid, the nearest values of the grid."""
    there = w + multiples.to(w.dtype) * deltas
    return there if grid is None else grid.nearest(there)


def moved(w: Tensor, deltas: Tensor, multiples: Tensor, grid: Grid | None = None) -> Tensor:
    """Return the moved weights: `candidates`, but w to the last bit where m is 0."""
    return torch.where(multiples == 0, w, candidates(w, deltas, multiples, grid))
