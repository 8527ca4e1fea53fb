"""Controls for the notebooks: pictures that answer sliders, and training that is watched and steered.

Every picture is a PNG in an HTML widget, with alt text. Everything works from the keyboard, and every
control has a name that a screen reader says (`names.js`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as widgets
from torch import nn

from ..data import Data
from ..proposals import DISTRIBUTIONS, ORDERS, SCHEDULES, Schedule
from ..run.sgd import SGD
from ..settings import DIRECTIONS, RSO, name_of
from .figure import BLUE, GREEN, PURPLE, VERMILION, Picture
from .live import LiveRun
from .live_sgd import LiveSGD
from .live_view import (
    WIDTH,
    Curves,
    curve_of,
    describe_score,
    describe_state,
    describe_step,
    draw_step,
    draw_wins,
    encode,
)
from .panel import Panel, Screen, Text

FACTORS = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1.0, "2": 2.0, "4": 4.0}
"""What σ can be multiplied by."""
COST_MENU = {"full updates": "updates", "image-forwards": "image_forwards", "seconds": "seconds"}
"""What a curve can be drawn against, by the fields of `Score`."""
COMMANDS = ("start", "pause", "step", "stop", "reset")
WRAP = {"flex_flow": "row wrap"}


class Explorer(Panel):
    """A picture that answers its controls.

    draw       the values of the controls, by name → a picture, whose alt text is shown below it
    controls   by name: ipywidgets with a description and a value
    """

    def __init__(self, draw: Callable[..., Picture], **controls: widgets.Widget):
        super().__init__()
        self.draw, self.controls = draw, controls
        self.screen, self.text = Screen(), Text()
        self.fill([make_column(controls.values()), self.screen, self.text])
        for control in controls.values():
            control.observe(self.answer, names="value")
        self.answer()

    def answer(self, change: object = None) -> None:
        """Draw the picture for the values that the controls have now."""
        picture = self.draw(**{name: control.value for name, control in self.controls.items()})
        self.screen.draw(encode(picture.image()), picture.alt)
        self.text.say(picture.alt)


class LiveTrainer(Panel):
    """A net that is trained while it is watched, by `rso_lib.train`.

    net        a name in `models`, or a callable that makes a fresh net
    settings   to begin with; the controls change them from the next step on
    title      tells it from others in a race
    scored     loss and metric, as in `train`

    The controls only send commands to `run`, a `live.LiveRun`, whose thread calls `show`.
    """

    def __init__(
        self, net: str | Callable[[], nn.Module], data: Data, settings: Any = None, title: str = "", **scored: Any
    ):
        super().__init__()
        self.scored = scored
        self.run = self.make_run(net, data, settings)
        self.controls = self.make_controls(self.run.settings, len(data.train))
        self.title = title or type(self.run.settings).__name__
        self.log_axis = widgets.Checkbox(False, description="log axis for the loss", indent=False)
        self.status, self.tiles, self.winners, self.numbers = Text(), Screen(), widgets.HTML(), Text()
        self.status.add_class("rso-status")
        losses = {self.run.part: BLUE, "batches": VERMILION}
        self.curves, self.screen = Curves({self.title: BLUE}, losses, self.run), Screen()
        self.drawn: tuple[object, ...] = ()
        self.draw: Callable[[], None] = self.draw_curves
        self.run.show = self.show
        self.show(self.run)
        for control in self.controls.values():
            control.observe(self.change, names="value")
        self.log_axis.observe(lambda change: self.run.do(lambda: None), names="value")
        first, rest = self.sort_controls()
        buttons = make_buttons([self.run])
        buttons.children += (make_toggle("More", rest),)
        pictures = [self.tiles, self.winners, self.screen, self.numbers]
        for picture in pictures:
            picture.layout.max_width = f"{WIDTH + 8}px"
        self.fill([buttons, self.status, first, rest, *pictures])

    def make_run(self, net: str | Callable[[], nn.Module], data: Data, settings: Any) -> LiveRun:
        """Return the run that the panel shows."""
        return LiveRun(net, data, settings or RSO(batch_size=min(512, len(data.train)), cycles=50), **self.scored)

    def make_controls(self, settings: Any, images: int) -> dict[str, widgets.Widget]:
        """Return sliders and menus by the fields of the settings, and `factor`, of σ."""
        return {
            "batch_size": make_batch_slider(settings.batch_size, images),
            "factor": widgets.SelectionSlider(options=FACTORS, value=1.0, description="σ times"),
            "schedule": make_menu("schedule of σ", SCHEDULES, settings.schedule),
            "distribution": make_menu("distribution", DISTRIBUTIONS, settings.distribution),
            "order": make_menu("order", ORDERS, settings.order),
            "direction": make_menu("direction", DIRECTIONS, settings.direction),
        }

    def sort_controls(self) -> tuple[widgets.Widget, widgets.Widget]:
        """Return the sliders beside each other, which are always there, and a column of all other controls."""
        controls = [*self.controls.values(), self.log_axis]
        sliders = [one for one in controls if isinstance(one, widgets.SelectionSlider)]
        rest = make_column(one for one in controls if one not in sliders)
        return widgets.HBox(make_column(sliders, width="17em", room="5.5em").children, layout=WRAP), rest

    def change(self, change: object) -> None:
        """Send the settings that the controls show."""
        values = {name: control.value for name, control in self.controls.items()}
        if "factor" in values:
            values["schedule"] = scale_schedule(values["schedule"], values.pop("factor"))
        self.run.change(**values)

    def show(self, run: LiveRun) -> None:
        """Bring texts and pictures up to date."""
        self.status.say(f"{self.title}. {describe_state(run)}")
        self.numbers.say(f"{describe_step(run)} {describe_score(run)}")
        self.winners.value = draw_wins(run)
        self.tiles.draw(*draw_step(run))
        drawn = run.curve[-1], self.log_axis.value
        if drawn != self.drawn:
            self.drawn = drawn
            self.draw()

    def draw_curves(self) -> None:
        """Draw the curves of this run; a race draws the curves of all runs instead."""
        run, accuracy = self.run, {self.title: curve_of(self.run, "updates", "accuracy")}
        loss = {run.part: curve_of(run, "updates", "loss"), "batches": curve_of(run, "updates", "batch_loss")}
        png = self.curves.png(accuracy, loss, "full updates", self.log_axis.value)
        self.screen.draw(png, describe_score(run))


class SGDTrainer(LiveTrainer):
    """A net that is trained while it is watched, by `sgd.train`: a step is an epoch, and a change begins anew."""

    def make_run(self, net: str | Callable[[], nn.Module], data: Data, settings: Any) -> LiveRun:
        settings = settings or SGD(batch_size=min(128, len(data.train)), epochs=20, rate=0.1)
        return LiveSGD(net, data, settings, **self.scored)

    def make_controls(self, settings: Any, images: int) -> dict[str, widgets.Widget]:
        rates = sorted({0.01, 0.03, 0.1, 0.3, 1.0, 3.0, settings.rate})
        return {
            "batch_size": make_batch_slider(settings.batch_size, images),
            "rate": widgets.SelectionSlider(options=rates, value=settings.rate, description="learning rate"),
        }


class Race(Panel):
    """Live trainers side by side, and their curves in one picture.

    The buttons on top are for all of them; each has its own below. Raises ValueError for equal titles.
    """

    def __init__(self, trainers: Sequence[LiveTrainer]):
        super().__init__()
        colours = dict(zip((trainer.title for trainer in trainers), (BLUE, VERMILION, GREEN, PURPLE), strict=False))
        if len(colours) < len(trainers):
            raise ValueError(
                f"a race needs up to four trainers with different titles, not {[t.title for t in trainers]}"
            )
        self.trainers = trainers
        self.curves, self.screen = Curves(colours, colours, trainers[0].run), Screen()
        self.against = widgets.Dropdown(options=COST_MENU, description="against")
        self.log_axis = widgets.Checkbox(False, description="log axis for the loss", indent=False)
        self.draw()
        for trainer in trainers:
            trainer.draw = self.draw
        for control in (self.against, self.log_axis):
            control.observe(lambda change: trainers[0].run.do(self.draw), names="value")
        for trainer in trainers:
            trainer.layout = {"width": f"{96 // len(trainers)}%", "min_width": "24em", "padding": "0 1em 0 0"}
            for part in (trainer.screen, trainer.log_axis, trainer.waits):  # the race has them for all
                part.layout.display = "none"
        common, side = make_buttons([trainer.run for trainer in trainers]), widgets.HBox(trainers, layout=WRAP)
        self.fill([common, make_column([self.against, self.log_axis]), self.screen, side])

    def draw(self) -> None:
        """Draw the curves of all runs; called in the thread that trains."""
        runs = {trainer.title: trainer.run for trainer in self.trainers}
        accuracy, loss = (
            {title: curve_of(run, self.against.value, score) for title, run in runs.items()}
            for score in ("accuracy", "loss")
        )
        png = self.curves.png(accuracy, loss, self.against.label, self.log_axis.value)
        self.screen.draw(png, " ".join(f"{title}: {describe_score(run)}" for title, run in runs.items()))

    def still(self) -> str:
        """Return the picture of the race, without its trainers."""
        return self.screen.value


# Controls


def make_column(controls: Iterable[widgets.Widget], width: str = "23em", room: str = "8em") -> widgets.VBox:
    """Return controls below each other, with room for their names."""
    controls = list(controls)
    for control in controls:
        control.style.description_width = room
        control.layout.width = width
    return widgets.VBox(controls)


def make_toggle(description: str, hidden: widgets.Widget) -> widgets.ToggleButton:
    """Return a button that shows what is hidden, or hides it again."""
    button = widgets.ToggleButton(False, description=description, layout={"width": "5em"})
    hidden.layout.display = "none"
    button.observe(lambda change: setattr(hidden.layout, "display", None if change.new else "none"), names="value")
    return button


def make_buttons(runs: Sequence[LiveRun]) -> widgets.HBox:
    """Return a button for each command, which goes to all the runs."""
    row = []
    for command in COMMANDS:
        button = widgets.Button(description=command.capitalize(), layout={"width": "4.7em"})
        button.on_click(lambda _, command=command: [getattr(run, command)() for run in runs])
        row.append(button)
    return widgets.HBox(row, layout=WRAP)


def make_batch_slider(value: int, images: int) -> widgets.SelectionSlider:
    """Return a slider over powers of two, all images, and the value itself."""
    sizes = sorted({2**k for k in range(3, 13) if 2**k < images} | {value, images})
    return widgets.SelectionSlider(options=sizes, value=value, description="batch size")


def make_menu(description: str, names: Iterable[str], value: Any) -> widgets.Dropdown:
    """Return a menu of names, and of the value itself where it is a callable."""
    options = [(name, name) for name in names]
    if callable(value):
        options.append((name_of(value, {}), value))
    return widgets.Dropdown(options=options, value=value, description=description)


def scale_schedule(schedule: str | Schedule, factor: float) -> str | Schedule:
    """Return a schedule whose values are multiplied by a factor."""
    if factor == 1:
        return schedule
    base = SCHEDULES[schedule] if isinstance(schedule, str) else schedule

    def scaled(cycle: int, cycles: int) -> float:
        return factor * base(cycle, cycles)

    scaled.__name__ = f"{factor:g} × {name_of(base, {})}"
    return scaled
