"""Rules, candidates and losses of one's own: each defined here in ten lines, and trained with."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import images, narrow
from torch import Tensor

from rso_lib import RSO, fit, load, models, rules, train
from rso_lib.lab.live import LiveRun
from rso_lib.rules import Scores, argmin, clear, parabola
from rso_lib.run import folder
from rso_lib.train import Step

THREE = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)


def scores(*images: list[list[float]], multiples: Tensor = THREE) -> Scores:
    """Of the losses [K][N] of each step."""
    per_image = torch.tensor(images, dtype=torch.float64)
    return Scores(per_image.mean(2), per_image, multiples, torch.ones(len(images)))


def always_plus(scores: Scores) -> Tensor:
    """Take w + Δ, whatever it costs."""
    return torch.ones(len(scores.losses))


def half_way(scores: Scores) -> Tensor:
    """Go half of the way to the best candidate."""
    return argmin(scores) / 2


# The rules of the library


def test_argmin_keeps_the_lowest_and_w_in_a_tie() -> None:
    got = argmin(scores([[2.0], [1.0], [3.0]], [[1.0], [1.0], [1.0]], [[1.0], [math.nan], [0.5]]))
    assert got.tolist() == [1, 0, -1]


def test_the_standard_error_of_a_difference() -> None:
    """On four images w + Δ differs by −1, −3, −1, −3: a deviation of √(4/3), so an error of √(1/3)."""
    found = scores([[1.0, 5.0, 2.0, 4.0], [0.0, 2.0, 1.0, 1.0], [1.0, 5.0, 2.0, 4.0]]).errors()
    assert found[0].tolist() == pytest.approx([0, math.sqrt(1 / 3), 0])
    assert scores([[1.0], [0.0], [2.0]]).errors().isnan().all()


def test_clear_asks_for_more_than_the_noise() -> None:
    noisy = [[0.0, 1.0], [1.0, -0.2], [3.0, 3.0]]  # w + Δ is better by 0.1, with an error of 1.1
    sure = [[0.0, 1.0], [-0.2, 0.9], [3.0, 3.0]]  # better by 0.15, with an error of 0.05
    assert clear(scores(noisy, sure)).tolist() == [0, 1]
    assert argmin(scores(noisy, sure)).tolist() == [1, 1]
    assert clear(scores([[math.nan] * 2, [1.0, 1.0], [3.0, 3.0]])).tolist() == [1]


@pytest.mark.parametrize("multiples", [(0, 1, -1), (0, -0.5, 2.0), (0, 1, -1, 0.5)])
def test_the_minimum_of_a_parabola(multiples: tuple[float, ...]) -> None:
    """A loss that is a parabola of m, with its minimum at 0.3; one beyond reach; one that bends down."""
    m = torch.tensor(multiples, dtype=torch.float64)
    losses = [(m - 0.3) ** 2 + 1, (m - 100) ** 2, -((m - 0.3) ** 2)]
    got = parabola(scores(*[[[float(x)] for x in loss] for loss in losses], multiples=m))
    lowest = m[losses[2].argmin()]
    assert got.tolist() == pytest.approx([0.3, 2 * float(m.abs().max()), float(lowest)])


# In a run


@pytest.mark.parametrize("strategy", ["sequential", "neuron", "layer"])
@pytest.mark.parametrize("kind", ["folded", "growing"])
def test_a_rule_decides_in_every_strategy(kind: str, strategy: str) -> None:
    """With `always_plus` each weight ends where its Δ says, and every step and report says so."""
    net, shape = narrow(kind)
    settings = RSO(cycles=1, batch_size=8, rule=always_plus, strategy=strategy)
    expected = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for item in train(net, images(26, shape), settings, steps=True):
        if isinstance(item, Step):
            assert item.choice == 1
            expected[item.layer].view(-1)[item.index] += item.delta
        else:
            assert (item.kept, item.plus, item.minus) == (0, item.steps, 0)
    for name, weight in net.named_parameters():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("level", ["layer", "network"])
def test_a_rule_decides_at_the_joint_levels(level: str) -> None:
    net, shape = narrow("flat")
    fixed = [weight.detach().clone() for weight in net.parameters()]
    settings = RSO(cycles=1, batch_size=8, rule=lambda scores: torch.zeros(len(scores.losses)), level=level)
    reports = list(train(net, images(26, shape), settings))
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), fixed, strict=True))
    assert all(report.kept == report.steps for report in reports)


def test_a_rule_may_write_what_was_not_scored() -> None:
    """Half of the way: the value, the choice and the counts."""
    net, shape = narrow("folded")
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for step in train(net, images(26, shape), RSO(cycles=1, batch_size=26, rule=half_way), steps=True):
        if not isinstance(step, Step):
            break
        assert step.choice in (0, 0.5, -0.5)
        assert net.get_parameter(step.layer).view(-1)[step.index] == (
            before[step.layer].view(-1)[step.index] + float(step.choice) * step.delta
        )
    assert step.kept + step.plus + step.minus == step.steps and 0 < step.kept < step.steps


@pytest.mark.parametrize("candidates", [(0, 2), (0, 1, -1, 0.5, -0.5)])
@pytest.mark.parametrize("strategy", ["sequential", "neuron", "layer"])
def test_any_number_of_candidates(strategy: str, candidates: tuple[float, ...]) -> None:
    """The losses are those of the whole net with the weight at w + m·Δ; the lowest is kept."""
    net, shape = narrow("skips")
    data = images(26, shape)
    settings = RSO(cycles=1, batch_size=8, candidates=candidates, strategy=strategy)
    multiples = torch.tensor(candidates, dtype=torch.float64)
    choices = set()
    for item in train(net, data, settings, steps=True):
        if isinstance(item, Step):
            assert item.losses.shape == (len(candidates),)
            assert item.choice == multiples[item.losses.argmin()]
            choices.add(float(item.choice))
        else:
            assert item.evaluations == len(candidates) * item.steps
            assert item.image_forwards == item.evaluations * 8
    assert choices == {*map(float, candidates)}


def test_candidates_are_scored_where_they_lie() -> None:
    """Of four candidates, each has the loss that it has when it is one of two."""
    found = {}
    for candidates in [(0, 1, -1, 0.5), (0, 1), (0, -1), (0, 0.5)]:
        net, shape = narrow("folded")
        settings = RSO(cycles=1, batch_size=8, candidates=candidates, rule=lambda s: torch.zeros(len(s.losses)))
        items = train(net, images(26, shape), settings, steps=True)
        found[candidates] = [item.losses for item in items if isinstance(item, Step)]
    for k, other in enumerate([(0, 1), (0, -1), (0, 0.5)], 1):
        for four, two in zip(found[(0, 1, -1, 0.5)], found[other], strict=True):
            torch.testing.assert_close(four[[0, k]], two, rtol=0, atol=1e-11)


def class_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many other classes have a higher output than the right one: no gradient anywhere."""
    return (outputs > outputs.gather(1, labels[:, None])).sum(1).double()


@pytest.mark.parametrize("strategy", ["sequential", "neuron", "layer"])
def test_a_loss_of_ones_own(strategy: str) -> None:
    """It is what the steps compare, and what the reports say."""
    net, shape = narrow("growing")
    data, settings = images(26, shape), RSO(cycles=1, batch_size=8, strategy=strategy)
    items = list(train(net, data, settings, steps=True, loss=class_errors))
    losses = torch.stack([item.losses for item in items if isinstance(item, Step)])
    assert torch.equal((losses * 8).round(), losses * 8), "eighths: mean counts of a batch of eight"
    last = items[-1]
    assert last.train_loss == float(class_errors(net.eval()(data.train.images), data.train.labels).mean())


def test_cross_entropy_by_hand_makes_the_same_decisions() -> None:
    """It goes another way through the final layer than the built-in one."""

    def by_hand(outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.logsumexp(1) - outputs.gather(1, labels[:, None])[:, 0]

    runs = []
    for options in ({"loss": by_hand}, {}):
        net, shape = narrow("flat")
        runs.append(fit(net, images(26, shape), RSO(cycles=2, batch_size=8), progress=False, **options))
    for one, other in zip(*(run.rows for run in runs), strict=True):
        assert (one.kept, one.plus) == (other.kept, other.plus)
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-9)


def test_a_live_run_takes_a_rule() -> None:
    run = LiveRun("one_conv", load("digits"), RSO(cycles=1, batch_size=100, rule=always_plus))
    try:
        for _ in range(5):
            run.step()
        assert run.wait(lambda run: run.steps == 5, 120)
        assert [*run.recent] == [1] * 5
    finally:
        run.end()


def test_a_folder_keeps_the_name_of_a_rule(tmp_path: Path) -> None:
    what = {"dataset": "digits", "net": "one_conv", "progress": False}
    for rule, name in (("parabola", "parabola"), (always_plus, "always_plus")):
        settings = RSO(cycles=1, batch_size=1000, rule=rule, candidates=[0, 1, -1])
        run = folder.start(tmp_path / name, settings=settings, **what)
        assert folder.load(tmp_path / name).settings["rule"] == name
        assert run.settings["candidates"] == [0, 1, -1]
    with pytest.raises(ValueError, match="the rule of this run is a function, always_plus"):
        folder.resume(tmp_path / "always_plus")
    with pytest.raises(ValueError, match="rule is 'parabola' there, not 'argmin'"):
        folder.start(tmp_path / "parabola", settings=RSO(cycles=1, batch_size=1000), **what)
    with pytest.raises(ValueError, match="rule must be a function with a name of its own"):
        folder.start(tmp_path / "new", settings=RSO(cycles=1, batch_size=1000, rule=lambda s: s), **what)


def test_the_rule_in_the_readme(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs as it stands, and ends near the 87 % that docs/using.md tells."""
    code, *_ = re.findall(r"```python\n(.*?)```", (project / "docs" / "using.md").read_text(), re.DOTALL)
    exec(code, {})
    assert float(capsys.readouterr().out) == pytest.approx(0.87, abs=0.04)


# What makes no sense


@pytest.mark.parametrize("candidates", [(), (0,), (1, 0), (0, 1, 1), (0, math.nan), (0, math.inf), 3, "0, 1", [[0, 1]]])
def test_candidates_that_make_no_sense(candidates: Any) -> None:
    with pytest.raises(ValueError, match=r"candidates must be different, finite multiples of Δ, 0 first"):
        RSO(candidates=candidates)


@pytest.mark.parametrize(
    ("rule", "error", "says"),
    [
        (lambda s: 1.0, TypeError, "must return a tensor of 1 multiples"),
        (lambda s: torch.zeros(3), ValueError, "one multiple of Δ for each of 1 steps"),
        (lambda s: torch.full((1,), math.nan), ValueError, "finite multiples"),
        (lambda s: s.losses.argmin(1, keepdim=True), ValueError, "one multiple of Δ for each"),
        (lambda s: 1 / 0, ValueError, "rule <lambda> raised ZeroDivisionError"),
        (lambda s: argmin(Scores(s.losses, s.images, s.multiples.mul_(2), s.deltas)), ValueError, "has written into"),
        (lambda s: argmin(Scores(s.losses, s.images, s.multiples, s.deltas.neg_())), ValueError, "has written into"),
        (lambda s: s.losses.argmin(1), TypeError, "not torch.int64: .* return scores.multiples"),
    ],
)
def test_a_rule_that_returns_nonsense(rule: Callable[[Scores], Any], error: type[Exception], says: str) -> None:
    net = models.one_conv((1, 8, 8))
    before = [weight.detach().clone() for weight in net.parameters()]
    with pytest.raises(error, match=says):
        fit(net, load("digits"), RSO(cycles=1, batch_size=100, rule=rule), progress=False)
    assert all(torch.equal(w, old) for w, old in zip(net.parameters(), before, strict=True))


def test_a_name_that_is_no_rule() -> None:
    with pytest.raises(ValueError, match=r"rule must be one of argmin, clear, parabola or a callable.*did you mean"):
        RSO(rule="argmim")
    assert rules.RULES["argmin"] is argmin
