"""The run sheet of a lecture fits the notebooks as they are."""

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from rso_lib.teach import editions, rehearse
from rso_lib.teach.rehearse import Row

TEXT = rehearse.SHEET.read_text(encoding="utf-8")
ROWS = rehearse.read_table(TEXT)


def test_it_fills_ninety_minutes() -> None:
    assert (ROWS[0].minute, ROWS[-1].until) == (0, 90)
    assert all(2 <= row.until - row.minute <= 15 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"minute {row.minute}")
def test_every_place_is_there(row: Row) -> None:
    [path] = [path for path in editions.sources() if path.stem.startswith(row.number)]
    rehearse.places(nbformat.read(path, as_version=4), row)


def test_the_clock_was_written_for_these_rows() -> None:
    clock = re.findall(r"^\| (\d+) \| (\d\d) \|", rehearse.CLOCK.search(TEXT)[0], re.MULTILINE)
    assert clock == [(str(row.minute), row.number) for row in ROWS if row.cell]


def test_a_place_that_is_not_there_is_an_error() -> None:
    cells = [new_markdown_cell("# T\n\n## 1. A"), new_code_cell("a = 1"), new_markdown_cell("text"), new_code_cell("b")]
    notebook = new_notebook(cells=[*cells, new_markdown_cell("## B"), new_code_cell("a = 2")])
    code, one = rehearse.places(notebook, Row(0, 5, "01", "A", "a ="))
    assert [cell.source for cell in code] == ["a = 1", "b"] and [cell.source for cell in one] == ["a = 1"]
    with pytest.raises(ValueError, match="no section 'C'"):
        rehearse.places(notebook, Row(0, 5, "01", "C", ""))
    with pytest.raises(ValueError, match="begins with 'c'"):
        rehearse.places(notebook, Row(0, 5, "01", "A", "c"))
