"""The notebooks where people open them: JupyterLab, Notebook 7 and Voilà, in a browser.

They take minutes and measure times, so they run only where RSO_BROWSER=1 is set. RSO_SCREENSHOTS=1 writes
figures/screenshot_NN.png.
"""

import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("playwright", reason="the browser tests need Playwright: pip install playwright")

from browser import LAB, Panel, Visit, find_chromium, free_port, serve
from playwright.sync_api import Browser, sync_playwright

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
LIVE = [path for path in sorted(FOLDER.glob("[0-9]*.ipynb")) if "rso_lib.widgets" in path.read_text()]
SHORT = {"cycles": 2, "seeds": 2, "tried": 10, "out": '"out"'}
"""Parameters of the copies that are opened."""

pytestmark = [
    pytest.mark.skipif(os.environ.get("RSO_BROWSER") != "1", reason="takes minutes: set RSO_BROWSER=1 to run it"),
    pytest.mark.skipif(find_chromium() is None, reason="no chromium: install it, or let CHROMIUM name one"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebooks, with parameters for short runs."""
    folder = tmp_path_factory.mktemp("notebooks")
    for path in FOLDER.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.update(outputs=[], execution_count=None)
            if "parameters" in cell.metadata.get("tags", []):
                for name, value in SHORT.items():
                    cell.source = re.sub(rf"^({name}\b[^=]*=) *[^#\n]*", rf"\1 {value} ", cell.source, flags=re.M)
        nbformat.write(notebook, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, copies: Path) -> Iterator[str]:
    with serve(LAB, tmp_path_factory.mktemp("lab"), copies) as url:
        yield url


def open_in(lab: str, browser: Browser, place: str) -> Visit:
    base, token = lab.split("/lab")[0], lab.split("token=")[1]
    return Visit(browser, f"{base}/{place}?token={token}")


@pytest.mark.parametrize("path", LIVE, ids=lambda path: path.stem)
def test_notebook(path: Path, lab: str, browser: Browser, capsys: pytest.CaptureFixture[str]) -> None:
    """In JupyterLab: all cells run, every control answers, and the console stays empty."""
    with open_in(lab, browser, f"lab/tree/{path.name}") as visit:
        visit.run_all_cells()
        live = [panel for panel in visit.panels() if panel.live]
        still = [panel for panel in visit.panels() if not panel.live]
        learned = learn(live[0]) if path.stem.startswith("01") else 0.0
        if os.environ.get("RSO_SCREENSHOTS"):
            take_screenshot([*live, *still][0], path.stem[:2])
        idle = [ms for panel in still for ms in explore(panel)]
        pauses = [ms for panel in live for ms in drive(panel)]
        with capsys.disabled():
            print(f"\n{path.stem}:{figures(' slider to picture', idle)}{figures(' pause', pauses)}", end="")
            print(f" 90 % after {learned:.1f} s" if learned else "")
        assert visit.errors == visit.outside == []
    assert not idle or statistics.median(idle) < 250
    assert not pauses or statistics.median(pauses) < 200
    assert learned < 20


def figures(name: str, times: list[float]) -> str:
    if not times:
        return ""
    return f"{name} {statistics.median(times):.0f} ms ({min(times):.0f} to {max(times):.0f}, {len(times)} times)"


def explore(panel: Panel) -> list[float]:
    """Move every slider to and fro, and choose from every menu: there is a new picture each time."""
    sliders = panel.root.get_by_role("slider").all()
    times = [panel.move(slider) for slider in sliders for _ in range(4)]
    assert all(slider.get_attribute("aria-label") for slider in sliders)
    for menu in panel.root.get_by_role("combobox").all():
        panel.measured("change", lambda menu=menu: menu.select_option(index=1))
    return times


def drive(panel: Panel) -> list[float]:
    """Steer a live run: what every control does is seen. Returns the times of some pauses, in ms."""
    panel.press("Step", until="Paused")
    for slider in panel.root.get_by_role("slider").all():
        name, before = slider.get_attribute("aria-label"), slider.get_attribute("aria-valuetext")
        slider.focus()
        panel.page.keyboard.press("ArrowLeft")
        panel.until(lambda slider=slider, before=before: slider.get_attribute("aria-valuetext") != before)
        assert name
    size = panel.root.get_by_role("slider", name="batch size").first.get_attribute("aria-valuetext")
    panel.press("Step", until=f"on {size} images")
    for menu in panel.root.get_by_role("combobox").all():
        menu.select_option(index=1)
    panel.press("Step", until="block1.conv.")  # the direction is forward now
    pauses = []
    for _ in range(5):
        panel.press("Start", until="Running")
        panel.page.wait_for_timeout(400)
        pauses.append(panel.press("Pause", until="Paused"))
    panel.page.wait_for_timeout(300)
    steps = panel.steps()
    panel.press("Step", until=f"Step {steps + 1:,},")
    panel.page.wait_for_timeout(300)
    assert panel.steps() == steps + 1 > 10
    panel.press("Stop", until="Stopped")
    panel.press("Reset", until="Ready")
    return pauses


def learn(panel: Panel) -> float:
    """Press Start: seconds until the test accuracy is above 90 %."""
    assert panel.accuracy() < 25
    began = time.perf_counter()
    panel.press("Start", until="Running")
    panel.until(lambda: panel.accuracy() > 90)
    seconds = time.perf_counter() - began
    panel.press("Stop", until="Stopped")
    panel.press("Reset", until="Ready")
    return seconds


def take_screenshot(panel: Panel, number: str) -> None:
    """Of a live run after some seconds, at a weight of the final layer; or of a picture with its controls."""
    panel.page.set_viewport_size({"width": 1400, "height": 1800})
    if panel.live:
        panel.press("Start", until="Running")
        panel.page.wait_for_timeout(5000)
        panel.until(lambda: "of head.linear.weight" in panel.says())
        panel.press("Pause", until="Paused")
    panel.page.wait_for_timeout(500)
    panel.root.screenshot(path=FOLDER.parent / "figures" / f"screenshot_{number}.png")
    if panel.live:
        panel.press("Stop", until="Stopped")
        panel.press("Reset", until="Ready")


def test_notebook_7(lab: str, browser: Browser) -> None:
    with open_in(lab, browser, "notebooks/03_schedules_and_orders.ipynb") as visit:
        visit.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        visit.errors.clear()  # of Notebook 7 itself, before any cell has run
        visit.run_all_cells()
        panels = visit.panels()
        assert explore(panels[0])
        assert drive(next(panel for panel in panels if panel.live))
        assert visit.errors == visit.outside == []


def test_voila(tmp_path: Path, browser: Browser, copies: Path) -> None:
    """`make voila NB=...`: a page with sliders and without code."""
    command = ["voila", "--template=offline", "02_batch_size_and_noise.ipynb", "--no-browser", f"--port={free_port()}"]
    with serve(command, tmp_path, copies) as url, Visit(browser, url) as visit:
        panels = visit.panels()
        visit.errors.clear()  # of Voilà itself, which loads JupyterLab's extensions
        assert explore(panels[0])
        assert drive(next(panel for panel in panels if panel.live))
        assert visit.page.locator(".jp-CodeCell .jp-InputArea").count() == 0
        assert visit.errors == visit.outside == []
