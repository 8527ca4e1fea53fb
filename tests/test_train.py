"""The loops: what is reported, that runs repeat themselves and go on where they stopped, and any other module."""

import copy
import itertools
import math
import sys
import warnings
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from oracle import images, narrow, sample, visits
from torch import Tensor, nn
from tqdm import tqdm

from rso_lib.algorithm import choose, cross_entropy, one_hot, step
from rso_lib.data import Data, Split
from rso_lib.fit import fit
from rso_lib.history import History, Report
from rso_lib.models import Net, count_weights
from rso_lib.passes import calibrate
from rso_lib.proposals import generator, sigma
from rso_lib.settings import RSO
from rso_lib.train import Position, Step, evaluate, sweeps, train


def weights(net: nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in net.parameters()]


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(w, v) for w, v in zip(some, others, strict=True))


def bits(row: Report) -> list[object]:
    """The row as values that tell every float from every other, without the seconds."""
    values = {**vars(row), "seconds": 0.0}.values()
    return [v.hex() if isinstance(v, float) else v for v in values]


def toy(kind: str = "flat", count: int = 26) -> tuple[Net, Data]:
    """A net and images, in float32."""
    net, shape = narrow(kind)
    return net.float(), images(count, shape, dtype=torch.float32)


def steps_of(net: nn.Module, data: Data, settings: RSO, history: History | None = None) -> list[Step]:
    return [item for item in train(net, data, settings, history, steps=True) if isinstance(item, Step)]


# The order of a cycle

GROWING = {
    "head": ["head.linear.weight", "head.linear.bias"],
    "block5": [
        *("block5.conv.weight", "block5.norm.bias", "block5.norm.weight"),
        *("block5.shortcut.0.weight", "block5.shortcut.1.bias", "block5.shortcut.1.weight"),
    ],
    "block4": ["block4.conv.weight", "block4.norm.bias", "block4.norm.weight"],
    "block3": [
        *("block3.conv.weight", "block3.norm.bias", "block3.norm.weight"),
        *("block3.shortcut.0.weight", "block3.shortcut.1.bias", "block3.shortcut.1.weight"),
    ],
    "block2": ["block2.conv.weight", "block2.norm.bias", "block2.norm.weight"],
    "block1": ["block1.conv.weight", "block1.norm.bias", "block1.norm.weight"],
}


@pytest.mark.parametrize("level", ["weight", "layer"])
def test_sweeps_go_from_the_labels_to_the_input(level: str) -> None:
    net, _ = narrow("growing")
    plan = sweeps(net, RSO(level=level))
    assert [sweep.layer for sweep in plan] == [name for names in GROWING.values() for name in names]
    assert all(list(sweep.names) == [sweep.layer] for sweep in plan)
    assert [sweep.position for sweep in plan] == [5] * 2 + [4] * 6 + [3] * 3 + [2] * 6 + [1] * 3 + [0] * 3
    assert [sweep.number for sweep in plan] == list(range(23))
    assert sum(sweep.steps for sweep in plan) == count_weights(net)
    first, second, third = plan[:3]
    assert (first.before, second.before, third.before) == (0, first.steps, 0)


def test_sweeps_forward() -> None:
    net, _ = narrow("growing")
    expected = [name for layer in reversed(GROWING) for name in GROWING[layer]]
    assert [sweep.layer for sweep in sweeps(net, RSO(direction="forward"))] == expected


def test_the_network_is_one_sweep() -> None:
    net, _ = narrow("growing")
    [sweep] = sweeps(net, RSO(level="network"))
    assert sweep.layer == "network" and sorted(sweep.names) == sorted(name for name, _ in net.named_parameters())


class Custom(nn.Module):
    """Layers within layers, a batch norm, and names that blocks use too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.inner = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.conv(x)))


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_sweeps_of_another_module(direction: str) -> None:
    layers = [["conv.weight", "conv.bias"], ["inner.0.weight", "inner.0.bias"], ["out.weight", "out.bias"]]
    expected = layers if direction == "forward" else layers[::-1]
    plan = sweeps(Custom(), RSO(direction=direction))
    assert [sweep.layer for sweep in plan] == [name for layer in expected for name in layer]


# Reports

SCORES = ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy"]


@pytest.mark.parametrize("level", ["weight", "layer", "network"])
def test_every_sweep_is_reported_behind_its_steps(level: str) -> None:
    net, data = toy()
    settings = RSO(cycles=2, batch_size=8, level=level)
    pending: list[Step] = []
    rows: list[Report] = []
    for item in train(net, data, settings, steps=True):
        if isinstance(item, Step):
            pending.append(item)
        elif not item.is_cycle:
            losses = torch.stack([step.losses for step in pending])
            kept, plus, minus = np.bincount(losses.argmin(1), minlength=3)
            assert (item.steps, item.kept, item.plus, item.minus) == (len(pending), kept, plus, minus)
            assert item.train_loss == pytest.approx(float(losses.min(1).values.mean()), rel=1e-12)
            assert all(math.isnan(getattr(item, name)) for name in SCORES[1:])
            assert {step.layer for step in pending} == {item.layer}
            begin = Position(item.cycle - 1, len(rows) % len(sweeps(net, settings)))
            assert [step.at for step in pending] == [begin._replace(step=t + 1) for t in range(len(pending))]
            rows.append(item)
            pending = []
    layers = [sweep.layer for sweep in sweeps(net, settings)]
    assert [(row.cycle, row.layer) for row in rows] == [(cycle, layer) for cycle in (1, 2) for layer in layers]


@pytest.mark.parametrize("level", ["weight", "layer", "network"])
def test_every_cycle_is_reported_behind_its_sweeps(level: str) -> None:
    net, data = toy("growing")
    settings = RSO(cycles=2, batch_size=8, level=level, schedule=lambda cycle, cycles: 1.0 + cycle)
    rows: list[Report] = []
    seconds = 0.0
    for row in itertools.islice(train(net, data, settings), None if level == "weight" else 1):
        assert row.evaluations == 3 * row.steps and row.image_forwards == 8 * row.evaluations
        assert row.kept + row.plus + row.minus == row.steps
        assert row.seconds > seconds
        seconds = row.seconds
        if not row.is_cycle:
            rows.append(row)
            factor = row.cycle * (1 if level == "weight" else 0.1)
            expected = (
                sum(sigma(w) * w.numel() for w in net.parameters()) / count_weights(net)
                if level == "network"
                else sigma(net.get_parameter(row.layer))
            )
            assert row.sigma == pytest.approx(expected * factor)
            continue
        assert row.steps == count_weights(net)
        for name in ("steps", "kept", "plus", "minus"):
            assert sum(getattr(part, name) for part in rows) == getattr(row, name)
        assert row.sigma == pytest.approx(sum(part.sigma * part.steps for part in rows) / row.steps)
        calibrate(net, data.train.images)
        expected = [score for part in (data.train, data.val, data.test) for score in evaluate(net, part)]
        assert [getattr(row, name) for name in SCORES] == expected
        rows = []


@pytest.mark.parametrize("level", ["weight", "layer"])
def test_with_each_report_batch_norm_has_the_statistics_of_the_weights(level: str) -> None:
    """So that a net that is stopped or loaded behind any report can be used as it is."""
    net, data = toy("growing")
    for row in itertools.islice(train(net, data, RSO(cycles=1, batch_size=8, level=level)), 6):
        calibrated = copy.deepcopy(net)
        calibrate(calibrated, data.train.images)
        for (name, value), expected in zip(net.named_buffers(), calibrated.buffers(), strict=True):
            assert name.endswith("tracked") or torch.equal(value, expected), f"{name} behind {row.layer}"


def test_the_reported_loss_is_that_of_the_winners() -> None:
    """A candidate whose loss is not a number is not reported."""
    net, data = toy()
    broken = lambda shape, rng: torch.full(shape, 3e38)  # noqa: E731  # the products with it are infinite
    items = list(train(net, data, RSO(cycles=1, batch_size=26, distribution=broken), steps=True))
    assert all(math.isfinite(item.train_loss) for item in items if isinstance(item, Report))
    assert not all(item.losses.isfinite().all() for item in items if isinstance(item, Step))


def test_the_loss_falls() -> None:
    net, data = toy()
    calibrate(net, data.train.images)
    before = evaluate(net, data.train)[0]
    row = [*train(net, data, RSO(cycles=1, batch_size=26))][-1]
    assert row.train_loss < 0.7 * before


# Scores


@pytest.mark.parametrize("training", [False, True])
def test_evaluate_against_numpy(training: bool) -> None:
    """In parts of `CHUNK` images, with the statistics as they are, and without a trace."""
    net, shape = narrow("folded")
    data = images(2300, shape)
    calibrate(net, data.train.images)
    with torch.no_grad():
        logits = net.eval()(data.train.images).numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = data.train.labels.numpy()
    before = copy.deepcopy(net.train(training).state_dict())
    loss, accuracy = evaluate(net, data.train)
    assert loss == pytest.approx(-log_probabilities[np.arange(2300), labels].mean(), rel=1e-12)
    assert accuracy == (logits.argmax(1) == labels).mean()
    assert net.training == training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_empty_part_has_no_score() -> None:
    net, data = toy()
    empty = replace(data, val=Split(data.val.images[:0], data.val.labels[:0]))
    assert all(math.isnan(score) for score in evaluate(net, empty.val))
    row = [*train(net, empty, RSO(cycles=1, batch_size=26))][-1]
    assert math.isnan(row.val_accuracy) and row.test_accuracy > 0


# What a step leaves behind


@pytest.mark.parametrize("kind", ["flat", "growing"])
def test_a_step_changes_one_weight_or_no_bit(kind: str) -> None:
    """In float32, where w + Δ − Δ is not w."""
    net, data = toy(kind)
    before, rejected = weights(net), 0
    names = [name for name, _ in net.named_parameters()]
    for item in train(net, data, RSO(cycles=1, batch_size=13), steps=True):
        if not isinstance(item, Step):
            continue
        choice = int(choose(item.losses))
        rejected += choice == 0
        flat = before[names.index(item.layer)].view(-1)
        flat[item.index] += (0, item.delta, -item.delta)[choice]
        assert same(weights(net), before), item
    assert rejected > 5


@pytest.mark.parametrize("level", ["layer", "network"])
def test_a_rejected_joint_step_changes_no_bit(level: str) -> None:
    net, data = toy("growing")
    before, rejected = weights(net), 0
    for item in itertools.islice(train(net, data, RSO(cycles=1, batch_size=13, level=level), steps=True), 60):
        if isinstance(item, Step):
            kept = int(choose(item.losses)) == 0
            rejected += kept
            assert same(weights(net), before) == kept
            before = weights(net)
    assert rejected > 5


def test_training_leaves_gradients_and_the_callers_mode_alone() -> None:
    net, data = toy()
    for _ in itertools.islice(train(net, data, RSO(cycles=1, batch_size=13), steps=True), 5):
        assert torch.is_grad_enabled()
    assert all(w.requires_grad and w.grad is None and w.is_leaf for w in net.parameters())


# Runs repeat themselves


@pytest.mark.parametrize(("kind", "order"), [("flat", "output"), ("growing", "shuffled")])
def test_the_same_seed_gives_the_same_run(kind: str, order: str) -> None:
    first, data = toy(kind)
    second, other = copy.deepcopy(first), copy.deepcopy(first)
    rows = [bits(row) for row in train(first, data, RSO(cycles=2, batch_size=8, order=order, seed=1))]
    torch.manual_seed(99)
    assert [bits(row) for row in train(second, data, RSO(cycles=2, batch_size=8, order=order, seed=1))] == rows
    assert same(weights(first), weights(second))
    assert [bits(row) for row in train(other, data, RSO(cycles=2, batch_size=8, order=order, seed=2))] != rows


def test_seeds_draw_shuffles_visits_and_changes_anew() -> None:
    net, data = toy()
    runs = [
        steps_of(copy.deepcopy(net), data, RSO(cycles=2, batch_size=8, order="shuffled", seed=seed)) for seed in (0, 1)
    ]
    for get in (lambda step: step.index, lambda step: float(step.delta), lambda step: float(step.losses[0])):
        assert [get(step) for step in runs[0][:20]] != [get(step) for step in runs[1][:20]]
    half = len(runs[0]) // 2
    first, second = runs[0][:half], runs[0][half:]
    assert [step.index for step in first] != [step.index for step in second]
    assert len({float(step.delta) for step in runs[0]}) == len(runs[0])


# Runs go on where they stopped


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("flat", RSO(cycles=2, batch_size=8, weight_decay=0.001)),
        ("growing", RSO(cycles=2, batch_size=8, order="shuffled", direction="forward")),
        ("flat", RSO(cycles=2, batch_size=8, level="layer")),
        ("flat", RSO(cycles=2, batch_size=8, level="network")),
    ],
    ids=["paper", "shuffled_forward", "layer", "network"],
)
def test_a_run_goes_on_from_every_row_with_the_same_bits(kind: str, settings: RSO) -> None:
    """Only weights and rows are kept. Each sitting has to reach the unbroken run's next row: so all of them do."""
    start, data = toy(kind)
    unbroken = copy.deepcopy(start)
    saved = [weights(start)]
    rows = []
    for row in train(unbroken, data, settings):
        rows.append(row)
        saved.append(weights(unbroken))
    for done in range(len(rows)):
        net = copy.deepcopy(start)
        for weight, value in zip(net.parameters(), saved[done], strict=True):
            weight.data.copy_(value)
        row = next(train(net, data, settings, History(rows[:done])))
        assert bits(row) == bits(rows[done])
        assert same(weights(net), saved[done + 1])
        assert done == 0 or row.seconds > rows[done - 1].seconds
    assert list(train(net, data, settings, History(rows))) == []


@pytest.mark.parametrize(("sweep", "step", "last"), [(0, 1, 36), (0, 36, 36), (1, 3, 3), (2, 7, 54), (2, 12, 54)])
def test_a_run_goes_on_within_a_sweep(sweep: int, step: int, last: int) -> None:
    """With the same draws and slices, also behind the last step of a sweep."""
    net, shape = narrow("flat")
    data, settings = images(26, shape), RSO(cycles=1, batch_size=8)
    unbroken = copy.deepcopy(net)
    items = list(train(unbroken, data, settings, steps=True))
    expected = [item for item in items if isinstance(item, Step)]
    history, begun = History(), []
    sitting = train(net, data, settings, steps=True)
    for item in sitting:
        if isinstance(item, Report):
            history.append(item)
            begun.clear()
            continue
        begun.append(item)
        if item.at == Position(0, sweep, step):
            break
    sitting.close()
    rest_of = list(train(net, data, settings, history, steps=True, begun=begun))
    got = [item for item in rest_of if isinstance(item, Step)]
    counted = [(row.layer, row.steps, row.kept, row.plus) for row in rest_of if isinstance(row, Report)]
    assert counted == [(row.layer, row.steps, row.kept, row.plus) for row in items if isinstance(row, Report)][sweep:]
    rest = expected[len(expected) - len(got) :]
    assert got[0].at == (Position(0, sweep, step + 1) if step < last else Position(0, sweep + 1, 1))
    for a, b in zip(got, rest, strict=True):
        assert (a.at, a.layer, a.index, a.delta) == (b.at, b.layer, b.index, b.delta)
        torch.testing.assert_close(a.losses, b.losses, rtol=0, atol=1e-12)
    assert same(weights(net), weights(unbroken))


# Any other module


def test_another_module_takes_the_steps_of_algorithm_1() -> None:
    """The bits of algorithm.step, called by hand for every weight, and one warning."""
    data = images(26, (1, 4, 4))
    settings = RSO(cycles=2, batch_size=8, order="shuffled", distribution="uniform", weight_decay=0.01)
    net = Custom().double()
    by_hand = copy.deepcopy(net)
    with pytest.warns(UserWarning, match="not a models.Net") as warned:
        steps = steps_of(net, data, settings)
    assert len(warned) == 1

    number = iter(steps)
    plan = ["out.weight", "out.bias", "inner.0.weight", "inner.0.bias", "conv.weight", "conv.bias"]
    for cycle in range(2):
        for k, name in enumerate(plan):
            if name.endswith("weight"):
                layer = 2 - k // 2
                order = torch.randperm(26, generator=generator(0, cycle, 1, layer))
                x, labels, count = data.train.images[order], data.train.labels[order], 0
            w = by_hand.get_parameter(name).data
            rng = generator(0, cycle, 2, k)
            indices = visits(w.shape, "shuffled", rng)
            deltas = sample(settings, (len(indices),), rng) * (sigma(w) * (1, 0.1)[cycle])
            for index, delta in zip(indices, deltas, strict=True):
                w.view(-1)[index] *= 1 - 0.01
                batch = slice(count % 3 * 8, count % 3 * 8 + 8)
                loss = lambda b=batch, x=x, y=labels: cross_entropy(by_hand(x[b]), y[b])  # noqa: E731
                losses = step(loss, [w], [one_hot(w, index, delta.double())])
                taken = next(number)
                assert (taken.layer, taken.index) == (name, index)
                assert torch.equal(taken.losses, losses)
                count += 1
    assert next(number, None) is None
    assert same(weights(net), weights(by_hand))


def test_a_net_of_blocks_warns_of_nothing() -> None:
    net, data = toy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(itertools.islice(train(net, data, RSO(cycles=1, batch_size=8)), 1))


# fit, and what it cannot do


def test_a_long_run_writes_few_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a notebook, by a clock on which each look takes two minutes."""
    net, data = toy()
    now = itertools.count(step=120.0)
    monkeypatch.setattr("tqdm.std.time", lambda: next(now))
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    fit(net, data, RSO(cycles=10, batch_size=8))
    hours = next(now) / 3600
    assert hours > 10
    assert capsys.readouterr().err.count("\r") < 400


def test_fit_is_train_with_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    first, data = toy()
    second = copy.deepcopy(first)
    settings = RSO(cycles=2, batch_size=8)
    rows = list(train(first, data, settings))
    history = fit(second, data, settings, progress=False)
    assert [bits(row) for row in history.rows] == [bits(row) for row in rows]
    assert same(weights(first), weights(second))
    assert capsys.readouterr() == ("", "")


def test_fit_goes_on_with_a_history_and_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    first, data = toy()
    second = copy.deepcopy(first)
    settings = RSO(cycles=2, batch_size=8)
    rows = [bits(row) for row in train(first, data, settings)]
    history = History(list(itertools.islice(train(second, data, settings), 3)))
    assert fit(second, data, settings, history) is history
    assert [bits(row) for row in history.rows] == rows
    assert same(weights(first), weights(second))
    shown = capsys.readouterr()
    assert f"{2 * count_weights(first)}/{2 * count_weights(first)}" in shown.out + shown.err


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_an_interrupt_ends_fit_and_keeps_what_is_done(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same call goes on to the bits of an unbroken run. Training gives weights of another layout new memory."""
    net, data = toy()
    net = net.to(memory_format=layout)
    unbroken = copy.deepcopy(net)
    fit(unbroken, data, RSO(cycles=1, batch_size=8), progress=False)

    def interrupted(*arguments: object, **options: object) -> object:
        yield from itertools.islice(train(*arguments, **options), 50)
        raise KeyboardInterrupt

    monkeypatch.setitem(fit.__globals__, "train", interrupted)
    with pytest.warns(UserWarning, match="stopped before the end"):
        history = fit(net, data, RSO(cycles=1, batch_size=8), progress=False)
    assert [row.layer for row in history.rows] == ["head.linear.weight", "head.linear.bias"]
    monkeypatch.undo()
    fit(net, data, RSO(cycles=1, batch_size=8), history, progress=False)
    assert len(history.cycles.rows) == 1
    assert same(weights(net), weights(unbroken))


def test_an_interrupt_between_a_report_and_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the bar is drawn, say: then the report, the third and of a block, does not count."""
    net, data = toy("growing")
    other, described = copy.deepcopy(net), []

    def interrupted(bar: tqdm, *_: object, **__: object) -> None:
        described.append(bar)
        if len(described) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(tqdm, "set_description", interrupted)
    with pytest.warns(UserWarning, match="stopped before the end"):
        history = fit(net, data, RSO(cycles=1, batch_size=8), progress=False)
    rows = list(itertools.islice(train(other, data, RSO(cycles=1, batch_size=8)), 2))
    assert [bits(row) for row in history.rows] == [bits(row) for row in rows]
    for (name, value), expected in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert name.endswith("tracked") or torch.equal(value, expected), name


def test_a_batch_that_is_larger_than_the_training_part() -> None:
    net, data = toy()
    before = weights(net)
    with pytest.raises(
        ValueError, match=r"batch_size is 27, but the training part of toy has 26 images: .* at most 26"
    ):
        next(train(net, data, RSO(batch_size=27)))
    assert same(weights(net), before)
