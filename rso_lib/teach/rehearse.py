"""Rehearse the run sheet of a lecture against a clock: `python -m rso_lib.teach.rehearse`.

The notebooks that it names are executed, and what their cells take is written into teach/run_sheet.md.
"""

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from ..lab import demo
from . import editions

SHEET = editions.PROJECT / "teach" / "run_sheet.md"
CLOCK = re.compile(r"(<!-- clock -->\n).*?(<!-- end -->)", re.DOTALL)
ROW = re.compile(r"^\| (\d+) \| (?:(\d\d), ([^|]*))?\| (?:`([^`]*)` )?\|", re.MULTILINE)


class Row(NamedTuple):
    """A row of the run sheet: from which minute to which, the section of which notebook, and the cell that is run."""

    minute: int
    until: int
    number: str
    section: str
    cell: str


def main() -> None:
    """Execute the notebooks, and write the clock. Raises ValueError where a row takes longer than its minutes."""
    text = SHEET.read_text(encoding="utf-8")
    rows = read_table(text)
    with tempfile.TemporaryDirectory() as folder:
        done = {path.stem[:2]: executed(path, Path(folder)) for path in editions.sources() if _runs(path, rows)}
    lines = ["| minute | notebook | its cells, all | this section | the cell |", "|---:|---|---:|---:|---:|"]
    for row in rows:
        if row.number in done and row.cell:
            notebook = done[row.number]
            whole, part, one = (sum(map(seconds, cells)) for cells in (notebook.cells, *places(notebook, row)))
            if one > 60 * (row.until - row.minute):
                raise ValueError(f"minute {row.minute}: the cell takes {one:.0f} s, longer than the row")
            lines.append(f"| {row.minute} | {row.number} | {whole:.0f} s | {part:.0f} s | {one:.1f} s |")
    where = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    written = "\n".join(["", *lines, "", f"({where}; the machine had other work.)", ""])
    SHEET.write_text(CLOCK.sub(lambda found: f"{found[1]}{written}{found[2]}", text), encoding="utf-8")


def read_table(text: str) -> list[Row]:
    """Return the rows of the run sheet, each until the next one begins."""
    found = [(int(minute), *words) for minute, *words in ROW.findall(text.partition("## When")[0])]
    return [Row(row[0], after[0], row[1], row[2].strip(), row[3]) for row, after in pairwise(found)]


def places(notebook: NotebookNode, row: Row) -> tuple[list[NotebookNode], list[NotebookNode]]:
    """Return the code cells of a row's section, and those that begin like its cell. Raises ValueError for none."""
    found, inside, code = False, False, []
    for cell in notebook.cells:
        if cell.cell_type == "code" and inside:
            code.append(cell)
        elif cell.cell_type == "markdown" and (titles := list(headings(cell.source))):
            inside = any(title.endswith(row.section) for title in titles)
            found = found or inside
    chosen = [cell for cell in code if row.cell and cell.source.startswith(row.cell)]
    if not found:
        raise ValueError(f"minute {row.minute}: notebook {row.number} has no section {row.section!r}")
    if row.cell and not chosen:
        raise ValueError(f"minute {row.minute}: no cell of {row.section!r} begins with {row.cell!r}")
    return code, chosen


def headings(source: str) -> Iterator[str]:
    """Yield the headings of a text cell, of any level."""
    yield from re.findall(r"^#+ (.*)$", source, re.MULTILINE)


def executed(path: Path, folder: Path) -> NotebookNode:
    """Return a notebook as papermill executes it, with the seconds of each cell."""
    demo.execute(path, folder / path.name, {"out": str(folder / "out")})
    return nbformat.read(folder / path.name, as_version=4)


def seconds(cell: NotebookNode) -> float:
    """Return the seconds that a cell took."""
    return float(cell.metadata.get("papermill", {}).get("duration") or 0)


def _runs(path: Path, rows: list[Row]) -> bool:
    return any(row.number == path.stem[:2] and row.cell for row in rows)


if __name__ == "__main__":
    main()
