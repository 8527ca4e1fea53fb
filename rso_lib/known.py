"""Checks of a net: whether it can be searched, and whether the engine knows it exactly."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.parameter import is_lazy

from .discrete import ACTIVATIONS
from .models import HEAD_POOLS, POOLS, Block, Head, Net, grids, searched


def check_weights(net: nn.Module) -> None:
    """Raise ValueError, naming the parameter and the remedy, where the weights of a net cannot be searched."""
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError("the net is compiled by torch.jit, which gives no weights away by name: train the net itself")
    weights = searched(net)
    if not weights:
        frozen = any(True for _ in net.parameters())
        why = "all of its parameters are frozen: set requires_grad=True where it is to learn"
        raise ValueError(f"the net has no weights to search: {why if frozen else 'it has no parameters'}")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name} of the net has no shape yet: send a batch through the net once before training")
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"{name} of the net was made in torch.inference_mode, and cannot change outside: make the net outside"
            )
    for name, weight in weights.items():
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} of the net is {weight.dtype}: only torch.float32 and torch.float64 are searched; "
                f"call .float() on the net, or freeze it (requires_grad=False)"
            )
        if not weight.isfinite().all():
            raise ValueError(f"{name} of the net has NaN or infinite values: initialise the net anew")
    for name, grid in grids(net).items():
        if not torch.equal(net.get_parameter(name), grid.nearest(net.get_parameter(name))):
            raise ValueError(
                f"{name} of the net does not lie on its grid of {grid.levels} levels: initialise the net anew"
            )
    if names := _overlapping(net):
        raise ValueError(
            f"elements of {' and '.join(names)} of the net lie at the same place of memory: to tie weights, let them "
            f"be one parameter (b.weight = a.weight); otherwise give each a .clone() of its own"
        )


def _overlapping(net: nn.Module) -> list[str]:
    """Return the names of parameters with elements at the same place of memory, where one of these is searched."""
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
    """Return the byte of the storage at which each element of a tensor begins."""
    places = torch.tensor([weight.storage_offset()])
    for size, stride in zip(weight.shape, weight.stride(), strict=True):
        places = (places[:, None] + torch.arange(size) * stride).flatten()
    return places * weight.element_size()


def unlike(net: nn.Module) -> str:
    """Return in words how a net differs from the nets that the engine knows; "" for a net that it knows.

    The engine computes a net from the weights and the attributes of the blocks, and calls no `forward`. So it knows
    the classes of `models`, with their own submodules and options, and nothing else: no subclass, hook,
    parametrization or tie.
    """
    return next(_oddities("the net", net, Net), "")


def _oddities(name: str, module: Any, kind: type[nn.Module]) -> Iterator[str]:
    """Yield the differences between a module and a plain one of its class, and those of its submodules."""
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
    """Return the class of each submodule that a module of a `Net` has, by name."""
    if isinstance(module, Net):
        return {**{f"block{k}": Block for k in range(1, len(module))}, "head": Head}
    if isinstance(module, Block):
        optional = {"norm": nn.BatchNorm2d, "shortcut": nn.Sequential}
        return {"conv": nn.Conv2d, **{key: kind for key, kind in optional.items() if getattr(module, key) is not None}}
    if isinstance(module, Head):
        return {"linear": nn.Linear}
    return {"0": nn.Conv2d, "1": nn.BatchNorm2d} if isinstance(module, nn.Sequential) else {}


def _ties(net: Net) -> Iterator[str]:
    """Yield the pairs of names in a net that stand for one parameter."""
    names: dict[int, str] = {}
    for name, weight in net.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(weight), name)) != name:
            yield f"{other} and {name} are one parameter"


def _options(name: str, layer: Block | Head) -> Iterator[str]:
    """Yield the options of a block or a head that its constructor does not allow."""
    if isinstance(layer, Head):
        if layer.pool not in HEAD_POOLS:
            yield f"{name} has pool={layer.pool!r}"
        return
    if layer.pool not in (None, *POOLS):
        yield f"{name} has pool={layer.pool!r}"
    if layer.activation not in (None, *ACTIVATIONS):
        yield f"{name} has activation={layer.activation!r}"
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
