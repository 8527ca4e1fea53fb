"""What a cycle costs: architectures, operations saved, and where the time goes (notebook 08)."""

from collections.abc import Mapping

import pandas
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..history import History
from ..models import Net, count_weights
from . import bench
from .figure import BLACK, BLUE, GREY, SKY, VERMILION, Picture, new_picture, style


def count_savings(nets: Mapping[str, Net], shape: tuple[int, int, int]) -> pandas.DataFrame:
    """Count the operations of a cycle: net, weights, plain (for an image, in 10⁹), saved_by_cache, saved_by_engine.

    shape  (C, H, W) of the images

    saved_by_… is the factor by which the paper's cache (section 4.7) and our engine need fewer operations. The engine's
    are counted as in `bench.operations_per_step`.
    """
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


def tabulate_time(history: History) -> pandas.DataFrame:
    """Return where a run's seconds went: layer, steps, seconds, ms_per_step, share (of the seconds, in %).

    A layer is a block or the head, with the building of its cache. "scoring" is what the rows of whole cycles took.
    """
    frame = history.frame()
    frame["seconds"] = frame.seconds.diff().fillna(frame.seconds)
    frame["layer"] = [layer.split(".")[0] or "scoring" for layer in frame.layer]
    frame.loc[frame.layer == "scoring", "steps"] = 0
    table = frame.groupby("layer", sort=False)[["steps", "seconds"]].sum().reset_index()
    table["ms_per_step"] = 1e3 * table.seconds / table.steps.where(table.steps > 0)
    return pandas.DataFrame(table.assign(share=100 * table.seconds / table.seconds.sum()))


@style()
def plot_time(table: pandas.DataFrame) -> Picture:
    """Draw the shares of the steps and of the time, by layer: `tabulate_time`."""
    picture = new_picture(8, 1.1 + 0.4 * len(table), left=1.2)
    axes = picture.subplots()
    middles = range(len(table))
    axes.barh([y - 0.2 for y in middles], 100 * table.steps / table.steps.sum(), 0.4, color=GREY, label="steps")
    axes.barh([y + 0.2 for y in middles], table.share, 0.4, color=BLUE, label="time")
    axes.set(xlabel="share of the run (%)", yticks=middles, yticklabels=table.layer, ylim=(len(table) - 0.5, -0.5))
    axes.legend()
    rows = "; ".join(f"{row['layer']} {row['share']:.0f} %" for row in table.to_dict("records"))
    picture.alt = f"Where the time of a run goes, by layer, beside the share of the steps. Time: {rows}."
    return picture


@style()
def plot_architectures(nets: Mapping[str, Net], shape: tuple[int, int, int]) -> Picture:
    """Draw nets as rows of boxes: the output of each convolution, its pooling, and the skips.

    shape  (C, H, W) of the images
    """
    picture = new_picture(9, 1.1 * len(nets), left=0.9, right=0.1, bottom=0.1, top=0.1)
    axes = picture.subplots()
    longest, says = max(len(net.blocks) for net in nets.values()), []
    for row, (name, net) in enumerate(nets.items()):
        (_, height, width), opened = shape, 0
        for k, block in enumerate(net.blocks):
            if block.closes:
                _draw_skip(axes, opened, k, -row, dashed=block.shortcut is not None)
            opened = k if block.opens else opened
            if block.pool:
                height, width = height // 2, width // 2
            text = f"{block.conv.out_channels}\n{height}×{width}"
            _draw_box(axes, k, -row, text, SKY if block.pool else "white")
        head = net.head.linear
        _draw_box(axes, len(net.blocks), -row, f"{net.head.pool}\n{head.in_features}→{head.out_features}", "#DDDDDD")
        axes.text(-0.7, -row, name, ha="right", va="center")
        skips = sum(bool(block.closes) for block in net.blocks)
        pooled = [str(k) for k, block in enumerate(net.blocks, 1) if block.pool]
        widths = " ".join(str(block.conv.out_channels) for block in net.blocks)
        says.append(f"{name}: channels {widths}, pooling after {' and '.join(pooled)}, {skips} skips")
    axes.set(xlim=(-0.6, longest + 0.5), ylim=(0.7 - len(nets), 0.55))
    axes.set_axis_off()
    picture.alt = f"Convolutions of 3×3 from left to right, and the head behind them. {'; '.join(says)}."
    return picture


def _draw_box(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.add_patch(Rectangle((x - 0.42, y - 0.25), 0.84, 0.5, facecolor=colour, edgecolor=BLACK))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _draw_skip(axes: Axes, start: float, end: float, y: float, dashed: bool) -> None:
    """Draw a skip as an arch, from behind one box to another."""
    look = {"arrowstyle": "->", "color": VERMILION, "linestyle": "--" if dashed else "-"}
    look["connectionstyle"] = "arc3,rad=-0.25"
    axes.annotate("", (end - 0.3, y + 0.27), (start + 0.3, y + 0.27), arrowprops=look)
