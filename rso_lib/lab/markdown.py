"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], align: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown, with a letter in `align` for each column: l for left, r for right, as in LaTeX.

    Raises ValueError where a row, or `align`, has another length than `columns`.
    """
    rule = "|".join({"l": "---", "r": "---:"}[letter] for letter in align)
    lines = [f"| {' | '.join(columns)} |", f"|{rule}|"]
    for cells in rows:
        if not len(cells) == len(align) == len(columns):
            raise ValueError(f"each row must have {len(columns)} cells, and align as many letters: {align!r}, {cells}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
