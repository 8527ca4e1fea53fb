"""Launch the GPU's inner loops (kernels_triton): the functions of `kernels.Kernels` for float32 tensors on a GPU.

PyTorch for CUDA brings Triton along. Where it is missing the engine uses torch throughout: the same steps, slower.
"""

from collections.abc import Sequence
from functools import cache

import torch
import triton
from torch import Tensor

from .kernels import Preactivation, last
from .kernels_triton import (
    add_channels_kernel,
    affine_kernel,
    norm_changes_kernel,
    norm_conv_kernel,
    norm_max_kernel,
    rows_conv_kernel,
    sums_kernel,
)

BLOCK = 128
SUMMED, MOST_PARTS = 256, 512
"""Pixels that a program sums at a time, and the programs for a group at the most."""
OPTIONS = {"enable_fp_fusion": True}


class CudaKernels:
    """The functions of `kernels.Kernels`, for convolutions of side 3, or of side 4 with the pooling folded in."""

    def sums(self, z: Tensor, groups: int = 1) -> Tensor:
        """Return the sums and sums of squares [groups, parts, 2, C], float64, of parts of z [groups × N, C, H, W].

        All sums add in one fixed order, so equal outputs have exactly equal statistics, and ties stay ties.
        """
        images, channels, pixels = len(z) // groups, z.shape[1], z.shape[2] * z.shape[3]
        steps = z.stride(0), z.stride(3), z.stride(1)
        parts = min(triton.cdiv(images * pixels, SUMMED), MOST_PARTS)
        sums = z.new_empty((groups, parts, 2, channels), dtype=torch.float64)
        sums_kernel[parts, groups](
            *(z, sums, images, pixels, channels, *steps), C=triton.next_power_of_2(channels), B=SUMMED, **OPTIONS
        )
        return sums

    def affine(self, z: Preactivation, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        """Return batch norm of each group as a factor and a summand of each channel: [groups, 2, C]."""
        sums = self.sums(z.z, z.groups) if z.moments is None else z.moments[:, None]
        groups, parts, _, channels = sums.shape
        out = scale.new_empty((groups, 2, channels))
        affine_kernel[(groups,)](
            *(sums, scale, shift, out, parts, channels, int(z.count)),
            EPS=eps,
            P=triton.next_power_of_2(parts),
            C=triton.next_power_of_2(channels),
            **OPTIONS,
        )
        return out

    def rows_conv(
        self,
        x: Tensor,
        weights: Tensor,
        shifts: Tensor,
        size: tuple[int, int],
        like: Sequence[tuple[int, int | Tensor]] = (),
    ) -> Preactivation:
        """Convolve planes with some output channels, as `Kernels.rows_conv`; a tap of `like` may be a tensor [1]."""
        images, (channels, taps), rows = len(x), weights.shape, len(weights) - len(like)
        layout = torch.contiguous_format if like or rows < 8 else torch.channels_last
        out = torch.empty((images, channels, *size), dtype=x.dtype, device=x.device, memory_format=layout)
        pixels = size[0] * size[1]
        rows_conv_kernel[(triton.cdiv(images * pixels, BLOCK),)](
            *(
                x.contiguous(),
                shifts,
                weights.contiguous(),
                on(x.device, [row for row, _ in like]),
                _taps(x.device, [j for _, j in like]),
                out,
            ),
            *(images, x[0].numel(), taps, rows, len(like), pixels, size[1], x.shape[3]),
            *(out.stride(0), out.stride(1), out.stride(3)),
            R=triton.next_power_of_2(rows),
            B=BLOCK,
            **OPTIONS,
        )
        return Preactivation(out)

    def norm_changes(
        self,
        z: Preactivation,
        scale: Tensor,
        shift: Tensor,
        eps: float,
        activation: str | None,
        pairs: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Normalise and activate rows, and subtract the first of each pair from the second: [pairs, N, 1, H, W]."""
        images, rows, height, width = z.z.shape
        out = z.z.new_empty((len(pairs), images, 1, height, width))
        pixels, many = height * width, 4 * BLOCK
        norm_changes_kernel[triton.cdiv(images * pixels, many), len(pairs)](
            *(
                z.z.contiguous(),
                self.affine(z, scale, shift, eps),
                on(z.z.device, [row for pair in pairs for row in pair]),
                out,
            ),
            *(images, rows, pixels),
            ACTIVATION=activation,
            B=many,
            **OPTIONS,
        )
        return out

    def add_channels(
        self, base: Tensor, planes: Tensor, taps: Tensor, stride: int, out: Tensor | None = None
    ) -> Preactivation:
        """Add the convolution of some input channels to a base [N, CO, H', W'], channels last; `out` may be the base.

        planes  [channels, N, 1, H, W], contiguous
        taps    [channels, side, side, CO]
        """
        out = torch.empty_like(last(base)) if out is None else last(out)
        self._add_channels(base, planes, taps, out, stride, apart=False)
        return Preactivation(out)

    def side_by_side(self, base: Tensor, planes: Tensor, taps: Tensor, stride: int) -> Preactivation:
        """Return the base, and its sum with the convolution of each channel, as groups: [groups × N, CO, H', W']."""
        groups = 1 + len(planes)
        shape = (groups * len(base), *base.shape[1:])
        out = torch.empty(shape, dtype=base.dtype, device=base.device, memory_format=torch.channels_last)
        self._add_channels(base, planes, taps, out, stride, apart=True)
        return Preactivation(out, groups=groups)

    def _add_channels(self, base: Tensor, planes: Tensor, taps: Tensor, out: Tensor, stride: int, apart: bool) -> None:
        channels, images, _, height, width = planes.shape
        _, outputs, lines, columns = base.shape
        add_channels_kernel[(triton.cdiv(images * lines * columns, BLOCK),)](
            *(
                last(base),
                planes.contiguous(),
                taps.contiguous(),
                out,
                images,
                height,
                width,
                lines * columns,
                columns,
                channels,
            ),
            CO=outputs,
            SIDE=taps.shape[1],
            STRIDE=stride,
            APART=apart,
            B=BLOCK,
            **OPTIONS,
        )

    def norm_conv(
        self,
        before: Preactivation,
        scale: Tensor,
        shift: Tensor,
        eps: float,
        activation: str | None,
        taps: Tensor,
        stride: int,
        base: Tensor | None,
    ) -> Preactivation:
        """Normalise, activate and convolve, as `Kernels.norm_conv`; taps are [side, side, CI, CO]."""
        z, groups = before.z, before.groups
        images, inputs, height, width = z.shape
        side, _, _, outputs = taps.shape
        size = height // stride, width // stride
        out = torch.empty((images, outputs, *size), dtype=z.dtype, device=z.device, memory_format=torch.channels_last)
        images, pixels = images // groups, size[0] * size[1]
        norm_conv_kernel[triton.cdiv(images * pixels, BLOCK), groups](
            *(last(z), self.affine(before, scale, shift, eps), taps.contiguous()),
            *(None if base is None else last(base), out),
            *(images, height, width, pixels, size[1]),
            CI=inputs,
            CO=outputs,
            SIDE=side,
            STRIDE=stride,
            ACTIVATION=activation,
            B=BLOCK,
            **OPTIONS,
        )
        return Preactivation(out, groups=groups)

    def norm_max(
        self, before: Preactivation, scale: Tensor, shift: Tensor, eps: float, activation: str | None
    ) -> Tensor:
        """Normalise, activate, and take each channel's maximum over the picture: [groups × N, C]."""
        z, groups = before.z, before.groups
        images, channels, height, width = z.shape
        out = z.new_empty((images, channels))
        images, many = images // groups, 32
        norm_max_kernel[triton.cdiv(images, many), groups](
            *(last(z), self.affine(before, scale, shift, eps), out, images, height * width),
            C=channels,
            ACTIVATION=activation,
            B=many,
            **OPTIONS,
        )
        return out


def on(device: torch.device, numbers: Sequence[int]) -> Tensor:
    """Return whole numbers as a tensor on a device, uploaded once: a graph cannot record an upload."""
    return _uploaded(device, tuple(numbers))


@cache
def _uploaded(device: torch.device, numbers: tuple[int, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def _taps(device: torch.device, taps: Sequence[int | Tensor]) -> Tensor:
    """Return taps on a device, each a number or a tensor [1]."""
    there = [tap for tap in taps if isinstance(tap, Tensor)]
    return torch.cat(there) if there else on(device, [int(tap) for tap in taps])
