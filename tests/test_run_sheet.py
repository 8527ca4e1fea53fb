"""The run sheet of a lecture fits the notebooks as they are."""

import re
from itertools import pairwise
from typing import NamedTuple

import nbformat
import pytest

from rso_lib.teach import editions

SHEET, _, CLOCK = (editions.PROJECT / "teach" / "run_sheet.md").read_text(encoding="utf-8").partition("## When")
ROW = re.compile(r"^\| (\d+) \| (?:(\d\d), ([^|]*))?\| (?:`([^`]*)` )?\|", re.MULTILINE)


class Row(NamedTuple):
    """A row of the sheet: its minute, the notebook and its section, and how the cell begins that is run."""

    minute: str
    notebook: str
    section: str
    cell: str


*ROWS, END = [Row(*words) for words in ROW.findall(SHEET)]


def test_it_fills_ninety_minutes() -> None:
    minutes = [int(row.minute) for row in (*ROWS, END)]
    assert (minutes[0], minutes[-1]) == (0, 90)
    assert all(2 <= after - before <= 15 for before, after in pairwise(minutes))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"minute {row.minute}")
def test_every_place_is_there(row: Row) -> None:
    [path] = [path for path in editions.sources() if path.stem.startswith(row.notebook)]
    inside, found, cells = False, False, []
    for cell in nbformat.read(path, as_version=4).cells:
        headings = re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        if headings:
            inside = any(heading.endswith(row.section.strip()) for heading in headings)
            found = found or inside
        elif inside:
            cells.append(cell.source)
    assert found, f"notebook {row.notebook} has no section {row.section!r}"
    assert not row.cell or any(source.startswith(row.cell) for source in cells), f"no cell begins with {row.cell!r}"


def test_the_clock_was_written_for_these_rows() -> None:
    clock = re.findall(r"^\| (\d+) \| (\d\d) \|", CLOCK, re.MULTILINE)
    assert clock == [(row.minute, row.notebook) for row in ROWS if row.cell]
