"""JupyterLab and Voilà in a real browser: what test_browser.py and bench_live.py drive."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, TimeoutError, sync_playwright

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LIVE = [path for path in sorted(FOLDER.glob("[0-9]*.ipynb")) if "LiveTrainer" in path.read_text(encoding="utf-8")]
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
SHORT = {"cycles": 1, "seeds": 1, "fresh": 2, "tried": 10, "tries": 40, "epochs": 5, "out": '"out"'}
"""Parameters of the copies that are opened."""
PANELS = "panels.ipynb"
"""A notebook of the two kinds of panels and nothing else, for what does not depend on the notebook."""
CELLS = (
    "import ipywidgets\n\nfrom rso_lib import load\nfrom rso_lib.lab.figure import new_picture\n"
    "from rso_lib.lab.widgets import Explorer, LiveTrainer",
    "def draw(power, sign):\n"
    "    picture = new_picture(4, 2)\n"
    "    picture.subplots().plot([sign * k**power for k in range(10)])\n"
    "    return picture\n\n\n"
    'menu = ipywidgets.Dropdown(options=[1, -1], description="sign")\n'
    'Explorer(draw, power=ipywidgets.IntSlider(1, max=3, description="power"), sign=menu)',
    'LiveTrainer("one_conv", load("digits"))',
)
HANGS = 600
"""Seconds that nothing here takes, however busy the machine is: what waits for longer never ends."""

LAB = [
    "jupyterlab",
    "--no-browser",
    "--allow-root",
    "--ServerApp.port=0",
    "--LabApp.expose_app_in_browser=True",
    "--JupyterNotebookApp.expose_app_in_browser=True",
]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
"""No questions pop up, and cells are in the page before they are scrolled to."""

MEASURE = """([watched, event, text, gone, limit]) => {
  const picture = () => watched.querySelector('img[src^="data:image/png"]');
  const before = picture() && picture().src;
  let began = null;
  document.addEventListener(event, () => { began = performance.now(); }, {capture: true, once: true});
  window.measured = new Promise((resolve, reject) => {
    const late = `${event}: ${gone ? 'still' : 'no'} ${text || 'new picture'} after ${limit} s`;
    setTimeout(() => reject(new Error(late)), 1000 * limit);
    const end = () => resolve(performance.now() - began);
    new MutationObserver((_, observer) => {
      if (began === null) return;
      if (text ? watched.textContent.includes(text) === gone : !picture() || picture().src === before) return;
      observer.disconnect();
      if (text) end(); else picture().decode().then(end);
    }).observe(watched, {childList: true, subtree: true, attributes: true, characterData: true});
  });
}"""
"""Milliseconds from an event in the page until an element has a text, or has it no more, or a new picture, decoded."""

CROPPED = """panel => [...panel.querySelectorAll('img, p, [role=img], button, select, .widget-slider')]
  .filter(node => node.getBoundingClientRect().right > node.closest('.rso-panel').getBoundingClientRect().right + 1)
  .map(node => node.outerHTML.slice(0, 80))"""

RUN = """async () => {
  await jupyterapp.restored;
  const {context, sessionContext} = jupyterapp.shell.currentWidget;
  await context.ready;
  await sessionContext.ready;
  await jupyterapp.commands.execute('notebook:run-all-cells');
}"""
RAN = """() => {
  const {content, sessionContext} = jupyterapp.shell.currentWidget;
  const code = content.widgets.filter(cell => cell.model.type === 'code');
  return sessionContext.session.kernel.status === 'idle' && code.every(cell => cell.model.executionCount);
}"""
STATE = """() => {
  const {content, sessionContext} = jupyterapp.shell.currentWidget;
  const waiting = content.widgets.filter(cell => cell.model.type === 'code' && !cell.model.executionCount);
  return `kernel ${sessionContext.session?.kernel?.status}, ${waiting.length} cells not run`;
}"""
FAILED = """() => jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === 'code')
  .flatMap(cell => cell.model.outputs.toJSON())
  .filter(output => output.output_type === 'error')
  .map(output => `${output.ename}: ${output.evalue}`)"""


def find_chromium() -> str | None:
    """The one that $CHROMIUM names, or the first on the path."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


def copy_notebooks(folder: Path) -> None:
    """Fill a folder with the notebooks that have a live panel, up to the last one, for short runs; and `PANELS`."""
    shutil.copytree(FOLDER.parent / "figures", folder / "figures")  # where JupyterLab looks for ../figures at its top
    panels = new_notebook(cells=[new_code_cell(source) for source in CELLS], metadata={"kernelspec": KERNEL})
    nbformat.write(panels, folder / PANELS)
    for path in LIVE:
        notebook = nbformat.read(path, as_version=4)
        last = max(k for k, cell in enumerate(notebook.cells) if "LiveTrainer(" in cell.source)
        del notebook.cells[last + 1 :]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
            if "parameters" in cell.metadata.get("tags", []):
                for name, value in SHORT.items():
                    cell.source = re.sub(rf"^({name}\b[^=]*=) *[^#\n]*", rf"\1 {value} ", cell.source, flags=re.M)
        nbformat.write(notebook, folder / path.name)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serve(command: list[str], home: Path, folder: Path, places: Sequence[str] = (str(FOLDER),)) -> Iterator[str]:
    """Run `python -m command` in a folder, with Jupyter settings of its own; gives the URL that it prints.

    places  where Jupyter finds Voilà's templates
    """
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    project = str(Path(__file__).resolve().parents[1])
    env = os.environ | {
        "JUPYTER_PATH": os.pathsep.join(places),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")])),
    }
    log = home / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=env, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + HANGS
        while not (found := re.search(r"http://(?:127\.0\.0\.1|localhost):\d+/\S*", log.read_text(errors="replace"))):
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.1)
        yield found.group()
    finally:
        process.terminate()
        process.wait(HANGS)


class Visit:
    """A page that keeps what goes wrong in it: errors in the console, and requests that leave this machine.

    At the end of its block the kernel is shut down, and the page closed.
    """

    def __init__(self, browser: Browser, url: str):
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": 1400, "height": 1000}, device_scale_factor=2)
        self.page.set_default_timeout(1000 * HANGS)
        self.page.on("console", lambda said: self.hear(said) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "response", lambda got: self.errors.append(f"{got.status} {got.url}") if got.status > 399 else None
        )
        self.page.on("request", lambda request: self.note(request.url))
        self.page.goto(url)

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.evaluate("window.jupyterapp?.shell.currentWidget?.sessionContext?.shutdown()")
        self.page.close()

    @classmethod
    def to(cls, browser: Browser, lab: str, place: str) -> "Visit":
        """Open a page of a JupyterLab server, whose URL has its token."""
        base, token = lab.split("/lab")[0], lab.split("token=")[1]
        return cls(browser, f"{base}/{place}?token={token}")

    @classmethod
    def to_notebook(cls, browser: Browser, lab: str, path: Path) -> "Visit":
        """Open a notebook in JupyterLab, in a workspace that nothing else is open in."""
        return cls.to(browser, lab, f"lab/workspaces/{path.stem}/tree/{path.name}")

    def hear(self, said: ConsoleMessage) -> None:
        self.errors.append(f"{said.text} {said.location['url']}")

    def note(self, url: str) -> None:
        place = urlsplit(url)
        if place.scheme not in ("data", "blob") and place.hostname not in ("127.0.0.1", "localhost"):
            self.outside.append(url)

    def run_all_cells(self) -> None:
        """In JupyterLab and Notebook 7: run the notebook, and wait for its end. Cells that fail count as errors."""
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        self.page.evaluate(RUN)
        try:
            self.page.wait_for_function(RAN, timeout=1000 * HANGS)
        except TimeoutError:
            raise AssertionError(f"after {HANGS} s: {self.page.evaluate(STATE)}; {self.errors}") from None
        self.errors += self.page.evaluate(FAILED)

    def panels(self) -> "list[Panel]":
        """The panels of the page, but for those inside others."""
        self.page.locator(".rso-panel").first.wait_for()
        outer = self.page.locator(".rso-panel:not(.rso-panel .rso-panel)")
        return [Panel(self.page, outer.nth(k)) for k in range(outer.count())]


class Panel:
    """Controls and pictures."""

    def __init__(self, page: Page, root: Locator):
        self.page, self.root = page, root
        root.scroll_into_view_if_needed()

    @property
    def live(self) -> bool:
        return self.button("Start").count() > 0

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def press(self, name: str, until: str, gone: bool = False) -> float:
        """Press a button, the upper one where there are several: ms until the panel says something, or no longer."""
        return self.measured("click", self.button(name).first.click, until, gone)

    def to_and_fro(self, slider: Locator, times: int) -> list[float]:
        """Move a slider by keys, to the next value and back: milliseconds until there is a new picture."""
        slider.focus()
        at_end = slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax")
        keys = ("ArrowLeft", "ArrowRight") if at_end else ("ArrowRight", "ArrowLeft")
        press = self.page.keyboard.press
        return [self.measured("keydown", lambda k=k: press(keys[k % 2])) for k in range(times)]

    def measured(self, event: str, act: Callable[[], None], text: str = "", gone: bool = False) -> float:
        self.page.evaluate(MEASURE, [self.root.element_handle(), event, text, gone, HANGS])
        act()
        return float(self.page.evaluate("window.measured"))

    def says(self) -> str:
        return self.root.inner_text()

    def steps(self) -> int:
        """Of the upper run, so far."""
        said = re.search(r"Step ([\d,]+), on", self.says())
        return int(said[1].replace(",", "")) if said else 0

    def accuracy(self) -> float:
        """The last validation accuracy of the upper run, in %."""
        return float(re.search(r"full updates: validation accuracy ([\d.]+)%", self.says())[1])

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + HANGS
        while not condition():
            assert time.monotonic() < end, self.says()
            self.page.wait_for_timeout(20)

    def train_a_bit(self) -> None:
        """Press Start where no step is made yet, and wait until some are."""
        self.until(lambda: self.steps() == 0)
        self.press("Start", until="Running")
        self.until(lambda: self.steps() > 0)

    def end(self) -> None:
        """Stop a run, and leave it as it was before its first step."""
        self.press("Stop", until="Stopped")
        self.press("Reset", until="Ready")

    def learn(self) -> None:
        """Press Start, and wait until the validation accuracy is above 90 %, from chance."""
        assert self.accuracy() < 25
        self.press("Start", until="Running")
        self.until(lambda: self.accuracy() > 90)
        self.end()

    def cropped(self) -> list[str]:
        """What reaches beyond its panel."""
        return list(self.root.evaluate(CROPPED))

    def save(self, path: Path) -> None:
        """A picture of the panel, with a margin, in a page that holds all of it."""
        size = self.page.viewport_size
        self.root.evaluate("panel => panel.style.padding = '16px'")
        self.page.set_viewport_size({"width": size["width"], "height": int(self.root.bounding_box()["height"]) + 300})
        self.page.wait_for_timeout(500)  # the layout settles
        self.root.scroll_into_view_if_needed()
        self.root.screenshot(path=path)
        self.root.evaluate("panel => panel.style.padding = ''")
        self.page.set_viewport_size(size)
