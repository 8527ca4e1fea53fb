"""The crossings of options that other tests take: every pair is among them."""

from itertools import combinations, product

import pytest
from pairwise import crossed, halved, pairwise


@pytest.mark.parametrize("sizes", [(2, 2), (8, 5, 3, 2), (2, 3, 4, 5), (1, 4, 4), (3,) * 13, (7, 1, 2, 2, 2, 2)])
def test_every_pair_is_there(sizes: tuple[int, ...]) -> None:
    options = [[f"{k} of option {option}" for k in range(size)] for option, size in enumerate(sizes)]
    rows = pairwise(*options)
    for one, other in combinations(range(len(sizes)), 2):
        assert {(row[one], row[other]) for row in rows} == set(product(options[one], options[other]))
    largest, second = sorted(sizes)[-1], sorted(sizes)[-2]
    assert largest * second <= len(rows) <= 2 * largest * second + 15
    assert len(set(rows)) == len(rows)
    assert pairwise(*options) == rows


def test_two_options_are_crossed() -> None:
    assert pairwise("ab", [1, 2]) == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]


def test_the_other_crossings_are_exhaustive() -> None:
    options = "ab", [1, 2], [True, False]
    marked = [row for row in crossed(*options) if hasattr(row, "marks")]
    others = [row for row in crossed(*options) if not hasattr(row, "marks")]
    assert {mark.name for row in marked for mark in row.marks} == {"exhaustive"}
    assert sorted(others) == sorted(pairwise(*options))
    assert sorted([*others, *(row.values for row in marked)]) == sorted(product(*options))


def test_half_of_the_crossings_with_every_value() -> None:
    rows = halved("abc", [1, 2])
    chosen = [row for row in rows if isinstance(row, tuple) and not hasattr(row, "marks")]
    assert len(rows) == 6 and len(chosen) == 3
    assert {a for a, _ in chosen} == {*"abc"} and {b for _, b in chosen} == {1, 2}
