"""Sizes of a reproduction: what a minute, a laptop's hour and a GPU can afford, each value overridable."""

import math
from collections.abc import Mapping
from typing import Any

from ..proposals import ORDERS
from ..settings import check_choice, check_whole, numbers
from .folder import check_dataset
from .nets import NETS

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


def _grid(batch_sizes: str, rates: str, epochs: int, target: float) -> dict[str, Any]:
    """A search for SGD's settings."""
    return {"grid_batch_sizes": batch_sizes, "grid_rates": rates, "grid_epochs": epochs, "grid_target": target}


_MNIST = {"first_batch": None, "schedule": "linear", "seeds": 1, "rate": 0.5}
MNIST: dict[str, dict[str, Any]] = {
    "smoke": {
        **_MNIST,
        **PRESETS["smoke"],
        **_grid("32, 128", "0.01, 0.05, 0.2", epochs=10, target=0.9),
        "order": "both",
        "seeds": 2,
        "epochs": 20,
        "rate": 0.05,
    },
    "laptop": {
        **_MNIST,
        **PRESETS["laptop"],
        **_grid("128, 1000, 5000", "0.02, 0.1, 0.5", epochs=8, target=0.98),
        "epochs": 20,
    },
    "paper": {
        **_MNIST,
        **PRESETS["paper"],
        **_grid("100, 1000, 5000, 20000", "0.01, 0.1, 0.5, 2.0, 5.0", epochs=50, target=0.9912),
        "order": "both",
        "epochs": 50,
    },
}
"""Notebook 05. `epochs` and `rate` are those of SGD (sections 4.4 and 4.5), `grid_…` those of the search for them."""

LEVELS: dict[str, dict[str, Any]] = {
    "smoke": {**PRESETS["smoke"], "batch_size": 256, "seeds": 1, "tries": 30, "epochs": 30},
    "laptop": {
        "dataset": "mnist",
        "net": "one_conv",
        "cycles": 6,
        "batch_size": 1000,
        "seeds": 1,
        "tries": 50,
        "epochs": 2,
    },
    "paper": {**PRESETS["paper"], "seeds": 1, "tries": 400, "epochs": 10},
}
"""Notebook 06. `tries` are random directions of each kind, `epochs` those of the net that they are tried at. A joint
step sends the batch through the whole net, so that a laptop gets a smaller one."""

PARALLEL: dict[str, dict[str, Any]] = {
    "smoke": {**PRESETS["smoke"], "net": "two_conv", "cycles": 3, "processes": "1, 2"},
    "laptop": {"dataset": "mnist", "net": "mnist_net", "cycles": 4, "batch_size": 250, "processes": "1, 2"},
    "paper": {**PRESETS["paper"], "processes": "1, 2, 4, 8"},
}
"""Notebook 07. `processes` are the numbers that are tried, of one thread each."""

_CIFAR = {"weight_decay": 1e-4, "val_size": None, "seeds": 1, "sgd_batch_size": 128, "rate": 0.1}
CIFAR: dict[str, dict[str, Any]] = {
    "smoke": {
        **_CIFAR,
        **_grid("32, 128", "0.02, 0.1", epochs=2, target=0.9),
        "dataset": "digits",
        "depths": "3",
        "cycles": 1,
        "batch_size": 32,
        "epochs": 3,
    },
    "laptop": {
        **_CIFAR,
        **_grid("128, 1000", "0.02, 0.1, 0.5", epochs=2, target=0.4),
        "dataset": "cifar10",
        "depths": "3, 5, 10",
        "cycles": 2,
        "batch_size": 200,
        "epochs": 18,
        "val_size": 25000,
    },
    "paper": {
        **_CIFAR,
        **_grid("100, 1000, 3000, 20000", "0.01, 0.1, 1.0, 4.0, 5.0", epochs=100, target=0.818),
        "dataset": "cifar10",
        "depths": "3, 5, 10",
        "cycles": 500,
        "batch_size": 5000,
        "epochs": 100,
    },
}
"""Notebook 08: nets of these depths; SGD trains the deepest. val_size of laptop leaves 25,000 images for training: the
search of Depth-10 keeps about 0.2 MB for each of them."""


def said() -> str:
    """Return what each preset of a run sets, for --help."""
    lines = {name: " ".join(f"{key}={value}" for key, value in values.items()) for name, values in PRESETS.items()}
    return "; ".join(f"{name}: {line}" for name, line in lines.items())


def batch_size(dataset: str) -> int:
    """Where nothing is said: the paper's, and that of smoke for its digits, which are fewer."""
    return PRESETS["smoke" if dataset == PRESETS["smoke"]["dataset"] else "paper"]["batch_size"]


def choose(preset: str, table: Table = PRESETS, /, **values: Any) -> dict[str, Any]:
    """The values of a preset, overridden by those that are given and not None.

    Raises ValueError for another name, ValueError or TypeError for a value that no run can have.
    """
    check_choice("preset", preset, table)
    chosen = {**table[preset], **{name: value for name, value in values.items() if value is not None}}
    _check(chosen)
    return chosen


def _check(values: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError, naming the argument, for a value that is none of its kind."""
    for name, value in values.items():
        if name in WHOLE and value is not None:
            check_whole(name, value, least=0 if name == "val_size" else 1)
        elif name in LISTS:
            for one in numbers(name, value, LISTS[name]):
                if not 0 < one < math.inf:
                    raise ValueError(f"{name} must be above 0 and finite, not {value!r}")
        elif name in CHOICES:
            check_choice(name, value, CHOICES[name])
        elif name == "dataset":
            check_dataset(value)


WHOLE = {"cycles", "batch_size", "first_batch", "seeds", "epochs", "tries", "grid_epochs", "sgd_batch_size", "val_size"}
LISTS: dict[str, type] = {"processes": int, "depths": int, "grid_batch_sizes": int, "grid_rates": float}
CHOICES = {"net": NETS, "order": [*ORDERS, "both"]}
