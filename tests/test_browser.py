"""The notebooks where people open them: JupyterLab, Notebook 7 and Voilà, in a browser.

How soon a control answers is measured by `make bench-live`; here it answers at all.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="the browser tests need Playwright: pip install playwright")

from browser import LAB, LIVE, PANELS, Panel, Visit, chromium, copy_notebooks, find_chromium, free_port, serve
from playwright.sync_api import Browser

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="no chromium: install it, or let CHROMIUM name one")


FIRST = "block1.conv."
"""The first tensor of most nets, in the direction forward."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    copy_notebooks(folder)
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, copies: Path) -> Iterator[str]:
    with serve(LAB, tmp_path_factory.mktemp("lab"), copies) as url:
        yield url


@pytest.mark.parametrize("path", LIVE, ids=lambda path: path.stem)
def test_notebook(path: Path, lab: str, browser: Browser) -> None:
    """In JupyterLab: all cells run, every control answers, and the console stays empty."""
    with Visit.to_notebook(browser, lab, path) as visit:
        visit.run_all_cells()
        live = [panel for panel in visit.panels() if panel.live]
        still = [panel for panel in visit.panels() if not panel.live]
        if path.stem.startswith("01"):
            live[0].learn()
        for panel in still:
            explore(panel)
        for panel in live:
            drive(panel, "first." if path.stem.startswith("09") else FIRST)
            assert panel.cropped() == []
        assert visit.errors == visit.outside == []


def explore(panel: Panel) -> None:
    """Move every slider to and fro, and choose from every menu: there is a new picture each time."""
    sliders = panel.root.get_by_role("slider").all()
    assert all(slider.get_attribute("aria-label") for slider in sliders)
    for slider in sliders:
        panel.to_and_fro(slider, 2)
    for menu in panel.root.get_by_role("combobox").all():
        panel.measured("change", lambda menu=menu: menu.select_option(index=1))


def drive(panel: Panel, first: str = FIRST) -> None:
    """Steer a live run: what every control does is seen. In the direction forward it begins at the tensor `first`."""
    panel.press("Step", until="Paused")
    for slider in panel.root.get_by_role("slider").all():
        name, before = slider.get_attribute("aria-label"), slider.get_attribute("aria-valuetext")
        slider.focus()
        panel.page.keyboard.press("ArrowLeft")
        panel.until(lambda slider=slider, before=before: slider.get_attribute("aria-valuetext") != before)
        assert name
    size = panel.root.get_by_role("slider", name="batch size").first.get_attribute("aria-valuetext")
    panel.press("Step", until=f"on {size} images")
    for more in panel.root.get_by_role("button", name="More").all():
        more.click()
    for menu in panel.root.locator("select").all():  # also those that are not shown yet
        menu.select_option(index=1)
    panel.press("Step", until=first)  # the direction is forward now
    panel.press("Reset", until="Ready")
    panel.press("Start", until="Running")
    panel.until(lambda: panel.steps() > 10)
    panel.press("Pause", until="Running", gone=True)
    make_one_step(panel)
    panel.end()


def make_one_step(panel: Panel) -> None:
    """Press Step in a pause: the count of steps goes up by one.

    The page may still be behind the run, which only makes steps that were asked for, so another press shows it.
    """
    for _ in range(20):
        before = panel.steps()
        panel.button("Step").first.click()
        panel.until(lambda before=before: panel.steps() > before)
        if panel.steps() == before + 1:
            return
    raise AssertionError(f"Step makes several steps: {panel.says()}")


def test_notebook_7(lab: str, browser: Browser) -> None:
    with Visit.to(browser, lab, f"notebooks/{PANELS}") as visit:
        visit.page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        visit.errors.clear()  # of Notebook 7 itself, before any cell has run
        visit.run_all_cells()
        panels = visit.panels()
        explore(panels[0])
        drive(next(panel for panel in panels if panel.live))
        fonts = [error for error in visit.errors if ".woff" in error]  # of Notebook 7, which may refuse its own
        assert visit.errors == fonts and visit.outside == []


def test_voila(tmp_path: Path, browser: Browser, copies: Path) -> None:
    """`make voila NB=...`: a page with sliders and without code."""
    command = ["voila", "--template=offline", PANELS, "--no-browser", f"--port={free_port()}"]
    with serve(command, tmp_path, copies) as url, Visit(browser, url) as visit:
        panels = visit.panels()
        visit.errors.clear()  # of Voilà itself, which loads JupyterLab's extensions
        explore(panels[0])
        drive(next(panel for panel in panels if panel.live))
        assert visit.page.locator(".jp-CodeCell .jp-InputArea").count() == 0
        assert visit.errors == visit.outside == []
