"""Pictures of architectures, and of what depth does (notebook 08)."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from ..models import Net
from .figure import BLACK, SKY, VERMILION, Picture, new_picture, style


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


@style()
def plot_depths(ends: Mapping[int, Mapping[str, Tensor]]) -> Picture:
    """Draw the accuracy of nets against their depth: a line for each method, of means with standard errors.

    ends  by layers and by method, the validation accuracy of each net in %
    """
    picture = new_picture(7.5, 3.6)
    axes, says = picture.subplots(), []
    for method in next(iter(ends.values())):
        values = [found[method].double() for found in ends.values()]
        means = [float(value.mean()) for value in values]
        errors = [float(value.std()) / len(value) ** 0.5 for value in values]
        axes.errorbar(list(ends), means, errors, marker="o", capsize=4, label=method)
        each = zip(means, errors, strict=True)
        says.append(f"{method}: {', '.join(f'{mean:.1f} ± {error:.1f}' for mean, error in each)} %")
    axes.set(xlabel="layers", ylabel="validation accuracy (%)", xticks=list(ends))
    axes.legend(loc="lower left")
    picture.alt = f"Nets of {', '.join(map(str, ends))} layers, means with standard errors. {'; '.join(says)}."
    return picture
