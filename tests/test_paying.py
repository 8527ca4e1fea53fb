"""What notebook 10 measures: the law of the kept share, claims of batches, gains of blocks; and ideas to pay less."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
import torch
from cells import function_of

from rso_lib import RSO, Data, fit, load, models
from rso_lib.history import History, Report
from rso_lib.lab import cheaper, paying
from rso_lib.lab.cheaper import EXPECTED, IDEAS
from rso_lib.lab.scoreboard import Entry
from rso_lib.lab.trial import play
from rso_lib.proposals import generator, sigma
from rso_lib.rules import RULES, Scores
from rso_lib.train import evaluate, train


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


@pytest.fixture(scope="module")
def simulate_visits() -> Callable[..., dict[str, float]]:
    return function_of("10_what_a_search_costs", "simulate_visits", torch=torch, generator=generator)


def test_the_law_is_what_a_simulation_finds(simulate_visits: Callable[..., dict[str, float]]) -> None:
    """Whatever share of the noise is real: the law is about what the batches see."""
    for one, signal in ((0.1, 1.0), (1.0, 0.5), (5.0, 0.2)):
        assert simulate_visits(signal, one)["kept"] == pytest.approx(paying.kept_share(one), abs=0.005)


def test_the_spread_is_found_again() -> None:
    sigmas = [0.01, 0.1, 1.0]
    kept = [paying.kept_share(sigma / 0.3) for sigma in sigmas]
    assert paying.fit_spread(sigmas, kept) == pytest.approx(0.3, rel=0.02)


def test_noise_asks_for_a_smaller_sigma(simulate_visits: Callable[..., dict[str, float]]) -> None:
    """With all images a claim is true; else it is too high, and the best σ is smaller, and keeps fewer."""
    clean = simulate_visits(1.0, 1.3)
    assert clean["claimed"] == pytest.approx(clean["real"])
    sigmas = torch.logspace(-2, 1, 25).tolist()
    tables = [pandas.DataFrame([simulate_visits(signal, one, 20_000) for one in sigmas]) for signal in (1.0, 0.5, 0.2)]
    best = [table.sigma[table.real.idxmax()] for table in tables]
    assert best == sorted(best, reverse=True)
    noisy = simulate_visits(0.2, 1.3)
    assert noisy["claimed"] > 1 and noisy["real"] < 0
    assert f"noisy: best at σ = {best[2]:.2g} s" in paying.plot_noise({"noisy": tables[2]}).alt


def test_measuring_moves_no_weight_and_follows_the_law(digits: Data) -> None:
    net = models.one_conv(digits.shape)
    fit(net, digits, RSO(cycles=1, batch_size=128), progress=False)
    before = [weight.clone() for weight in net.parameters()]
    page, still = "10_what_a_search_costs", function_of("10_what_a_search_costs", "still", torch=torch)
    names = {"RSO": RSO, "train": train, "Report": Report, "sigma": sigma, "still": still, "torch": torch}
    ask = function_of(page, "ask", net=net, data=digits, batch_size=128, seed=0, **names)
    asked = pandas.DataFrame([answer for factor in (0.1, 0.5, 2.0) for answer in ask(factor)])
    found = asked.groupby(["layer", "sigma"], sort=False).kept.agg(visits="size", kept="mean").reset_index()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    rows = found[found.layer == "head.linear.weight"]
    assert rows.visits.tolist() == [640, 640, 640]
    spread = paying.fit_spread(rows.sigma.tolist(), rows.kept.tolist())
    assert [paying.kept_share(one / spread) for one in rows.sigma] == pytest.approx(rows.kept.tolist(), abs=0.06)
    assert "points away" in paying.plot_law(found).alt


def test_claims(digits: Data) -> None:
    """On all images, one after the other, every claim comes true; small batches claim more than comes."""
    names = {"torch": torch, "models": models, "data": digits, "RSO": RSO, "cycles": 1, "train": train}
    claims_of = function_of("10_what_a_search_costs", "claims_of", **names, evaluate=evaluate, Report=Report)
    [(claimed, real)] = claims_of(len(digits.train), 0).tolist()
    assert claimed == pytest.approx(real, abs=1e-4) and real > 0
    small = claims_of(16, 0)
    assert small.shape == (1, 2) and small[0, 0] > 1.5 * small[0, 1]
    assert "of what was claimed" in paying.plot_claims({"some": torch.stack([small, small])}).alt


def row(cycle: int, layer: str, loss: float, seconds: float, kept: int = 5) -> Report:
    counts = {"steps": 10, "kept": kept, "plus": 0, "minus": 0, "evaluations": 30, "image_forwards": 300}
    return Report(cycle=cycle, layer=layer, sigma=0.2, train_loss=loss, seconds=seconds, **counts)


HISTORY = History(
    [
        row(1, "head.linear.weight", 2.0, 1),
        row(1, "block1.conv.weight", 1.7, 5),
        row(1, "block1.norm.weight", 1.5, 6),
        row(1, "", 1.5, 7),
        row(2, "head.linear.weight", 1.4, 8),
        row(2, "block1.conv.weight", 1.3, 12),
        row(2, "block1.norm.weight", 1.25, 13),
    ]
)


def test_gains_by_block() -> None:
    gains = paying.gain_by_block(HISTORY)
    assert gains.block.tolist() == ["head", "block1", "head", "block1"]
    assert math.isnan(gains.gain[0]) and gains.gain[1:].tolist() == pytest.approx([0.5, 0.1, 0.15])
    assert gains.images.tolist() == [300, 600, 300, 600]
    assert "head 33 and 13, block1 67 and 87" in paying.plot_gains(gains).alt


def test_spreads_by_cycle() -> None:
    """Half are kept where σ is twice the spread."""
    spreads = paying.spread_by_cycle(HISTORY)
    assert spreads.kept.tolist() == [0.5] * 6
    assert spreads.spread.tolist() == pytest.approx([0.1] * 6)
    assert "head.linear.weight 50% and 50%, s 0.1 and 0.1" in paying.plot_spreads(spreads).alt


# Ideas


def entry(method: str, *accuracies: float) -> Entry:
    ends = [History([replace(row(1, "", 1.0, 1), val_accuracy=0.5, test_accuracy=one)]) for one in accuracies]
    about = {"method": method, "budget": 1000, "tried": [{"cycles": 4}]}
    return Entry(Path("none"), about, ends[:1], ends[1:])


def test_verdicts_compare_seed_by_seed() -> None:
    rso = entry("rso", 0.6, 0.7, 0.8)
    better, unclear = entry("rso_signs", 0.65, 0.74, 0.85), entry("rso_clear", 0.7, 0.6, 0.8)
    table = paying.tabulate_ideas([rso, better, unclear, entry("rso_two", 0.5, 0.61, 0.7)], 1000)
    assert table.difference.tolist() == pytest.approx([4.67, 0.0, -9.67], abs=0.01)
    assert table.verdict.tolist() == ["pays", "no difference seen", "costs"]
    assert paying.tabulate_ideas([rso], 1000).empty


def test_the_board_is_drawn_with_the_best_method_on_top() -> None:
    entries = [entry("rso", 0.6, 0.7), entry("spsa", 0.5, 0.52), entry("backprop", 0.9), entry("rso_two", 0.99)]
    picture = paying.plot_board(entries)
    assert picture.alt.endswith("standard errors. 1 k: backpropagation 90.0, RSO 65.0, SPSA (as MeZO) 51.0.")
    rows = [text.get_text() for text in picture.axes[0].get_yticklabels()]
    assert rows == ["SPSA (as MeZO)", "RSO", "backpropagation"]


@pytest.mark.parametrize("name", IDEAS)
def test_an_idea_searches_within_its_budget(digits: Data, name: str) -> None:
    budget, settings = 150_000, {"cycles": 2, "scale": 1.0}
    histories = [
        play(IDEAS[name].run, models.one_conv(digits.shape), digits, budget, 0, settings, progress=False)
        for _ in range(2)
    ]
    spent = sum(row.image_forwards for row in histories[0].rows)
    assert 0.9 * budget < spent <= budget
    assert histories[0].rows[-1].test_loss == histories[1].rows[-1].test_loss < 2.8
    assert EXPECTED.keys() == IDEAS.keys()


def scores(images: torch.Tensor) -> Scores:
    multiples = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    return Scores(images.mean(2), images, multiples, torch.ones(len(images)))


def test_a_clear_slope_is_not_shrunk_and_noise_moves_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    slope = torch.tensor([0.3, 0.0])[:, None] + torch.randn(2, 400, generator=rng) * torch.tensor([[0.001], [1.0]])
    slope[1] -= slope[1].mean() - 0.01
    images = torch.stack([torch.zeros_like(slope), slope / 2 + 0.5, -slope / 2 + 0.5], 1).double()
    clear, noisy = cheaper.shrunk(scores(images)).tolist()
    assert clear == pytest.approx(float(RULES["parabola"](scores(images))[0]), rel=0.01)
    assert noisy == 0


def test_signs_have_one_size() -> None:
    drawn = cheaper.signs((1000,), torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {-1.0, 1.0} and abs(float(drawn.mean())) < 0.1
