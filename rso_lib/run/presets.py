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


def describe_presets() -> str:
    """Return the values that each preset of a run sets, for --help."""
    lines = {name: " ".join(f"{key}={value}" for key, value in values.items()) for name, values in PRESETS.items()}
    return "; ".join(f"{name}: {line}" for name, line in lines.items())


def batch_size(dataset: str) -> int:
    """Return the default batch size: that of smoke for its digits, which are few, and else the paper's."""
    return PRESETS["smoke" if dataset == PRESETS["smoke"]["dataset"] else "paper"]["batch_size"]


def choose_preset(preset: str, table: Mapping[str, Mapping[str, Any]] = PRESETS, /, **values: Any) -> dict[str, Any]:
    """Return the values of a preset, overridden by given values that are not None.

    Raises ValueError for an unknown preset, ValueError or TypeError for a value that no run can have.
    """
    check_choice("preset", preset, table)
    chosen = {**table[preset], **{name: value for name, value in values.items() if value is not None}}
    _check(chosen)
    return chosen


def _check(values: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError, naming the argument, for a value of a wrong kind."""
    for name, value in values.items():
        if name in WHOLE and value is not None:
            check_whole(name, value, least=0 if name == "val_size" else 1)
        elif name == "depths":
            for one in numbers(name, value, int):
                check_whole(name, one, least=1)
        elif name in CHOICES and not (name == "net" and ":" in str(value)):
            check_choice(name, value, CHOICES[name])
        elif name == "dataset":
            check_dataset(value)


WHOLE = {"cycles", "batch_size", "first_batch", "seeds", "epochs", "sgd_batch_size", "val_size"}
CHOICES = {"net": NETS, "order": [*ORDERS, "both"]}
