"""Checks before the first step: net, data and settings go together."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .algorithm import Loss, cross_entropies
from .calls import called
from .data import Data, Split, check_data
from .engine import chunk, evaluator, memory
from .known import check_weights, unlike
from .losses import Metric, accuracies, checked_score
from .models import Net, grids
from .passes import mode, tensors, trial
from .proposals import noise
from .rules import Scores
from .settings import RSO, check_kind, exact_products
from .sweep import ALONE, Alone, Step


def check_run(
    net: nn.Module,
    data: Data,
    settings: RSO,
    begun: Sequence[Step] = (),
    world: Alone = ALONE,
    loss: Loss = cross_entropies,
    metric: Metric = accuracies,
) -> None:
    """Raise the error that `train` would raise before its first step: ValueError, TypeError or MemoryError."""
    for name, value, kind in (("net", net, nn.Module), ("data", data, Data), ("settings", settings, RSO)):
        check_kind(name, value, kind)
    check_data(data, labels=loss is cross_entropies)
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
    check_fit(net, data, settings.batch(0), loss, metric)
    _check_pass(net, data.train.images[:2])
    if not reason and isinstance(net, Net):
        _check_engine(net, data)
        memory.check_room(net, data, settings)


@torch.no_grad()
@exact_products()
def check_fit(
    net: nn.Module, data: Data, batch_size: int, loss: Loss = cross_entropies, metric: Metric = accuracies
) -> None:
    """Raise ValueError where a net does not take the images of some data, or its outputs do not fit loss and metric.

    Two images of the training part go through the net in train mode, and two of each part in eval mode. The net stays
    as it is.
    """
    if isinstance(net, Net) and not unlike(net):
        least, sides = 2 ** sum(block.pool is not None for block in net.blocks), data.train.images.shape[2:]
        if len(sides) != 2:
            raise ValueError(
                f"a models.Net takes images [N, C, H, W], not rows of the shape {data.shape}: bring a module of yours"
            )
        if min(sides, default=0) < least:
            raise ValueError(
                f"the net needs images of at least {least}×{least} pixels, not {'×'.join(map(str, sides))}"
            )
    check_outputs(net, data.train, loss, metric, training=True, count=min(batch_size, 2))
    for part in data.parts.values():
        if len(part):  # where the last images of `evaluate` are one image, this one alone
            alone = len(part) % chunk(part.images.device) == 1
            check_outputs(net, part, loss, metric, count=1 if alone else 2)


def check_outputs(
    net: nn.Module, split: Split, loss: Loss, metric: Metric, training: bool = False, count: int = 2
) -> None:
    """Raise ValueError where a net does not take the images of a split, or its outputs do not fit loss and metric.

    training  whether the net is in train mode, else in eval mode
    count     images that go through it: the first one, and one with another target if there is one
    """
    check_device(net, split)
    differ = (split.labels != split.labels[0]).reshape(len(split), -1).any(1)
    other = int(differ.int().argmax()) or len(split) - 1
    rows = torch.tensor([0, other][: min(count, len(split))])
    targets, outputs = split.labels[rows], _probe(net, split.images[rows], training)
    _check_returned(outputs, targets, logits=loss is cross_entropies)
    if loss is cross_entropies and (highest := int(split.labels.max())) >= outputs.shape[1]:
        raise ValueError(
            f"the net has {outputs.shape[1]} outputs, but there is a label {highest}: "
            f"make it with at least {highest + 1} classes"
        )
    losses = checked_score("loss", loss)(outputs, targets)
    if outputs.isfinite().all() and losses.isnan().any():
        raise ValueError(f"loss {called(loss)} is NaN for outputs {outputs} and targets {targets}")
    _check_spread("loss", loss, outputs, targets, losses)
    _check_spread("metric", metric, outputs, targets, checked_score("metric", metric)(outputs, targets))


def _check_spread(what: str, function: Loss | Metric, outputs: Tensor, targets: Tensor, both: Tensor) -> None:
    """Raise ValueError where an image has another score than in `both` when it comes alone, by the shapes' fault."""
    if outputs.dim() == targets.dim() or outputs.numel() != targets.numel():
        return
    alone = checked_score(what, function)(outputs[:1], targets[:1])
    if not torch.allclose(both[:1], alone, equal_nan=True):
        raise ValueError(
            f"{what} {called(function)} mixes images, as torch spreads outputs {list(outputs.shape)} over "
            f"targets {list(targets.shape)}: give both one shape, such as outputs.view_as(targets)"
        )


def warn_of_state(net: nn.Module, split: Split, count: int, loss: Loss) -> None:
    """Warn where the same images have another loss in a second pass through the net."""
    x, targets, score = split.images[:count], split.labels[:count], checked_score("loss", loss)
    with torch.no_grad(), exact_products(), noise(x.device, 0) as rewind:
        first = score(_probe(net, x, training=True), targets)
        if unlike(net):  # the engine does not rewind
            rewind()
        again = score(_probe(net, x, training=True), targets)
    if not torch.allclose(first, again, equal_nan=True):
        warnings.warn(
            f"the same images have the losses {first.tolist()}, and {again.tolist()} when they come again: candidates "
            f"of a step would not meet the same net and loss; keep what changes from pass to pass in buffers "
            f"(register_buffer), and draw random numbers from torch's own generator, and in the net only",
            stacklevel=3,
        )


def decisions(settings: RSO, device: torch.device) -> tuple[list[float], list[float]]:
    """Return what the rule decides in some steps, whose scores are random, and when the same scores come again.

    Raises what the rule raises.
    """
    rng, rule, multiples = torch.Generator().manual_seed(0), settings.decide(), settings.multiples(device)
    images = torch.rand(STEPS, 1, len(multiples), settings.batch(0), generator=rng).to(device)
    deltas = torch.randn(STEPS, 1, generator=rng).to(device)
    steps = [Scores(one.double().mean(2), one, multiples, delta) for one, delta in zip(images, deltas, strict=True)]
    with noise(device, 0):
        first, again = ([float(rule(scores)) for scores in steps] for _ in range(2))
    return first, again


STEPS = 100
"""Steps in which a rule of the user's is tried."""


def warn_of_rule(settings: RSO, device: torch.device) -> None:
    """Warn where a rule of the user's decides otherwise when the same scores come again."""
    if isinstance(settings.rule, str):
        return
    first, again = decisions(settings, device)
    if first != again:
        warnings.warn(
            f"rule {called(settings.rule)} moves a weight otherwise when the same scores come again, so that a run "
            f"neither repeats nor goes on with the bits of an unbroken one: let it depend on the scores alone, and "
            f"seed by them what it draws at random",
            stacklevel=3,
        )


def _probe(net: nn.Module, x: Tensor, training: bool) -> Any:
    try:
        with trial(net, training, x.device):
            return net(x.clone())
    except Exception as error:  # whatever goes wrong in a net of the user's
        shape, how = "×".join(map(str, x.shape)), "train" if training else "eval"
        raise ValueError(
            f"the net cannot take images of the shape {shape} ({x.dtype}) in {how} mode: "
            f"{type(error).__name__}: {error}; {_remedy(net, x)}"
        ) from error


@torch.no_grad()
def _check_pass(net: nn.Module, x: Tensor) -> None:
    """Raise ValueError where a pass writes into a parameter of a net, or gives the net a buffer."""
    weights = [(name, w) for name, w in net.named_parameters() if not w.is_inference()]  # of which torch counts writes
    versions, buffers = [w._version for _, w in weights], {name for name, _ in net.named_buffers()}
    with trial(net, training=True, device=x.device):
        net(x.clone())
        made = [name for name, _ in net.named_buffers() if name not in buffers]
    if written := [name for (name, w), before in zip(weights, versions, strict=True) if w._version != before]:
        raise ValueError(
            f"the net writes into {written[0]} in a pass, so a candidate would change other weights than its own: "
            f"leave that out, such as max_norm of an embedding"
        )
    if made:
        raise ValueError(f"{made[0]} of the net is None before the first pass: let register_buffer give it a tensor")


def _remedy(net: nn.Module, x: Tensor) -> str:
    weight = next((w for w in net.parameters() if w.is_floating_point() and w.dtype != x.dtype), None)
    if weight is None:
        return "give it one that is made for the data's shape"
    return f"its weights are {weight.dtype}: call .to({weight.dtype}) on the data, or .to({x.dtype}) on the net"


def check_device(net: nn.Module, split: Split) -> None:
    """Raise ValueError where a parameter of a net is not on the device of the images."""
    device = split.images.device
    for name, weight in net.named_parameters():
        if weight.device != device:
            raise ValueError(
                f"{name} of the net is on {weight.device}, but the images are on {device}: "
                f"call .to({str(device)!r}) on the net, or load the data with device={weight.device.type!r}"
            )


def _check_returned(outputs: Any, targets: Tensor, logits: bool) -> None:
    """Raise ValueError where a net returns no outputs, or no logits, for as many images as there are targets."""
    what = "logits [N, classes]" if logits else "outputs [N, ...]"
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the net returns a {type(outputs).__name__}; it must return one tensor of {what}")
    shaped = outputs.dim() == 2 if logits else outputs.dim() > 0
    if not shaped or len(outputs) != len(targets) or not outputs.is_floating_point():
        raise ValueError(
            f"the net returns {outputs.dtype} of the shape {tuple(outputs.shape)} for {len(targets)} images; "
            f"it must return floating-point {what}"
        )


def _check_engine(net: Net, data: Data) -> None:
    """Raise ValueError where the engine computes other logits than the net itself."""
    x = data.train.images[:2]
    kinds = {tensor.dtype for tensor in tensors(net) if tensor.is_floating_point()} | {x.dtype}
    if len(kinds) > 1:
        raise ValueError(f"net and images must be of one type, not {', '.join(sorted(map(str, kinds)))}: call .float()")
    exact = copy.deepcopy(net).double()  # in float32, rounding turns some signs of some nets
    with torch.no_grad(), mode(exact, training=False):
        own, engines = exact(x.double()), evaluator(exact)(x.double())
    if own.isfinite().all() and not torch.allclose(own, engines, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise ValueError("the engine and the net's own forward give different logits: something has changed the net")
