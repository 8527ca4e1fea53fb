"""What the folders in results/ hold, and the pages that say it: results/README.md, redraw.PAGES, redraw.NOTEBOOKS.

A page is text with blocks that this file writes, each between a line `<!-- NAME -->` and a line `<!-- end -->`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..data import home
from ..history import History, Report
from ..models import count_weights
from ..run import cli, presets, sgd
from ..run import folder as runs
from ..run.about import NEWER
from ..settings import RSO
from .bench_report import describe_cycle, tabulate_bench
from .markdown import table
from .tables import LABELS, PAPER_1, PAPER_3

RESULTS, FIGURES = home() / "results", home() / "figures"
SGD_BATCH = 5000
"""Images of a step of the paper's SGD on MNIST (section 4.5)."""


class Result(NamedTuple):
    """A run in a folder, finished or not.

    about  what settings.json holds
    net    as the search left it; None for SGD, which keeps no net
    """

    folder: Path
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    history: History
    net: nn.Module | None

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.folder.name

    @property
    def rows(self) -> Sequence[Report]:
        """Return the rows of whole cycles, or epochs."""
        return self.history.cycles.rows

    @property
    def accuracy(self) -> float:
        """Return the test accuracy in % after the last cycle or epoch that is done. Raises ValueError where none is."""
        return 100 * self.history.last.test_accuracy

    @property
    def planned(self) -> int:
        """Return how many cycles, or epochs, the whole run has."""
        return int(self.settings["cycles" if self.net else "epochs"])

    @property
    def finished(self) -> bool:
        """Return whether all cycles, or epochs, are done."""
        return len(self.rows) >= self.planned

    @property
    def progress(self) -> str:
        """Return how far the run is, such as "7 of 50 cycles"."""
        return f"{len(self.rows)} of {self.planned} {'cycles' if self.net else 'epochs'}"

    @property
    def method(self) -> str:
        """Return the name of the method, as in the paper's tables where these have a row for it."""
        depth = self.settings.get("net_options", {}).get("depth")
        sgd_of = "SGD, straight through" if self.settings.get("straight_through") else "SGD"
        if depth:
            return f"Depth-{depth}" if self.net else f"{sgd_of}, Depth-{depth}"
        return LABELS[self.settings["order"]] if self.net else sgd_of

    @property
    def discrete(self) -> str:
        """Return the parts of the net without a gradient, such as "activation=sign,levels=3"; "" for none."""
        options = self.settings.get("net_options") or {}
        return ",".join(f"{name}={options[name]}" for name in ("activation", "levels") if name in options)

    @property
    def kind(self) -> str:
        """Return the net and the method of a run without a gradient in words; of another run its method."""
        options = self.settings.get("net_options") or {}
        weights = f"{options['levels']}-valued weights" if "levels" in options else ""
        neurons = {"sign": "sign neurons", "step": "step neurons"}.get(options.get("activation", ""), "ReLU")
        method = "search" if self.net else "straight-through"
        return f"{', '.join(filter(None, [weights, neurons]))}: {method}" if self.discrete else self.method

    @property
    def paper(self) -> float | None:
        """Return the accuracy in % that the paper reports for a whole run on these images and this net, or None.

        It has none for SGD on MNIST with other batches than its own.
        """
        if not self.net and experiment(self) == "mnist" and self.settings["batch_size"] != SGD_BATCH:
            return None
        known = {("mnist", "mnist_net", ""): PAPER_1, ("cifar10", "cifar_net", ""): PAPER_3}
        return known.get((experiment(self), self.settings["net"], self.discrete), {}).get(self.method)

    @property
    def image_forwards(self) -> int:
        """Return how many images went through the whole net, as Algorithm 1 or backpropagation counts."""
        return sum(row.image_forwards for row in self.rows)


def experiment(result: Result) -> str:
    """Return the name of the images; a copy of CIFAR-10 in a folder counts as cifar10."""
    name = str(result.settings["dataset"])
    return "cifar10" if "cifar10" in name else name


def topic(result: Result) -> str:
    """Return the topic of a run: the images, or "no_gradient" where the net has none."""
    return "no_gradient" if result.discrete else experiment(result)


def read_results(folder: str | Path = RESULTS) -> list[Result]:
    """Return the runs in a folder of run folders, by name. Raises ValueError for one that is torn."""
    return [read_result(path.parent) for path in sorted(Path(folder).glob("*/settings.json"))]


def read_result(folder: Path) -> Result:
    """Return the run in a folder: of the search, or of SGD with the seed 0, which may be under way still.

    Errors as in `run.folder.load`.
    """
    try:
        about = dict(json.loads((folder / "settings.json").read_text()))
    except (ValueError, TypeError):
        raise ValueError(f"{folder / 'settings.json'} is torn: put it back, or move {folder} away") from None
    if "settings" in about:
        run = runs.load(folder)
        return Result(folder, run.settings, about, run.history, run.net)
    path = next(iter(sorted(folder.glob("0.csv*"))), None)
    return Result(folder, about, about, History.load(path) if path else History(), None)


def command_of(result: Result) -> str:
    """Return the command that makes the run, or goes on with it: images, net, and settings that are not the default."""
    settings = dict(result.settings)
    default = {**vars(cli.What()), **vars(cli.Score()), "net_options": {}}
    default["batch_size"] = presets.batch_size(settings["dataset"])
    if result.net:
        kind, names, default = "train", [*runs.WHAT, *RSO().to_dict()], {**RSO().to_dict(), **default}
    else:
        kind, names = "sgd", [*runs.WHAT, *(field.name for field in fields(sgd.SGD)), "seeds"]
        default = {**vars(sgd.SGD()), **default, "seeds": 1}
        seeds = len(list(result.folder.glob("[0-9]*.csv"))) or 1
        settings = {**default, **settings, "val_size": result.about["data"]["val"], "seeds": seeds}
    given = {name: settings.get(name, default[name]) for name in names}
    return cli.command_line(f"{kind} results/{result.name}", given, default, ("dataset", "net"))


# The bill


def reach(result: Result, accuracy: float) -> tuple[int, int]:
    """Return after how many cycles or epochs, and image-forwards, the test accuracy (in %) was first reached.

    Raises ValueError where it never was.
    """
    spent = 0
    for k, row in enumerate(result.rows, 1):
        spent += row.image_forwards
        if 100 * row.test_accuracy >= accuracy:
            return k, spent
    raise ValueError(f"{result.folder} never reached {accuracy:.2f} %: ask for less")


def bill(search: Result, descent: Result) -> str:
    """Return two sentences: what a run of RSO paid up to its last cycle, and a run of SGD for the same accuracy.

    The last cycle, and not the best: which one is best on the test part is partly luck.
    """
    paid = (
        f"After its last finished cycle ({search.name}, {search.progress}) RSO is at {search.accuracy:.2f} % on the "
        f"test part, and has sent {search.image_forwards / 1e6:,.1f} million images through the whole net. "
    )
    try:
        epochs, cheap = reach(descent, search.accuracy)
    except ValueError:
        return f"{paid}SGD ({descent.name}) has not reached that after {descent.progress}."
    return (
        f"{paid}SGD ({descent.name}) first reaches that in epoch {epochs}, after {cheap / 1e6:,.1f} million (forward "
        f"and backward count as three): RSO pays {search.image_forwards / cheap:,.0f} times as much."
    )


def bills(results: Sequence[Result]) -> list[str]:
    """Return the bill of every run of RSO beside a run of SGD with the same net and the same images."""
    done = [result for result in results if result.rows]
    return [
        bill(search, descent)
        for search in done
        for descent in done
        if search.net and not descent.net and search.about["data"] == descent.about["data"]
        if _task(search) == _task(descent)
    ]


def _task(result: Result) -> list[Any]:
    """Return what a run was about: images, net and metric."""
    settings = {**NEWER, **result.settings}
    return [settings.get(name) or {} for name in ("dataset", "net", "net_options", "metric")]


# Pages


def tabulate(results: Sequence[Result], link: str = "") -> str:
    """Return the runs as a table in Markdown; `link` leads from the page to the folder of the folders.

    The paper has a column where it has a number for one of them.
    """
    rows = []
    for one in results:
        settings = one.settings
        net = f"`{settings['net']}`" + (f" with `{one.discrete}`" if one.discrete else "")
        what = f"{one.method}: {net} on `{settings['dataset']}`, batches of {settings['batch_size']:,}"
        metric = settings.get("metric", NEWER["metric"])
        of_metric = "" if metric == NEWER["metric"] else f" (`{metric}`)"
        reached = f"{one.accuracy:.2f} %{of_metric}" if one.rows else "none yet"
        paper = f"{one.paper:.2f} %" if one.paper else ""
        rows.append([f"[{one.name}]({link}{one.name})", what, one.progress, reached, paper])
    columns, align = ["run", "what", "done", "test accuracy", "the paper, at its end"], "lllrr"
    if not any(one.paper for one in results):
        columns, align, rows = columns[:-1], align[:-1], [row[:-1] for row in rows]
    return table(columns, align, rows)


def describe(result: Result) -> str:
    """Return a run's part of the results page."""
    weights = f"{count_weights(result.net):,} weights, " if result.net else ""
    data = result.about["data"]
    hours = f"{result.rows[-1].seconds / 3600:.1f}" if result.rows else "0"
    lines = [
        f"## {result.name}\n",
        f"{result.method}; {weights}{data['train']:,} training images, {data['val']:,} for validation, "
        f"{data['test']:,} for the test. {result.progress} are done, "
        f"{result.image_forwards:,} image-forwards, in {hours} hours.\n",
        _machines(result.about["machines"]),
        f"\n```\n{command_of(result)}\n```",
    ]
    return "\n".join(lines)


def _machines(machines: Sequence[Mapping[str, Any]]) -> str:
    """Return the machines that a run was on, in their order, as a table in Markdown."""
    rows = []
    for k, one in enumerate(machines, 1):
        made = [one.get("engine", "from before they were numbered"), one.get("commit") or "not noted"]
        rows.append([k, one["device"], one["threads"], one["torch"], *made])
    return table(["sitting", "machine", "threads", "torch", "engine", "commit"], "llllll", rows)


PAGE = """# Results

Each folder here holds one run: its settings, its history, the machines that it ran on, and, for RSO, the net.
`python -m rso_lib figures` writes this page from the folders. `load("results/NAME")` of `rso_lib.run.folder` opens
a run of RSO; the command below it makes the run in an empty folder, or goes on with the one that is there. Hours are
those of machines that had other work, too. Accuracy is on the test part, after the last cycle that is done. On another
machine rounding may send a run another way, as another seed would.
"""


def page(results: Sequence[Result]) -> str:
    """Return the text of results/README.md."""
    return "\n\n".join([PAGE.strip(), tabulate(results), *bills(results), *map(describe, results)]) + "\n"


def read_bench(name: str) -> dict[str, Any]:
    """Return the content of figures/bench_NAME.json."""
    return dict(json.loads((FIGURES / f"bench_{name}.json").read_text()))


BLOCK = re.compile(r"(<!-- (results|commands|bills|bench|cycle)(?: (\w+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Sequence[Result], link: str = "results/") -> str:
    """Return a page with its blocks written anew.

    link  leads from the page to the folder of results

    `<!-- results -->`, `commands` and `bills` are about all runs, or those of the topic that is named, such as
    `<!-- bills mnist -->`; `<!-- bench NAME -->` and `cycle` about figures/bench_NAME.json.
    """

    def block(found: re.Match[str]) -> str:
        begin, kind, name, end = found.groups()
        if kind in ("bench", "cycle"):
            return f"{begin}{(tabulate_bench if kind == 'bench' else describe_cycle)(read_bench(name))}\n{end}"
        chosen = [result for result in results if name in (None, topic(result))]
        written = {
            "results": tabulate(chosen, link),
            "commands": "\n".join(["```", *map(command_of, chosen), "```"]),
            "bills": "\n\n".join(bills(chosen)),
        }
        return f"{begin}{written[kind] if chosen else 'No run is there yet.'}\n{end}"

    return BLOCK.sub(block, text)
