"""Training with a progress bar, in memory."""

import math
import sys
import warnings
from collections.abc import Iterator

from torch import Tensor, nn
from tqdm import tqdm

from .algorithm import Loss, cross_entropies
from .checks import check_run
from .data import Data
from .history import History, Report
from .losses import Metric, accuracies
from .models import count_weights
from .passes import tensors
from .settings import RSO, check_kind
from .sweep import Step
from .train import train


def fit(
    net: nn.Module,
    data: Data,
    settings: RSO,
    history: History | None = None,
    *,
    loss: Loss = cross_entropies,
    metric: Metric = accuracies,
    progress: bool = True,
) -> History:
    """Train with a progress bar and return the history.

    An interrupt ends the run and leaves net and history as they were at the last report: the same call, with this
    history, goes on. So does an error, which is raised. Arguments and errors as for `train`. `history` is continued in
    place.
    """
    history = History() if history is None else history
    check_kind("history", history, History)
    check_run(net, data, settings, loss=loss, metric=metric)
    reported = len(history.rows), _copies(net)
    try:
        items = train(net, data, settings, history, steps=True, loss=loss, metric=metric)
        for _ in with_bar(items, net, settings, history, progress):
            reported = len(history.rows), _copies(net)
    except BaseException as error:
        rows, values = reported
        del history.rows[rows:]
        for tensor, value in zip(tensors(net), values, strict=True):
            tensor.copy_(value)
        if not isinstance(error, KeyboardInterrupt):
            raise
        warnings.warn("stopped before the end; net and history are as behind the last finished sweep", stacklevel=2)
    return history


def _copies(net: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors(net)]


def with_bar(
    items: Iterator[Report | Step], net: nn.Module, settings: RSO, history: History, progress: bool = True
) -> Iterator[Report]:
    """Yield the reports of a run, each added to its history, under a bar with the time left.

    The bar is drawn anew after 2 % of the time that has passed, so that a notebook keeps few outputs of a long run.
    """
    steps = lambda: sum(row.steps for row in history.rows if not row.is_cycle)  # noqa: E731
    total = settings.cycles * count_weights(net)
    least = 0.5 if sys.stderr.isatty() or "ipykernel" in sys.modules else 30.0  # seconds; a log file wants fewer lines
    # smoothing=0: layers differ in the time of a step, so only the mean over the sitting tells the time left
    with tqdm(
        total=total,
        initial=steps(),
        unit="step",
        smoothing=0,
        mininterval=least,
        disable=not progress,
    ) as bar:
        for item in items:
            if isinstance(item, Step):
                bar.update()
                continue
            history.append(item)
            bar.mininterval = max(least, bar.format_dict["elapsed"] / 50)
            bar.update(steps() - bar.n)  # those of all processes
            bar.set_description(f"cycle {item.cycle}/{settings.cycles} {item.layer}", refresh=False)
            if item.is_cycle:
                bar.set_postfix({part: f"{score:.4f}" for part, score in shown(item).items()}, False)
            yield item


def shown(report: Report) -> dict[str, float]:
    """Return the scores that a bar shows of a cycle: the accuracies, or the losses where there are no accuracies."""
    for what in ("accuracy", "loss"):
        scores = {part: getattr(report, f"{part}_{what}") for part in ("val", "test")}
        if found := {part: score for part, score in scores.items() if not math.isnan(score)}:
            return found if what == "accuracy" else {f"{part} loss": score for part, score in found.items()}
    return {}
