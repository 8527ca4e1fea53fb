"""What a batch decides, on cases small enough to work out by hand."""

import math
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pandas
import pytest
import torch
from cells import function_of
from torch import Tensor, nn

from rso_lib import Data, load, models
from rso_lib.data import Split
from rso_lib.lab import noise
from rso_lib.lab.noise import TriedSteps
from rso_lib.lab.tables import standard_error
from rso_lib.proposals import generator, sigma
from rso_lib.rules import choose


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


def judge(size: int) -> tuple[Tensor, Tensor]:
    """`judge` of notebook 02 for the steps above: how often batches are wrong, and how often they do harm."""
    judged = function_of("02_batch_size_and_noise", "judge", noise=noise, choose=choose, seed=0)(BY_HAND, size)
    return judged["wrong"], judged["harmful"]


def test_all_images_are_never_wrong() -> None:
    assert [share.tolist() for share in judge(4)] == [[0, 0], [0, 0]]


def test_single_images_are_wrong_in_a_quarter_and_do_harm_where_all_lose() -> None:
    """w − Δ of the first visit is worse than w + Δ, but better than w."""
    wrong, harmful = judge(1)
    assert wrong.tolist() == pytest.approx([0.25, 0.25], abs=0.12)
    assert harmful.tolist() == [0, wrong[1]]


def test_a_batch_has_the_mean_loss_of_its_images() -> None:
    """Of two images half have the last one, where w − Δ wins; of three it is outvoted."""
    losses = noise.sample_batch_losses(BY_HAND, 2, 400)
    assert losses.shape == (2, 3, 400)
    assert {*losses[0, 1].tolist()} == {0, 1} and {*losses[0, 2].tolist()} == {0.75, 1}
    assert judge(2)[0][0] == pytest.approx(0.5, abs=0.12)
    assert judge(3)[0][0] == 0


def test_wrong_decisions_by_layer() -> None:
    """Points are means over the steps of a layer, with standard errors, in %; a panel for each number of cycles."""
    rows = [(0, 16, "a", 0.2), (0, 16, "a", 0.4), (0, 32, "a", 0.1), (0, 32, "a", 0.1), (2, 16, "b", 0.5)]
    rows += [(2, 32, "b", 0.5)]
    picture = noise.plot_wrong(pandas.DataFrame(rows, columns=["cycles", "batch_size", "layer", "wrong"]))
    first, second = picture.axes
    assert (first.get_title(), second.get_title()) == ("after 0 cycles", "after 2 cycles")
    line, _, [bars] = first.containers[0]
    assert line.get_xdata().tolist() == [16, 32] and line.get_ydata().tolist() == pytest.approx([30, 10])
    assert bars.get_segments()[0][:, 1].tolist() == pytest.approx([20, 40])  # deviation 14.1, over √2
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["a"]
    assert second.containers[0][0].get_ydata().tolist() == [50, 50]
    assert "a, 0 cycles: 10% ± 0%" in picture.alt


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
    try_steps = function_of("02_batch_size_and_noise", "try_steps", **names, tried=3, seed=0, data=data)
    found, others = try_steps(net), try_steps(net, 1)
    assert all(map(torch.equal, net.parameters(), before))
    assert found.layers == [name for name, _ in net.named_parameters() for _ in range(3)]
    assert found.losses.shape == (18, 3, 150)
    with torch.no_grad():
        logits = torch.cat([net(images) for images in split.images.split(100)]).double()
    now = torch.nn.functional.cross_entropy(logits, split.labels, reduction="none")
    torch.testing.assert_close(found.losses[:, 0], now.expand(18, -1), rtol=0, atol=1e-13)
    assert not torch.equal(found.losses[:, 1], found.losses[:, 0])
    assert torch.equal(found.losses[:, 0], others.losses[:, 0])
    assert not torch.equal(found.losses[:, 1], others.losses[:, 1])


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


# Notebook 02: what decisions gain, and where a run stalls


def gained(size: int, layers: tuple[str, str] = ("a", "b")) -> float:
    """`gained` of the notebook for the steps above, in a net with one weight in a and three in b."""
    net = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1)), "b": nn.Parameter(torch.zeros(3))})
    names = {"torch": torch, "noise": noise, "choose": choose, "net": net, "seed": 0}
    return float(
        function_of("02_batch_size_and_noise", "gained", **names)(TriedSteps(list(layers), BY_HAND.losses), size)
    )


def test_what_all_images_gain_is_all() -> None:
    assert gained(4) == pytest.approx(1)


def test_single_images_gain_less_where_many_weights_are_harmed() -> None:
    """All images gain 0.5 by the first step and nothing by the second; a single image in four loses 5/8 there."""
    wrong = judge(1)[0]
    first = 0.5 - 0.375 * float(wrong[0])  # w − Δ gains 1/8
    assert gained(1) == pytest.approx((first - 3 * 0.625 * float(wrong[1])) / 0.5)
    assert gained(1, ("b", "b")) > gained(1)


def test_a_forecast_lies_where_the_mean_gain_crosses_zero() -> None:
    columns = ["cycles", "loss", "batch size", "gain (%)"]
    nets = pandas.DataFrame(
        [
            *[(0, 4.0, 64, 90), (0, 4.0, 256, 99)],
            *[(1, 0.5, 64, 80), (1, 1.5, 64, 20), (1, 1.0, 256, 95)],  # two nets at 64: a mean of 1.0 and 50 %
            *[(2, 0.25, 64, -50), (2, 0.25, 256, 80)],
        ],
        columns=columns,
    )
    forecast = function_of("02_batch_size_and_noise", "forecast", pairwise=pairwise)
    assert forecast(nets, 64) == pytest.approx(0.5)  # half-way between 1 and 0.25, as a logarithm sees it
    assert forecast(nets, 256) == 0.25
