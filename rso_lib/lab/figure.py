"""Figures for readers and listeners: one style, colours that a colour-blind reader can tell apart, and alt text."""

import base64
import html
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# Okabe and Ito's colours. The line styles serve grey prints.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#8C8C8C"
CANDIDATES = {"kept": ("w", GREY), "plus": ("w + Δ", BLUE), "minus": ("w − Δ", VERMILION)}
"""Name and colour of the three candidates in every figure, by their columns in a history."""

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

_LOCK = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """Apply the series' style, as a context or a decorator.

    Matplotlib's settings are global, so a lock lets one thread draw at a time.
    """
    with _LOCK, matplotlib.rc_context(STYLE):
        yield


class Picture(Figure):
    """A matplotlib figure with a text that says what it shows: `alt`.

    In a notebook it displays itself as an HTML image with that text, and as a PNG where HTML is not rendered.
    """

    alt = ""

    def png(self) -> bytes:
        """Return the figure as a PNG file whose description is `alt`. A palette of 256 colours keeps it small."""
        about, buffer = PngInfo(), io.BytesIO()
        about.add_itxt("Description", self.alt)
        palette = self.image().quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(buffer, "PNG", pnginfo=about)
        return buffer.getvalue()

    def image(self) -> Image.Image:
        """Draw the figure in RGB."""
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


def new_picture(
    width: float,
    height: float,
    *,
    left: float = 0.9,
    right: float = 0.2,
    bottom: float = 0.7,
    top: float = 0.3,
    wspace: float = 0.0,
) -> Picture:
    """Return an empty figure with fixed margins, all in inches. Measuring the margins would double the drawing time."""
    picture = Picture(figsize=(width, height))
    edges = {"left": left / width, "right": 1 - right / width, "bottom": bottom / height, "top": 1 - top / height}
    picture.subplots_adjust(**edges, wspace=wspace)
    return picture


def set_whole_ticks(axes: Axes) -> None:
    """Put the ticks of the x axis at whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def set_log_ticks(axes: Axes) -> None:
    """Make the x axis logarithmic, with as many marked numbers as fit beside each other, such as 20k."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
