"""The history of a run: one report for each sweep and each cycle."""

import csv
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Report:
    """One row of a history.

    cycle            counted from 1
    layer            the tensor that was swept, "network" for the joint level, "" in the row of a whole cycle
    sigma            of Δ in this sweep (mean over the cycle's steps in a cycle's row)
    steps            visits
    kept             how often w won; plus, minus: how often a positive, a negative multiple of Δ won
    evaluations      losses computed: one for each candidate of each step
    image_forwards   images that Algorithm 1 sends through the net for them: evaluations × batch size
    train_loss       sweep: mean loss of the winners on their batches; cycle: on the whole training part
    *_loss           mean loss: of cross entropy in nats
    *_accuracy       mean of the metric: the fraction of right answers, unless `train` was given another one; NaN where
                     there is none, and where not measured
    seconds          spent since the run began, over all sittings, scoring included
    bytes_sent       by the first process to the others; 0 where it is alone
    """

    cycle: int
    layer: str
    sigma: float
    steps: int
    kept: int
    plus: int
    minus: int
    evaluations: int
    image_forwards: int
    train_loss: float = NAN
    train_accuracy: float = NAN
    val_loss: float = NAN
    val_accuracy: float = NAN
    test_loss: float = NAN
    test_accuracy: float = NAN
    seconds: float = NAN
    bytes_sent: int = 0

    @property
    def is_cycle(self) -> bool:
        """Return whether this is the report of a whole cycle."""
        return not self.layer


@dataclass
class History:
    """The reports of a run, in order; a CSV on disk, a pandas frame to work with."""

    rows: list[Report] = field(default_factory=list)

    def append(self, report: Report) -> None:
        self.rows.append(report)

    @property
    def cycles(self) -> "History":
        """Return a history of the rows of whole cycles only."""
        return History([row for row in self.rows if row.is_cycle])

    @property
    def last(self) -> Report:
        """Return the row of the last whole cycle. Raises ValueError where none is finished."""
        rows = self.cycles.rows
        if not rows:
            raise ValueError("no cycle is finished yet: train for at least one")
        return rows[-1]

    @property
    def validated(self) -> bool:
        """Return whether a cycle has a score on the validation part. Raises ValueError where no cycle is finished."""
        return bool(self.last and (self._scored("val_accuracy") or self._scored("val_loss")))

    @property
    def best(self) -> Report:
        """Return the cycle with the best accuracy on the validation part (never chosen on the test part).

        Of several best cycles it is the first. A cycle whose accuracy is NaN does not count; where all are NaN, it is
        the cycle with the lowest loss. Raises ValueError where no cycle is finished, or where none has a score on a
        validation part.
        """
        if not self.validated:
            raise ValueError("there is no validation part to choose on: load with val_size above 0, or take `last`")
        if rows := self._scored("val_accuracy"):
            return max(rows, key=lambda row: row.val_accuracy)
        return min(self._scored("val_loss"), key=lambda row: row.val_loss)

    def _scored(self, name: str) -> list[Report]:
        """Return the rows of whole cycles in which a score is a number."""
        return [row for row in self.cycles.rows if not math.isnan(getattr(row, name))]

    def frame(self) -> "pandas.DataFrame":
        """Return the rows as a pandas frame with the columns of `Report`."""
        import pandas

        return pandas.DataFrame([vars(row) for row in self.rows], columns=COLUMNS)

    def save(self, path: str | Path) -> None:
        """Write a CSV with one line per row; floats are written so that they read back exactly."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(vars(row) for row in self.rows)

    @classmethod
    def load(cls, path: str | Path) -> "History":
        """Read a history from a CSV of this or another version: other columns are left out, missing ones have defaults.

        Raises ValueError, naming the file and the line, where it is no such table: where columns are missing that every
        history has, a cell is no number, or rows are not in the order of their cycles, as after sorting.
        """
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a mark
            lines = csv.DictReader(file, restval="")
            try:
                if missing := [name for name in NEEDED if name not in (lines.fieldnames or ())]:
                    raise ValueError(f"it has no columns {', '.join(missing)}")
                rows: list[Report] = []
                for line in lines:
                    rows.append(read_row(line))
                    if rows[-1].cycle < (before := rows[-2:][0].cycle):
                        raise ValueError(f"cycle {rows[-1].cycle} comes after cycle {before}")
                return cls(rows)
            except (ValueError, csv.Error) as error:
                raise ValueError(f"{path} is not a history: {error}, in line {lines.line_num}") from error


COLUMNS = [f.name for f in fields(Report)]
NEEDED = [f.name for f in fields(Report) if f.default is MISSING]


def read_row(line: Mapping[str, Any]) -> Report:
    """Return the report in a row of a CSV or of a checkpoint, which may have other columns.

    Raises ValueError or TypeError where a cell is no number, or there are more cells than columns.
    """
    if None in line:
        raise ValueError("there are more cells than columns")
    types: dict[str, Any] = {f.name: f.type for f in fields(Report)}
    return Report(**{name: types[name](line[name]) for name in COLUMNS if name in line})
