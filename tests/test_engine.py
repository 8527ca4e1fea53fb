"""`train` makes the decisions of the plain algorithm (`oracle.plain`), in float64: every net, every setting.

After every step the three losses are compared, and the searched tensors bit for bit; at the end all weights.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from typing import Any

import pytest
import torch
from oracle import NARROW, Visit, best, images, narrow, plain, plan, stirred
from pairwise import crossed, halved
from steps import one_step, scorer
from torch import Tensor

from rso_lib import models
from rso_lib.algorithm import Batches
from rso_lib.data import Data, Split, load
from rso_lib.engine import kernels
from rso_lib.engine.block import BlockScorer
from rso_lib.engine.layers import HeadStage, bridge
from rso_lib.history import History, Report
from rso_lib.models import Block, Flow, Head, Net
from rso_lib.passes import calibrate
from rso_lib.proposals import sigma
from rso_lib.settings import RSO
from rso_lib.train import Position, Step, sweeps, train

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"cycles": 2},
    "inverted": {"order": "input", "direction": "forward", "distribution": "uniform", "weight_decay": 0.01},
    "many_slices": {"order": "shuffled", "distribution": "template", "weight_decay": 0.01, "batch_size": 4},
    "whole_set": {"order": "shuffled", "direction": "forward", "batch_size": 26, "seed": 3},
    "layer": {"level": "layer", "direction": "forward", "weight_decay": 0.01},
    "layer_templates": {"level": "layer", "distribution": "template", "batch_size": 13},
    "network": {"level": "network", "distribution": "uniform", "weight_decay": 0.01},
    "neurons": {"strategy": "neuron", "weight_decay": 0.01},
    "neurons_shuffled": {"strategy": "neuron", "order": "shuffled", "direction": "forward", "batch_size": 4},
    "neurons_smallest": {"strategy": "neuron", "direction": "forward", "cache": "input"},
    "layers": {"strategy": "layer", "distribution": "uniform"},
    "layers_shuffled": {"strategy": "layer", "order": "shuffled", "weight_decay": 0.01, "batch_size": 13},
    "mixed": {"order": "shuffled", "direction": "forward", "distribution": "uniform", "weight_decay": 0.01},
}
JOINT_STEPS = 6
"""Steps of each sweep at the joint levels here; `test_joint_levels_through_whole_cycles` makes all."""

REAL: dict[str, Callable[[], Net]] = {
    "one_conv": lambda: models.one_conv((1, 8, 8), 3),
    "two_conv": lambda: models.two_conv((1, 8, 8), 3),
    "mnist_net": lambda: models.mnist_net((1, 8, 8), 3),
    "mnist_net of the text": lambda: models.mnist_net((1, 8, 8), 3, pool_last=True, head="mean"),
    "depth 3": lambda: models.cifar_net(3, (3, 5, 4), 3),
    "depth 5": lambda: models.cifar_net(5, (3, 5, 4), 3),
    "depth 10": lambda: models.cifar_net(10, (3, 5, 4), 3),
    "depth 10 of the text": lambda: models.cifar_net(10, (3, 5, 4), 3, pool_last=True, head="mean"),
}


def settings_of(name: str) -> RSO:
    return RSO(**{"cycles": 1, "batch_size": 8, **SETTINGS[name]})


def history_before(net: Net, settings: RSO, cycle: int, sweep: int) -> History:
    """As much of a history as `train` asks for in order to begin at a sweep: which rows are there."""
    layers = [sweep.layer for sweep in sweeps(net, settings)]
    rows = [(c, layer) for c in range(cycle) for layer in [*layers, ""]] + [(cycle, layer) for layer in layers[:sweep]]
    nothing = dict.fromkeys(("steps", "kept", "plus", "minus", "evaluations", "image_forwards"), 0)
    return History([Report(cycle=c + 1, layer=layer, sigma=0.0, seconds=0.0, **nothing) for c, layer in rows])


def engine_steps(net: Net, data: Data, settings: RSO, at: tuple[int, int, int] = (0, 0, 0)) -> Iterator[Step]:
    """The steps of `train` from a position of the run on."""
    zeros = torch.zeros(len(settings.candidates), dtype=torch.float64, device=data.train.images.device)
    begun = [Step(Position(), "", 0, zeros[0], zeros, zeros[0])] * at[2]
    items = train(net, data, settings, history_before(net, settings, *at[:2]), steps=True, begun=begun)
    return (item for item in items if isinstance(item, Step))


def rounding_chooses(net: Net, name: str) -> bool:
    """Batch norm takes a shortcut's shift out again: all three losses are the same, whatever the shift."""
    return name.endswith("shortcut.1.bias") and net.get_submodule(name.split(".")[0]).norm is not None


def compare(
    net: Net,
    data: Data,
    settings: RSO,
    at: tuple[int, int, int] = (0, 0, 0),
    count: int | None = None,
    ties: bool = False,
) -> list[Visit]:
    """Train two copies of the net side by side, `count` steps or to the end. Returns the visits.

    ties  where the oracle's losses of the two decisions are one number but for rounding, its copy follows the engine's
    """
    fast, slow = copy.deepcopy(net), copy.deepcopy(net)
    steps = islice(engine_steps(fast, data, settings, at), count)
    visits = []
    for step, visit in zip(steps, islice(plain(slow, data, settings, *at), count), strict=True):
        visits.append(visit)
        compare_step(step, visit)
        for name in plan(net, settings)[step.at.sweep][1]:
            searched, expected = fast.get_parameter(name).data, slow.get_parameter(name).data
            if rounding_chooses(net, step.layer):
                assert not (visit.losses - visit.losses[0]).abs().max() > 1e-12
                expected.copy_(searched)
            if settings.strategy != "sequential":  # some more steps have been made at once
                searched, expected = searched.view(-1)[step.index], expected.view(-1)[step.index]
            if ties and is_tie(step, visit):
                expected.copy_(searched)
            assert torch.equal(searched, expected), (step, visit)
    if settings.strategy != "sequential" and count is not None:
        return visits
    for name, weight in fast.named_parameters():
        assert torch.equal(weight, slow.get_parameter(name)), name
    return visits


def is_tie(step: Step, visit: Visit) -> bool:
    """Whether the candidate that the engine has kept is as good as the oracle's, but for rounding."""
    chosen = [0, 1, -1].index(int(step.choice))
    return bool((visit.losses[chosen] - visit.losses[visit.choice]).abs() < 1e-13)


def compare_step(step: Step, visit: Visit) -> None:
    assert (step.layer, step.index) == (visit.layer, None if isinstance(visit.where, slice) else visit.where)
    losses = step.losses.cpu()
    assert losses.dtype == torch.float64
    finite = visit.losses.isfinite()
    assert torch.equal(losses.isfinite(), finite), (step, visit)
    torch.testing.assert_close(losses[finite], visit.losses[finite], rtol=0, atol=1e-11)


# The table: every net, every setting


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kind", "name"), halved([*NARROW], [name for name in SETTINGS if name != "mixed"]))
def test_narrow_nets_through_a_cycle(kind: str, name: str, device: str) -> None:
    net, shape = narrow(kind)
    net, data, settings = net.to(device), images(26, shape, device=device), settings_of(name)
    last = settings.cycles - 1
    if settings.level == "weight":
        assert len(compare(net, data, settings, (last, 0, 0))) == models.count_weights(net)
        return
    for sweep in range(len(plan(net, settings))):
        assert len(compare(net, data, settings, (last, sweep, 0), JOINT_STEPS)) >= 1


LOOPS = ["compiled", "torch"]


@pytest.fixture(params=LOOPS)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways through the inner loops, which differ for 16 and 32 channels."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "load_compiled", lambda: None)
    elif not kernels.load_compiled():
        pytest.skip("no C++ compiler")
    return request.param


@pytest.mark.parametrize(("kind", "loops"), halved([*REAL], LOOPS), indirect=["loops"])
def test_real_nets_at_every_tensor(kind: str, loops: str) -> None:
    compare_at_every_tensor(kind, "mixed", 5)


@pytest.mark.parametrize("kind", REAL)
def test_real_nets_between_two_output_channels(kind: str) -> None:
    compare_at_every_tensor(kind, "paper", 4)


@pytest.mark.parametrize(
    ("kind", "name", "at_once", "loops"),
    crossed(["mnist_net", "depth 5"], ["neurons_smallest", "layers"], [1, 7], LOOPS),
    indirect=["loops"],
)
def test_real_nets_where_steps_do_not_see_each_other(
    kind: str, name: str, at_once: int, loops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning of each sweep, over the end of batch norm's of 16 channels."""
    monkeypatch.setattr(BlockScorer, "candidates_at_once", lambda *_: at_once)
    net, settings = stirred(REAL[kind]()), settings_of(name)
    data = images(20, (3, 5, 4) if "depth" in kind else (1, 8, 8))
    for sweep in range(len(plan(net, settings))):
        compare(net, data, settings, (0, sweep, 0), 18)


@pytest.mark.parametrize(("kind", "name"), halved([*REAL], ["layer", "network"]))
def test_real_nets_at_the_joint_levels(kind: str, name: str) -> None:
    compare_at_every_tensor(kind, name, 2)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("name", ["paper", "mixed", "layer", "network"])
@pytest.mark.parametrize("kind", REAL)
def test_real_nets_on_a_gpu(kind: str, name: str, device: str) -> None:
    compare_at_every_tensor(kind, name, 3, device)


def compare_at_every_tensor(kind: str, name: str, count: int, device: str = "cpu") -> None:
    """The first steps of each sweep, or at the weight level those around a boundary of two output channels."""
    net = stirred(REAL[kind]()).to(device)
    data = images(20, (3, 5, 4) if "depth" in kind else (1, 8, 8), device=device)
    settings = settings_of(name)
    for sweep, (_, names) in enumerate(plan(net, settings)):
        weight = net.get_parameter(names[0])
        boundary = weight[0].numel() * (len(weight) // 2)
        first = max(boundary - 2, 0) if settings.level == "weight" else 0
        assert 2 <= len(compare(net, data, settings, (0, sweep, first), count)) <= count


@pytest.mark.parametrize("kind", ["folded", "growing"])
def test_the_smallest_cache(kind: str) -> None:
    net, shape = narrow(kind)
    settings = RSO(cycles=1, batch_size=8, cache="input", order="shuffled", weight_decay=0.01)
    assert len(compare(net, images(26, shape), settings)) == models.count_weights(net)


@pytest.mark.parametrize("level", ["layer", "network"])
def test_joint_levels_through_whole_cycles(level: str) -> None:
    net, shape = narrow("flat")
    settings = RSO(cycles=2, batch_size=8, level=level, weight_decay=0.001)
    assert len(compare(net, images(26, shape), settings)) == 2 * models.count_weights(net)


@pytest.mark.parametrize("position", range(3))
def test_joint_levels_with_the_input_in_half_precision(position: int) -> None:
    net, shape = narrow("growing")
    part = images(26, shape).train
    batches = Batches(part.images, part.labels, 8)
    scorers = [scorer(copy.deepcopy(net), position, batches, level="layer", cache=cache) for cache in ("full", "half")]
    assert [each.inputs[0].x.dtype for each in scorers] == [torch.float64, torch.float16]
    full, half = (each.losses(0).mean() for each in scorers)
    assert half.dtype == torch.float64 and 0 < abs(half - full) < 1e-2


@pytest.mark.parametrize("name", ["paper", "neurons", "layers", "layer", "network"])
def test_a_head_alone(name: str) -> None:
    """Softmax regression."""
    net, data = stirred(Net([], Head(64, 3, pool="flatten", bias=True), seed=0)), images(26, (1, 8, 8))
    assert len(compare(net, data, settings_of(name))) > 100


@pytest.mark.parametrize(
    ("kind", "cycles", "first_batch"), [("flat", 4, None), ("folded", 3, None), ("growing", 2, None), ("flat", 3, 2)]
)
def test_many_cycles(kind: str, cycles: int, first_batch: int | None) -> None:
    net, shape = narrow(kind)
    settings = RSO(cycles=cycles, batch_size=8, first_batch=first_batch, order="shuffled", weight_decay=0.001)
    assert len(compare(net, images(26, shape), settings)) == cycles * models.count_weights(net)


def test_sets_that_are_calibrated_and_cached_in_parts() -> None:
    """2,100 images: batch norm's statistics are those of the first 2,000, and the cache is filled in chunks."""
    net = stirred(Net([Block(1, 2, pool="avg"), Block(2, 2)], Head(2, 3, pool="mean"), seed=0))
    data, settings = images(2100, (1, 4, 4)), RSO(cycles=1, batch_size=700, direction="forward")
    for sweep in range(len(plan(net, settings))):
        assert len(compare(net, data, settings, (0, sweep, 0), 4)) >= 2


def test_weights_in_another_memory_format_are_written_back() -> None:
    net, shape = narrow("growing")
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert not all(weight.is_contiguous() for weight in other.parameters())
    data, settings = images(26, shape), RSO(cycles=1, batch_size=8)
    at = (0, 2, 0)
    for step, visit in zip(
        islice(engine_steps(other, data, settings, at), 40), plain(net, data, settings, *at), strict=False
    ):
        compare_step(step, visit)
        assert torch.equal(other.get_parameter(step.layer), net.get_parameter(visit.layer))


# What changes nothing

FIRST: dict[str, tuple[Callable[[], Block], int]] = {
    "pooled": (lambda: Block(2, 16, pool="avg"), 4),
    "pooled last": (lambda: Block(2, 16, pool="avg", pool_last=True), 32),
}
"""A first block, and the images' height and width: the compiled loops cover what follows the first, not the second."""


@pytest.mark.parametrize(
    ("kind", "strategy", "at_once", "dtype", "loops"),
    crossed([*FIRST], ["sequential", "neuron", "layer"], [1, 7], [torch.float32, torch.float64], LOOPS),
    indirect=["loops"],
)
def test_a_weight_that_nothing_depends_on_is_kept(
    kind: str, strategy: str, at_once: int, dtype: torch.dtype, loops: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second channel of the images is black, and so is that of the first block, whose scale is zero."""
    monkeypatch.setattr(BlockScorer, "candidates_at_once", lambda *_: at_once)
    first, size = FIRST[kind]
    net = Net([first(), Block(16, 16), Block(16, 16)], Head(16, 3, pool="max"), seed=0).to(dtype)
    with torch.no_grad():
        net.get_parameter("block1.norm.weight")[1] = 0
    data = images(26, (2, size, size), dtype=dtype)
    data.train.images[:, 1] = 0
    settings = RSO(cycles=1, batch_size=13, strategy=strategy, direction="forward")
    for sweep, idle in [(0, lambda row, j: row == 1 or j >= 9), (3, lambda _, j: 9 <= j < 18)]:
        weight = net.get_parameter(plan(net, settings)[sweep][1][0])
        before, ties = weight.clone(), 0
        for step in islice(engine_steps(net, data, settings, (0, sweep, 0)), 288):
            if idle(*divmod(step.index, weight[0].numel())):
                assert len(set(step.losses.tolist())) == 1, step
                assert weight.view(-1)[step.index] == before.view(-1)[step.index]
                ties += 1
        assert 9 <= ties < 200
        assert not torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_head_gives_each_candidate_what_it_gives_it_alone(dtype: torch.dtype) -> None:
    """To the last bit: in one product for all of them it would not, for some numbers of images."""
    for channels, count in product((1, 3, 16), range(1, 24)):
        cut = HeadStage(Head(channels, 3, pool="max").to(dtype))
        x = torch.randn(count, channels, 2, 2, dtype=dtype)
        alone = cut.receive(Flow(x))
        assert [torch.equal(z, alone) for z in cut.receive(Flow(x.repeat(7, 1, 1, 1)), 7).chunk(7)] == [True] * 7


def test_a_row_of_a_shortcut_does_not_depend_on_the_rows_beside_it() -> None:
    """To the last bit: neither which rows are tried together, nor their number, may break a tie."""
    block, rng = Block(8, 16, skip="close", closes=12), torch.Generator().manual_seed(0)
    w = {name: weight.detach().double() for name, weight in block.named_parameters()}
    for count in range(1, 12):
        skip = torch.randn(5, 12, 3, count, generator=rng, dtype=torch.float64)
        rows = [count, *range(count), count]
        *_, alone = bridge(block, {key: weight[[count]] for key, weight in w.items()}, skip, [count]).unbind(1)
        first, *_, last = bridge(block, {key: weight[rows] for key, weight in w.items()}, skip, rows).unbind(1)
        assert torch.equal(first, alone)
        assert torch.equal(last, alone)


# What is not a number


def sometimes_broken(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """N(0, 1), but every third draw is not a number."""
    draws = torch.randn(shape, generator=rng)
    draws.view(-1)[::3] = torch.nan
    return draws


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run refuses a distribution that returns NaN; here its draws get through, so that losses are NaN."""
    monkeypatch.setattr(RSO, "draw", lambda settings: settings.distribution)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["flat", "folded", "growing"])
def test_a_loss_that_is_not_finite_never_wins(kind: str) -> None:
    net, shape = narrow(kind)
    visits = compare(net, images(26, shape), RSO(cycles=1, batch_size=13, distribution=sometimes_broken))
    broken = [visit for visit in visits if visit.losses.isnan().any()]
    assert len(broken) > len(visits) / 4
    assert {visit.choice for visit in broken} == {0}
    assert {visit.choice for visit in visits} == {0, 1, 2}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("level", ["layer", "network"])
def test_a_loss_that_is_not_finite_never_wins_jointly(level: str) -> None:
    net, shape = narrow("growing")
    start = copy.deepcopy(net)
    settings = RSO(cycles=1, batch_size=13, distribution=sometimes_broken, level=level)
    for step in islice(engine_steps(net, images(26, shape), settings), 20):
        assert step.losses.isfinite().tolist() == [True, False, False]
    assert all(torch.equal(w, v) for w, v in zip(net.parameters(), start.parameters(), strict=True))


# float32


def on_digits(kind: str) -> Net:
    """A net for the digits, in float32."""
    if kind in REAL:
        return models.mnist_net((1, 8, 8))
    _, blocks, head = NARROW[kind]()
    blocks[0] = Block(1, blocks[0].conv.out_channels, pool=blocks[0].pool, norm=blocks[0].norm is not None, skip="open")
    return Net(blocks, Head(head.linear.in_features, 10, pool=head.pool), seed=0)


@pytest.mark.parametrize(
    ("kind", "cache", "error"),
    [
        ("flat", "full", 2e-6),
        ("folded", "full", 2e-6),
        ("growing", "full", 2e-6),
        ("mnist_net", "full", 2e-6),
        ("growing", "half", 1e-3),
        ("mnist_net", "half", 1e-3),
    ],
)
def test_float32_decides_as_float64_but_for_near_ties(kind: str, cache: str, error: float) -> None:
    """From the same weights, on digits: ten steps of each sweep in float32, and the oracle follows in float64."""
    digits = load("digits")
    part = Split(digits.train.images[:200], digits.train.labels[:200])
    single, double = replace(digits, train=part), replace(digits, train=Split(part.images.double(), part.labels))
    fast = on_digits(kind)
    slow = copy.deepcopy(fast).double()
    settings = RSO(cycles=1, batch_size=60, order="shuffled", cache=cache)
    steps, different = 0, 0
    for k in range(len(plan(fast, settings))):
        pairs = zip(engine_steps(fast, single, settings, (0, k, 0)), plain(slow, double, settings, 0, k), strict=True)
        for step, visit in islice(pairs, 10):
            searched = fast.get_parameter(step.layer)
            slow.get_parameter(step.layer).data.copy_(searched)
            torch.testing.assert_close(step.losses, visit.losses, rtol=error, atol=error)
            if rounding_chooses(fast, step.layer):
                continue
            choice = best(step.losses.tolist())
            steps += 1
            different += choice != visit.choice
            assert visit.losses[choice] - visit.losses.min() < error, (step, visit)
    assert steps > 40
    assert different <= (0.01 if cache == "full" else 0.02) * steps, f"{different} of {steps}"


def test_rounding_does_not_pile_up_over_a_sweep() -> None:
    """What is kept for a slice is changed in place at each of 2,304 steps, and is still what a fresh search finds."""
    digits, net = load("digits"), models.mnist_net((1, 8, 8)).eval()
    calibrate(net, digits.train.images)
    searched = scorer(net, 2, Batches(digits.train.images[:180], digits.train.labels[:180], 60))
    size = net[2].conv.weight.numel()
    deltas = torch.randn(size, generator=torch.Generator().manual_seed(0)) * sigma(net[2].conv.weight)
    with torch.no_grad():
        for t in range(size):
            one_step(searched, "conv.weight", t, deltas[t], t)
        kept = [one_step(searched, "conv.weight", size - 1, torch.zeros(()), s) for s in range(3)]
        searched.begin()
        fresh = [one_step(searched, "conv.weight", size - 1, torch.zeros(()), s) for s in range(3)]
    torch.testing.assert_close(torch.stack(kept), torch.stack(fresh), rtol=1e-5, atol=1e-6)
