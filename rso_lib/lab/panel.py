"""Panels: columns of controls and pictures that live as long as the kernel, and what is left without it."""

import base64
import html
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import ipywidgets as widgets
from IPython.core.getipython import get_ipython
from IPython.display import display

from .live import FINISHED, LiveRun
from .live_view import WIDTH
from .worker import RUNNING

STILL_SECONDS = 6
"""How long a live run trains before its picture is taken, with RSO_STATIC."""
WAITS = '<p style="font-size: 85%; margin: 0">While a cell is running, a click has to wait for its end.</p>'
"""What stands below every panel."""
SAVED = "This is how it looked when the notebook was saved. To use it, run all cells: Run, Run All Cells in the menu."


class Screen(widgets.HTML):
    """A place where pictures appear, one after the other, in a fixed width."""

    def draw(self, png: bytes, alt: str) -> None:
        """Replace the picture. The page decodes it in step, so that nothing flickers."""
        data = base64.b64encode(png).decode()
        self.value = (
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" decoding="sync"'
            f' style="width: {WIDTH}px; max-width: 100%">'
        )


class Text(widgets.HTML):
    """A line of text."""

    def say(self, text: str) -> None:
        """Replace the text."""
        self.value = f'<p style="max-width: {WIDTH}px; line-height: 1.4; margin: 0">{html.escape(text)}</p>'


class Aside(widgets.HTML):
    """HTML that stands only where a kernel is."""


class Names(anywidget.AnyWidget):
    """Names for the controls of the panel around it, which its script gives them in the page."""

    _esm = Path(__file__).with_name("names.js")


class Panel(widgets.VBox):
    """A column of controls and pictures.

    With RSO_STATIC set in the environment it shows itself as HTML without controls, and runs as they are after
    some seconds of training: for notebooks that are executed to be read, since a page without a kernel has no widgets.

    A panel lives as long as the kernel, as ipywidgets and `Out` keep it. So when a notebook cell is run again, the
    panels of its execution before are closed, and their runs let go of net, images and caches.
    """

    of_cell: ClassVar[dict[str, tuple[object, list["Panel"]]]] = {}
    """The last execution of each notebook cell that made panels, and these."""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("rso-panel")
        if cell := running_cell():
            execution, panels = self.of_cell.pop(cell[0], (None, []))
            if execution != cell[1]:
                while panels:
                    panels.pop().let_go()
            self.of_cell[cell[0]] = cell[1], [*panels, self]

    def fill(self, children: Sequence[widgets.Widget]) -> None:
        """Put controls and pictures into the panel."""
        self.waits = Aside(WAITS)
        hide = Aside(f"<style>.rso-saved-{self.model_id} {{display: none}}</style>")
        self.children = [*children, self.waits, hide, Names()]

    def let_go(self) -> None:
        """Close the panel and all that is in it, and end its runs."""
        for part in all_parts(self):
            if run := run_of(part):
                run.end()
            part.close()

    def still(self) -> str:
        """Return the texts and pictures of the panel as HTML."""
        parts = [part for part in all_parts(self) if isinstance(part, widgets.HTML) and not isinstance(part, Aside)]
        return "\n".join(part.value for part in parts)

    def saved(self) -> str:
        """Return what a saved notebook shows without its kernel: the panel as it is now, and how to start.

        The live panel hides it. Without one, the error that stands in its place is hidden.
        """
        name = f"rso-saved-{self.model_id}"
        child = ".jp-OutputArea-child"
        style = f"<style>{child}:has(.{name}) + {child}:not(:has(.rso-panel)) {{display: none}}</style>"
        return f'{style}<div class="{name}">{self.still()}<p>{SAVED}</p></div>'

    def _ipython_display_(self) -> None:
        if not os.environ.get("RSO_STATIC"):
            display({"text/html": self.saved(), "text/plain": f"{type(self).__name__}, as saved"}, raw=True)
        display(self._repr_mimebundle_(), raw=True)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        if os.environ.get("RSO_STATIC"):
            train_for([run for part in all_parts(self) if (run := run_of(part))])
            return {"text/html": self.still(), "text/plain": f"{type(self).__name__}, not live"}
        return super()._repr_mimebundle_(**kwargs)


def running_cell() -> tuple[str, str] | None:
    """Return the id of the notebook cell that is being run, and of this execution; None where nothing tells it."""
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent("shell") if kernel else {}
    cell = request.get("metadata", {}).get("cellId")
    return (cell, request["header"]["msg_id"]) if cell else None


def all_parts(widget: widgets.Widget) -> list[widgets.Widget]:
    """Return a widget and all widgets in it."""
    return [widget, *(part for child in getattr(widget, "children", ()) for part in all_parts(child))]


def run_of(widget: widgets.Widget) -> LiveRun | None:
    """Return the live run that a widget shows; None for others, and for one that was not finished."""
    run = getattr(widget, "run", None)
    return run if isinstance(run, LiveRun) else None


def train_for(runs: Sequence[LiveRun], seconds: float = STILL_SECONDS) -> None:
    """Let runs train together for some seconds at most."""
    for run in runs:
        run.start()
    end = time.perf_counter() + seconds
    for run in runs:
        run.wait(lambda run: run.state == FINISHED, end - time.perf_counter())
        run.pause()
        run.wait(lambda run: run.state != RUNNING)
