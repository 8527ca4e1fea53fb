"""Parameters of notebooks: a misspelt one is an error, however the notebook is run."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from rso_lib.lab import demo
from rso_lib.lab.checks import assigned_names, check_names, check_parameters

PARAMETERS = 'cycles: int = 2  # passes over all weights\nseed = 0\nout = ""'
CHECK = "from rso_lib.lab.checks import check_parameters\n\ncheck_parameters()"
SAVE = """
from pathlib import Path
from rso_lib.history import History, Report
counts = dict(sigma=1.0, kept=0, plus=0, minus=0, evaluations=0, image_forwards=0)
rows = [
    Report(cycle=1, layer="head", steps=100, **counts),
    Report(cycle=1, layer="conv", steps=50, **counts),
    Report(cycle=1, layer="", steps=150, test_accuracy=0.5, **counts),
    Report(cycle=2, layer="head", steps=100, **counts),
    Report(cycle=2, layer="conv", steps=50, **counts),
    Report(cycle=2, layer="", steps=150, test_accuracy=0.75, **counts),
]
History(rows).save(Path(out, "history.csv"))
Path(out, "losses.png").write_bytes(b"")
print(cycles, seed)
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook that stands for the series' first: it has parameters, checks them, and saves its history."""
    cells = [
        new_code_cell("import sys"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(CHECK),
        new_code_cell(SAVE),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "notebook.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def printed(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[-1].outputs[-1].text


def test_execute_passes_parameters(notebook: Path, tmp_path: Path) -> None:
    demo.execute(notebook, tmp_path / "made" / "out.ipynb", {"cycles": 3, "out": str(tmp_path)})
    assert printed(tmp_path / "made" / "out.ipynb") == "3 0\n"


def test_execute_refuses_an_unknown_parameter(notebook: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cycles, seed, out, not 'cycle'; did you mean 'cycles'"):
        demo.execute(notebook, tmp_path / "out.ipynb", {"cycle": 3})
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize(("name", "value"), [("cycles", "5"), ("nonsense", "1")])
def test_papermills_own_command(project: Path, notebook: Path, tmp_path: Path, name: str, value: str) -> None:
    output = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "papermill", notebook, output, "-p", "out", tmp_path, "-p", name, value]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    if name == "cycles":
        assert done.returncode == 0
        assert printed(output) == "5 0\n"
    else:
        assert done.returncode != 0
        assert "ValueError: a parameter must be one of cycles, seed, out, not 'nonsense'" in done.stderr
        assert not (tmp_path / "history.csv").exists()


class Shell:
    """As much of IPython as the check looks at."""

    def __init__(self, *cells: str):
        self.user_ns: dict[str, Any] = {"In": ["", *cells]}
        for cell in cells:
            if cell != CHECK:
                exec(cell, self.user_ns)


def check_in(monkeypatch: pytest.MonkeyPatch, *cells: str) -> None:
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: Shell(*cells))
    check_parameters()


def test_nothing_to_check_outside_papermill(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parameters()
    check_in(monkeypatch, "import sys", PARAMETERS, CHECK)


def test_cells_that_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An executed notebook, opened in JupyterLab: the reader changes papermill's cell and runs it again."""
    known, added = "# Parameters\ncycles = 3", "# Parameters\ncycle = 4"
    run = ["import sys", PARAMETERS, known, CHECK, "losses = {}"]
    check_in(monkeypatch, *run, *run)
    check_in(monkeypatch, *run, known, CHECK)
    check_in(monkeypatch, PARAMETERS, "# Parameters\nout = 'there'", "import pathlib\nout = pathlib.Path(out)", CHECK)
    with pytest.raises(ValueError, match="not 'cycle'"):
        check_in(monkeypatch, *run, added, CHECK)


def test_no_parameters_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no cell tagged `parameters` has run that could take cycles"):
        check_in(monkeypatch, "# Parameters\ncycles = 3", CHECK)


def test_names() -> None:
    assert assigned_names("# Parameters\na = 1\nb: float = float('nan')\nc = [1, {'d': 2}]\n") == ["a", "b", "c"]
    check_names(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="'c'"):
        check_names(["a", "c"], ["a", "b"])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("cycles = 0", "ValueError: cycles must be at least 1, not 0"),
        ("cycles = 'many'", "TypeError: cycles must be a whole number, not 'many'"),
        ("cycles = None", "TypeError: cycles must be a whole number, not None"),
        ("cycles = float('nan')", "TypeError: cycles must be a whole number, not nan"),
        ("out = float('inf')", "TypeError: out must be text such as '', not inf: papermill gives it with -r"),
        ("seed = -1", "ValueError: seed must be at least 0, not -1"),
        ("out = 3", "TypeError: out must be text such as '', not 3: papermill gives it with -r"),
        ("cycles = 1\nseed = 0\nout = 'there'", ""),
        ("rate = None", ""),
        (
            "processes = '1, 2, many'",
            "ValueError: processes must be whole numbers separated by commas, not '1, 2, many'",
        ),
        ("processes = [1, 2]", "ValueError: processes must be whole numbers separated by commas, not [1, 2]"),
        ("processes = '0, 1'", "ValueError: processes must be at least 1, not 0"),
        ("processes = 4", ""),
    ],
)
def test_values(monkeypatch: pytest.MonkeyPatch, given: str, error: str) -> None:
    """A whole number stays one, at least 1 where the notebook's own is; other kinds are the notebook's own business."""
    known = "cycles: int = 3\nseed = 0\nout = ''\nrate = None\nprocesses = '1, 2'"
    cells = [known, f"# Parameters\n{given}", CHECK]
    if not error:
        return check_in(monkeypatch, *cells)
    with pytest.raises((ValueError, TypeError)) as raised:
        check_in(monkeypatch, *cells)
    assert f"{raised.type.__name__}: {raised.value}" == error


def test_demo_ends_with_the_result(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "demo"
    out.mkdir(parents=True)
    (out / "stale.png").write_bytes(b"")
    monkeypatch.setattr(demo, "PROJECT", tmp_path)
    monkeypatch.setattr(demo, "OUT", out)
    monkeypatch.setattr(demo, "NOTEBOOK", notebook)
    demo.main([])
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "test accuracy: 0.7500 after 300 steps",
        "  runs/demo/notebook.ipynb",
        "  runs/demo/history.csv",
        "  runs/demo/losses.png",
    ]


def test_demo_without_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "missing.ipynb")
    with pytest.raises(SystemExit, match=r"missing\.ipynb is missing"):
        demo.main([])
