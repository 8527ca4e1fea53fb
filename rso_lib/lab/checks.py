"""Checks in the notebooks: of the answers to exercises, and of papermill's parameters."""

import ast
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..run.files import replacing
from ..settings import check_choice, check_whole, numbers

# Exercises

RIGHT = "Right."
Test = tuple[Callable[[Any], Any], str]
"""A condition that the answer must meet, and what to say where it does not."""


def check(answer: Any, *tests: Test, exercise: str = "", points: float = 1, strict: bool | None = None) -> None:
    """Print whether an answer is right, and if not the reason of the first test that fails.

    exercise  its name in answers.json beside the notebook, where its points are recorded; "" records nothing
    points    for the right answer
    strict    raise AssertionError in place of printing where the answer is not right; by default in an autograder
    """
    said = verdict(answer, *tests)
    if exercise:
        record(exercise, points if said == RIGHT else 0, points, said)
    if said != RIGHT and (in_autograder() if strict is None else strict):
        raise AssertionError(said)
    print(said)


def record(exercise: str, points: float, of: float, said: str, file: Path = Path("answers.json")) -> None:
    """Write the points of an answer into a file, beside the points of the other exercises."""
    there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    there[exercise] = {"points": points, "of": of, "said": said}
    with replacing(file) as part:
        part.write_text(json.dumps(there, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def in_autograder() -> bool:
    """Return whether nbgrader runs this notebook, or RSO_STRICT=1 is set."""
    return bool(os.environ.get("NBGRADER_EXECUTION")) or os.environ.get("RSO_STRICT") == "1"


def verdict(answer: Any, *tests: Test) -> str:
    """Return the sentence that `check` prints. An answer of None is not given yet."""
    if answer is None:
        return "Not answered yet."
    for holds, reason in tests:
        try:
            right = bool(holds(answer))
        except Exception as error:
            return f"Not yet: your answer raises {type(error).__name__}: {error}"
        if not right:
            return f"Not yet: {reason}"
    return RIGHT


# Parameters: papermill adds a misspelt one without a word

INJECTED = "# Parameters"
"""The first line of the cell that papermill adds after the cell tagged `parameters`."""


def check_parameters() -> None:
    """Raise ValueError or TypeError if papermill added a parameter that the notebook's `parameters` cell does not take.

    Call it in the cell after the one tagged `parameters`. It looks at the sources of the cells that have run,
    so outside a notebook, or without papermill, there is nothing to check.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    variables = shell.user_ns if shell else {"In": []}
    cells = variables["In"]
    added = [k for k, source in enumerate(cells) if source.splitlines()[:1] == [INJECTED]]
    if added:
        given, known = cells[added[-1]], cells[added[0] - 1]
        check_names(assigned_names(given), assigned_names(known))
        values = {name: variables[name] for name in assigned_names(given)}  # NaN and infinity are no literals
        check_values(values | assigned_values(given), assigned_values(known))


def check_names(names: list[str], known: list[str]) -> None:
    """Raise ValueError, with the nearest known name, for the first name that is not known."""
    if names and not known:
        raise ValueError(f"no cell tagged `parameters` has run that could take {', '.join(names)}")
    for name in names:
        check_choice("a parameter", name, known)


def check_values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for the first value that its parameter does not take, by the parameter's default.

    Where that is a whole number, values are such numbers of at least 1, or 0 where the default is 0; where it is text
    such as "1, 2", they are such numbers too; where it is other text, they are text.
    """
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(default, int) and not isinstance(default, bool):
            check_whole(name, value, least=min(default, 1))
        if isinstance(default, str) and re.fullmatch(r"\d+(, *\d+)*", default):
            for number in numbers(name, value):
                check_whole(name, number, least=1)
        elif isinstance(default, str) and not isinstance(value, str):
            raise TypeError(f"{name} must be text such as {default!r}, not {value!r}: papermill gives it with -r")


def assigned_names(source: str) -> list[str]:
    """Return the names that a cell of plain assignments sets."""
    return [name for name, _ in _assigned(source)]


def assigned_values(source: str) -> dict[str, Any]:
    """Return the literals that a cell of plain assignments sets, by name."""
    found = {}
    for name, value in _assigned(source):
        with suppress(ValueError):  # no literal
            found[name] = ast.literal_eval(value)
    return found


def _assigned(source: str) -> Iterator[tuple[str, ast.expr]]:
    """Yield the names that a cell assigns to, each with its value."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield from ((target.id, statement.value) for target in targets if isinstance(target, ast.Name))
