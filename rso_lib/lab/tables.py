"""What the paper's tables say, and what runs reached (notebooks 05, 06 and 08)."""

from collections.abc import Mapping, Sequence

import pandas
import torch
from torch import Tensor

from ..history import NAN, History, Report
from .figure import Picture, new_picture, style
from .pictures import COSTS

PAPER_1 = {"RSO, default order": 99.06, "RSO, inverted order": 99.12, "SGD": 99.27, "WANN": 91.9}
"""Test accuracy on MNIST in %: Table 1, and section 4.3 for the two orders. WANN: Gaier and Ha, "Weight agnostic neural
networks", 2019, as Table 1 quotes it."""

LABELS = {"output": "RSO, default order", "input": "RSO, inverted order", "shuffled": "RSO, shuffled order"}
"""The methods' names by the order of visits."""

PAPER_2 = {
    "network": (88.7, 91.81, 91.89, 92.71, 93.01, 94.49),
    "layer": (94.85, 95.77, 96.95, 97.24, 97.25, 97.53),
    "weight": (98.24, 98.78, 98.94, 99.0, 99.08, 99.12),
}
"""Table 2: test accuracy on MNIST in % after 100,000, 200,000 … 600,000 steps, by level."""

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
    peeking = [100 * max(row.test_accuracy for row in history.cycles.rows) for history in histories]
    return {
        "final": float(final.mean()),
        "error": standard_error(final),
        "at_best_validation": sum(chosen) / len(chosen),
        "peeking": sum(peeking) / len(peeking),
    }


def tabulate_accuracy(histories: Histories) -> pandas.DataFrame:
    """Return a row for each method: runs, updates (of all weights), and what `summarise_accuracy` says, in %."""
    rows = [
        {"method": method, "runs": len(mine), "updates": mine[0].last.cycle, **summarise_accuracy(mine)}
        for method, mine in histories.items()
    ]
    return pandas.DataFrame(rows)


# Levels (Table 2)


def pick_checkpoints(history: History, count: int = 6) -> list[Report]:
    """Return the cycles that end nearest to 1/count, 2/count … of the run: of 50 cycles the 8th, 17th, 25th …

    Raises ValueError where there are fewer cycles than checkpoints.
    """
    rows = history.cycles.rows
    if len(rows) < count:
        raise ValueError(f"{count} checkpoints need as many cycles, and the run has {len(rows)}: set cycles to {count}")
    return [rows[(2 * k * len(rows) + count) // (2 * count) - 1] for k in range(1, count + 1)]


def tabulate_levels(histories: Histories) -> pandas.DataFrame:
    """Return Table 2 in %: a row for each level and six checkpoints: level, steps, accuracy, error, paper.

    The paper's checkpoints are every 100,000 steps of 600,000; `steps` is where ours are.
    """
    rows = []
    for level, mine in histories.items():
        for paper, at in zip(PAPER_2[level], zip(*map(pick_checkpoints, mine), strict=True), strict=True):
            accuracy = torch.tensor([100 * row.test_accuracy for row in at], dtype=torch.float64)
            row = {"level": level, "steps": at[0].cycle * at[0].steps, "accuracy": float(accuracy.mean())}
            rows.append({**row, "error": standard_error(accuracy), "paper": paper})
    return pandas.DataFrame(rows)


@style()
def plot_levels(table: pandas.DataFrame, paper: bool) -> Picture:
    """Draw test accuracy against steps by level: `tabulate_levels`; `paper` adds the paper's, dotted."""
    picture = new_picture(8, 3.6)
    axes = picture.subplots()
    for level, rows in table.groupby("level", sort=False):
        bars = axes.errorbar(rows.steps, rows.accuracy, rows.error, label=level, capsize=3, marker="o")
        if paper:
            colour = bars.lines[0].get_color()
            axes.plot(rows.steps, rows.paper, ":", color=colour, marker="x", label=f"{level}, paper")
    axes.set(xlabel=COSTS["steps"], ylabel="test accuracy (%)")
    axes.legend()
    ends = "; ".join(f"{level} {rows.accuracy.iloc[-1]:.2f} %" for level, rows in table.groupby("level", sort=False))
    picture.alt = f"Test accuracy against steps, by level. At the last checkpoint: {ends}."
    return picture
