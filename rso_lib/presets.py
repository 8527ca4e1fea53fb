"""Sizes of a reproduction: what a minute, a laptop's hour and a GPU can afford, each value overridable."""

from collections.abc import Mapping
from typing import Any

from .settings import check_choice

Table = Mapping[str, Mapping[str, Any]]

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"dataset": "digits", "net": "one_conv", "cycles": 6, "batch_size": 128},
    "laptop": {"dataset": "mnist", "net": "mnist_net", "cycles": 4, "batch_size": 1000},
    "paper": {"dataset": "mnist", "net": "mnist_net", "cycles": 50, "batch_size": 5000},
}
"""A run. smoke ends in under a minute anywhere; laptop is meant for an hour on two cores; paper is section 4.1."""

MNIST: dict[str, dict[str, Any]] = {
    "smoke": {**PRESETS["smoke"], "schedule": "linear", "order": "both", "seeds": 2, "epochs": 20, "rate": 0.05},
    "laptop": {**PRESETS["laptop"], "schedule": "linear", "order": "output", "seeds": 1, "epochs": 20, "rate": 0.5},
    "paper": {**PRESETS["paper"], "schedule": "linear", "order": "both", "seeds": 1, "epochs": 50, "rate": 0.5},
}
"""Notebook 05. `epochs` and `rate` are those of SGD (sections 4.4 and 4.5)."""

LEVELS: dict[str, dict[str, Any]] = {
    "smoke": {**PRESETS["smoke"], "batch_size": 256, "seeds": 1, "tries": 30, "epochs": 30},
    "laptop": {**PRESETS["laptop"], "net": "one_conv", "cycles": 6, "seeds": 1, "tries": 50, "epochs": 2},
    "paper": {**PRESETS["paper"], "seeds": 1, "tries": 400, "epochs": 10},
}
"""Notebook 06. `tries` are random directions of each kind, `epochs` those of the net that they are tried at. A joint
step sends the batch through the whole net, so that a laptop gets a smaller one."""


def choose(preset: str, table: Table = PRESETS, /, **values: Any) -> dict[str, Any]:
    """The values of a preset, overridden by those that are given and not None. Raises ValueError for another name."""
    check_choice("preset", preset, table)
    return {**table[preset], **{name: value for name, value in values.items() if value is not None}}
