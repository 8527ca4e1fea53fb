"""The scoreboard: what methods reach on the same net and images for the same image-forwards; the command `scoreboard`.

An entry is a method at a budget, in a folder BOARD/BUDGET/METHOD:

    settings.json       what is trained, the settings that were tried, and the machines
    tried_K.csv         the history with the K-th of these settings and the seed 0
    tried_K_seed_S.csv  with another seed, for the settings that ended best on the validation part
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import torch
from torch import nn

from ..data import Data, load
from ..history import History
from ..models import count_weights
from ..run import cli as command
from ..run import folder as runs
from ..run.about import write_settings
from ..run.files import Busy, alone, folder_at, make, replacing
from ..run.provenance import facts, machine
from ..settings import check_choice, check_whole, numbers
from ..tensors import labelled
from .cheaper import IDEAS
from .markdown import table
from .methods import METHODS, settings_tried
from .tables import standard_error
from .trial import play

KNOWN = {**METHODS, **IDEAS}

# On disk


class Entry(NamedTuple):
    """A method at a budget, as its folder has it.

    tried   the history of each of the settings that were tried
    others  the histories of the other seeds, with the chosen settings
    """

    folder: Path
    about: Mapping[str, Any]
    tried: Sequence[History]
    others: Sequence[History]

    @property
    def method(self) -> str:
        """Return the name of the method in `KNOWN`."""
        return str(self.about["method"])

    @property
    def budget(self) -> int:
        """Return the image-forwards that the method may spend."""
        return int(self.about["budget"])

    @property
    def best(self) -> int:
        """Return the number of the tried settings that end best on the validation part."""
        return int(np.nanargmax([history.rows[-1].val_accuracy for history in self.tried]))

    @property
    def histories(self) -> list[History]:
        """Return the runs with the chosen settings, one for each seed."""
        return [self.tried[self.best], *self.others]

    @property
    def finished(self) -> bool:
        """Return whether all settings have been tried."""
        return len(self.tried) == len(self.about["tried"])

    @property
    def accuracies(self) -> torch.Tensor:
        """Return the test accuracy at the end of the runs, in %."""
        ends = [100 * history.rows[-1].test_accuracy for history in self.histories]
        return torch.tensor(ends, dtype=torch.float64)


def read_entry(folder: Path) -> Entry:
    """Return the entry in a folder, finished or not. Raises ValueError where a file is torn or missing."""
    about = _about(folder)
    tried = [path for k in range(len(about["tried"])) if (path := folder / f"tried_{k}.csv").exists()]
    entry = Entry(folder, about, [*map(_history, tried)], [])
    if not entry.finished:
        return entry
    seeds = re.compile(rf"tried_{entry.best}_seed_\d+\.csv")
    others = sorted(path for path in folder.iterdir() if seeds.fullmatch(path.name))
    return entry._replace(others=[*map(_history, others)])


def _history(path: Path) -> History:
    """Return the history of a run of an entry. Raises ValueError where its end is missing, which scores the test."""
    history = History.load(path)
    if not history.rows or math.isnan(history.rows[-1].test_accuracy):
        raise ValueError(f"{path} is torn, as its end is missing: move it away, and that run is made anew")
    return history


def _about(folder: Path) -> dict[str, Any]:
    """Return the content of an entry's settings.json. Raises ValueError where it is torn or missing."""
    path = folder / "settings.json"
    if not path.exists():
        raise ValueError(f"{folder} holds no entry, as there is no {path.name}: make that entry first")
    try:
        about = json.loads(path.read_text())
        whole = {"method", "budget", "tried", "machines"} <= {*about}
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is torn, or no settings of an entry: move {folder} away, and the entry is made anew")
    return dict(about)


def read_board(board: str | Path) -> list[Entry]:
    """Return the entries of a scoreboard that are finished, in the order of `KNOWN`, the smallest budget first."""
    found = [read_entry(path.parent) for path in Path(board).glob("*/*/settings.json")]
    return sorted((one for one in found if one.finished), key=lambda one: ([*KNOWN].index(one.method), one.budget))


@dataclass
class Board:
    """What is compared."""

    methods: str = field(default=",".join(METHODS), metadata={"more": ",".join(IDEAS)})
    """separated by commas; those by default, or ideas by which RSO may pay less:"""
    budgets: str = "300000,1000000"
    """image-forwards, separated by commas"""
    seeds: int = 3
    """runs with the chosen settings: the seeds 0, 1 …"""
    batch_size: int = 128
    """images of an evaluation, where a method has none of its own, and no cycles that give it one"""
    tuned_at: int | None = None
    """a smaller budget, whose chosen settings are taken; else each budget has its settings tried"""


def make_entry(
    board: Path, method: str, budget: int, asked: Board, what: command.What, data: Data, *, progress: bool = True
) -> Entry:
    """Make an entry, or its missing histories: a history that is there is not made again.

    Raises ValueError where the data have no validation part, or no labels, which leaves no folder; where the folder has
    an entry of other settings or images, and where the smaller budget that gives the settings has no entry; `Busy`
    where another process makes it.
    """
    if not len(data.val):
        raise ValueError("settings are chosen on the validation part, which is empty: set val_size to at least 1")
    if not all(labelled(part.labels) for part in data.parts.values()):
        raise ValueError(f"methods are compared by their accuracy, and the targets of {data.name} are no labels")
    if asked.tuned_at is None:
        weights = count_weights(_net(vars(what), data, seed=0))
        tried = settings_tried(KNOWN[method], budget, weights, asked.batch_size)
    else:
        tuned = read_entry(board / str(asked.tuned_at) / method)
        if not tuned.finished:
            raise ValueError(f"{tuned.folder} has not tried all of its settings yet: make that entry first")
        tried = [tuned.about["tried"][tuned.best]]
    about = {
        **vars(what),
        "method": method,
        "budget": budget,
        "batch_size": asked.batch_size,
        "tuned_at": asked.tuned_at,
        "tried": tried,
        "data": facts(data),
    }
    _check_board(board, about)
    folder = board / str(budget) / method
    make(folder)
    with alone(folder):
        _check(folder, about)
        finish = partial(_finish, folder, about, data, progress=progress)
        entry = Entry(folder, about, [finish(f"tried_{k}", one, 0) for k, one in enumerate(tried)], [])
        others = [finish(f"tried_{entry.best}_seed_{seed}", tried[entry.best], seed) for seed in range(1, asked.seeds)]
        return entry._replace(others=others)


def _net(about: Mapping[str, Any], data: Data, seed: int) -> nn.Module:
    """Return the net of an entry, initialised with a seed."""
    options = command.options_of(about["net"], about["net_options"])
    return runs.build_net(about["net"], data.shape, len(data.classes), seed, **options)


def _finish(
    folder: Path,
    about: Mapping[str, Any],
    data: Data,
    name: str,
    settings: Mapping[str, Any],
    seed: int,
    *,
    progress: bool,
) -> History:
    """Return the history of a run of an entry, which is made where its file is missing."""
    path = folder / f"{name}.csv"
    if not path.exists():
        device = data.train.images.device
        net = _net(about, data, seed).to(device)
        method = KNOWN[about["method"]].run
        history = play(method, net, data, about["budget"], seed, settings, progress=progress)
        write_settings(
            folder / "settings.json", about, machine(device)
        )  # after the run: one that cannot begin leaves no settings
        with replacing(path) as part:
            history.save(part)
    return _history(path)


def _check_board(board: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError where the methods of a board are compared on another net or on other images."""
    for path in [*board.glob("*/*/settings.json")][:1]:  # all others were compared with it
        alike = (*vars(command.What()), "data")
        there, here = ({name: each[name] for name in alike} for each in (_about(path.parent), about))
        if unlike := runs.describe_differences(there, json.loads(json.dumps(here))):
            raise ValueError(f"{board} compares methods on another net or images; choose another folder:\n{unlike}")


def _check(folder: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError where a folder holds an entry of other settings."""
    if not (folder / "settings.json").exists():
        return
    there = _about(folder)
    del there["machines"]
    if unlike := runs.describe_differences(there, json.loads(json.dumps(about))):
        raise ValueError(f"{folder} holds an entry of other settings or images; choose another folder:\n{unlike}")


def command_of(entry: Entry, board: str) -> str:
    """Return the command that makes an entry, or its missing histories."""
    default = {**vars(command.What()), **vars(Board())}
    always = {"methods": entry.method, "budgets": entry.budget, "seeds": len(entry.histories)}
    given = {name: {**entry.about, **always}.get(name, value) for name, value in default.items()}
    return command.command_line(f"scoreboard {board}", given, default, always)


# Tables


def in_words(budget: float) -> str:
    """Return a number of image-forwards as a word, such as 300 k, 10 M or 1 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if budget >= size:
            return f"{budget / size:g} {unit}"
    return f"{budget:g}"


def tabulate_entries(entries: Sequence[Entry]) -> pandas.DataFrame:
    """Return a row for each entry: method, budget, seeds, test accuracy in % with its standard error, settings."""
    rows = [
        {
            "method": KNOWN[one.method].label,
            "budget": one.budget,
            "seeds": len(one.histories),
            "accuracy": float(one.accuracies.mean()),
            "error": standard_error(one.accuracies),
            "seconds": float(np.mean([history.rows[-1].seconds for history in one.histories])),
            "settings": ", ".join(f"{name}={value}" for name, value in one.about["tried"][one.best].items()),
        }
        for one in entries
    ]
    return pandas.DataFrame(rows)


def board_page(entries: Sequence[Entry], board: str) -> str:
    """Return the page of a scoreboard in Markdown: a table of test accuracies, the chosen settings, the commands."""
    found, about = tabulate_entries(entries), entries[0].about
    budgets = sorted(found.budget.unique())
    rows = []
    for method, mine in found.groupby("method", sort=False):
        reached = {row.budget: _accuracy(row) for row in mine.itertuples()}
        rows.append([method, *(reached.get(budget, "") for budget in budgets)])
    columns = zip(found.method, found.budget, found.seeds, found.settings, found.seconds, strict=True)
    chosen = [[method, in_words(budget), seeds, which, f"{time:.0f}"] for method, budget, seeds, which, time in columns]
    parts = [
        f"# Scoreboard: `{about['net']}` on `{about['dataset']}`",
        PAGE.strip(),
        table(["method", *map(in_words, budgets)], "l" + "r" * len(budgets), rows),
        table(["method", "budget", "seeds", "settings", "seconds of a run"], "lrrlr", chosen),
        "\n".join(["```", *(command_of(one, board) for one in entries), "```"]),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(row: Any) -> str:
    """Return the mean test accuracy of an entry with its standard error, or with the remark that it has one seed."""
    return f"{row.accuracy:.2f} ± {row.error:.2f}" if row.seeds > 1 else f"{row.accuracy:.2f} (one seed)"


def _budgets(text: str) -> list[int]:
    """Read budgets such as "3e5,1000000". Raises ValueError where one is not a whole number of at least 1."""
    found = numbers("budgets", text, float)
    if wrong := [one for one in found if not (one >= 1 and one.is_integer())]:
        raise ValueError(f"budgets must be whole numbers of at least 1, not {wrong[0]:g}")
    return [int(one) for one in found]


PAGE = """
Test accuracy in % at the end of a budget of image-forwards, the mean over seeds with its standard error. The validation
part chose the settings, with the seed 0; the test part was scored once, at the end of a run. An image of RSO counts as
Algorithm 1 counts it, and one of backpropagation as three. `python -m rso_lib scoreboard` writes this page. Seconds are
those of a machine that had other work, too. With `--tuned-at` a budget has the settings that a smaller one chose.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the entries of a scoreboard that are missing, and write its page, BOARD/README.md.

    What is there is not made again, a stopped run begins anew, and several processes may share a board.
    """
    given = command.parse("scoreboard", main, arguments, command.What, Board, command.Place, folder="BOARD")
    with command.ending("scoreboard"):
        board, place = folder_at(given.pop("folder"), "BOARD"), command.take_place(given)
        what = command.What(**{name: given.pop(name) for name in vars(command.What()) if name in given})
        asked = Board(**given)
        check_whole("seeds", asked.seeds, least=1)
        check_whole("batch_size", asked.batch_size, least=1)
        methods, budgets = asked.methods.split(","), _budgets(asked.budgets)
        for method in methods:
            check_choice("methods", method, KNOWN)
        runs.check_dataset(what.dataset)
        data = load(what.dataset, **place, seed=what.data_seed, val_size=what.val_size)
        for budget in budgets:
            for method in methods:
                print(f"{KNOWN[method].label}, {in_words(budget)} image-forwards", flush=True)
                with suppress(Busy):
                    make_entry(board, method, budget, asked, what, data)
                _write_page(board)


def _write_page(board: Path) -> None:
    """Write the page of a scoreboard, after the other processes that share it."""
    with alone(board, wait=True):
        if entries := read_board(board):
            with replacing(board / "README.md") as part:
                part.write_text(board_page(entries, board.as_posix()))
