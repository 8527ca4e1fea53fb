"""Sizes of a reproduction: what a minute, a laptop's hour and a GPU can afford, each value overridable."""

from typing import Any

from .settings import _check_choice

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"dataset": "digits", "net": "one_conv", "cycles": 2, "batch_size": 128},
    "laptop": {"dataset": "mnist", "net": "mnist_net", "cycles": 4, "batch_size": 1000},
    "paper": {"dataset": "mnist", "net": "mnist_net", "cycles": 50, "batch_size": 5000},
}
"""smoke ends in under a minute anywhere; laptop is meant for an hour on two cores; paper is section 4.1."""


def choose(preset: str, **values: Any) -> dict[str, Any]:
    """The values of a preset, overridden by those that are given and not None. Raises ValueError for another name."""
    _check_choice("preset", preset, PRESETS)
    return {**PRESETS[preset], **{name: value for name, value in values.items() if value is not None}}
