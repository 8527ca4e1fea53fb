"""Where the time of a step goes on a GPU: kernels, and the host's share, for `mnist_net` at batch 5,000.

PYTHONPATH=.:tests python tests/gpu_profile.py
"""

import time
from collections.abc import Iterator

import torch
from test_engine import engine_steps
from torch.profiler import ProfilerActivity, profile

from rso_lib import models
from rso_lib.data import Data, load
from rso_lib.settings import RSO
from rso_lib.train import Step, sweeps

WARM, PROFILED, TIMED, SHOWN = 60, 20, 100, 16


def steps_of(data: Data, order: str, layer: str) -> Iterator[Step]:
    """The steps of one layer of a fresh net, the first ones made."""
    net, settings = models.mnist_net(seed=1).cuda(), RSO(cycles=1, order=order)
    [number] = [sweep.number for sweep in sweeps(net, settings) if sweep.layer == layer]
    steps = engine_steps(net, data, settings, (0, number, 0))
    for _ in range(WARM):
        next(steps)
    return steps


def show(steps: Iterator[Step]) -> None:
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        [next(steps) for _ in range(PROFILED)]
        torch.cuda.synchronize()
    rows = [(row.self_device_time_total, row.count, row.key) for row in recorded.key_averages()]
    for microseconds, count, name in sorted(rows, reverse=True)[:SHOWN]:
        print(f"{microseconds / PROFILED:8.1f} µs a step {count / PROFILED:6.1f} launches  {name[:80]}")
    began = time.perf_counter()
    [next(steps) for _ in range(TIMED)]
    queued = time.perf_counter() - began
    torch.cuda.synchronize()
    done = time.perf_counter() - began
    print(f"{sum(row[0] for row in rows) / PROFILED:.0f} µs a step in kernels, {1e6 * queued / TIMED:.0f} until it is")
    print(f"queued, {1e6 * done / TIMED:.0f} until it is done")


if __name__ == "__main__":
    images = load("mnist", val_size=0, device="cuda")
    for order, layer in (
        ("output", "block2.conv.weight"),
        ("output", "block5.conv.weight"),
        ("input", "block2.conv.weight"),
    ):
        print(f"\n{layer}, order {order}")
        show(steps_of(images, order, f"{layer}.conv.weight"))
