"""Controls for the notebooks: pictures that answer sliders, and training that is watched and steered.

Every picture is a PNG in an HTML widget, with alt text. Everything works from the keyboard, and every
control has a name that a screen reader says (`NAMES`).
"""

import base64
import html
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter, ScalarFormatter
from PIL import Image, ImageDraw
from torch import nn

from ..data import Data
from ..proposals import DISTRIBUTIONS, ORDERS, SCHEDULES, Schedule
from ..run.sgd import SGD
from ..settings import DIRECTIONS, RSO, name_of
from .live import FAILED, FINISHED, PAUSED, READY, RUNNING, STOPPED, LiveRun, LiveSGD
from .plots import BLUE, GREEN, PURPLE, VERMILION, Picture, style, tiles_of

WIDTH, DPI = 640, 150
"""Of pictures: CSS pixels, and dots for an inch of 100 of them."""
TILES = (WIDTH, 180)
"""Size of the picture of a layer's weights."""
GAP = 6
"""Pixels between two channels in that picture; 1 where there are many."""
STILL_SECONDS = 6
"""What a live run trains before its picture is taken, with RSO_STATIC."""
FACTORS = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1.0, "2": 2.0, "4": 4.0}
"""Of σ."""
LIGHT = {"w": "#D9D9D9", "w + Δ": "#A6D8F5", "w − Δ": "#FFBE8A"}
"""The colours of the candidates, light enough to write on."""
AGAINST = {"full updates": "updates", "image-forwards": "image_forwards", "seconds": "seconds"}
"""What a curve can be drawn against, by the fields of `Score`."""
Points = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Curves by label: x and y."""
COMMANDS = ("start", "pause", "step", "stop", "reset")
WRAP = {"flex_flow": "row wrap"}

NAMES = """
<img alt="" style="display: none" src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
 onload="
  const pixel = this;
  const set = (node, key, value) => node.getAttribute(key) === value || node.setAttribute(key, value);
  const name = panel => {
    for (const slider of panel.querySelectorAll('.widget-slider')) {
      const [handle, label, value] = ['[role=slider]', 'label', '.widget-readout'].map(s => slider.querySelector(s));
      if (!handle || !label || !value) continue;
      set(handle, 'aria-label', label.textContent);
      set(handle, 'aria-valuetext', value.textContent);
    }
    for (const node of panel.querySelectorAll('[role=slider], select')) set(node, 'data-lm-suppress-shortcuts', 'true');
    for (const line of panel.querySelectorAll('.rso-status .widget-html-content')) set(line, 'aria-live', 'polite');
  };
  const begin = () => {
    const panel = pixel.closest('.rso-panel');
    if (!panel) return setTimeout(begin, 50);
    new MutationObserver(() => name(panel)).observe(panel, {childList: true, subtree: true, attributes: true});
    name(panel);
  };
  begin();
">"""
"""ipywidgets gives a slider's handle no name. This names it after the label, and says its value as it is written.

A status line is read out when it changes. Arrow keys go to the slider or menu, and not to the notebook, some of whose
shortcuts they are. All this is part of the page and fetches nothing.
"""


class Screen(widgets.HTML):
    """Where pictures appear, one after the other, in a fixed width."""

    def draw(self, png: bytes, alt: str) -> None:
        """Replace the picture. Decoded in step with the page, so that nothing flickers."""
        data = base64.b64encode(png).decode()
        self.value = (
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" decoding="sync"'
            f' style="width: {WIDTH}px; max-width: 100%">'
        )


class Text(widgets.HTML):
    """A line of text."""

    def say(self, text: str) -> None:
        self.value = f'<p style="max-width: {WIDTH}px; line-height: 1.4; margin: 0">{html.escape(text)}</p>'


class Panel(widgets.VBox):
    """A column of controls and pictures.

    With RSO_STATIC set in the environment it shows itself as HTML without controls, and runs as they are after
    some seconds of training: for notebooks that are executed to be read, since a page without a kernel has no widgets.
    """

    def __init__(self, children: Sequence[widgets.Widget]):
        super().__init__([*children, widgets.HTML(NAMES)])
        self.add_class("rso-panel")

    def still(self) -> str:
        """The texts and pictures as HTML."""
        shown = [part.value for part in parts(self) if isinstance(part, widgets.HTML) and part.value != NAMES]
        return "\n".join(shown)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if os.environ.get("RSO_STATIC"):
            watch([part.run for part in parts(self) if isinstance(part, LiveTrainer)])
            return {"text/html": self.still(), "text/plain": f"{type(self).__name__}, not live"}
        return super()._repr_mimebundle_(**kwargs)


class Explorer(Panel):
    """A picture that answers its controls.

    draw       the values of the controls, by name → a picture, whose alt text is shown below it
    controls   by name: ipywidgets with a description and a value
    """

    def __init__(self, draw: Callable[..., Picture], **controls: widgets.Widget):
        self.draw, self.controls = draw, controls
        self.screen, self.text = Screen(), Text()
        super().__init__([column(controls.values()), self.screen, self.text])
        for control in controls.values():
            control.observe(self.answer, names="value")
        self.answer()

    def answer(self, change: object = None) -> None:
        """Draw for the values that the controls have now."""
        picture = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.screen.draw(encode(picture.image()), picture.alt)
        self.text.say(picture.alt)


class LiveTrainer(Panel):
    """A net that is trained while it is watched, by `rso_lib.train`.

    net        a name in `models`, or a callable that makes a fresh net
    settings   to begin with; the controls change them from the next step on
    title      says in a race which one it is

    The controls only send commands to `run`, a `live.LiveRun`, whose thread calls `show`.
    """

    def __init__(self, net: str | Callable[[], nn.Module], data: Data, settings: Any = None, title: str = ""):
        self.run = self.make_run(net, data, settings)
        self.controls = self.make_controls(self.run.settings, len(data.train))
        self.title = title or type(self.run.settings).__name__
        self.log_axis = widgets.Checkbox(False, description="log axis for the loss", indent=False)
        self.status, self.tiles, self.winners, self.numbers = Text(), Screen(), widgets.HTML(), Text()
        self.status.add_class("rso-status")
        self.curves, self.screen = Curves({self.title: BLUE}, {"test part": BLUE, "batches": VERMILION}), Screen()
        self.drawn: tuple[object, ...] = ()
        self.draw: Callable[[], None] = self.draw_curves
        self.show(self.run)
        for control in self.controls.values():
            control.observe(self.change, names="value")
        self.log_axis.observe(lambda change: self.run.do(lambda: None), names="value")
        left = column([*self.controls.values(), self.log_axis])
        room = {"flex": "1 1 26em", "min_width": "0", "max_width": f"{WIDTH + 8}px"}  # else below the controls
        right = widgets.VBox([self.tiles, self.winners, self.numbers, self.screen], layout=room)
        super().__init__([buttons([self.run]), self.status, widgets.HBox([left, right], layout=WRAP)])

    def make_run(self, net: str | Callable[[], nn.Module], data: Data, settings: Any) -> LiveRun:
        return LiveRun(net, data, settings or RSO(batch_size=min(512, len(data.train)), cycles=50), self.show)

    def make_controls(self, settings: Any, images: int) -> dict[str, widgets.Widget]:
        """Sliders and menus by the fields of the settings, and `factor`, of σ."""
        return {
            "batch_size": batch_slider(settings.batch_size, images),
            "factor": widgets.SelectionSlider(options=FACTORS, value=1.0, description="σ times"),
            "schedule": menu("schedule of σ", SCHEDULES, settings.schedule),
            "distribution": menu("distribution", DISTRIBUTIONS, settings.distribution),
            "order": menu("order", ORDERS, settings.order),
            "direction": menu("direction", DIRECTIONS, settings.direction),
        }

    def change(self, change: object) -> None:
        """Send the settings that the controls show."""
        values = {name: control.value for name, control in self.controls.items()}
        if "factor" in values:
            values["schedule"] = scaled(values["schedule"], values.pop("factor"))
        self.run.change(**values)

    def show(self, run: LiveRun) -> None:
        """Bring texts and pictures up to date."""
        self.status.say(f"{self.title}. {status(run)}")
        self.numbers.say(numbers(run))
        self.winners.value = bar(run)
        self.tiles.draw(*layer(run))
        drawn = run.curve[-1], self.log_axis.value
        if drawn != self.drawn:
            self.drawn = drawn
            self.draw()

    def draw_curves(self) -> None:
        """Draw the curves of this run; a race draws those of all instead."""
        run = self.run
        accuracy = {self.title: line(run, "updates", "test_accuracy")}
        loss = {"test part": line(run, "updates", "test_loss"), "batches": line(run, "updates", "batch_loss")}
        png = self.curves.png(accuracy, loss, "full updates", self.log_axis.value)
        self.screen.draw(png, in_words(run))


class SGDTrainer(LiveTrainer):
    """The same for `sgd.train`. A step is an epoch, and a change begins the run anew."""

    def make_run(self, net: str | Callable[[], nn.Module], data: Data, settings: Any) -> LiveRun:
        return LiveSGD(net, data, settings or SGD(batch_size=min(128, len(data.train)), epochs=20, rate=0.1), self.show)

    def make_controls(self, settings: Any, images: int) -> dict[str, widgets.Widget]:
        rates = sorted({0.01, 0.03, 0.1, 0.3, 1.0, 3.0, settings.rate})
        return {
            "batch_size": batch_slider(settings.batch_size, images),
            "rate": widgets.SelectionSlider(options=rates, value=settings.rate, description="learning rate"),
        }


class Race(Panel):
    """Live trainers side by side, and their curves in one picture.

    The buttons on top are for all of them; each has its own below. Raises ValueError for equal titles.
    """

    def __init__(self, trainers: Sequence[LiveTrainer]):
        colours = dict(zip((trainer.title for trainer in trainers), (BLUE, VERMILION, GREEN, PURPLE), strict=False))
        if len(colours) < len(trainers):
            raise ValueError(
                f"a race needs up to four trainers with different titles, not {[t.title for t in trainers]}"
            )
        self.trainers = trainers
        self.curves, self.screen = Curves(colours, colours), Screen()
        self.against = widgets.Dropdown(options=AGAINST, description="against")
        self.log_axis = widgets.Checkbox(False, description="log axis for the loss", indent=False)
        self.draw()
        for trainer in trainers:
            trainer.draw = self.draw
        for control in (self.against, self.log_axis):
            control.observe(lambda change: trainers[0].run.do(self.draw), names="value")
        for trainer in trainers:
            trainer.layout = {"width": f"{96 // len(trainers)}%", "min_width": "24em", "padding": "0 1em 0 0"}
            for part in (trainer.screen, trainer.log_axis):  # the race has them for all
                part.layout.display = "none"
        common, side = buttons([trainer.run for trainer in trainers]), widgets.HBox(trainers, layout=WRAP)
        super().__init__([common, column([self.against, self.log_axis]), self.screen, side])

    def draw(self) -> None:
        """Draw the curves of all; called in the thread that trains."""
        runs = {trainer.title: trainer.run for trainer in self.trainers}
        accuracy, loss = (
            {title: line(run, self.against.value, score) for title, run in runs.items()}
            for score in ("test_accuracy", "test_loss")
        )
        png = self.curves.png(accuracy, loss, self.against.label, self.log_axis.value)
        self.screen.draw(png, " ".join(f"{title}: {in_words(run)}" for title, run in runs.items()))

    def still(self) -> str:
        """The race, without its runners."""
        return self.screen.value


class Curves:
    """Accuracy (left) and loss (right), drawn fast: the axes are drawn anew only when their limits change."""

    def __init__(self, accuracy: Mapping[str, str], loss: Mapping[str, str]):
        self.drawn: tuple[object, ...] = ()
        with style():
            self.figure = Figure(figsize=(WIDTH / 100, 2.5), dpi=DPI)
            self.canvas = FigureCanvasAgg(self.figure)
            self.figure.subplots_adjust(left=0.115, right=0.965, bottom=0.22, top=0.95, wspace=0.3)
            self.axes = self.figure.subplots(1, 2)
            self.lines = [
                {
                    label: axes.plot([], [], color=colour, label=label, animated=True)[0]
                    for label, colour in lines.items()
                }
                for axes, lines in zip(self.axes, (accuracy, loss), strict=True)
            ]

    def png(self, accuracy: Points, loss: Points, against: str, log: bool) -> bytes:
        """The picture of these points; `against` is written below them, `log` is the loss's axis."""
        self.axes_for(accuracy, loss, against, log)
        self.canvas.restore_region(self.background)
        for lines, points in zip(self.lines, (accuracy, loss), strict=True):
            for label, line in lines.items():
                line.set_data(*points[label])
                line.axes.draw_artist(line)
        return encode(Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB"))

    def axes_for(self, accuracy: Points, loss: Points, against: str, log: bool) -> None:
        """Draw axes that hold the points, unless they are there already; limits are powers of two, or of ten."""
        end = power(2, max([1.0, *(x for xs, _ in accuracy.values() for x in xs)]), math.ceil)
        losses = [y for _, ys in loss.values() for y in ys if 0 < y < math.inf] or [1.0]
        low = power(10, min(losses), math.floor) if log else 0.0
        high = power(10 if log else 2, max(losses), math.ceil)
        if self.drawn == (against, end, log, low, high):
            return
        with style():
            left, right = self.axes
            left.set(xlim=(0, end), ylim=(0, 1), xlabel=against, ylabel="test accuracy (%)")
            left.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
            right.set(xlim=(0, end), yscale="log" if log else "linear", xlabel=against, ylabel="loss (nats)")
            for axes in self.axes:
                axes.xaxis.set_major_formatter(EngFormatter(sep="") if end > 1000 else ScalarFormatter())
            right.set_ylim(low, high)
            right.legend(loc="upper right")
            self.canvas.draw()
            self.background = self.canvas.copy_from_bbox(self.figure.bbox)
        self.drawn = (against, end, log, low, high)


def parts(widget: widgets.Widget) -> list[widgets.Widget]:
    """A widget and all that is in it."""
    return [widget, *(part for child in getattr(widget, "children", ()) for part in parts(child))]


def watch(runs: Sequence[LiveRun], seconds: float = STILL_SECONDS) -> None:
    """Let runs train together for some seconds at most."""
    for run in runs:
        run.start()
    end = time.perf_counter() + seconds
    for run in runs:
        run.wait(lambda run: run.state == FINISHED, end - time.perf_counter())
        run.pause()
        run.wait(lambda run: run.state != RUNNING)


def column(controls: Iterable[widgets.Widget]) -> widgets.VBox:
    """Controls below each other, with room for their names."""
    controls = list(controls)
    for control in controls:
        control.style.description_width = "8em"
        control.layout.width = "23em"
    return widgets.VBox(controls)


def buttons(runs: Sequence[LiveRun]) -> widgets.HBox:
    """A button for each command, which goes to all the runs."""
    row = []
    for command in COMMANDS:
        button = widgets.Button(description=command.capitalize(), layout={"width": "6em"})
        button.on_click(lambda _, command=command: [getattr(run, command)() for run in runs])
        row.append(button)
    return widgets.HBox(row, layout=WRAP)


def batch_slider(value: int, images: int) -> widgets.SelectionSlider:
    """Powers of two, all images, and the value itself."""
    sizes = sorted({2**k for k in range(3, 13) if 2**k < images} | {value, images})
    return widgets.SelectionSlider(options=sizes, value=value, description="batch size")


def menu(description: str, names: Iterable[str], value: Any) -> widgets.Dropdown:
    """A menu of names, and of the value itself where it is a callable."""
    options = [(name, name) for name in names]
    if callable(value):
        options.append((name_of(value, {}), value))
    return widgets.Dropdown(options=options, value=value, description=description)


def scaled(schedule: str | Schedule, factor: float) -> str | Schedule:
    """A schedule whose values are multiplied by a factor."""
    if factor == 1:
        return schedule
    base = SCHEDULES[schedule] if isinstance(schedule, str) else schedule

    def times(cycle: int, cycles: int) -> float:
        return factor * base(cycle, cycles)

    times.__name__ = f"{factor:g} × {name_of(base, {})}"
    return times


# What a run looks like.


def in_words(run: LiveRun) -> str:
    """The last score."""
    score = run.curve[-1]
    batches = "" if math.isnan(score.batch_loss) else f", loss on batches {score.batch_loss:.3f}"
    return (
        f"After {score.updates:.2f} full updates: test accuracy {score.test_accuracy:.1%}, "
        f"test loss {score.test_loss:.3f}{batches}."
    )


def status(run: LiveRun) -> str:
    """The state and what can be done. It changes with the cycle only, so that it is not read out all the time."""
    last, now = (run.settings.epochs, "epoch") if isinstance(run, LiveSGD) else (run.settings.cycles, "cycle")
    at = f"{now} {min(len(run.history.cycles.rows) + 1, last)} of {last}"
    accuracy = f"Test accuracy {run.curve[-1].test_accuracy:.1%}."
    says = {
        READY: "Ready: press Start.",
        RUNNING: f"Running: {at}.",
        PAUSED: f"Paused in {at}. {accuracy}",
        STOPPED: f"Stopped in {at}; Reset begins anew. {accuracy}",
        FINISHED: f"Finished; Reset begins anew. {accuracy}",
        FAILED: f"Failed: {type(run.error).__name__}: {run.error}. Change a setting and press Start, or Reset.",
    }
    return says[run.state]


def numbers(run: LiveRun) -> str:
    """The last step, and the last score."""
    return f"{step_in_words(run)} {in_words(run)}"


def step_in_words(run: LiveRun) -> str:
    """The last visit to a weight, where there was one."""
    if run.last is None:
        return ""
    step, losses = run.last, [f"{loss:.4f}" for loss in run.last.losses.tolist()]
    place = "all weights" if step.index is None else f"weight {step.index:,}"
    delta = "" if step.index is None else f", Δ = {float(step.delta):+.3f}"
    return (
        f"Step {run.steps:,}, on {run.settings.batch(step.at.cycle):,} images: {place} of {step.layer}{delta}. "
        f"Losses {losses[0]} for w, {losses[1]} for w + Δ, {losses[2]} for w − Δ. "
        f"{list(LIGHT)[run.recent[-1]]} wins."
    )


def bar(run: LiveRun) -> str:
    """The shares of the candidates in the last steps, as a bar in HTML."""
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


def layer(run: LiveRun) -> tuple[bytes, str]:
    """The weights of the layer that is searched as pictures, the one visited last framed: a PNG, and its text."""
    matrix = [name for name, weight in run.net.named_parameters() if weight.dim() > 1][-1]
    name = run.last.layer if run.last and run.last.layer != "network" else matrix
    tiles = tiles_of(run.net, run.net.get_parameter(name).detach().cpu()).numpy()
    outputs, inputs, height, width = tiles.shape
    largest = float(np.abs(tiles).max()) or 1.0
    room = TILES[0] // outputs - width, TILES[1] // inputs - height
    gap = GAP if min(room) >= GAP else 1
    scale = max(1, min((TILES[0] // outputs - gap) // width, (TILES[1] // inputs - gap) // height, 40))
    colours = matplotlib.colormaps["PuOr"](0.5 + tiles / (2 * largest), bytes=True)[..., :3]
    canvas = np.full((inputs, height * scale + gap, outputs, width * scale + gap, 3), 255, np.uint8)
    canvas[:, gap:, :, gap:] = colours.repeat(scale, 2).repeat(scale, 3).transpose(1, 2, 0, 3, 4)
    drawn = Image.fromarray(canvas.reshape(inputs * canvas.shape[1], outputs * canvas.shape[3], 3))
    shrink = min(1.0, TILES[0] / drawn.width, TILES[1] / drawn.height)
    picture = Image.new("RGB", TILES, "white")
    picture.paste(drawn.resize((int(shrink * drawn.width), int(shrink * drawn.height))) if shrink < 1 else drawn)
    text = f"{name}: {inputs} × {outputs} pictures, from −{largest:.2f} (orange) to {largest:.2f} (purple)."
    if run.last and run.last.index is not None:
        o, i, y, x = np.unravel_index(run.last.index, tiles.shape)
        left, top = o * canvas.shape[3] + gap + x * scale, i * canvas.shape[1] + gap + y * scale
        frame(picture, int(shrink * left), int(shrink * top), max(1, int(shrink * scale)))
        text += f" Weight {run.last.index:,} is framed."
    return encode(picture), text


def frame(picture: Image.Image, x: int, y: int, side: int) -> None:
    """A square in black on white, to be seen on any colour."""
    draw = ImageDraw.Draw(picture)
    for outside, width, colour in ((4, 5, "white"), (3, 3, "black")):
        draw.rectangle((x - outside, y - outside, x + side - 1 + outside, y + side - 1 + outside), None, colour, width)


def line(run: LiveRun, x: str, y: str) -> tuple[list[float], list[float]]:
    """Two fields of the scores of a run."""
    curve = list(run.curve)
    return [getattr(score, x) for score in curve], [getattr(score, y) for score in curve]


def encode(image: Image.Image) -> bytes:
    """A PNG, in less time than the file of a picture takes."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def power(base: float, value: float, rounded: Callable[[float], int]) -> float:
    """The power of a base next to a value, above it or below."""
    return base ** rounded(math.log(value, base))
