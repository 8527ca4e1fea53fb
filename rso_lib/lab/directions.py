"""Random directions: how often a step helps in which many weights move together (notebook 06)."""

from collections.abc import Mapping

import pandas
from torch import Tensor

from .figure import BLACK, VERMILION, Picture, new_picture, style


@style()
def plot_directions(tables: Mapping[str, pandas.DataFrame]) -> Picture:
    """Draw the share of random directions that help, against the number of weights that move; a panel for each net.

    tables  with weights, factor (of σ), helps and helps_error, by the title of the panel
    """
    picture = new_picture(9, 3.6, wspace=0.15)
    panels = picture.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    ends = []
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        for factor, rows in table.groupby("factor", sort=False):
            label = "each moves by σ" if factor == 1 else f"each moves by {factor:g} σ"
            axes.errorbar(rows.weights, 100 * rows.helps, 100 * rows.helps_error, label=label, capsize=3, marker="o")
            first, last = rows.helps.iloc[0], rows.helps.iloc[-1]
            ends.append(f"{title}, {label}: {first:.0%} for one weight, {last:.0%} for all {rows.weights.iloc[-1]:,}")
        axes.set(xlabel="weights that move together", xscale="log", ylim=(0, 105), title=title)
    panels[0].set_ylabel("directions that help (%)")
    panels[-1].legend()
    picture.alt = f"The share of random directions that lower the loss, by the number of weights. {'; '.join(ends)}."
    return picture


@style()
def plot_changes(changes: Tensor, about: str, along: float) -> Picture:
    """Draw a histogram of changes of the loss, by Δ and by −Δ: [tries, 2], and the change along the gradient as a line.

    about  begins the text
    """
    best = changes.min(1).values.clamp(max=0)
    picture = new_picture(7, 3.4, top=0.6)
    axes = picture.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.hist(changes.flatten().numpy(), bins=40)
    axes.axvline(along, color=VERMILION, linestyle="--", label="a gradient step of the same length")
    axes.set(xlabel="change of the loss (nats)", ylabel=f"candidates (of {changes.numel()})")
    picture.legend(loc="upper center")
    picture.alt = (
        f"{about}: the change of the loss has a mean of {float(changes.mean()):+.2g} and a deviation of "
        f"{float(changes.std()):.2g} nats. {float((best < 0).double().mean()):.0%} of the directions help; "
        f"a step changes the loss by {float(best.mean()):.2g} on average. "
        f"A gradient step of the same length changes it by {along:+.2g}."
    )
    return picture
