"""`python -m rso_lib train`, and what all commands share: options, errors in one message, a clean end by interrupt."""

import ast
import inspect
import io
import math
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Required, TypedDict, Union, get_args, get_origin, get_type_hints

import torch

from ..history import Report
from ..settings import RSO, check_whole
from . import folder as runs
from . import presets
from . import processes as parallel
from .files import folder_at
from .nets import NETS, read_options
from .processes import world


@dataclass
class What:
    """Options: net and data."""

    dataset: str = "digits"
    """digits (with batches of 128), mnist, fashion_mnist, kmnist, qmnist, emnist, cifar10, cifar100, folder:PATH, or
    module:function, a function (seed, val_size) that returns Data"""
    net: str = field(default="one_conv", metadata={"more": ", ".join(NETS)})
    """module:function, or one of these, initialised with the seed of the run:"""
    net_options: str = ""
    """of the net, separated by commas, such as depth=5,head=mean"""
    data_seed: int = 0
    """of the split in training and validation part"""
    val_size: int | None = None
    """training images kept for validation; else 5000, or a tenth if that is less"""


@dataclass
class Score:
    """Options: loss and metric."""

    loss: str = "cross_entropy"
    """or module:function, from outputs and targets to the loss of each image"""
    metric: str = "accuracy"
    """or module:function, from outputs and targets to a number for each image; more is better"""


@dataclass
class Place:
    """Options: device, threads and data."""

    device: str = "cpu"
    """such as cuda"""
    threads: int | None = None
    """of the CPU; else as many as torch chooses"""
    data_root: str | None = None
    """folder of downloaded images; else $RSO_DATA, or data"""


@dataclass
class Size:
    """Options: the size of the run."""

    preset: str | None = field(default=None, metadata={"more": presets.describe_presets()})
    """values for some settings, to be overridden:"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Begin a run in a folder, or go on with the one that is there, and train to its end.

    A run that was stopped, in whatever way, goes on with the same command, or with the folder alone, and ends with the
    bits of an unbroken run.
    """
    given = parse("train", main, arguments, Size, What, Score, RSO, Place, folder="RUNFOLDER")
    with ending("train"):
        folder, preset = folder_at(given.pop("folder"), "RUNFOLDER"), given.pop("preset", None)
        place = take_place(given)
        place["device"] = parallel.join(place["device"])
        if preset is not None:
            given = presets.choose_preset(preset, **given)
        stored = world.tell(world.together(lambda: _stored(folder)))
        run = runs.start(folder, **world.together(lambda: _asked(given, stored)), **place)
        if not run.finished:
            sys.exit(130)
        if world.rank == 0:
            print(describe_run(run))
        parallel.leave()


def _stored(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder, if there is one; only process 0 reads them."""
    return runs.settings_of(folder) if not world.rank and (folder / "settings.json").exists() else {}


def _asked(given: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `start`: a setting that is not given is as the folder has it, or else the default."""
    asked = {**vars(What()), **vars(Score()), **stored, **given}
    asked.setdefault("batch_size", presets.batch_size(asked["dataset"]))
    what = {name: asked.pop(name) for name in runs.WHAT}
    what["net_options"] = options_of(what["net"], what["net_options"])
    return {**what, "settings": RSO(**asked)}


def describe_run(run: runs.Run) -> str:
    """Return the result of a finished run in a few lines."""
    kind, final = score_of(run.history.last)
    what = run.settings["metric"].rpartition(":")[2] if kind == "accuracy" else kind
    rows = {f"test {what}, final": f"{final:.4f}"}
    if run.history.validated:
        best = run.history.best
        rows[f"test {what} at best validation"] = f"{score_of(best)[1]:.4f} (cycle {best.cycle})"
    rows["seconds"] = f"{run.history.last.seconds:.1f}"
    return "\n".join(f"{name:<34} {value}" for name, value in rows.items())


def score_of(row: Report) -> tuple[str, float]:
    """Return "accuracy" and its value on the test part, or "loss" and its value where no accuracy was measured."""
    kind = "loss" if math.isnan(row.test_accuracy) else "accuracy"
    return kind, getattr(row, f"test_{kind}")


def command_line(words: str, given: Mapping[str, Any], default: Mapping[str, Any], always: Collection[str] = ()) -> str:
    """Return the command with these words and options: those of `always`, and those that are not the default."""
    names = [name for name in given if name in always or given[name] != default[name]]
    options = [f"--{name.replace('_', '-')} {_word(given[name])}" for name in names]
    return " ".join([f"python -m rso_lib {words}", *options])


def _word(value: Any) -> str:
    """Return a value as the command line reads it."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={one}" for name, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def options_of(net: str, options: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a net, which the command line has as a text, and a folder as a table."""
    if isinstance(options, Mapping):
        return options
    return read_options(net, options) if options else {}


# What all commands share


def parse(
    command: str,
    about: Any,
    arguments: Sequence[str] | None,
    *settings: type,
    folder: str | None = None,
    leave_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the options that are given, by name; end the program where one is wrong, or --help is asked for.

    about      the function or class whose docstring --help shows
    settings   dataclasses whose fields are options, each with its type, default, and the string below it as help
    folder     how --help calls the folder that comes first, if one does
    """
    import tyro

    any_terminal()
    first = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar=folder, help="where files are read and written")]
    entries: dict[str, Any] = {"folder": Required[first]} if folder else {}
    for one in settings:
        kinds, said = get_type_hints(one), documents(one)
        for each in fields(one):
            if each.name not in leave_out:
                text = " ".join(filter(None, [said.get(each.name), each.metadata.get("more")]))
                entry = tyro.conf.arg(help=text, help_behavior_hint=_default(each))
                entries[each.name] = Annotated[_on_the_line(kinds[each.name]), entry]
    options: Any = TypedDict("Options", entries, total=False)  # type: ignore[misc]  # whatever fields there are
    prog, description, config = f"python -m rso_lib {command}", inspect.getdoc(about), (tyro.conf.FlagConversionOff,)
    lists = {f"--{each.name}" for one in settings for each in fields(one) if isinstance(each.default, tuple)}
    words = _apart(sys.argv[1:] if arguments is None else arguments, lists)
    return dict(tyro.cli(options, prog=prog, description=description, args=words, config=config))


def _apart(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """Give each number of a list a word of its own: --candidates 0,1,-1 is --candidates 0 1 -1."""
    found, inside = list[str](), False
    for word in words:
        inside = word in lists or (inside and not word.startswith("--"))
        found.extend(filter(None, word.split(",")) if inside else [word])
    return found


def documents(settings: type) -> dict[str, str]:
    """Return the string below each field of a class."""
    [body] = ast.parse(inspect.getsource(settings)).body
    assert isinstance(body, ast.ClassDef)
    return {
        entry.target.id: " ".join(str(below.value.value).split())
        for entry, below in pairwise(body.body)
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def _default(entry: Any) -> str:
    """Return the words of --help for a default, such as "(default: 50)"; nothing for None."""
    words = " ".join(map(str, entry.default)) if isinstance(entry.default, (tuple, list)) else entry.default
    return "" if words in (None, "") else f"(default: {words})"


def _on_the_line(kind: Any) -> Any:
    """Return the type of a field as it can be written: a callable is given by its name, and None by leaving it out."""
    kinds = [one for one in get_args(kind) if one in PLAIN] if get_origin(kind) is not tuple else []
    return Union[tuple(kinds)] if kinds else kind  # noqa: UP007  # there may be any number of them


PLAIN = (bool, int, float, str)


def any_terminal() -> None:
    """Let a terminal that lacks a letter, such as σ, show a question mark, and one that is closed (>&-) nothing.

    One that is too narrow for a word is taken for one of the usual width, as tyro would break lines for ever.
    A closed stream's number is taken, or the next file that is opened would get what is meant for the terminal.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115  # for as long as the program runs
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "80"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextmanager
def ending(command: str) -> Iterator[None]:
    """End the program with a sentence: with status 2 where something is wrong, with 130 after an interrupt."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        end(2, f"{command}: {error}")
    except KeyboardInterrupt:
        end(130, f"{command}: {STOPPED}")


STOPPED = "stopped before the end; what was saved is still there, and the same command goes on"


def end(status: int, words: str) -> None:
    """End the program with a status and a sentence."""
    print(words, file=sys.stderr, flush=True)
    if world.size > 1:
        os._exit(status)  # torch would abort where Python ends and a process is lost
    sys.exit(status)


def take_place(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `Place` out of the arguments: set the threads, and return device and root for `load`."""
    if (threads := given.pop("threads", None)) is not None:
        set_threads(threads)
    return {"device": given.pop("device", Place.device), "root": given.pop("data_root", None)}


def set_threads(threads: int) -> None:
    """Let PyTorch use so many threads of the CPU. Raises ValueError for fewer than one, or for absurdly many."""
    check_whole("threads", threads, least=1)
    if threads > (most := 16 * (os.cpu_count() or 1)):
        raise ValueError(f"threads must be at most {most} on this machine of {os.cpu_count()} cores, not {threads}")
    torch.set_num_threads(threads)
