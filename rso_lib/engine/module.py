"""Score candidates with forward passes: for any module, and for steps that move many weights at once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..algorithm import Batches, Loss
from ..discrete import Grid, moved
from ..models import Net, grids
from ..passes import buffers_kept, mode
from ..proposals import noise
from ..rules import Scores
from ..settings import RSO
from .inputs import OnDemand, cached_input
from .kernels import Preactivation
from .layers import channels_last, outputs, stages
from .plans import Moves


class JointMove(NamedTuple):
    """A step that moves all weights of some tensors at once (section 4.2).

    tensors  their names in the net
    batch    the number of the batch that scores the step
    turn     the number of the step among those of its layer
    places   of the step in its sweep: one
    deltas   ΔW of each tensor, in its shape
    """

    tensors: Sequence[str]
    batch: int
    turn: int
    places: list[int]
    deltas: Sequence[Tensor]

    def visits(self) -> Iterator[tuple[int, None, Tensor]]:
        """Yield the place of the step, with None for the weight and NaN for Δ."""
        yield self.places[0], None, torch.tensor(torch.nan)


class ModuleScorer:
    """Score steps of any module by sending the batch through the whole of it for each candidate.

    The candidates of a step meet the same net: in train mode, with the same buffers and, where the net draws random
    numbers (dropout), with the same ones, which follow from the key and the step's turn.
    """

    strategy, steps_at_once = "sequential", 1

    def __init__(self, net: nn.Module, batches: Batches, settings: RSO, loss: Loss, key: Sequence[int] = (0,)):
        self.net, self.loss, self.key = net, loss, key
        self.x, self.labels = batches.slices(batches.images), batches.slices(batches.labels)
        self.multiples, self.grids = settings.multiples(batches.images.device), grids(net)

    def begin(self) -> None:
        """Start a sweep: nothing is cached from step to step."""

    def score(self, move: Moves | JointMove) -> Scores:
        """Return the losses of the candidates of one step. The weights stay as they are, also where that fails."""
        before = [(weight, weight.clone()) for weight, *_ in self.direction(move)]
        images = []
        try:
            with self.same_net(move.turn) as rewind:
                for multiple in self.multiples:
                    for (weight, delta, grid), (_, old) in zip(self.direction(move), before, strict=True):
                        weight.copy_(moved(old, delta, multiple, grid))
                    rewind()
                    images.append(self.losses(move.batch))
        finally:
            for weight, old in before:
                weight.copy_(old)
        losses = torch.stack([each.mean() for each in images])[None]
        delta = move.deltas if isinstance(move, Moves) else losses.new_full((1,), torch.nan)
        return Scores(losses, torch.stack(images)[None], self.multiples, delta)

    @contextmanager
    def same_net(self, turn: int) -> Iterator[Callable[[], None]]:
        """Hold the net still except its weights; the yielded function gives the next candidate the same noise."""
        with mode(self.net, training=True), noise(self.labels[0].device, *self.key, turn) as rewind:
            yield rewind

    def commit(self, move: Moves | JointMove, choices: Tensor) -> None:
        """Move all weights of the step by the same multiple [1] of their Δ."""
        for weight, delta, grid in self.direction(move):
            weight.copy_(moved(weight, delta, choices[0], grid))

    def direction(self, move: Moves | JointMove) -> Iterator[tuple[Tensor, Tensor, Grid | None]]:
        """Yield the weights that a step moves, as views, their Δ, and their grid if they lie on one."""
        if isinstance(move, JointMove):
            for name, delta in zip(move.tensors, move.deltas, strict=True):
                yield self.net.get_parameter(name).detach(), delta, self.grids.get(name)
        else:
            [index] = move.indices
            weight = self.net.get_parameter(move.tensor).detach().view(-1)[index : index + 1]
            yield weight, move.deltas, self.grids.get(move.tensor)

    def losses(self, batch: int) -> Tensor:
        """Return the loss of each image of a batch, for the net as it stands: [N], float64."""
        with buffers_kept(self.net):
            outputs = self.net(self.x[batch].clone())  # a net may write into its input
        return self.loss(outputs, self.labels[batch])


class JointScorer(ModuleScorer):
    """Score joint steps of a `models.Net` from the cached input of the layer at a position.

    At the network level the position is 0, and the cached input are the images.
    """

    def __init__(self, net: Net, position: int, batches: Batches, settings: RSO, loss: Loss):
        super().__init__(net, batches, settings, loss)
        self.layers = net.layers[position:]
        images, before = self.x, stages(net.blocks[:position], calibrated=True)
        half = settings.cache == "half"
        self.inputs = OnDemand(lambda batch: cached_input(before, images[batch], channels_last, half))

    @contextmanager
    def same_net(self, turn: int) -> Iterator[Callable[[], None]]:
        yield lambda: None  # a net of blocks draws nothing, and `stages` leave its buffers alone

    def losses(self, batch: int) -> Tensor:
        searched, flow = stages(self.layers), self.inputs[batch]
        flow = flow._replace(x=flow.x.to(self.x[batch]))  # the skip is converted where it ends
        [z] = outputs(searched, [(Preactivation(searched[0].receive(flow)), flow.skip)], at_once=1)
        return self.loss(z, self.labels[batch])
