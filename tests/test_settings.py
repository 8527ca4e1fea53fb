"""The settings: the paper's defaults, what each choice does to σ, and what is said about a wrong value."""

import itertools
import json
import math
import random
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import numpy as np
import pytest
import torch

from rso_lib.proposals import SCHEDULES, gaussian, generator, linear
from rso_lib.rules import clear, parabola
from rso_lib.settings import RSO, numbers


def test_defaults_are_the_papers() -> None:
    assert asdict(RSO()) == {
        "cycles": 50,
        "batch_size": 5000,
        "first_batch": None,
        "schedule": "linear",
        "distribution": "gaussian",
        "candidates": (0.0, 1.0, -1.0),
        "rule": "argmin",
        "level": "weight",
        "order": "output",
        "direction": "backward",
        "strategy": "sequential",
        "weight_decay": 0.0,
        "seed": 0,
        "cache": "full",
    }


def test_settings_are_given_by_name_and_stay_as_they_are() -> None:
    with pytest.raises(TypeError):
        RSO(50)  # type: ignore[misc]
    settings = RSO(cycles=2)
    with pytest.raises(FrozenInstanceError):
        settings.cycles = 3  # type: ignore[misc]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"strategy": "layers"},
        ValueError,
        "strategy must be one of sequential, neuron, layer, not 'layers'; did you mean 'layer'?",
    ),
    (
        {"strategy": "neuron", "level": "layer"},
        ValueError,
        "strategy='neuron' needs level=\"weight\", not 'layer'",
    ),
    ({"cycles": 0}, ValueError, "cycles must be at least 1, not 0"),
    ({"cycles": -3}, ValueError, "cycles must be at least 1, not -3"),
    ({"cycles": 2.0}, TypeError, "cycles must be a whole number, not 2.0"),
    ({"cycles": 10**12}, ValueError, "cycles must be at most 1,000,000,000, not 1,000,000,000,000"),
    ({"cycles": np.float32(2)}, TypeError, "cycles must be a whole number, not 2.0"),
    ({"cycles": np.True_}, TypeError, "cycles must be a whole number, not True"),
    ({"cycles": torch.tensor(2)}, TypeError, "cycles must be a whole number, not tensor(2)"),
    (
        {"schedule": lambda cycle: 1.0},
        TypeError,
        "schedule must be a callable (cycle, cycles), but <lambda>(cycle) can",
    ),
    (
        {"distribution": lambda: None},
        TypeError,
        "distribution must be a callable (shape, generator), but <lambda>() cannot",
    ),
    ({"weight_decay": np.float32("nan")}, ValueError, "weight_decay must be at least 0 and below 1, not nan"),
    ({"weight_decay": True}, TypeError, "weight_decay must be a number, not True"),
    ({"cycles": True}, TypeError, "cycles must be a whole number, not True"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
    ({"batch_size": "all"}, TypeError, "batch_size must be a whole number, not 'all'"),
    ({"first_batch": 0}, ValueError, "first_batch must be at least 1, not 0"),
    ({"first_batch": 9, "batch_size": 8}, ValueError, "first_batch must be at most batch_size, 8, not 9"),
    ({"seed": -1}, ValueError, "seed must be at least 0, not -1"),
    ({"seed": None}, TypeError, "seed must be a whole number, not None"),
    (
        {"schedule": "liner"},
        ValueError,
        f"schedule must be one of {', '.join(SCHEDULES)} or a callable, not 'liner'; did you mean 'linear'?",
    ),
    (
        {"schedule": 0.1},
        ValueError,
        f"schedule must be one of {', '.join(SCHEDULES)} or a callable, not 0.1",
    ),
    (
        {"distribution": "normal"},
        ValueError,
        "distribution must be one of gaussian, uniform, template or a callable, not 'normal'",
    ),
    ({"level": "net"}, ValueError, "level must be one of weight, layer, network, not 'net'; did you mean 'network'?"),
    ({"level": gaussian}, ValueError, "level must be one of weight, layer, network, not "),
    (
        {"order": "inputs"},
        ValueError,
        "order must be one of output, input, shuffled, not 'inputs'; did you mean 'input'?",
    ),
    ({"order": None}, ValueError, "order must be one of output, input, shuffled, not None"),
    (
        {"direction": "backwards"},
        ValueError,
        "direction must be one of backward, forward, not 'backwards'; did you mean 'backward'?",
    ),
    (
        {"candidates": (1, -1)},
        ValueError,
        "candidates must be different, finite multiples of Δ, 0 first, such as (0, 1",
    ),
    ({"candidates": "01"}, ValueError, "candidates must be different, finite multiples of Δ, 0 first, such as (0, 1"),
    *(
        (
            {"rule": rule, "candidates": found},
            ValueError,
            'rule="parabola" needs candidates on both sides of 0, such as',
        )
        for rule in ("parabola", parabola)
        for found in ((0, 1, 2), (0, -1))
    ),
    ({"rule": clear, "batch_size": 1}, ValueError, 'rule="clear" needs at least 2 images in a batch'),
    ({"rule": "clear", "first_batch": 1}, ValueError, 'rule="clear" needs at least 2 images in a batch'),
    ({"rule": "min"}, ValueError, "rule must be one of argmin, clear, parabola or a callable, not 'min'"),
    ({"rule": lambda: 0}, TypeError, "rule must be a callable (scores), but <lambda>() cannot be called so"),
    ({"cache": "none"}, ValueError, "cache must be one of full, half, input, not 'none'"),
    ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0 and below 1, not -0.1"),
    ({"weight_decay": 1}, ValueError, "weight_decay must be at least 0 and below 1, not 1"),
    ({"weight_decay": math.nan}, ValueError, "weight_decay must be at least 0 and below 1, not nan"),
    ({"weight_decay": "1e-4"}, TypeError, "weight_decay must be a number, not '1e-4'"),
    ({"weight_decay": None}, TypeError, "weight_decay must be a number, not None"),
]


@pytest.mark.parametrize(
    ("settings", "error", "message"), WRONG, ids=[f"{next(iter(case[0]))}-{k}" for k, case in enumerate(WRONG)]
)
def test_a_wrong_value_is_named_with_the_remedy(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        RSO(**settings)
    assert str(raised.value).startswith(message)


def test_every_setting_is_among_the_wrong_ones() -> None:
    assert {name for settings, _, _ in WRONG for name in settings} == set(RSO().to_dict())


def test_sigma_falls_to_a_tenth() -> None:
    settings = RSO(cycles=50)
    assert settings.sigma_factor(0) == 1
    assert settings.sigma_factor(49) == pytest.approx(0.1)


@pytest.mark.parametrize("level", ["layer", "network"])
def test_joint_levels_have_a_tenth_of_sigma(level: str) -> None:
    for cycle in range(4):
        expected = RSO(cycles=4).sigma_factor(cycle) / 10
        assert RSO(cycles=4, level=level).sigma_factor(cycle) == pytest.approx(expected)


def test_callables_stand_for_schedules_and_distributions() -> None:
    settings = RSO(
        cycles=8, schedule=lambda cycle, cycles: cycle + 100 * cycles, distribution=lambda shape, rng: torch.ones(shape)
    )
    assert settings.sigma_factor(3) == 803
    assert settings.draw()((2,), torch.Generator()).tolist() == [1, 1]
    assert RSO().draw() is gaussian


def test_plain_values_make_the_same_settings_again() -> None:
    settings = RSO(cycles=3, level="layer", weight_decay=1e-4, distribution="template")
    assert RSO(**json.loads(json.dumps(settings.to_dict()))) == settings
    assert RSO(schedule=linear).to_dict()["schedule"] == "linear"

    def step(cycle: int, cycles: int) -> float:
        return 1.0

    assert RSO(schedule=step).to_dict()["schedule"].endswith("<locals>.step")  # not the built-in one


def test_a_growing_batch_grows_by_the_same_factor() -> None:
    growing = RSO(cycles=3, first_batch=100, batch_size=400)
    assert [growing.batch(cycle) for cycle in range(3)] == [100, 200, 400]
    assert [RSO(cycles=3, batch_size=400).batch(cycle) for cycle in range(3)] == [400, 400, 400]
    assert RSO(cycles=1, first_batch=100, batch_size=400).batch(0) == 400


def test_numbers_out_of_a_text() -> None:
    assert numbers("depths", "3, 10") == [3, 10]
    assert numbers("rates", "0.1,2", float) == [0.1, 2.0]
    assert numbers("processes", 2) == [2]  # what papermill makes of -p processes 2
    with pytest.raises(ValueError, match="depths must be whole numbers separated by commas, not '3; 5'"):
        numbers("depths", "3; 5")


def test_numbers_of_numpy_are_taken_as_pythons() -> None:
    settings = RSO(cycles=np.int64(3), batch_size=np.uint8(8), weight_decay=np.float32(0.5), seed=np.int32(1))  # type: ignore[arg-type]
    assert settings == RSO(cycles=3, batch_size=8, weight_decay=0.5, seed=1)
    assert json.loads(json.dumps(settings.to_dict()))["cycles"] == 3


# Functions of the user's


def raises(*_: object) -> float:
    raise KeyError("no such cycle")


FACTORS = [
    (math.nan, ValueError, "returned nan; it must return a factor of σ that is at least 0 and finite"),
    (math.inf, ValueError, "returned inf; "),
    (-0.5, ValueError, "returned -0.5; "),
    (10**400, ValueError, "returned 1000"),
    (None, TypeError, "returned None; it must return a number, the factor of σ in cycle 7"),
    ("1", TypeError, "returned '1'; "),
    (True, TypeError, "returned True; "),
    (1j, TypeError, "returned 1j; "),
    (torch.ones(()), TypeError, r"returned tensor\(1.\); "),
]


@pytest.mark.parametrize(("factor", "error", "message"), FACTORS)
def test_what_a_schedule_returns_is_checked(factor: Any, error: type[Exception], message: str) -> None:
    def mine(cycle: int, cycles: int) -> Any:
        return factor if cycle == 7 else 1.0

    settings = RSO(cycles=9, schedule=mine)
    assert settings.sigma_factor(6) == 1
    with pytest.raises(error, match=rf"^schedule mine \(7, 9\) {message}"):
        settings.sigma_factor(7)


def test_a_schedule_has_one_factor_for_a_cycle() -> None:
    """Each sweep of a cycle, and its report, ask for it anew."""
    calls = itertools.count()
    with pytest.raises(ValueError, match=r"returned 0, then 1; it must return the same at every call"):
        RSO(schedule=lambda cycle, cycles: next(calls)).sigma_factor(0)


@pytest.mark.parametrize("factor", [np.float32(0.5), np.float64(0.5), 1, np.int64(1), 0])
def test_a_factor_is_a_number_of_python(factor: Any) -> None:
    made = RSO(cycles=2, schedule=lambda cycle, cycles: factor).sigma_factor(0)
    assert type(made) is float and made == factor


DRAWS: list[tuple[Any, type[Exception], str]] = [
    (torch.ones(1), ValueError, r"returned the shape \(1,\); it must return a tensor of the shape \(3,\)"),
    (torch.ones(()), ValueError, r"returned the shape \(\); "),
    (torch.ones(3, 1), ValueError, r"returned the shape \(3, 1\); "),
    (torch.ones(4), ValueError, r"returned the shape \(4,\); "),
    (torch.tensor([0, 1, -1]), TypeError, "returned torch.int64; it must return torch.float32, as .float"),
    (torch.tensor([True, False, True]), TypeError, "returned torch.bool; "),
    (torch.ones(3).half(), TypeError, "returned torch.float16; "),
    (torch.ones(3) * 1j, TypeError, "returned torch.complex64; "),
    (torch.tensor([0, 1, math.nan]), ValueError, "returned NaN or infinite values"),
    (torch.tensor([0, 1, math.inf]), ValueError, "returned NaN or infinite values"),
    (torch.tensor([0, 1, 1e300], dtype=torch.float64), ValueError, "returned NaN or infinite values"),
    (torch.ones(3, device="meta"), ValueError, "returned a tensor on meta; "),
    ([0.0, 1.0, 2.0], TypeError, "returned a list; it must return a tensor"),
    (np.ones(3), TypeError, "returned a ndarray; "),
    (None, TypeError, "returned a NoneType; "),
]


@pytest.mark.parametrize(("made", "error", "message"), DRAWS)
def test_what_a_distribution_returns_is_checked(made: Any, error: type[Exception], message: str) -> None:
    def mine(shape: tuple[int, ...], rng: torch.Generator) -> Any:
        return made

    with pytest.raises(error, match=rf"^distribution mine \(\(3,\), generator\) {message}"):
        RSO(distribution=mine).draw()((3,), torch.Generator())


def test_an_error_in_a_function_is_named() -> None:
    with pytest.raises(ValueError, match=r"^schedule raises \(0, 50\) raised KeyError: 'no such cycle'"):
        RSO(schedule=raises).sigma_factor(0)
    with pytest.raises(ValueError, match=r"^distribution raises \(\(2,\), generator\) raised KeyError"):
        RSO(distribution=raises).draw()((2,), torch.Generator())


def test_a_gradient_of_a_distribution_is_dropped_and_float64_kept() -> None:
    made = RSO(distribution=lambda shape, rng: torch.ones(shape, requires_grad=True).double()).draw()(
        (2,), generator(0)
    )
    assert made.dtype == torch.float64 and not made.requires_grad


def test_a_distribution_that_ignores_its_generator_repeats_itself() -> None:
    """And leaves the caller's generators alone."""
    draw = RSO(distribution=lambda shape, rng: torch.randn(shape) + np.random.randn() + random.random()).draw()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = draw((4,), generator(1))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    torch.manual_seed(5)
    assert torch.equal(draw((4,), generator(1)), first)
    assert not torch.equal(draw((4,), generator(2)), first)
