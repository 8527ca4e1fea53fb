"""What the notebooks ask of papermill: that a misspelt parameter is an error, and not quietly ignored."""

import ast

from ..settings import check_choice

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
        check_names(assigned(cells[added[-1]]), assigned(cells[added[0] - 1]))


def check_names(names: list[str], known: list[str]) -> None:
    """Raise ValueError, with the nearest known name, for the first name that is not known."""
    if names and not known:
        raise ValueError(f"no cell tagged `parameters` has run that could take {', '.join(names)}")
    for name in names:
        check_choice("a parameter", name, known)


def assigned(source: str) -> list[str]:
    """The names that a cell of plain assignments sets."""
    statements = ast.parse(source).body
    targets = [t for s in statements for t in getattr(s, "targets", [getattr(s, "target", None)])]
    return [target.id for target in targets if isinstance(target, ast.Name)]
