"""The nets of the paper and of the Julia notebook, as sequences of `Block`s and a `Head`.

A net alternates linear maps (a convolution, the final matrix) with functions that treat every channel
by itself (pooling, batch norm, ReLU). That alternation is all that the search engine relies on.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.parameter import is_lazy

from .proposals import generator, noise, sigma
from .settings import arithmetic, check_choice, check_whole

CALIBRATION_IMAGES = 2000
POOLS = ("avg", "max")
SKIPS = ("open", "close", "both")
HEAD_POOLS = ("max", "mean", "flatten")


class Flow(NamedTuple):
    """What passes between blocks: x, the next convolution's input, and the open skip, if any."""

    x: Tensor
    skip: Tensor | None = None


class Block(nn.Module):
    """convolution → (+ skip) → pooling → batch norm → ReLU, for [N, C, H, W].

    pool       "avg" or "max" over 2×2, or None
    pool_last  pool after the ReLU (the paper's text) and not before the norm (the authors' code)
    norm       batch norm, with a bias in the convolution where there is none
    skip       "open" a skip at the norm's output, before the ReLU; "close" the open one by adding it to
               the convolution's output; "both" closes one and opens the next; or None
    closes     channels of the skip that is closed; a 1×1 convolution with its own batch norm
               (`shortcut`) adapts it where the block has another number

    The shift of a shortcut's batch norm changes nothing where the block has a norm: it adds a constant to a
    whole channel, which that norm subtracts again. The authors' code searches it, and so does this one: w, w + Δ
    and w − Δ have the same loss but for rounding, which decides (32 of the 57,104 weights of Depth-10).

    Raises ValueError for an unknown pool or skip.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        pool: str | None = None,
        pool_last: bool = False,
        norm: bool = True,
        relu: bool = True,
        skip: str | None = None,
        closes: int = 0,
    ):
        super().__init__()
        if pool is not None:
            check_choice("pool", pool, POOLS)
        if skip is not None:
            check_choice("skip", skip, SKIPS)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)
        self.norm = batch_norm(outputs) if norm else None
        self.pool, self.pool_last, self.relu = pool, pool_last, relu
        self.opens, self.closes = skip in ("open", "both"), skip in ("close", "both")
        grows = self.closes and closes != outputs
        self.shortcut = nn.Sequential(nn.Conv2d(closes, outputs, 1, bias=False), batch_norm(outputs)) if grows else None

    def forward(self, flow: Flow) -> Flow:
        z = self.conv(flow.x)
        if self.closes:
            z = z + self.bridge(flow.skip)
        z = self.normalise(z)
        return Flow(self.activate(z), self.passes(z, flow.skip))

    def bridge(self, skip: Tensor | None) -> Tensor:
        """The skip as it is added to the convolution's output."""
        assert skip is not None, "no block before this one opens a skip"
        return skip if self.shortcut is None else self.shortcut(skip)

    def normalise(self, z: Tensor) -> Tensor:
        """Pooling (unless it comes last) and batch norm."""
        z = z if self.pool_last else pool2(z, self.pool)
        return z if self.norm is None else self.norm(z)

    def passes(self, normed: Tensor, skip: Tensor | None) -> Tensor | None:
        """The skip that is open behind this block, given its norm's output and the skip before it."""
        if self.opens:
            return pool2(normed, self.pool) if self.pool_last else normed
        return None if self.closes else skip

    def activate(self, z: Tensor) -> Tensor:
        """ReLU, and pooling where it comes last."""
        z = F.relu(z) if self.relu else z
        return pool2(z, self.pool) if self.pool_last else z


class Head(nn.Module):
    """Pooling over the whole picture ("max", "mean") or "flatten", then the final linear layer.

    Raises ValueError for another pool.
    """

    def __init__(self, features: int, classes: int, *, pool: str, bias: bool = False):
        super().__init__()
        check_choice("pool", pool, HEAD_POOLS)
        self.pool = pool
        self.linear = nn.Linear(features, classes, bias=bias)

    def forward(self, flow: Flow) -> Tensor:
        return self.linear(self.features(flow.x))

    def features(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, features]"""
        if self.pool == "flatten":
            return x.flatten(1)
        return F.adaptive_max_pool2d(x, 1).flatten(1) if self.pool == "max" else x.mean((2, 3))


class Net(nn.Sequential):
    """Blocks and a head; [N, C, H, W] → logits [N, classes]."""

    head: Head

    def __init__(self, blocks: Sequence[Block], head: Head, seed: int):
        named = [(f"block{k}", block) for k, block in enumerate(blocks, 1)]
        super().__init__(OrderedDict([*named, ("head", head)]))
        initialise(self, seed)

    @property
    def blocks(self) -> list[Block]:
        """The blocks in order."""
        return [layer for layer in self if isinstance(layer, Block)]

    @property
    def layers(self) -> list[Block | Head]:
        """The blocks and the head."""
        return [*self.blocks, self.head]

    def forward(self, x: Tensor) -> Tensor:
        flow = Flow(x)
        for block in self.blocks:
            flow = block(flow)
        return self.head(flow)


def least_size(net: Net) -> int:
    """The least height and width of images that poolings of 2×2 leave something of."""
    return 2 ** sum(block.pool is not None for block in net.blocks)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm whose running statistics are those of the last batch seen in train mode (`calibrate`)."""
    return nn.BatchNorm2d(channels, momentum=1.0)


def pool2(x: Tensor, kind: str | None) -> Tensor:
    """2×2 pooling, "avg" or "max", or none."""
    if kind is None:
        return x
    if kind == "avg":
        return F.avg_pool2d(x, 2)
    height, width = (side // 2 * 2 for side in x.shape[2:])
    x = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])  # several times as fast as max_pool2d on a CPU
    return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """He: weights from N(0, √(2 / fan_in)); batch-norm scale 1; shifts and biases 0 (section 3). Not of frozen ones."""
    check_whole("seed", seed, least=0)
    rng = generator(seed)
    for name, weight in searched(net).items():
        if weight.dim() > 1:
            weight.copy_(torch.randn(weight.shape, generator=rng) * sigma(weight))
        else:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)


@torch.no_grad()
@arithmetic("float32")
def calibrate(net: nn.Module, images: Tensor) -> None:
    """Set the statistics that batch norm uses in eval mode: those of the first 2,000 training images."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
        with mode(net, training=True), noise(images.device, 0):
            net(images[:CALIBRATION_IMAGES].clone())  # a net may write into what it is given
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """Put a net in train or eval mode, and give each of its modules its own mode back at the end."""
    before = [(module, module.training) for module in net.modules()]
    try:
        net.train(training)
        yield
    finally:
        for module, its in before:
            module.training = its


@contextmanager
def buffers_kept(net: nn.Module) -> Iterator[None]:
    """Give a net its buffers back at the end, such as the running statistics that a pass in train mode changes."""
    before = [(module._buffers, name, b, b.clone()) for module, name, b in _buffers(net)]
    try:
        yield
    finally:
        for buffers, name, buffer, value in before:
            buffers[name] = buffer.copy_(value)


def _buffers(net: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in net.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer


# What of a net is searched, and which nets the engine knows


def searched(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are searched, by name: those that are not frozen (`requires_grad`) and have an element.

    A parameter that a net has under several names is one.
    """
    return {name: w for name, w in net.named_parameters() if w.requires_grad and (is_lazy(w) or w.numel())}


def count_weights(net: nn.Module) -> int:
    """The number of weights that are searched."""
    return sum(weight.numel() for weight in searched(net).values())


def check_weights(net: nn.Module) -> None:
    """Raise ValueError, naming the parameter and the remedy, where the weights of a net cannot be searched."""
    weights = searched(net)
    if not weights:
        frozen = any(True for _ in net.parameters())
        why = "all of its parameters are frozen: set requires_grad=True where it is to learn"
        raise ValueError(f"the net has no weights to search: {why if frozen else 'it has no parameters'}")
    for name, weight in net.named_parameters():
        if is_lazy(weight):
            raise ValueError(f"{name} of the net has no shape yet: send a batch through the net once before training")
    for name, weight in weights.items():
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} of the net is {weight.dtype}: only torch.float32 and torch.float64 are searched; "
                f"call .float() on the net, or freeze it (requires_grad=False)"
            )
        if not weight.isfinite().all():
            raise ValueError(f"{name} of the net has NaN or infinite values: initialise the net anew")
    if names := _overlapping(net):
        raise ValueError(
            f"elements of {' and '.join(names)} of the net lie at the same place of memory: to tie weights, let them "
            f"be one parameter (b.weight = a.weight); otherwise give each a .clone() of its own"
        )


def _overlapping(net: nn.Module) -> list[str]:
    """The parameters of which an element lies where another one does, where one of the two is searched."""
    storages: dict[int, list[str]] = {}
    for name, weight in net.named_parameters():
        if weight.numel() and weight.device.type != "meta":
            storages.setdefault(weight.untyped_storage().data_ptr(), []).append(name)
    for names in storages.values():
        weights = [net.get_parameter(name) for name in names]
        if (len(names) == 1 and weights[0].is_contiguous()) or not any(weight.requires_grad for weight in weights):
            continue
        places = torch.cat([_places(weight) for weight in weights])
        if len(places.unique()) < len(places):
            return names
    return []


def _places(weight: Tensor) -> Tensor:
    """The bytes of its storage at which the elements of a tensor begin."""
    places = torch.tensor([weight.storage_offset()])
    for size, stride in zip(weight.shape, weight.stride(), strict=True):
        places = (places[:, None] + torch.arange(size) * stride).flatten()
    return places * weight.element_size()


def unlike(net: nn.Module) -> str:
    """Why the engine does not know a net: in what it is unlike any `Net` of this module; "" if it knows it.

    The engine computes a net from its weights and its blocks' attributes, and calls no `forward`. So it knows nets of
    these classes, with these submodules and options, and nothing else: no subclass, hook, parametrization or tie.
    """
    return next(_oddities("the net", net, Net), "")


def _oddities(name: str, module: Any, kind: type[nn.Module]) -> Iterator[str]:
    """In what a module is unlike one of its kind, and its submodules unlike theirs."""
    if type(module) is not kind:
        yield (
            f"{name} is a {type(module).__name__}, not a models.Net"
            if kind is Net
            else (f"{name} is a {type(module).__name__}, not a {kind.__name__} alone")
        )
        return
    if own := [key for key in vars(module) if callable(getattr(kind, key, None))]:
        yield f"{name} has a method of its own, {own[0]}"
    if any((*_hooks(module), *_hooks(torch_modules, "_global"))):
        yield f"{name} has a forward hook"
    parts, weights = _parts(module), [key for key, weight in module._parameters.items() if weight is not None]
    there = [key for key, part in module._modules.items() if part is not None]
    if there != list(parts):
        yield f"{name} has the submodules {', '.join(there)} in place of {', '.join(parts)}"
        return
    if strange := set(weights) - {"weight", "bias"} or (parts and set(weights)):
        yield f"{name} has a parameter of its own, {min(strange)}"
    for part, its_kind in parts.items():
        yield from _oddities(part if kind is Net else f"{name}.{part}", module._modules[part], its_kind)
    if isinstance(module, Net):
        yield from _ties(module)
    elif isinstance(module, (Block, Head)):
        yield from _options(name, module)


def _hooks(module: Any, prefix: str = "") -> list[Any]:
    return [getattr(module, f"{prefix}_forward_{which}") for which in ("hooks", "pre_hooks")]


def _parts(module: nn.Module) -> dict[str, type[nn.Module]]:
    """The submodules that a module of a `Net` has."""
    if isinstance(module, Net):
        return {**{f"block{k}": Block for k in range(1, len(module))}, "head": Head}
    if isinstance(module, Block):
        optional = {"norm": nn.BatchNorm2d, "shortcut": nn.Sequential}
        return {"conv": nn.Conv2d, **{key: kind for key, kind in optional.items() if getattr(module, key) is not None}}
    if isinstance(module, Head):
        return {"linear": nn.Linear}
    return {"0": nn.Conv2d, "1": nn.BatchNorm2d} if isinstance(module, nn.Sequential) else {}


def _ties(net: Net) -> Iterator[str]:
    """Which of the parameters of a net are one."""
    names: dict[int, str] = {}
    for name, weight in net.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(weight), name)) != name:
            yield f"{other} and {name} are one parameter"


def _options(name: str, layer: Block | Head) -> Iterator[str]:
    """Which options a block or a head has that its constructor does not give."""
    if isinstance(layer, Head):
        if layer.pool not in HEAD_POOLS:
            yield f"{name} has pool={layer.pool!r}"
        return
    if layer.pool not in (None, *POOLS):
        yield f"{name} has pool={layer.pool!r}"
    if layer.shortcut is not None and not layer.closes:
        yield f"{name} has a shortcut, but closes no skip"
    shortcut = layer.shortcut or ()
    for conv, size in zip((layer.conv, *shortcut[:1]), (3, 1), strict=False):
        yield from _convolution(f"a convolution of {name}", conv, size, bias=size == 3 and layer.norm is None)
    for norm in filter(None, (layer.norm, *shortcut[1:])):
        if any(tensor is None for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            yield f"a batch norm of {name} has no scale and shift, or no running statistics"


def _convolution(name: str, conv: nn.Conv2d, size: int, bias: bool) -> Iterator[str]:
    known = {
        "kernel_size": (size, size),
        "stride": (1, 1),
        "padding": (size // 2, size // 2),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": "zeros",
    }
    for option, value in known.items():
        if (its := getattr(conv, option)) != value:
            yield f"{name} has {option}={its!r}, not {value!r}"
    if tuple(conv.weight.shape) != (conv.out_channels, conv.in_channels, size, size):
        yield f"{name} has a weight of the shape {tuple(conv.weight.shape)}"
    if (conv.bias is not None) != bias:
        yield f"{name} has {'no bias and no' if bias else 'a bias beside a'} batch norm"


def one_conv(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, *, seed: int = 0) -> Net:
    """The Julia notebook's OneConv: 4 channels, max pooling, final layer; 7,890 weights on 28×28."""
    channels, height, width = _checked(shape, classes, 1, "one_conv")
    block = Block(channels, 4, pool="max", norm=False)
    return Net([block], Head(4 * (height // 2) * (width // 2), classes, pool="flatten", bias=True), seed)


def two_conv(shape: tuple[int, int, int] = (1, 28, 28), classes: int = 10, *, seed: int = 0) -> Net:
    """The Julia notebook's TwoConv: 16 and 16 channels, max pooling after each, final layer."""
    channels, height, width = _checked(shape, classes, 2, "two_conv")
    blocks = [Block(channels, 16, pool="max", norm=False), Block(16, 16, pool="max", norm=False)]
    return Net(blocks, Head(16 * (height // 4) * (width // 4), classes, pool="flatten", bias=True), seed)


def mnist_net(
    shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    *,
    seed: int = 0,
    pool_last: bool = False,
    head: str = "max",
) -> Net:
    """Section 4.1: six convolutions of 16 channels, pooling after every second; 12,016 weights.

    pool_last=False and head="max" are the authors' code, pool_last=True and head="mean" the paper's text.
    Raises ValueError for another head.
    """
    check_choice("head", head, HEAD_POOLS[:2])
    _checked(shape, classes, 3, "mnist_net")
    pools = [None, "avg"] * 3
    blocks = [
        Block(inputs, 16, pool=pool, pool_last=pool_last, relu=_relu(k, 6, head))
        for k, (inputs, pool) in enumerate(zip([shape[0], 16, 16, 16, 16, 16], pools, strict=True), 1)
    ]
    return Net(blocks, Head(16, classes, pool=head), seed)


def cifar_net(
    depth: int = 10,
    shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    *,
    seed: int = 0,
    pool_last: bool = False,
    head: str = "max",
) -> Net:
    """Table 3: Depth-3, Depth-5 or the residual Depth-10 (57,104 weights); options as in `mnist_net`.

    Raises ValueError for another depth or head.
    """
    check_choice("head", head, HEAD_POOLS[:2])
    widths = {3: [32, 32], 5: [16, 16, 32, 32], 10: [16, 16, 16, 32, 32, 32, 32, 32, 32]}
    pooled = {3: (1,), 5: (2, 3), 10: (3, 5)}
    if depth not in widths:
        raise ValueError(f"depth must be 3, 5 or 10, not {depth!r}")
    _checked(shape, classes, len(pooled[depth]), f"cifar_net of depth {depth}")
    outputs = widths[depth]
    skips = ["open", None, "both", None, "both", None, "both", None, "close"] if depth == 10 else [None] * len(outputs)
    inputs = [shape[0], *outputs]
    blocks = [
        Block(
            inputs[k - 1],
            outputs[k - 1],
            pool="avg" if k in pooled[depth] else None,
            pool_last=pool_last,
            relu=_relu(k, len(outputs), head),
            skip=skips[k - 1],
            closes=inputs[k - 2] if k > 2 else 0,
        )
        for k in range(1, len(outputs) + 1)
    ]
    return Net(blocks, Head(outputs[-1], classes, pool=head), seed)


def _checked(shape: Sequence[int], classes: int, pools: int, net: str) -> Sequence[int]:
    """The shape (C, H, W), if a net with so many poolings of 2×2 takes such images; otherwise raise ValueError."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must be (channels, height, width) of an image, not {tuple(shape)}")
    check_whole("classes", classes, least=1)
    if min(shape[1:]) < 2**pools:
        height, width = shape[1:]
        raise ValueError(f"{net} needs images of at least {2**pools}×{2**pools} pixels, not {height}×{width}")
    return shape


def _relu(k: int, blocks: int, head: str) -> bool:
    """The authors pool the last batch norm's output by its maximum, without a ReLU before it."""
    return k < blocks or head != "max"
