"""The search engine: the decisions of Algorithm 1, for a small fraction of its work.

A *plan* says which weights are visited together, and on which batch (`plans`). A *scorer* gives the losses of their
candidates w + m·Δ. A *rule* chooses how far each weight moves (`rso_lib.rules`). The scorer *commits*: it writes the
weights back, and notes which output channels of its caches are stale.

    for moves in plan:
        scores = scorer.score(moves)
        choices = rule(scores)
        scorer.commit(moves, choices)

Strategies are plans. `scorer_of` picks the scorer: `sequential` and `snapshot` for a block, `head` for the final layer,
`module` for any module and for joint steps. On a CUDA device a step of the loop is a replayed graph (`replay`). To see
how one weight changes, read `stepper`, and then `block.write`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..algorithm import Batches, Loss
from ..known import unlike
from ..models import Head, Net
from ..rules import Rule, Scores
from ..settings import RSO
from . import memory, replay
from .head import HeadScorer
from .layers import chunk, forward, stages
from .module import JointMove, JointScorer, ModuleScorer
from .plans import Moves, Visits, owners, plan
from .sequential import SequentialScorer
from .snapshot import SnapshotScorer

__all__ = [
    "ENGINE",
    "JointMove",
    "Moves",
    "Scorer",
    "Stepper",
    "Visits",
    "chunk",
    "evaluator",
    "memory",
    "owners",
    "plan",
    "scorer_of",
    "stepper",
]

ENGINE = 1
"""The number of this engine. Raise it by one with every change after which decisions may differ by more than rounding.

A run's folder notes it, and a run that is taken up by another engine says so.
"""


class Scorer(Protocol):
    """A scorer knows the net, and caches its activations on each batch; it does not choose.

    strategy       which of the plans it can follow
    steps_at_once  how many steps it scores together, at the most
    labels         of each batch
    """

    labels: Sequence[Tensor]

    @property
    def strategy(self) -> str: ...
    @property
    def steps_at_once(self) -> int: ...

    def begin(self) -> None:
        """Start a sweep, or go on within it, with nothing cached."""

    def score(self, moves: Any) -> Scores:
        """Return the losses of the candidates of some steps, all on one batch."""

    def commit(self, moves: Any, choices: Tensor) -> None:
        """Move each weight by a multiple [n] of its Δ."""


Stepper = Callable[[Any], tuple[Tensor, Tensor]]
"""Makes the steps of some moves; returns the losses [n, K] and the choices [n], multiples of Δ."""


def scorer_of(
    net: nn.Module, position: int, batches: Batches, settings: RSO, loss: Loss, key: Sequence[int] = (0,)
) -> Scorer:
    """Return the scorer of the layer at a position of a net, on some batches.

    key  of the random numbers that a module draws, such as those of dropout
    """
    if not isinstance(net, Net) or unlike(net):
        return ModuleScorer(net, batches, settings, loss, key)
    if settings.level != "weight":
        return JointScorer(net, position, batches, settings, loss)
    if isinstance(net.layers[position], Head):
        return HeadScorer(net, position, batches, settings, loss)
    block = SequentialScorer if settings.strategy == "sequential" else SnapshotScorer
    return block(net, position, batches, settings, loss)


def evaluator(net: Net) -> Callable[[Tensor], Tensor]:
    """Return a net in eval mode as a function from images to logits, in compiled loops where these cover it."""
    cuts = stages(net.layers, calibrated=True)
    return lambda images: forward(cuts, images).x


def stepper(scorer: Scorer, rule: Rule, device: torch.device, cache: str = "full") -> Stepper:
    """Return the function that makes steps: score, choose, commit; on a CUDA device a replayed graph of these three."""
    if isinstance(scorer, SequentialScorer) and replay.covers(device, cache):
        return replay.Replay(scorer, rule, device)

    def step(moves: Any) -> tuple[Tensor, Tensor]:
        scores = scorer.score(moves)
        choices = rule(scores)
        scorer.commit(moves, choices)
        return scores.losses, choices

    return step
