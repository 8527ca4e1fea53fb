"""Every choice that the paper makes, in one place, checked once."""

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import import_module
from operator import attrgetter
from threading import RLock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .calls import called, calling
from .proposals import DISTRIBUTIONS, ORDERS, SCHEDULES, Distribution, Schedule, noise
from .rules import RULES, Rule, checked_rule, clear, parabola

LEVELS = ("weight", "layer", "network")
DIRECTIONS = ("backward", "forward")
STRATEGIES = ("sequential", "neuron", "layer")
CACHES = ("full", "half", "input")
Number = TypeVar("Number", int, float)
MOST_CYCLES = 10**9
JOINT_SIGMA = 0.1
"""Factor of σ when a whole layer or network is perturbed at once (section 4.2)."""
ONE_AT_A_TIME = RLock()
"""PyTorch has one setting of products for all threads. The lock keeps a thread from resetting it for another."""


@dataclass(frozen=True, kw_only=True)
class RSO:
    """The settings of a run. The defaults are the paper's (sections 3 and 4).

    Raises ValueError or TypeError, naming the argument and the remedy. What a callable returns is checked whenever it
    is called.
    """

    cycles: int = 50
    """passes over all weights (the paper's C)"""
    batch_size: int = 5000
    """images that score the three candidates of a step"""
    first_batch: int | None = None
    """images in the first of several cycles, where the batch grows by the same factor from cycle to cycle, up to
    batch_size; None for batch_size throughout, as in the paper"""
    schedule: str | Schedule = "linear"
    """factor of σ by cycle: "linear" (to 1/10), "released" (the authors' code, which ends above that), "constant",
    "cosine", "step", or a callable (cycle from 0, cycles) → factor"""
    distribution: str | Distribution = "gaussian"
    """of Δ: "gaussian" N(0, σ), "uniform" on (−2σ, 2σ), "template" of −σ, 0, σ, or a callable (shape, generator) →
    tensor in units of σ"""
    candidates: tuple[float, ...] = (0.0, 1.0, -1.0)
    """multiples of Δ that are scored, w itself (0) first: 0, 1, −1 in the paper"""
    rule: str | Rule = "argmin"
    """what is written back, given the losses of the candidates: "argmin", the lowest, w in a tie; "clear", the lowest
    if it beats w by more than a standard error; "parabola", the minimum of a parabola through the losses; or a
    callable (scores) → multiples, see `rso_lib.rules`"""
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
    those of its own output neuron; "layer", none: all steps are scored against the weights at the beginning of the
    sweep, and the results are merged at its end. The final layer, where a step costs next to nothing, is always
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

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        check_whole("cycles", self.cycles, least=1, most=MOST_CYCLES)
        check_whole("batch_size", self.batch_size, least=1)
        if self.first_batch is not None:
            check_whole("first_batch", self.first_batch, least=1)
            if self.first_batch > self.batch_size:
                raise ValueError(f"first_batch must be at most batch_size, {self.batch_size}, not {self.first_batch}")
        check_whole("seed", self.seed, least=0)
        check_choice("schedule", self.schedule, SCHEDULES, callables=True)
        check_choice("distribution", self.distribution, DISTRIBUTIONS, callables=True)
        check_arguments("schedule", self.schedule, "cycle", "cycles")
        check_arguments("distribution", self.distribution, "shape", "generator")
        object.__setattr__(self, "candidates", check_candidates(self.candidates))
        check_choice("rule", self.rule, RULES, callables=True)
        check_arguments("rule", self.rule, "scores")
        if self.rule in ("parabola", parabola) and not min(self.candidates) < 0 < max(self.candidates):
            raise ValueError(
                f'rule="parabola" needs candidates on both sides of 0, such as (0, 1, -1), not {self.candidates}'
            )
        if self.rule in ("clear", clear) and self.batch(0) == 1:
            raise ValueError(
                'rule="clear" needs at least 2 images in a batch, for their standard error: set batch_size or '
                "first_batch higher"
            )
        check_choice("level", self.level, LEVELS)
        check_choice("order", self.order, ORDERS)
        check_choice("direction", self.direction, DIRECTIONS)
        check_choice("strategy", self.strategy, STRATEGIES)
        check_choice("cache", self.cache, CACHES)
        if self.strategy != "sequential" and self.level != "weight":
            raise ValueError(f'strategy={self.strategy!r} needs level="weight", not {self.level!r}')
        check_number("weight_decay", self.weight_decay)
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay must be at least 0 and below 1, not {self.weight_decay!r}")

    def sigma_factor(self, cycle: int) -> float:
        """Return the factor of a layer's σ in a cycle (from 0): the schedule, and 1/10 for joint levels."""
        schedule = SCHEDULES[self.schedule] if isinstance(self.schedule, str) else partial(_factor, self.schedule)
        return schedule(cycle, self.cycles) * (1.0 if self.level == "weight" else JOINT_SIGMA)

    def batch(self, cycle: int) -> int:
        """Return how many images score the candidates of a step in a cycle (from 0)."""
        if self.first_batch is None or self.cycles == 1:
            return self.batch_size
        return round(self.first_batch * (self.batch_size / self.first_batch) ** (cycle / (self.cycles - 1)))

    def draw(self) -> Distribution:
        """Return the distribution of Δ in units of σ, as a callable (shape, generator) → tensor.

        A distribution of the user's raises ValueError or TypeError where it returns something else than float32 or
        float64 numbers of the shape, all finite, on the CPU.
        """
        if isinstance(self.distribution, str):
            return DISTRIBUTIONS[self.distribution]
        return partial(_changes, self.distribution)

    def decide(self) -> Rule:
        """Return the rule as a callable from scores to choices."""
        return RULES[self.rule] if isinstance(self.rule, str) else checked_rule(self.rule)

    @property
    def few_choices(self) -> bool:
        """Return whether the rule chooses one of at most four candidates."""
        return self.rule in ("argmin", "clear") and len(self.candidates) <= 4

    def multiples(self, device: torch.device) -> torch.Tensor:
        """Return the candidates, multiples of Δ, as a tensor [K], float64."""
        return torch.tensor(self.candidates, dtype=torch.float64, device=device)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values; a callable is given by its name."""
        names = {
            "schedule": name_of(self.schedule, SCHEDULES),
            "distribution": name_of(self.distribution, DISTRIBUTIONS),
            "rule": name_of(self.rule, RULES),
            "candidates": [*self.candidates],
        }
        return {**asdict(self), **names}


def _factor(schedule: Schedule, cycle: int, cycles: int) -> float:
    """Call a schedule of the user's, and return the factor of σ. Raises ValueError or TypeError for nonsense."""
    what = f"schedule {called(schedule)} ({cycle}, {cycles})"
    factor, again = (plain(calling(what, schedule, cycle, cycles)) for _ in range(2))
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise TypeError(f"{what} returned {factor!r}; it must return a number, the factor of σ in cycle {cycle}")
    if not 0 <= factor <= sys.float_info.max:
        raise ValueError(f"{what} returned {factor!r}; it must return a factor of σ that is at least 0 and finite")
    if factor != again:
        raise ValueError(f"{what} returned {factor!r}, then {again!r}; it must return the same at every call")
    return float(factor)


def _changes(distribution: Distribution, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Call a distribution of the user's, and return Δ in units of σ. Raises ValueError or TypeError for nonsense.

    A function that draws from a global generator, and not from the given one, repeats its numbers, too.
    """
    what = f"distribution {called(distribution)} ({shape}, generator)"
    with noise(torch.device("cpu"), rng.initial_seed()):
        made = calling(what, distribution, shape, rng)
    if not isinstance(made, Tensor):
        raise TypeError(f"{what} returned a {type(made).__name__}; it must return a tensor of that shape")
    if made.shape != torch.Size(shape):
        raise ValueError(f"{what} returned the shape {tuple(made.shape)}; it must return a tensor of the shape {shape}")
    if made.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{what} returned {made.dtype}; it must return torch.float32, as .float() makes of it")
    if made.device.type != "cpu":
        raise ValueError(
            f"{what} returned a tensor on {made.device}; it must return one on the CPU, as the generator is"
        )
    if not made.detach().float().isfinite().all():
        raise ValueError(f"{what} returned NaN or infinite values; it must return finite ones")
    return made.detach()


@contextmanager
def exact_products() -> Iterator[None]:
    """Keep a CUDA device from rounding the factors of float32 products to 10 bits (TF32).

    Left alone, PyTorch rounds those of convolutions. Nothing changes on a CPU.
    """
    products = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]  # they are there
    with ONE_AT_A_TIME:
        before = [product.fp32_precision for product in products]
        try:
            for product in products:
                product.fp32_precision = "ieee"
            yield
        finally:
            for product, usual in zip(products, before, strict=True):
                product.fp32_precision = usual


def name_of(choice: Any, known: Mapping[str, Any]) -> str:
    """Return the name of a choice that may be a callable; with its module where a known choice has the same name."""
    if isinstance(choice, str):
        return choice
    name = getattr(choice, "__name__", repr(choice))
    return f"{choice.__module__}.{choice.__qualname__}" if known.get(name, choice) is not choice else name


def check_named(name: str, choice: object) -> None:
    """Raise ValueError where an argument is a callable without a name of its own, such as a lambda."""
    if callable(choice) and getattr(choice, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(
            f"{name} must be a function with a name of its own, by which the run's folder tells it from others, "
            f"not {choice!r}: write it with def"
        )


def function_of(name: str, choice: Any, known: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return the function that is given itself or by name: a known one, or "module:function", which is imported.

    Raises ValueError where there is no such function.
    """
    if callable(choice) or ":" not in str(choice):
        check_choice(name, choice, [*known, "module:function"], callables=True)
        return choice if callable(choice) else known[choice]
    module, _, function = choice.partition(":")
    try:
        found = attrgetter(function)(import_module(module))
    except Exception as error:  # whatever goes wrong in a module of the user's
        raise ValueError(
            f"{name} {choice} cannot be imported ({type(error).__name__}: {error}): name a module that Python finds "
            f"from the current folder, and a function in it"
        ) from error
    if not callable(found):
        raise ValueError(f"{name} {choice} is a {type(found).__name__}; it must be a function")
    return found


def qualified(choice: Any, known: Mapping[str, Any]) -> str:
    """Return the name by which `function_of` finds a function, where it can be imported."""
    if isinstance(choice, str):
        return choice
    names = [name for name, function in known.items() if function is choice]
    return names[0] if names else f"{choice.__module__}:{choice.__qualname__}"


def plain(value: Any) -> Any:
    """Turn a number of numpy into one of Python; leave everything else."""
    return value.item() if isinstance(value, np.generic) else value


def check_kind(name: str, value: object, kind: type) -> None:
    """Raise TypeError where an argument is not an object of a class."""
    if not isinstance(value, kind):
        found = f"the class {value.__name__}: make one" if isinstance(value, type) else f"a {type(value).__name__}"
        raise TypeError(f"{name} must be a {kind.__module__.partition('.')[0]} {kind.__name__}, not {found}")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise TypeError or ValueError where an argument is not a whole number of at least `least` and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most:,}, not {value:,}")


def check_arguments(name: str, function: object, *arguments: str) -> None:
    """Raise TypeError where an argument is a callable that cannot be called with so many arguments."""
    if not callable(function):
        return
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some functions in C do not tell
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"{name} must be a callable ({', '.join(arguments)}), but {called(function)}{signature} cannot be called "
            f"so: {error}"
        ) from None


def check_number(name: str, value: object) -> None:
    """Raise TypeError where an argument is not a number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, not {value!r}")


def numbers(name: str, text: str | float, kind: type[Number] = int) -> list[Number]:
    """Read numbers from a text such as "128, 1000", or a single number, as papermill gives it.

    Raises ValueError, naming the argument, where it is something else.
    """
    try:
        return [kind(part) for part in str(text).split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{name} must be {what} separated by commas, not {text!r}") from None


def check_candidates(candidates: object) -> tuple[float, ...]:
    """Return multiples of Δ as numbers. Raises ValueError unless they are 0 and at least one other, all finite."""
    wrong = f"candidates must be different, finite multiples of Δ, 0 first, such as (0, 1, -1), not {candidates!r}"
    try:
        found = tuple(map(float, candidates))  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise ValueError(wrong) from None
    finite = not isinstance(candidates, str) and all(map(math.isfinite, found))
    if not finite or len(found) < 2 or found[0] != 0 or len({*found}) < len(found):
        raise ValueError(wrong)
    return found


def check_choice(name: str, value: object, known: Collection[str], callables: bool = False) -> None:
    """Raise ValueError, with the nearest known name, where an argument is none of the known ones."""
    fits = value in known if isinstance(value, str) else callables and callable(value)
    if fits:
        return
    lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(str(value).lower(), lower, n=1)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else ""
    other = " or a callable" if callables else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}{other}, not {value!r}{hint}")
