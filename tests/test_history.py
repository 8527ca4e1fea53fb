"""A history: rows, the CSV that holds them exactly, and which cycle is the best."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rso_lib.history import COLUMNS, History, Report
from rso_lib.run.checkpoint import saved_rows

SWEEP = Report(
    cycle=1,
    layer="block1.conv.weight",
    sigma=math.sqrt(2 / 9),
    steps=36,
    kept=4,
    plus=15,
    minus=17,
    evaluations=108,
    image_forwards=108 * 512,
    train_loss=0.1 + 0.2,
    seconds=1e-300,
)
CYCLE = replace(
    SWEEP, layer="", train_accuracy=1 / 3, val_loss=2.0, val_accuracy=0.5, test_loss=math.inf, test_accuracy=1.0
)


def cycles(*val_accuracies: float) -> History:
    """A history of cycles whose accuracy on the test part is the opposite of that on the validation part."""
    rows = [
        replace(CYCLE, cycle=k, val_accuracy=accuracy, val_loss=2 * accuracy, test_accuracy=1 - accuracy)
        for k, accuracy in enumerate(val_accuracies, 1)
    ]
    return History([row for cycle in rows for row in (replace(SWEEP, cycle=cycle.cycle), cycle)])


def bits(history: History) -> list[list[object]]:
    """The rows as values that tell every float from every other, NaN included."""
    return [[v.hex() if isinstance(v, float) else v for v in vars(row).values()] for row in history.rows]


def test_columns_are_those_of_the_issue() -> None:
    first = ["cycle", "layer", "sigma", "steps", "kept", "plus", "minus", "evaluations", "image_forwards"]
    scores = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]
    assert [*first, *scores, "seconds", "bytes_sent"] == COLUMNS


def test_csv_reads_back_exactly(tmp_path: Path) -> None:
    history = History([SWEEP, CYCLE, replace(SWEEP, cycle=2, train_loss=-math.inf, seconds=5e-324)])
    history.save(tmp_path / "history.csv")
    again = History.load(tmp_path / "history.csv")
    assert bits(again) == bits(history)
    assert [type(value) for value in vars(again.rows[0]).values()] == [type(value) for value in vars(SWEEP).values()]


def test_csv_is_a_line_per_row_under_the_columns(tmp_path: Path) -> None:
    History([SWEEP]).save(tmp_path / "history.csv")
    header, line = (tmp_path / "history.csv").read_text().splitlines()
    assert header.split(",") == COLUMNS
    assert line == (
        "1,block1.conv.weight,0.4714045207910317,36,4,15,17,108,55296,0.30000000000000004,nan,nan,nan,nan,nan,1e-300,0"
    )


def test_an_empty_history_reads_back(tmp_path: Path) -> None:
    History().save(tmp_path / "history.csv")
    assert History.load(tmp_path / "history.csv").rows == []


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", ",".join(COLUMNS[1:]) + "\n"])
def test_a_file_that_is_no_history_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.csv is not a history"):
        History.load(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda line: line.replace("36", "36,0"), "more cells than columns, in line 2"),
        (lambda line: line.rpartition(",")[0], "invalid literal for int.*in line 2"),
        (lambda line: line.replace("0.4714", "σ"), "could not convert string to float: 'σ.*in line 2"),
    ],
)
def test_a_cell_that_is_no_number_is_named(tmp_path: Path, change: Callable[[str], str], says: str) -> None:
    path = tmp_path / "history.csv"
    History([SWEEP]).save(path)
    header, line = path.read_text().splitlines()
    path.write_text(f"{header}\n{change(line)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"history\.csv is not a history: .*{says}"):
        History.load(path)


def test_a_history_that_a_spreadsheet_has_saved(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    History([SWEEP]).save(path)
    path.write_text(path.read_text(), encoding="utf-8-sig", newline="\r\n")
    assert repr(History.load(path)) == repr(History([SWEEP]))
    assert saved_rows(path) == 1


def test_empty_rows_below_a_history_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    History([SWEEP]).save(path)
    path.write_text(path.read_text() + "," * len(COLUMNS) + "\n\n")
    assert saved_rows(path) == 1


def test_rows_that_were_sorted_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    cycles(0.5, 0.75).save(path)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(rows)]))
    with pytest.raises(ValueError, match=r"history\.csv is not a history: cycle 1 comes after cycle 2, in line 4"):
        History.load(path)


def test_columns_in_another_order_read(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    History([SWEEP, CYCLE]).save(path)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("".join(",".join(reversed(row)) + "\n" for row in rows))
    assert repr(History.load(path)) == repr(History([SWEEP, CYCLE]))


def test_rows_of_whole_cycles() -> None:
    history = cycles(0.5, 0.75)
    assert [row.is_cycle for row in history.rows] == [False, True, False, True]
    assert [row.cycle for row in history.cycles.rows] == [1, 2]
    assert history.last is history.rows[-1]
    history.append(replace(SWEEP, cycle=3))
    assert history.last.cycle == 2


def test_the_best_cycle_is_chosen_on_the_validation_part() -> None:
    assert cycles(0.5, 0.75, 0.25).best.cycle == 2
    assert cycles(0.5, 0.75, 0.75).best.cycle == 2


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [
        ((math.nan, 0.5, 0.25), (1.0, 2.0, 3.0), 2),
        ((0.25, 0.5, math.nan), (1.0, 2.0, 0.5), 2),
        ((math.nan, math.nan, math.nan), (math.nan, 2.0, 1.0), 3),
        ((math.nan, math.nan, math.nan), (2.0, 1.0, math.nan), 2),
    ],
)
def test_a_score_that_is_nan_is_never_the_best(accuracies: Any, losses: Any, best: int) -> None:
    rows = zip(cycles(*accuracies).cycles.rows, losses, strict=True)
    history = History([replace(row, val_loss=loss) for row, loss in rows])
    assert history.validated
    assert history.best.cycle == best


@pytest.mark.parametrize("name", ["last", "best"])
def test_no_finished_cycle_is_an_error_that_says_so(name: str) -> None:
    with pytest.raises(ValueError, match="no cycle is finished yet: train for at least one"):
        getattr(History([SWEEP]), name)


def test_no_validation_part_is_an_error_that_says_so() -> None:
    assert cycles(0.5).validated
    assert not cycles(math.nan).validated
    with pytest.raises(ValueError, match="validation part"):
        cycles(math.nan, math.nan).best  # noqa: B018


def test_frame_has_a_row_per_report() -> None:
    frame = History([SWEEP, CYCLE]).frame()
    assert list(frame.columns) == COLUMNS
    assert frame.layer.tolist() == ["block1.conv.weight", ""]
    assert frame.train_loss.tolist() == [0.1 + 0.2, 0.1 + 0.2]
    assert frame.val_loss.isna().tolist() == [True, False]
    assert list(History().frame().columns) == COLUMNS
