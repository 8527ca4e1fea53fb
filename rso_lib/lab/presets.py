"""Sizes of notebooks 05 and 08: what a minute (smoke), a laptop's hour and a GPU can afford, each value overridable."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..checks import check_run
from ..data import Data, home
from ..run import sgd
from ..run.folder import build_net
from ..run.presets import PRESETS, choose_preset
from ..settings import RSO

Sizes = dict[str, Any]


_MNIST = {"first_batch": None, "schedule": "linear", "seeds": 1, "rate": 0.5}
MNIST = {
    "smoke": {
        **_MNIST,
        **PRESETS["smoke"],
        "order": "both",
        "seeds": 2,
        "epochs": 20,
        "rate": 0.05,
    },
    "laptop": {
        **_MNIST,
        **PRESETS["laptop"],
        "epochs": 20,
    },
    "paper": {
        **_MNIST,
        **PRESETS["paper"],
        "order": "both",
        "epochs": 50,
    },
}
"""`epochs` and `rate` are those of SGD (section 4.5)."""

_CIFAR = {"weight_decay": 1e-4, "val_size": None, "seeds": 1, "sgd_batch_size": 128, "rate": 0.1}
CIFAR = {
    "smoke": {
        **_CIFAR,
        "dataset": "digits",
        "depths": "3",
        "cycles": 1,
        "batch_size": 32,
        "epochs": 3,
    },
    "laptop": {
        **_CIFAR,
        "dataset": "cifar10",
        "depths": "3, 5, 10",
        "cycles": 2,
        "batch_size": 200,
        "epochs": 18,
        "val_size": 25000,
    },
    "paper": {
        **_CIFAR,
        "dataset": "cifar10",
        "depths": "3, 5, 10",
        "cycles": 500,
        "batch_size": 5000,
        "epochs": 100,
    },
}
"""Nets of these depths; SGD trains the deepest. val_size of laptop leaves 25,000 images for training: the
search of Depth-10 keeps about 0.2 MB for each of them."""

SIZES: dict[str, dict[str, Sizes]] = {
    "05_mnist": MNIST,
    "08_cifar10": CIFAR,
}


def choose_sizes(notebook: str, preset: str, parameters: Mapping[str, Any]) -> SimpleNamespace:
    """Return the sizes of a preset, overridden by the notebook's parameters that are not None.

    Raises ValueError for another preset.
    """
    table = SIZES[notebook]
    return SimpleNamespace(**choose_preset(preset, table, **{name: parameters.get(name) for name in table["smoke"]}))


def check_sizes(asked: SimpleNamespace, data: Data) -> None:
    """Raise the errors of a notebook's runs before the first of them: ValueError, TypeError or MemoryError."""
    values = vars(asked)
    known = {field.name: values[field.name] for field in fields(RSO) if field.name in values}
    if known.get("order") == "both":
        known["order"] = "output"
    check_run(build_net(asked.net, data.shape, len(data.classes), seed=0), data, RSO(**known))
    if "rate" in values:
        sgd.SGD(epochs=asked.epochs, rate=asked.rate, warmup=0)


def make_folder(out: str, notebook: str, preset: str) -> Path:
    """Make the folder of a notebook's runs, and return it: `out`, else runs/NOTEBOOK/PRESET in `data.home()`.

    A smoke run is short: without `out` its folder lasts as long as the session.
    """
    if out or preset != "smoke":
        folder = Path(out or home() / "runs" / notebook / preset)
        folder.mkdir(parents=True, exist_ok=True)
    else:
        folder = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
