"""What the paper's tables say, and what runs reached (notebooks 05 and 08)."""

from collections.abc import Mapping, Sequence

import pandas
import torch
from torch import Tensor

from ..history import NAN, History

PAPER_1 = {"RSO, default order": 99.06, "RSO, inverted order": 99.12, "SGD": 99.27, "WANN": 91.9}
"""Test accuracy on MNIST in %: Table 1, and section 4.3 for the two orders. WANN: Gaier and Ha, "Weight agnostic neural
networks", 2019, as Table 1 quotes it."""

LABELS = {"output": "RSO, default order", "input": "RSO, inverted order", "shuffled": "RSO, shuffled order"}
"""The methods' names by the order of visits."""

PAPER_2 = {100_000: 98.24, 200_000: 98.78, 300_000: 98.94, 400_000: 99.00, 500_000: 99.08, 600_000: 99.12}
"""Test accuracy on MNIST in % after so many steps of one weight: Table 2."""

PAPER_3 = {"Depth-3": 56.30, "Depth-5": 68.48, "Depth-10": 81.80, "SGD, Depth-10": 82.94}
"""Test accuracy on CIFAR-10 in %: Table 3, and section 4.4 for SGD."""

Histories = Mapping[str, Sequence[History]]
"""Runs by the name of the method, one history for each seed."""


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of independent values [n]; NaN for one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else NAN


def summarise_accuracy(histories: Sequence[History]) -> dict[str, float]:
    """Return test accuracies in %, means over runs: final (with its error), at_best_validation and peeking.

    at_best_validation  is NaN where there was no validation part
    peeking             the highest of all cycles, which is no result: it is chosen on the test part
    """
    final = torch.tensor([100 * history.last.test_accuracy for history in histories], dtype=torch.float64)
    chosen = [100 * history.best.test_accuracy if history.validated else NAN for history in histories]
    peeking = [100 * float(history.cycles.frame().test_accuracy.max()) for history in histories]
    return {
        "final": float(final.mean()),
        "error": standard_error(final),
        "at_best_validation": sum(chosen) / len(chosen),
        "peeking": sum(peeking) / len(peeking),
    }


def tabulate_accuracy(histories: Histories) -> pandas.DataFrame:
    """Return a row for each method: runs, updates (of all weights), and the accuracies of `summarise_accuracy` in %."""
    rows = [
        {"method": method, "runs": len(mine), "updates": mine[0].last.cycle, **summarise_accuracy(mine)}
        for method, mine in histories.items()
    ]
    return pandas.DataFrame(rows)
