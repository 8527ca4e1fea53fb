"""Sizes of a run: what a minute, a laptop's hour and a GPU can afford, each value overridable."""

from collections.abc import Mapping
from typing import Any

from ..proposals import ORDERS
from ..settings import check_choice, check_whole, numbers
from .about import check_dataset
from .nets import NETS

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

    Raises ValueError for an unknown preset, ValueError or TypeError for a value that no run can have.
    """
    check_choice("preset", preset, table)
    chosen = {**table[preset], **{name: value for name, value in values.items() if value is not None}}
    for name, value in chosen.items():
        if name in LEAST and value is not None:
            check_whole(name, value, least=LEAST[name])
    if "depths" in chosen:
        for depth in numbers("depths", chosen["depths"]):
            check_whole("depths", depth, least=1)
    if "net" in chosen and ":" not in chosen["net"]:
        check_choice("net", chosen["net"], NETS)
    if "order" in chosen:
        check_choice("order", chosen["order"], [*ORDERS, "both"])
    check_dataset(chosen["dataset"])
    return chosen


LEAST = {
    "cycles": 1,
    "batch_size": 1,
    "first_batch": 1,
    "seeds": 1,
    "epochs": 1,
    "sgd_batch_size": 1,
    "val_size": 0,
}
"""The least value of each whole number, in a preset of a run or of a notebook."""
