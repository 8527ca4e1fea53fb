"""The input of a searched layer, cached for every batch."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import Flow
from .layers import Stage, chunk, forward

Made = TypeVar("Made")


class OnDemand(dict[int, Made]):
    """A value for every batch, made when it is first asked for."""

    def __init__(self, make: Callable[[int], Made]):
        super().__init__()
        self.make = make

    def __missing__(self, batch: int) -> Made:
        self[batch] = self.make(batch)
        return self[batch]


# The searched block's input is cached as padded planes, so that a weight is multiplied with one plane, shifted.


def planes(x: Tensor, folded: bool) -> Tensor:
    """Pad the input of a convolution, [N, C, H, W] → [N, C, H + 2, W + 2], contiguous.

    With the pooling folded in, return the means of all 2×2 windows of that instead, [N, 4C, ...]: four planes, by
    even and odd lines and columns, in which a stride of 2 becomes a stride of 1.
    """
    if not folded:
        return F.pad(x, (1, 1, 1, 1)).contiguous()
    means = F.avg_pool2d(x, 2, stride=1, padding=1)
    images, channels, height, width = means.shape
    means = F.pad(means, (0, width % 2, 0, height % 2))
    apart = means.new_empty(images, channels, 4, (height + 1) // 2, (width + 1) // 2)
    for k in range(4):
        apart[:, :, k] = means[:, :, k // 2 :: 2, k % 2 :: 2]
    return apart.flatten(1, 2)


def plane_kernel(kernel: Tensor, folded: bool) -> Tensor:
    """Return the kernel for `planes`: [O, C, 3, 3] itself, or [O, 4C, 2, 2]."""
    return F.pixel_unshuffle(F.pad(kernel, (0, 1, 0, 1)), 2) if folded else kernel


def place(j: int, folded: bool) -> tuple[int, int, int]:
    """Return plane, line and column of the value that weight j of a channel reads for the first output pixel."""
    channel, (y, x) = j // 9, divmod(j % 9, 3)
    return (4 * channel + 2 * (y % 2) + x % 2, y // 2, x // 2) if folded else (channel, y, x)


@cache
def offsets(weights: int, height: int, width: int, folded: bool, device: torch.device | None = None) -> Tensor:
    """Return the offset in one image's planes [..., height, width] that each weight of a channel reads first: int64."""
    places = (place(j, folded) for j in range(weights))
    return torch.tensor([(c * height + y) * width + x for c, y, x in places], device=device)


def cached_input(
    before: Sequence[Stage], images: Tensor, prepare: Callable[[Tensor], Tensor], half: bool = False
) -> Flow:
    """Run images through calibrated stages, and keep what the next layer reads, `prepare`d, and the open skip."""
    flow = forward(before, images[:1])
    skip = None if flow.skip is None else _room(flow.skip, len(images), half)
    whole = Flow(_room(prepare(flow.x), len(images), half), skip)  # before the temporaries, which then leave no holes
    size = chunk(images.device)
    for first in range(0, len(images), size):
        flow = forward(before, images[first : first + size])
        for target, part in zip(whole, (prepare(flow.x), flow.skip), strict=True):
            if target is not None and part is not None:
                target[first : first + size] = part
    return whole


def _room(part: Tensor, images: int, half: bool) -> Tensor:
    """Return uninitialised memory for `images` images like those of a part."""
    dtype = torch.float16 if half else part.dtype
    layout = torch.contiguous_format if part.is_contiguous() else torch.channels_last
    return torch.empty((images, *part.shape[1:]), dtype=dtype, device=part.device, memory_format=layout)
