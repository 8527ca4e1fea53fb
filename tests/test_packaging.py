"""What holds the project together: its commands, its dependencies, what imports what, what an import costs."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONDA_NAMES = {"torch": "pytorch"}
needs_make = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


@pytest.fixture(scope="module")
def requirements(project: Path) -> dict[str, Requirement]:
    """What pyproject.toml asks for, by name."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    asked = [*table["dependencies"], *table["optional-dependencies"]["dev"]]
    return {requirement.name: requirement for requirement in map(Requirement, asked)}


def make(project: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a folder that has only the Makefile and pyproject.toml, and nothing of the make that runs us."""
    for name in ("Makefile", "pyproject.toml"):
        (folder / name).write_text((project / name).read_text())
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    env |= {"PYTHON": sys.executable, "CONSTRAINTS": ""}
    return subprocess.run(["make", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False)


def make_targets(project: Path) -> set[str]:
    rules = re.findall(r"^([a-z -]+):", (project / "Makefile").read_text(), re.MULTILINE)
    return {target for rule in rules for target in rule.split()}


def test_import_is_lean(project: Path) -> None:
    """The core loads no plotting, no widgets, and nothing that only some uses need."""
    heavy = ["matplotlib", "ipywidgets", "IPython", "pandas", "torchvision", "sklearn", "PIL", "papermill"]
    code = f"import sys, rso_lib, rso_lib.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("given", [None, "active"])
def test_waiting_threads_sleep(project: Path, given: str | None) -> None:
    """It is said before torch is loaded, which reads it once; whoever says something else is heard."""
    code = """
import builtins, os, sys
usual = builtins.__import__
def watched(name, *more):
    if name == "torch" and "torch" not in sys.modules:
        print(os.environ.get("OMP_WAIT_POLICY"))
    return usual(name, *more)
builtins.__import__ = watched
import rso_lib
"""
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    env |= {"OMP_WAIT_POLICY": given} if given else {}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == (given or "passive")


def test_environment_yml_asks_for_the_same_as_pyproject(project: Path, requirements: dict[str, Requirement]) -> None:
    environment = yaml.safe_load((project / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    conda = [entry for entry in environment if isinstance(entry, str) and entry != "pip"]
    assert pip.pop() == "--editable ."
    found = {requirement.name: requirement.specifier for requirement in map(Requirement, [*conda, *pip])}
    python = tomllib.loads((project / "pyproject.toml").read_text())["project"]["requires-python"]
    assert str(found.pop("python")) == python
    assert found == {CONDA_NAMES.get(name, name): asked.specifier for name, asked in requirements.items()}


def test_constraints_are_exact_and_within_the_ranges(project: Path, requirements: dict[str, Requirement]) -> None:
    lines = (project / "constraints.txt").read_text().splitlines()
    split = [line.split("==") for line in lines if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, version in split}
    assert requirements.keys() <= pins.keys()
    wrong = [name for name, asked in requirements.items() if Version(pins[name]) not in asked.specifier]
    assert wrong == []


def imports(source: str, package: str) -> Iterator[str]:
    """The dotted names that a module of a package asks for, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)


def imported_by(file: Path, project: Path) -> list[str]:
    return list(imports(file.read_text(), ".".join(file.relative_to(project).parts[:-1])))


def test_every_import_is_declared(project: Path, requirements: dict[str, Requirement]) -> None:
    modules = {"sklearn": "scikit-learn", "PIL": "pillow", "IPython": "ipython", "yaml": "pyyaml"}
    modules |= {"sphinx_revealjs": "sphinx-revealjs"}
    transitive = {"packaging", "nbformat", "nbclient", "cycler", "triton"}  # of pytest, papermill, matplotlib, torch
    transitive |= {"nbconvert", "docutils"}  # of jupyterlab, sphinx
    tests = sorted(project.glob("tests/*.py"))
    sources = [*project.glob("rso_lib/**/*.py"), *tests]
    imported = {name.split(".")[0] for source in sources for name in imported_by(source, project)}
    own = {"rso_lib", *(test.stem for test in tests)}
    foreign = imported - set(sys.stdlib_module_names) - own - transitive
    assert {modules.get(name, name) for name in foreign} <= requirements.keys()


# What each room may import. The core is what lies in none of the others.
ROOMS: dict[str, list[str]] = {
    "core": [],
    "engine": ["core"],
    "run": ["core", "engine"],
    "lab": ["core", "engine", "run"],
    "teach": ["core", "engine", "run", "lab"],
}
DOORS = {
    **{f"rso_lib/{name}.py": "engine" for name in ("train", "sweep", "checks")},  # the loop has its steps made fast
    "rso_lib/__main__.py": "run",  # `python -m rso_lib` is the command
}


def room(name: str) -> str:
    """The room of a dotted name."""
    return next((part for part in name.split(".")[1:2] if part in ROOMS), "core")


def test_imports_go_in_one_direction(project: Path) -> None:
    """The lab knows all, a run knows no lab, the engine knows the core, and the core knows the engine by one door."""
    wrong = []
    for file in sorted(project.glob("rso_lib/**/*.py")):
        path = file.relative_to(project).as_posix()
        own = room(path.removesuffix(".py").replace("/", "."))
        for name in imported_by(file, project):
            if name.split(".")[0] == "rso_lib" and room(name) not in [own, *ROOMS[own], DOORS.get(path)]:
                wrong.append(f"{path} imports {name}")
    assert wrong == []


def test_imports_are_found() -> None:
    source = "from . import a\nfrom .. import run\nfrom ..lab.live import b\nimport os.path\ndef f(): from .x import c"
    names = list(imports(source, "rso_lib.engine"))
    assert names == ["rso_lib.engine.a", "rso_lib.run", "rso_lib.lab.live.b", "os.path", "rso_lib.engine.x.c"]
    assert [room(name) for name in [*names, "rso_lib.models.Net"]] == ["engine", "run", "lab", "core", "engine", "core"]


def test_the_commands_of_the_readme_exist(project: Path) -> None:
    pages = (project / "README.md").read_text() + (project / "docs" / "using.md").read_text()
    commands = set(re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z-]+)", pages))
    assert {"demo", "test", "test-all", "lab"} <= commands <= make_targets(project)


def test_every_file_has_a_caption(project: Path) -> None:
    readme = (project / "CONTRIBUTING.md").read_text()
    names = ["Makefile", "pyproject.toml", "constraints.txt", "environment.yml", ".ci/run", "LICENSE"]
    files = [file for kind in ("*.py", "*.cpp") for file in project.glob(f"rso_lib/**/{kind}") if file.stat().st_size]
    names += [file.relative_to(project).as_posix() for file in files]
    names += [f"{folder}/" for folder in ("notebooks", "tests", "figures")]
    assert [name for name in names if f"| `{name}` |" not in readme] == []


def test_ci_runs_the_suite(project: Path) -> None:
    script = project / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("\nmake test")
    subprocess.run(["bash", "-n", script], check=True)


@needs_make
@pytest.mark.parametrize("target", ["demo", "test", "test-all", "lab", "voila", "lint", "bench-live"])
def test_make_sets_up_before_it_runs(project: Path, tmp_path: Path, target: str) -> None:
    """In a fresh copy: first the environment with everything in one installation, then the command."""
    done = make(project, tmp_path, "-n", target)
    steps = [step for step in ("-m venv .venv", "-m pip install", "touch .venv/") if step in done.stdout]
    assert len(steps) == 3
    assert done.stdout.count("-m pip install") == 1
    assert done.stdout.index("--editable '.[dev]'") < done.stdout.index("touch .venv/.installed")


@needs_make
def test_make_says_when_python_is_too_old(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")  # what a Python older than 3.11 answers to the question
    old.chmod(0o755)
    done = make(project, tmp_path, f"PYTHON={old}", "demo")
    assert done.returncode != 0
    assert "Python 3.11 or later is needed" in done.stdout
    assert not (tmp_path / ".venv").exists()
