import os
from pathlib import Path

import numpy as np
import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Small nets are faster on one thread, and many threads on busy cores are far slower. Kernels inherit it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


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
