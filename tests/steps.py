"""Single steps of a scorer, for tests that look into the engine."""

from typing import Any

import torch
from torch import Tensor

from rso_lib.algorithm import Batches, cross_entropies
from rso_lib.engine import Moves, scorer_of, stepper
from rso_lib.models import Net
from rso_lib.rules import argmin
from rso_lib.settings import RSO


def scorer(net: Net, position: int, batches: Batches, **settings: Any) -> Any:
    """The scorer that a run with these settings has for a layer."""
    return scorer_of(net, position, batches, RSO(batch_size=batches.size, **settings), cross_entropies)


def one_step(of: Any, tensor: str, index: int, delta: Tensor, turn: int) -> Tensor:
    """The losses [3] of one step, which is committed."""
    step = stepper(of, argmin, torch.device("cpu"))
    losses, _ = step(Moves.of(tensor, index, delta, turn % len(of.labels)))
    return losses[0]
