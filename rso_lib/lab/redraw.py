"""Draw figures/NAME.png from figures/NAME.csv, for every CSV there: `python -m rso_lib figures`, or `redraw`."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas

from ..data import home
from ..history import COLUMNS, NEEDED, History, read
from ..run import cli as command
from .figure import Picture, new_picture, set_whole_ticks, style
from .pictures import plot_curves

FIGURES = home() / "figures"
RUN_COLUMNS = ["run", "repeat", *COLUMNS]


def save_runs(path: str | Path, runs: Mapping[str, Sequence[History]]) -> None:
    """Write the cycles of labelled runs as one CSV: the columns of a history behind `run` and `repeat`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, RUN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for label, histories in runs.items():
            for k, history in enumerate(histories):
                writer.writerows({"run": label, "repeat": k, **vars(row)} for row in history.cycles.rows)


def load_runs(path: str | Path) -> dict[str, list[History]]:
    """Read a CSV that `save_runs` wrote. The CSV of a single history reads as one run without a label.

    Raises ValueError, naming the file, for any other table.
    """
    runs: dict[str, dict[str, History]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if not {"run", "repeat", *NEEDED} <= {*(lines.fieldnames or ())}:
            return {"": [History.load(path)]}
        for line in lines:
            history = runs.setdefault(line["run"], {}).setdefault(line["repeat"], History())
            history.append(read(line))
    return {label: list(histories.values()) for label, histories in runs.items()}


@style()
def plot_processes(table: pandas.DataFrame) -> Picture:
    """Draw seconds of a cycle against the number of processes, by strategy: the table of `scaling.tabulate_runs`."""
    picture = new_picture(6, 3.6)
    axes = picture.subplots()
    says = []
    for strategy, rows in table.groupby("strategy", sort=False):
        axes.plot(rows.processes, rows.seconds, marker="o", label=strategy)
        pairs = zip(rows.processes, rows.seconds, strict=True)
        says += [f"{strategy} with {count}: {seconds:.0f} s" for count, seconds in pairs]
    axes.set(xlabel="processes", ylabel="time of a cycle (seconds)", ylim=(0, None))
    set_whole_ticks(axes)
    axes.legend()
    picture.alt = f"Seconds of a cycle by the number of processes. {'; '.join(says)}."
    return picture


@style()
def plot_grid(table: pandas.DataFrame) -> Picture:
    """Draw a grid search for SGD: after how many steps each run met the target, or how near it came.

    table  of `sgd.grid`, with one row for each batch size and rate
    """
    sizes, rates = (sorted(set(table[name])) for name in ("batch_size", "rate"))
    steps = np.full((len(sizes), len(rates)), math.nan)
    picture = new_picture(1.6 + 1.3 * steps.shape[1], 1.6 + 0.5 * steps.shape[0], left=1.1, right=0.5)
    axes = picture.subplots()
    says = []
    for row in table.to_dict("records"):
        y, x = sizes.index(row["batch_size"]), rates.index(row["rate"])
        steps[y, x] = met = row["updates_to_val_target"]
        text = f"{row['val_accuracy']:.2%}" if math.isnan(met) else f"{int(met):,} steps"
        axes.text(x, y, text, ha="center", va="center", bbox={"facecolor": "white", "alpha": 0.8, "lw": 0})
        says.append(f"batch {row['batch_size']:,}, rate {row['rate']:g}: {text}")
    axes.imshow(np.log(steps), aspect="auto", cmap="cividis_r")
    axes.grid(False)
    axes.set(xlabel="learning rate", ylabel="images in a step")
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    target = "a target" if math.isnan(table.target.iloc[0]) else f"{table.target.iloc[0]:.2%}"
    picture.alt = f"Steps of SGD to {target} on the validation part, or the accuracy at the end. {'; '.join(says)}."
    return picture


PLOTS: dict[str, Callable[[pandas.DataFrame], Picture]] = {
    "processes": plot_processes,
    "mnist_sgd_grid": plot_grid,
    "cifar_sgd_grid": plot_grid,
}
"""How figures/NAME.csv is drawn where it does not hold runs, which `plot_curves` draws."""


def redraw(folder: str | Path = FIGURES) -> list[Path]:
    """Draw NAME.png beside every NAME.csv in a folder, and return the paths of the pictures."""
    drawn = []
    for path in sorted(Path(folder).glob("*.csv")):
        plot = PLOTS.get(path.stem)
        picture = plot(pandas.read_csv(path)) if plot else plot_curves(load_runs(path))
        drawn.append(path.with_suffix(".png"))
        picture.save(drawn[-1])
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw figures/NAME.png from figures/NAME.csv, for every CSV there, without training."""
    command.parse("figures", main, arguments)
    with command.ending("figures"):
        for path in redraw():
            print(path)
