"""Checks in the notebooks: of the answers to exercises, and of papermill's parameters."""

import ast
from collections.abc import Callable
from typing import Any

from ..settings import check_choice

# Exercises

Test = tuple[Callable[[Any], Any], str]
"""A condition that the answer must meet, and what to say where it does not."""


def check(answer: Any, *tests: Test) -> None:
    """Print whether an answer is right, and if not the reason of the first test that fails."""
    print(verdict(answer, *tests))


def verdict(answer: Any, *tests: Test) -> str:
    """Return what `check` prints. An answer of None is not given yet."""
    if answer is None:
        return "Not answered yet."
    for holds, reason in tests:
        try:
            right = bool(holds(answer))
        except Exception as error:
            return f"Not yet: your answer raises {type(error).__name__}: {error}"
        if not right:
            return f"Not yet: {reason}"
    return "Right."


# Parameters: papermill adds a misspelt one without a word

INJECTED = "# Parameters"
"""The first line of the cell that papermill adds after the cell tagged `parameters`."""


def check_parameters() -> None:
    """Raise ValueError if papermill added a parameter that the notebook's `parameters` cell does not have.

    Call it in the cell after the one tagged `parameters`. It looks at the sources of the cells that have run,
    so outside a notebook, or without papermill, there is nothing to check.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    cells = shell.user_ns["In"] if shell else []
    added = [k for k, source in enumerate(cells) if source.splitlines()[:1] == [INJECTED]]
    if added:
        check_names(assigned_names(cells[added[-1]]), assigned_names(cells[added[0] - 1]))


def check_names(names: list[str], known: list[str]) -> None:
    """Raise ValueError, with the nearest known name, for the first name that is not known."""
    if names and not known:
        raise ValueError(f"no cell tagged `parameters` has run that could take {', '.join(names)}")
    for name in names:
        check_choice("a parameter", name, known)


def assigned_names(source: str) -> list[str]:
    """Return the names that a cell of plain assignments sets."""
    statements = ast.parse(source).body
    targets = [t for s in statements for t in getattr(s, "targets", [getattr(s, "target", None)])]
    return [target.id for target in targets if isinstance(target, ast.Name)]
