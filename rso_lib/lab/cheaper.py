"""Ideas by which RSO may pay less, each a method of the scoreboard, with the settings of RSO for 4, 8 and 16 cycles."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..data import Data
from ..passes import calibrate
from ..rules import Scores, parabola
from ..train import evaluate
from .methods import Contender, Spent, grid, rso

BEYOND = (-0.5, -0.25, 0.5, 1.0)
"""How much further along the last cycle's move `pattern` looks, as a share of that move."""


def signs(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw Δ as −σ or σ."""
    return torch.randint(0, 2, shape, generator=rng).float() * 2 - 1


def shrunk(scores: Scores) -> Tensor:
    """Go to the minimum of the parabola, shortened by the share of the slope's square that is not noise.

    The noise is that of the difference of the two losses over the images of the batch.
    """
    change = (scores.images[:, 1] - scores.images[:, 2]).double()
    noise = change.var(1) / change.shape[1]
    share = (1 - noise / change.mean(1).square()).clamp(min=0).nan_to_num(nan=0.0)
    return torch.where(share > 0, share * parabola(scores), 0.0)


def averaged(net: nn.Module, data: Data, budget: int, seed: int, *, cycles: int, scale: float) -> Iterator[Spent]:
    """Search as `rso` does, and end with the mean of the weights after the cycles of the second half."""
    weights, kept, last = list(net.parameters()), [], Spent(0, 0)
    for k, spent in enumerate(rso(net, data, budget, seed, cycles=cycles, scale=scale), 1):
        if k % len(weights) == 0 and 2 * k > len(weights) * cycles:
            kept.append([weight.detach().clone() for weight in weights])
        if k == len(weights) * cycles:
            for weight, values in zip(weights, zip(*kept, strict=True), strict=True):
                weight.data.copy_(torch.stack(values).mean(0))
        last = spent
        yield last


def pattern(net: nn.Module, data: Data, budget: int, seed: int, *, cycles: int, scale: float) -> Iterator[Spent]:
    """Search as `rso` does; after each cycle go on along its move, or back, where the loss of all images is lower."""
    weights, images, tried = list(net.parameters()), 0, 0
    looks = cycles * len(data.train) * (1 + len(BEYOND))
    before = [weight.detach().clone() for weight in weights]
    for k, spent in enumerate(rso(net, data, budget - looks, seed, cycles=cycles, scale=scale), 1):
        if k % len(weights) == 0:
            after = [weight.detach().clone() for weight in weights]
            losses = {share: _moved(net, data, before, after, share) for share in (0.0, *BEYOND)}
            _moved(net, data, before, after, min(losses, key=losses.__getitem__))
            before = [weight.detach().clone() for weight in weights]
            images, tried = images + len(losses) * len(data.train), tried + len(losses)
        yield Spent(spent.image_forwards + images, spent.evaluations + tried)


def _moved(net: nn.Module, data: Data, before: list[Tensor], after: list[Tensor], share: float) -> float:
    """Move the weights a share further along a cycle's move, and return the loss of all training images."""
    for weight, old, new in zip(net.parameters(), before, after, strict=True):
        weight.data.copy_(new + share * (new - old))
    calibrate(net, data.train.images)
    return evaluate(net, data.train)[0]


SAME = grid(cycles=[4, 8, 16], scale=[2.0, 1.0, 0.5, 0.25])
IDEAS: Mapping[str, Contender] = {
    "rso_signs": Contender("RSO, ±σ in place of a normal Δ", partial(rso, distribution=signs), SAME),
    "rso_parabola": Contender("RSO, the parabola's minimum", partial(rso, rule="parabola"), SAME),
    "rso_shrunk": Contender("RSO, the parabola's minimum, shrunk by its noise", partial(rso, rule=shrunk), SAME),
    "rso_clear": Contender("RSO, only clear gains", partial(rso, rule="clear"), SAME),
    "rso_two": Contender("RSO, w and w + Δ only", partial(rso, candidates=(0.0, 1.0)), SAME),
    "rso_mean": Contender("RSO, the mean of the last weights", averaged, SAME),
    "rso_pattern": Contender("RSO, on along the cycle's move", pattern, SAME),
}

EXPECTED = {
    "rso_signs": "better",
    "rso_parabola": "nothing",
    "rso_shrunk": "better",
    "rso_clear": "worse",
    "rso_two": "worse",
    "rso_mean": "better",
    "rso_pattern": "a little better",
}
"""What was expected of each idea before it was measured; notebook 10 says why."""
