"""What has no gradient: activations that are steps, and weights on a grid. In float64 against the oracle."""

import copy
import math
from itertools import islice
from typing import Any

import pytest
import torch
from oracle import NARROW, images, levels_of, plan, stirred
from pairwise import crossed
from steps import one_step, scorer
from test_engine import LOOPS, REAL, SETTINGS, compare, engine_steps, loops
from test_graphs import Recording, recorded
from torch import Tensor, nn

from rso_lib import models
from rso_lib.algorithm import Batches, algorithm_1, cross_entropy
from rso_lib.data import Data, load
from rso_lib.discrete import Grid, activate, moved
from rso_lib.engine.block import BlockScorer
from rso_lib.fit import fit
from rso_lib.known import unlike
from rso_lib.models import Block, Flow, Head, Net, grids, initialise, size_in_bytes
from rso_lib.passes import calibrate
from rso_lib.run.nets import read_options
from rso_lib.settings import RSO
from rso_lib.train import Step, train

__all__ = ["loops", "recorded"]  # fixtures

LEVELS = [2, 3, 4]
KINDS = [("sign", 0), ("step", 0), ("relu", 2), ("relu", 3), ("relu", 4), ("sign", 3), ("step", 2)]
"""Activations and levels."""


def discrete(kind: str, activation: str, levels: int) -> tuple[Net, tuple[int, int, int]]:
    """A net of the tables of `test_engine`, in another kind, stirred, in float64; and its images' shape."""
    if kind in REAL:
        net, shape = REAL[kind](), (3, 5, 4) if "depth" in kind else (1, 8, 8)
    else:
        shape, blocks, head = NARROW[kind]()
        net = Net(blocks, head, seed=1)
    for layer in net.layers:
        layer.levels = levels
        if isinstance(layer, Block) and layer.activation:
            layer.activation = activation
    initialise(net, 1)
    return stirred(net), shape


def settings_of(name: str) -> RSO:
    return RSO(**{"cycles": 1, "batch_size": 8, **SETTINGS[name], "weight_decay": 0})


def on_their_levels(net: Net) -> int:
    """How many tensors there are whose weights have levels; each of their weights must be on one, to the bit."""
    found = [(weight, levels_of(net, name)) for name, weight in net.named_parameters()]
    tensors = [(weight, values) for weight, values in found if values is not None]
    assert all(bool((weight.unsqueeze(-1) == values).any(-1).all()) for weight, values in tensors)
    return len(tensors)


# Activations


def test_sign_and_step_by_hand() -> None:
    z = torch.tensor([-torch.inf, -2, -1e-45, -0.0, 0.0, 1e-45, 0.5, torch.inf, torch.nan])
    sign = torch.tensor([-1.0, -1, -1, 1, 1, 1, 1, 1, torch.nan])
    before = z.clone()
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(activate(z.to(dtype), "sign"), sign.to(dtype), rtol=0, atol=0, equal_nan=True)
        step = (sign.to(dtype) + 1) / 2
        torch.testing.assert_close(activate(z.to(dtype), "step"), step, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(z[:-1], before[:-1])


@pytest.mark.parametrize("activation", ["sign", "step"])
def test_there_is_no_gradient_before_the_last_layer(activation: str) -> None:
    """Zeros, which a notebook can print; not None."""
    net = models.two_conv((1, 8, 8), 3, activation=activation)
    x, labels = torch.randn(20, 1, 8, 8), torch.arange(20) % 3
    nn.functional.cross_entropy(net(x), labels).backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None
        assert weight.grad.any() == name.startswith("head"), name


def test_a_block_of_signs_and_one_of_steps() -> None:
    """With the same convolution and norm, sign = 2 · step − 1; pooling that comes last gives means of these."""
    x = torch.randn(4, 2, 6, 6)
    sign, step, last = (
        Block(2, 3, activation=a, pool=p, pool_last=True) for a, p in [("sign", None), ("step", None), ("sign", "avg")]
    )
    for block in (step, last):
        block.load_state_dict(sign.state_dict())
    y = sign(Flow(x)).x
    assert set(y.unique().tolist()) == {-1, 1}
    assert torch.equal(step(Flow(x)).x * 2 - 1, y)
    assert torch.equal(last(Flow(x)).x, nn.functional.avg_pool2d(y, 2))


def test_the_names_of_activations_are_checked() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu, sign, step, not 'tanh'"):
        Block(1, 2, activation="tanh")
    net = models.mnist_net(activation="sign", levels=3)
    assert unlike(net) == ""
    net.blocks[1].activation = "tanh"
    assert unlike(net) == "block2 cannot be built anew: activation must be one of relu, sign, step, not 'tanh'"


# Grids


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 16, 256])
def test_the_values_of_a_grid(levels: int) -> None:
    """Equally spaced around 0; drawn uniformly, they deviate from 0 by He's √(2 / fan_in), within a factor of √2."""
    net = models.mnist_net(levels=levels, seed=3)
    for name, weight in net.named_parameters():
        values = levels_of(net, name)
        if values is None:
            assert name not in grids(net)
            continue
        he = math.sqrt(2 / weight[0].numel())
        assert 1 / math.sqrt(2) < values.square().mean().sqrt() / he < 1.001 * math.sqrt(2)
        assert values.sum() == 0 and len(values.diff().unique()) == 1
        assert torch.equal(grids(net)[name].nearest(values + 0.49 * values.diff()[0]), values)
        assert torch.equal(grids(net)[name].nearest(values - 0.49 * values.diff()[0]), values)
        counts = torch.stack([(weight == value).sum() for value in values])
        assert counts.sum() == weight.numel()
        if weight.numel() > 100 * levels:
            assert bool((counts - weight.numel() / levels).abs().lt(6 * math.sqrt(weight.numel() / levels)).all())
    assert on_their_levels(net) == on_their_levels(net.double()) == 7


def test_a_grid_is_drawn_from_the_seed() -> None:
    one, again, other = (models.one_conv(levels=3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.block1.conv.weight, other.block1.conv.weight)
    assert one.block1.conv.bias.abs().min() > 0, "or rounding would decide on the sign of an even background"


def test_a_move_ends_on_the_grid_and_at_its_ends() -> None:
    grid = Grid(levels=4, spacing=0.5)
    w, deltas = torch.tensor([-0.75, -0.25, 0.25, 0.75]), torch.tensor(0.5)
    for multiple, expected in [
        (0.0, w),
        (1.0, torch.tensor([-0.25, 0.25, 0.75, 0.75])),
        (-1.0, torch.tensor([-0.75, -0.75, -0.25, 0.25])),
        (1.6, torch.tensor([0.25, 0.75, 0.75, 0.75])),
        (0.3, w),
        (-50.0, torch.full((4,), -0.75)),
    ]:
        assert torch.equal(moved(w, deltas, torch.tensor(multiple, dtype=torch.float64), grid), expected)


def test_the_size_of_a_net() -> None:
    """Of mnist_net's 12,016 weights, 192 are scales and shifts."""
    for levels, bits in [(0, 32), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)]:
        assert size_in_bytes(models.mnist_net(levels=levels)) == math.ceil((11_824 * bits + 192 * 32) / 8)
    mixed = Net([Block(1, 4, norm=False)], Head(4, 10, pool="max", levels=3), seed=0)
    assert size_in_bytes(mixed) == 40 * 4 + 40 * 2 // 8


def test_options_of_nets() -> None:
    for net in ("one_conv", "two_conv", "mnist_net", "cifar_net"):
        assert read_options(net, "activation=sign,levels=3") == {"activation": "sign", "levels": 3}
    kinds = [block.activation for block in models.mnist_net(activation="step").blocks]
    assert kinds == ["step"] * 5 + [None], "the head pools by its maximum, without an activation before it"
    assert {block.activation for block in models.mnist_net(activation="step", head="mean").blocks} == {"step"}
    for wrong, error in [(1, ValueError), (-2, ValueError), (3.0, TypeError), (True, TypeError)]:
        with pytest.raises(error, match="levels must be"):
            models.cifar_net(3, levels=wrong)
        with pytest.raises(error, match="levels must be"):
            Head(2, 3, pool="max", levels=wrong)


def test_what_would_leave_the_grid_is_refused() -> None:
    net, data = models.one_conv((1, 8, 8), 3, levels=3), images(26, (1, 8, 8), dtype=torch.float32)
    with pytest.raises(ValueError, match="weight_decay must be 0"):
        next(train(net, data, RSO(cycles=1, batch_size=8, weight_decay=0.1)))
    net.head.linear.weight.data[2, 5] += 0.01
    with pytest.raises(ValueError, match=r"head.linear.weight of the net does not lie on its grid of 3 levels"):
        next(train(net, data, RSO(cycles=1, batch_size=8)))


# The engine against the oracle. Where the inputs of a convolution are signs, some changes are taken out again by batch
# norm, as that of a weight whose input is 1 everywhere: all losses are the same, and rounding chooses.


@pytest.mark.parametrize(
    ("kind", "of", "name"),
    crossed(
        ["flat", "folded", "max_pooled", "pool_last", "growing", "unnormed_skips"],
        KINDS,
        ["inverted", "many_slices", "layer", "network", "neurons_shuffled", "layers"],
    ),
)
def test_narrow_nets(kind: str, of: tuple[str, int], name: str) -> None:
    """Some steps of each sweep, around the middle of the tensor where they come one by one."""
    net, shape = discrete(kind, *of)
    compare_at_every_tensor(net, images(26, shape), settings_of(name), 4)


@pytest.mark.parametrize(
    ("kind", "of", "name", "loops"),
    crossed(["one_conv", "mnist_net", "depth 3"], KINDS, ["mixed", "network", "neurons", "layers"], LOOPS),
    indirect=["loops"],
)
def test_real_nets(kind: str, of: tuple[str, int], name: str, loops: str) -> None:
    net, shape = discrete(kind, *of)
    compare_at_every_tensor(net, images(20, shape), settings_of(name), 3)


def compare_at_every_tensor(net: Net, data: Data, settings: RSO, count: int) -> None:
    for sweep, (_, names) in enumerate(plan(net, settings)):
        weight = net.get_parameter(names[0])
        one_by_one = settings.level == "weight" and settings.strategy == "sequential"
        first = max(weight[0].numel() * (len(weight) // 2) - 2, 0) if one_by_one else 0
        assert len(compare(net, data, settings, (0, sweep, first), count, ties=True)) >= 2


@pytest.mark.parametrize(("at_once", "name"), [(1, "neurons_smallest"), (7, "layers"), (7, "neurons")])
def test_neurons_and_layers_over_the_end_of_a_round(at_once: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockScorer, "candidates_at_once", lambda *_: at_once)
    net, shape = discrete("mnist_net", "sign", 3)
    compare(net, images(20, shape), settings_of(name), (0, 4, 0), 18, ties=True)


@pytest.mark.parametrize("of", KINDS)
def test_whole_runs(of: tuple[str, int]) -> None:
    """Two cycles, in which some weights have come to the ends of their grids."""
    net, shape = discrete("flat", *of)
    settings = RSO(cycles=2, batch_size=13, order="shuffled", schedule="constant")
    assert len(compare(net, images(26, shape), settings, ties=True)) == 2 * models.count_weights(net)


@pytest.mark.parametrize("of", [("sign", 0), ("step", 3)])
def test_replayed_steps(of: tuple[str, int], recorded: type[Recording]) -> None:
    net, shape = discrete("folded", *of)
    compare(net, images(26, shape), settings_of("many_slices"), ties=True)
    assert recorded.replays > 20


@pytest.mark.parametrize("of", [("sign", 0), ("sign", 3), ("step", 2)])
def test_wrong_signs_do_not_pile_up_in_float32(of: tuple[str, int]) -> None:
    """What is kept for a slice is changed in place at 300 steps, and is still what a fresh search finds."""
    digits, net = load("digits"), models.mnist_net((1, 8, 8), activation=of[0], levels=of[1]).eval()
    calibrate(net, digits.train.images)
    searched = scorer(net, 2, Batches(digits.train.images[:180], digits.train.labels[:180], 60))
    deltas = torch.randn(300, generator=torch.Generator().manual_seed(0)) / 4
    with torch.no_grad():
        for t in range(300):
            one_step(searched, "conv.weight", t, deltas[t], t)
        kept = [one_step(searched, "conv.weight", 299, torch.zeros(()), s) for s in range(3)]
        searched.begin()
        fresh = [one_step(searched, "conv.weight", 299, torch.zeros(()), s) for s in range(3)]
    torch.testing.assert_close(torch.stack(kept), torch.stack(fresh), rtol=1e-5, atol=1e-6)


# Every weight on the grid at the end


WAYS = [("sequential", level) for level in ("weight", "layer", "network")] + [("neuron", "weight"), ("layer", "weight")]


@pytest.mark.parametrize(("way", "rule", "levels"), crossed(WAYS, ["argmin", "clear", "parabola"], LEVELS))
def test_every_weight_is_on_its_level_at_the_end(way: tuple[str, str], rule: str, levels: int) -> None:
    """In float32, and floats have moved beside them."""
    strategy, level = way
    blocks = [Block(1, 2, skip="open", levels=levels), Block(2, 3, skip="close", closes=2, levels=levels)]
    net = Net(blocks, Head(3, 3, pool="max", levels=levels), seed=0)
    before = copy.deepcopy(net)
    settings = RSO(cycles=1, batch_size=13, strategy=strategy, level=level, rule=rule, candidates=(0, 1, -1, 2.5))
    fit(net, images(26, (1, 4, 4), dtype=torch.float32), settings, progress=False)
    assert on_their_levels(net) == 4
    moves = [name for name, weight in net.named_parameters() if not torch.equal(weight, before.get_parameter(name))]
    assert any(name in grids(net) for name in moves) and any(name not in grids(net) for name in moves)


@pytest.mark.parametrize("strategy", ["sequential", "neuron", "layer"])
@pytest.mark.parametrize("kind", ["flat", "mnist_net"])
def test_a_candidate_beyond_the_end_is_a_tie(kind: str, strategy: str) -> None:
    """Its loss is that of w to the last bit, in float32, and w is kept unless the other one is better."""
    net, shape = discrete(kind, "sign", 2)
    net, data = net.float(), images(26, shape, dtype=torch.float32)
    settings, ties = RSO(cycles=1, batch_size=13, strategy=strategy, direction="forward"), 0
    for sweep, (_, [name]) in enumerate(plan(net, settings)):
        if name not in grids(net) or sweep > 4:
            continue
        for step in islice(engine_steps(net, data, settings, (0, sweep, 0)), 32):
            before = step_before(net, step)
            beyond = 1 if before * step.delta > 0 else 2
            assert step.losses[beyond] == step.losses[0]
            assert step.choice == (0 if step.losses[3 - beyond] >= step.losses[0] else 3 - 2 * (3 - beyond))
            ties += 1
    assert ties >= 64


def step_before(net: Net, step: Step) -> Tensor:
    """The weight as it was before a step that moved it or not: binary weights change their sign."""
    now = net.get_parameter(step.layer).detach().view(-1)[step.index]
    return -now if step.choice else now


# Without the engine


class Another(Net):
    """A net that the engine does not know."""


def test_the_plain_algorithm_decides_alike() -> None:
    """A head alone has no batch norm, whose statistics the plain algorithm takes elsewhere."""
    nets = []
    for kind in (Net, Another):
        net = stirred(kind([], Head(64, 3, pool="flatten", levels=3), seed=0))
        steps = [item for item in quiet(net, RSO(cycles=1, batch_size=13)) if isinstance(item, Step)]
        nets.append((net, steps))
    (fast, one), (slow, two) = nets
    assert [step.choice for step in one] == [step.choice for step in two]
    assert torch.equal(fast.head.linear.weight, slow.head.linear.weight)
    assert on_their_levels(slow) == 1


@pytest.mark.parametrize("level", ["weight", "layer", "network"])
def test_any_net_of_blocks_stays_on_its_grid(level: str) -> None:
    net = Another([Block(1, 2, levels=3)], Head(2, 3, pool="max", levels=3), seed=0).double()
    quiet(net, RSO(cycles=1, batch_size=13, level=level, rule="parabola"))
    assert on_their_levels(net) == 2


def quiet(net: Net, settings: RSO) -> list[Any]:
    if type(net) is Net:
        return list(train(net, images(26, (1, 8, 8)), settings, steps=True))
    with pytest.warns(UserWarning, match="every step sends its batch through the whole net"):
        return list(train(net, images(26, (1, 8, 8)), settings, steps=True))


@torch.no_grad()
def test_algorithm_1_stays_on_the_grid_and_learns() -> None:
    data = images(120, (1, 4, 4)).train
    net = Net([Block(1, 3, norm=False, activation="sign", levels=3)], Head(48, 3, pool="flatten", levels=3), seed=0)
    net = net.double()
    loss = lambda net, x, labels: cross_entropy(net(x), labels)  # noqa: E731
    start = float(loss(net, data.images, data.labels))
    algorithm_1(net, loss, data.images, data.labels, cycles=4, batch_size=60)
    assert on_their_levels(net) == 2
    assert float(loss(net, (data.images - data.images.mean()) / data.images.std(), data.labels)) < 0.7 * start
