"""Passes through a net without side effects: modes, buffers, and the statistics of batch norm."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from .proposals import noise
from .settings import exact_products

CALIBRATION_IMAGES = 2000
STATISTICS = ("running_mean", "running_var")


@torch.no_grad()
@exact_products()
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
        for module, was_training in before:
            module.training = was_training


@contextmanager
def buffers_kept(net: nn.Module, statistics: bool = True) -> Iterator[None]:
    """Give a net its buffers back at the end, such as the running statistics that a pass in train mode changes.

    statistics  whether also those that `calibrate` sets
    """
    before = [(module._buffers, name, b, b.clone()) for module, name, b in _buffers(net, statistics)]
    missing = [(module._buffers, name) for module in net.modules() for name, b in module._buffers.items() if b is None]
    try:
        yield
    finally:
        for buffers, name, buffer, value in before:
            buffers[name] = buffer.copy_(value)
        for buffers, name in missing:
            buffers[name] = None


@contextmanager
def trial(net: nn.Module, training: bool, device: torch.device) -> Iterator[None]:
    """Put a net in a mode, with the noise of seed 0, and give it its own modes and buffers back at the end."""
    with mode(net, training), buffers_kept(net), noise(device, 0):
        yield


def losses_along(loss: Callable[[], Tensor], weights: Tensor, index: int, values: Iterable[float | Tensor]) -> Tensor:
    """Return the loss at some values of one weight: [values, ...]. At the end the weight has its own value again."""
    old, losses = weights[index].clone(), []
    try:
        for value in values:
            weights[index] = value
            losses.append(loss())
    finally:
        weights[index] = old
    return torch.stack(losses)


def _buffers(net: nn.Module, statistics: bool) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in net.modules():
        calibrated = STATISTICS if isinstance(module, nn.modules.batchnorm._NormBase) and not statistics else ()
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in calibrated:
                yield module, name, buffer


def tensors(net: nn.Module) -> list[Tensor]:
    """List the tensors of a net: parameters and buffers."""
    return [tensor.detach() for tensor in chain(net.parameters(), net.buffers())]
