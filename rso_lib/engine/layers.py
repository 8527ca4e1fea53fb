"""Cut a net after its linear maps, and run candidates through the rest of it from there.

A `BlockStage` or `HeadStage` is a layer with fixed weights: `receive` is its linear map, `finish` is all that follows.
`advance` goes from the preactivation of one stage to that of the next, in compiled loops where these cover the two.
Several candidates pass side by side, as one batch with statistics for each.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import Block, Flow, Head, pool2
from . import kernels
from .kernels import Preactivation

CHUNK, CHUNK_ON_A_GPU = 100, 5000
"""Images at once where no batch statistics are needed: their activations stay in a CPU's cache, and fill a GPU."""

Weights = dict[str, Tensor]


def chunk(device: torch.device) -> int:
    """Return how many images go through a net at once on a device where no batch statistics are needed."""
    return CHUNK if device.type == "cpu" else CHUNK_ON_A_GPU


def weights_of(layer: nn.Module) -> Weights:
    """Return the layer's weights by name; they share their memory with the layer."""
    return {name: weight.detach() for name, weight in layer.named_parameters()}


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def layout(channels: int) -> Callable[[Tensor], Tensor]:
    """Return the fast memory layout for convolutions to so many channels: channels last if they fill a vector."""
    return channels_last if channels >= 8 else Tensor.contiguous


# A convolution and the average pooling after it are one linear map: a 3×3 convolution with stride 2 of the input's
# 2×2 means, which a cached input has ready and the compiled kernels take on the way, or without these means a 4×4
# convolution with stride 2.


def folds(block: Block) -> bool:
    """Return whether average pooling directly follows the block's convolution."""
    return block.pool == "avg" and not block.pool_last


def fold(kernel: Tensor) -> Tensor:
    """Turn a kernel [O, I, 3, 3] into one [O, I, 4, 4] that with stride 2 convolves and pools."""
    single = kernel.reshape(-1, 1, 3, 3)
    mean = single.new_full((1, 1, 2, 2), 0.25)
    return F.conv2d(single, mean, padding=1).view(*kernel.shape[:2], 4, 4)


Index = int | Tensor
"""Which channel or weight: a number, or a tensor [1] of it where it must stay on the device."""


def one(place: Index) -> slice | Tensor:
    """Return an index of one channel or weight that keeps the dimension, with size 1."""
    return place if isinstance(place, Tensor) else slice(place, place + 1)


def picked(x: Tensor, rows: Sequence[Index]) -> Tensor:
    """Pick channels of x [N, C, ...] by slices: indexing with a list would copy it to the GPU and synchronise."""
    return torch.cat([x[:, one(row)] for row in rows], 1)


# What follows a block's linear map, for all output channels or some: w holds the weights of these.


def bridge(
    block: Block, w: Weights, skip: Tensor | None, rows: Sequence[Index] | None = None, groups: int = 1
) -> Tensor:
    """Return the values that the open skip adds to the linear map's output."""
    assert skip is not None, "no block before this one opens a skip"
    skip = skip.to(w["conv.weight"])  # it may be cached in half precision
    if block.shortcut is not None:
        kernel = w["shortcut.0.weight"]  # a product rounds by the place of a channel, so some come one by one
        z = F.conv2d(skip, kernel) if rows is None else torch.cat([F.conv2d(skip, row[None]) for row in kernel], 1)
        skip = batch_norm(cast(nn.BatchNorm2d, block.shortcut[1]), w, "shortcut.1", Preactivation(z, groups=groups))
    elif rows is not None:
        skip = picked(skip, rows)
    return pool2(skip, block.pool) if folds(block) else skip


def normalise(block: Block, w: Weights, z: Preactivation) -> Tensor:
    """Apply batch norm, or the bias, to the linear map's output; max pooling comes first where there is one."""
    if not folds(block) and not block.pool_last and block.pool:
        z = Preactivation(pool2(z.z, block.pool), groups=z.groups)
    if block.norm is None:  # a bias moves all pixels alike, and so what pooling makes of them
        return z.z + w["conv.bias"][:, None, None]
    return batch_norm(block.norm, w, "norm", z)


def batch_norm(norm: nn.BatchNorm2d, w: Weights, name: str, z: Preactivation) -> Tensor:
    """Normalise each channel of each group with the running statistics in w, if there are any, or with its own."""
    scale, shift, mean, var = (w.get(f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var"))
    means, variances = [mean] * z.groups, [var] * z.groups
    if mean is None and z.moments is not None:
        mean, square = (z.moments / z.count).unbind(1)
        means, variances = [*mean.to(z.z)], [*(square - mean.square()).clamp(min=0).to(z.z)]
    groups = zip(z.z.chunk(z.groups), means, variances, strict=True)
    normed = [F.batch_norm(x, m, v, scale, shift, training=m is None, eps=norm.eps) for x, m, v in groups]
    return torch.cat(normed) if len(normed) > 1 else normed[0]


class BlockStage:
    """A block with fixed weights, cut after its linear map: `receive` and then `finish` is the block.

    Batch norm takes the running statistics in w, if there are any, or those of the batch.
    """

    def __init__(self, block: Block, w: Weights):
        self.block, self.w = block, w
        kernel = self.w["conv.weight"]
        self.stride = 2 if folds(block) else 1
        self.layout = layout(len(kernel))
        self.kernel = self.layout(fold(kernel) if folds(block) else kernel)
        on_cuda = kernels.on_cuda(kernels.for_tensor(kernel))  # whose loops take the kernel with the pooling folded in
        self.taps = (self.kernel if on_cuda else kernel).permute(2, 3, 1, 0).contiguous()

    def enter(self, x: Tensor) -> Tensor:
        return x

    def receive(self, flow: Flow, groups: int = 1) -> Tensor:
        """Return the preactivation of some candidates: the linear map, and the skip where the block closes one."""
        z = self.response(flow.x)
        return z + bridge(self.block, self.w, flow.skip, groups=groups) if self.block.closes else z

    def response(self, x: Tensor, channels: slice | Tensor = slice(None)) -> Tensor:
        """Apply the linear map to x [N, C, H, W], or the part of it that some input channels contribute."""
        kernel = self.layout(self.kernel[:, channels])
        return self.layout(F.conv2d(self.layout(x), kernel, stride=self.stride, padding=1))  # a GPU may choose another

    def finish(self, z: Preactivation, skip: Tensor | None) -> Flow:
        """Return the block's output, given its preactivation and the skip before it."""
        normed = normalise(self.block, self.w, z)
        return Flow(self.block.activate(normed), self.block.passes(normed, skip))


class HeadStage:
    """A head with fixed weights, cut after its matrix: pooling and matrix are `receive`, the bias is `finish`."""

    def __init__(self, head: Head):
        self.head, self.w = head, weights_of(head)

    def enter(self, x: Tensor) -> Tensor:
        return x if self.head.pool == "flatten" else self.head.features(x)[..., None, None]

    def receive(self, flow: Flow, groups: int = 1) -> Tensor:
        return self.responses(self.enter(flow.x), groups)

    def responses(self, x: Tensor, groups: int) -> Tensor:
        """Multiply the matrix with each candidate separately, each in memory of its own.

        A product rounds by the place of a row, and by where the first one lies: ties would break.
        """
        if groups == 1:
            return self.response(x)
        return torch.cat([self.response(part.clone()) for part in x.chunk(groups)])

    def response(self, x: Tensor, channels: slice | Tensor = slice(None)) -> Tensor:
        kernel = self.w["linear.weight"]
        kernel = kernel.view(len(kernel), -1, x[0, 0].numel())[:, channels]
        return x.flatten(1) @ kernel.flatten(1).T

    def finish(self, z: Preactivation, skip: Tensor | None) -> Flow:
        return Flow(z.z if self.head.linear.bias is None else z.z + self.w["linear.bias"])


Stage = BlockStage | HeadStage


def stage(layer: Block | Head, calibrated: bool = False) -> Stage:
    if isinstance(layer, Head):
        return HeadStage(layer)
    return BlockStage(layer, weights_of(layer) | (dict(layer.named_buffers()) if calibrated else {}))


def stages(layers: Iterable[Block | Head], calibrated: bool = False) -> list[Stage]:
    """Return the stages of consecutive layers; `calibrated` ones have batch norm's running statistics."""
    return [stage(layer, calibrated) for layer in layers]


Candidate = tuple[Preactivation, Tensor | None]
"""The preactivation of a stage, and the skip that is open there."""


def outputs(cuts: Sequence[Stage], candidates: Iterable[Candidate], at_once: int) -> Iterator[Tensor]:
    """Yield the net's output for each candidate of the first stage, at most `at_once` of them as one batch."""
    remaining = iter(candidates)
    while group := list(islice(remaining, at_once)):
        z, skip = side_by_side(group)
        count = z.groups
        del group  # which is in z
        for cut, following in pairwise(cuts):
            assert isinstance(cut, BlockStage), "a head is the last stage"
            z, skip = advance(cut, following, z, skip)
        yield from cuts[-1].finish(z, skip).x.chunk(count)


def side_by_side(candidates: Sequence[Candidate]) -> Candidate:
    """Join candidates to one batch."""
    if len(candidates) == 1:
        return candidates[0]
    moments = concatenated([z.moments for z, _ in candidates])
    z = Preactivation(torch.cat([z.z for z, _ in candidates]), moments, len(candidates))
    return z, concatenated([skip for _, skip in candidates])


def concatenated(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate the parts; return None where one is missing."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def advance(cut: BlockStage, following: Stage, z: Preactivation, skip: Tensor | None) -> Candidate:
    """Go from the preactivation of one stage to that of the next, in compiled loops where these cover the two."""
    norm, compiled = fused_norm(cut.block), compiled_between(z.z, following)
    if norm and compiled:
        z = calibrated(cut.w, z.z) if "norm.running_mean" in cut.w else z
        fused = cut.w["norm.weight"], cut.w["norm.bias"], norm.eps, cut.block.activation
        if isinstance(following, HeadStage):
            return Preactivation(following.responses(compiled.norm_max(z, *fused), z.groups), groups=z.groups), None
        open_skip = cut.block.passes(normalise(cut.block, cut.w, z) if cut.block.opens else z.z, skip)
        base = None
        if following.block.closes:
            base = channels_last(bridge(following.block, following.w, open_skip, groups=z.groups))
        return compiled.norm_conv(z, *fused, following.taps, following.stride, base), open_skip
    flow = cut.finish(z, skip)
    return Preactivation(following.receive(flow, z.groups), groups=z.groups), flow.skip


def compiled_between(z: Tensor, following: Stage) -> "kernels.Kernels | kernels.CudaKernels | None":
    """Return the compiled kernels, if they cover what lies between preactivation z and the next one."""
    if isinstance(following, HeadStage):
        return kernels.covering(z, z.shape[1]) if following.head.pool == "max" else None
    return kernels.covering(z, len(following.kernel))


def calibrated(w: Weights, z: Tensor) -> Preactivation:
    """Give z the moments that lead batch norm to its running statistics."""
    mean, var = w["norm.running_mean"].double(), w["norm.running_var"].double()
    return Preactivation(z, torch.stack([mean, var + mean.square()])[None], count=1.0)


def fused_norm(block: Block) -> nn.BatchNorm2d | None:
    """Return the block's batch norm, if only that and an activation stand between its linear map and the next."""
    return block.norm if block.pool is None or folds(block) else None


def forward(cuts: Sequence[Stage], images: Tensor) -> Flow:
    """Run images through the stages of a net, from the first on."""
    flow = Flow(images)
    if not cuts:
        return flow
    z, skip = Preactivation(cuts[0].receive(flow)), flow.skip
    for cut, following in pairwise(cuts):
        assert isinstance(cut, BlockStage), "a head is the last stage"
        z, skip = advance(cut, following, z, skip)
    return cuts[-1].finish(z, skip)
