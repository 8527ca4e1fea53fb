"""Score the candidates of weights in the final layer: a step adds a multiple of one feature to one logit."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithm import Batches, Loss, cross_entropies, losses_of
from ..discrete import moved
from ..models import Net, grids
from ..rules import Scores
from ..settings import RSO
from .block import write
from .inputs import OnDemand, cached_input
from .layers import HeadStage, stages, weights_of
from .plans import Moves


class OtherLogits(NamedTuple):
    """The part of a batch's cross entropy that one class's logits leave alone: valid until another class changes.

    row        the class
    log_sum    log Σ exp over the other classes: [N]
    target     the logit of each image's own class: [N]
    is_target  whether that is the class in question: [N]
    """

    row: int
    log_sum: Tensor
    target: Tensor
    is_target: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor, row: int) -> "OtherLogits":
        """Return the part that the logits of class `row` leave alone, from all logits [classes, N]."""
        log_sum = torch.cat([logits[:row], logits[row + 1 :]]).logsumexp(0)
        return cls(row, log_sum, logits.gather(0, labels[None])[0], labels == row)

    def losses(self, z: Tensor) -> Tensor:
        """Return the cross entropy of each image for values z [k, N] of the logit: [k, N], float64."""
        target = torch.where(self.is_target, z, self.target)
        return (torch.logaddexp(self.log_sum, z) - target).double()


class HeadScorer:
    """Score and commit single weights of the final layer, one after the other whatever the strategy.

    A bias is the weight of a feature that is always 1.
    """

    strategy, steps_at_once = "sequential", 1

    def __init__(self, net: Net, position: int, batches: Batches, settings: RSO, loss: Loss):
        self.w, self.grids = weights_of(net.head), grids(net.head)
        cut = HeadStage(net.head)
        images, before = batches.slices(batches.images), stages(net.blocks, calibrated=True)
        features = lambda x: cut.enter(x).flatten(1)  # noqa: E731
        self.inputs = OnDemand(lambda batch: cached_input(before, images[batch], features).x.T.contiguous())
        self.labels = batches.slices(batches.labels)
        self.one = self.w["linear.weight"].new_ones(1, batches.size)
        self.multiples, self.loss = settings.multiples(batches.images.device), loss
        self.begin()

    def begin(self) -> None:
        """Start a sweep, or go on within it, with nothing cached for any batch."""
        self.logits: dict[int, Tensor] = {}
        self.seen: dict[int, Tensor] = {}
        self.others: dict[int, OtherLogits] = {}
        self.rows: list[int] = []
        self.columns: list[int] = []

    def score(self, moves: Moves) -> Scores:
        """Return the losses of the candidates of one weight."""
        batch, matrix = moves.batch, self.w[moves.tensor].view(len(self.w[moves.tensor]), -1)
        x = self.one if moves.tensor == "linear.bias" else self.inputs[batch]
        row, column = divmod(moves.indices[0], matrix.shape[1])
        self.rows.append(row)
        self.columns.append(column)
        self.refresh(batch, row, matrix, x)
        weight = matrix[row, column]
        candidates = moved(weight, moves.deltas, self.multiples, self.grids.get(moves.tensor))
        z = torch.addcmul(self.logits[batch][row], (candidates - weight)[:, None], x[column])
        images = self.losses(batch, row, z)
        return Scores(images.mean(1)[None], images[None], self.multiples, moves.deltas)

    def losses(self, batch: int, row: int, z: Tensor) -> Tensor:
        """Return the loss of each image for values z [K, N] of one class's logit: [K, N], float64."""
        if self.loss is cross_entropies:
            return self.others[batch].losses(z)
        logits = self.logits[batch].T.repeat(len(z), 1, 1)
        logits[:, :, row] = z
        return losses_of(self.loss, logits, self.labels[batch])

    def commit(self, moves: Moves, choices: Tensor) -> None:
        """Move the weight by a multiple [1] of its Δ."""
        write(self.w, moves, choices, self.grids)

    def refresh(self, batch: int, row: int, matrix: Tensor, x: Tensor) -> None:
        """Bring the logits of a batch up to date with the matrix, for a visit of a class."""
        recent = slice(-len(self.labels) - 1, None)  # the weight that is visited now may have decayed
        visited = {*self.rows[recent]}
        if batch in self.logits:
            changed, columns = slice(min(visited), max(visited) + 1), span({*self.columns[recent]})
            change = matrix[changed, columns] - self.seen[batch][changed, columns]
            self.logits[batch][changed].addmm_(change, x[columns])
        else:
            self.logits[batch] = self.logits_of(batch)
        self.seen[batch] = matrix.clone()
        if self.loss is not cross_entropies:
            return
        if batch not in self.others or {self.others[batch].row, *visited} != {row}:
            self.others[batch] = OtherLogits.of(self.logits[batch], self.labels[batch], row)

    def logits_of(self, batch: int) -> Tensor:
        """Compute the logits of a batch: [classes, N]."""
        z = self.w["linear.weight"] @ self.inputs[batch]
        return z + self.w["linear.bias"][:, None] if "linear.bias" in self.w else z


def span(indices: set[int]) -> slice | list[int]:
    """Return indices as a slice where they are consecutive, so that picking them copies nothing."""
    first, last = min(indices), max(indices)
    return slice(first, last + 1) if last - first + 1 == len(indices) else sorted(indices)
