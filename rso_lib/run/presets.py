"""Sizes of a reproduction: what a minute, a laptop's hour and a GPU can afford, each value overridable."""

from collections.abc import Mapping
from typing import Any

from ..settings import check_choice

Table = Mapping[str, Mapping[str, Any]]

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
"""A run. smoke ends in under a minute anywhere; laptop is meant for an hour on two cores; paper is section 4.1."""


def batch_size(dataset: str) -> int:
    """Where nothing is said: the paper's, and that of smoke for its digits, which are fewer."""
    return PRESETS["smoke" if dataset == PRESETS["smoke"]["dataset"] else "paper"]["batch_size"]


def choose(preset: str, table: Table = PRESETS, /, **values: Any) -> dict[str, Any]:
    """The values of a preset, overridden by those that are given and not None. Raises ValueError for another name."""
    check_choice("preset", preset, table)
    return {**table[preset], **{name: value for name, value in values.items() if value is not None}}
