"""A method of the scoreboard on a net and images: it trains until its budget is spent, and is scored on the way."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from ..data import Data
from ..history import NAN, History, Report
from ..passes import calibrate
from ..train import evaluate
from .methods import Method, Spent

ROWS = 16
"""Rows of a history at the most, at equal distances on a logarithmic axis from a hundredth of the budget on."""


def play(
    method: Method,
    net: nn.Module,
    data: Data,
    budget: int,
    seed: int,
    settings: Mapping[str, Any],
    *,
    progress: bool = True,
) -> History:
    """Train a net by a method and return its history, of which only the last row has a score of the test part.

    In a row `cycle` counts the updates so far, and `steps` those since the last row. Scoring costs no image-forwards.
    Raises ValueError where the budget has not one update.
    """
    from tqdm import tqdm

    history, began = History(), time.perf_counter()
    marks = [*np.geomspace(budget / 100, budget, ROWS), math.inf]
    due, updates, spent = marks[0], 0, Spent(0, 0)
    with tqdm(total=budget, unit="image", unit_scale=True, disable=not progress, leave=False, mininterval=1) as bar:
        for updates, spent in enumerate(method(net, data, budget, seed, **settings), 1):
            bar.update(spent.image_forwards - bar.n)
            if spent.image_forwards >= due:
                history.append(_score(net, data, history, updates, spent, time.perf_counter() - began))
                due = next(mark for mark in marks if mark > spent.image_forwards)
    if not updates:
        raise ValueError(f"budget must be larger: {budget:,} image-forwards are not one update with {dict(settings)}")
    if not history.rows or history.rows[-1].cycle != updates:
        history.append(_score(net, data, history, updates, spent, time.perf_counter() - began))
    loss, accuracy = evaluate(net, data.test)
    history.rows[-1] = replace(history.rows[-1], test_loss=loss, test_accuracy=accuracy)
    return history


def _score(net: nn.Module, data: Data, history: History, updates: int, spent: Spent, seconds: float) -> Report:
    """Return a row of a history: the score on the validation part, and the counts since the row before."""
    calibrate(net, data.train.images)
    loss, accuracy = evaluate(net, data.val)
    return Report(
        cycle=updates,
        layer="",
        sigma=NAN,
        steps=updates - sum(row.steps for row in history.rows),
        kept=0,
        plus=0,
        minus=0,
        evaluations=spent.evaluations - sum(row.evaluations for row in history.rows),
        image_forwards=spent.image_forwards - sum(row.image_forwards for row in history.rows),
        val_loss=loss,
        val_accuracy=accuracy,
        seconds=seconds,
    )
