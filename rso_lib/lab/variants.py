"""Settings against each other: several runs in folders, under one bar (notebooks 05 and 08)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from ..run import folder as runs
from ..run.folder import Run
from ..settings import RSO

Result = TypeVar("Result")


def run_variants(
    variants: Mapping[str, RSO], seeds: Iterable[int], run: Callable[[str, RSO], Result], *, progress: bool = True
) -> dict[str, list[Result]]:
    """Run each of some settings with each seed, and return the results by label, one for each seed.

    run  (label, settings) → a result: `in_folder(...)`, or a function of yours

    With the same seed all variants begin with the same net. An interrupt ends the whole: a part of a run is no result.
    """
    jobs = [(label, seed) for seed in seeds for label in variants]
    results: dict[str, list[Result]] = {label: [] for label in variants}
    for label, seed in tqdm(jobs, unit="run", disable=not progress):
        results[label].append(run(label, replace(variants[label], seed=seed)))
    return results


def in_folder(folder: str | Path, **what: Any) -> Callable[[str, RSO], Run]:
    """Return a `run` for `run_variants`: it keeps each run in folder/LABEL/seed_SEED, and goes on where it stopped.

    what  dataset, net, device … as in `run.folder.start`, which raises the same errors

    Raises KeyboardInterrupt where a run was stopped: the same call goes on.
    """

    def run(label: str, settings: RSO) -> Run:
        made = runs.start(Path(folder) / label / f"seed_{settings.seed}", settings=settings, **what)
        if not made.finished:
            raise KeyboardInterrupt(
                f"the run with seed {settings.seed} was stopped; the same call goes on in {made.folder}"
            )
        return made

    return run
