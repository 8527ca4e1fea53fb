"""The main job on scikit-learn's digits: `python -m rso_lib demo`, or `make demo`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..history import History
from ..run import cli as command
from .checks import check_names

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOK = PROJECT / "notebooks" / "01_one_weight_at_a_time.ipynb"
OUT = PROJECT / "runs" / "demo"


def execute(notebook: str | Path, output: str | Path, parameters: Mapping[str, Any] | None = None) -> None:
    """Execute a notebook through papermill, with its progress on the terminal, and write the result to `output`.

    Raises ValueError for a parameter that the notebook's `parameters` cell does not have, and papermill's
    PapermillExecutionError when a cell fails; `output` then shows where.
    """
    import papermill

    parameters = dict(parameters or {})
    check_names(list(parameters), list(papermill.inspect_notebook(str(notebook))))
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook),
        str(output),
        parameters,
        start_timeout=600,  # seconds; a busy machine needs more than the usual 60 to start a kernel
        stderr_file=sys.stderr,  # the progress bars of the cells
        coalesce_streams=True,  # one output for a bar, and not one for each of its states
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # a local kernel warns that it does not encrypt
    )


def summary(history: History) -> str:
    """Return the result of a run in one line."""
    steps = sum(cycle.steps for cycle in history.cycles.rows)
    return f"test accuracy: {history.last.test_accuracy:.4f} after {steps:,} steps"


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute the first teaching notebook on digits into runs/demo, and say what came out."""
    command.parse("demo", main, arguments)
    if not NOTEBOOK.is_file():
        sys.exit(f"{NOTEBOOK} is missing; the demo needs a whole copy of the project")
    for old in [*OUT.glob("*.csv"), *OUT.glob("*.png")]:
        old.unlink()
    execute(NOTEBOOK, OUT / NOTEBOOK.name, {"out": str(OUT)})
    print(f"\n{summary(History.load(OUT / 'history.csv'))}")
    for file in [OUT / NOTEBOOK.name, OUT / "history.csv", *sorted(OUT.glob("*.png"))]:
        print(f"  {file.relative_to(PROJECT)}")
