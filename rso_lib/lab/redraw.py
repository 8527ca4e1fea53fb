"""Draw figures/ and write the pages from results/, without training: `python -m rso_lib figures`, or `redraw`."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import torch
import torch.nn.functional as F
from matplotlib.colors import CenteredNorm
from torch import Tensor

from ..data import home
from ..history import COLUMNS, History
from ..run import cli as command
from ..run.folder import build_net
from .figure import BLACK, Picture, new_picture, set_log_ticks, style
from .paying import plot_board
from .pictures import COSTS, plot_kept_shares
from .results import FIGURES, RESULTS, Result, experiment, fill, page, read_results
from .scoreboard import read_board

NOTEBOOKS = ("05_mnist", "08_cifar10", "09_where_the_gradient_is_zero", "10_what_a_search_costs")
"""Those that show what is in results/."""
PAGES = ("README.md", "docs/speed.md")
"""And the other pages that do."""
RUN_COLUMNS = ["run", "repeat", *COLUMNS]


def save_runs(path: str | Path, runs: Mapping[str, Sequence[History]]) -> None:
    """Write the cycles of labelled runs as one CSV: the columns of a history after `run` and `repeat`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, RUN_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for label, histories in runs.items():
            for k, history in enumerate(histories):
                writer.writerows({"run": label, "repeat": k, **vars(row)} for row in history.cycles.rows)


PAPER_ENDS = {
    "mnist": {
        "paper: 98.0 % after 5 cycles": (5, 98.0),
        "paper: default order, 99.06 % after 50": (50, 99.06),
        "paper: inverted order, 99.12 % after 50": (50, 99.12),
        "paper: SGD, 99.12 % in fewer than 600 steps": (600, 99.12),
    },
    "cifar10": {
        "paper: Depth-3, 56.30 % after 500 cycles": (500, 56.30),
        "paper: Depth-5, 68.48 %": (500, 68.48),
        "paper: Depth-10, 81.80 %": (500, 81.80),
        "paper: SGD, 81.98 % after 1,700 steps": (1700, 81.98),
    },
}
"""What the paper says of its runs: full updates, and test accuracy in % (Table 3, sections 4.3 to 4.5)."""


@style()
def plot_progress(results: Sequence[Result], against: str = "cycle") -> Picture:
    """Draw test accuracy of runs on the same images against "cycle" (Figure 3) or "image_forwards".

    The paper's numbers stand beside them as black marks, each named as the paper's, where the axis is "cycle".
    Raises ValueError where no run has finished a cycle.
    """
    done = [result for result in results if result.rows]
    if not done:
        raise ValueError("no run has finished a cycle yet: train for at least one")
    ends = PAPER_ENDS[experiment(done[0])] if against == "cycle" else {}
    lines = -(-(len(done) + len(ends)) // 2)
    picture = new_picture(9, 3.8 + 0.27 * lines, top=0.3 + 0.27 * lines)
    axes = picture.subplots()
    nets = list(dict.fromkeys(result.discrete for result in done))
    for result in done:
        frame = result.history.cycles.frame()
        spent = frame[against] if against == "cycle" else frame[against].cumsum()
        look: dict[str, Any] = {"marker": "o", "markersize": 4, "label": _label(result, done)}
        if result.discrete:  # a colour for each net, a line for each method
            look |= {"color": f"C{nets.index(result.discrete)}", "linestyle": "-" if result.net else "--"}
        axes.plot(spent, 100 * frame.test_accuracy, **look)
    for mark, (label, (x, y)) in zip("s^vD", ends.items(), strict=False):
        axes.plot(x, y, mark, color=BLACK, markerfacecolor="none", markersize=9, label=label)
    low = min(100 * result.rows[-1].test_accuracy for result in done)
    axes.set(xlabel=COSTS[against], ylabel="test accuracy (%)", ylim=(max(0, low - 12), 100))
    set_log_ticks(axes)
    picture.legend(loc="upper center", ncols=2)
    says = [f"{_label(result, done)}, {result.accuracy:.2f} %" for result in done]
    when = "At the end" if all(result.finished for result in done) else "At the end so far"
    picture.alt = f"Test accuracy against {COSTS[against]}. {when}: {'; '.join([*says, *ends])}."
    return picture


def _label(result: Result, beside: Sequence[Result]) -> str:
    """Return a run's kind, and its progress where it is not done; its folder's name where others are of its kind."""
    alone = [other.kind for other in beside].count(result.kind) == 1
    name = result.kind if alone else result.name
    return name if result.discrete and result.finished else f"{name}, {result.progress}"


@style()
def plot_first_filters(result: Result) -> Picture:
    """Draw the filters of the first convolution of a run of RSO: the random start (left), and as they are (right)."""
    assert result.net, "SGD keeps no net"
    settings, data = result.settings, result.about["data"]
    fresh = build_net(settings["net"], data["shape"], data["classes"], settings["seed"], **settings["net_options"])
    began, ended = (net.get_parameter("block1.conv.weight").detach().cpu() for net in (fresh, result.net))
    last = result.history.rows[-1]
    now = f"after {result.progress}" if last.is_cycle else f"in cycle {last.cycle}"
    picture = new_picture(9, 4.4, left=0.1, right=1.1, bottom=0.1, top=0.4, wspace=0.12)
    norm = CenteredNorm(0, max(float(filters.abs().max()) for filters in (began, ended)))
    panels = picture.subplots(1, 2)
    for axes, filters, when in zip(panels, (began, ended), ("random start", now), strict=True):
        shown = axes.imshow(tile(filters).numpy(), cmap="PuOr", norm=norm, interpolation="nearest")
        axes.set_title(when)
        axes.set_axis_off()
    picture.colorbar(shown, cax=picture.add_axes((0.9, 0.1, 0.02, 0.72)), label="weight")
    moved = (ended - began).norm() / began.norm()
    picture.alt = (
        f"The filters of the first convolution of {result.name}: the random start (left) and {now} (right). The change "
        f"is {float(moved):.2f} times as large as the filters were."
    )
    return picture


def tile(filters: Tensor) -> Tensor:
    """Return the kernels [O, I, h, w] as one image, near to a square, with a line of NaN between neighbours."""
    kernels = F.pad(filters.flatten(0, 1), (0, 1, 0, 1), value=math.nan)
    columns = math.ceil(math.sqrt(len(kernels)))
    rows = math.ceil(len(kernels) / columns)
    empty = kernels.new_full((rows * columns - len(kernels), *kernels.shape[1:]), math.nan)
    grid = torch.cat([kernels, empty]).unflatten(0, (rows, columns)).transpose(1, 2)
    return grid.flatten(2, 3).flatten(0, 1)[:-1, :-1]


def redraw(results: str | Path = RESULTS, figures: str | Path = FIGURES) -> list[Path]:
    """Draw the runs of a folder into a folder of figures, and return the paths of the pictures.

    The paper's runs have a picture by their images, those of nets that have no gradient are in `no_gradient`, and each
    scoreboard has its own.
    """
    done = [result for result in read_results(results) if result.rows]
    found, pictures = [result for result in done if result.paper], {}
    if flat := [result for result in done if result.discrete]:
        pictures["no_gradient"] = plot_progress(flat, "image_forwards")
    for images in PAPER_ENDS:
        group = [result for result in found if experiment(result) == images]
        if any(result.net for result in group):
            pictures[f"{images}_progress"] = plot_progress(group)
            if not all(result.net for result in group):  # SGD, which keeps no net, to compare with
                pictures[f"{images}_bill"] = plot_progress(group, "image_forwards")
    for result in found:
        if result.net:
            pictures[f"{result.name}_filters"] = plot_first_filters(result)
            pictures[f"{result.name}_kept"] = plot_kept_shares(result.history)
    for board in sorted((Path(results) / "scoreboard").glob("*/README.md")):
        images = board.parent.name
        pictures[f"scoreboard_{images}"] = plot_board(read_board(board.parent))
    paths = {Path(figures) / f"{name}.png": picture for name, picture in pictures.items()}
    for path, picture in paths.items():
        picture.save(path)
    return list(paths)


def write_pages() -> list[Path]:
    """Write results/README.md, the blocks of the pages, and those parts of the notebooks that show results."""
    results, pages = read_results(), [home() / page for page in PAGES]
    for path in pages:
        path.write_text(fill(path.read_text(), results))
    (RESULTS / "README.md").write_text(page(results))
    notebooks = [home() / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    for path in notebooks:
        refresh(path, results)
    return [*pages, RESULTS / "README.md", *notebooks]


def refresh(path: Path, results: Sequence[Result]) -> None:
    """Fill the blocks of a notebook's text, and execute its cells that are tagged "results"."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    quiet = ["--IPKernelApp.log_level=ERROR"]  # a local kernel warns that it does not encrypt
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        resources=where,
        startup_timeout=600,
        extra_arguments=quiet,
        coalesce_streams=True,  # printed lines arrive together or one by one, as it happens
    )
    with client.setup_kernel():
        for k, cell in enumerate(notebook.cells):
            if cell.cell_type == "markdown":
                cell.source = fill(cell.source, results, "../results/")
            elif "results" in cell.metadata.get("tags", []):
                client.execute_cell(cell, k, execution_count=cell.execution_count)
                cell.metadata.pop("execution", None)
                for output in cell.outputs:
                    if "execution_count" in output:
                        output.execution_count = cell.execution_count
    nbformat.write(notebook, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw figures/ and write README.md, results/README.md and the notebooks from results/, without training."""
    command.parse("figures", main, arguments)
    with command.ending("figures"):
        for path in [*redraw(), *write_pages()]:
            print(path.relative_to(home()))
