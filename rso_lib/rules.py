"""Rules decide what is written back, given the losses of a step's candidates.

A candidate is w + m·Δ for a multiple m of the proposed change: 0, 1 and −1 in the paper. A rule returns the multiple
that each weight moves by: one of those that were scored, or any other number. A rule of your own is a function like
those below, passed as `RSO(rule=...)`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .calls import called, calling


class Scores(NamedTuple):
    """The losses of n steps that are decided together, on one batch of N images.

    losses     mean loss of each candidate w + m·Δ: [n, K], float64
    images     loss of each candidate on each image: [n, K, N]
    multiples  m of each candidate; the first is 0, the weight as it stands: [K], float64
    deltas     Δ of each step; NaN where many weights move together: [n]
    """

    losses: Tensor
    images: Tensor
    multiples: Tensor
    deltas: Tensor

    def errors(self) -> Tensor:
        """Return the standard error, over the batch, of each candidate's loss minus that of w: [n, K], float64.

        NaN for a batch of one image, which says nothing about others.
        """
        change = (self.images - self.images[:, :1]).double()
        count = change.shape[2]
        squares = (change - change.mean(2, keepdim=True)).square().sum(2)
        return (squares / (count - 1) / count).sqrt() if count > 1 else squares * torch.nan


Rule = Callable[[Scores], Tensor]
"""From the scores of n steps to the multiple of Δ that each of them moves by: [n], float64."""


def choose(losses: Tensor) -> Tensor:
    """Return the index of the lowest loss along the first axis; a tie keeps the earlier; NaN and ±inf never win."""
    return losses.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf).argmin(0)


def argmin(scores: Scores) -> Tensor:
    """Keep the candidate with the lowest loss (Algorithm 1, line 13). A tie keeps w."""
    return scores.multiples[choose(scores.losses.T)]


def clear(scores: Scores) -> Tensor:
    """Keep the best candidate only where it beats w by more than the standard error of their difference."""
    best = choose(scores.losses.T)[:, None]
    w = scores.losses[:, 0]
    gain, error = w - scores.losses.gather(1, best)[:, 0], scores.errors().gather(1, best)[:, 0]
    moves = (gain > error) | ~w.isfinite()
    return torch.where(moves, scores.multiples[best[:, 0]], 0.0)


def parabola(scores: Scores) -> Tensor:
    """Go to the minimum of the parabola through w and the two outermost candidates.

    The weight moves at most twice as far as to the furthest candidate. Where the parabola has no minimum, the candidate
    with the lowest loss is kept.
    """
    ends = torch.stack([scores.multiples.argmin(), scores.multiples.argmax()])  # a tensor: no value is read back
    a, b = scores.multiples[ends].unbind()
    w = scores.losses[:, 0]
    to_a, to_b = ((scores.losses[:, ends] - w[:, None]) / scores.multiples[ends]).unbind(1)
    bend = (to_b - to_a) / (b - a)
    minimum, reach = (bend * a - to_a) / (2 * bend), 2 * scores.multiples.abs().max()
    return torch.where(bend > 0, minimum.clamp(-reach, reach), argmin(scores))


RULES: dict[str, Rule] = {"argmin": argmin, "clear": clear, "parabola": parabola}


def checked_rule(rule: Rule) -> Rule:
    """Wrap a rule of the user's: raise ValueError or TypeError, with its name, for anything but a move for each step.

    Raises ValueError, too, where the rule itself raises anything or writes into the scores.
    """
    name = called(rule)

    def wrapped(scores: Scores) -> Tensor:
        moves = calling(f"rule {name}", lambda *parts: rule(Scores(*parts)), *scores)
        steps = len(scores.losses)
        if not isinstance(moves, Tensor):
            raise TypeError(f"rule {name} must return a tensor of {steps} multiples of Δ, not {moves!r}")
        if moves.shape != (steps,):
            raise ValueError(f"rule {name} must return one multiple of Δ for each of {steps} steps, not {moves.shape}")
        if not moves.is_floating_point():
            raise TypeError(
                f"rule {name} must return multiples of Δ as floating-point numbers, not {moves.dtype}: where these are "
                f"places of candidates, return scores.multiples[places]"
            )
        moves = moves.to(scores.losses)
        if not bool(moves.isfinite().all()):
            raise ValueError(f"rule {name} must return finite multiples of Δ, not {moves.tolist()}")
        return moves

    return wrapped
