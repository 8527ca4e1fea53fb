"""What a search pays, and what it gets for it: measurements and pictures of notebook 10."""

import math
from collections.abc import Mapping, Sequence

import pandas
import torch
from torch import Tensor

from ..history import History
from .cheaper import EXPECTED, IDEAS
from .figure import BLACK, BLUE, GREY, VERMILION, Picture, new_picture, set_whole_ticks, style
from .methods import METHODS
from .scoreboard import Entry, in_words, tabulate_entries
from .tables import standard_error

# The law of the kept share


def kept_share(ratio: float) -> float:
    """Return the share of visits that keep w, given σ in units of s, the spread of where the batches see the minimum.

    A step stays where the minimum is nearer than half of |Δ|: for Δ from N(0, σ) and minima from N(0, s) that has the
    probability (2/π)·atan(σ / 2s).
    """
    return 2 / math.pi * math.atan(ratio / 2)


def fit_spread(sigmas: Sequence[float], kept: Sequence[float]) -> float:
    """Return s, the spread of the minima, which brings the law nearest to some measured shares."""
    candidates = torch.logspace(-4, 2, 1201, dtype=torch.float64)
    law = 2 / math.pi * (torch.tensor([*sigmas], dtype=torch.float64) / (2 * candidates[:, None])).atan()
    return float(candidates[(law - torch.tensor([*kept], dtype=torch.float64)).square().sum(1).argmin()])


def spread_by_cycle(history: History) -> pandas.DataFrame:
    """Return a row for each sweep of a run: cycle, layer, sigma, kept (a share), and spread, the s of the law."""
    rows = [
        {"cycle": row.cycle, "layer": row.layer, "sigma": row.sigma, "kept": row.kept / row.steps}
        for row in history.rows
        if not row.is_cycle
    ]
    found = pandas.DataFrame(rows)
    ratio = 2 * (math.pi / 2 * torch.tensor(found.kept.to_numpy())).tan()
    return found.assign(spread=found.sigma / ratio.numpy())


# What a run brings


def gain_by_block(history: History) -> pandas.DataFrame:
    """Return the gain of each block of a net with batch norm in each cycle: cycle, block, gain, images.

    gain    the fall of the loss between the last sweeps of the block before and of this one, which are short; NaN for
            the first block of the run
    images  image-forwards
    """
    sweeps = [row for row in history.rows if not row.is_cycle]
    blocks = [row.layer.partition(".")[0] for row in sweeps]
    rows, level, images = [], math.nan, 0
    for row, block, following in zip(sweeps, blocks, [*blocks[1:], None], strict=True):
        images += row.image_forwards
        if block != following:
            gain = {"gain": level - row.train_loss, "images": images}
            rows.append({"cycle": row.cycle, "block": block, **gain})
            level, images = row.train_loss, 0
    return pandas.DataFrame(rows)


# The scoreboard


def tabulate_ideas(entries: Sequence[Entry], budget: int) -> pandas.DataFrame:
    """Return a row for each idea: what it was expected to bring, and how far it ends from RSO at a budget.

    Columns: idea, expected, accuracy (in %), difference (in points, seed by seed), error (of its mean), and verdict:
    whether the difference is more than twice its error.
    """
    at = {one.method: one.accuracies for one in entries if one.budget == budget}
    rows = []
    for name in filter(at.__contains__, IDEAS):
        seeds = min(len(at[name]), len(at["rso"]))
        change, mean = at[name][:seeds] - at["rso"][:seeds], float(at[name].mean())
        found, error = float(change.mean()), standard_error(change)
        verdict = "no difference seen" if abs(found) <= 2 * error else "pays" if found > 0 else "costs"
        row = {"idea": IDEAS[name].label, "expected": EXPECTED[name], "accuracy": mean}
        rows.append({**row, "difference": found, "error": error, "verdict": verdict})
    return pandas.DataFrame(rows)


@style()
def plot_board(entries: Sequence[Entry]) -> Picture:
    """Draw a panel for each budget: the test accuracy of each method in % with its standard error, the best on top.

    All panels have the order of the largest budget. RSO and backpropagation have colours of their own.
    """
    table = tabulate_entries([one for one in entries if one.method in METHODS])
    budgets = sorted(table.budget.unique())
    order = table[table.budget == budgets[-1]].sort_values("accuracy").method.tolist()
    picture = new_picture(11, 4.0, left=2.9, wspace=0.08)
    panels = picture.subplots(1, len(budgets), sharex=True, sharey=True, squeeze=False)[0]
    colours = {METHODS["rso"].label: VERMILION, METHODS["backprop"].label: BLACK}
    texts = []
    for axes, budget in zip(panels, budgets, strict=True):
        rows = table[table.budget == budget].set_index("method").reindex(order)
        for place, (method, row) in enumerate(rows.iterrows()):
            colour = colours.get(str(method), BLUE)
            axes.errorbar(row.accuracy, place, xerr=row.error, fmt="o", color=colour, markersize=7, capsize=4)
        axes.set(title=f"{in_words(budget)} image-forwards", xlabel="test accuracy (%)")
        texts.append(", ".join(f"{method} {row.accuracy:.1f}" for method, row in rows[::-1].iterrows()))
    panels[0].set_yticks(range(len(order)), order)
    each = "; ".join(f"{in_words(budget)}: {text}" for budget, text in zip(budgets, texts, strict=True))
    picture.alt = f"Test accuracy in % by image-forwards, with standard errors. {each}."
    return picture


# Pictures of the law and of noise


MANY = 30
"""Fewer visits say too little of a share."""


@style()
def plot_law(measured: pandas.DataFrame) -> Picture:
    """Draw measured shares of kept weights with standard errors against σ/s, and the law.

    measured  with layer, sigma, visits and kept; s is fitted for each layer
    """
    picture = new_picture(7.5, 3.6)
    axes = picture.subplots()
    ratios = torch.logspace(-2, 2, 100).tolist()
    axes.plot(ratios, [100 * kept_share(one) for one in ratios], color=BLACK, linestyle="-", label="the law")
    worst, texts = 0.0, []
    many = measured[measured.visits >= MANY]
    for mark, (layer, rows) in zip("osv^D", many.groupby("layer", sort=False), strict=False):
        spread = fit_spread(rows.sigma.tolist(), rows.kept.tolist())
        error = (rows.kept * (1 - rows.kept) / rows.visits) ** 0.5
        name = f"{layer}, s = {spread:.2g}"
        axes.errorbar(rows.sigma / spread, 100 * rows.kept, 100 * error, fmt=mark, markersize=7, capsize=3, label=name)
        law = [kept_share(one / spread) for one in rows.sigma]
        worst = max(worst, *(abs(a - b) for a, b in zip(law, rows.kept, strict=True)))
        texts.append(f"{layer} with s = {spread:.2g}")
    axes.set(xlabel="σ / s", ylabel="w is kept (%)", xscale="log", xlim=(0.01, 100), ylim=(0, 100))
    axes.legend(fontsize=10)
    picture.alt = (
        f"The share of visits that keep w, against σ in units of s: {'; '.join(texts)}. The law is at most "
        f"{100 * worst:.0f} points away."
    )
    return picture


@style()
def plot_spreads(spreads: pandas.DataFrame) -> Picture:
    """Draw the share of kept weights (left) and s (right) of each layer by cycle (`spread_by_cycle`)."""
    picture = new_picture(10, 3.8, right=2.4, wspace=0.35)
    panels = picture.subplots(1, 2)
    texts = []
    for mark, (layer, rows) in zip("osv^D<>", spreads.groupby("layer", sort=True), strict=False):
        for axes, values in zip(panels, (100 * rows.kept, rows.spread), strict=True):
            axes.plot(rows.cycle, values, marker=mark, markersize=5, label=str(layer))
        first, last = rows.iloc[0], rows.iloc[-1]
        texts.append(f"{layer} {first.kept:.0%} and {last.kept:.0%}, s {first.spread:.2g} and {last.spread:.2g}")
    for axes, label in zip(panels, ("w is kept (%)", "s"), strict=True):
        axes.set(xlabel="cycle", ylabel=label, ylim=(0, None))
        set_whole_ticks(axes)
    picture.legend(*panels[0].get_legend_handles_labels(), loc="center right", fontsize=10)
    picture.alt = f"Kept weights and s in the first and in the last cycle: {'; '.join(texts)}."
    return picture


@style()
def plot_noise(tables: Mapping[str, pandas.DataFrame]) -> Picture:
    """Draw the gain that a visit claims (left) and brings (right) against σ.

    tables  with sigma, kept, claimed and real, by label
    """
    picture = new_picture(9, 3.6, wspace=0.3)
    left, right = picture.subplots(1, 2)
    texts = []
    for label, rows in tables.items():
        left.plot(rows.sigma, 100 * rows.claimed, label=label)
        [line] = right.plot(rows.sigma, 100 * rows.real, label=label)
        best = rows.iloc[int(rows.real.argmax())]
        right.plot(best.sigma, 100 * best.real, "o", color=line.get_color(), markersize=9)
        at = f"σ = {best.sigma:.2g} s, where {best.kept:.0%} are kept"
        texts.append(f"{label}: best at {at}, which brings {best.real:.0%}")
    for axes, title in ((left, "what the batch claims"), (right, "what all images see")):
        axes.axhline(0, color=BLACK, linewidth=1)
        axes.set(xlabel="σ / s", xscale="log", title=title)
    left.set_ylabel("fall of the loss\n(% of the best step's)")
    right.set_ylim(-100, 70)
    right.legend(fontsize=10)
    picture.alt = f"The fall of the loss of a visit against σ. {'; '.join(texts)}."
    return picture


@style()
def plot_claims(claims: Mapping[str, Tensor]) -> Picture:
    """Draw the fall of the loss in each cycle as the batches claimed it, and as it came: [seeds, cycles, 2], in nats.

    A panel for each title. The bars are standard errors over the seeds.
    """
    picture = new_picture(9, 3.4, wspace=0.1)
    panels = picture.subplots(1, len(claims), sharey=True, squeeze=False)[0]
    texts = []
    for axes, (title, falls) in zip(panels, claims.items(), strict=True):
        means, errors = falls.mean(0), falls.std(0) / len(falls) ** 0.5
        cycles = range(1, falls.shape[1] + 1)
        axes.axhline(0, color=BLACK, linewidth=1)
        for k, (label, mark, colour) in enumerate((("claimed", "o", VERMILION), ("came", "s", BLUE))):
            axes.errorbar(cycles, means[:, k], errors[:, k], marker=mark, capsize=3, color=colour, label=label)
        axes.set(xlabel="cycle", title=title)
        set_whole_ticks(axes)
        first, last = (means[:, 1] / means[:, 0])[[0, -1]].tolist()
        texts.append(f"{title}: {first:.0%} of what was claimed came in the first cycle, {last:.0%} in the last")
    panels[0].set_ylabel("fall of the loss (nats)")
    panels[-1].legend()
    picture.alt = f"The fall of the loss in each cycle, claimed and real. {'; '.join(texts)}."
    return picture


@style()
def plot_gains(gains: pandas.DataFrame) -> Picture:
    """Draw each block's share of the images and of the fall of the loss (`gain_by_block`)."""
    picture = new_picture(7.5, 3.4)
    axes = picture.subplots()
    sums = gains.groupby("block", sort=False)[["images", "gain"]].sum()
    shares = 100 * sums / sums.sum()
    places = torch.arange(len(shares)).numpy()
    axes.axhline(0, color=BLACK, linewidth=1)
    axes.bar(places - 0.2, shares.images, 0.4, color=GREY, label="of the images")
    axes.bar(places + 0.2, shares.gain, 0.4, color=BLUE, hatch="//", label="of the fall of the loss")
    axes.set_xticks(places, shares.index)
    axes.set(ylabel="share of the run (%)")
    axes.legend(fontsize=10)
    each = ", ".join(f"{row.Index} {row.images:.0f} and {row.gain:.0f}" for row in shares.itertuples())
    picture.alt = f"Shares of the images and of the fall of the loss in %, by block: {each}."
    return picture
