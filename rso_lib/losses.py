"""Losses and metrics: cross entropy and accuracy, or functions of the user's, checked where they are called."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .algorithm import Loss, cross_entropies
from .calls import called, calling
from .tensors import labelled

Metric = Callable[[Tensor, Tensor], Tensor]
"""From a net's outputs [N, ...] and targets [N, ...] to a number for each image, [N], whose mean is reported. The more,
the better."""


def accuracies(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the accuracy of each image, 1 where the largest output is that of the label, else 0: [N], float64.

    NaN where targets are no labels, or outputs are not [N, classes] with one for each of the labels, two at the least.
    """
    fits = labelled(targets) and outputs.dim() == 2 and len(targets) > 0
    if not fits or outputs.shape[1] <= max(int(targets.max()), 1):
        return outputs.new_full((len(outputs),), torch.nan, dtype=torch.float64)
    return (outputs.argmax(1) == targets).double()


LOSSES: Mapping[str, Loss] = {"cross_entropy": cross_entropies}
METRICS: Mapping[str, Metric] = {"accuracy": accuracies}


def checked_score(what: str, function: Loss | Metric) -> Loss:
    """Wrap a loss or a metric: raise ValueError where it does not return one number for each image.

    The loss and the metric of this library are returned as they are.

    what  "loss" or "metric", for the error
    """
    if function in (cross_entropies, accuracies):
        return function

    def of_each(outputs: Tensor, targets: Tensor) -> Tensor:
        given = f"{what} {called(function)}, given outputs {_said(outputs)} and targets {_said(targets)},"
        found = calling(given, function, outputs, targets)
        if not isinstance(found, Tensor) or found.shape != outputs.shape[:1] or found.is_complex():
            said = _said(found) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise ValueError(
                f"{given} returned {said}; it must return a number for each of the {len(outputs)} images, "
                f'[{len(outputs)}]: of a loss of torch that is reduction="none" and the mean over all but the first '
                f"dimension"
            )
        return found.detach().double()

    return of_each


def _said(x: Tensor) -> str:
    return f"{list(x.shape)} of {x.dtype}"
