"""RSO: training a deep network with no gradient, one weight at a time (arXiv 2005.05955)."""

import os

# Idle threads sleep in place of spinning: beside other work that is several times as fast. OpenMP reads this once, when
# torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from . import models
from .data import Data, load
from .fit import fit
from .history import History, Report
from .settings import RSO
from .train import evaluate, train

__all__ = ["RSO", "Data", "History", "Report", "evaluate", "fit", "load", "models", "train"]
