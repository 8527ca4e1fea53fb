"""The paper's experiments: runs that are taken up again, its tables, and why joint steps fail (section 4)."""

import atexit
import copy
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ..algorithm import cross_entropy
from ..data import Split, home
from ..engine.layers import channels_last
from ..history import History, Report
from ..models import Net, count_weights
from ..proposals import generator, sigma
from ..run import folder as runs
from ..run.folder import Run
from ..settings import RSO
from . import bench
from .experiments import standard_error
from .plots import AGAINST, BLACK, BLUE, FOLDER, GREY, SKY, VERMILION, Picture, blank, style, whole_ticks

if TYPE_CHECKING:
    import pandas

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

MNIST = {
    "mnist_5_cycles": "python -m rso_lib runs/mnist_5_cycles --dataset mnist --net mnist_net --cycles 5",
    "mnist_5_cycles_released": "python -m rso_lib runs/mnist_5_cycles_released --dataset mnist --net mnist_net "
    "--cycles 5 --schedule released",
    "mnist_5_cycles_60000": "python -m rso_lib runs/mnist_5_cycles_60000 --dataset mnist --net mnist_net --cycles 5 "
    "--val-size 0",
    "mnist_5_cycles_inverted": "python -m rso_lib runs/mnist_5_cycles_inverted --dataset mnist --net mnist_net "
    "--cycles 5 --val-size 0 --order input",
    "mnist_laptop": "python -m rso_lib runs/mnist_laptop --preset laptop",
    "mnist_paper": "python -m rso_lib runs/mnist_paper --preset paper --device cuda",
    "mnist_paper_inverted": "python -m rso_lib runs/mnist_paper_inverted --preset paper --order input --device cuda",
    "mnist_sgd": "python -m rso_lib.sgd runs/mnist_sgd --dataset mnist --net mnist_net --epochs 15 --batch-size 128 "
    "--rate 0.1 --warmup 1",
    "mnist_sgd_warmup": "python -m rso_lib.sgd runs/mnist_sgd_warmup --dataset mnist --net mnist_net --epochs 50",
}
_CIFAR = "--net cifar_net --net-options depth"
_JPEG = "--dataset folder:cifar10-jpeg " + _CIFAR
CIFAR = {
    **{
        f"cifar_depth_{depth}": f"python -m rso_lib runs/cifar_depth_{depth} {_JPEG}={depth} --cycles 2 "
        "--batch-size 200 --weight-decay 1e-4 --val-size 25000"
        for depth in (3, 5, 10)
    },
    "cifar_sgd": f"python -m rso_lib.sgd runs/cifar_sgd {_JPEG}=10 --epochs 18 --batch-size 128 --rate 0.1 --warmup 1",
    **{
        f"cifar_paper_{depth}": f"python -m rso_lib runs/cifar_paper_{depth} --dataset cifar10 {_CIFAR}={depth} "
        "--cycles 500 --batch-size 5000 --weight-decay 1e-4 --device cuda"
        for depth in (3, 5, 10)
    },
}
"""Longer runs, whose history is kept as figures/NAME.csv, and the command that repeats each, by data set."""


# Runs


def place(out: str, notebook: str, preset: str) -> Path:
    """The folder of a notebook's runs, which is made: `out`, else runs/NOTEBOOK/PRESET in `data.home()`.

    A smoke run is short: without `out` its folder lasts as long as the session.
    """
    if out or preset != "smoke":
        folder = Path(out or home() / "runs" / notebook / preset)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def repeat(folder: str | Path, settings: RSO, seeds: int, **what: Any) -> list[Run]:
    """The run of some settings with the seeds 0, 1 …, each in a folder of its own.

    what  dataset, net, device … as in `runs.start`, which raises the same errors

    Raises KeyboardInterrupt where a run was stopped: it is no result yet, and the same call goes on.
    """
    made = []
    for seed in range(seeds):
        run = runs.start(Path(folder) / f"seed_{seed}", settings=replace(settings, seed=seed), **what)
        if not run.finished:
            raise KeyboardInterrupt(f"the run with seed {seed} was stopped; the same call goes on in {run.folder}")
        made.append(run)
    return made


def committed(folder: str | Path = FOLDER, commands: Mapping[str, str] = MNIST) -> dict[str, list[History]]:
    """The longer runs whose histories are in `figures/`, by name; one each, in a list."""
    paths = {name: Path(folder) / f"{name}.csv" for name in commands}
    return {name: [History.load(path)] for name, path in paths.items() if path.exists()}


def committed_table(folder: str | Path = FOLDER, commands: Mapping[str, str] = MNIST) -> "pandas.DataFrame":
    """What the longer runs reached, in %, and their commands. A run that is not there has NaN: not measured yet."""
    import pandas

    there = committed(folder, commands)
    rows = []
    for name, command in commands.items():
        found = {"cycles": there[name][0].last.cycle, **scores(there[name])} if name in there else {}
        rows.append({"run": name, **found, "command": command})
    columns = ["run", "cycles", "final", "at_best_validation", "command"]
    return pandas.DataFrame(rows, columns=columns)


# Tables


def scores(histories: Sequence[History]) -> dict[str, float]:
    """Test accuracies in %, means over runs: at the end (with its standard error), where validation is best (NaN where
    there was none), and the highest of all, which is no result: it is chosen on the test part."""
    final = torch.tensor([100 * history.last.test_accuracy for history in histories], dtype=torch.float64)
    chosen = [100 * history.best.test_accuracy if history.validated else math.nan for history in histories]
    peeking = [100 * max(row.test_accuracy for row in history.cycles.rows) for history in histories]
    return {
        "final": float(final.mean()),
        "error": standard_error(final),
        "at_best_validation": sum(chosen) / len(chosen),
        "peeking": sum(peeking) / len(peeking),
    }


def table_1(histories: Mapping[str, Sequence[History]]) -> "pandas.DataFrame":
    """Table 1 in %, with the paper's numbers: a row for each method, NaN where it was not run.

    histories  by the methods' names in `PAPER_1`

    Columns: method, runs, updates (of all weights), final, error, at_best_validation, paper.
    """
    return _beside(PAPER_1, histories)


def table_3(histories: Mapping[str, Sequence[History]]) -> "pandas.DataFrame":
    """Table 3 and the accuracy of SGD, as `table_1`; histories by the names in `PAPER_3`."""
    return _beside(PAPER_3, histories)


def _beside(paper: Mapping[str, float], histories: Mapping[str, Sequence[History]]) -> "pandas.DataFrame":
    import pandas

    rows = []
    for method in dict.fromkeys([*paper, *histories]):
        mine = histories.get(method, ())
        found = {"updates": mine[0].last.cycle, **scores(mine)} if mine else {}
        rows.append({"method": method, "runs": len(mine), **found, "paper": paper.get(method, math.nan)})
    columns = ["method", "runs", "updates", "final", "error", "at_best_validation", "paper"]
    return pandas.DataFrame(rows, columns=columns)


def peeking(histories: Mapping[str, Sequence[History]]) -> "pandas.DataFrame":
    """Three ways to report the same runs, in %: method, final, at_best_validation, peeking, gained (by peeking)."""
    import pandas

    rows = [{"method": method, **scores(mine)} for method, mine in histories.items()]
    frame = pandas.DataFrame(rows, columns=["method", "final", "at_best_validation", "peeking"])
    return frame.assign(gained=frame.peeking - frame.final)


def early(histories: Mapping[str, Sequence[History]], updates: int = 5) -> "pandas.DataFrame":
    """After a few updates of all weights: method, updates (fewer in a shorter run), accuracy (test, in %)."""
    import pandas

    rows = []
    for method, mine in histories.items():
        at = [history.cycles.rows[:updates][-1] for history in mine]
        accuracy = 100 * sum(row.test_accuracy for row in at) / len(at)
        rows.append({"method": method, "updates": at[0].cycle, "accuracy": accuracy})
    return pandas.DataFrame(rows)


def kept(histories: Mapping[str, Sequence[History]]) -> "pandas.DataFrame":
    """How often a step keeps w, in %: method, first_cycle, last_cycle, all_cycles. Means over the runs."""
    import pandas

    rows = []
    for method, mine in histories.items():
        counts = torch.tensor([[[row.kept, row.steps] for row in history.cycles.rows] for history in mine]).sum(0)
        shares = {"first_cycle": counts[0], "last_cycle": counts[-1], "all_cycles": counts.sum(0)}
        rows.append({"method": method, **{name: float(100 * k / n) for name, (k, n) in shares.items()}})
    return pandas.DataFrame(rows)


def checkpoints(history: History, count: int = 6) -> list[Report]:
    """The cycles that end nearest to 1/count, 2/count … of the run: of 50 cycles the 8th, 17th, 25th, 33rd, 42nd, 50th.

    Raises ValueError where there are fewer cycles than checkpoints.
    """
    rows = history.cycles.rows
    if len(rows) < count:
        raise ValueError(f"{count} checkpoints need as many cycles, and the run has {len(rows)}: set cycles to {count}")
    return [rows[(2 * k * len(rows) + count) // (2 * count) - 1] for k in range(1, count + 1)]


def table_2(histories: Mapping[str, Sequence[History]]) -> "pandas.DataFrame":
    """Table 2 in %: a row for each level and six checkpoints: level, steps, accuracy, error, paper.

    histories  by level, one for each seed

    The paper's checkpoints are every 100,000 steps of 600,000; `steps` is where ours are.
    """
    import pandas

    rows = []
    for level, mine in histories.items():
        for k, at in enumerate(zip(*map(checkpoints, mine), strict=True)):
            accuracy = torch.tensor([100 * row.test_accuracy for row in at], dtype=torch.float64)
            rows.append(
                {
                    "level": level,
                    "steps": at[0].cycle * at[0].steps,
                    "accuracy": float(accuracy.mean()),
                    "error": standard_error(accuracy),
                    "paper": PAPER_2[level][k],
                }
            )
    return pandas.DataFrame(rows)


def decreases(history: History) -> "pandas.DataFrame":
    """How much each sweep lowers the loss: cycle, layer, kept (share of the steps), loss, decrease.

    The loss of a sweep is the mean over its steps; `decrease` is the share of the sweep before's that is gone. The
    first sweep of a run has none before it.
    """
    frame = History([row for row in history.rows if not row.is_cycle]).frame()
    loss = frame.train_loss
    return frame[["cycle", "layer"]].assign(kept=frame.kept / frame.steps, loss=loss, decrease=1 - loss / loss.shift())


# What a cycle costs


def savings(nets: Mapping[str, Net], shape: tuple[int, int, int]) -> "pandas.DataFrame":
    """Operations of a cycle, counted: net, weights, plain (for an image, in units of 10⁹), and by which factor the
    paper's cache (section 4.7) and our engine do fewer.

    shape  (C, H, W) of the images

    The engine's count is that of `bench.operations_per_step`.
    """
    import pandas

    rows = []
    for name, net in nets.items():
        counts, weights = bench.operations(net, shape), [count_weights(layer) for layer in net.layers]
        steps = [bench.operations_per_step(counts, k, 1) for k in range(len(counts))]
        plain, cached, engine = (
            sum(w * step[method] for w, step in zip(weights, steps, strict=True))
            for method in ("plain", "cached", "engine")
        )
        row = {"net": name, "weights": sum(weights), "plain": plain / 1e9}
        rows.append({**row, "saved_by_cache": plain / cached, "saved_by_engine": plain / engine})
    return pandas.DataFrame(rows)


def time_by_layer(history: History) -> "pandas.DataFrame":
    """Where a run's seconds went: layer, steps, seconds, ms_per_step, share (of the seconds, in %).

    A layer is a block or the head; building its cache counts. "scoring" is what the rows of whole cycles took.
    """
    import pandas

    frame = history.frame()
    frame["seconds"] = frame.seconds.diff().fillna(frame.seconds)
    frame["layer"] = [layer.split(".")[0] or "scoring" for layer in frame.layer]
    frame.loc[frame.layer == "scoring", "steps"] = 0
    table = frame.groupby("layer", sort=False)[["steps", "seconds"]].sum().reset_index()
    table["ms_per_step"] = 1e3 * table.seconds / table.steps.where(table.steps > 0)
    return pandas.DataFrame(table.assign(share=100 * table.seconds / table.seconds.sum()))


def progress(histories: Mapping[str, Sequence[History]], cycles: int) -> "pandas.DataFrame":
    """How much of a run of so many cycles is there, and what the rest takes at the same pace.

    Columns: run, cycles, of, hours, hours_to_the_end. Only the first history of each name counts.
    """
    import pandas

    rows = []
    for name, [history, *_] in histories.items():
        last = history.last
        hours = last.seconds / 3600
        rest = hours / last.cycle * (cycles - last.cycle)
        rows.append({"run": name, "cycles": last.cycle, "of": cycles, "hours": hours, "hours_to_the_end": rest})
    return pandas.DataFrame(rows, columns=["run", "cycles", "of", "hours", "hours_to_the_end"])


# Random directions


@torch.no_grad()
def changes(
    net: nn.Module, split: Split, weights: int, *, factor: float = 1.0, tries: int = 100, seed: int = 0
) -> Tensor:
    """How the loss of a batch changes when some weights move together: [tries, 2], nats, float64.

    split    the batch; batch norm takes its statistics
    weights  how many move, chosen by chance for every try among all weights of the net
    factor   of each layer's σ

    Columns: by Δ and by −Δ. The net stays as it is.
    """
    net = copy.deepcopy(net).train()
    x, start = channels_last(split.images), parameters_to_vector(net.parameters())
    scale = torch.cat([start.new_full((w.numel(),), sigma(w) * factor) for w in net.parameters()])

    def loss(values: Tensor) -> Tensor:
        vector_to_parameters(values, net.parameters())
        return cross_entropy(net(x), split.labels)

    base, rng, found = loss(start.clone()), generator(seed, weights), []
    for _ in range(tries):
        moved = torch.randperm(len(start), generator=rng)[:weights].to(start.device)
        delta = torch.zeros_like(start)
        delta[moved] = torch.randn(weights, generator=rng).to(start) * scale[moved]
        found.append(torch.stack([loss(start + delta), loss(start - delta)]) - base)
    return torch.stack(found).cpu()


def directions(
    net: nn.Module, split: Split, sizes: Sequence[int], factors: Sequence[float], *, tries: int = 100, seed: int = 0
) -> "pandas.DataFrame":
    """Steps in random directions: weights, factor, helps, helps_error, gain, gain_error.

    helps  share of the directions in which w + Δ or w − Δ has a lower loss than w
    gain   by how much a step lowers the loss in the mean, in nats; 0 where w is kept

    Errors are standard errors over the tries. Other arguments as in `changes`.
    """
    import pandas
    from tqdm import tqdm

    rows = []
    for factor in tqdm(factors, unit="factor"):
        for size in sizes:
            best = -changes(net, split, size, factor=factor, tries=tries, seed=seed).min(1).values
            row: dict[str, Any] = {"weights": size, "factor": factor}
            for name, value in (("helps", (best > 0).double()), ("gain", best.clamp(min=0))):
                row |= {name: float(value.mean()), f"{name}_error": standard_error(value)}
            rows.append(row)
    return pandas.DataFrame(rows)


def sizes(net: nn.Module) -> list[int]:
    """1, 8, 64 … and all weights of a net."""
    total = count_weights(net)
    return [*(8**k for k in range(math.ceil(math.log(total, 8)))), total]


# Pictures


@style()
def architectures(nets: Mapping[str, Net], shape: tuple[int, int, int]) -> Picture:
    """Nets as rows of boxes: what each convolution gives out, its pooling, and the skips from opening to closing.

    shape  (C, H, W) of the images
    """
    picture = blank(9, 1.1 * len(nets), left=0.9, right=0.1, bottom=0.1, top=0.1)
    axes = picture.subplots()
    longest, says = max(len(net.blocks) for net in nets.values()), []
    for row, (name, net) in enumerate(nets.items()):
        (_, height, width), opened = shape, 0
        for k, block in enumerate(net.blocks):
            if block.closes:
                _arch(axes, opened, k, -row, dashed=block.shortcut is not None)
            opened = k if block.opens else opened
            if block.pool:
                height, width = height // 2, width // 2
            text = f"{block.conv.out_channels}\n{height}×{width}"
            _box(axes, k, -row, text, SKY if block.pool else "white")
        head = net.head.linear
        _box(axes, len(net.blocks), -row, f"{net.head.pool}\n{head.in_features}→{head.out_features}", "#DDDDDD")
        axes.text(-0.7, -row, name, ha="right", va="center")
        skips = sum(bool(block.closes) for block in net.blocks)
        pooled = [str(k) for k, block in enumerate(net.blocks, 1) if block.pool]
        widths = " ".join(str(block.conv.out_channels) for block in net.blocks)
        says.append(f"{name}: channels {widths}, pooling after {' and '.join(pooled)}, {skips} skips")
    axes.set(xlim=(-0.6, longest + 0.5), ylim=(0.7 - len(nets), 0.55))
    axes.set_axis_off()
    picture.alt = f"Convolutions of 3×3 from left to right, and the head behind them. {'; '.join(says)}."
    return picture


def _box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((x - 0.42, y - 0.25), 0.84, 0.5, facecolor=colour, edgecolor=BLACK))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _arch(axes: Axes, start: float, end: float, y: float, dashed: bool) -> None:
    """A skip, from behind one box to another."""
    look = {"arrowstyle": "->", "color": VERMILION, "linestyle": "--" if dashed else "-"}
    look["connectionstyle"] = "arc3,rad=-0.25"
    axes.annotate("", (end - 0.3, y + 0.27), (start + 0.3, y + 0.27), arrowprops=look)


@style()
def time_bars(table: "pandas.DataFrame") -> Picture:
    """Shares of the steps and of the time by layer: the table of `time_by_layer`."""
    picture = blank(8, 1.1 + 0.4 * len(table), left=1.2)
    axes = picture.subplots()
    places = range(len(table))
    axes.barh([y - 0.2 for y in places], 100 * table.steps / table.steps.sum(), 0.4, color=GREY, label="steps")
    axes.barh([y + 0.2 for y in places], table.share, 0.4, color=BLUE, label="time")
    axes.set(xlabel="share of the run (%)", yticks=places, yticklabels=table.layer, ylim=(len(table) - 0.5, -0.5))
    axes.legend()
    rows = "; ".join(f"{row['layer']} {row['share']:.0f} %" for row in table.to_dict("records"))
    picture.alt = f"Where the time of a run goes, by layer, beside the share of the steps. Time: {rows}."
    return picture


@style()
def decrease_map(history: History) -> Picture:
    """By what share the loss falls in each sweep, by layer and cycle; blue-purple is a fall, orange a rise."""
    table = decreases(history)
    grid = 100 * table.pivot(index="layer", columns="cycle", values="decrease")
    grid = grid.loc[list(dict.fromkeys(table.layer))]
    picture = blank(9, 1.2 + 0.3 * len(grid), left=2.2)
    axes = picture.subplots()
    extent = (0.5, grid.shape[1] + 0.5, len(grid) - 0.5, -0.5)
    shown = axes.imshow(grid, aspect="auto", cmap="PuOr", norm=CenteredNorm(0), extent=extent, interpolation="nearest")
    axes.set(xlabel="cycle", yticks=range(len(grid)), yticklabels=grid.index)
    axes.grid(False)
    axes.xaxis.set_major_locator(whole_ticks())
    picture.colorbar(shown, ax=axes, label="fall of the loss (%)")
    rows = "; ".join(f"{layer} {value:+.1f} %" for layer, value in grid.mean(axis=1).items())
    picture.alt = f"The share by which the loss falls in a sweep, by layer and cycle. Means over the cycles: {rows}."
    return picture


@style()
def direction_curves(tables: Mapping[str, "pandas.DataFrame"]) -> Picture:
    """The chance that a random direction helps against the number of weights that move; a panel for each net.

    tables  of `directions`, by what is said about the net
    """
    picture = blank(9, 3.6, wspace=0.15)
    panels = picture.subplots(1, len(tables), sharey=True, squeeze=False)[0]
    ends = []
    for axes, (title, table) in zip(panels, tables.items(), strict=True):
        for factor, rows in table.groupby("factor", sort=False):
            label = "σ" if factor == 1 else f"{factor:g} σ"
            axes.errorbar(rows.weights, 100 * rows.helps, 100 * rows.helps_error, label=label, capsize=3, marker="o")
            first, last = rows.helps.iloc[0], rows.helps.iloc[-1]
            ends.append(f"{title}, {label}: {first:.0%} for one weight, {last:.0%} for all {rows.weights.iloc[-1]:,}")
        axes.set(xlabel="weights that move together", xscale="log", ylim=(0, 105), title=title)
    panels[0].set_ylabel("directions that help (%)")
    panels[-1].legend()
    picture.alt = f"The share of random directions that lower the loss, by the number of weights. {'; '.join(ends)}."
    return picture


@style()
def change_histogram(values: Tensor, about: str) -> Picture:
    """Changes of the loss by random directions, `changes`: by Δ and −Δ together, and what the best of three gains."""
    best = values.min(1).values.clamp(max=0)
    picture = blank(7, 3.2)
    axes = picture.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.hist(values.flatten().numpy(), bins=40)
    axes.set(xlabel="change of the loss (nats)", ylabel=f"of {values.numel()} candidates")
    picture.alt = (
        f"{about}: the change of the loss has a mean of {float(values.mean()):+.2g} and a deviation of "
        f"{float(values.std()):.2g} nats. {float((best < 0).double().mean()):.0%} of the directions help; "
        f"a step changes the loss by {float(best.mean()):.2g} in the mean."
    )
    return picture


@style()
def level_curves(table: "pandas.DataFrame", paper: bool) -> Picture:
    """Table 2 as a picture: test accuracy against steps by level; dotted where the paper's are asked for."""
    picture = blank(8, 3.6)
    axes = picture.subplots()
    for level, rows in table.groupby("level", sort=False):
        bars = axes.errorbar(rows.steps, rows.accuracy, rows.error, label=level, capsize=3, marker="o")
        if paper:
            colour = bars.lines[0].get_color()
            axes.plot(rows.steps, rows.paper, ":", color=colour, marker="x", label=f"{level}, paper")
    axes.set(xlabel=AGAINST["steps"], ylabel="test accuracy (%)")
    axes.legend()
    ends = "; ".join(f"{level} {rows.accuracy.iloc[-1]:.2f} %" for level, rows in table.groupby("level", sort=False))
    picture.alt = f"Test accuracy against steps, by level. At the last checkpoint: {ends}."
    return picture
