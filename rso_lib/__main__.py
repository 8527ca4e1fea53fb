"""Run the command line: `python -m rso_lib COMMAND`, or `rso COMMAND`."""

import shlex
import sys
import warnings
from importlib import import_module

COMMANDS = {
    "train": ("run.cli", "begin a run in a folder, or go on with it"),
    "sgd": ("run.baseline", "the same nets by backpropagation"),
    "bench": ("lab.bench", "how long a step takes"),
    "scoreboard": ("lab.scoreboard", "methods against each other, for the same images through the net"),
    "figures": ("lab.redraw", "draw pictures and write pages from results/"),
    "movie": ("lab.movie", "draw figures/step.gif, one step after another"),
    "demo": ("lab.demo", "execute the first notebook"),
    "doctor": ("teach.doctor", "what is here, what is missing, what to type"),
    "classroom": ("teach.editions", "write the editions for students and instructors"),
    "grade": ("teach.grade", "grade a folder of hand-ins"),
    "book": ("teach.book", "the series as pages that need no network"),
    "slides": ("teach.slides", "slides of the notebooks that need no network"),
}
"""The module that has each command's `main`, and what the command does."""


def main() -> None:
    """Pass the arguments after the command to the module of that command, the only one that is imported."""
    if "" not in sys.path:  # `rso` finds the user's modules where `python -m rso_lib` does
        sys.path.insert(0, "")
    warnings.formatwarning = lambda message, *_, **__: f"\n{message}\n"
    name, words = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name not in COMMANDS:
        sys.exit(_unknown(name, words))
    try:
        import_module(f".{COMMANDS[name][0]}", __package__ or "rso_lib").main(words)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)


def usage() -> str:
    """Return the usage text, with a line for each command."""
    lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: python -m rso_lib COMMAND [--help] ...\n", *lines])


def _unknown(name: str, words: list[str]) -> int:
    """Print an error for an unknown command, with the nearest one or the new form of a run. Returns the exit status."""
    from .settings import check_choice

    try:
        check_choice("COMMAND", name, COMMANDS)
    except ValueError as error:
        run = shlex.join(["train", name, *words])
        hint = "" if "did you mean" in str(error) else f". For a run: python -m rso_lib {run}"
        print(f"rso_lib: {error}{hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
