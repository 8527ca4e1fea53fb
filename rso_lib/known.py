"""Checks of a net: whether it can be searched, and whether the engine knows it exactly."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.parameter import is_lazy

from .models import Block, Head, Net, grids, searched
from .passes import STATISTICS


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
    blocks and heads as their constructors make them, and nothing else: no subclass, hook, parametrization or tie.
    """
    if type(net) is not Net:
        return f"the net is a {type(net).__name__}, not a models.Net"
    hooks = torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks
    for name, module in net.named_modules():
        if type(module) not in (Net, Block, Head, nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Sequential):
            return f"{name} is a {type(module).__name__}, which no models.Net has"
        if own := [key for key in vars(module) if callable(getattr(type(module), key, None))]:
            return f"{name or 'the net'} has a method of its own, {own[0]}"
        if any((*hooks, module._forward_hooks, module._forward_pre_hooks)):
            return f"{name or 'the net'} has a forward hook"
    names: dict[int, str] = {}
    for name, weight in net.named_parameters(remove_duplicate=False):
        if (other := names.setdefault(id(weight), name)) != name:
            return f"{other} and {name} are one parameter"
    parts, known = [*net._modules, *net._parameters], [*(f"block{k}" for k in range(1, len(net))), "head"]
    if parts != known:
        return f"the net has the parts {', '.join(parts)} in place of {', '.join(known)}"
    for name, layer in net._modules.items():
        try:
            its, plain = _describe(layer), _plain(Head if name == "head" else Block, layer)
        except (AttributeError, TypeError, ValueError) as error:
            return f"{name} cannot be built anew: {error}"
        for part in plain | its:
            if its.get(part) != plain.get(part):
                return f"{name}.{part} is {its.get(part, 'nothing')} in place of {plain.get(part, 'nothing')}"
    return ""


def _plain(kind: type[nn.Module], layer: Any) -> dict[str, str]:
    """Describe the layer that a constructor makes with the options of another."""
    if kind is Head:
        linear = layer.linear
        return _made(Head, linear.in_features, linear.out_features, pool=layer.pool, bias=linear.bias is not None)
    conv, shortcut, skip = layer.conv, layer.shortcut, "close" if layer.closes else None
    closes = conv.out_channels if shortcut is None else shortcut[0].in_channels
    options = {"pool": layer.pool, "activation": layer.activation, "norm": layer.norm is not None, "skip": skip}
    return _made(Block, conv.in_channels, conv.out_channels, closes=closes, **options)


@cache
def _made(kind: type[nn.Module], *sizes: int, **options: Any) -> dict[str, str]:
    with torch.device("meta"):  # shapes without numbers
        return _describe(kind(*sizes, **options))


def _describe(layer: nn.Module) -> dict[str, str]:
    """Describe a layer part by part: its modules by class and options, its parameters and statistics by shape."""
    found = {name: str(m) if isinstance(m, nn.Conv2d) else type(m).__name__ for name, m in layer.named_modules()}
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if isinstance(tensor, nn.Parameter) or name.endswith(STATISTICS):
            found[name] = f"a tensor of the shape {[*tensor.shape]}"
    return found
