"""What users bring: nets of any kind, losses and metrics, tensors and datasets, and runs of these."""

import copy
import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from rso_lib import RSO, Data, History, Report, evaluate, fit, load, train
from rso_lib.algorithm import algorithm_1
from rso_lib.lab.live import FINISHED, LiveRun
from rso_lib.lab.live_view import Curves, describe_score, describe_state, draw_step
from rso_lib.losses import accuracies
from rso_lib.models import count_weights, initialise, one_conv
from rso_lib.rules import Scores, argmin
from rso_lib.run import cli, sgd
from rso_lib.run import folder as runs
from rso_lib.run.baseline import train_seeds
from rso_lib.run.nets import build_net
from rso_lib.run.sgd import SGD
from rso_lib.train import Step, scores

pytestmark = pytest.mark.filterwarnings("ignore:.*not a models.Net")
HERE = "tests.test_own" if __name__.startswith("tests.") else "test_own"


# Losses, metrics, nets and data as a user writes them; runs in folders find them as module:function


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


def minus_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs - targets).abs().mean(1)


def several(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0) == (targets > 0.5)).float().mean(1)


def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Which has no gradient: 1 for each image of which the class is wrong."""
    return outputs.argmax(1) != targets


def table(seed: int = 0, val_size: int | None = None) -> Data:
    """442 patients, and how their diabetes went on, in hundreds."""
    x, y = (torch.tensor(column).float() for column in load_diabetes(return_X_y=True))
    return Data.from_tensors(x, y[:, None] / 100, seed=seed, val=val_size)


def mlp(shape: tuple[int, ...], classes: int, width: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, classes))


class Mixed(nn.Module):
    """Weights of 0, 1, 2 and 3 dimensions for rows of 8 pixels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.along, self.norm, self.out = nn.Conv1d(8, 2, 3, padding=1), nn.LayerNorm([2, 8]), nn.Linear(16, classes)
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.along(x.squeeze(1))).flatten(1)) * self.temperature


class Tuned(nn.Module):
    """A frozen layer, two that share their weights, and dropout."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.frozen, self.first, self.second = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(12, classes)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(x.flatten(1))
        x = x + self.second(self.first(x).relu())
        return self.out(self.drop(x))


# Losses and metrics


def test_a_regression_is_learnt() -> None:
    """The test part is explained as well as by linear regression."""
    data = table()
    torch.manual_seed(0)
    net = mlp(data.shape, 1)
    last = fit(net, data, RSO(cycles=25, batch_size=150), loss=squares, metric=minus_error, progress=False).last
    x, y = (torch.cat([data.train.images, torch.ones(len(data.train), 1)], 1), data.train.labels)
    line = torch.linalg.lstsq(x.double(), y.double()).solution
    test = data.test
    residuals = test.labels - torch.cat([test.images, torch.ones(len(test), 1)], 1).double() @ line
    assert last.test_loss < 1.1 * float(residuals.square().mean()) < 0.6 * float(test.labels.var())
    with torch.no_grad():
        outputs = net(test.images)
    assert last.test_loss == pytest.approx(float((outputs - test.labels).square().mean()), rel=1e-6)
    assert last.test_accuracy == pytest.approx(-float((outputs - test.labels).abs().mean()), rel=1e-6)


def labels_of_digits() -> Data:
    """Of each digit: whether it is even, 5 or more, and 8 or 9."""
    x, digit = map(torch.tensor, load_digits(return_X_y=True))
    return Data.from_tensors(x.float(), torch.stack([digit % 2 == 0, digit >= 5, digit >= 8], 1))


def test_several_labels_are_learnt() -> None:
    data = labels_of_digits()
    assert data.train.labels.dtype == torch.float32 and data.classes == ("0", "1", "2")
    torch.manual_seed(0)
    last = fit(nn.Linear(64, 3), data, RSO(cycles=6, batch_size=128), loss=several, metric=hits, progress=False).last
    often = torch.maximum(data.test.labels.mean(0), 1 - data.test.labels.mean(0)).mean()
    assert last.test_accuracy > 0.84 > often + 0.2


def test_class_weights_move_the_decisions() -> None:
    """One image in ten is of the rare class, and the two overlap."""
    rng = torch.Generator().manual_seed(1)
    y = (torch.arange(600) % 10 == 0).long()
    data = Data.from_tensors(torch.randn(600, 2, generator=rng) + y[:, None], y)
    found = []
    for weights in (torch.ones(2), torch.tensor([1.0, 9.0])):
        loss = lambda z, y, w=weights: F.cross_entropy(z, y, w, reduction="none")  # noqa: E731
        torch.manual_seed(0)
        net = nn.Linear(2, 2)
        fit(net, data, RSO(cycles=10, batch_size=200), loss=loss, progress=False)
        rare = data.test.images[data.test.labels == 1]
        found.append(float((net(rare).argmax(1) == 1).float().mean()))
    assert found[0] < 0.4 and found[1] > 0.7


@pytest.mark.parametrize(("net", "gain"), [("engine", 0.05), ("any", 0.2)])
def test_a_loss_without_a_gradient_is_searched(net: str, gain: float) -> None:
    """Where most visits change no prediction of the batch: a tie keeps w."""
    data = load("digits")
    torch.manual_seed(0)
    made = one_conv(data.shape) if net == "engine" else nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before, _ = evaluate(made, data.test, mistakes)
    *_, last = train(made, data, RSO(cycles=1, batch_size=400), loss=mistakes)
    assert last.test_loss == pytest.approx(1 - last.test_accuracy) and last.test_loss < before - gain
    assert last.steps > last.kept > 0.7 * last.steps


def test_the_engine_decides_with_float_targets_as_forward_passes_do() -> None:
    """On pictures, for a net without batch norm, whose plain algorithm is the engine's to the letter."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(60, 1, 6, 6, generator=rng, dtype=torch.float64)
    data = Data.from_tensors(x, torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1))
    net = one_conv((1, 6, 6), 2).double()
    made = []
    for one in (copy.deepcopy(net), nn.Sequential(copy.deepcopy(net))):
        steps = train(one, data, RSO(cycles=1, batch_size=12), steps=True, loss=squares, metric=minus_error)
        made.append([float(item.choice) if isinstance(item, Step) else item for item in steps])
    choices = [[item for item in items if isinstance(item, float)] for items in made]
    assert choices[0] == choices[1] and set(choices[0]) == {-1.0, 0.0, 1.0}
    assert made[0][-1].test_loss == pytest.approx(made[1][-1].test_loss, rel=1e-9)


def test_accuracy_is_measured_where_there_are_labels_and_an_output_for_each() -> None:
    outputs = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    assert accuracies(outputs, torch.tensor([1, 1])).tolist() == [1.0, 0.0]
    for z, y in ((outputs, torch.tensor([1, 2])), (outputs, torch.ones(2, 2)), (outputs[:, :1], torch.tensor([0, 1]))):
        assert accuracies(z, y).isnan().all()
    assert accuracies(outputs[:, :1], torch.tensor([0, 0])).isnan().all()  # whatever labels a batch has


def of_batch(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets)


WRONG_FUNCTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "mean": ({"loss": of_batch}, r'loss of_batch, given outputs \[2, 1\].* returned \[\] of .*reduction="none"'),
    "columns": ({"loss": lambda z, y: (z - y).square()}, r"returned \[2, 1\] of torch.float32; it must .* \[2\]"),
    "number": ({"metric": lambda z, y: 1.0}, "metric <lambda>, .* returned a float; it must return a number for each"),
    "error": ({"metric": lambda z, y: z @ y}, "metric <lambda>, given .* raised RuntimeError: .*mat1 and mat2"),
    "NaN": ({"loss": lambda z, y: squares(z, y) * math.nan}, "loss <lambda> is NaN for outputs tensor"),
    "outputs": (
        {"loss": lambda z, y: squares(z.sub_(y), 0 * y)},
        "has written into a tensor .*clone",
    ),
    "targets": ({"metric": lambda z, y: -squares(z, y.zero_())}, "metric <lambda>, given .* has written into"),
    "labels": ({}, "labels of train must be torch.int64, .*, not torch.float32: .* with a loss for such targets"),
}


@pytest.mark.parametrize("kind", WRONG_FUNCTIONS)
def test_a_loss_that_is_none_is_an_error_before_the_first_step(kind: str) -> None:
    scored, message = WRONG_FUNCTIONS[kind]
    data = table()
    with pytest.raises((ValueError, TypeError), match=message):
        next(train(mlp(data.shape, 1), data, RSO(batch_size=100), **{"loss": squares, **scored} if scored else {}))


def test_arguments_of_another_kind_are_named() -> None:
    data, net = table(), nn.Linear(10, 1)
    search = lambda *given: next(train(*given, loss=squares))  # noqa: E731
    descend = lambda *given: next(sgd.train(*given, loss=squares))  # noqa: E731
    for call, given, words in [
        (search, (nn.Linear, data, RSO()), "net must be a torch Module, not the class Linear: make one"),
        (search, ([net], data, RSO()), "net must be a torch Module, not a list"),
        (search, (net, (1, 2), RSO()), "data must be a rso_lib Data, not a tuple"),
        (search, (net, data, {"cycles": 1}), "settings must be a rso_lib RSO, not a dict"),
        (descend, (net, data, RSO()), "settings must be a rso_lib SGD, not a RSO"),
        (evaluate, (net, data), "split must be a rso_lib Split, not a Data"),
    ]:
        with pytest.raises(TypeError, match=words):
            call(*given)


def test_outputs_and_targets_that_torch_would_mix_are_an_error() -> None:
    """[N, 1] − [N] is [N, N], whose mean over a dimension is a number for each image, and a wrong one."""
    data = table()
    parts = [replace(part, labels=part.labels[:, 0]) for part in data.parts.values()]
    flat = replace(data, **dict(zip(data.parts, parts, strict=True)))
    with pytest.raises(ValueError, match=r"loss squares mixes images, .*\[2, 1\] over targets \[2\]: .* one shape"):
        next(train(mlp(data.shape, 1), flat, RSO(batch_size=100), loss=squares))
    deep = nn.Sequential(mlp(data.shape, 1), nn.Unflatten(1, (1, 1)))  # [N, 1, 1] − [N, 1] is [N, N, 1]
    with pytest.raises(ValueError, match=r"loss <lambda> mixes images, .*\[2, 1, 1\] over targets \[2, 1\]"):
        next(train(deep, data, RSO(batch_size=100), loss=lambda z, y: (z - y).square().flatten(1).mean(1)))
    mended = lambda outputs, targets: squares(outputs, targets[:, None])  # noqa: E731
    settings = RSO(cycles=1, batch_size=100)
    torch.manual_seed(0)
    net = mlp(data.shape, 1)
    rows = [list(train(copy.deepcopy(net), d, settings, loss=f))[-1] for d, f in ((data, squares), (flat, mended))]
    assert rows[0].test_loss == rows[1].test_loss


def binary(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs[:, 0], labels.float(), reduction="none")


def test_labels_of_two_classes_may_have_one_output() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    data = Data.from_tensors(torch.tensor(x[:60]).float(), torch.tensor(y[:60]))
    assert {*data.train.labels.tolist()} == {0, 1}
    last = fit(mlp(data.shape, 1), data, RSO(cycles=1, batch_size=40), loss=binary, progress=False).last
    assert math.isnan(last.test_accuracy) and last.train_loss < 0.7


def test_without_a_metric_the_best_cycle_is_that_of_the_lowest_loss() -> None:
    row = Report(cycle=1, layer="", sigma=1, steps=1, kept=1, plus=0, minus=0, evaluations=3, image_forwards=3)
    history = History([replace(row, cycle=k, val_loss=loss) for k, loss in enumerate((3.0, 1.0, 2.0), 1)])
    assert history.validated and history.best.cycle == 2


def test_the_bar_shows_the_metric_or_else_the_loss(capfd: Any) -> None:
    data = table()
    torch.manual_seed(0)
    for scored, words in (({}, "val loss="), ({"metric": minus_error}, "val=-")):
        fit(mlp(data.shape, 1), data, RSO(cycles=1, batch_size=100), loss=squares, **scored)
        assert words in capfd.readouterr().err


def test_early_stopping_is_a_break() -> None:
    """The loop in the docstring of `train`."""
    code = re.search(r"Early stopping is a break:\n\n(.*?break)\n", train.__doc__ or "", re.DOTALL)
    assert code
    data = table()
    names = {"History": History, "net": mlp(data.shape, 1), "data": data, "settings": RSO(cycles=500, batch_size=100)}
    names["train"] = lambda *given: train(*given, loss=squares, metric=minus_error)
    exec(re.sub("^        ", "", code[1], flags=re.MULTILINE), names)
    history = names["history"]
    assert 500 > history.last.cycle == history.best.cycle + 5


# Nets


def test_a_net_with_dropout_frozen_and_tied_weights_learns_the_same_bits_again() -> None:
    data, settings, made = load("digits"), RSO(cycles=3, batch_size=250), []
    torch.manual_seed(0)
    start = Tuned()
    directions = torch.linalg.svd(data.train.images.flatten(1), full_matrices=False)[2]
    start.frozen.weight.copy_(0.3 * directions[:12])  # features that were learnt before
    for seed in (1, 2):
        torch.manual_seed(seed)  # nothing of the run may depend on it
        net = copy.deepcopy(start)
        sitting = train(net, data, settings)
        rows = [repr(replace(row, seconds=0)) for row in islice(sitting, 6)]
        made.append((rows, {name: value.clone() for name, value in net.state_dict().items()}, net, sitting))
    (rows, state, net, sitting), (again, other, *_) = made
    assert rows == again and "layer=''" in rows[-1]
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    *_, last = sitting
    assert last.test_accuracy > 0.75
    assert torch.equal(net.frozen.weight, start.frozen.weight) and net.second.weight is net.first.weight
    assert last.steps == count_weights(net) == 144 + 2 * 12 + 130


class Counting(nn.Module):
    """Outputs that depend on how many passes there were in either mode, which a buffer counts."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(10, 1)
        self.register_buffer("passes", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.passes[int(self.training)] += 1
        return self.out(x) * (1 + self.passes.sum() / 100)


def spectral(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(10, 3)), nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 1))


BUFFERED = [
    Counting,
    lambda: spectral(nn.utils.parametrizations.spectral_norm),
    lambda: spectral(nn.utils.spectral_norm),
]


@pytest.mark.parametrize("make", BUFFERED, ids=["counter", "spectral", "older_spectral"])
def test_a_net_whose_passes_change_buffers_goes_on_with_the_same_bits(make: Callable[[], nn.Module]) -> None:
    """From every report, with scores between them, and watched."""
    net, data, settings = make(), table(), RSO(batch_size=100, cycles=1)
    sittings, watched = copy.deepcopy(net), copy.deepcopy(net)
    expected = [repr(replace(row, seconds=0)) for row in train(net, data, settings, loss=squares)]
    history = History()
    while len(history.rows) < len(expected):
        history.append(replace(next(train(sittings, data, settings, history, loss=squares)), seconds=0))
        evaluate(sittings, data.test, loss=squares)
    assert [repr(row) for row in history.rows] == expected
    run = LiveRun(lambda: watched, data, settings, loss=squares)
    for _ in range(3):
        run.step()
    run.start()
    assert run.wait(lambda run: run.state == FINISHED)
    run.wait(lambda run: True)
    assert [repr(replace(row, seconds=0)) for row in run.history.rows] == expected
    for name, value in net.state_dict().items():
        assert torch.equal(value, sittings.state_dict()[name]), name
    run.end()


def test_what_is_frozen_during_a_run_stays_as_it_is() -> None:
    net, data, settings = mlp((10,), 1), table(), RSO(cycles=3, batch_size=100)
    history, kept = History(), None
    for row in train(net, data, settings, loss=squares):
        history.append(row)
        if row.is_cycle and row.cycle == 1:
            net[2].requires_grad_(False)
            kept = net[2].weight.clone()
        if row.cycle == 2 and row.layer == "0.weight":
            net[0].bias.requires_grad_(False)
    assert kept is not None and torch.equal(net[2].weight, kept)
    assert [row.layer for row in history.rows[5:]] == ["0.weight", "", "0.weight", ""]


def test_a_cycle_goes_on_with_the_sweeps_that_it_has_begun_with() -> None:
    net, data, settings = mlp((10,), 1), table(), RSO(cycles=2, batch_size=100)
    rows = list(islice(train(net, data, settings, loss=squares), 2))
    words = "has begun with sweeps of 2.weight, 2.bias cannot go on as one of 0.weight, 0.bias"
    with pytest.raises(ValueError, match=words):
        fit(net, data, replace(settings, direction="forward"), History(rows), loss=squares)
    net[2].requires_grad_(False)
    with pytest.raises(ValueError, match=words):
        fit(net, data, settings, History(rows), loss=squares)
    assert len(rows) == 2


def test_all_is_frozen_between_two_cycles() -> None:
    net, data = mlp((10,), 1), table()
    sitting = train(net, data, RSO(cycles=2, batch_size=100), loss=squares)
    list(islice(sitting, 5))
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no weights to search: all of its parameters are frozen"):
        next(sitting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_any_shape_and_type_are_searched(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net, data = Mixed().to(dtype), load("digits").to(dtype)
    before = {name: weight.clone() for name, weight in net.named_parameters()}
    rows = list(train(net, data, RSO(cycles=1, batch_size=60, seed=1)))
    assert rows[-1].steps == count_weights(net) == 2 * 8 * 3 + 2 + 32 + 170 + 1
    for name, weight in net.named_parameters():
        assert weight.dtype == dtype and not torch.equal(weight, before[name]), name
    losses = [row.train_loss for row in rows]
    assert losses[-1] < losses[0]


def test_initialise_knows_the_scales_of_norms_of_any_shape() -> None:
    net = nn.ModuleDict(
        {"mixed": Mixed(), "slope": nn.PReLU(), "batch": nn.BatchNorm1d(3), "group": nn.GroupNorm(1, 3)}
    )
    nn.init.normal_(net["mixed"].norm.weight)
    initialise(net, 3)
    for norm in (net["mixed"].norm, net["batch"], net["group"]):
        assert (norm.weight == 1).all() and not norm.bias.any()
    assert net["slope"].weight.item() == 0.25 and net["mixed"].temperature.item() == 1
    assert net["mixed"].along.weight.std().item() == pytest.approx((2 / 24) ** 0.5, rel=0.3)
    assert not net["mixed"].along.bias.any()


def test_algorithm_1_goes_on_with_the_weights_that_there_are() -> None:
    x = torch.randn(32, 2)
    y = (x - x.mean()) / x.std() @ torch.tensor([[1.0], [-2.0]])
    loss = lambda net, x, y: (net(x) - y).square().mean()  # noqa: E731
    for initial in (True, False):
        net = nn.Linear(2, 1)
        net.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        net.bias.data.zero_()
        algorithm_1(net, loss, x, y, cycles=1, batch_size=32, initialise=initial)
        there = torch.equal(net.weight.data, torch.tensor([[1.0, -2.0]]))
        assert there is not initial


def test_algorithm_1_moves_a_weight_that_is_alone() -> None:
    """The deviation of one number is none."""
    x = torch.randn(32, 1)
    net, loss = nn.Linear(1, 1), lambda net, x, y: (net(x) - y).square().mean()
    algorithm_1(net, loss, x, 3 * (x - x.mean()) / x.std(), cycles=60, batch_size=32)
    assert net.weight.item() == pytest.approx(3, abs=0.2)


def test_types_of_data_and_net_that_differ_say_what_to_call() -> None:
    data = table()
    with pytest.raises(ValueError, match=r"call .to\(torch.float64\) on the data, or .to\(torch.float32\) on the net"):
        next(train(mlp(data.shape, 1).double(), data, RSO(batch_size=100), loss=squares))
    with pytest.raises(ValueError, match=r"is torch.bfloat16: only torch.float32 and torch.float64 are searched"):
        next(train(mlp(data.shape, 1).bfloat16(), data, RSO(batch_size=100), loss=squares))
    with pytest.raises(ValueError, match=r"a models.Net takes images \[N, C, H, W\], not rows of the shape \(10,\)"):
        next(train(one_conv((1, 4, 4), 1), data, RSO(batch_size=100), loss=squares))


def test_nets_that_cannot_change_say_so() -> None:
    data, settings = table(), RSO(cycles=1, batch_size=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled: Any = torch.jit.script(mlp(data.shape, 1))
    with pytest.raises(ValueError, match=r"the net is compiled by torch\.jit"):
        fit(compiled, data, settings, loss=squares)
    with torch.inference_mode():
        net = mlp(data.shape, 1)
    with pytest.raises(ValueError, match=r"0\.weight of the net was made in torch\.inference_mode"):
        fit(net, data, settings, loss=squares)
    rows: Any = []
    for run in (fit, lambda *given, **named: next(train(*given, **named))):
        with pytest.raises(TypeError, match="history must be a rso_lib History, not a list"):
            run(mlp(data.shape, 1), data, settings, rows, loss=squares)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_sgd_has_its_gradient_wherever_it_is_called(around: Callable[[], Any]) -> None:
    data, settings, net = table(), SGD(epochs=1, batch_size=100, warmup=0, rate=0.01), mlp((10,), 1)
    other = copy.deepcopy(net)
    expected = sgd.fit(net, data, settings, loss=squares, progress=False)
    with around():
        found = sgd.fit(other, data, settings, loss=squares, progress=False)
    assert found.last.test_loss == expected.last.test_loss
    with pytest.raises(ValueError, match="all parameters of the net are frozen"):
        sgd.fit(net.requires_grad_(False), data, settings, loss=squares, progress=False)


# Data from tensors and datasets


def test_tensors_are_split_and_standardised() -> None:
    x, y = torch.randn(100, 3, dtype=torch.float64) * torch.tensor([1, 10, 0]) + 5, torch.arange(100)
    before = x.clone()
    data = Data.from_tensors(x, y, val=0.1, test=30, seed=4, name="mine")
    assert (data.name, data.shape, len(data.classes)) == ("mine", (3,), 100)
    assert [len(part) for part in data.parts.values()] == [60, 10, 30]
    assert sorted(torch.cat([part.labels for part in data.parts.values()]).tolist()) == list(range(100))
    train_rows = x[data.train.labels].numpy()
    np.testing.assert_allclose(data.mean, train_rows.mean(0))
    np.testing.assert_allclose(data.std, train_rows.std(0), atol=1e-12)
    for part in data.parts.values():
        scale = np.where(train_rows.std(0) > 1e-9, train_rows.std(0), 1)
        np.testing.assert_allclose(part.images, (x[part.labels].numpy() - train_rows.mean(0)) / scale, atol=1e-12)
    assert torch.equal(x, before)
    again, other = (Data.from_tensors(x, y, val=0.1, test=30, seed=seed) for seed in (4, 5))
    assert torch.equal(again.train.labels, data.train.labels) and not torch.equal(other.train.labels, data.train.labels)
    held = Data.from_tensors(x, y, test=(x, y))
    assert torch.equal(x, before) and not torch.equal(held.test.images, x)
    raw = Data.from_tensors(x, y, standardise=False)
    assert torch.equal(raw.test.images, x[raw.test.labels]) and [len(p) for p in raw.parts.values()] == [72, 8, 20]


def test_parts_of_their_own_and_bytes() -> None:
    x = torch.arange(20 * 2 * 3 * 3).view(20, 2, 3, 3).remainder(256).byte()
    own = (x[:5], torch.arange(5))
    data = Data.from_tensors(x, torch.arange(20) % 4, test=own, val=0, classes=["a", "b", "c", "d", "e"])
    assert [len(part) for part in data.parts.values()] == [20, 0, 5] and data.shape == (2, 3, 3)
    pixels = data.test.images.double() * data.std[:, None, None] + data.mean[:, None, None]
    np.testing.assert_allclose(pixels * 255, x[:5], atol=1e-4)
    assert data.test.labels.tolist() == [0, 1, 2, 3, 4] and data.classes[4] == "e"
    moved = data.to(torch.float64)
    assert moved.train.images.dtype == moved.mean.dtype == torch.float64 and moved.train.labels.dtype == torch.int64


class Rows(Dataset[Any]):
    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, k: int) -> Any:
        return self.rows[k]


def test_a_dataset_is_read_once() -> None:
    x, y = torch.randn(30, 2, 4, 4), torch.arange(30) % 3
    data = Data.from_dataset(TensorDataset(x, y), seed=2)
    expected = Data.from_tensors(x, y, seed=2)
    for part, other in zip(data.parts.values(), expected.parts.values(), strict=True):
        assert torch.equal(part.images, other.images) and torch.equal(part.labels, other.labels)
    rows = Rows([(np.float32([k, 1]), k % 2) for k in range(10)])
    rows.classes = ["even", "odd"]  # type: ignore[attr-defined]
    data = Data.from_dataset(rows, test=Rows([([0.0, 2.0], 1)]), val=0)
    assert data.classes == ("even", "odd") and data.name == "Rows"
    assert len(data.train) == 10 and data.test.labels.tolist() == [1] and float(data.test.images[0, 1]) == 1.0


class OneBuffer(Dataset[Any]):
    """Items that lie in the same memory, one after the other."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(2)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return self.buffer.copy_(torch.tensor([k, -k])), k % 2


def test_items_that_share_their_memory_are_read_one_by_one() -> None:
    data = Data.from_dataset(OneBuffer(), val=0, test=0, standardise=False)
    assert sorted(data.train.images[:, 0].tolist()) == [*range(10)]


class Picture:
    """An image of PIL, which torch would read with its channels as columns."""


Picture.__module__ = "PIL.Image"
ROWS, LABELS = torch.randn(10, 3), torch.arange(10) % 2
WRONG_DATA: dict[str, tuple[Callable[[], object], str]] = {
    "numbers": (lambda: Data.from_tensors(ROWS, LABELS + 10**9), "y has the label 1,000,000,00.*call .float"),
    "no_rows": (lambda: Data.from_tensors(ROWS[:0], LABELS[:0]), "x has no rows"),
    "sparse": (lambda: Data.from_tensors(ROWS.to_sparse(), LABELS), "x must be a dense tensor, not torch.sparse_coo"),
    "array": (lambda: Data.from_tensors(ROWS.numpy(), LABELS), "x must be a tensor, not a ndarray: call torch.as_t"),
    "list": (lambda: Data.from_tensors(ROWS, [0] * 10), "y must be a tensor, not a list"),
    "whole": (lambda: Data.from_tensors(ROWS.long(), LABELS), r"x must be float32.*, not torch.int64: call .float\(\)"),
    "half": (lambda: Data.from_tensors(ROWS.bfloat16(), LABELS), r"x must be float32, .*, not torch.bfloat16"),
    "half_y": (lambda: Data.from_tensors(ROWS, LABELS.half()), "y must be torch.int64, float32 or float64, not .*16"),
    "nan": (lambda: Data.from_tensors(ROWS / 0, LABELS), "NaN or infinite values in x"),
    "nan_y": (lambda: Data.from_tensors(ROWS, torch.full((10,), torch.nan)), "NaN or infinite values in y"),
    "shorter": (lambda: Data.from_tensors(ROWS, LABELS[:9]), r"y as many labels .* \(10, 3\) and \(9,\)"),
    "flat": (lambda: Data.from_tensors(ROWS[:, 0], LABELS), r"x must be images .* or rows \[N, F\], .* \(10,\)"),
    "negative": (lambda: Data.from_tensors(ROWS, LABELS - 1), r"y must be at least 0, not -1; .* call .float\(\)"),
    "high": (lambda: Data.from_tensors(ROWS, LABELS + 2, classes=3), "y must be 0 to 2, as there are 3 classes, not 3"),
    "high_test": (
        lambda: Data.from_tensors(ROWS, LABELS, test=(ROWS, LABELS + 9), classes=["a", "b"]),
        "y of test must be 0 to 1, as there are 2 classes, not 10",
    ),
    "names": (lambda: Data.from_tensors(ROWS, LABELS, classes="ab"), "classes must be a whole number or a list of nam"),
    "columns": (lambda: Data.from_tensors(ROWS, ROWS, classes=2), "classes must have a name for each of the 3 columns"),
    "share": (lambda: Data.from_tensors(ROWS, LABELS, val=1.5), "val must be a share of the rows, .*, not 1.5"),
    "word": (lambda: Data.from_tensors(ROWS, LABELS, test="a"), "test must be a number, not 'a'"),
    "less": (lambda: Data.from_tensors(ROWS, LABELS, val=-1), "val must be at least 0, not -1"),
    "all": (lambda: Data.from_tensors(ROWS, LABELS, val=5, test=0.5), "val and test must leave some of the 10 rows"),
    "pair": (lambda: Data.from_tensors(ROWS, LABELS, val=(ROWS,)), r"val must be a pair \(x, y\)"),
    "other_test": (
        lambda: Data.from_tensors(ROWS, LABELS, test=(ROWS[:, :2], LABELS)),
        "images of the test part are 2, torch.float32, on cpu, but those of the train part are 3",
    ),
    "bytes": (
        lambda: Data.from_tensors(ROWS.byte(), LABELS, test=(255 * ROWS, LABELS)),
        "x of test must be of the type of x, which is torch.uint8, not torch.float32: bytes are divided by 255",
    ),
    "no_bytes": (
        lambda: Data.from_dataset(TensorDataset(ROWS, LABELS), val=TensorDataset(ROWS.byte(), LABELS)),
        "x of val must be of the type of x, which is torch.float32, not torch.uint8",
    ),
    "other_targets": (
        lambda: Data.from_tensors(ROWS, ROWS, test=(ROWS, ROWS[:, :2])),
        "labels of the test part are 2, torch.float32, on cpu, but those of the train part are 3",
    ),
    "no_length": (lambda: Data.from_dataset(iter([])), r"dataset must have a length and items \(x, y\)"),
    "empty": (lambda: Data.from_dataset(Rows([])), "dataset has no items"),
    "no_pair": (lambda: Data.from_dataset(Rows([1])), r"item 0 of dataset is no pair \(x, y\) .*TypeError"),
    "a dict": (
        lambda: Data.from_dataset(Rows([{"image": torch.ones(2), "label": 1}])),
        r"item 0 of dataset is no pair \(x, y\) .*a dict with image, label\): .* a list of such pairs",
    ),
    "picture": (lambda: Data.from_dataset(Rows([(Picture(), 1)])), r"item 0 of dataset .* of PIL\): .*ToTensor\(\)"),
    "sizes": (
        lambda: Data.from_dataset(Rows([(torch.ones(2), 1), (torch.ones(3), 1)])),
        r"x of item 1 of dataset is \[3\] of torch.float32, but that of item 0 is \[2\]",
    ),
}


@pytest.mark.parametrize("kind", WRONG_DATA)
def test_wrong_data_are_named_with_the_remedy(kind: str) -> None:
    make, message = WRONG_DATA[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    data = Data.from_tensors(ROWS, LABELS, seed=np.int64(3), val=np.float32(0.2), classes=np.int64(2))
    assert torch.equal(data.train.images, Data.from_tensors(ROWS, LABELS, seed=3, val=0.2).train.images)
    assert repr(SGD(epochs=np.int64(2), rate=np.float32(0.5), warmup=0)) == repr(SGD(epochs=2, rate=0.5, warmup=0))


# Runs in folders


class Stateful(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        pass


def stateful(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Stateful(shape[0], classes)


class Forgetful(nn.Linear):
    """Its passes change a buffer that no checkpoint has."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("constant", torch.ones(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return super().forward(x)


def forgetful(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Forgetful(shape[0], classes)


def of_sgd(folder: Path, net: str, **options: Any) -> Any:
    settings = SGD(epochs=1, batch_size=100, warmup=0)
    return train_seeds(folder, net, table(), settings, 1, loss=squares, progress=False, **options)


def of_rso(folder: Path, net: str, **options: Any) -> Any:
    return begin(folder, net=net, settings=RSO(cycles=1, batch_size=100), **options)


@pytest.mark.parametrize("start", [of_rso, of_sgd])
def test_a_state_that_no_checkpoint_has_is_named(tmp_path: Path, start: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"_extra_state of the net is no tensor, .* register it as a buffer"):
        start(tmp_path / "run", f"{HERE}:stateful")
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match=r"seen of the net changes in a pass, .* with persistent=True"):
        start(tmp_path / "run", f"{HERE}:forgetful")


@pytest.mark.parametrize("start", [of_rso, of_sgd])
def test_options_of_a_net_are_plain_values(tmp_path: Path, start: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"width of .*:mlp must be a number, .*, not tensor"):
        start(tmp_path / "run", f"{HERE}:mlp", net_options={"width": torch.tensor(2)})
    assert not (tmp_path / "run").exists()
    start(tmp_path / "run", f"{HERE}:mlp", net_options={"width": np.int64(1)})
    assert '"width": 1' in (tmp_path / "run" / "settings.json").read_text()


def test_the_seed_of_the_split_may_be_numpys(tmp_path: Path) -> None:
    run = of_rso(tmp_path, f"{HERE}:mlp", data_seed=np.int64(1), val_size=np.int64(9))
    assert (run.settings["data_seed"], run.settings["val_size"]) == (1, 9)


OWN: dict[str, Any] = {
    "dataset": f"{HERE}:table",
    "net": f"{HERE}:mlp",
    "loss": squares,
    "metric": f"{HERE}:minus_error",
}


def begin(folder: Path, **changed: Any) -> runs.Run:
    settings = RSO(cycles=4, batch_size=100, seed=3)
    return runs.start(folder, **{**OWN, "progress": False, "settings": settings, **changed})


def test_a_run_of_own_net_data_loss_and_metric_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole = begin(tmp_path / "whole")
    assert whole.settings["loss"] == f"{HERE}:squares" and whole.scored["metric"] is minus_error
    of_train = runs.train

    def stopped(*given: Any, **options: Any) -> Any:
        for k, item in enumerate(of_train(*given, **options)):
            if k == 60:
                raise KeyboardInterrupt
            yield item

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="the same command goes on"):
        patch.setattr(runs, "train", stopped)
        begin(tmp_path / "cut")
    words = ["--dataset", OWN["dataset"], "--net", OWN["net"], "--loss", f"{HERE}:squares"]
    cli.main([str(tmp_path / "cut"), *words])
    again = runs.load(tmp_path / "cut")
    for name, value in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], value)
    assert [repr(replace(r, seconds=0)) for r in again.history.rows] == [
        repr(replace(r, seconds=0)) for r in whole.history.rows
    ]
    said = capsys.readouterr().out
    assert f"test minus_error, final            {whole.history.last.test_accuracy:.4f}\n" in said
    data = again.data()
    found = scores(again.net, data, **again.scored)
    assert {name: getattr(whole.history.last, name) for name in found} == found
    with pytest.raises(ValueError, match=r"metric is '.*:minus_error' there, not 'accuracy'"):
        begin(tmp_path / "cut", metric="accuracy")
    with pytest.raises(ValueError, match=r"loss must be a function with a name of its own"):
        begin(tmp_path / "cut", loss=lambda z, y: squares(z, y))


WRONG_NAMES = {
    "net": ({"net": f"{HERE}:mpl"}, "net .*:mpl cannot be imported .*AttributeError"),
    "module": ({"loss": "no_such_module:loss"}, "loss no_such_module:loss cannot be imported .*No module named"),
    "loss": ({"loss": "squared"}, "loss must be one of cross_entropy, module:function or a callable, not 'squared'"),
    "no_function": ({"metric": f"{HERE}:HERE"}, "metric .*:HERE is a str; it must be a function"),
    "no_net": ({"net": f"{HERE}:table"}, "test_own:table returned a Data; it must return a torch.nn.Module"),
    "no_data": ({"dataset": f"{HERE}:mlp"}, "dataset|test_own:mlp \\(0, None\\) raised TypeError: .*int"),
    "no_option": (
        {"net": f"{HERE}:Mixed", "net_options": {"wide": 3}},
        "Mixed has no options, and .* gives it wide",
    ),
    "option": ({"net_options": {"wide": 3}}, "an option of .*:mlp must be one of width, not 'wide'"),
}


@pytest.mark.parametrize("kind", WRONG_NAMES)
def test_names_of_functions_that_there_are_not(tmp_path: Path, kind: str) -> None:
    changed, message = WRONG_NAMES[kind]
    with pytest.raises((ValueError, TypeError), match=message):
        begin(tmp_path / "run", **changed)
    assert not (tmp_path / "run").exists()


def test_a_named_net_follows_from_the_seed_of_its_run() -> None:
    torch.manual_seed(1)
    first = build_net(f"{HERE}:mlp", (10,), 1, 5, width=3)
    torch.manual_seed(2)
    again, other = build_net(f"{HERE}:mlp", (10,), 1, 5, width=3), build_net(f"{HERE}:mlp", (10,), 1, 6, width=3)
    assert torch.equal(first[0].weight, again[0].weight) and not torch.equal(first[0].weight, other[0].weight)


def test_a_net_with_frozen_and_tied_weights_in_a_folder(tmp_path: Path) -> None:
    settings = RSO(cycles=1, batch_size=100)
    changed = {"dataset": "digits", "net": f"{HERE}:Tuned", "loss": "cross_entropy", "metric": "accuracy"}
    run = begin(tmp_path, settings=settings, **changed)
    assert run.net.second.weight is run.net.first.weight and not run.net.frozen.weight.requires_grad
    assert run.finished and runs.resume(tmp_path).finished


def test_the_weights_of_the_best_cycle_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by a run that is taken up behind its best cycle; a run from before says that it has not kept them."""
    run = begin(tmp_path / "run", settings=RSO(cycles=6, batch_size=50, schedule="constant"))
    best = run.history.best
    assert best.cycle < 6
    data = run.data()
    for which, row in ((True, best), (False, run.history.last)):
        net = runs.load(tmp_path / "run", best=which).net
        found = scores(net, data, **run.scored)
        assert found == {name: getattr(row, name) for name in found}
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for older in ({"best": None}, {"best": {**content["best"], "cycle": 1 + best.cycle}}):
        torch.save({**content, **older}, tmp_path / "run" / "checkpoint.pt")
        with pytest.raises(ValueError, match=f"has not the weights of cycle {best.cycle}, which was made before"):
            runs.load(tmp_path / "run", best=True)
    without = begin(tmp_path / "without", val_size=0)
    assert without.best is None
    with pytest.raises(ValueError, match="there is no validation part to choose on"):
        runs.load(tmp_path / "without", best=True)


# A live run, and README


def test_a_live_run_of_own_net_data_loss_and_metric() -> None:
    data, curves = table(), {}
    for metric, words in ((minus_error, "validation minus_error -"), (accuracies, "updates: validation loss")):
        settings = RSO(cycles=2, batch_size=100)
        run = LiveRun(f"{HERE}:mlp", data, settings, loss=squares, metric=metric)
        run.start()
        assert run.wait(lambda run: run.state == FINISHED)
        torch_net = build_net(f"{HERE}:mlp", data.shape, 1, 0)
        expected = fit(torch_net, data, settings, loss=squares, metric=metric, progress=False)
        assert run.history.last.val_loss == expected.last.val_loss == pytest.approx(run.curve[-1].loss)
        assert words in describe_score(run) and "nan" not in describe_score(run) + describe_state(run)
        assert draw_step(run)[0].startswith(b"\x89PNG")
        curves[metric] = Curves({"a": "black"}, {"a": "black"}, run)
        run.end()
    points = {"a": ([0.0, 1.0], [-3.0, -0.5])}
    drawn = curves[minus_error]
    assert drawn.png(points, {"a": ([0.0, 1.0], [2.0, 1.0])}, "full updates", False).startswith(b"\x89PNG")
    left, right = drawn.axes
    assert left.get_ylim() == (-4, 1) and left.get_ylabel() == "validation minus_error" and right.get_ylabel() == "loss"


class Tokens(nn.Module):
    """Numbers become one of nine tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return (4 + 2 * x).round().clamp(0, 8).long()


class Centred(nn.Module):
    """It keeps the mean of the first images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.mean(0)
        return x - self.mean


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (nn.Sequential(Tokens(), nn.Embedding(9, 1, max_norm=0.1), nn.Flatten()), "the net writes into 0.1.weight"),
        (Centred(), "0.mean of the net is None before the first pass"),
        (nn.LazyBatchNorm1d(affine=False), "0.running_mean of the net has no shape yet"),
    ],
    ids=["max_norm", "a buffer that is None", "a lazy buffer"],
)
def test_a_pass_that_changes_what_the_net_is_is_an_error(first: nn.Module, says: str) -> None:
    """At the second call, too: the check leaves nothing behind."""
    data = Data.from_tensors(torch.randn(20, 5), torch.arange(20) % 3, val=2, test=2)
    net = nn.Sequential(first, nn.Linear(5, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match=says):
            fit(net, data, RSO(batch_size=8), progress=False)


def test_a_last_image_that_is_scored_alone_is_tried_before_the_first_step() -> None:
    """`evaluate` takes 101 images as 100 and 1, and this batch norm takes no single image."""
    data = Data.from_tensors(torch.randn(160, 4), torch.arange(160) % 3, val=20, test=101)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"the net cannot take images of the shape 1×4 .* in eval mode"):
        next(train(net, data, RSO(batch_size=8)))
    data = replace(data, test=replace(data.test, images=data.test.images[:100], labels=data.test.labels[:100]))
    assert fit(net, data, RSO(cycles=1, batch_size=8), progress=False).last.is_cycle


def test_a_live_run_of_a_mixed_net_shows_all_its_weights() -> None:
    run = LiveRun(f"{HERE}:Mixed", load("digits"), RSO(cycles=1, batch_size=20))
    for _ in range(3):
        run.step()
    assert run.wait(lambda run: run.steps == 3)
    for name in ("temperature", "along.weight", "norm.weight", "out.bias"):
        run.last = run.last._replace(layer=name, index=0)
        assert draw_step(run)[0].startswith(b"\x89PNG")
    run.end()


def test_readmes_own_net_data_and_loss_run(project: Path, capsys: Any) -> None:
    """And come to what it says, to the rounding of other machines."""
    section = (project / "README.md").read_text().partition("## Your own net, data and loss")[2].partition("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    with warnings.catch_warnings(action="ignore"):
        exec(code[0], {})
    printed, said = float(capsys.readouterr().out), float(re.search(r"prints (-?[\d.]+)", section)[1])
    assert printed == pytest.approx(said, abs=0.03)


def test_a_change_of_the_users_code_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose loss was mended between two sittings is no run of one loss."""
    monkeypatch.syspath_prepend(tmp_path)
    module, folder = tmp_path / "loss_of_mine.py", tmp_path / "run"
    body = "def squares(outputs, targets):\n    return (outputs - targets).square().mean(1)\n"
    stop = "    CALLS.append(0)\n    if len(CALLS) == 30:\n        raise KeyboardInterrupt\n"
    module.write_text("CALLS = []\n" + body.replace("\n", f"\n{stop}", 1))
    begun = {"loss": "loss_of_mine:squares", "settings": RSO(cycles=1, batch_size=150)}
    with pytest.warns(UserWarning, match="stopped"):
        begin(folder, **begun)
    module.write_text(body)
    sys.modules.pop("loss_of_mine")
    with pytest.warns(UserWarning, match=r"may decide or round otherwise.*\n  own_code is .* there, not"):
        assert runs.resume(folder, progress=False).finished
    digests = [
        machine["own_code"]["loss"] for machine in json.loads((folder / "settings.json").read_text())["machines"]
    ]
    assert len({*digests}) == 2


@pytest.mark.parametrize("seeds", [1, 2])
def test_sgd_notices_a_change_of_the_users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    """In a run that is finished, and in one that gets another seed."""
    monkeypatch.syspath_prepend(tmp_path)
    module, loss = tmp_path / "loss_for_sgd.py", "loss_for_sgd:squares"
    settings, data = SGD(epochs=1, batch_size=100, warmup=0, rate=0.01), load("digits")

    def train(factor: int, seeds: int) -> None:
        sys.modules.pop("loss_for_sgd", None)
        wanted = "torch.nn.functional.one_hot(y, 10)"
        module.write_text(f"import torch\ndef squares(z, y): return {factor} * (z - {wanted}).square().mean(1)\n")
        train_seeds(tmp_path / "run", "one_conv", data, settings, seeds, loss=loss, progress=False)

    train(1, 1)
    train(1, 1)
    says = "finished, and was made with another loss of yours" if seeds == 1 else "own_code is .* there, not"
    with pytest.warns(UserWarning, match=says):
        train(2, seeds)


def scaled(factor: float) -> dict[str, Callable[..., Any]]:
    """A schedule, a distribution and a rule that have the name, and the source, of others."""
    return {
        "schedule": lambda cycle, cycles: factor,
        "distribution": lambda shape, rng: factor * torch.randn(shape, generator=rng),
        "rule": lambda scores: factor * argmin(scores),
    }


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("kind", ["schedule", "distribution", "rule"])
def test_another_function_of_the_same_name_is_noticed(tmp_path: Path, kind: str, finished: bool) -> None:
    def with_factor(factor: float) -> RSO:
        function = scaled(factor)[kind]
        function.__name__ = "mine"
        return RSO(cycles=1, batch_size=300, **{kind: function})

    begin(tmp_path, settings=with_factor(1.0))
    begin(tmp_path, settings=with_factor(1.0))
    if not finished:
        (tmp_path / "checkpoint.pt").unlink()
        (tmp_path / "history.csv").unlink()
    says = f"finished, and was made with another {kind} of yours" if finished else "own_code is .* there, not"
    with pytest.warns(UserWarning, match=says):
        begin(tmp_path, settings=with_factor(0.1))


def test_a_rule_that_draws_at_random_is_said_and_is_no_other_code(tmp_path: Path) -> None:
    def lucky(scores: Scores) -> torch.Tensor:
        return argmin(scores) * (torch.rand(len(scores.losses)) < 0.5)

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="rule lucky moves a weight otherwise when the same scores come again") as said:
        begin(tmp_path, settings=RSO(cycles=1, batch_size=300, rule=lucky))
        (tmp_path / "checkpoint.pt").unlink()
        (tmp_path / "history.csv").unlink()
        begin(tmp_path, settings=RSO(cycles=1, batch_size=300, rule=lucky))
    assert not [one for one in said if "own_code" in str(one.message)]


def test_functions_of_a_notebook_have_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = ModuleType("notebook_of_mine")
    monkeypatch.setitem(sys.modules, notebook.__name__, notebook)
    exec("def squares(z, y): return (z - y).square().mean(1)\ndef half(cycle, cycles): return 0.5", vars(notebook))
    settings = RSO(cycles=1, batch_size=300, schedule=notebook.half)
    assert begin(tmp_path, loss=notebook.squares, settings=settings).finished


# The same nets, losses and metrics by gradients


def test_sgd_follows_the_gradient_of_a_loss_of_ones_own(tmp_path: Path) -> None:
    """The regression above, and its folder, which names the loss and refuses another."""
    data, settings = table(), SGD(epochs=60, batch_size=100, rate=0.05, warmup=0, schedule="constant")
    torch.manual_seed(0)
    last = sgd.fit(mlp(data.shape, 1), data, settings, loss=squares, metric=minus_error, progress=False).last
    assert last.test_loss < 0.6 * float(data.test.labels.var())
    assert -1 < last.test_accuracy < 0
    of = {"net": f"{HERE}:mlp", "data": data, "settings": replace(settings, epochs=1), "seeds": 1, "progress": False}
    train_seeds(tmp_path / "run", **of, loss=squares, metric=f"{HERE}:minus_error")
    about = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert about["loss"] == f"{HERE}:squares" and about["metric"] == f"{HERE}:minus_error"
    with pytest.raises(ValueError, match=r"loss is .*squares.* there, not .*several"):
        train_seeds(tmp_path / "run", **of, loss=several, metric=minus_error)


def test_sgd_says_where_a_loss_has_no_gradient(tmp_path: Path) -> None:
    data = load("digits")
    with pytest.raises(ValueError, match="loss mistakes has no gradient"):
        train_seeds(tmp_path / "run", "one_conv", data, SGD(batch_size=100), 1, loss=mistakes, progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"loss mistakes has no gradient, .*: rso_lib.train does without one"):
        sgd.fit(one_conv((1, 8, 8)), data, SGD(epochs=1, batch_size=100, warmup=0), loss=mistakes, progress=False)
