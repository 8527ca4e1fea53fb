"""What is here, what is missing, and what to type: `python -m rso_lib doctor`.

Before anything is installed, `python rso_lib/teach/doctor.py` says the same: torch is imported only where it is found,
and a Python that is too old can read this file.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
INSTALL = "pip install --editable ."
OLDEST = (3, 11)
MNIST = Path("MNIST", "raw", "train-images-idx3-ubyte")
NEEDED, USEFUL = "MISSING", "without"


class Finding(NamedTuple):
    """A finding: what was looked for, what was found (in words), whether it is enough, and what to type if not."""

    what: str
    said: str
    state: str = "ok"
    remedy: str = ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the notebooks need, and what is here of it. The status is 1 where something needed is missing."""
    if find_spec("tyro") and __package__:
        import_module("..run.cli", __package__).parse("doctor", main, arguments)
    findings = list(examine())
    print(report(findings))
    sys.exit(any(one.state == NEEDED for one in findings))


def report(findings: Sequence[Finding]) -> str:
    """Return a line for each finding, and a last one that sums up."""
    lines = []
    for one in findings:
        lines.append(f"{one.state:8} {one.what:14} {one.said}")
        lines += [f"{'':23} type: {one.remedy}"] if one.remedy else []
    needed = [one.what for one in findings if one.state == NEEDED]
    last = f"Not ready: {', '.join(needed)}" if needed else "Ready: python -m rso_lib demo, or jupyter lab notebooks"
    return "\n".join([*lines, "", last])


def examine() -> Iterator[Finding]:
    """Yield a finding for each thing that the notebooks need or can use."""
    said = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.prefix}"
    if sys.version_info[:2] < OLDEST:
        yield Finding("Python", said, NEEDED, "another Python: 3.11 or later")
        return
    yield Finding("Python", said)
    yield packages("packages", _asked(), NEEDED, INSTALL)
    if find_spec("torch"):
        yield from (torch_itself(), gpu(), kernels())
    yield data()
    if names := _asked("dev"):
        yield packages("tests, book", names, USEFUL, "pip install --editable '.[dev]'")
    if not shutil.which("make"):
        yield Finding("make", "docs/install.md has the commands behind it", USEFUL)


def packages(what: str, asked: Sequence[str], state: str, remedy: str) -> Finding:
    """Look for the packages that pyproject.toml asks for."""
    missing = [name for name in asked if not _installed(name)]
    if missing:
        return Finding(what, f"{', '.join(missing)} not installed", state, remedy)
    return Finding(what, f"all {len(asked)} that are asked for" if asked else "no pyproject.toml: installed by pip")


def torch_itself() -> Finding:
    """Look at the installed torch: for CPUs or for CUDA, and how many cores it takes."""
    torch = import_module("torch")
    kind = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    return Finding("torch", f"{torch.__version__}, {kind}, on {torch.get_num_threads()} of {os.cpu_count()} cores")


def gpu() -> Finding:
    """Look for a GPU that CUDA sees."""
    cuda: Any = import_module("torch").cuda
    if cuda.is_available():
        return Finding("GPU", f"{cuda.get_device_name()}: device = 'cuda' in a notebook's second cell")
    return Finding("GPU", "none that CUDA sees; the CPU will do", USEFUL)


def kernels() -> Finding:
    """Look whether the inner loops for the CPU are compiled, and compile them where they are not yet."""
    sys.path.insert(0, str(PROJECT))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        load: Callable[[], object] = import_module("rso_lib.engine.kernels").load_compiled
        if load():
            return Finding("kernels", "compiled")
    reason = str(heard[-1].message) if heard else "RSO_KERNELS=0 is set"
    how = {"Darwin": "conda install cxx-compiler llvm-openmp", "Windows": ""}
    remedy = how.get(platform.system(), "apt install g++, or what brings a C++ compiler with OpenMP")
    return Finding("kernels", f"none: two to three times slower, the same results ({reason})", USEFUL, remedy)


def data() -> Finding:
    """Look for MNIST on the disk."""
    root = Path(os.environ.get("RSO_DATA") or PROJECT / "data").expanduser()
    if (root / MNIST).exists():
        return Finding("data", f"digits, MNIST in {root}")
    said = f"digits; no MNIST in {root}, which notebook 05 can train on"
    return Finding("data", said, USEFUL, "python -c \"import rso_lib; rso_lib.load('mnist')\"")


def _asked(extra: str = "") -> list[str]:
    """Return the names of the packages that pyproject.toml asks for; none where there is no clone."""
    file = PROJECT / "pyproject.toml"
    table = import_module("tomllib").loads(file.read_text(encoding="utf-8"))["project"] if file.is_file() else {}
    lines = table.get("optional-dependencies", {}).get(extra, []) if extra else table.get("dependencies", [])
    return [line.split(">")[0].split("=")[0].strip() for line in lines]


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
