"""Editions of the notebooks, for students, instructors and Voilà: `python -m rso_lib classroom`, or `make classroom`.

They are made from the notebooks' tags and from the lecturer's notes in teach/exercises.md. Their cells carry nbgrader's
metadata: plain data that a notebook runs with where nbgrader is not installed; otter's tests need its package there.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbformat import NotebookNode

from ..lab.checks import assigned_names
from ..run import cli as command

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOKS, NOTES = PROJECT / "notebooks", PROJECT / "teach" / "exercises.md"
CONTROLS = ("Explorer(", "LiveTrainer(")
"""What a notebook has that Voilà can move."""
SOLUTION = re.compile(r"<details><summary>Solution</summary>(.*?)</details>\n?", re.DOTALL)
FENCE = re.compile(r"^```python(?: (\w+))?\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


class Note(NamedTuple):
    """The lecturer's notes on an exercise."""

    text: str = ""
    """for the instructor's edition"""
    points: int = 1
    hidden: str = ""
    """a cell of checks that students do not see"""
    mistakes: tuple[str, ...] = ()
    """typical wrong answers, each of which begins with a comment: what its check says"""


class Exercise(NamedTuple):
    """An exercise of a notebook: the cells k (its answer), k + 1 (its check) and k + 2 (hint and solution)."""

    k: int
    name: str
    solution: str
    note: Note
    mark: str
    """its name in answers.json and in nbgrader, such as 01-my_step"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the students' and the instructors' edition of every notebook into a folder, and demos without exercises."""
    write_folder("classroom", main, arguments, classroom)


def write_folder(
    name: str, about: Callable[..., None], arguments: Sequence[str] | None, build: Callable[[Path], str | Path]
) -> None:
    """Carry out a command that writes a folder, and print the result of `build`. --help shows what `about` says."""
    given = command.parse(name, about, arguments, folder="FOLDER")
    with command.ending(name):
        print(build(command.folder_at(given["folder"], "FOLDER")))


def classroom(folder: Path) -> str:
    """Write the editions and the demos into a folder. Returns a sentence that says how many."""
    for path in sources():
        write(student(path), folder / "student" / path.name)
        write(instructor(path), folder / "instructor" / path.name)
        if any(control in path.read_text(encoding="utf-8") for control in CONTROLS):
            write(demonstration(path), folder / "demos" / path.name)
    return f"{len(sources())} notebooks in {folder / 'student'} and {folder / 'instructor'}"


def sources(folder: Path = NOTEBOOKS) -> list[Path]:
    """Return the notebooks of the series."""
    return sorted(folder.glob("[0-9]*.ipynb"))


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def student(path: Path) -> NotebookNode:
    """Return a notebook whose exercises wait for an answer: the hints are there, the solutions are not."""
    notebook, found = _opened(path)
    for one in found:
        _mark(notebook, one, hidden=False)
        behind = notebook.cells[one.k + 2]
        behind.source = SOLUTION.sub("", behind.source)
    return notebook


def instructor(path: Path) -> NotebookNode:
    """Return a notebook with answers, hidden tests and the lecturer's notes, in the form of nbgrader's sources."""
    notebook, found = _opened(path)
    for one in reversed(found):
        _mark(notebook, one, hidden=True)
        answer, check = notebook.cells[one.k : one.k + 2]
        answer.source += f"\n### BEGIN SOLUTION\n{one.solution}### END SOLUTION"
        answer.outputs, check.outputs = [], []
        text = f"**For the instructor**, `{one.name}`: {one.note.text}"
        notebook.cells.insert(one.k + 3, nbformat.v4.new_markdown_cell(text, id=f"note-{one.k}"))
    return notebook


def demonstration(path: Path) -> NotebookNode:
    """Return a notebook without exercises, which a page without code cannot answer."""
    notebook, found = _opened(path)
    left_out = {k for one in found for k in range(one.k, one.k + 3)}
    notebook.cells = [cell for k, cell in enumerate(notebook.cells) if k not in left_out]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = before_exercise(cell.source)
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook


def before_exercise(text: str) -> str:
    """Return the text of a cell before the first heading that speaks of an exercise."""
    return re.split(r"^#+ .*[Ee]xercise", text, maxsplit=1, flags=re.MULTILINE)[0].strip()


def exercises(notebook: NotebookNode, path: Path) -> list[Exercise]:
    """Return the exercises that a notebook's tags mark. Raises ValueError where a part of one is missing."""
    found, number, notes = [], path.stem[:2], read_notes()
    for k, cell in enumerate(notebook.cells):
        if "exercise" not in cell.metadata.get("tags", []):
            continue
        if "check" not in notebook.cells[k + 1].metadata.get("tags", []):
            raise ValueError(f"{path.name}, cell {k}: the cell behind an exercise must be tagged `check`")
        name = assigned_names(cell.source)[0]
        folded = SOLUTION.search(notebook.cells[k + 2].source)
        code = FENCE.search(folded[1]) if folded else None
        if not code:
            raise ValueError(f"{path.name}, {name}: no solution is folded away two cells behind the exercise")
        found.append(Exercise(k, name, code[2], notes.get((number, name), Note()), f"{number}-{name}"))
    return found


def read_notes(file: Path = NOTES) -> dict[tuple[str, str], Note]:
    """Return the lecturer's notes by notebook and exercise: `## 01 my_step`, `2 points.`, and fences of code."""
    notes = {}
    for part in file.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        number, name = title.split()
        fences = FENCE.findall(text)
        hidden = "".join(source for kind, source in fences if kind == "hidden")
        mistakes = tuple(source for kind, source in fences if kind == "mistake")
        points = re.search(r"(\d+) points?", text)
        text = FENCE.sub(lambda fence: "" if fence[1] == "hidden" else fence[0], text)
        text = re.sub(r"^```python mistake\n# (.*)", "A typical mistake, “\\1”:\n\n```python", text, flags=re.MULTILINE)
        notes[number, name] = Note(text.strip(), int(points[1]) if points else 1, hidden, mistakes)
    return notes


def _opened(path: Path) -> tuple[NotebookNode, list[Exercise]]:
    """Read a notebook and its exercises; the links then lead out of a folder one level deeper."""
    notebook = nbformat.read(path, as_version=4)
    found = exercises(notebook, path)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", "](../../")
    return notebook, found


def _mark(notebook: NotebookNode, one: Exercise, hidden: bool) -> None:
    """Give the cells of an exercise nbgrader's metadata, and its check a name under which points are recorded."""
    answer, check = notebook.cells[one.k : one.k + 2]
    check.source = named(check.source, one)
    if hidden and one.note.hidden:
        tests = named(one.note.hidden, one)
        check.source += f"\n### BEGIN HIDDEN TESTS\n{tests}\n### END HIDDEN TESTS"
    common = {"schema_version": 3, "task": False}
    about = {"grade": False, "solution": True, "locked": False, "grade_id": one.mark}
    answer.metadata["nbgrader"] = common | about
    about = {"grade": True, "solution": False, "locked": True, "grade_id": f"{one.mark}-check"}
    check.metadata["nbgrader"] = common | about | {"points": one.note.points}


def named(source: str, one: Exercise) -> str:
    """Return the source of a cell with the name and the points of the exercise in the call of `check` at its end."""
    call = source.rstrip().removesuffix(")").rstrip().removesuffix(",")
    return f'{call}, exercise="{one.mark}", points={one.note.points})'
