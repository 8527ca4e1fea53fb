"""Every notebook of the series: it runs as it was committed, it runs with other parameters, and it keeps the rules."""

import ast
import copy
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from rso_lib.lab import demo
from rso_lib.lab.checks import assigned_names, verdict

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9]*.ipynb"))
TEACHING = ("01", "02", "03", "04", "06", "07", "09", "10")
BRIEF: dict[str, dict[str, object]] = {
    "01": {"cycles": 5},
    "02": {"seeds": 1, "cycles": 1, "tried": 8},
    "03": {"seeds": 2, "fresh": 2, "short": 1, "long": 2},
    "04": {"batch_size": 100},
    "06": {"seeds": 2, "cycles": 1, "tries": 40},
    "07": {"seeds": 2, "cycles": 1, "batch_size": 32, "processes": "1"},
    "08": {"matrices": "1, 2", "copies": 2, "visits": 1},
    "09": {"seeds": 2, "cycles": 1, "batch_size": 128, "epochs": 5},
    "10": {"seeds": 2, "cycles": 2},
}
"""Parameters of the notebooks whose committed ones take minutes, since their claims need many seeds."""
OTHER = {"cycles": 2, "batch_size": 128, "tries": 8}
"""Parameters that differ from the committed ones; those with presets have the smallest one committed."""
SOLVED = "-solved"
"""What the name of a check cell ends in that comes behind the solution."""

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def importable(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels start in the notebook's folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(project), os.environ.get("PYTHONPATH")])))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def of_type(notebook: NotebookNode, kind: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def tagged(notebook: NotebookNode, tag: str) -> list[int]:
    return [k for k, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


# Running


@every_notebook
def test_runs_and_its_exercises_can_be_solved(path: Path, tmp_path: Path) -> None:
    """Once, through papermill, with the committed parameters, or with brief ones.

    No cell fails. Cells tagged nbval-check-output print what was committed, so a check cell waits for its answer; cells
    tagged results say what they said. Then the exercise is solved as its solution says, and the check agrees.
    """
    committed = read(path)
    done = execute(with_solutions(committed), tmp_path, BRIEF.get(path.stem[:2], {}))
    for k in tagged(committed, "nbval-check-output"):
        [again] = [cell for cell in done.cells if cell.id == committed.cells[k].id]
        assert printed(again) == printed(committed.cells[k])
    for k in tagged(committed, "results"):
        [again] = [cell for cell in done.cells if cell.id == committed.cells[k].id]
        assert said(again) == said(committed.cells[k]), "results/ has changed: run python -m rso_lib figures"
    solved = [printed(cell) for cell in done.cells if cell.id.endswith(SOLVED)]
    assert solved == ["Right.\n"] * len(tagged(committed, "check"))


@pytest.mark.exhaustive
@every_notebook
def test_runs_in_nbval(path: Path, project: Path) -> None:
    """As it was committed, by nbval's own command."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-kernel-startup-timeout=600"]
    command += ["-q", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.exhaustive
@every_notebook
def test_runs_with_other_parameters(path: Path, tmp_path: Path) -> None:
    """Briefly, with every exercise solved: no cell and no solution counts on the committed parameters."""
    done = execute(with_solutions(read(path)), tmp_path, BRIEF.get(path.stem[:2], {}) | OTHER)
    assert {printed(cell) for cell in done.cells if cell.id.endswith(SOLVED)} <= {"Right.\n"}


def execute(notebook: NotebookNode, folder: Path, parameters: dict[str, object]) -> NotebookNode:
    """What a notebook is behind papermill, given those parameters that it has; tables and figures go to the folder."""
    nbformat.write(notebook, folder / "notebook.ipynb")
    names = [name for k in tagged(notebook, "parameters") for name in assigned_names(notebook.cells[k].source)]
    given = {name: value for name, value in (parameters | {"out": str(folder / "out")}).items() if name in names}
    if "preset" in names:
        given = {name: value for name, value in given.items() if name not in OTHER}
    demo.execute(folder / "notebook.ipynb", folder / "done.ipynb", given)
    if "out" in names:
        assert {file.suffix for file in (folder / "out").iterdir()} >= {".csv", ".png"}
    return read(folder / "done.ipynb")


def with_solutions(notebook: NotebookNode) -> NotebookNode:
    """A copy that solves each exercise and checks it again, behind the check of the exercise as it was committed."""
    solved = copy.deepcopy(notebook)
    for k in reversed(tagged(notebook, "check")):
        answer, check = copy.deepcopy(notebook.cells[k - 1]), copy.deepcopy(notebook.cells[k])
        answer.update(source=solution(notebook, k - 1), id=f"answer-{k}")
        check.update(id=f"{k}{SOLVED}")
        solved.cells[k + 1 : k + 1] = [answer, check]
    return solved


def printed(cell: NotebookNode) -> str:
    """All that a cell shows but pictures and bars, as text."""
    shown = [output.text for output in cell.outputs if output.get("name") == "stdout"]
    shown += [text for output in cell.outputs for kind, text in output.get("data", {}).items() if "text" in kind]
    return "".join(shown)


def said(cell: NotebookNode) -> list[str]:
    """What a cell prints, and what its pictures and tables say in words."""
    shown = [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
    return [text for text in shown if text]


def solution(notebook: NotebookNode, k: int) -> str:
    """The code that is folded away behind the exercise of cell k."""
    behind = next(cell.source for cell in notebook.cells[k:] if cell.cell_type == "markdown")
    folded = behind.partition("<summary>Solution</summary>")[2]
    return re.search(r"```python\n(.*?)```", folded, re.DOTALL)[1]


def test_the_notebooks_are_found() -> None:
    assert {"00_start_here", "01_one_weight_at_a_time"} <= {path.stem for path in NOTEBOOKS}


# Rules


@every_notebook
def test_parameters(path: Path) -> None:
    """One cell of literals; the next one derives the rest, and refuses names that are not there."""
    notebook = read(path)
    if path.stem.startswith("00"):
        assert tagged(notebook, "parameters") == []
        return
    [k] = tagged(notebook, "parameters")
    for statement in ast.parse(notebook.cells[k].source).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign)
        ast.literal_eval(statement.value)
    following = notebook.cells[k + 1]
    assert following.cell_type == "code"
    assert "check_parameters()" in following.source


@every_notebook
def test_cells_are_short(path: Path) -> None:
    notebook = read(path)
    sizes = [len(cell.source.splitlines()) for cell in of_type(notebook, "code")]
    assert max(sizes) <= 25
    assert statistics.median(sizes) <= 7


@every_notebook
def test_more_text_than_code(path: Path) -> None:
    """About three cells of text to two of code; check cells belong to no text."""
    notebook = read(path)
    code = len(of_type(notebook, "code")) - len(tagged(notebook, "check"))
    assert 1.2 <= len(of_type(notebook, "markdown")) / code <= 2


@every_notebook
def test_committed_with_outputs_and_nothing_else(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert [cell.execution_count for cell in of_type(notebook, "code")] == [
        *range(1, len(of_type(notebook, "code")) + 1)
    ]
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    outputs = [output for cell in of_type(notebook, "code") for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert path.stat().st_size < 1_000_000
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert re.findall(r"/(?:root|home|Users|tmp|work)/\S*", text) == []


@every_notebook
def test_every_picture_has_a_text(path: Path) -> None:
    notebook = read(path)
    for cell in of_type(notebook, "code"):
        for data in (output.data for output in cell.outputs if "data" in output):
            images = re.findall(r"<img [^>]*>", data.get("text/html", ""))
            assert bool(images) or "image/png" not in data, f"a picture without HTML behind {cell.source[-60:]!r}"
            assert all(re.search(r'alt="[^"]{10,}"', image) for image in images)
    for cell in of_type(notebook, "markdown"):
        assert "![](" not in cell.source
        assert all(re.search(r'alt="[^"]{10,}"', image) for image in re.findall(r"<img [^>]*>", cell.source))


@every_notebook
def test_the_first_cell_says_what_it_takes(path: Path) -> None:
    first = read(path).cells[0].source
    assert first.startswith("# ")
    assert "| time |" in first
    assert "| paper |" in first or path.stem.startswith("00")


@every_notebook
def test_exercises(path: Path) -> None:
    """Each has a check behind it that waits for an answer, then a hint and a solution, folded away."""
    notebook = read(path)
    exercises = tagged(notebook, "exercise")
    assert len(exercises) >= 3 * path.stem.startswith(TEACHING)
    assert tagged(notebook, "check") == [k + 1 for k in exercises]
    for k in exercises:
        assert notebook.cells[k + 1].outputs[-1].text == "Not answered yet.\n"
        folded = notebook.cells[k + 2].source
        assert folded.count("<details>") == folded.count("</details>") == 2
        assert "<summary>Hint</summary>" in folded
        assert solution(notebook, k)


def test_the_path_through_the_series() -> None:
    """Each notebook that is there is a link on the first page, and the others are not."""
    page = "".join(cell.source for cell in of_type(read(FOLDER / "00_start_here.ipynb"), "markdown"))
    linked = set(re.findall(r"\]\((\w+)\.ipynb\)", page))
    there = {path.stem for path in NOTEBOOKS} - {"00_start_here"}
    assert linked == there, "the table in 00_start_here links the notebooks that exist"
    named = re.findall(r"^\| \[?(\d\d_\w+)", page, re.MULTILINE)
    assert named == sorted(named)
    assert linked <= set(named)


# What check cells say

TESTS = [(lambda n: n > 0, "it is positive."), (lambda n: n == 3, "it is odd.")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "Not answered yet."),
        (3, "Right."),
        (-3, "Not yet: it is positive."),
        (4, "Not yet: it is odd."),
        ("3", "Not yet: your answer raises TypeError: '>' not supported between instances of 'str' and 'int'"),
    ],
)
def test_verdict(answer: object, expected: str) -> None:
    assert verdict(answer, *TESTS) == expected


WRONG = {
    "undo by subtracting": "every bit",
    "two candidates": "w − Δ should win",
    "argmin": "NaN must never win",
    "last of equals": "in a tie",
    "NaN at w": "not even that of w",
    "minus infinity": "what is not finite must never win",
}
STEPS = """
def score(f, weights, index, candidates):
    losses = []
    for value in candidates:
        weights[index] = value
        losses.append(float(f()))
    return losses

def {name}(f, weights, index, delta):
    old = weights[index].clone()
    candidates = [old, old + delta, old - delta][:{tried}]
    losses = score(f, weights, index, candidates)
    clean = [loss if loss == loss else {nan} for loss in losses]
    kept = {pick}
    weights[index] = {write}
    return kept
"""


@pytest.mark.parametrize("mistake", WRONG)
def test_the_check_of_a_step_finds_the_mistake(mistake: str) -> None:
    """Notebook 01, exercise 2: wrong answers are told what is wrong with them."""
    notebook = read(FOLDER / "01_one_weight_at_a_time.ipynb")
    k = next(k for k in tagged(notebook, "exercise") if "my_step" in notebook.cells[k].source)
    right = {"tried": 3, "nan": "float('inf')", "pick": "clean.index(min(clean))", "write": "candidates[kept]"}
    wrong = {
        "undo by subtracting": {"write": "(weights[index] + delta) + [0, delta, -delta][kept]"},
        "two candidates": {"tried": 2},
        "argmin": {"nan": "-float('inf')"},
        "last of equals": {"pick": "max(j for j, loss in enumerate(clean) if loss == min(clean))"},
        "NaN at w": {"pick": "losses.index(min(losses))"},
        "minus infinity": {},
    }[mistake]
    code = STEPS.format(name="my_step", **(right | wrong)) + notebook.cells[k + 1].source.replace(
        "check(", "said = verdict("
    )
    names: dict[str, object] = {"verdict": verdict}
    exec("import torch\n" + code, names)
    assert WRONG[mistake] in str(names["said"])


def test_the_committed_run_is_what_the_demo_promises() -> None:
    """Notebook 01 as it stands, on digits: at least 95 % of the test part."""
    notebook = read(FOLDER / "01_one_weight_at_a_time.ipynb")
    printed = "".join(output.get("text", "") for cell in of_type(notebook, "code") for output in cell.outputs)
    final = re.search(r"^test accuracy: (0\.\d+) after 30 cycles", printed, re.MULTILINE)
    assert float(final[1]) >= 0.95
