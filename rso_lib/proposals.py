"""Proposals: distributions of Δ, schedules of σ, the order of visits, and their random numbers.

Everything random in a run is drawn here, on the CPU, from a generator that is seeded by *where* in the
run it is used (`generator`). So the same seed gives the same draws on every device, and a run that is
taken up in the middle draws what the unbroken run would have drawn.
"""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

NORM_SIGMA = 1 / 6
"""σ for weights that start as constants (batch-norm scale and shift, biases), as in the authors' code."""

Schedule = Callable[[int, int], float]
Distribution = Callable[[tuple[int, ...], torch.Generator], Tensor]


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator seeded by a tuple of non-negative integers, e.g. (seed, cycle, sweep)."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(seed)


@contextmanager
def noise(device: torch.device, *key: int) -> Iterator[Callable[[], None]]:
    """Seed the global generators of torch, numpy and Python from a key, and give the caller's states back at the end.

    What a module or a function of the user's draws from them then depends on the key only. A call of the yielded
    function seeds the generators anew, so that the same numbers come again.
    """
    on_cuda = device.type == "cuda"
    seed = generator(*key).initial_seed()

    def rewind() -> None:
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if on_cuda else []):
            rewind()
            yield rewind
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def sigma(weight: Tensor) -> float:
    """Return σ of a layer: the He value √(2 / fan_in) that its weights were drawn with (section 3).

    The paper measures the deviation of the initial tensor, of which this is the expectation. It depends
    on the shape alone, so a run that is resumed or starts from a trained net has the same σ.
    One-dimensional tensors (batch-norm scale and shift, biases) get `NORM_SIGMA`.
    """
    return math.sqrt(2 / weight[0].numel()) if weight.dim() > 1 else NORM_SIGMA


# Distributions of Δ in units of σ (section 3): shape, generator → float32 tensor.


def gaussian(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw Δ/σ from N(0, 1), the paper's default."""
    return torch.randn(shape, generator=rng, dtype=torch.float32)


def uniform(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw Δ/σ uniformly from (−2, 2)."""
    return torch.rand(shape, generator=rng, dtype=torch.float32) * 4 - 2


def template(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw Δ/σ from −1, 0 and 1 with equal probability."""
    return torch.randint(-1, 2, shape, generator=rng).float()


DISTRIBUTIONS: dict[str, Distribution] = {"gaussian": gaussian, "uniform": uniform, "template": template}


# Schedules of σ: cycle (from 0), number of cycles → factor of the initial σ.


def _progress(cycle: int, cycles: int) -> float:
    return cycle / max(cycles - 1, 1)


def linear(cycle: int, cycles: int) -> float:
    """Return a factor of σ that falls from 1 in the first cycle to 1/10 in the last (section 4.1)."""
    return 1 - 0.9 * _progress(cycle, cycles)


def released(cycle: int, cycles: int) -> float:
    """Return the factor of σ of the authors' released code: it falls from 1, and is 1/10 only one cycle after the last.

    Over few cycles this factor is milder than `linear`: five end with 0.28 in place of 0.1.
    """
    return 1 - 0.9 * cycle / cycles


def constant(cycle: int, cycles: int) -> float:
    """Return a factor of σ that is 1 in every cycle."""
    return 1.0


def cosine(cycle: int, cycles: int) -> float:
    """Return a factor of σ that falls from 1 to 1/10 along half a cosine."""
    return 0.55 + 0.45 * math.cos(math.pi * _progress(cycle, cycles))


def stepped(cycle: int, cycles: int) -> float:
    """Return a factor of σ that is 1, then 1/√10, then 1/10: a third of the cycles each."""
    return 10 ** (-(3 * cycle // cycles) / 2)


SCHEDULES: dict[str, Schedule] = {
    "linear": linear,
    "released": released,
    "constant": constant,
    "cosine": cosine,
    "step": stepped,
}


# Orders of the visits within one tensor (section 4.3): shape, generator → flat indices.


def by_output(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Order weights by output channel, then input channel, then tap of the kernel: the paper's default."""
    return torch.arange(math.prod(shape))


def by_input(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Order weights by input channel, then output channel, then tap of the kernel: the paper's inverted order."""
    index = torch.arange(math.prod(shape)).view(shape)
    return (index.transpose(0, 1) if index.dim() > 1 else index).flatten()


def shuffled(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw a fresh order of the weights for every sweep."""
    return torch.randperm(math.prod(shape), generator=rng)


ORDERS = {"output": by_output, "input": by_input, "shuffled": shuffled}
