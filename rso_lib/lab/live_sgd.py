"""A live run of gradient descent, to race with a search."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..history import Report
from ..run import sgd
from .live import LiveRun


class LiveSGD(LiveRun):
    """A live run of `sgd.train`: a step is an epoch, and a change begins the run anew."""

    def __init__(self, *args: Any):
        torch.optim.SGD([nn.Parameter(torch.zeros(1))])  # the first one takes seconds, which a race would wait for
        super().__init__(*args)

    def open(self) -> Iterator[Report]:
        return sgd.train(self.net, self.data, self.settings)

    def count(self, item: Any) -> None:
        self.history.append(item)
        self.steps += item.steps
        self.image_forwards += item.image_forwards
        self.losses.append(item.train_loss)
        self.score()

    def apply(self, **changes: Any) -> None:
        self.settings = replace(self.settings, **changes)
        self.begin()

    def rest(self) -> None:
        """Free nothing: the optimiser is part of the run."""

    @property
    def updates(self) -> float:
        return self.steps
