"""Begin a run in a folder, or take up the one that is there, and train to its end."""

import argparse
import ast
import inspect
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..settings import RSO, check_choice, check_whole
from . import folder as runs
from . import presets
from . import processes as parallel
from .processes import world

Options = Mapping[str, tuple[Any, str]]
"""Of a command line, by name: the default and what --help says."""
NETS = ", ".join(runs.NETS)
WHAT: Options = {
    "dataset": ("digits", "digits (with batches of 128), mnist, fashion_mnist, kmnist, cifar10 or folder:PATH"),
    "net": ("one_conv", f"{NETS}; initialised with the seed of the run"),
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
    folder, preset = Path(given.pop("folder")), given.pop("preset", None)
    try:
        place = take_place(given)
        place["device"] = parallel.join(place["device"])
        run = _run(folder, presets.choose(preset, **given) if preset else given, place)
    except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if not run.finished:
        sys.exit(130)
    if world.rank == 0:
        print(summary(run))
    parallel.leave()


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
    there = runs.settings_of(folder) if world.rank == 0 and (folder / "settings.json").exists() else {}
    asked = {**{name: default for name, (default, _) in WHAT.items()}, **world.tell(there), **given}
    asked.setdefault("batch_size", presets.batch_size(asked["dataset"]))
    what = {name: asked.pop(name) for name in WHAT}
    settings = RSO(**asked)
    return runs.start(folder, **what, settings=settings, **place)


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
    """Let a terminal that lacks a letter, such as σ, show a question mark instead of an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def take_place(given: dict[str, Any]) -> dict[str, Any]:
    """Take what `PLACE` has out of the arguments: set the threads, and return device and root as `load` has them.

    Raises ValueError for fewer threads than one.
    """
    if (threads := given.pop("threads", None)) is not None:
        check_whole("threads", threads, least=1)
        torch.set_num_threads(threads)
    return {"device": given.pop("device", "cpu"), "root": given.pop("data_root", None)}


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


def _options(text: str) -> dict[str, Any]:
    """depth=5,head=mean → {"depth": 5, "head": "mean"}"""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} must be names with values, such as depth=5,head=mean")
    return {name.strip(): _literal(value.strip()) for name, _, value in pairs}


KINDS: dict[str, Any] = {
    "net_options": _options,
    "val_size": int,
    "first_batch": int,
    "threads": int,
    "target": float,
}
"""How the values are read of which the default does not tell."""


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text


def _sizes() -> str:
    lines = [" ".join(f"{name}={value}" for name, value in values.items()) for values in presets.PRESETS.values()]
    return "; ".join(f"{name}: {line}" for name, line in zip(presets.PRESETS, lines, strict=True))
