"""Some of all crossings of options: as few as hold every pair of two options' values."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def crossed(*options: Sequence[Any]) -> list[Any]:
    """All crossings, to be parameters of a test; those that hold no new pair are marked exhaustive."""
    chosen = pairwise(*options)
    rest = pytest.mark.exhaustive
    return [row if row in chosen else pytest.param(*row, marks=rest) for row in product(*options)]


def halved(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """All crossings of two options, to be parameters of a test; every other one is exhaustive, as on a chessboard."""
    rows = [(i + j, (a, b)) for i, a in enumerate(first) for j, b in enumerate(second)]
    return [pytest.param(*row, marks=pytest.mark.exhaustive) if place % 2 else row for place, row in rows]


def pairwise(*options: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows with a value of each option; every two values of two options meet in some row.

    Greedy, and the same at every call: a row begins with the first pair that is still missing, and takes from each
    other option the value that brings the most of the missing ones.
    """
    columns = list(combinations(range(len(options)), 2))
    missing = {
        (i, a, j, b): None for i, j in columns for a, b in product(range(len(options[i])), range(len(options[j])))
    }
    rows = []
    while missing:
        i, a, j, b = next(iter(missing))
        row = {i: a, j: b}
        for k in sorted(set(range(len(options))) - {i, j}):
            row[k] = max(range(len(options[k])), key=lambda value, k=k: gain(row | {k: value}, k, missing))
        for i, j in columns:
            missing.pop((i, row[i], j, row[j]), None)
        rows.append(tuple(option[row[k]] for k, option in enumerate(options)))
    return rows


def gain(row: dict[int, int], new: int, missing: dict[tuple[int, int, int, int], None]) -> int:
    """How many missing pairs the value of option `new` makes with the rest of a row."""
    pairs = (sorted([(k, value), (new, row[new])]) for k, value in row.items() if k != new)
    return sum((*one, *other) in missing for one, other in pairs)
