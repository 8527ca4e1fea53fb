import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # kernels and other processes inherit both; torch reads them once
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything loads Triton, which reads it once

PROJECT = Path(__file__).resolve().parents[1]
LONG = ("test_notebooks.py", "test_browser.py", "test_engine.py")
"""Files that take longest: they come first, so that of two processes none is left with one of them at the end."""


def pytest_configure() -> None:
    """Small nets are faster on one thread, and many threads on busy cores are far slower."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test changes no setting of the process that the next one would meet."""
    before = process_settings()
    yield
    assert process_settings() == before


def process_settings() -> dict[str, object]:
    """What one test could change for another, by name."""
    read = ("RSO_", "OMP_", "CXX", "PATH", "PYTHON", "XDG_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    return {name: value for name, value in os.environ.items() if name.startswith(read)} | {
        "folder": os.getcwd(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "convolutions": torch.backends.cudnn.conv.fp32_precision,
        "products": torch.backends.cuda.matmul.fp32_precision,
    }


@pytest.fixture(scope="session")
def project() -> Path:
    return PROJECT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real image sets; the test skips where MNIST is not in it."""
    root = Path(os.environ.get("RSO_DATA") or PROJECT / "data")
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"no MNIST in {root}; set RSO_DATA, or run python -c \"import rso_lib; rso_lib.load('mnist')\"")
    return root
