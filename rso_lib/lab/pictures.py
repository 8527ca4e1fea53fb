"""Pictures of runs, losses and weights.

Every function draws on a `Picture` of its own and returns it: nothing is shown, and pyplot is not involved.
`python -m rso_lib.plots` redraws figures/NAME.png from figures/NAME.csv, for every CSV there, without training.
"""

import base64
import csv
import html
import io
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from ..algorithm import choose
from ..history import COLUMNS, History, read
from ..models import Head
from ..settings import check_choice

if TYPE_CHECKING:
    import pandas

FOLDER = Path(__file__).resolve().parents[2] / "figures"

# Okabe and Ito's colours: told apart by colour-blind readers. The line styles serve grey prints.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
GREY = "#8C8C8C"
CANDIDATES = {"kept": ("w", GREY), "plus": ("w + Δ", BLUE), "minus": ("w − Δ", VERMILION)}
"""Name and colour of the three candidates in every picture, by their columns in a history."""

STYLE: dict[Any, Any] = {
    "figure.figsize": (9, 3.6),
    "figure.dpi": 120,
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK])
    + cycler(linestyle=["-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-"]),
    "grid.color": "#DDDDDD",
    "lines.linewidth": 2,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "image.cmap": "cividis",
}
AGAINST = {
    "cycle": "updates of all weights",
    "steps": "steps (visits to a weight)",
    "image_forwards": "image-forwards",
    "seconds": "time (seconds)",
}
SCORES = {"accuracy": "accuracy (%)", "loss": "cross entropy (nats)"}
RUN_COLUMNS = ["run", "repeat", *COLUMNS]
PARTS = {"train": "training", "val": "validation", "test": "test"}

_LOCK = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """The look of the series, as a context or a decorator; matplotlib's settings are global: one thread at a time."""
    with _LOCK, matplotlib.rc_context(STYLE):
        yield


class Picture(Figure):
    """A matplotlib figure that says in words what it shows: `alt`.

    In a notebook it displays itself as an HTML image with that text, and as a PNG where HTML is not rendered.
    """

    alt = ""

    def png(self) -> bytes:
        """The picture as a PNG file, which holds `alt` as its description; 256 colours make it small."""
        about, buffer = PngInfo(), io.BytesIO()
        about.add_itxt("Description", self.alt)
        self.image().quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            buffer, "PNG", pnginfo=about
        )
        return buffer.getvalue()

    def image(self) -> Image.Image:
        """The picture in RGB."""
        canvas = FigureCanvasAgg(self)
        with style():
            canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    def save(self, path: str | Path) -> None:
        """Write the PNG file."""
        Path(path).write_bytes(self.png())

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = base64.b64encode(self.png()).decode()
        width = f"{self.get_figwidth() * 96:.0f}"
        image = f'<img alt="{html.escape(self.alt)}" width="{width}" src="data:image/png;base64,{data}">'
        return {"text/html": image, "image/png": data, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def blank(
    width: float,
    height: float,
    *,
    left: float = 0.9,
    right: float = 0.2,
    bottom: float = 0.7,
    top: float = 0.3,
    wspace: float = 0.0,
) -> Picture:
    """A picture with fixed margins, all in inches. To measure them would double the time of a drawing."""
    picture = Picture(figsize=(width, height))
    edges = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    picture.subplots_adjust(**edges, wspace=wspace)
    return picture


def whole_ticks() -> MaxNLocator:
    """Ticks at whole numbers."""
    return MaxNLocator(integer=True, steps=[1, 2, 5, 10])


# Runs

Runs = History | Sequence[History] | Mapping[str, History | Sequence[History]]


@style()
def curves(
    runs: Runs, *, parts: Sequence[str] = (), against: str = "cycle", log: bool = False, title: str = ""
) -> Picture:
    """Accuracy and loss of runs against what they cost; axes in %, nats and the unit of `against`.

    runs     a history; or several that differ in their seeds, drawn as the mean and a band from the lowest
             to the highest; or a mapping from labels to either
    parts    of the data: "train", "val", "test"; by default those that one run has, the test part of several
    against  "cycle", "steps", "image_forwards" or "seconds", all counted from the start of the run
    log      whether that axis is logarithmic
    title    above the legend: the data and the net, say

    Raises ValueError for an unknown part or axis, and where a run has not finished a cycle.
    """
    check_choice("against", against, AGAINST)
    for part in parts:
        check_choice("parts", part, PARTS)
    named = _named(runs)
    parts = parts or _parts(list(named.values()))
    columns = 3 if max(map(len, named)) <= 24 else 2  # of the legend above the panels: inside it would hide curves
    lines = -(-len(named) * len(parts) // columns) + bool(title)
    picture = blank(9, 3.33 + 0.27 * lines, top=0.2 + 0.27 * lines, wspace=0.3)
    panels = dict(zip(SCORES, picture.subplots(1, 2), strict=True))
    for label, histories in named.items():
        for part in parts:
            name = ", ".join([label] * bool(label) + [PARTS[part]] * (not label or len(parts) > 1))
            for score, axes in panels.items():
                _line(axes, histories, against, f"{part}_{score}", name)
    of = f"{PARTS[parts[0]]} " if len(parts) == 1 else ""
    for score, axes in panels.items():
        axes.set(xlabel=AGAINST[against], ylabel=of + SCORES[score], xscale="log" if log else "linear")
        low, high = axes.get_xlim()
        marks = (1, 2, 5) if log and high < 300 * low else (1,)  # more would overlap
        axes.xaxis.set_major_locator(LogLocator(subs=marks) if log else whole_ticks())
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
    panels["accuracy"].yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}")
    picture.legend(*panels["loss"].get_legend_handles_labels(), loc="upper center", ncols=columns, title=title or None)
    ends = [_end(label, histories, part) for label, histories in named.items() for part in parts]
    picture.alt = f"{title}: accuracy" if title else "Accuracy"
    picture.alt += f" (left) and loss (right) against {AGAINST[against]}. Final accuracy: {'; '.join(ends)}."
    return picture


@style()
def acceptance(history: History) -> Picture:
    """Which candidate wins: shares of w, w + Δ, w − Δ by cycle (left); share of steps that keep w, by layer (right).

    Raises ValueError where no cycle is finished.
    """
    cycles = history.cycles.frame()
    last = history.last
    picture = Picture(figsize=(9, 3.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    bottom = 0 * cycles.steps
    for column, (label, colour) in CANDIDATES.items():
        share = cycles[column] / cycles.steps
        left.bar(cycles.cycle, share, bottom=bottom, width=1, color=colour, label=label)
        bottom = bottom + share
    left.set(xlabel="cycle", ylabel="share of steps (%)", ylim=(0, 1))
    left.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)

    sweeps = History([row for row in history.rows if not row.is_cycle and row.cycle <= last.cycle]).frame()
    table = sweeps.assign(share=sweeps.kept / sweeps.steps).pivot(index="layer", columns="cycle", values="share")
    table = table.loc[list(dict.fromkeys(sweeps.layer))]
    shown = right.imshow(100 * table, aspect="auto", vmin=0, extent=(0.5, last.cycle + 0.5, len(table) - 0.5, -0.5))
    right.set(xlabel="cycle", yticks=range(len(table)), yticklabels=table.index)
    right.grid(False)
    picture.colorbar(shown, ax=right, label="steps that keep w (%)")
    for axes in (left, right):
        axes.xaxis.set_major_locator(whole_ticks())
    first, low, high = history.cycles.rows[0], table.to_numpy().min(), table.to_numpy().max()
    picture.alt = (
        f"Left: shares of the steps that w, w + Δ and w − Δ win, by cycle; w is kept in {first.kept / first.steps:.0%} "
        f"of the steps of the first cycle and in {last.kept / last.steps:.0%} of those of cycle {last.cycle}. "
        f"Right: the share that keeps w, by layer and cycle, from {low:.0%} to {high:.0%}."
    )
    return picture


# One weight


@style()
def loss_along(
    values: Tensor,
    losses: Tensor | Mapping[str, Tensor],
    candidates: Tensor | None = None,
    scores: Tensor | Mapping[str, Tensor] | None = None,
    *,
    name: str = "weight",
) -> Picture:
    """The loss along one weight while all others stay (the paper's Figure 1), and a step on it.

    values      of the weight: [K]
    losses      there, in nats: [K], or a mapping from labels, of batches say, to that
    candidates  w, w + Δ and w − Δ: [3]
    scores      their losses: [3], or a mapping with the same labels; the lowest is ringed
    name        of the weight
    """
    lines = losses if isinstance(losses, Mapping) else {"": losses}
    picture = blank(7, 3.6)
    axes = picture.subplots()
    says = [f"The loss of a batch along {name}, from {float(values.min()):.2f} to {float(values.max()):.2f}."]
    for label, y in lines.items():
        axes.plot(values.numpy(force=True), y.numpy(force=True), label=label, color=None if label else BLACK)
    if candidates is not None and scores is not None:
        marks = scores if isinstance(scores, Mapping) else {"": scores}
        x, colours = candidates.numpy(force=True), [colour for _, colour in CANDIDATES.values()]
        for value, (label, colour) in zip(x, CANDIDATES.values(), strict=True):
            axes.axvline(value, color=colour, linestyle=":", zorder=0)
            side = "center" if value == x[0] else "left" if value > x[0] else "right"
            axes.annotate(label, (value, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom", color=colour)
        for label, y in marks.items():
            winner = int(choose(y))
            axes.scatter(x, y.numpy(force=True), color=colours, s=60, zorder=3)
            axes.scatter(x[winner], float(y[winner]), s=260, facecolors="none", edgecolors=BLACK, zorder=3)
            says.append(f"{label[:1].upper() + label[1:] or 'The batch'}: {list(CANDIDATES.values())[winner][0]} wins.")
    axes.set(xlabel=f"value of {name}", ylabel=SCORES["loss"])
    if any(lines):
        axes.legend()
    picture.alt = " ".join(says)
    return picture


@style()
def sweep(losses: Tensor) -> Picture:
    """The lowest loss of each step of a sweep, in the colour of the candidate that won.

    losses  of w, w + Δ and w − Δ, in nats: [steps, 3]
    """
    winners = choose(losses.T)
    best = losses.gather(1, winners[:, None]).flatten().numpy(force=True)
    picture = blank(7, 3.6)
    axes = picture.subplots()
    axes.plot(range(1, len(best) + 1), best, color="#CCCCCC", zorder=1)
    names, colours = zip(*CANDIDATES.values(), strict=True)
    axes.scatter(range(1, len(best) + 1), best, s=8, color=[colours[k] for k in winners.tolist()])
    counts = winners.bincount(minlength=3).tolist()
    for name, colour, count in zip(names, colours, counts, strict=True):
        axes.scatter([], [], color=colour, label=f"{name} wins ({count:,})")
    axes.set(xlabel=AGAINST["steps"], ylabel=SCORES["loss"])
    axes.legend()
    wins = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    picture.alt = (
        f"The lowest of the three losses in each of {len(best):,} steps: it goes from {best[0]:.3f} to {best[-1]:.3f}. "
        f"Wins: {wins}."
    )
    return picture


# Weights and images


@style()
def weights(net: nn.Module, name: str, mark: int | None = None) -> Picture:
    """A tensor of the net as pictures, one for each pair of an input and an output channel.

    name  as in `net.named_parameters()`. The final matrix behind a flattened picture is cut into pictures too
    mark  flat index of a weight to frame, the one being visited say
    """
    weight = net.get_parameter(name).detach().cpu()
    tiles = tiles_of(net, weight)
    outputs, inputs, height, width = tiles.shape
    gap = int(height * width > 1)
    canvas = tiles.new_full((inputs, height + gap, outputs, width + gap), math.nan)
    canvas[:, :height, :, :width] = tiles.permute(1, 2, 0, 3)
    canvas = canvas.view(inputs * (height + gap), outputs * (width + gap))
    canvas = canvas[: len(canvas) - gap, : canvas.shape[1] - gap]

    scale = min(7 / canvas.shape[1], 5 / canvas.shape[0], 0.5)  # inches
    across, down = canvas.shape[1] * scale, canvas.shape[0] * scale
    picture = blank(across + 2.1, down + 1.1, right=1.2, top=0.4)
    axes = picture.subplots()
    axes.set_facecolor("#BBBBBB")
    shown = axes.imshow(canvas.numpy(), cmap="PuOr", norm=CenteredNorm(0), interpolation="nearest")
    picture.colorbar(shown, cax=axes.inset_axes((1 + 0.15 / across, 0, 0.2 / across, 1)), label="weight")
    axes.grid(False)
    axes.set(title=name, xlabel="class" if name.startswith("head.") else "output channel")
    axes.set_xticks([k * (width + gap) + (width - 1) / 2 for k in range(outputs)], [*map(str, range(outputs))])
    axes.set_yticks([k * (height + gap) + (height - 1) / 2 for k in range(inputs)], [*map(str, range(inputs))])
    axes.set_ylabel("input channel" if weight.dim() > 1 else "")
    axes.tick_params(length=0)
    picture.alt = (
        f"The {weight.numel():,} weights of {name} as {outputs} × {inputs} pictures of {height} × {width}, "
        f"from {float(weight.min()):.2f} to {float(weight.max()):.2f}."
    )
    if mark is not None:
        o, i, row, column = (int(k) for k in torch.unravel_index(torch.tensor(mark), tiles.shape))
        corner = (o * (width + gap) + column - 0.5, i * (height + gap) + row - 0.5)
        for colour, line in (("white", 5), (BLACK, 2.5)):
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=line))
        picture.alt += f" Weight {mark} is framed: {float(weight.view(-1)[mark]):.3f}."
    return picture


def tiles_of(net: nn.Module, weight: Tensor) -> Tensor:
    """A tensor of weights as [outputs, inputs, height, width]."""
    if weight.dim() == 4:
        return weight
    if weight.dim() == 1:
        return weight.view(-1, 1, 1, 1)
    outputs, features = weight.shape
    *blocks, last = net.children()
    flattened = isinstance(last, Head) and last.pool == "flatten"
    channels = len(blocks[-1].get_parameter("conv.weight")) if flattened else features
    side = math.isqrt(features // channels)
    height = side if side * side * channels == features else 1
    return weight.view(outputs, channels, height, -1)


@style()
def images(images: Tensor, captions: Sequence[object], *, title: str = "") -> Picture:
    """Images [N, C, H, W], grey or colour, side by side, a caption above each; the brightness is stretched."""
    picture = blank(9, 1.7, left=0.1, right=0.1, bottom=0.1, top=0.7 if title else 0.3, wspace=0.1)
    for k, (image, caption) in enumerate(zip(images.cpu(), captions, strict=True), 1):
        axes = picture.add_subplot(1, len(images), k)
        pixels = image.permute(1, 2, 0) - images.cpu().min()
        axes.imshow((pixels / pixels.max()).numpy(), cmap="gray", interpolation="nearest")
        axes.set(title=str(caption))
        axes.set_axis_off()
    picture.suptitle(title)
    picture.alt = f"{len(images)} images{', ' + title if title else ''}: {', '.join(map(str, captions))}."
    return picture


# figures/


def save_runs(path: str | Path, runs: Mapping[str, Sequence[History]]) -> None:
    """Write the cycles of labelled runs as one table: the columns of a history behind `run` and `repeat`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, RUN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for label, histories in runs.items():
            for k, history in enumerate(histories):
                writer.writerows({"run": label, "repeat": k, **vars(row)} for row in history.cycles.rows)


def load_runs(path: str | Path) -> dict[str, list[History]]:
    """Read what `save_runs` wrote. The CSV of one history reads as one run without a label.

    Raises ValueError, naming the file, where it is neither.
    """
    runs: dict[str, dict[str, History]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.DictReader(file)
        if lines.fieldnames != RUN_COLUMNS:
            return {"": [History.load(path)]}
        for line in lines:
            history = runs.setdefault(line["run"], {}).setdefault(line["repeat"], History())
            history.append(read(line))
    return {label: list(histories.values()) for label, histories in runs.items()}


@style()
def processes(path: str | Path) -> Picture:
    """Seconds of a cycle against the number of processes, by strategy: the table of `scaling.table` as a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    picture = blank(6, 3.6)
    axes = picture.subplots()
    says = []
    for strategy in dict.fromkeys(line["strategy"] for line in lines):
        mine = [(int(line["processes"]), float(line["seconds"])) for line in lines if line["strategy"] == strategy]
        axes.plot(*zip(*mine, strict=True), marker="o", label=strategy)
        says += [f"{strategy} with {count}: {seconds:.0f} s" for count, seconds in mine]
    axes.set(xlabel="processes", ylabel="time of a cycle (seconds)", ylim=(0, None))
    axes.xaxis.set_major_locator(whole_ticks())
    axes.legend()
    picture.alt = f"Seconds of a cycle by the number of processes. {'; '.join(says)}."
    return picture


@style()
def grid(table: "pandas.DataFrame") -> Picture:
    """A grid search for SGD: after how many steps the target was met, or how near a run came.

    table  of `sgd.grid`, in which each batch size and rate comes once
    """
    sizes, rates = (sorted(set(table[name])) for name in ("batch_size", "rate"))
    steps = np.full((len(sizes), len(rates)), math.nan)
    picture = blank(1.6 + 1.3 * steps.shape[1], 1.6 + 0.5 * steps.shape[0], left=1.1, right=0.5)
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


def read_grid(path: str | Path) -> Picture:
    """`grid` of the CSV that `sgd.grid` has written."""
    import pandas

    return grid(pandas.read_csv(path))


FIGURES: dict[str, Callable[[Path], Picture]] = {
    "processes": processes,
    "mnist_sgd_grid": read_grid,
    "cifar_sgd_grid": read_grid,
}
"""How figures/NAME.csv is drawn, where `curves` of its runs is not what is wanted."""


def redraw(folder: str | Path = FOLDER) -> list[Path]:
    """Draw NAME.png beside every NAME.csv in a folder; the paths of the pictures."""
    drawn = []
    for path in sorted(Path(folder).glob("*.csv")):
        draw = FIGURES.get(path.stem, lambda path: curves(load_runs(path)))
        drawn.append(path.with_suffix(".png"))
        draw(path).save(drawn[-1])
    return drawn


def _parts(runs: Sequence[Sequence[History]]) -> list[str]:
    """The test part of several runs; of one, all parts that there were."""
    if len(runs) > 1:
        return ["test"]
    rows = [row for history in runs[0] for row in history.cycles.rows]
    return [part for part in PARTS if not any(math.isnan(getattr(row, f"{part}_accuracy")) for row in rows)]


def _named(runs: Runs) -> dict[str, list[History]]:
    """Runs as a mapping from labels to histories."""
    named = runs if isinstance(runs, Mapping) else {"": runs}
    return {label: [given] if isinstance(given, History) else list(given) for label, given in named.items()}


def _line(axes: Axes, histories: Sequence[History], against: str, column: str, label: str) -> None:
    """The mean of a column over histories, and a band from its lowest to its highest value."""
    frames = [history.cycles.frame() for history in histories]
    length = min(len(frame) for frame in frames)
    if length == 0:
        raise ValueError(f"no cycle is finished yet in {label or 'a run'}: train for at least one")
    costs = [frame[against].cumsum() if against in ("steps", "image_forwards") else frame[against] for frame in frames]
    x = np.array([cost[:length] for cost in costs]).mean(0)
    y = np.array([frame[column][:length] for frame in frames])
    [line] = axes.plot(x, y.mean(0), label=label, marker="o" if length < 8 else None)
    if len(frames) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=line.get_color(), alpha=0.2, linewidth=0)


def _end(label: str, histories: Sequence[History], part: str) -> str:
    """The final accuracy in words."""
    ends = [getattr(history.last, f"{part}_accuracy") for history in histories]
    name = f"{label}, {PARTS[part]}" if label else PARTS[part]
    spread = f" (mean of {len(ends)} runs, {min(ends):.2%} to {max(ends):.2%})" if len(ends) > 1 else ""
    return f"{name} {sum(ends) / len(ends):.2%}{spread}"


if __name__ == "__main__":
    for path in redraw():
        print(path)
