"""Plans: which weights are visited together, and on which batch (section 4.6).

The visits of a sweep are cut into rounds. Visits of one round do not see each other, so they are scored together, on
the batch whose turn it is.

    sequential  a round is one visit: a step sees all steps before it
    neuron      a round has one visit of each output channel: a step sees those of its own channel
    layer       a round has all visits of one batch: no step sees another
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class Visits(NamedTuple):
    """The visits of a sweep of one tensor, drawn before the first of them.

    tensor    its name in the layer
    channels  output channels of the tensor
    indices   of the weights in the tensor, flat, in the order of the visits: [steps], int64, on the CPU
    deltas    Δ of each visit: [steps], on the weights' device
    offset    steps of the layer before this sweep
    """

    tensor: str
    channels: int
    indices: Tensor
    deltas: Tensor
    offset: int


class Moves(NamedTuple):
    """Visits that are made together.

    tensor   the name of the searched tensor in its layer
    batch    the number of the batch that scores them
    turn     the number of their round
    places   of the visits in their sweep: [n]
    indices  of the weights in the tensor, flat: [n]
    at       the same indices on the weights' device, [n], int64
    deltas   Δ of each, [n], on the weights' device
    """

    tensor: str
    batch: int
    turn: int
    places: list[int]
    indices: list[int]
    at: Tensor
    deltas: Tensor

    def visits(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield place, index and Δ of each visit."""
        return zip(self.places, self.indices, self.deltas, strict=True)

    @classmethod
    def of(cls, tensor: str, index: int, delta: Tensor, batch: int) -> "Moves":
        """Return the visit of one weight, with Δ, 0-dim."""
        return cls(tensor, batch, batch, [0], [index], torch.tensor([index], device=delta.device), delta.view(1))


def rounds(strategy: str, visits: Visits, batches: int) -> Tensor:
    """Return the round of each visit, [steps]. A round r is scored on batch r modulo `batches`."""
    steps = torch.arange(len(visits.indices))
    if strategy == "neuron":  # each channel counts its own visits
        size = len(steps) // visits.channels
        counts = torch.empty_like(steps)
        counts[(visits.indices // size).argsort(stable=True)] = steps % size
        return visits.offset + counts
    return (visits.offset + steps) % batches if strategy == "layer" else visits.offset + steps


def owners(strategy: str, visits: Visits, batches: int, processes: int) -> Tensor:
    """Return the number of the process that makes each visit, [steps]: by its channel, or by its batch.

    Where there are more processes than batches, the visits of a batch are shared too. Sequential steps are all made by
    process 0.
    """
    if strategy == "neuron":
        return visits.indices // (len(visits.indices) // visits.channels) % processes
    if strategy == "layer":
        steps = visits.offset + torch.arange(len(visits.indices))
        return (steps % batches if batches >= processes else steps) % processes
    return torch.zeros_like(visits.indices)


def plan(strategy: str, visits: Visits, batches: int, at_once: int, own: Tensor) -> Iterator[Moves]:
    """Yield the visits at the places `own`, round after round, at most `at_once` of them together."""
    if not len(own):
        return
    numbers, order = rounds(strategy, visits, batches)[own].sort(stable=True)
    own = own[order]
    numbers, counts = numbers.unique_consecutive(return_counts=True)
    groups = zip(numbers.tolist(), own.split(counts.tolist()), strict=True)
    parts = [(number, part) for number, group in groups for part in group.split(at_once)]
    sizes, device = [len(part) for _, part in parts], visits.deltas.device
    at = visits.indices[own].to(device).split(sizes)  # one upload for all parts
    deltas = visits.deltas[own.to(device)].split(sizes)
    for (number, part), where, delta in zip(parts, at, deltas, strict=True):
        indices = visits.indices[part].tolist()
        yield Moves(visits.tensor, number % batches, number, part.tolist(), indices, where, delta)
