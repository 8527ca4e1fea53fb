"""Score the candidates of weights in a block: only what changes is computed.

All weights of a block belong to one of its output channels: those of the convolution, of batch norm's scale and shift,
of the shortcut. So one weight moves one channel of the block's output, and the next layer, which is linear, sees one
changed input channel. On each batch a scorer

1. runs the block for the channels that matter only: those that changed since the batch was last visited, and the
   searched channel once more for each candidate. Compiled loops start from what the channel gave on the batch before,
   and add the input planes whose weights differ since then. Batch norm treats each channel by itself, so each candidate
   has its own statistics;
2. adds to the next layer's preactivation, cached for every batch, a one-channel convolution of each change;
3. runs the rest of the net for each candidate, with the statistics of the batch. Where batches are small, several
   candidates go through it as one.

The block's input is computed once for every batch that is visited (the paper's cache, section 4.7), with the batch-norm
statistics of `passes.calibrate`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithm import Batches, Loss, losses_of
from ..discrete import Grid, candidates, moved
from ..models import Flow, Net, grids
from ..rules import Scores
from ..settings import RSO
from . import kernels
from .inputs import OnDemand, cached_input, offsets, place, plane_kernel, planes
from .kernels import Preactivation
from .layers import (
    BlockStage,
    Candidate,
    Index,
    Weights,
    advance,
    bridge,
    folds,
    fused_norm,
    normalise,
    one,
    outputs,
    stages,
    weights_of,
)
from .plans import Moves

AT_ONCE, AT_ONCE_ON_A_CPU = 2**26, 2**22
"""Values of an activation, at the most, of all candidates that go through the net as one batch."""

MOST = 10_000
"""Candidates that go through the net as one batch on a GPU, where a launch has 65,535 rows of programs at the most."""

MANY = 16
"""Where fewer candidates than these fit, a CPU takes them one by one: what is saved is less than the copies cost
(measured)."""


def copied(w: Weights) -> Weights:
    """Return a snapshot of a layer's weights."""
    return {key: value.clone() for key, value in w.items()}


def most_at_once(device: torch.device) -> int:
    """Return how many values an activation may have where candidates go through the net as one batch on a device."""
    return AT_ONCE_ON_A_CPU if device.type == "cpu" else AT_ONCE


def write(w: Weights, moves: Moves, choices: Tensor, on_grid: Mapping[str, Grid]) -> None:
    """Move weights of a layer by multiples [n] of their Δ, in place."""
    weight = w[moves.tensor].view(-1)
    weight[moves.at] = moved(weight[moves.at], moves.deltas, choices, on_grid.get(moves.tensor))


def channel_changes(z: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Subtract the first channel of each pair from the second: z [N, C, H, W] → [pairs, N, 1, H, W]."""
    return torch.stack([z[:, now, None] - z[:, was, None] for was, now in pairs])


class BlockScorer:
    """Score and commit steps in the block at a position of a net (in eval mode, calibrated).

    plane    lines and columns of the cached input's planes
    size     height and width of the convolution's output
    cut      the block with the weights that the caches are due to
    returns  whether the order of visits comes back to a channel
    """

    cut: BlockStage

    def __init__(self, net: Net, position: int, batches: Batches, settings: RSO, loss: Loss):
        self.block, after = net.blocks[position], net.layers[position + 1 :]
        self.w, self.grids = weights_of(self.block), grids(self.block)
        self.next, *_ = self.stages = stages(after)
        self.joined = (  # the next block, where it closes the skip that this one opens
            self.next if self.block.opens and isinstance(self.next, BlockStage) and self.next.block.closes else None
        )
        self.cache, self.strategy, self.loss = settings.cache, settings.strategy, loss
        self.returns = settings.order != "output"
        self.fan_in = self.block.conv.weight[0].numel()
        self.folded = folds(self.block)
        prepare = partial(planes, folded=self.folded)
        images, before = batches.slices(batches.images), stages(net.blocks[:position], calibrated=True)
        half = settings.cache == "half"
        self.inputs = OnDemand(lambda batch: cached_input(before, images[batch], prepare, half))
        self.labels = batches.slices(batches.labels)
        _, _, *self.plane = cached_input(before, images[0][:1], prepare).x.shape
        border = 1 if self.folded else 2
        self.size = self.plane[0] - border, self.plane[1] - border
        self.at_once = self.candidates_at_once(batches.images.device)
        self.multiples = settings.multiples(batches.images.device)
        self.begin()

    def candidates_at_once(self, device: torch.device) -> int:
        """Return how many candidates go through the net as one batch: many where they are small, as calls cost more."""
        channels = [self.block.conv.out_channels, *(len(cut.w["conv.weight"]) for cut in self.stages[:-1])]
        values = len(self.labels[0]) * max(channels) * math.prod(self.size)
        if device.type == "cpu":
            count = AT_ONCE_ON_A_CPU // values
            return count if count >= MANY else 1
        pooled = self.next.stride**2 if isinstance(self.next, BlockStage) else 1
        return min(max(1, AT_ONCE * pooled // values), MOST)

    @property
    def steps_at_once(self) -> int:
        """Return how many steps of a round are scored together, at the most."""
        return max(1, self.at_once // len(self.multiples))

    def begin(self) -> None:
        """Start a sweep, or go on within it, with nothing cached for any batch."""
        raise NotImplementedError

    def score(self, moves: Moves) -> Scores:
        """Return the losses of the candidates of some steps, all on one batch."""
        raise NotImplementedError

    def commit(self, moves: Moves, choices: Tensor) -> None:
        """Move each weight by a multiple [n] of its Δ."""
        write(self.w, moves, choices, self.grids)

    def variants(self, moves: Moves) -> Tensor:
        """Return the candidates of each weight but w itself: [n, K − 1]."""
        w = self.w[moves.tensor].view(-1)[moves.at]
        return candidates(w[:, None], moves.deltas[:, None], self.multiples[1:], self.grids.get(moves.tensor))

    def forget(self) -> None:
        """Drop the caches of all batches, except their input."""
        self.responses: dict[int, Preactivation] = {}
        self.skips: dict[int, Tensor | None] = {}

    def respond(self, batch: int, z: Preactivation) -> None:
        """Cache the next layer's preactivation, and the skip after the block, given the input z of its batch norm."""
        z, skip = Preactivation(self.cut.layout(z.z), z.moments), self.inputs[batch].skip
        if self.joined:
            flow = self.cut.finish(z, skip)
            self.responses[batch], self.skips[batch] = Preactivation(self.joined.response(flow.x)), flow.skip
        else:
            self.responses[batch], self.skips[batch] = advance(self.cut, self.next, z, skip)

    def linear(
        self, batch: int, w: Weights, rows: Sequence[Index] | None = None, like: Sequence[tuple[int, Index]] = ()
    ) -> Preactivation:
        """Return the input of the block's batch norm for output channels of weights w: [N, len(w), H, W], contiguous.

        rows  the output channels that the weights w are of, unless these are all
        like  (r, j) for each of the last channels of w: it is channel r of w with another weight j (any weight j of the
              convolution, where another tensor differs)
        """
        return self.bridged(batch, self.convolved(batch, w["conv.weight"], rows, like), w, rows)

    def bridged(self, batch: int, z: Preactivation, w: Weights, rows: Sequence[Index] | None = None) -> Preactivation:
        """Add the skip to the preactivation z where the block closes one."""
        if not self.block.closes:
            return z
        return Preactivation((z.z + bridge(self.block, w, self.inputs[batch].skip, rows)).contiguous())

    def convolved(
        self, batch: int, kernel: Tensor, rows: Sequence[Index] | None, like: Sequence[tuple[int, Index]]
    ) -> Preactivation:
        """Convolve the cached input with a kernel [channels, C, 3, 3]; other arguments as for `linear`."""
        x = self.inputs[batch].x.to(kernel.dtype)
        if compiled := kernels.for_tensor(x):
            where = offsets(self.fan_in, *self.plane, self.folded, x.device)
            return compiled.rows_conv(x, kernel.flatten(1), where, self.size, like)
        known = F.conv2d(x, plane_kernel(kernel[: len(kernel) - len(like)], self.folded))
        return self.moved_on(x, kernel, [*known.unbind(1)], like)

    def moved_on(self, x: Tensor, kernel: Tensor, z: list[Tensor], like: Sequence[tuple[int, Index]]) -> Preactivation:
        """Complete the convolution of planes x, given z [N, H, W] of the first channels.

        A weight adds a multiple of one shifted plane to its channel, so a change of nothing is exactly nothing.
        """
        for weights, (row, j) in zip(kernel.flatten(1)[len(z) :], like, strict=True):
            z.append(torch.addcmul(z[row], self.tap(x, j), weights[j] - kernel[row].view(-1)[j]))
        return Preactivation(torch.stack(z, 1))

    def tap(self, x: Tensor, j: Index) -> Tensor:
        """Return the values of planes x that weight j of a channel of the convolution is multiplied with: [N, H, W]."""
        height, width = self.size
        if isinstance(j, Tensor):
            return x.flatten(1)[:, self.pixels + self.offsets[j]].view(-1, height, width)
        plane, line, column = place(j, self.folded)
        return x[:, plane, line : line + height, column : column + width]

    def keep_places_on(self, device: torch.device) -> None:
        """Keep the offsets of weights and pixels on a device, for steps whose weight is a number on that device."""
        height, width = self.size
        self.offsets = offsets(self.fan_in, *self.plane, self.folded, device)
        self.pixels = (self.plane[1] * torch.arange(height)[:, None] + torch.arange(width)).flatten().to(device)

    def changes(
        self,
        batch: int,
        w: Weights,
        rows: Sequence[Index],
        like: Sequence[tuple[int, Index]],
        pairs: Sequence[tuple[int, int]],
    ) -> Flow:
        """Return the changes of the next layer's input, and of the skip that is opened: [pairs, N, 1, H, W] each.

        pairs  (old, new) channels of w; other arguments as for `linear`
        """
        z = self.linear(batch, w, rows, like)
        norm = fused_norm(self.block) if isinstance(self.next, BlockStage) and not self.block.opens else None
        compiled = kernels.for_tensor(z.z)
        if norm and compiled and (z.moments is not None or kernels.on_cuda(compiled)):  # which take the sums themselves
            fused = w["norm.weight"], w["norm.bias"], norm.eps, self.block.activation
            return Flow(compiled.norm_changes(z, *fused, pairs))
        normed = normalise(self.block, w, z)
        x, skip = self.next.enter(self.block.activate(normed)), self.block.passes(normed, None)
        return Flow(channel_changes(x, pairs), None if skip is None else channel_changes(skip, pairs))

    def losses(self, batch: int, candidates: Iterable[Candidate]) -> Tensor:
        """Return the loss of each image for each candidate of the next layer: [candidates, N], float64."""
        made = torch.stack(list(outputs(self.stages, candidates, self.at_once)))
        return losses_of(self.loss, made, self.labels[batch])

    def with_unchanged(self, batch: int, rows: Sequence[Index], changes: Flow) -> Iterable[Candidate]:
        """Return the next layer's candidates: with w, then with one channel changed, for each of the changes."""
        z, skip = self.responses[batch], self.skips[batch]
        cuda = kernels.on_cuda(kernels.covering(z.z, z.z.shape[1]))
        if cuda and isinstance(self.next, BlockStage) and skip is None and self.at_once > len(rows):
            return [(cuda.side_by_side(z.z, changes.x, self.taps(rows), self.next.stride), None)]
        return chain([self.unchanged(batch)], self.changed(batch, rows, changes))

    def taps(self, rows: Sequence[Index]) -> Tensor:
        """Return the next layer's weights for some of its input channels: [channels, 3, 3, CO]."""
        assert isinstance(self.next, BlockStage)
        return torch.stack([self.next.taps[:, :, one(row)].squeeze(2) for row in rows])

    def unchanged(self, batch: int) -> Candidate:
        """Return the next layer's candidate with the base weights."""
        return self.joining(self.responses[batch], self.skips[batch])

    def changed(self, batch: int, rows: Sequence[Index], changes: Flow) -> Iterator[Candidate]:
        """Yield the next layer's candidate with one channel changed, for each of the changes in turn.

        The change is added, so a change of nothing has the loss of w to the last bit: a tie keeps w.
        """
        for k, row in enumerate(rows):
            skip = self.skips[batch]
            if skip is not None and changes.skip is not None:
                skip = skip.clone()
                skip[:, one(row)] += changes.skip[k]
            yield self.joining(self.add_channels(self.responses[batch], changes.x[k : k + 1], [row]), skip)

    def joining(self, z: Preactivation, skip: Tensor | None) -> Candidate:
        """Add the skip that this block opens to the next layer's preactivation, where that layer closes it."""
        if self.joined:
            z = Preactivation(z.z + bridge(self.joined.block, self.joined.w, skip))
        return z, skip

    def add_channels(
        self, z: Preactivation, changes: Tensor, rows: Sequence[Index], in_place: bool = False
    ) -> Preactivation:
        """Return the next layer's preactivation where channels of its input change by [channels, N, 1, H, W]."""
        if isinstance(self.next, BlockStage) and (compiled := kernels.covering(z.z, z.z.shape[1])):
            made = compiled.add_channels(z.z, changes, self.taps(rows), self.next.stride, z.z if in_place else None)
            # where the moments of z are still to be summed, so are these: another order would break ties
            return made if z.moments is not None else Preactivation(made.z)
        total = z.z
        for k, (change, row) in enumerate(zip(changes, rows, strict=True)):
            response = self.next.response(change, one(row))
            total = total.add_(response) if in_place or k else response.add_(total)
        return Preactivation(total)
