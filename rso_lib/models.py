"""The nets of the paper and of the Julia notebook, as sequences of `Block`s and a `Head`.

A net alternates linear maps (a convolution, the final matrix) with functions that treat every channel
by itself (pooling, batch norm, an activation). That alternation is all that the search engine relies on.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .discrete import ACTIVATIONS, Grid, activate, check_levels
from .proposals import gaussian, generator, sigma
from .settings import check_choice, check_whole

POOLS, HEAD_POOLS, SKIPS = ("avg", "max"), ("max", "mean", "flatten"), ("open", "close", "both")
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Modules whose weight is a scale, and begins at 1."""


class Flow(NamedTuple):
    """The activations between two blocks: x, the input of the next convolution, and the open skip, if there is one."""

    x: Tensor
    skip: Tensor | None = None


class Block(nn.Module):
    """A block of a net: convolution → (+ skip) → pooling → batch norm → activation, for [N, C, H, W].

    pool       "avg" or "max" over 2×2, or None
    pool_last  pool after the activation (the paper's text) and not before the norm (the authors' code)
    norm       batch norm, with a bias in the convolution where there is none
    activation "relu", "sign", "step" or None, see `discrete.activate`
    levels     of the convolutions' weights: 0 for floats, or the number of equally spaced values that they may have: 2
               for binary, 3 for ternary, 2**k for k bits (`discrete.Grid`). Scales, shifts and biases are floats
    skip       "open" a skip at the norm's output, before the activation; "close" the open one by adding it to
               the convolution's output; "both" closes one and opens the next; or None
    closes     channels of the skip that is closed; a 1×1 convolution with its own batch norm
               (`shortcut`) adapts it where the block has another number

    The shift of a shortcut's batch norm changes nothing where the block has a norm: it adds a constant to a
    whole channel, which that norm subtracts again. The authors' code searches it, and so does this one: w, w + Δ
    and w − Δ have the same loss but for rounding, which decides (32 of the 57,104 weights of Depth-10).

    Raises ValueError or TypeError for an unknown pool, activation or skip, or levels of 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        pool: str | None = None,
        pool_last: bool = False,
        norm: bool = True,
        activation: str | None = "relu",
        levels: int = 0,
        skip: str | None = None,
        closes: int = 0,
    ):
        super().__init__()
        for name, value, known in (
            ("pool", pool, POOLS),
            ("skip", skip, SKIPS),
            ("activation", activation, ACTIVATIONS),
        ):
            if value is not None:
                check_choice(name, value, known)
        check_levels(levels)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
        self.norm = new_batch_norm(outputs) if norm else None
        self.pool, self.pool_last, self.activation, self.levels = pool, pool_last, activation, levels
        self.opens, self.closes = skip in ("open", "both"), skip in ("close", "both")
        self.shortcut = None
        if self.closes and closes != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(closes, outputs, 1, bias=False), new_batch_norm(outputs))

    def forward(self, flow: Flow) -> Flow:
        z = self.conv(flow.x)
        if self.closes:
            z = z + self.bridge(flow.skip)
        z = self.normalise(z)
        return Flow(self.activate(z), self.passes(z, flow.skip))

    def bridge(self, skip: Tensor | None) -> Tensor:
        """Return the skip as it is added to the convolution's output."""
        assert skip is not None, "no block before this one opens a skip"
        return skip if self.shortcut is None else self.shortcut(skip)

    def normalise(self, z: Tensor) -> Tensor:
        """Apply pooling (unless it comes last) and batch norm."""
        z = z if self.pool_last else pool2(z, self.pool)
        return z if self.norm is None else self.norm(z)

    def passes(self, normed: Tensor, skip: Tensor | None) -> Tensor | None:
        """Return the skip that is open after this block, given the output of its norm and the skip before the block."""
        if self.opens:
            return pool2(normed, self.pool) if self.pool_last else normed
        return None if self.closes else skip

    def activate(self, z: Tensor) -> Tensor:
        """Apply the activation, and pooling where it comes last."""
        z = activate(z, self.activation)
        return pool2(z, self.pool) if self.pool_last else z


class Head(nn.Module):
    """The head of a net: pooling over the whole picture ("max", "mean") or "flatten", then the final linear layer.

    levels  of the matrix, as in `Block`

    Raises ValueError or TypeError for another pool, or levels of 1.
    """

    def __init__(self, features: int, classes: int, *, pool: str, bias: bool = False, levels: int = 0):
        super().__init__()
        check_choice("pool", pool, HEAD_POOLS)
        check_levels(levels)
        self.pool, self.levels = pool, levels
        self.linear = nn.Linear(features, classes, bias=bias)

    def forward(self, flow: Flow) -> Tensor:
        return self.linear(self.features(flow.x))

    def features(self, x: Tensor) -> Tensor:
        """Pool or flatten the pictures: [N, C, H, W] → [N, features]."""
        if self.pool == "flatten":
            return x.flatten(1)
        return F.adaptive_max_pool2d(x, 1).flatten(1) if self.pool == "max" else x.mean((2, 3))


class Net(nn.Sequential):
    """A net of blocks and a head: [N, C, H, W] → logits [N, classes]."""

    head: Head

    def __init__(self, blocks: Sequence[Block], head: Head, seed: int):
        named = [(f"block{k}", block) for k, block in enumerate(blocks, 1)]
        super().__init__(OrderedDict([*named, ("head", head)]))
        initialise(self, seed)

    @property
    def blocks(self) -> list[Block]:
        """Return the blocks in order."""
        return [layer for layer in self if isinstance(layer, Block)]

    @property
    def layers(self) -> list[Block | Head]:
        """Return the blocks and the head in order."""
        return [*self.blocks, self.head]

    def forward(self, x: Tensor) -> Tensor:
        flow = Flow(x)
        for block in self.blocks:
            flow = block(flow)
        return self.head(flow)


def new_batch_norm(channels: int) -> nn.BatchNorm2d:
    """Make a batch norm whose running statistics are those of the last batch seen in train mode (`calibrate`)."""
    return nn.BatchNorm2d(channels, momentum=1.0)


def pool2(x: Tensor, kind: str | None) -> Tensor:
    """Pool windows of 2×2 by "avg" or "max", or not at all for None."""
    if kind is None:
        return x
    if kind == "avg":
        return F.avg_pool2d(x, 2)
    height, width = (side // 2 * 2 for side in x.shape[2:])
    x = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])  # several times as fast as max_pool2d on a CPU
    return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """Draw weights as He does: N(0, √(2 / fan_in)); set scales of norms to 1, shifts and biases to 0 (section 3).

    Weights on a grid are drawn uniformly from its values. The bias beside them comes from N(0, 1/6): where it were 0,
    the taps of a kernel could cancel on an even background, and rounding would decide on the sign of what is left.
    Frozen parameters stay as they are, and so do other numbers and vectors (a temperature, the slope of a PReLU).
    """
    check_whole("seed", seed, least=0)
    rng, on_grid = generator(seed), grids(net)
    for name, weight in searched(net).items():
        owner, _, kind = name.rpartition(".")
        if name in on_grid:
            weight.copy_(on_grid[name].draw(tuple(weight.shape), rng))
        elif kind == "bias" and f"{owner}.weight" not in on_grid:
            weight.zero_()
        elif kind == "weight" and isinstance(net.get_submodule(owner), NORMS):
            weight.fill_(1.0)
        elif weight.dim() > 1 or kind == "bias":
            weight.copy_(gaussian(tuple(weight.shape), rng) * sigma(weight))


def searched(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the searched parameters by name: those that are not frozen (`requires_grad`) and have an element.

    A parameter that a net has under several names comes once.
    """
    return {name: w for name, w in net.named_parameters() if w.requires_grad and (is_lazy(w) or w.numel())}


def count_weights(net: nn.Module) -> int:
    """Return the number of weights that are searched."""
    return sum(weight.numel() for weight in searched(net).values())


def grids(net: nn.Module) -> dict[str, Grid]:
    """Return the grid of each tensor whose weights lie on one, by the name of the tensor."""
    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, (Block, Head)) and layer.levels]
    return {
        tensor: Grid.of(weight, layer.levels)
        for name, layer in layers
        for tensor, weight in layer.named_parameters(name)
        if weight.dim() > 1
    }


def size_in_bytes(net: nn.Module) -> int:
    """Return the bytes that a net's weights take: ⌈log₂ levels⌉ bits for a weight on a grid, 32 for a float.

    Batch norm counts as a scale and a shift, which can absorb its statistics.
    """
    bits = {name: (grid.levels - 1).bit_length() for name, grid in grids(net).items()}
    return math.ceil(sum(weight.numel() * bits.get(name, 32) for name, weight in net.named_parameters()) / 8)


def one_conv(
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    *,
    seed: int = 0,
    activation: str = "relu",
    levels: int = 0,
) -> Net:
    """Build OneConv of the Julia notebook: 4 channels, max pooling, final layer; 7,890 weights on 28×28."""
    return _julia_net("one_conv", [4], shape, classes, seed, activation, levels)


def two_conv(
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    *,
    seed: int = 0,
    activation: str = "relu",
    levels: int = 0,
) -> Net:
    """Build TwoConv of the Julia notebook: 16 and 16 channels, max pooling after each, final layer."""
    return _julia_net("two_conv", [16, 16], shape, classes, seed, activation, levels)


def _julia_net(
    name: str, widths: list[int], shape: Sequence[int], classes: int, seed: int, activation: str, levels: int
) -> Net:
    channels, height, width = _checked(shape, classes, len(widths), name)
    blocks = [
        Block(inputs, outputs, pool="max", norm=False, activation=activation, levels=levels)
        for inputs, outputs in pairwise([channels, *widths])
    ]
    features = widths[-1] * (height >> len(widths)) * (width >> len(widths))
    return Net(blocks, Head(features, classes, pool="flatten", bias=True, levels=levels), seed)


def mnist_net(
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    *,
    seed: int = 0,
    pool_last: bool = False,
    head: str = "max",
    activation: str = "relu",
    levels: int = 0,
) -> Net:
    """Build the net of section 4.1: six convolutions of 16 channels, pooling after every second; 12,016 weights.

    pool_last=False and head="max" are the authors' code, pool_last=True and head="mean" the paper's text.
    activation and levels are those of every block, see `Block`. Raises ValueError for another head.
    """
    check_choice("head", head, HEAD_POOLS[:2])
    _checked(shape, classes, 3, "mnist_net")
    pools = [None, "avg"] * 3
    blocks = [
        Block(inputs, 16, pool=pool, pool_last=pool_last, activation=kind, levels=levels)
        for inputs, pool, kind in zip([shape[0], *[16] * 5], pools, _activations(activation, 6, head), strict=True)
    ]
    return Net(blocks, Head(16, classes, pool=head, levels=levels), seed)


FIRST_HALF = [(16, None, "open"), (16, None, None), (16, "avg", "both"), (32, None, None), (32, "avg", "both")]
DEPTHS: dict[int, Sequence[tuple[int, str | None, str | None]]] = {
    3: [(32, "avg", None), (32, None, None)],
    5: [(16, None, None), (16, "avg", None), (32, "avg", None), (32, None, None)],
    10: [*FIRST_HALF, (32, None, None), (32, None, "both"), (32, None, None), (32, None, "close")],
}
"""Channels, pooling and skip of each block of the nets of Table 3."""


def cifar_net(
    depth: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    *,
    seed: int = 0,
    pool_last: bool = False,
    head: str = "max",
    activation: str = "relu",
    levels: int = 0,
) -> Net:
    """Build a net of Table 3: Depth-3, Depth-5 or the residual Depth-10 (57,104 weights); options as in `mnist_net`.

    Raises ValueError for another depth or head.
    """
    check_choice("head", head, HEAD_POOLS[:2])
    if depth not in DEPTHS:
        raise ValueError(f"depth must be 3, 5 or 10, not {depth!r}")
    channels, *_ = _checked(
        shape, classes, sum(pool is not None for _, pool, _ in DEPTHS[depth]), f"cifar_net of depth {depth}"
    )
    opened, blocks, activations = 0, [], _activations(activation, len(DEPTHS[depth]), head)
    for (width, pool, skip), kind in zip(DEPTHS[depth], activations, strict=True):
        block = Block(
            channels, width, pool=pool, pool_last=pool_last, activation=kind, levels=levels, skip=skip, closes=opened
        )
        blocks.append(block)
        channels, opened = width, width if skip in ("open", "both") else opened
    return Net(blocks, Head(channels, classes, pool=head, levels=levels), seed)


def _checked(shape: Sequence[int], classes: int, pools: int, net: str) -> Sequence[int]:
    """Return the shape (C, H, W). Raises ValueError where it is no shape, or too small for so many poolings of 2×2."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width) of an image, not {tuple(shape)}")
    check_whole("classes", classes, least=1)
    if min(shape[1:]) < 2**pools:
        raise ValueError(f"{net} needs images of at least {2**pools}×{2**pools} pixels, not {shape[1]}×{shape[2]}")
    return shape


def _activations(activation: str, blocks: int, head: str) -> list[str | None]:
    """Return the activation of each block; the last one has none before a maximum, as in the authors' code."""
    return [activation] * (blocks - 1) + [None if head == "max" else activation]
