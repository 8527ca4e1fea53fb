"""The baseline: the same nets, data and reports, trained by backpropagation (sections 4.4 and 4.5).

Nets of signs or of weights on a grid have no gradient; the straight-through estimator trains them all the same.
Forward, a sign is a sign and a weight lies on its grid. Backward, both are taken for the identity wherever their input
lies within their range (Bengio et al. 2013; Courbariaux et al. 2015 and 2016). The weights that learn are floats; they
are rounded to the grid in every forward pass, and kept within its ends.
"""

import copy
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..algorithm import Loss, cross_entropies
from ..calls import called
from ..checks import check_fit
from ..data import Data, check_data
from ..discrete import activate
from ..engine.layers import channels_last
from ..history import NAN, History, Report
from ..known import unlike
from ..losses import Metric, accuracies
from ..models import Block, Net, grids, initialise, pool2, searched
from ..passes import trial
from ..proposals import generator, noise
from ..settings import check_choice, check_kind, check_number, check_whole, exact_products, plain
from ..train import scores

RATE_SCHEDULES = ("step", "constant")
SHUFFLE = 1


@dataclass(frozen=True, kw_only=True)
class SGD:
    """The settings of a run of SGD with momentum.

    Raises ValueError or TypeError, naming the argument and the remedy.
    """

    epochs: int = 50
    """passes over the training images"""
    batch_size: int = 5000
    """images of a step; what an epoch leaves over is not used in it"""
    rate: float = 0.5
    """the learning rate, once warmed up"""
    momentum: float = 0.9
    """share of the last change that is added to the next"""
    weight_decay: float = 1e-4
    """added to the gradient, times the weight"""
    warmup: int = 5
    """epochs in which the rate grows linearly from 0 to `rate`, before it is stepped down"""
    schedule: str = "step"
    """step, a tenth of the rate after half of the epochs and a hundredth after three quarters (the paper steps down
    twice and does not say when), or constant"""
    straight_through: bool = False
    """the straight-through estimator: for the gradient, signs, steps and grids are the identity within their range"""
    seed: int = 0
    """of the order of the images"""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("seed", 0)):
            check_whole(name, getattr(self, name), least=least)
        for name in ("rate", "momentum", "weight_decay"):
            check_number(name, getattr(self, name))
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be above 0 and finite, not {self.rate!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, not {self.momentum!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, not {self.weight_decay!r}")
        check_choice("schedule", self.schedule, RATE_SCHEDULES)
        if not isinstance(self.straight_through, bool):
            raise TypeError(f"straight_through must be True or False, not {self.straight_through!r}")
        most = self.epochs if self.schedule == "constant" else self.epochs // 2
        if self.warmup > most:
            raise ValueError(
                f"warmup must be at most {most} of {self.epochs} epochs, not {self.warmup}, or the rate is never "
                f"reached: set warmup to {most}, or epochs higher"
            )

    def rate_at(self, step: int, per_epoch: int) -> float:
        """Return the learning rate of a step, counted from 0 over the whole run."""
        progress = step / (self.epochs * per_epoch)
        drops = (progress >= 0.5) + (progress >= 0.75) if self.schedule == "step" else 0
        warm = min(1.0, (step + 1) / (self.warmup * per_epoch)) if self.warmup else 1.0
        return self.rate * warm / 10**drops


def train(
    net: nn.Module, data: Data, settings: SGD, *, loss: Loss = cross_entropies, metric: Metric = accuracies
) -> Iterator[Report]:
    """Train `net` in place, yielding a `Report` after each epoch.

    In these rows `cycle` is the number of times that all weights have been updated since the beginning, the
    unit in which Figure 3 compares the two methods: once for each step of SGD. `steps` counts those of the
    epoch, `sigma` is NaN, and nothing is kept, plus or minus. An image counts as three image-forwards, as
    backpropagation costs about two forward passes more.

    loss, metric  from outputs [N, ...] and targets [N, ...] to a number for each image, [N]; the loss has a gradient

    Ends early, with a warning, where the loss is not finite any more. Raises ValueError for a loss without a gradient,
    for a net whose weights lie on a grid, where `straight_through` is not set, and as `check_descent` does.
    """
    check_descent(data, settings, loss)
    yield from Descent(net, data, settings, loss, metric)


class Descent:
    """A run of SGD: iterating trains the epochs that are left, and yields the report of each.

    done     epochs that are finished
    seconds  spent on them
    """

    def __init__(self, net: nn.Module, data: Data, settings: SGD, loss: Loss, metric: Metric):
        check_fit(net, data, settings.batch_size, loss, metric)
        self.net, self.data, self.settings, self.loss, self.metric = net, data, settings, loss, metric
        self.learner = learner_of(net, settings)
        self.optimiser = torch.optim.SGD(
            self.learner.parameters(), settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
        self.done, self.seconds = 0, 0.0
        _check_gradient(self.learner, data, loss)

    def state(self) -> dict[str, Any]:
        """Return the state that the remaining epochs depend on, beside the arguments."""
        learner, optimiser = self.learner.state_dict(), self.optimiser.state_dict()
        return {"done": self.done, "seconds": self.seconds, "learner": learner, "optimiser": optimiser}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a `state`, to go on after the epochs that were done then."""
        self.learner.load_state_dict(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.seconds = state["done"], state["seconds"]

    def __iter__(self) -> Iterator[Report]:
        settings = self.settings
        for epoch in range(self.done, settings.epochs):
            began = time.perf_counter()
            with noise(self.data.train.images.device, settings.seed, epoch):  # of dropout
                steps = _epoch(self.learner, self.optimiser, self.data, settings, epoch, self.loss)
            if isinstance(self.learner, StraightThrough):
                self.learner.write(self.net)
            report = _report(self.data, settings, epoch, steps, scores(self.net, self.data, self.loss, self.metric))
            self.done, self.seconds = epoch + 1, self.seconds + time.perf_counter() - began
            yield replace(report, seconds=self.seconds)
            if not math.isfinite(report.train_loss):
                warnings.warn(
                    f"SGD diverged in epoch {epoch + 1} of {settings.epochs}: the loss is {report.train_loss}, and the "
                    f"run ends here; set rate lower than {settings.rate:g}, or warmup higher than {settings.warmup}",
                    stacklevel=2,
                )
            if ended(report, epoch + 1, settings):
                return


def learner_of(net: nn.Module, settings: SGD) -> nn.Module:
    """Return the module that is trained: the net itself, or its twin that has a gradient.

    Raises ValueError for a net that is all frozen, for one on a grid that SGD would take off it, and for a twin of a
    net that can have none.
    """
    if not searched(net):
        raise ValueError("all parameters of the net are frozen: set requires_grad=True where it is to learn")
    if settings.straight_through:
        return StraightThrough(net, settings.seed)
    if grids(net):
        raise ValueError(
            "the weights of the net lie on a grid, which SGD would leave: set straight_through to True, or build the "
            "net with levels=0"
        )
    return net


def check_descent(data: Data, settings: SGD, loss: Loss = cross_entropies) -> None:
    """Raise TypeError for arguments of other kinds, and ValueError for a batch larger than the training part.

    Raises what `check_data` raises, too.
    """
    for name, value, kind in (("data", data, Data), ("settings", settings, SGD)):
        check_kind(name, value, kind)
    check_data(data, labels=loss is cross_entropies)
    if settings.batch_size > len(data.train):
        raise ValueError(f"batch_size must be at most the {len(data.train)} training images, not {settings.batch_size}")


def fit(
    net: nn.Module,
    data: Data,
    settings: SGD,
    *,
    loss: Loss = cross_entropies,
    metric: Metric = accuracies,
    progress: bool = True,
) -> History:
    """Train with a progress bar and return the history. Arguments and errors as in `train`."""
    from tqdm import tqdm

    reports = train(net, data, settings, loss=loss, metric=metric)
    return History(list(tqdm(reports, total=settings.epochs, unit="epoch", disable=not progress)))


def ended(row: Report, epochs: int, settings: SGD) -> bool:
    """Return whether a run ends with a report: all epochs are done, or the loss is not finite."""
    return epochs == settings.epochs or not math.isfinite(row.train_loss)


@torch.inference_mode(False)
@torch.enable_grad()
@exact_products()
def _epoch(net: nn.Module, optimiser: torch.optim.Optimizer, data: Data, settings: SGD, epoch: int, loss: Loss) -> int:
    """Make a pass over the training part in a random order, and return the number of steps."""
    net.train()
    steps = len(data.train) // settings.batch_size
    order = torch.randperm(len(data.train), generator=generator(settings.seed, epoch, SHUFFLE))
    order = order.to(data.train.labels.device)
    for k in range(steps):
        batch = order[k * settings.batch_size : (k + 1) * settings.batch_size]
        optimiser.param_groups[0]["lr"] = settings.rate_at(epoch * steps + k, steps)
        optimiser.zero_grad()
        images = data.train.images[batch]
        outputs = net(channels_last(images) if images.dim() == 4 else images)
        _loss(loss, outputs, data.train.labels[batch]).backward()
        optimiser.step()
        if isinstance(net, StraightThrough):
            net.clamp()
    return steps


@torch.inference_mode(False)
@torch.enable_grad()
@exact_products()
def _check_gradient(net: nn.Module, data: Data, loss: Loss) -> None:
    """Raise ValueError where the loss of some images has no gradient. The net stays as it is."""
    x, targets = data.train.images[:2], data.train.labels[:2]
    with trial(net, training=False, device=x.device):
        _loss(loss, net(x.clone()), targets)


def _loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a batch. Raises ValueError where it has no gradient."""
    if loss is cross_entropies:
        return F.cross_entropy(outputs, targets)
    of_each = loss(outputs, targets)
    if not of_each.requires_grad:
        raise ValueError(f"loss {called(loss)} has no gradient, which SGD follows: rso_lib.train does without one")
    return of_each.mean()


def _report(data: Data, settings: SGD, epoch: int, steps: int, scored: dict[str, Any]) -> Report:
    """Return the report of an epoch."""
    return Report(
        cycle=(epoch + 1) * steps,
        layer="",
        sigma=NAN,
        steps=steps,
        kept=0,
        plus=0,
        minus=0,
        evaluations=steps,
        image_forwards=3 * steps * settings.batch_size,
        **scored,
    )


# The straight-through estimator


class StraightThrough(nn.Module):
    """A twin of a net of blocks that has a gradient: [N, C, H, W] → logits [N, classes].

    The parameters are floats, drawn as He does. `write` puts what the twin has learnt into the net.
    Raises ValueError for another net: a module of torch keeps the gradient of its own functions.
    """

    def __init__(self, net: nn.Module, seed: int):
        super().__init__()
        if not isinstance(net, Net) or (reason := unlike(net)):
            why = "it is none" if not isinstance(net, Net) else reason
            raise ValueError(f"straight_through is for a net of blocks, models.Net: {why}")
        self.twin, self.grids = copy.deepcopy(net), grids(net)
        for layer in self.twin.layers:
            layer.levels = 0
        initialise(self.twin, seed)
        for block in self.twin.blocks:
            block.activate = partial(_activate, block)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.twin, self.rounded(), (x,))

    def rounded(self) -> dict[str, Tensor]:
        """Return the parameters by name; those on a grid are rounded."""
        floats = dict(self.twin.named_parameters())
        return floats | {name: through(floats[name], grid.nearest(floats[name])) for name, grid in self.grids.items()}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the floats between the ends of their grids, where their gradient would stay for ever."""
        for name, grid in self.grids.items():
            end = grid.spacing * (grid.levels - 1) / 2
            self.twin.get_parameter(name).clamp_(-end, end)

    @torch.no_grad()
    def write(self, net: nn.Module) -> None:
        """Copy the rounded parameters and batch norm's statistics to a net of the same kind."""
        net.load_state_dict({**self.twin.state_dict(), **self.rounded()})


def through(x: Tensor, value: Tensor) -> Tensor:
    """Return a value, to the last bit, whose gradient is that of x."""
    return value.detach() + (x - x.detach())


def _activate(block: Block, z: Tensor) -> Tensor:
    """Activate as the block does; backward, sign and step are a line between -1 and 1."""
    if block.activation in ("sign", "step"):
        line = z.clamp(-1, 1) if block.activation == "sign" else (z.clamp(-1, 1) + 1) / 2
        z = through(line, activate(z, block.activation))
    else:
        z = activate(z, block.activation)
    return pool2(z, block.pool) if block.pool_last else z
