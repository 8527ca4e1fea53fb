"""Functions that a notebook defines in its cells, so that they can be tested like the library's."""

import ast
import json
from collections.abc import Callable
from typing import Any

from conftest import PROJECT


def function_of(notebook: str, name: str, **names: Any) -> Callable[..., Any]:
    """Return a function of notebooks/NOTEBOOK.ipynb, which finds these names where it looks for the notebook's."""
    cells = json.loads((PROJECT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    [source] = [source for cell in cells if f"def {name}(" in (source := "".join(cell["source"]))]
    [found] = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
    exec(compile(ast.Module([found], []), notebook, "exec"), names)
    return names[name]
