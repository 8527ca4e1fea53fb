"""What a live run looks like: its curves, the weights of the layer that is searched, who won, and all that in words."""

import io
import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter, ScalarFormatter
from PIL import Image, ImageDraw

from ..calls import called
from ..losses import accuracies
from .figure import style
from .live import FAILED, FINISHED, PAUSED, READY, STOPPED, LiveRun
from .live_sgd import LiveSGD
from .pictures import lay_out_weights
from .valley import FONT, INK, draw_valley, name_candidate, valley_of
from .worker import RUNNING

WIDTH, DPI = 640, 150
"""Picture width in CSS pixels; dots of a picture for 100 of them."""
STEP = (2 * WIDTH, 224)
"""Size of the picture of a step, in dots, of which two are a CSS pixel."""
VALLEY = 480
"""Its left part, where the step has a valley; the weights take the rest."""
MARGIN = 12
"""Dots around the weights, so that a frame at the edge is seen."""
NAMED = 12
"""Rows and columns of tiles that are numbered, at most."""
LIGHT = {"w": "#D9D9D9", "w + Δ": "#A6D8F5", "w − Δ": "#FFBE8A"}
"""The colours of the candidates, light enough to write on."""
Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Curves by label: x and y."""


class Curves:
    """Accuracy (left) and loss (right) of runs. Axes are drawn anew only for new limits, which is 9 times as fast.

    run  one of the runs that are drawn; its metric and loss name the axes
    """

    def __init__(self, accuracy: Mapping[str, str], loss: Mapping[str, str], run: LiveRun):
        self.drawn: tuple[object, ...] = ()
        self.metric, self.unit = f"{run.part} {metric_of(run)}", unit_of(run)
        self.is_share = metric_of(run) == "accuracy"
        with style():
            self.figure = Figure(figsize=(WIDTH / 100, 1.8), dpi=DPI)
            self.canvas = FigureCanvasAgg(self.figure)
            self.figure.subplots_adjust(left=0.15, right=0.965, bottom=0.3, top=0.95, wspace=0.3)
            self.axes = self.figure.subplots(1, 2)
            self.lines = [
                {name: axes.plot([], [], color=colour, label=name, animated=True)[0] for name, colour in lines.items()}
                for axes, lines in zip(self.axes, (accuracy, loss), strict=True)
            ]

    def png(self, accuracy: Points, loss: Points, against: str, log: bool) -> bytes:
        """Draw points as a PNG; `against` is the label of the x axis, `log` makes the loss's axis logarithmic."""
        self.draw_axes(accuracy, loss, against, log)
        self.canvas.restore_region(self.background)
        for lines, points in zip(self.lines, (accuracy, loss), strict=True):
            for label, line in lines.items():
                line.set_data(*points[label])
                line.axes.draw_artist(line)
        return encode(Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB"))

    def draw_axes(self, accuracy: Points, loss: Points, against: str, log: bool) -> None:
        """Draw axes that hold the points, unless they are there already; limits are powers of two, or of ten."""
        end = _power(2, max([1.0, *(x for xs, _ in accuracy.values() for x in xs)]), math.ceil)
        losses = [y for _, ys in loss.values() for y in ys if 0 < y < math.inf] or [1.0]
        low = _power(10, min(losses), math.floor) if log else 0.0
        high = _power(10 if log else 2, max(losses), math.ceil)
        left_limits = self.limits([y for _, ys in accuracy.values() for y in ys if math.isfinite(y)])
        if self.drawn == (against, end, log, low, high, left_limits):
            return
        with style():
            left, right = self.axes
            left.set(xlim=(0, end), ylim=left_limits, xlabel=against, ylabel=self.metric)
            if self.is_share:
                left.set_ylabel(self.metric.replace(" ", "\n", 1) + " (%)")
                left.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
            right.set(xlim=(0, end), yscale="log" if log else "linear", xlabel=against, ylabel=f"loss{self.unit}")
            for axes in self.axes:
                axes.xaxis.set_major_formatter(EngFormatter(sep="") if end > 1000 else ScalarFormatter())
            right.set_ylim(low, high)
            right.legend(loc="upper right")
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.drawn = (against, end, log, low, high, left_limits)

    def limits(self, values: Sequence[float]) -> tuple[float, float]:
        """Return the limits of an axis: 0 to 1, or powers of two around values that leave this range."""
        low, high = min([0.0, *values]), max([1.0, *values])
        return (-_power(2, -low, math.ceil) if low < 0 else 0.0), _power(2, high, math.ceil)


def curve_of(run: LiveRun, x: str, y: str) -> tuple[list[float], list[float]]:
    """Return the curve of a run: two fields of its scores."""
    curve = list(run.curve)
    return [getattr(score, x) for score in curve], [getattr(score, y) for score in curve]


def _power(base: float, value: float, rounded: Callable[[float], int]) -> float:
    """Return the power of a base next to a value, above it or below."""
    return base ** rounded(math.log(value, base))


# Weights


def draw_step(run: LiveRun) -> tuple[bytes, str]:
    """Draw the last step: the loss along the visited weight (left) and its layer (right): a PNG, and its alt text."""
    valley, picture = valley_of(run), Image.new("RGB", STEP, "white")
    room = VALLEY if valley else 0
    layer, text = draw_layer(run, (STEP[0] - room, STEP[1]))
    picture.paste(layer, (room, 0))
    if valley:
        picture.paste(draw_valley(valley, (VALLEY, STEP[1])), (0, 0))
        low, high = float(valley.along.min()), float(valley.along.max())
        text += f" Along it the loss of the batch goes from {low:.4f} to {high:.4f}."
    return encode(picture), text


def draw_layer(run: LiveRun, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """Draw the weights of the layer that is searched, the one visited last framed: a picture, and its text."""
    matrix = max(reversed([*run.net.named_parameters()]), key=lambda item: min(item[1].dim(), 2))[0]  # the last one
    name = run.last.layer if run.last and run.last.layer != "network" else matrix
    raster = lay_out_weights(run.net, name, run.data.shape)
    values = raster.values.numpy()
    outputs, inputs, height, width = raster.tiles
    largest = float(np.nanmax(np.abs(values))) or 1.0
    colours = matplotlib.colormaps["PuOr"](0.5 + values / (2 * largest), bytes=True)[..., :3]
    colours[np.isnan(values)] = 255
    rows, columns = values.shape
    named = max(outputs, inputs) <= NAMED and run.net.get_parameter(name).dim() > 1
    left, top = (MARGIN + 28, MARGIN + 28) if named else (MARGIN, MARGIN)
    scale = min((size[0] - left - MARGIN) / columns, (size[1] - top - MARGIN) / rows, 60)
    scale = int(scale) if scale > 1 else scale
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    scaled = max(1, int(scale * columns)), max(1, int(scale * rows))
    picture = Image.new("RGB", size, "white")
    picture.paste(Image.fromarray(colours).resize(scaled, resampling), (left, top))
    if named:
        for k in range(outputs):
            _number(picture, k, left + scale * (k * (width + raster.gap) + width / 2), MARGIN + 10)
        for k in range(inputs):
            _number(picture, k, MARGIN + 8, top + scale * (k * (height + raster.gap) + height / 2))
    text = f"{name}: {inputs} × {outputs} pictures, from −{largest:.2f} (orange) to {largest:.2f} (purple)."
    if run.last and run.last.index is not None:
        row, column = raster.cell(run.last.index)
        _frame(picture, left + int(scale * column), top + int(scale * row), max(1, int(scale)))
        text += f" Weight {run.last.index:,} is framed."
    return picture, text


def _number(picture: Image.Image, number: int, x: float, y: float) -> None:
    """Write the number of an output or an input channel beside its tiles."""
    ImageDraw.Draw(picture).text((x, y), str(number), INK, FONT, anchor="mm")


def _frame(picture: Image.Image, x: int, y: int, side: int) -> None:
    """Draw a square in black on white, to be seen on any colour."""
    draw = ImageDraw.Draw(picture)
    for outside, width, colour in ((8, 9, "white"), (6, 6, "black")):
        draw.rectangle((x - outside, y - outside, x + side - 1 + outside, y + side - 1 + outside), None, colour, width)


def encode(image: Image.Image) -> bytes:
    """Return an image as a PNG, with little compression: that takes less time."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


# In words


def draw_wins(run: LiveRun) -> str:
    """Draw the shares of the candidates in the last steps, as a bar in HTML."""
    total = len(run.recent)
    if not total:
        return '<div style="height: 1.8em"></div>'
    shares = {label: run.recent.count(k) / total for k, label in enumerate(LIGHT)}
    text = f"Winners of the last {total} steps: " + ", ".join(f"{label} {share:.0%}" for label, share in shares.items())
    segments = "".join(
        f'<span style="width: {share:.1%}; background: {LIGHT[label]}; overflow: hidden; white-space: nowrap;'
        f' text-align: center">{label} {share:.0%}</span>'
        for label, share in shares.items()
    )
    return (
        f'<div role="img" aria-label="{text}" style="display: flex; height: 1.8em; line-height: 1.8em; color: black;'
        f' width: 100%; max-width: {WIDTH}px">{segments}</div>'
    )


def describe_score(run: LiveRun) -> str:
    """Return the last score of a run in words."""
    score = run.curve[-1]
    batches = "" if math.isnan(score.batch_loss) else f", loss on batches {score.batch_loss:.3f}"
    return f"After {score.updates:.2f} full updates: {_measured(run)}{run.part} loss {score.loss:.3f}{batches}."


def metric_of(run: LiveRun) -> str:
    """Return the name of the metric of a run."""
    metric = run.scored_by.get("metric", accuracies)
    return "accuracy" if metric is accuracies else called(metric)


def unit_of(run: LiveRun) -> str:
    """Return the unit of the loss of a run, in brackets; that of a loss of the user's is not known."""
    return "" if "loss" in run.scored_by else " (nats)"


def _measured(run: LiveRun) -> str:
    """Return the last mean of the metric in words, with a comma behind it; nothing where it is NaN."""
    value = run.curve[-1].accuracy
    said = f"{value:.1%}" if metric_of(run) == "accuracy" else f"{value:.4g}"
    return "" if math.isnan(value) else f"{run.part} {metric_of(run)} {said}, "


def describe_state(run: LiveRun) -> str:
    """Return the state and the next commands in words. They change with the cycle only, as screen readers read them."""
    last, now = (run.settings.epochs, "epoch") if isinstance(run, LiveSGD) else (run.settings.cycles, "cycle")
    at = f"{now} {min(len(run.history.cycles.rows) + 1, last)} of {last}"
    measured = _measured(run) or f"{run.part} loss {run.curve[-1].loss:.3f}, "
    accuracy = f"{measured[0].upper()}{measured[1:-2]}."
    says = {
        READY: "Ready: press Start.",
        RUNNING: f"Running: {at}.",
        PAUSED: f"Paused in {at}. {accuracy}",
        STOPPED: f"Stopped in {at}; Reset begins anew. {accuracy}",
        FINISHED: f"Finished; Reset begins anew. {accuracy}",
        FAILED: f"Failed: {type(run.error).__name__}: {run.error}. Change a setting and press Start, or Reset.",
    }
    return says[run.state]


def describe_step(run: LiveRun) -> str:
    """Return the last visit to a weight in words; nothing before the first."""
    if run.last is None:
        return ""
    step = run.last
    visited = "all weights" if step.index is None else f"weight {step.index:,}"
    delta = "" if step.index is None else f", Δ = {float(step.delta):+.3f}"
    pairs = zip(step.losses.tolist(), run.made_with.candidates, strict=True)
    losses = ", ".join(f"{loss:.4f} for {name_candidate(multiple)}" for loss, multiple in pairs)
    return (
        f"Step {run.steps:,}, on {run.made_with.batch(step.at.cycle):,} images: {visited} of {step.layer}{delta}. "
        f"Losses {losses}. {name_candidate(float(step.choice))} wins."
    )
