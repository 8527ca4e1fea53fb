"""How soon sliders and buttons answer in JupyterLab: `make bench-live`.

Prints a table, and writes figures/bench_live.json. Wants chromium. A slider should answer in a quarter of a second,
a pause in a fifth; a machine that does other things at the same time is slower, so its load is written down, too.

`--screenshots` takes the pictures figures/screenshot_NN.png as well.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from browser import FOLDER, LAB, LIVE, Panel, Visit, chromium, copy_notebooks, find_chromium, serve
from playwright.sync_api import Browser

from rso_lib.lab.bench_report import cpu_name

FIGURES = FOLDER.parent / "figures"
SLIDER, PAUSE, LEARN = "key on a slider → new picture (ms)", "click on Pause → all wait (ms)", "Start → 90 % (s)"
TIMES = 6
"""How often each slider is moved, and each run is paused."""


def measure(browser: Browser, lab: str, path: Path, screenshots: bool) -> dict[str, list[float]]:
    """All times of a notebook."""
    with Visit.to_notebook(browser, lab, path) as visit:
        visit.run_all_cells()
        live = [panel for panel in visit.panels() if panel.live]
        still = [panel for panel in visit.panels() if not panel.live]
        if screenshots:
            take_screenshot(live[0], path.stem[:2])
        times = {
            SLIDER: [ms for panel in still for slider in sliders(panel) for ms in panel.to_and_fro(slider, TIMES)],
            PAUSE: [ms for panel in live for ms in pauses(panel)],
        }
        if path.stem.startswith("01"):
            began = time.perf_counter()
            live[0].learn()
            times[LEARN] = [time.perf_counter() - began]
    return times


def sliders(panel: Panel) -> list[Any]:
    return panel.root.get_by_role("slider").all()


def pauses(panel: Panel) -> Iterator[float]:
    """Let a fresh run train, and pause it: how long it takes until all that ran say so, in ms."""
    for _ in range(TIMES):
        panel.train_a_bit()
        yield panel.press("Pause", until="Running", gone=True)
        panel.press("Reset", until="Ready")


def take_screenshot(panel: Panel, number: str) -> None:
    """Of a live run after some seconds, at a weight of the final layer; or of a picture with its controls."""
    if panel.live:
        panel.press("Start", until="Running")
        panel.page.wait_for_timeout(10_000)
        panel.until(lambda: "of head.linear.weight" in panel.says())
        panel.press("Pause", until="Running", gone=True)
        panel.page.wait_for_timeout(1000)
    panel.save(FIGURES / f"screenshot_{number}.png")
    if panel.live:
        panel.end()


def summary(times: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(times),
        "median": round(statistics.median(times), 1),
        "least": round(min(times), 1),
        "most": round(max(times), 1),
    }


HEAD = "| notebook | what | times | median | least | most |\n|---|---|---:|---:|---:|---:|"


def line(name: str, what: str, row: dict[str, float]) -> str:
    """A row of the table."""
    return f"| {name} | {what} | {row['count']} | {row['median']:.0f} | {row['least']:.0f} | {row['most']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=FIGURES / "bench_live.json", help="file for the figures")
    parser.add_argument("--screenshots", action="store_true", help="take the pictures of the README, too")
    options = parser.parse_args()
    if find_chromium() is None:
        sys.exit("no chromium: install it, or let CHROMIUM name one")
    load = os.getloadavg()[0]
    machine = {"name": platform.node(), "processor": cpu_name(), "cores": os.cpu_count(), "load before": round(load, 2)}
    print(f"{machine['processor']}, {machine['cores']} cores, load {load:.2f} before this began\n\n{HEAD}", flush=True)
    notebooks: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryDirectory() as folder:
        copy_notebooks(Path(folder))
        with serve(LAB, Path(home), Path(folder)) as lab, chromium() as browser:
            for path in LIVE:
                times = measure(browser, lab, path, options.screenshots)
                notebooks[path.stem] = {what: summary(each) for what, each in times.items() if each}
                print("\n".join(line(path.stem, what, row) for what, row in notebooks[path.stem].items()), flush=True)
            machine["browser"] = f"chromium {browser.version}"
    options.json.write_text(json.dumps({"machine": machine, "notebooks": notebooks}, indent=1) + "\n")


if __name__ == "__main__":
    main()
