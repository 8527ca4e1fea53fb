"""The notebooks' install cell: nothing at home and on Binder, what is missing on Colab and Kaggle.

    python -m rso_lib.teach.setup_cell git+https://…    puts it into every notebook, or brings it up to date

There, torch and Jupyter are installed, and must stay as they are: pip would replace what the running page needs.
"""

import sys
from collections.abc import Sequence

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from . import editions

TAG = "setup"
CELL = """import importlib.util, os, subprocess, sys

hosted = "COLAB_RELEASE_TAG" in os.environ or "KAGGLE_KERNEL_RUN_TYPE" in os.environ
if hosted and not importlib.util.find_spec("rso_lib"):  # at home there is nothing to do
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "SOURCE"], check=True)
    subprocess.run([*pip, "tyro"], check=True)
    importlib.invalidate_caches()"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Put the install cell into the notebooks of the series, given where pip finds the library."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1:
        sys.exit("usage: python -m rso_lib.teach.setup_cell git+https://…")
    for path in editions.sources():
        notebook = nbformat.read(path, as_version=4)
        insert(notebook, words[0])
        nbformat.write(notebook, path)


def insert(notebook: NotebookNode, source: str) -> None:
    """Put the install cell before the first code cell, or replace the one that is there."""
    cells = [cell for cell in notebook.cells if TAG not in cell.metadata.get("tags", [])]
    first = next(k for k, cell in enumerate(cells) if cell.cell_type == "code")
    cells.insert(first, new_code_cell(CELL.replace("SOURCE", source), id=TAG, metadata={"tags": [TAG]}))
    notebook.cells = cells


if __name__ == "__main__":
    main()
