"""What is tried: the moments of Δ, the values of σ, the order of visits, and that draws can be repeated."""

import math

import pytest
import torch

from rso_lib.models import one_conv
from rso_lib.proposals import (
    DISTRIBUTIONS,
    ORDERS,
    SCHEDULES,
    by_input,
    by_output,
    cosine,
    gaussian,
    generator,
    linear,
    released,
    shuffled,
    sigma,
    stepped,
    template,
    uniform,
)

SAMPLES = 200_000


def test_names() -> None:
    assert list(DISTRIBUTIONS) == ["gaussian", "uniform", "template"]
    assert list(SCHEDULES) == ["linear", "released", "constant", "cosine", "step"]
    assert list(ORDERS) == ["output", "input", "shuffled"]


# Randomness


def test_the_same_key_draws_the_same() -> None:
    assert torch.equal(torch.randn(100, generator=generator(3, 1, 2)), torch.randn(100, generator=generator(3, 1, 2)))


def test_every_place_of_a_run_draws_anew() -> None:
    """Seeds, cycles, purposes and sweeps or layers, and at the joint levels steps."""
    keys = [(s, c, purpose, k) for s in range(3) for c in range(3) for purpose in (1, 2) for k in range(4)]
    keys += [(0, 0, 2, 0, t) for t in range(5)] + [(0,), (1,), (2,)]
    draws = {tuple(torch.randint(2**60, (2,), generator=generator(*key)).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_draws_are_the_same_in_every_version() -> None:
    """Recorded: whoever changes these numbers changes every run that was ever made."""
    assert torch.randperm(8, generator=generator(0, 1, 2)).tolist() == PERMUTATION
    torch.testing.assert_close(gaussian((4,), generator(0, 0, 2, 1)), torch.tensor(GAUSSIAN), rtol=1e-4, atol=1e-4)


PERMUTATION = [6, 1, 5, 4, 3, 0, 7, 2]
GAUSSIAN = [-1.292424, -0.620887, -1.090068, -0.914969]


def test_draws_are_float32_whatever_torch_takes_for_usual() -> None:
    before = [draw((4,), generator(0)) for draw in DISTRIBUTIONS.values()]
    weights = [*one_conv((1, 8, 8)).parameters()]
    torch.set_default_dtype(torch.float64)
    try:
        after = [draw((4,), generator(0)) for draw in DISTRIBUTIONS.values()]
        again = [*one_conv((1, 8, 8)).float().parameters()]
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, [*before, *weights], [*after, *again]))


# Distributions, in units of σ


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_shape_and_type(name: str) -> None:
    draws = DISTRIBUTIONS[name]((3, 2, 1), generator(0))
    assert draws.shape == (3, 2, 1) and draws.dtype == torch.float32
    assert not torch.equal(draws, DISTRIBUTIONS[name]((3, 2, 1), generator(1)))


def moments(draws: torch.Tensor) -> list[float]:
    """Mean, second, third and fourth moment."""
    return [float((draws.double() ** k).mean()) for k in (1, 2, 3, 4)]


def test_gaussian_has_the_moments_of_the_normal_distribution() -> None:
    assert moments(gaussian((SAMPLES,), generator(0))) == pytest.approx([0, 1, 0, 3], abs=0.05)


def test_uniform_fills_minus_two_to_two() -> None:
    draws = uniform((SAMPLES,), generator(0))
    assert -2 <= draws.min() < -1.999 and 1.999 < draws.max() < 2
    assert moments(draws) == pytest.approx([0, 4 / 3, 0, 16 / 5], abs=0.05)


def test_template_has_three_values_of_equal_share() -> None:
    values, counts = template((SAMPLES,), generator(0)).unique(return_counts=True)
    assert values.tolist() == [-1, 0, 1]
    assert (counts / SAMPLES).tolist() == pytest.approx([1 / 3] * 3, abs=0.005)


# σ


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 1, 3, 3), math.sqrt(2 / 9)),
        ((16, 16, 3, 3), math.sqrt(2 / 144)),
        ((32, 16, 1, 1), math.sqrt(2 / 16)),
        ((10, 784), math.sqrt(2 / 784)),
        ((16,), 1 / 6),
    ],
)
def test_sigma_is_the_he_value(shape: tuple[int, ...], expected: float) -> None:
    assert sigma(torch.zeros(shape)) == pytest.approx(expected, rel=1e-15)


def test_linear_goes_to_a_tenth_in_the_last_cycle() -> None:
    """Section 4.1: σ of cycle C is a tenth of σ of cycle 1, linearly."""
    assert [linear(c, 4) for c in range(4)] == pytest.approx([1, 0.7, 0.4, 0.1])
    assert linear(49, 50) == pytest.approx(0.1)


def test_released_would_come_to_a_tenth_one_cycle_after_the_last() -> None:
    """As read in the authors' code: 0.1 + 0.9 (C − c) / C for c = 0 … C − 1."""
    assert [released(c, 5) for c in range(5)] == pytest.approx([0.1 + 0.9 * (5 - c) / 5 for c in range(5)])


def test_cosine() -> None:
    assert [cosine(c, 5) for c in range(5)] == pytest.approx(
        [1, 0.55 + 0.45 * math.sqrt(0.5), 0.55, 0.55 - 0.45 * math.sqrt(0.5), 0.1]
    )


def test_steps() -> None:
    assert [stepped(c, 6) for c in range(6)] == pytest.approx([1, 1, 10**-0.5, 10**-0.5, 0.1, 0.1])
    assert [stepped(c, 500) for c in (0, 166, 167, 333, 334, 499)] == pytest.approx(
        [1, 1, 10**-0.5, 10**-0.5, 0.1, 0.1]
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_single_cycle_has_the_whole_sigma(name: str) -> None:
    assert SCHEDULES[name](0, 1) == 1


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_never_rise(name: str) -> None:
    factors = [SCHEDULES[name](c, 17) for c in range(17)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx({"constant": 1.0, "released": 0.1 + 0.9 / 17}.get(name, 0.1))


# Orders: a tensor of 2 outputs, 3 inputs and 2 taps has the flat indices 6·output + 2·input + tap


def test_order_by_output() -> None:
    assert by_output((2, 3, 1, 2), generator(0)).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def test_order_by_input() -> None:
    assert by_input((2, 3, 1, 2), generator(0)).tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    assert by_input((3, 2), generator(0)).tolist() == [0, 2, 4, 1, 3, 5]
    assert by_input((4,), generator(0)).tolist() == [0, 1, 2, 3]


def test_order_shuffled() -> None:
    first, second = (shuffled((2, 3, 1, 2), generator(seed)).tolist() for seed in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == list(range(12))
