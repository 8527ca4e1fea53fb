"""The install cell of the notebooks."""

import importlib.util
import subprocess
from pathlib import Path

import nbformat
import pytest

from rso_lib.teach import editions, setup_cell

SOURCE = "git+https://example.org/rso"
HOSTS = ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE")


def run(monkeypatch: pytest.MonkeyPatch, host: str | None, installed: bool) -> list[list[str]]:
    """What the cell hands to pip, on a host and where the library is installed or not."""
    asked: list[list[str]] = []
    for name in HOSTS:
        monkeypatch.delenv(name, raising=False)
    if host:
        monkeypatch.setenv(host, "1")
    monkeypatch.setattr(subprocess, "run", lambda words, check: asked.append(words[4:]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    exec(setup_cell.CELL.replace("SOURCE", SOURCE), {})
    return asked


@pytest.mark.parametrize("installed", [True, False])
def test_it_does_nothing_at_home(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, None, installed) == []


@pytest.mark.parametrize("host", HOSTS)
def test_it_installs_what_is_missing_and_no_torch(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, host, installed=True) == []
    assert run(monkeypatch, host, installed=False) == [["--quiet", "--no-deps", SOURCE], ["--quiet", "tyro"]]


@pytest.mark.parametrize("path", editions.sources(), ids=lambda path: path.stem)
def test_it_comes_first_and_once(path: Path) -> None:
    before = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    setup_cell.insert(notebook, "another place")
    setup_cell.insert(notebook, SOURCE)
    nbformat.validate(notebook)
    first, *others = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert first.metadata.tags == [setup_cell.TAG] and SOURCE in first.source and "another place" not in first.source
    old = [cell.source for cell in before.cells if cell.cell_type == "code" and cell.id != setup_cell.TAG]
    assert [cell.source for cell in others] == old
    assert notebook.cells[0].source == before.cells[0].source
