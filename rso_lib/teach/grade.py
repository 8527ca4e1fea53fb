"""Grade a folder of hand-ins: `python -m rso_lib grade FOLDER`.

Of a hand-in only the answers are taken, by the names that nbgrader's metadata give to their cells. All other cells are
those of the instructors' edition, hidden tests among them. Each hand-in runs in a process and a folder of its own, with
a time limit. An answer that attacks the checks themselves, such as an object that equals everything, is not found out.
"""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import nbformat

from ..lab.checks import RIGHT
from ..run import cli as command
from ..settings import check_whole
from . import editions
from .editions import Exercise

FILE = "grades.csv"


@dataclass
class Grading:
    """How hand-ins are graded."""

    limit: int = 600
    """seconds that a hand-in may take"""
    jobs: int = 1
    """hand-ins that run at a time"""
    notebooks: str = str(editions.NOTEBOOKS)
    """folder of the notebooks that were handed out"""


class Grade(NamedTuple):
    """A line of grades.csv."""

    hand_in: str
    notebook: str
    points: float
    of: float
    seconds: float
    remarks: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Grade every notebook in a folder and the folders in it, and write FOLDER/grades.csv."""
    given = command.parse("grade", main, arguments, Grading, folder="FOLDER")
    with command.ending("grade"):
        folder = command.folder_at(given.pop("folder"), "FOLDER")
        setting = Grading(**given)
        for name in ("limit", "jobs"):
            check_whole(name, getattr(setting, name), least=1)
        grades: list[Grade] = []
        try:
            for one in grade(folder, setting):
                grades.append(one)
                print(f"{one.hand_in:30} {one.points:g} of {one.of:g}  {one.remarks}", flush=True)
        finally:  # an interrupt loses no grade
            if grades:
                with open(folder / FILE, "w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([Grade._fields, *grades])
        if not grades:
            raise ValueError(f"there is no notebook in {folder}")
        print(f"{len(grades)} hand-ins in {folder / FILE}")


def grade(folder: Path, setting: Grading) -> Iterator[Grade]:
    """Yield the grade of every hand-in, in the order of their names."""
    hand_ins = [path for path in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    with ThreadPoolExecutor(setting.jobs) as pool:
        yield from pool.map(partial(grade_one, folder=folder, setting=setting), hand_ins)


def grade_one(path: Path, folder: Path, setting: Grading) -> Grade:
    """Return the grade of one hand-in, whatever is wrong with it."""
    name, began = path.relative_to(folder).as_posix(), time.monotonic()
    try:
        answers = answers_of(path)
        source = _source(answers, Path(setting.notebooks))
        cells, asked = frame(source, answers)
        ended = run_apart(cells, setting.limit)
    except Exception as error:  # a file of students may hold anything
        return Grade(name, "", 0, 0, 0.0, f"cannot be graded: {type(error).__name__}: {error}".splitlines()[0])
    points = sum(one.note.points for one in asked if ended.get(one.mark) == RIGHT)
    lacking = ended.get("", "not reached")
    remarks = [f"{one.name}: {ended.get(one.mark, lacking)}" for one in asked if ended.get(one.mark) != RIGHT]
    total = sum(one.note.points for one in asked)
    return Grade(name, source.stem, points, total, round(time.monotonic() - began, 1), " | ".join(remarks))


def answers_of(path: Path) -> dict[str, str]:
    """Return the sources of a hand-in's answer cells, by the exercise's mark. An answer may be split into several."""
    answers: dict[str, str] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        about = cell.metadata.get("nbgrader", {})
        if cell.cell_type == "code" and about.get("solution") and (mark := about.get("grade_id")):
            answers[mark] = "\n".join([*filter(None, [answers.get(mark)]), cell.source])
    return answers


def _source(answers: dict[str, str], notebooks: Path) -> Path:
    """Return the notebook that was handed out. Raises ValueError where there is none, or no answer."""
    for mark in answers:
        for path in editions.sources(notebooks):
            if path.stem.startswith(mark.partition("-")[0]):
                return path
    raise ValueError("it has no answer cells of a students' edition")


def frame(source: Path, answers: dict[str, str]) -> tuple[list[tuple[str, str]], list[Exercise]]:
    """Return the cells to run, each with the exercise that it checks or "", and the exercises."""
    asked = editions.exercises(nbformat.read(source, as_version=4), source)
    cells = []
    for cell in editions.instructor(source).cells:
        if cell.cell_type == "code":
            mark = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            checked = mark.removesuffix("-check") if mark.endswith("-check") else ""
            answer = answers.get(mark, "raise ValueError('the answer cell is missing')")
            cells.append((checked, answer if mark and not checked else cell.source))
        if "parameters" in cell.metadata.get("tags", []):
            cells.append(("", 'out = "out"'))  # what the notebook writes stays in the hand-in's folder
    last = max(k for k, (checked, _) in enumerate(cells) if checked)
    return cells[: last + 1], asked


def run_apart(cells: list[tuple[str, str]], limit: float) -> dict[str, str]:
    """Run cells in a process of their own, and return how each check ended, by its mark.

    Where the process was ended, the mark "" has the reason why other checks did not end.

    The process reads and writes files, not pipes, which a process that it has left behind could hold open for ever.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(json.dumps(cells).encode())
        given.seek(0)
        settings = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(editions.PROJECT), os.environ.get("PYTHONPATH")])),
            "RSO_STRICT": "1",
            "MPLBACKEND": "agg",
            **dict.fromkeys(("TMPDIR", "IPYTHONDIR", "MPLCONFIGDIR", "JUPYTER_RUNTIME_DIR"), folder),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "rso_lib.teach.sandbox"],
            cwd=folder,
            env=os.environ | settings,
            stdin=given,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
        late = ""
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            late = f"stopped after {limit:g} s"
        finally:
            _end(process)
        last = _lines(errors)[-1:]
        why = late or " ".join(["the process ended with status", str(process.returncode), *last])
        return _ended(_lines(out)) | {"": why}


def _lines(file: IO[bytes]) -> list[str]:
    """Return the lines of a file, from its beginning, in which a hand-in may have written anything."""
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()


def _ended(lines: list[str]) -> dict[str, str]:
    """Return how each check ended, by its mark, from lines of such pairs; other lines are left out."""
    ended = {}
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            mark, how = json.loads(line)
            ended[str(mark)] = str(how)
    return ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all processes that it has started, unless these have left its group."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
