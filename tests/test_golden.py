"""A recorded run that every later version has to reproduce, step by step.

    python tests/test_golden.py

records it anew, after a change that is meant to change runs. Everything that goes in is exact on every
machine: pixels are whole numbers, initial weights and Δ are rounded to multiples of 1/64.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from rso_lib.algorithm import choose
from rso_lib.data import Data, Split
from rso_lib.models import Block, Head, Net
from rso_lib.proposals import gaussian
from rso_lib.settings import RSO
from rso_lib.train import Step, train

FILE = Path(__file__).parent / "golden" / "digits.csv"
COLUMNS = ["cycle", "layer", "index", "w", "plus", "minus", "choice"]


def coarse(x: Tensor) -> Tensor:
    return (x * 64).round() / 64


def steps() -> Iterator[dict[str, Any]]:
    """Two cycles of a small residual net on 160 digits."""
    pixels = torch.from_numpy(load_digits().images)[:160, None]
    part = Split((pixels - 5) / 6, torch.from_numpy(load_digits().target)[:160])
    data = Data("digits", part, part, part, tuple("0123456789"), torch.tensor([5.0]), torch.tensor([6.0]))
    blocks = [Block(1, 2, pool="avg", skip="open"), Block(2, 2), Block(2, 2, skip="close", closes=2, pool="avg")]
    net = Net(blocks, Head(2, 10, pool="max", bias=True), seed=0).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(coarse(weight))
    settings = RSO(
        cycles=2, batch_size=50, weight_decay=2**-10, distribution=lambda shape, rng: coarse(gaussian(shape, rng))
    )
    for item in train(net, data, settings, steps=True):
        if isinstance(item, Step):
            losses = map(repr, item.losses.tolist())
            row = (item.at.cycle + 1, item.layer, item.index, *losses, int(choose(item.losses)))
            yield dict(zip(COLUMNS, row, strict=True))


def test_the_recorded_run() -> None:
    with open(FILE, newline="") as file:
        recorded = list(csv.DictReader(file))
    number = 0
    for number, (row, old) in enumerate(zip(steps(), recorded, strict=True), 1):
        for name in ("cycle", "layer", "index", "choice"):
            assert str(row[name]) == old[name], f"step {number}: {row}, recorded {old}"
        for name in ("w", "plus", "minus"):
            assert abs(float(row[name]) - float(old[name])) < 1e-9, f"step {number}: {row}, recorded {old}"
    assert number == 2 * (2 * 9 + 4 + 2 * (4 * 9 + 4) + 20 + 10)


if __name__ == "__main__":
    with open(FILE, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(steps())
