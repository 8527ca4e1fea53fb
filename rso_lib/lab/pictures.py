"""Pictures of runs, losses, weights and images.

Every function draws on a `Picture` of its own and returns it: nothing is shown, and pyplot is not involved.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from torch import Tensor, nn

from ..history import History
from ..models import Head, Net
from ..rules import choose
from ..settings import check_choice
from .figure import BLACK, CANDIDATES, Picture, new_picture, set_log_ticks, set_whole_ticks, style

COSTS = {
    "cycle": "updates of all weights",
    "steps": "steps (visits to a weight)",
    "image_forwards": "image-forwards",
    "seconds": "time (seconds)",
}
"""What runs are drawn against: columns of a history, and the label of their axis."""
SCORES = {"accuracy": "accuracy (%)", "loss": "cross entropy (nats)"}
PARTS = {"train": "training", "val": "validation", "test": "test"}
Runs = History | Sequence[History] | Mapping[str, History | Sequence[History]]


# Runs


@style()
def plot_curves(
    runs: Runs, *, parts: Sequence[str] = (), against: str = "cycle", log: bool = False, title: str = ""
) -> Picture:
    """Draw accuracy and loss of runs against what they cost.

    runs     a history; or several that differ in their seeds, drawn as the mean and a band from the lowest
             to the highest; or a mapping from labels to either
    parts    of the data: "train", "val", "test"; by default those that one run has, the test part of several
    against  "cycle", "steps", "image_forwards" or "seconds", all counted from the start of the run
    log      makes that axis logarithmic
    title    above the legend, such as the data and the net

    Raises ValueError for an unknown part or axis, and where a run has not finished a cycle.
    """
    check_choice("against", against, COSTS)
    for part in parts:
        check_choice("parts", part, PARTS)
    named = _by_label(runs)
    parts = parts or _choose_parts(list(named.values()))
    columns = 3 if max(map(len, named)) <= 24 else 2  # of the legend above the panels: inside it would hide curves
    lines = -(-len(named) * len(parts) // columns) + bool(title)
    picture = new_picture(9, 3.33 + 0.27 * lines, top=0.2 + 0.27 * lines, wspace=0.3)
    panels = dict(zip(SCORES, picture.subplots(1, 2), strict=True))
    for label, histories in named.items():
        for part in parts:
            name = ", ".join([label] * bool(label) + [PARTS[part]] * (not label or len(parts) > 1))
            for score, axes in panels.items():
                _plot_band(axes, histories, against, f"{part}_{score}", name)
    of = f"{PARTS[parts[0]]} " if len(parts) == 1 else ""
    for score, axes in panels.items():
        axes.set(xlabel=COSTS[against], ylabel=of + SCORES[score])
        if log:
            set_log_ticks(axes)
        else:
            set_whole_ticks(axes)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels["accuracy"].yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}")
    picture.legend(*panels["loss"].get_legend_handles_labels(), loc="upper center", ncols=columns, title=title or None)
    ends = [_describe_end(label, histories, part) for label, histories in named.items() for part in parts]
    picture.alt = f"{title}: accuracy" if title else "Accuracy"
    picture.alt += f" (left) and loss (right) against {COSTS[against]}. Final accuracy: {'; '.join(ends)}."
    return picture


def _choose_parts(runs: Sequence[Sequence[History]]) -> list[str]:
    """Return the parts to draw: the test part of several runs, or all parts that a single one has."""
    if len(runs) > 1:
        return ["test"]
    rows = [row for history in runs[0] for row in history.cycles.rows]
    return [part for part in PARTS if not any(math.isnan(getattr(row, f"{part}_accuracy")) for row in rows)]


def _by_label(runs: Runs) -> dict[str, list[History]]:
    """Return runs as a mapping from labels to lists of histories."""
    named = runs if isinstance(runs, Mapping) else {"": runs}
    return {label: [given] if isinstance(given, History) else list(given) for label, given in named.items()}


def _plot_band(axes: Axes, histories: Sequence[History], against: str, column: str, label: str) -> None:
    """Draw the mean of a column over histories, and a band from its lowest to its highest value."""
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


def _describe_end(label: str, histories: Sequence[History], part: str) -> str:
    """Return the final accuracy in words."""
    ends = [getattr(history.last, f"{part}_accuracy") for history in histories]
    name = f"{label}, {PARTS[part]}" if label else PARTS[part]
    spread = f" (mean of {len(ends)} runs, {min(ends):.2%} to {max(ends):.2%})" if len(ends) > 1 else ""
    return f"{name} {sum(ends) / len(ends):.2%}{spread}"


@style()
def plot_kept_shares(history: History, *, least: int = 20) -> Picture:
    """Draw which candidate wins, by cycle (left), and the share of steps that keep w, by layer and cycle (right).

    least  weights of a layer that is drawn on the right: a share of fewer steps is mostly noise

    Raises ValueError where no cycle is finished.
    """
    cycles = history.cycles.frame()
    last = history.last
    steps = {row.layer: row.steps for row in history.rows if not row.is_cycle}
    names = [name for name, count in steps.items() if count >= least] or list(steps)
    picture = Picture(figsize=(9, max(3.6, 1 + 0.24 * len(names))), layout="constrained")
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
    table = table.loc[names]
    shown = right.imshow(100 * table, aspect="auto", vmin=0, extent=(0.5, last.cycle + 0.5, len(table) - 0.5, -0.5))
    right.set(xlabel="cycle", yticks=range(len(table)), yticklabels=table.index)
    right.grid(False)
    picture.colorbar(shown, ax=right, label="steps that keep w (%)")
    for axes in (left, right):
        set_whole_ticks(axes)
    first, low, high = history.cycles.rows[0], table.to_numpy().min(), table.to_numpy().max()
    picture.alt = (
        f"Left: shares of the steps that w, w + Δ and w − Δ win, by cycle; w is kept in {first.kept / first.steps:.0%} "
        f"of the steps of the first cycle and in {last.kept / last.steps:.0%} of those of cycle {last.cycle}. "
        f"Right: the share that keeps w, by layer and cycle, from {low:.0%} to {high:.0%}."
    )
    return picture


# One weight


@style()
def plot_loss_along(
    values: Tensor,
    losses: Tensor | Mapping[str, Tensor],
    candidates: Tensor | None = None,
    scores: Tensor | Mapping[str, Tensor] | None = None,
    *,
    name: str = "weight",
) -> Picture:
    """Draw the loss along one weight while all others stay (the paper's Figure 1), and a step on it.

    values      of the weight: [K]
    losses      at these values, in nats: [K], or a mapping from labels (of batches, for instance) to such losses
    candidates  w, w + Δ and w − Δ: [3]
    scores      their losses: [3], or a mapping with the same labels; the lowest is ringed
    name        of the weight
    """
    lines = losses if isinstance(losses, Mapping) else {"": losses}
    picture = new_picture(7, 3.6)
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
def plot_sweep(losses: Tensor, block: int) -> Picture:
    """Draw the lowest loss of each step of a sweep (above), and which candidate won the step (below).

    losses  of w, w + Δ and w − Δ, in nats: [steps, 3]
    block   weights of an output, which are visited one after the other; the outputs are numbered above the curve
    """
    winners = choose(losses.T)
    best = losses.gather(1, winners[:, None]).flatten().numpy(force=True)
    picture = new_picture(7, 4.4, left=1.5)
    upper, lower = picture.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot(range(1, len(best) + 1), best, color=BLACK)
    names, colours = zip(*CANDIDATES.values(), strict=True)
    steps = [(winners == k).nonzero().flatten().add(1).tolist() for k in range(3)]
    lower.eventplot(steps, lineoffsets=[2, 1, 0], linelengths=0.8, linewidths=0.8, colors=list(colours))
    labels = [f"{name} ({len(won):,})" for name, won in zip(names, steps, strict=True)]
    lower.set(xlabel=COSTS["steps"], yticks=[2, 1, 0], yticklabels=labels, xticks=range(0, len(best) + 1, block))
    lower.grid(False)
    upper.set(ylabel=SCORES["loss"])
    for k in range(len(best) // block):
        upper.text((k + 0.5) * block, 1, str(k), transform=upper.get_xaxis_transform(), ha="center", va="bottom")
    picture.alt = (
        f"The lowest of the three losses in each of {len(best):,} steps: it goes from {best[0]:.3f} to {best[-1]:.3f}. "
        f"Wins: {', '.join(labels)}."
    )
    return picture


# Weights and images


class Raster(NamedTuple):
    """A tensor of weights laid out as tiles, one for each pair of an output (across) and an input channel (down).

    values  of the weights, NaN in the gaps: [rows, columns]
    tiles   the number of outputs and inputs, height and width of a tile
    gap     between two tiles, in cells
    """

    values: Tensor
    tiles: tuple[int, int, int, int]
    gap: int

    def cell(self, index: int) -> tuple[int, int]:
        """Return row and column of the weight with a flat index."""
        output, channel, y, x = map(int, np.unravel_index(index, self.tiles))
        _, _, height, width = self.tiles
        return channel * (height + self.gap) + y, output * (width + self.gap) + x


def lay_out_weights(net: nn.Module, name: str, pixels: Sequence[int] = ()) -> Raster:
    """Return a parameter of the net as tiles. The final matrix behind a flattened picture is cut into pictures, too.

    pixels  the shape of an image: in a plain module a matrix with an input for each pixel is cut into such pictures
    """
    weight = net.get_parameter(name).detach().cpu()
    outputs, inputs, height, width = shape = _tile_shape(net, weight, pixels)
    gap = int(height * width > 1)
    values = weight.new_full((inputs, height + gap, outputs, width + gap), math.nan)
    values[:, :height, :, :width] = weight.reshape(shape).permute(1, 2, 0, 3)
    values = values.view(inputs * (height + gap), outputs * (width + gap))
    return Raster(values[: len(values) - gap, : values.shape[1] - gap], shape, gap)


def _tile_shape(net: nn.Module, weight: Tensor, pixels: Sequence[int]) -> tuple[int, int, int, int]:
    if weight.dim() != 2 or not isinstance(net, Net):
        if weight.dim() == 2 and len(pixels) == 3 and weight.shape[1] == math.prod(pixels):
            return len(weight), *pixels  # type: ignore[return-value]
        outputs, inputs, *sides = (*weight.shape, 1, 1)[: max(weight.dim(), 2)]
        return outputs, inputs, math.prod(sides[:-1]), math.prod(sides[-1:])
    outputs, features = weight.shape
    *blocks, last = net.children()
    flattened = isinstance(last, Head) and last.pool == "flatten"
    channels = len(blocks[-1].get_parameter("conv.weight")) if flattened else features
    side = math.isqrt(features // channels)
    height = side if side * side * channels == features else 1
    return outputs, channels, height, features // channels // height


@style()
def plot_weights(net: nn.Module, name: str, mark: int | None = None) -> Picture:
    """Draw a parameter of the net as tiles, one for each pair of an input and an output channel.

    name  as in `net.named_parameters()`
    mark  flat index of a weight to frame, such as the one that is visited
    """
    weight, raster = net.get_parameter(name).detach().cpu(), lay_out_weights(net, name)
    outputs, inputs, height, width = raster.tiles
    rows, columns = raster.values.shape
    scale = min(7 / columns, 5 / rows, 0.5)  # inches
    across, down = columns * scale, rows * scale
    picture = new_picture(across + 2.1, down + 1.1, right=1.2, top=0.4)
    axes = picture.subplots()
    axes.set_facecolor("#BBBBBB")
    shown = axes.imshow(raster.values.numpy(), cmap="PuOr", norm=CenteredNorm(0), interpolation="nearest")
    picture.colorbar(shown, cax=axes.inset_axes((1 + 0.15 / across, 0, 0.2 / across, 1)), label="weight")
    axes.grid(False)
    axes.set(title=name, xlabel="class" if name.startswith("head.") else "output channel")
    for axis, count, size in ((axes.xaxis, outputs, width), (axes.yaxis, inputs, height)):
        middles = [k * (size + raster.gap) + (size - 1) / 2 for k in range(count)]
        axis.set_ticks(middles, [*map(str, range(count))])
    axes.set_ylabel("input channel" if weight.dim() > 1 else "")
    axes.tick_params(length=0)
    picture.alt = (
        f"The {weight.numel():,} weights of {name} as {outputs} × {inputs} pictures of {height} × {width}, "
        f"from {float(weight.min()):.2f} to {float(weight.max()):.2f}."
    )
    if mark is not None:
        row, column = raster.cell(mark)
        for colour, line in (("white", 5), (BLACK, 2.5)):
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=colour, linewidth=line))
        picture.alt += f" Weight {mark} is framed: {float(weight.view(-1)[mark]):.3f}."
    return picture


@style()
def plot_images(images: Tensor, captions: Sequence[object], *, title: str = "") -> Picture:
    """Draw images [N, C, H, W], grey or colour, side by side with a caption above each; the brightness is stretched."""
    picture = new_picture(9, 1.7, left=0.1, right=0.1, bottom=0.1, top=0.7 if title else 0.3, wspace=0.1)
    for k, (image, caption) in enumerate(zip(images.cpu(), captions, strict=True), 1):
        axes = picture.add_subplot(1, len(images), k)
        pixels = image.permute(1, 2, 0) - images.cpu().min()
        axes.imshow((pixels / pixels.max()).numpy(), cmap="gray", interpolation="nearest")
        axes.set(title=str(caption))
        axes.set_axis_off()
    picture.suptitle(title)
    picture.alt = f"{len(images)} images{', ' + title if title else ''}: {', '.join(map(str, captions))}."
    return picture
