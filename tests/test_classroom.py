"""The two editions of the notebooks, points, and hand-ins that are graded."""

import ast
import copy
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

from rso_lib import RSO, models
from rso_lib.lab.checks import check, record
from rso_lib.proposals import generator
from rso_lib.teach import editions, grade, sandbox
from rso_lib.teach.editions import (
    Exercise,
    before_exercise,
    demonstration,
    exercises,
    instructor,
    named,
    read_notes,
    student,
)

SOURCES = editions.sources()
NOTEBOOK = next(path for path in SOURCES if path.stem.startswith("01"))
STATE = "import torch\nfrom rso_lib import RSO, models\nfrom rso_lib.lab.checks import check\n"
STATE += "net = models.one_conv((1, 8, 8), 10)\nsettings = RSO(batch_size=100)"
"""What the exercises of notebook 01 need of the cells before them."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Notebook 01 without what takes time: its first two exercises, behind a cell with their names."""
    whole = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for one in exercises(whole, NOTEBOOK)[:2] for cell in whole.cells[one.k : one.k + 3]]
    path = tmp_path_factory.mktemp("notebooks") / "01_small.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(STATE), *cells]), path)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are written to the current folder."""
    monkeypatch.chdir(tmp_path)


def of(path: Path) -> list[Exercise]:
    return exercises(nbformat.read(path, as_version=4), path)


def source(notebook: NotebookNode, mark: str) -> str:
    [cell] = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == mark]
    return str(cell.source)


# Points


def test_points_are_recorded_beside_the_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    odd = (lambda n: n % 2, "it is odd.")
    check(3, odd, exercise="01-a", points=2)
    check(4, odd, exercise="01-b")
    check(None, odd, exercise="01-c")
    check(4, odd, exercise="01-a", points=2)
    check(3, odd)
    assert json.loads(Path("answers.json").read_text()) == {
        "01-a": {"points": 0, "of": 2, "said": "Not yet: it is odd."},
        "01-b": {"points": 0, "of": 1, "said": "Not yet: it is odd."},
        "01-c": {"points": 0, "of": 1, "said": "Not answered yet."},
    }
    check(3, odd, exercise="01-a", points=2)
    assert json.loads(Path("answers.json").read_text())["01-a"] == {"points": 2, "of": 2, "said": "Right."}
    assert capsys.readouterr().out.splitlines()[-1] == "Right."


@pytest.mark.parametrize("name", ["RSO_STRICT", "NBGRADER_EXECUTION"])
def test_an_autograder_is_told_by_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(name, raising=False)
    check(4, (lambda n: n == 3, "no."))
    monkeypatch.setenv(name, {"RSO_STRICT": "1"}.get(name, "autograde"))
    check(3, (lambda n: n == 3, "no."))
    with pytest.raises(AssertionError, match=r"^Not yet: no\.$"):
        check(4, (lambda n: n == 3, "no."), exercise="01-a")
    assert json.loads(Path("answers.json").read_text())["01-a"]["points"] == 0
    with pytest.raises(AssertionError, match="Not answered yet"):
        check(None)
    check(4, (lambda n: n == 3, "no."), strict=False)


# Editions


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_editions(path: Path) -> None:
    """Students see no solution and no hidden test; both editions have nbgrader's cells, each name once."""
    committed, theirs, ours = nbformat.read(path, as_version=4), student(path), instructor(path)
    for notebook in (theirs, ours):
        nbformat.validate(notebook)
        about = [cell.metadata.nbgrader for cell in notebook.cells if "nbgrader" in cell.metadata]
        assert set(Counter(one["grade_id"] for one in about).values()) <= {1}
        assert [one["grade"] for one in about] == [False, True] * len(of(path))
    text = nbformat.writes(theirs)
    assert "<summary>Solution</summary>" not in text and "HIDDEN TESTS" not in text and "SOLUTION" not in text
    assert len(theirs.cells) == len(committed.cells)
    for one in of(path):
        assert source(theirs, one.mark) == committed.cells[one.k].source
        assert one.solution in source(ours, one.mark)
        assert one.note.hidden.partition("check(")[0] in source(ours, f"{one.mark}-check")
        assert "HIDDEN TESTS" not in source(theirs, f"{one.mark}-check")
        assert f'exercise="{one.mark}", points={one.note.points}' in source(theirs, f"{one.mark}-check")
    assert all("](../r" not in cell.source for cell in theirs.cells)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_demonstration_has_no_exercise(path: Path) -> None:
    """What it keeps is as it was, and no heading is left without its exercise."""
    committed, shown = nbformat.read(path, as_version=4), demonstration(path)
    assert "Exercise" not in "".join(cell.source.partition("\n")[0] for cell in shown.cells)
    text = "".join(cell.source for cell in shown.cells)
    assert "<summary>Hint" not in text and "<summary>Solution" not in text
    kept = [cell.source for cell in committed.cells if cell.cell_type == "code" and not tags(cell)]
    assert before_exercise("## 1. A\n\nb\n\n### Exercise 1: c\n\nd") == "## 1. A\n\nb"
    assert before_exercise("## 6. Two more exercises\n\nb") == ""
    assert [cell.source for cell in shown.cells if cell.cell_type == "code"] == kept


def tags(cell: NotebookNode) -> set[str]:
    return {"exercise", "check"} & set(cell.metadata.get("tags", []))


def test_every_exercise_has_a_note() -> None:
    assert {(path.stem[:2], one.name) for path in SOURCES for one in of(path)} <= set(read_notes())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_check_gets_its_exercise(path: Path) -> None:
    """The visible one and the hidden one: both end with a call that has it."""
    theirs = student(path)
    for one in of(path):
        hidden = [named(one.note.hidden, one)] if one.note.hidden else []
        for cell in (source(theirs, f"{one.mark}-check"), *hidden):
            call = ast.parse(cell).body[-1].value
            assert call.func.id == "check" and len(call.args) > 1
            given = {keyword.arg: keyword.value.value for keyword in call.keywords}
            assert given == {"exercise": one.mark, "points": one.note.points}


def test_a_notebook_without_a_solution_is_an_error(small: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(small, as_version=4)
    notebook.cells[3].source = "<details><summary>Hint</summary>\n\nthink\n\n</details>"
    with pytest.raises(ValueError, match="image_forwards: no solution is folded away"):
        exercises(notebook, small)


MISTAKES = [(path, one, code) for path in SOURCES for one in of(path) for code in one.note.mistakes]


@pytest.mark.parametrize(
    ("path", "one", "code"), MISTAKES, ids=[f"{one.mark}-{k}" for k, (_, one, _) in enumerate(MISTAKES)]
)
def test_a_typical_mistake_gets_its_reason(
    path: Path, one: Exercise, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typed into the students' edition, and no point is recorded."""
    names = {"torch": torch, "nn": torch.nn, "models": models, "RSO": RSO, "check": check, "generator": generator}
    names |= {"net": models.one_conv((1, 8, 8), 10), "settings": RSO(batch_size=100)}
    exec(code, names)
    exec(source(student(path), f"{one.mark}-check"), names)
    assert f"Not yet: {code.splitlines()[0].removeprefix('# ')}" in capsys.readouterr().out
    assert json.loads(Path("answers.json").read_text())[one.mark]["points"] == 0


def test_there_are_mistakes_enough() -> None:
    assert len(MISTAKES) >= 5


# Hand-ins


def test_ten_hand_ins_are_graded_by_one_command(small: Path, tmp_path: Path, project: Path) -> None:
    """Two are broken, and a hostile one writes where it may not and never ends: it costs only itself."""
    [forwards, step] = of(small)
    right = {one.name: one.solution for one in (forwards, step)}
    victim = tmp_path / "victim"
    victim.write_text("whole")
    hostile = f"""
import os, pathlib, rso_lib.lab.checks as checks
os.system("echo lost > {victim}")
try:
    pathlib.Path({str(victim)!r}).unlink()
except OSError:
    pathlib.Path("in_my_own_folder").write_text("is allowed")
checks.verdict = check = lambda *_, **__: "Right."
image_forwards = 1
"""
    wrong = [code for one in (forwards, step) for code in one.note.mistakes]
    answers = {
        "a_hostile": {"image_forwards": hostile, "my_step": "import time\nwhile True:\n    time.sleep(1)"},
        "b_right": right,
        "c_untouched": {},
        **{
            f"d_wrong_{k}": {**right, ("my_step" if "def" in code else "image_forwards"): code}
            for k, code in enumerate(wrong)
        },
        "e_broken_answer": {**right, "my_step": "def my_step(f, weights, index, delta)\n    return 0"},
    }
    folder = tmp_path / "hand-ins"
    for name, given in answers.items():
        notebook = student(small)
        for one in (forwards, step):
            notebook.cells[one.k].source = given.get(one.name, notebook.cells[one.k].source)
        editions.write(notebook, folder / name / "mine.ipynb")
    (folder / "f_broken_file.ipynb").write_text("{")
    command = [sys.executable, "-m", "rso_lib", "grade", folder, "--notebooks", small.parent, "--limit=40", "--jobs=2"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with open(folder / "grades.csv", encoding="utf-8") as file:
        rows = {row["hand_in"].split("/")[0]: row for row in csv.DictReader(file)}
    assert len(rows) == 10
    said = {name: (row["points"], row["remarks"]) for name, row in rows.items()}
    assert said["b_right"] == ("4", "")
    assert said["c_untouched"] == ("0", "image_forwards: Not answered yet. | my_step: Not answered yet.")
    for k, code in enumerate(wrong):
        points, remark = said[f"d_wrong_{k}"]
        assert f"Not yet: {code.splitlines()[0].removeprefix('# ')}" in remark
        assert points == ("1" if "def" in code else "3")
    assert said["e_broken_answer"] == ("1", "my_step: NameError: name 'my_step' is not defined")
    assert said["f_broken_file.ipynb"][1].startswith("cannot be graded")
    assert said["a_hostile"][0] == "0"
    assert "image_forwards: Not yet" in said["a_hostile"][1] and "my_step: stopped after 40 s" in said["a_hostile"][1]
    assert victim.read_text() == "whole"


def test_a_hand_in_that_never_ends_is_stopped() -> None:
    ended = grade.run_apart([("", "while True:\n    pass"), ("01-a", "")], limit=3)
    assert ended == {"": "stopped after 3 s"}


ATTACKS = {
    "no line": "import os\nfor k in range(3, 40):\n    try: os.write(k, b'junk]\\n')\n    except OSError: pass",
    "no text": "import os\nfor k in range(3, 40):\n    try: os.write(k, b'\\xff]\\n')\n    except OSError: pass",
    "no end": "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(40); os._exit(0)",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no such processes")
def test_a_hand_in_that_attacks_the_grader_ends_nothing_but_itself() -> None:
    """Lines that are none are left out, and a process that it leaves behind is not waited for."""
    ended = grade.run_apart([*(("", source) for source in ATTACKS.values()), ("01-a", "")], limit=30)
    assert ended["01-a"] == "Right." and "status 0" in ended[""]


def test_whatever_goes_wrong_with_a_hand_in_is_its_remark(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RecursionError("too deep")

    path = tmp_path / "hand_ins" / "one.ipynb"
    path.parent.mkdir()
    nbformat.write(student(small), path)
    monkeypatch.setattr(grade, "run_apart", fails)
    [one] = grade.grade(path.parent, grade.Grading(notebooks=str(small.parent)))
    assert one.points == 0 and one.remarks == "cannot be graded: RecursionError: too deep"


def test_hidden_tests_find_what_the_visible_ones_let_pass(small: Path) -> None:
    """A step that knows the visible check's Δ."""
    [_, step] = of(small)
    code = step.solution.replace("kept = losses", "kept = 0 if abs(delta) != 1000 else losses")
    names = {"torch": torch, "check": check}
    exec(code, names)
    exec(source(student(small), f"{step.mark}-check"), names)
    assert json.loads(Path("answers.json").read_text())[step.mark]["points"] == 3
    exec(source(instructor(small), f"{step.mark}-check"), names)
    assert json.loads(Path("answers.json").read_text())[step.mark]["said"].startswith("Not yet: with Δ = 2")


WRITES = """
import os, pathlib, subprocess, sys
from rso_lib.teach import sandbox
if sandbox.{shut}(pathlib.Path.cwd()) is False:
    sys.exit("no Landlock")
outside, tried = pathlib.Path({outside!r}), []
for act in (
    lambda: outside.write_text("x"),
    lambda: outside.unlink(),
    lambda: outside.rename("mine"),
    lambda: os.mkdir(outside.with_name("new")),
    lambda: os.open(outside, os.O_WRONLY | os.O_TRUNC),
    lambda: subprocess.run([sys.executable, "-c", f"open({{str(outside)!r}}, 'w')"], check=True, stderr=-3),
):
    try:
        act()
        tried.append("done")
    except (OSError, subprocess.CalledProcessError):
        tried.append("refused")
pathlib.Path("mine").write_text(outside.read_text())
pathlib.Path("mine").rename("still mine")
open(os.devnull, "w").write("x")
print(*tried)
"""


@pytest.mark.parametrize("shut", ["landlock", "refuse"])
def test_a_process_that_is_shut_in_reads_all_and_writes_in_its_folder(shut: str, tmp_path: Path, project: Path) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.write_text("whole")
    inside.mkdir()
    code = WRITES.format(shut=shut, outside=str(outside))
    env = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=inside, env=env, capture_output=True, text=True, check=False
    )
    if "no Landlock" in done.stderr:
        pytest.skip("this system has no Landlock")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 6
    assert outside.read_text() == (inside / "still mine").read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "outside"]


def test_an_error_is_said_in_a_line() -> None:
    assert sandbox.reason_of(ValueError("a\nb")) == "ValueError: a"
    assert sandbox.reason_of(AssertionError("Not yet: a")) == "Not yet: a"


def test_grades_are_said_where_their_file_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "anna.ipynb").write_text("{")
    (tmp_path / "grades.csv").mkdir()
    with pytest.raises(SystemExit):
        grade.main([str(tmp_path)])
    said = capsys.readouterr()
    assert "anna.ipynb                     0 of 0  cannot be graded" in said.out and "grades.csv" in said.err


def test_an_answer_may_be_split_into_several_cells(small: Path, tmp_path: Path) -> None:
    notebook = student(small)
    [k] = [k for k, cell in enumerate(notebook.cells) if "my_step" in cell.source and "nbgrader" in cell.metadata][:1]
    notebook.cells[k].source = "first = 1"
    notebook.cells.insert(k + 1, copy.deepcopy(notebook.cells[k]))
    notebook.cells[k + 1].update(source="second = 2", id="second")
    nbformat.write(notebook, tmp_path / "split.ipynb")
    assert "first = 1\nsecond = 2" in grade.answers_of(tmp_path / "split.ipynb").values()


def test_an_empty_folder_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        grade.main([str(tmp_path)])
    assert "grade: there is no notebook in" in capsys.readouterr().err


def test_a_record_is_written_as_a_whole(tmp_path: Path) -> None:
    record("01-a", 1, 1, "Right.", tmp_path / "answers.json")
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]
