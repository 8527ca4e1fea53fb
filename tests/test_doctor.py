"""`python -m rso_lib doctor`, on this machine and on ones that lack something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rso_lib.teach import doctor
from rso_lib.teach.doctor import Finding

DOCTOR = Path("rso_lib", "teach", "doctor.py")


def test_a_complete_machine_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    said = capsys.readouterr().out
    assert not ended.value.code
    assert "MISSING" not in said and "Ready: python -m rso_lib demo" in said
    assert sys.version.split()[0] in said


def test_with_nothing_installed_it_says_what_to_type(project: Path) -> None:
    """The bare interpreter sees no package; the file runs all the same."""
    words = [sys.executable, "-I", "-S", DOCTOR]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "MISSING  packages       torch, torchvision, numpy" in done.stdout
    assert f"type: {doctor.INSTALL}" in done.stdout
    assert done.stdout.endswith("Not ready: packages\n")


def test_an_old_python_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST", (99, 0))
    [only] = doctor.examine()
    assert only.state == doctor.NEEDED and "3.11 or later" in only.remedy


def test_without_a_compiler_the_kernels_have_a_remedy(project: Path, tmp_path: Path) -> None:
    """Nothing is on the path, and nothing in the cache."""
    env = os.environ | {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    env = {name: value for name, value in env.items() if name not in ("CXX", "RSO_KERNELS")}
    done = subprocess.run([sys.executable, DOCTOR], cwd=project, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "without  kernels        none: two to three times slower" in done.stdout
    assert "there is no C++ compiler" in done.stdout
    assert "without  make" in done.stdout


def test_images_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RSO_DATA", str(tmp_path))
    assert doctor.data().state == doctor.USEFUL
    file = tmp_path / doctor.MNIST
    file.parent.mkdir(parents=True)
    file.touch()
    assert doctor.data() == Finding("data", f"digits, MNIST in {tmp_path}")
