"""What a batch decides, and settings against each other, on cases small enough to work out by hand."""

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cells import function_of
from torch import Tensor

from rso_lib import RSO, Data, History, fit, load, models
from rso_lib.data import Split
from rso_lib.engine.head import HeadScorer
from rso_lib.history import Report
from rso_lib.lab import julia, noise
from rso_lib.lab.noise import TriedSteps
from rso_lib.lab.tables import standard_error
from rso_lib.lab.variants import in_memory, run_variants, tabulate_differences
from rso_lib.proposals import generator, sigma


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


# What a batch decides

BY_HAND = TriedSteps(
    ["a", "b"],
    torch.tensor(
        [
            [[1, 1, 1, 1], [0, 0, 0, 2], [1, 1, 1, 0.5]],  # all images choose w + Δ, the last one w − Δ
            [[1, 1, 1, 1], [0.5, 2, 2, 2], [1, 1, 1, 1]],  # all images keep w, the first one chooses w + Δ
        ],
        dtype=torch.float64,
    ),
)


def test_all_images_are_never_wrong() -> None:
    assert [share.tolist() for share in noise.measure_wrong(BY_HAND, 4, batches=50)] == [[0, 0], [0, 0]]


def test_single_images_are_wrong_in_a_quarter_and_do_harm_where_all_lose() -> None:
    """w − Δ of the first visit is worse than w + Δ, but better than w."""
    wrong, harmful = noise.measure_wrong(BY_HAND, 1, batches=4000)
    assert wrong.tolist() == pytest.approx([0.25, 0.25], abs=0.03)
    assert harmful.tolist() == [0, wrong[1]]


def test_a_batch_has_the_mean_loss_of_its_images() -> None:
    """Of two images half have the last one, where w − Δ wins; of three it is outvoted."""
    losses = noise.sample_batch_losses(BY_HAND, 2, 400)
    assert losses.shape == (2, 3, 400)
    assert {*losses[0, 1].tolist()} == {0, 1} and {*losses[0, 2].tolist()} == {0.75, 1}
    assert noise.measure_wrong(BY_HAND, 2, batches=4000)[0][0] == pytest.approx(0.5, abs=0.03)
    assert noise.measure_wrong(BY_HAND, 3)[0][0] == 0


def test_wrong_decisions_by_layer() -> None:
    both = TriedSteps(["a", "a"], BY_HAND.losses)
    [row] = noise.tabulate_wrong(both, [1], batches=4000).to_dict("records")
    wrong, harmful = noise.measure_wrong(BY_HAND, 1, batches=4000)
    assert (row["batch_size"], row["layer"], row["visits"]) == (1, "a", 2)
    assert (row["wrong"], row["harmful"]) == (float(wrong.mean()), float(harmful.mean()))
    assert row["harmful_error"] == pytest.approx(float(harmful[1]) / 2)  # deviation of 0 and h: h / √2; over √2
    table = noise.tabulate_wrong(BY_HAND, [1, 4])
    assert list(zip(table.batch_size, table.layer, strict=True)) == [(1, "a"), (1, "b"), (4, "a"), (4, "b")]


def test_rules_that_choose_how_many_images_they_look_at() -> None:
    def all_of_them(losses: Tensor) -> tuple[int, int]:
        return int(losses.mean(1).argmin()), losses.shape[1]

    def only_the_first(losses: Tensor) -> tuple[int, int]:
        return int(losses[:, 0].argmin()), 1

    assert noise.score_stopping_rule(all_of_them, BY_HAND) == (0, 4)
    mistakes, images = noise.score_stopping_rule(only_the_first, BY_HAND, orders=2000)
    assert mistakes == pytest.approx(0.25, abs=0.03) and images == 1


def test_tried_steps_are_not_made(digits: Data) -> None:
    """Every bit of the net stays, and the losses are those of its images."""
    net, split = models.two_conv((1, 8, 8)), Split(digits.train.images[:150], digits.train.labels[:150])
    before = [weight.clone() for weight in net.parameters()]
    names = {"torch": torch, "noise": noise, "generator": generator, "sigma": sigma}
    data = SimpleNamespace(train=split)
    found = function_of("02_batch_size_and_noise", "try_steps", **names, tried=3, seed=0, data=data)(net)
    assert all(map(torch.equal, net.parameters(), before))
    assert found.layers == [name for name, _ in net.named_parameters() for _ in range(3)]
    assert found.losses.shape == (18, 3, 150)
    with torch.no_grad():
        logits = torch.cat([net(images) for images in split.images.split(100)]).double()
    now = torch.nn.functional.cross_entropy(logits, split.labels, reduction="none")
    torch.testing.assert_close(found.losses[:, 0], now.expand(18, -1), rtol=0, atol=1e-13)
    assert not torch.equal(found.losses[:, 1], found.losses[:, 0])


def test_losses_of_images_along_a_weight(digits: Data) -> None:
    net, split = models.one_conv((1, 8, 8)), Split(digits.train.images[:50], digits.train.labels[:50])
    before = [weight.clone() for weight in net.parameters()]
    bias = net.get_parameter("head.linear.bias")
    values = [[b + step * sigma(bias) for step in (-1, 0, 1)] for b in bias.tolist()]
    lines = torch.stack([noise.image_losses(net, "head.linear.bias", k, values[k], split) for k in range(10)])
    assert all(map(torch.equal, net.parameters(), before))
    assert lines.shape == (10, 3, 50)
    assert torch.equal(lines[:, 1], lines[:1, 1].expand(10, -1))
    own = torch.arange(10)[:, None] == split.labels  # a larger bias raises the logit of its class alone
    assert torch.equal(lines[:, 2] < lines[:, 1], own) and torch.equal(lines[:, 0] > lines[:, 1], own)


def test_losses_of_images_need_a_net_without_batch_norm(digits: Data) -> None:
    net = models.mnist_net((1, 8, 8))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="batch norm"):
        noise.image_losses(net, "block1.norm.bias", 0, [0.0], digits.train)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_interrupt_leaves_the_weight_as_it_was(digits: Data) -> None:
    net = models.one_conv((1, 8, 8))
    before = [weight.clone() for weight in net.parameters()]

    def values() -> Iterator[float]:
        yield 7.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        noise.image_losses(net, "head.linear.weight", 3, values(), digits.train)
    assert all(map(torch.equal, net.parameters(), before))


def test_standard_error() -> None:
    assert standard_error(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((5 / 3) ** 0.5 / 2)
    assert math.isnan(standard_error(torch.tensor([1.0])))


# Settings against each other


def ending(*accuracies: float) -> list[History]:
    """Runs of one cycle."""
    counts = dict.fromkeys(("steps", "kept", "plus", "minus", "evaluations", "image_forwards"), 0)
    return [History([Report(cycle=1, layer="", sigma=1.0, test_accuracy=end, **counts)]) for end in accuracies]


def test_differences_are_taken_seed_by_seed() -> None:
    runs = {"default": ending(0.6, 0.7, 0.8), "other": ending(0.62, 0.73, 0.81)}
    default, other = tabulate_differences(runs, "default").to_dict("records")
    assert (default["variant"], default["seeds"], default["difference"], default["error"]) == ("default", 3, 0, 0)
    assert other["mean"] == pytest.approx(0.72)
    assert (other["difference"], other["error"]) == pytest.approx((0.02, 0.01 / 3**0.5), rel=1e-4)
    with pytest.raises(ValueError, match="default must be one of default, other, not 'defalt'"):
        tabulate_differences(runs, "defalt")


def test_runs_that_are_compared_are_those_of_fit(digits: Data) -> None:
    base = RSO(cycles=1, batch_size=400, schedule="constant")
    variants = {"a": base, "b": replace(base, order="input")}
    made = run_variants(variants, [3], in_memory(models.one_conv, digits), progress=False)
    for label, changed in (("a", {}), ("b", {"order": "input"})):
        net = models.one_conv(digits.shape, seed=3)
        [history], by_hand = made[label], fit(net, digits, replace(base, seed=3, **changed), progress=False)
        assert history.last == replace(by_hand.last, seconds=history.last.seconds)


def test_the_table_of_the_julia_notebook(digits: Data) -> None:
    """Its numbers stand beside ours on MNIST, in the rows that it has."""
    named = replace(digits, name="mnist")
    quoted, ours = julia.measure_table(named, {"one_conv": [64, 400]}, cycles=1, progress=False).to_dict("records")
    assert (quoted["net"], quoted["batch_size"]) == ("one_conv", 64)
    assert (quoted["julia_seconds"], quoted["julia_accuracy"]) == (345, 0.8353)
    assert math.isnan(ours["julia_accuracy"]) and ours["seconds"] > 0
    settings = RSO(cycles=1, batch_size=400, schedule="constant")
    history = fit(models.one_conv(digits.shape), digits, settings, progress=False)
    assert (ours["loss"], ours["accuracy"]) == (history.last.test_loss, history.last.test_accuracy)


@pytest.mark.parametrize("measure", ["variants", "julia"])
def test_an_interrupt_ends_the_comparison(measure: str, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a run is no result. The first run is stopped in its first sweep, the others would not be."""
    step, steps = HeadScorer.score, []

    def interrupted(*arguments):
        steps.append(arguments)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(HeadScorer, "score", interrupted)
    base = RSO(cycles=1, batch_size=200)
    variants = {"a": base, "b": replace(base, order="input")}
    with pytest.raises(KeyboardInterrupt):
        if measure == "variants":
            run_variants(variants, [0], in_memory(models.one_conv, digits), progress=False)
        else:
            julia.measure_table(digits, {"one_conv": [200, 400]}, cycles=1, progress=False)
    assert len(steps) == 9
