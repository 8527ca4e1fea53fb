"""What is checked before the first step: that net, data and settings go together."""

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .algorithm import Loss, cross_entropies
from .data import Data, Split, check_data
from .engine import evaluator, memory
from .known import check_weights, unlike
from .models import Net, buffers_kept, grids, least_size, mode
from .proposals import noise
from .settings import RSO, arithmetic
from .sweep import ALONE, Alone, Step


def check(
    net: nn.Module,
    data: Data,
    settings: RSO,
    begun: Sequence[Step] = (),
    world: Alone = ALONE,
    loss: Loss = cross_entropies,
) -> None:
    """Raise what `train` would raise before its first step: ValueError, TypeError or MemoryError."""
    check_data(data)
    images = len(data.train)
    if settings.batch_size > images:
        raise ValueError(
            f"batch_size is {settings.batch_size}, but the training part of {data.name} has {images} images: "
            f"set batch_size to at most {images}"
        )
    if world.size > 1 and settings.strategy == "sequential":
        raise ValueError(
            f"{world.size} processes cannot share sequential steps, each of which waits for the one before: "
            f'set strategy to "neuron" or "layer", or start one process'
        )
    if begun and settings.strategy != "sequential":
        raise ValueError(f'within a sweep a run goes on only with strategy="sequential", not {settings.strategy!r}')
    reason = unlike(net)
    if reason and (world.size > 1 or settings.strategy != "sequential"):
        raise ValueError(
            f'a net that is not a models.Net is searched by one process, with strategy="sequential": {reason}'
        )
    check_device(net, data.train)
    check_weights(net)
    if settings.weight_decay and grids(net):
        raise ValueError("weight_decay must be 0 for a net whose weights lie on a grid, from which it would take them")
    check_fit(net, data, settings.batch(0))
    if not reason and isinstance(net, Net):
        _check_engine(net, data)
        memory.check(net, data, settings)


@torch.no_grad()
@arithmetic("float32")
def check_fit(net: nn.Module, data: Data, batch_size: int) -> None:
    """Raise ValueError where a net does not take the images of some data, or gives no logits for their labels.

    Two of the images go through it, in train and in eval mode, and it stays as it is.
    """
    check_device(net, data.train)
    if isinstance(net, Net) and not unlike(net):
        least, sides = least_size(net), data.train.images.shape[2:]
        if min(sides, default=0) < least:
            raise ValueError(
                f"the net needs images of at least {least}×{least} pixels, not {'×'.join(map(str, sides))}"
            )
    highest = max(int(part.labels.max()) for part in (data.train, data.val, data.test) if len(part))
    for training in (True, False):
        x = data.train.images[: min(batch_size, 2) if training else 2]
        logits = _probe(net, x, training)
        check_logits(logits, data.train.labels[: len(x)], highest)


def check_outputs(net: nn.Module, split: Split) -> None:
    """Raise ValueError where a net does not take the images of a split, or gives no logits for their labels."""
    check_device(net, split)
    check_logits(_probe(net, split.images[:2], training=False), split.labels[:2], int(split.labels.max()))


def _probe(net: nn.Module, x: Tensor, training: bool) -> Any:
    try:
        with mode(net, training), buffers_kept(net), noise(x.device, 0):
            return net(x.clone())
    except Exception as error:  # whatever goes wrong in a net of the user's
        shape, how = "×".join(map(str, x.shape)), "train" if training else "eval"
        raise ValueError(
            f"the net cannot take images of the shape {shape} ({x.dtype}) in {how} mode: "
            f"{type(error).__name__}: {error}; give it one that is made for the data's shape"
        ) from error


def check_device(net: nn.Module, split: Split) -> None:
    """Raise ValueError where a net has parameters elsewhere than on the device of the images."""
    device = split.images.device
    for name, weight in net.named_parameters():
        if weight.device != device:
            raise ValueError(
                f"{name} of the net is on {weight.device}, but the images are on {device}: "
                f"call .to({str(device)!r}) on the net, or load the data with device={weight.device.type!r}"
            )


def check_logits(logits: Any, labels: Tensor, highest: int) -> None:
    """Raise ValueError where what a net returns are no logits for images of some labels, or not for the highest."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"the net returns a {type(logits).__name__}; it must return one tensor of logits [N, classes]")
    if logits.dim() != 2 or len(logits) != len(labels) or not logits.is_floating_point():
        raise ValueError(
            f"the net returns {logits.dtype} of the shape {tuple(logits.shape)} for {len(labels)} images; "
            f"it must return floating-point logits [N, classes]"
        )
    if highest >= logits.shape[1]:
        raise ValueError(
            f"the net has {logits.shape[1]} outputs, but there is a label {highest}: "
            f"make it with at least {highest + 1} classes"
        )


def _check_engine(net: Net, data: Data) -> None:
    """Raise ValueError where the engine would compute another net than this one is."""
    x = data.train.images[:2]
    kinds = {tensor.dtype for tensor in tensors(net) if tensor.is_floating_point()} | {x.dtype}
    if len(kinds) > 1:
        raise ValueError(f"net and images must be of one type, not {', '.join(sorted(map(str, kinds)))}: call .float()")
    exact = copy.deepcopy(net).double()  # in float32, rounding turns some signs of some nets
    with torch.no_grad(), mode(exact, training=False):
        own, engines = exact(x.double()), evaluator(exact)(x.double())
    if own.isfinite().all() and not torch.allclose(own, engines, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise ValueError("the engine and the net's own forward give different logits: something has changed the net")


def tensors(net: nn.Module) -> list[Tensor]:
    """List all that a net holds: parameters and buffers."""
    return [tensor.detach() for tensor in chain(net.parameters(), net.buffers())]
