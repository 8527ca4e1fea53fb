"""Begin a run in a folder, or take up the one that is there, and train to its end."""

import argparse
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..settings import RSO, check_choice, check_whole
from . import folder as runs
from . import presets
from . import processes as parallel
from .files import folder_at
from .nets import NETS, read_options
from .processes import world

Options = Mapping[str, tuple[Any, str]]
"""Of a command line, by name: the default and what --help says."""
WHAT: Options = {
    "dataset": ("digits", "digits (with batches of 128), mnist, fashion_mnist, kmnist, cifar10 or folder:PATH"),
    "net": ("one_conv", f"{', '.join(NETS)}; initialised with the seed of the run"),
    "net_options": ({}, "of the net, separated by commas, such as depth=5,head=mean"),
    "data_seed": (0, "of the split in training and validation part"),
    "val_size": (None, "training images kept for validation; else 5000, or a tenth if that is less"),
}
PLACE: Options = {
    "device": ("cpu", "such as cuda"),
    "threads": (None, "of the CPU (default: as torch chooses)"),
    "data_root": (None, "folder of downloaded images (default: $RSO_DATA, else data)"),
}
ENDING = """\
A run that was stopped, in whatever way, goes on with the same command, or with the folder alone, and
ends with the bits of an unbroken run. In names, - and _ are the same."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the command line says, and print what came out.

    Ends with status 2 and a message where something is wrong, with 130 after an interrupt.
    """
    parser = _parser()
    given = parse(parser, arguments)
    with ending(parser.prog):
        folder, preset = folder_at(given.pop("folder"), "RUNFOLDER"), given.pop("preset", None)
        place = take_place(given)
        place["device"] = parallel.join(place["device"])
        run = _run(folder, presets.choose(preset, **given) if preset else given, place)
        if not run.finished:
            sys.exit(130)
        if world.rank == 0:
            print(summary(run))
        parallel.leave()


@contextmanager
def ending(command: str) -> Iterator[None]:
    """End the program with a sentence: with status 2 where something is wrong, with 130 after an interrupt."""
    try:
        yield
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        end(2, f"{command}: {error}")
    except KeyboardInterrupt:
        end(130, f"{command}: stopped before the end; what was saved is still there, and the same command goes on")


def end(status: int, words: str) -> None:
    """End the program with a status and a sentence."""
    print(words, file=sys.stderr, flush=True)
    if world.size > 1:
        os._exit(status)  # torch would abort where Python ends and a process is lost
    sys.exit(status)


def summary(run: runs.Run) -> str:
    """What a finished run reached."""
    last = run.history.last
    lines = [f"test accuracy, final               {last.test_accuracy:.4f}"]
    if run.history.validated:
        best = run.history.best
        lines.append(f"test accuracy at best validation   {best.test_accuracy:.4f} (cycle {best.cycle})")
    return "\n".join([*lines, f"seconds                            {last.seconds:.1f}"])


def _run(folder: Path, given: dict[str, Any], place: dict[str, Any]) -> runs.Run:
    """Start or resume: a setting that is not given is as the folder has it, or else the default."""
    there = world.tell(world.together(lambda: _stored(folder)))
    return runs.start(folder, **world.together(lambda: _asked(given, there)), **place)


def _stored(folder: Path) -> dict[str, Any]:
    """The settings of the run that is there, in the process that keeps the folder."""
    return runs.settings_of(folder) if not world.rank and (folder / "settings.json").exists() else {}


def _asked(given: Mapping[str, Any], there: Mapping[str, Any]) -> dict[str, Any]:
    """What `start` is called with."""
    asked = {**{name: default for name, (default, _) in WHAT.items()}, **there, **given}
    asked.setdefault("batch_size", presets.batch_size(asked["dataset"]))
    what = {name: asked.pop(name) for name in WHAT}
    if isinstance(what["net_options"], str):
        what["net_options"] = read_options(what["net"], what["net_options"])
    return {**what, "settings": RSO(**asked)}


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> dict[str, Any]:
    """The arguments that are given. A name that is not known ends the program with the nearest one."""
    any_terminal()
    known = [option for action in parser._actions for option in action.option_strings]
    given, unknown = parser.parse_known_args(map(_dashed, sys.argv[1:] if arguments is None else arguments))
    for word in unknown:
        try:
            check_choice("a setting", word.partition("=")[0], known)
        except ValueError as error:
            parser.error(str(error))
    return vars(given)


def any_terminal() -> None:
    """Let a terminal that lacks a letter, such as σ, show a question mark, and one that is closed (>&-) nothing.

    A closed stream's number is taken, or the next file that is opened would get what is meant for the terminal.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115  # for as long as the program runs
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def take_place(given: dict[str, Any]) -> dict[str, Any]:
    """Take what `PLACE` has out of the arguments: set the threads, and return device and root as `load` has them.

    Raises ValueError for fewer threads than one.
    """
    if (threads := given.pop("threads", None)) is not None:
        set_threads(threads)
    return {"device": given.pop("device", "cpu"), "root": given.pop("data_root", None)}


def set_threads(threads: int) -> None:
    """Let PyTorch use so many threads of the CPU. Raises ValueError for fewer than one, or for absurdly many."""
    check_whole("threads", threads, least=1)
    if threads > (most := 16 * (os.cpu_count() or 1)):
        raise ValueError(f"threads must be at most {most} on this machine of {os.cpu_count()} cores, not {threads}")
    torch.set_num_threads(threads)


def new_parser(command: str, **options: Any) -> argparse.ArgumentParser:
    """Of `python -m COMMAND`: what is not given has no value."""
    return argparse.ArgumentParser(
        f"python -m {command}", argument_default=argparse.SUPPRESS, allow_abbrev=False, **options
    )


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("rso_lib", usage="%(prog)s RUNFOLDER [settings]", description=__doc__, epilog=ENDING)
    parser.add_argument("folder", metavar="RUNFOLDER", help="where settings, history and checkpoint are written")
    group = parser.add_argument_group("what is trained")
    group.add_argument(
        "--preset", choices=presets.PRESETS, help=f"values for some settings, to be overridden: {_sizes()}"
    )
    add(group, WHAT)
    add(parser.add_argument_group("how it is searched"), described(RSO))
    add(parser.add_argument_group("where it runs"), PLACE)
    return parser


def add(group: Any, options: Options) -> None:
    """Add options to a group of a parser."""
    for name, (default, text) in options.items():
        kind = KINDS.get(name, str if default is None else type(default))
        metavar = {int: "N", float: "X"}.get(kind, "NAME")
        text = text if default in (None, {}) else f"{text} (default: {default})"
        group.add_argument(_dashed(f"--{name}"), type=kind, metavar=metavar, help=text.replace("%", "%%"))


def described(settings: type) -> Options:
    """The fields of a class of settings, with what its docstring says about each."""
    entries = re.findall(r"^(\w+) {2,}(.+(?:\n {2,}.+)*)", inspect.getdoc(settings) or "", re.MULTILINE)
    docs = {name: " ".join(text.split()) for name, text in entries}
    return {field.name: (field.default, docs[field.name]) for field in fields(settings)}


def _dashed(word: str) -> str:
    """--batch_size=10 → --batch-size=10"""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


KINDS: dict[str, Any] = {
    "net_options": str,
    "val_size": int,
    "first_batch": int,
    "threads": int,
    "target": float,
}
"""How the values are read of which the default does not tell."""


def _sizes() -> str:
    lines = [" ".join(f"{name}={value}" for name, value in values.items()) for values in presets.PRESETS.values()]
    return "; ".join(f"{name}: {line}" for name, line in zip(presets.PRESETS, lines, strict=True))
