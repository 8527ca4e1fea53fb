"""Settings against each other: several runs under one bar, and how far they end apart (notebook 03; 05 to 08)."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pandas
import torch
from tqdm import tqdm

from ..data import Data
from ..history import History
from ..models import Net
from ..proposals import SCHEDULES, generator
from ..run import folder as runs
from ..run.folder import Run
from ..settings import RSO, check_choice
from ..train import train
from .figure import BLACK, BLUE, GREY, ORANGE, VERMILION, Picture, new_picture, style
from .tables import standard_error

Result = TypeVar("Result")


def run_variants(
    variants: Mapping[str, RSO], seeds: Iterable[int], run: Callable[[str, RSO], Result], *, progress: bool = True
) -> dict[str, list[Result]]:
    """Run each of some settings with each seed, and return the results by label, one for each seed.

    run  (label, settings) → a result: `in_memory(...)`, `in_folder(...)`, or a function of yours

    With the same seed all variants begin with the same net. An interrupt ends the whole: a part of a run is no result.
    """
    jobs = [(label, seed) for seed in seeds for label in variants]
    results: dict[str, list[Result]] = {label: [] for label in variants}
    for label, seed in tqdm(jobs, unit="run", disable=not progress):
        results[label].append(run(label, replace(variants[label], seed=seed)))
    return results


def in_memory(net: Callable[..., Net], data: Data) -> Callable[[str, RSO], History]:
    """Return a way to run variants that trains fresh nets and returns their histories.

    net  (shape, classes, seed=) → a fresh net, such as `models.one_conv`
    """

    def run(label: str, settings: RSO) -> History:
        fresh = net(data.shape, len(data.classes), seed=settings.seed).to(data.train.labels.device)
        # `fit` would keep what an interrupt leaves; here the interrupt is passed on
        return History(list(train(fresh, data, settings)))  # type: ignore[arg-type]  # without steps these are reports

    return run


def in_folder(folder: str | Path, **what: Any) -> Callable[[str, RSO], Run]:
    """Return a way to run variants that keeps each run in folder/LABEL/seed_SEED, and goes on where it was stopped.

    what  dataset, net, device … as in `run.folder.start`, which raises the same errors

    Raises KeyboardInterrupt where a run was stopped: the same call goes on.
    """

    def run(label: str, settings: RSO) -> Run:
        made = runs.start(Path(folder) / label / f"seed_{settings.seed}", settings=settings, **what)
        if not made.finished:
            raise KeyboardInterrupt(
                f"the run with seed {settings.seed} was stopped; the same call goes on in {made.folder}"
            )
        return made

    return run


def tabulate_differences(
    runs: Mapping[str, Sequence[History]], default: str, field: str = "test_accuracy"
) -> pandas.DataFrame:
    """Return how far each variant ends from the default: variant, seeds, mean, difference, error.

    The difference is taken seed by seed, so that the effect of a seed's first net cancels; `error` is the standard
    error of its mean. Raises ValueError where the default is not among the runs.
    """
    check_choice("default", default, runs)
    ends = {label: torch.tensor([getattr(h.last, field) for h in histories]) for label, histories in runs.items()}
    rows = []
    for label, values in ends.items():
        change = values - ends[default]
        row = {"variant": label, "seeds": len(values), "mean": float(values.mean())}
        rows.append({**row, "difference": float(change.mean()), "error": standard_error(change)})
    return pandas.DataFrame(rows)


@style()
def plot_differences(table: pandas.DataFrame, default: str) -> Picture:
    """Draw how far each variant ends from the default, with standard errors: `tabulate_differences`."""
    rows = table[table.variant != default]
    picture = new_picture(8, 1.2 + 0.42 * len(rows), left=2.6)
    axes = picture.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.errorbar(100 * rows.difference, range(len(rows)), xerr=100 * rows.error, fmt="o", color=BLUE, capsize=4)
    axes.set(xlabel="test accuracy, difference to the default (percentage points)", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), rows.variant)
    ends = "; ".join(
        f"{row['variant']} {100 * row['difference']:+.1f} ± {100 * row['error']:.1f}" for row in rows.to_dict("records")
    )
    mean = float(table[table.variant == default]["mean"].iloc[0])
    picture.alt = f"The default ends at {mean:.1%}. Differences in points, with standard errors: {ends}."
    return picture


@style()
def plot_proposals(schedule: str, distribution: str, cycles: int) -> Picture:
    """Draw σ by cycle (left), and the distribution of Δ in the first, the middle and the last cycle (right).

    Both in units of the first σ. The other schedules are grey; a schedule's name stands where its line ends.
    """
    settings = RSO(schedule=schedule, distribution=distribution, cycles=cycles)
    shown = sorted({0, cycles // 2, cycles - 1})
    picture = new_picture(9, 3.2, wspace=0.55)
    left, right = picture.subplots(1, 2)
    ends = {}
    for name, factor in SCHEDULES.items():
        factors = [factor(cycle, cycles) for cycle in range(cycles)]
        look = {"color": BLUE, "linewidth": 3, "zorder": 3} if name == schedule else {"color": GREY, "linewidth": 1}
        left.plot(range(1, cycles + 1), factors, marker="o", markersize=4, linestyle="-", **look)
        ends[name] = factors[-1]
    lines: dict[str, float] = {}
    for name in sorted(ends, key=ends.__getitem__):
        lines[name] = max(ends[name], max(lines.values(), default=0.0) + 0.09)  # below each other, not on each other
    lower = max(0.0, max(lines.values()) - 1)
    for name, line in lines.items():
        look = {"color": BLUE if name == schedule else GREY, "fontsize": 10, "va": "center"}
        left.text(1.03, line - lower, name, transform=left.get_yaxis_transform(), **look)
    # few ticks, and titles at fixed heights: each tick takes three milliseconds
    left.set(xlabel="cycle", ylabel="σ / first σ", ylim=(0, 1.1), yticks=(0, 0.5, 1))
    left.set_title(schedule, y=1)
    draws = settings.draw()((20_000,), generator(0))
    for cycle, colour in zip(shown, (BLUE, ORANGE, VERMILION), strict=False):
        scaled = draws * settings.sigma_factor(cycle)
        right.hist(scaled, 81, (-4, 4), color=colour, histtype="step", linewidth=2, label=f"cycle {cycle + 1}")
    right.set(xlabel="Δ / first σ", ylabel="of 20,000 draws", xticks=(-2, 0, 2))
    right.yaxis.get_major_locator().set_params(nbins=3)
    right.set_title(distribution, y=1)
    right.legend(loc="upper right")
    scales = ", ".join(f"{settings.sigma_factor(cycle):.2f} in cycle {cycle + 1}" for cycle in shown)
    picture.alt = (
        f"Schedule {schedule}: σ is, in units of the first, {scales}. "
        f"Distribution {distribution}: in 20,000 draws, |Δ| is at most {float(draws.abs().max()):.1f} σ, "
        f"and {float((draws == 0).double().mean()):.0%} of them are 0."
    )
    return picture
