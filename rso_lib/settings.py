"""Every choice that the paper makes, in one place, checked once."""

import difflib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import RLock
from typing import Any, TypeVar

import torch

from .proposals import DISTRIBUTIONS, ORDERS, SCHEDULES, Distribution, Schedule

LEVELS = ("weight", "layer", "network")
DIRECTIONS = ("backward", "forward")
STRATEGIES = ("sequential", "neuron", "layer")
CACHES = ("full", "half", "input")
PRECISIONS = ("float32", "tf32")
Number = TypeVar("Number", int, float)
JOINT_SIGMA = 0.1
"""Factor of σ when a whole layer or network is perturbed at once (section 4.2)."""
ARITHMETIC = RLock()
"""PyTorch has one arithmetic for all threads, so that they take turns."""


@dataclass(frozen=True, kw_only=True)
class RSO:
    """The settings of a run. The defaults are the paper's (sections 3 and 4).

    Raises ValueError or TypeError, naming the argument and the remedy.
    """

    cycles: int = 50
    """passes over all weights (the paper's C)"""
    batch_size: int = 5000
    """images that score the three candidates of a step"""
    first_batch: int | None = None
    """images in the first cycle, where the batch grows by the same factor from cycle to cycle, up to batch_size;
    None for batch_size throughout, as in the paper"""
    schedule: str | Schedule = "linear"
    """factor of σ by cycle: "linear" (to 1/10), "released" (the authors' code, which ends above that), "constant",
    "cosine", "step", or a callable (cycle from 0, cycles) → factor"""
    distribution: str | Distribution = "gaussian"
    """of Δ: "gaussian" N(0, σ), "uniform" on (−2σ, 2σ), "template" of −σ, 0, σ, or a callable (shape, generator) →
    tensor in units of σ"""
    level: str = "weight"
    """what a step perturbs: "weight", "layer" (one of its tensors) or "network"; σ/10 for the last two (section
    4.2). A cycle has as many steps as the net has weights at every level."""
    order: str = "output"
    """which index runs outside within a layer: "output", "input" (the paper's inverted order, section 4.3), or
    neither, "shuffled", in which the weights come at random"""
    direction: str = "backward"
    """of a cycle: "backward" from the labels to the input, or "forward" from the input"""
    strategy: str = "sequential"
    """what a step sees of the steps before it in its sweep (section 4.6): "sequential", all of them; "neuron",
    those of its own output neuron; "layer", none, so that the steps of a slice of the images follow each other. The
    sweep's results are merged at its end. The final layer, where a step costs next to nothing, is always
    sequential"""
    weight_decay: float = 0.0
    """a weight is multiplied by (1 − weight_decay) when it is visited (before the sweep, where the strategy is not
    sequential)"""
    seed: int = 0
    """of every random draw of the run"""
    cache: str = "full"
    """what the engine keeps for every slice: "full", all that saves work; "half", with the searched layer's input
    in float16; "input", that input only, which is all at the other levels. Less memory, slower steps; "half"
    rounds, so that close decisions can differ"""
    precision: str = "float32"
    """of products on a CUDA device: "float32", or "tf32", faster, with factors rounded to 10 bits, so that close
    decisions can differ (`python -m rso_lib precision` counts them); scores are in float32"""

    def __post_init__(self) -> None:
        check_whole("cycles", self.cycles, least=1)
        check_whole("batch_size", self.batch_size, least=1)
        if self.first_batch is not None:
            check_whole("first_batch", self.first_batch, least=1)
            if self.first_batch > self.batch_size:
                raise ValueError(f"first_batch must be at most batch_size, {self.batch_size}, not {self.first_batch}")
        check_whole("seed", self.seed, least=0)
        check_choice("schedule", self.schedule, SCHEDULES, callables=True)
        check_choice("distribution", self.distribution, DISTRIBUTIONS, callables=True)
        check_choice("level", self.level, LEVELS)
        check_choice("order", self.order, ORDERS)
        check_choice("direction", self.direction, DIRECTIONS)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("cache", self.cache, CACHES)
        check_choice("precision", self.precision, PRECISIONS)
        if self.strategy != "sequential" and self.level != "weight":
            raise ValueError(f'strategy={self.strategy!r} needs level="weight", not {self.level!r}')
        check_number("weight_decay", self.weight_decay)
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay must be at least 0 and below 1, not {self.weight_decay!r}")

    def sigma_factor(self, cycle: int) -> float:
        """The factor of a layer's σ in a cycle (from 0): the schedule, and 1/10 for joint levels."""
        schedule = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        return schedule(cycle, self.cycles) * (1.0 if self.level == "weight" else JOINT_SIGMA)

    def batch(self, cycle: int) -> int:
        """The images that score the candidates of a step in a cycle (from 0)."""
        if self.first_batch is None or self.cycles == 1:
            return self.batch_size
        return round(self.first_batch * (self.batch_size / self.first_batch) ** (cycle / (self.cycles - 1)))

    def draw(self) -> Distribution:
        """The distribution of Δ in units of σ, as a callable (shape, generator) → tensor."""
        return DISTRIBUTIONS[self.distribution] if isinstance(self.distribution, str) else self.distribution

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; a callable is given by its name."""
        names = {
            "schedule": name_of(self.schedule, SCHEDULES),
            "distribution": name_of(self.distribution, DISTRIBUTIONS),
        }
        return {**asdict(self), **names}


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Let a CUDA device round the factors of a product to 10 bits ("tf32"), or not ("float32").

    Left alone, PyTorch rounds those of convolutions. Nothing changes on a CPU.
    """
    products = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]  # they are there
    with ARITHMETIC:
        before = [product.fp32_precision for product in products]
        for product in products:
            product.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        try:
            yield
        finally:
            for product, its in zip(products, before, strict=True):
                product.fp32_precision = its


def name_of(choice: Any, known: Mapping[str, Any]) -> str:
    """The name of a choice that may be a callable; with where it is defined, if a known one is called so too."""
    if isinstance(choice, str):
        return choice
    name = getattr(choice, "__name__", repr(choice))
    return f"{choice.__module__}.{choice.__qualname__}" if known.get(name, choice) is not choice else name


def check_named(name: str, choice: object) -> None:
    """Raise ValueError where an argument is a callable that its name does not tell from others."""
    if callable(choice) and getattr(choice, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(
            f"{name} must be a function with a name of its own, by which the run's folder tells it from others, "
            f"not {choice!r}: write it with def"
        )


def check_whole(name: str, value: object, least: int) -> None:
    """Raise TypeError or ValueError where an argument is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def check_number(name: str, value: object) -> None:
    """Raise TypeError where an argument is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")


def numbers(name: str, text: str | float, kind: type[Number] = int) -> list[Number]:
    """What a text such as "128, 1000" says, or a number alone, as papermill gives it.

    Raises ValueError, naming the argument, where it is something else.
    """
    try:
        return [kind(part) for part in str(text).split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name} must be {what} separated by commas, not {text!r}") from None


def check_choice(name: str, value: object, known: Collection[str], callables: bool = False) -> None:
    """Raise ValueError, with the nearest known name, where an argument is none of the known ones."""
    if value in known if isinstance(value, str) else callables and callable(value):
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    other = " or a callable" if callables else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}{other}, not {value!r}{hint}")
