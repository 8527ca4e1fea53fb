"""Sizes of a run: what a minute, a laptop's hour and a GPU can afford, each value overridable."""

from collections.abc import Mapping
from typing import Any

from ..settings import check_choice, check_whole
from .about import check_dataset

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"dataset": "digits", "net": "one_conv", "cycles": 6, "batch_size": 128},
    "laptop": {
        "dataset": "mnist",
        "net": "mnist_net",
        "cycles": 12,
        "first_batch": 1000,
        "batch_size": 5000,
        "order": "input",
    },
    "paper": {"dataset": "mnist", "net": "mnist_net", "cycles": 50, "batch_size": 5000},
}
"""Settings of a run: smoke ends in under a minute, laptop is meant for an hour on two cores, paper is section 4.1."""


def said() -> str:
    """Return what each preset of a run sets, for --help."""
    lines = {name: " ".join(f"{key}={value}" for key, value in values.items()) for name, values in PRESETS.items()}
    return "; ".join(f"{name}: {line}" for name, line in lines.items())


def batch_size(dataset: str) -> int:
    """Return the default batch size: that of smoke for its digits, which are few, and else the paper's."""
    return PRESETS["smoke" if dataset == PRESETS["smoke"]["dataset"] else "paper"]["batch_size"]


def choose(preset: str, table: Mapping[str, Mapping[str, Any]] = PRESETS, /, **values: Any) -> dict[str, Any]:
    """Return the values of a preset, overridden by those that are given and not None.

    Raises ValueError for an unknown preset or images that there are not, ValueError or TypeError for a number of runs
    or a batch size of SGD below 1. `RSO`, `SGD` and `build` check the rest.
    """
    check_choice("preset", preset, table)
    chosen = {**table[preset], **{name: value for name, value in values.items() if value is not None}}
    check_dataset(chosen["dataset"])
    for name in {"seeds", "sgd_batch_size"} & chosen.keys():
        check_whole(name, chosen[name], least=1)
    return chosen
