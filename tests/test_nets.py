"""Nets that are not what they seem: changed by somebody, frozen, tied, noisy, in another mode, or no nets of ours."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import images, narrow, plain
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from rso_lib.algorithm import choose, cross_entropy, one_hot, step
from rso_lib.data import Data, Split
from rso_lib.engine import memory
from rso_lib.fit import fit
from rso_lib.known import unlike
from rso_lib.lab import bench, noise
from rso_lib.models import Block, Flow, Head, Net, count_weights, initialise, one_conv
from rso_lib.passes import calibrate
from rso_lib.proposals import generator, sigma
from rso_lib.run import sgd
from rso_lib.settings import RSO
from rso_lib.train import Step, evaluate, sweeps, train

SHORT = RSO(cycles=1, batch_size=8)


def toy(kind: str = "skips") -> tuple[Net, Data]:
    """A net of ours and images for it."""
    net, shape = narrow(kind)
    return net, images(26, shape)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def steps(net: nn.Module, data: Data, settings: RSO = SHORT, count: int | None = None) -> list[Step]:
    items = train(net, data, settings, steps=True)
    return list(islice((item for item in items if isinstance(item, Step)), count))


def by_hand(net: nn.Module, data: Data, count: int) -> list[int]:
    """The first choices of Algorithm 1 for a net of any kind, in train mode, each step with the whole net."""
    weights: dict[str, list[str]] = {}
    for name, _ in net.named_parameters():
        weights.setdefault(name.rpartition(".")[0], []).append(name)
        weights[name.rpartition(".")[0]].sort(key=lambda name: "norm.weight" in name)  # the shift before the scale
    chosen: list[int] = []
    net.train()
    number = 0
    for position, names in reversed(list(enumerate(weights.values()))):
        order, turn = torch.randperm(26, generator=generator(0, 0, 1, position)), 0
        x, labels = data.train.images[order], data.train.labels[order]
        for name in names:
            w = net.get_parameter(name).data
            deltas = torch.randn(w.numel(), generator=generator(0, 0, 2, number)) * sigma(w)
            number += 1
            for index, delta in enumerate(deltas):
                batch = slice(turn % 3 * 8, turn % 3 * 8 + 8)
                loss = lambda b=batch, x=x, y=labels: cross_entropy(net(x[b]), y[b])  # noqa: E731
                chosen.append(int(choose(step(loss, [w], [one_hot(w, index, delta.double())]))))
                turn += 1
                if len(chosen) == count:
                    return chosen
    return chosen


# Nets that the engine does not know


class OwnForward(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(3) * 2)


class OwnBlock(Block):
    def forward(self, flow: Flow) -> Flow:
        return super().forward(flow._replace(x=flow.x + 1))


class OwnHead(Head):
    def features(self, x: Tensor) -> Tensor:
        return x.square().flatten(1)


def subclass(net: Net) -> None:
    net.__class__ = OwnForward


def tie(net: Net) -> None:
    net.block3.conv.weight = net.block2.conv.weight


def share_a_block(net: Net) -> None:
    net.block2 = net.block3


def conv(**options: Any) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.block2.conv = nn.Conv2d(2, 2, **{"kernel_size": 3, "padding": 1, "bias": False, **options}).double()

    return change


def norm(**options: Any) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        net.block2.norm = nn.BatchNorm2d(2, **options).double()

    return change


def hook(where: str, pre: bool = False) -> Callable[[Net], None]:
    def change(net: Net) -> None:
        module = net.get_submodule(where)
        if pre:
            module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        else:
            module.register_forward_hook(lambda module, args, out: out._replace(x=-out.x) if where else -out)

    return change


def larger_kernel(net: Net) -> None:
    net.block2.conv.weight = nn.Parameter(torch.randn(2, 2, 1, 3, dtype=torch.float64))
    net.block2.conv.padding = (0, 1)


def setting(where: str, name: str, make: Callable[[Net], Any]) -> Callable[[Net], None]:
    return lambda net: setattr(net.get_submodule(where), name, make(net))


CHANGES: dict[str, tuple[Callable[[Net], object], str]] = {
    "subclass": (subclass, "the net is a OwnForward, not a models.Net"),
    "tie": (tie, "block2.conv.weight and block3.conv.weight are one parameter"),
    "shared_block": (share_a_block, "block2.conv.weight and block3.conv.weight are one parameter"),
    "own_block": (
        setting("", "block2", lambda net: OwnBlock(2, 2).double()),
        "block2 is a OwnBlock, which no models.Net has",
    ),
    "own_head": (setting("", "head", lambda net: OwnHead(24, 3, pool="flatten").double()), "head is a OwnHead, which"),
    "own_linear": (
        setting("head", "linear", lambda net: nn.Sequential(nn.Linear(24, 3)).double()),
        "head cannot be built anew: 'Sequential' object has no attribute 'in_features'",
    ),
    "forward": (setting("block2", "forward", lambda net: lambda flow: Flow(-flow.x, flow.skip)), "block2 has a method"),
    "method": (setting("block2", "activate", lambda net: torch.sigmoid), "block2 has a method of its own, activate"),
    "hook": (hook("block2"), "block2 has a forward hook"),
    "hook_of_the_net": (hook(""), "the net has a forward hook"),
    "pre_hook": (hook("block2.conv", pre=True), "block2.conv has a forward hook"),
    "weight_norm": (lambda net: parametrizations.weight_norm(net.block2.conv), "block2.conv is a ParametrizedConv2d"),
    "spectral_norm": (lambda net: parametrizations.spectral_norm(net.block2.conv), "is a ParametrizedConv2d"),
    "pruned": (lambda net: prune.l1_unstructured(net.block2.conv, "weight", 0.5), "block2.conv has a forward hook"),
    "stride": (conv(kernel_size=1, padding=0), r"block2.conv is .*_size=\(1, 1\).* in place of .*_size=\(3, 3\)"),
    "dilation": (conv(dilation=2, padding=2), r"block2.conv is .*, dilation=\(2, 2\).* in place of Conv2d"),
    "groups": (conv(groups=2), "block2.conv is .*, groups=2, .* in place of Conv2d"),
    "circular": (conv(padding_mode="circular"), "block2.conv is .*, padding_mode=circular.* in place of Conv2d"),
    "bias": (conv(bias=True), r"block2.conv is .*=\(1, 1\)\) in place of .*, bias=False\)"),
    "other_kernel": (larger_kernel, r"block2.conv is .*, padding=\(0, 1\).* in place of .*, padding=\(1, 1\)"),
    "no_statistics": (norm(track_running_stats=False), "block2.norm.running_mean is nothing in place of a tensor"),
    "no_scale": (norm(affine=False), "block2.norm.weight is nothing in place of a tensor"),
    "other_norm": (
        setting("block2", "norm", lambda net: nn.InstanceNorm2d(2).double()),
        "block2.norm is a InstanceNorm",
    ),
    "no_norm": (setting("block2", "norm", lambda net: None), r"block2.conv is .*=False\) in place of .*=\(1, 1\)\)"),
    "more_modules": (
        lambda net: net.add_module("last", nn.Sequential()),
        "the net has the parts block1, block2, block3, block4, head, last in place of",
    ),
    "more_in_a_block": (
        setting("block1", "extra", lambda net: nn.ReLU()),
        "block1.extra is a ReLU, which no models.Net has",
    ),
    "more_parameters": (
        lambda net: net.block1.register_parameter("gain", nn.Parameter(torch.ones(1).double())),
        r"block1.gain is a tensor of the shape \[1\] in place of nothing",
    ),
}


def changed(kind: str) -> tuple[Net, Data]:
    net, data = toy()
    torch.manual_seed(0)
    CHANGES[kind][0](net)
    return net, data


@pytest.mark.parametrize("kind", CHANGES)
def test_a_net_that_somebody_has_changed_goes_through_the_plain_algorithm(kind: str) -> None:
    """With a warning that names the reason."""
    net, data = changed(kind)
    reference, _ = changed(kind)
    calibrate(reference, data.train.images)
    with pytest.warns(UserWarning, match=f"{CHANGES[kind][1]}.*: every step sends its batch through the whole net"):
        made = [int(choose(item.losses)) for item in steps(net, data, count=80)]
    if kind != "spectral_norm":  # it iterates with every pass of a net in train mode, though not from step to step
        assert made == by_hand(reference, data, len(made))


@pytest.mark.parametrize("kind", ["subclass", "hook", "method", "weight_norm", "circular", "no_statistics"])
def test_a_changed_net_is_scored_by_its_own_forward(kind: str) -> None:
    net, data = changed(kind)
    calibrate(net, data.train.images)
    net.eval()
    with torch.no_grad():
        expected = F.cross_entropy(net(data.train.images), data.train.labels)
    assert evaluate(net, data.train)[0] == pytest.approx(float(expected), rel=1e-9)
    with pytest.raises(ValueError, match=r"the estimate is for a models\.Net that the engine knows: "):
        memory.needed(net, data, SHORT)
    with pytest.raises(ValueError, match=r'not a models\.Net is searched by one process, with strategy="sequential": '):
        next(train(net, data, replace(SHORT, strategy="neuron")))


@pytest.mark.parametrize("kind", ["flat", "folded", "max_pooled", "pool_last", "skips", "growing", "unnormed_skips"])
def test_our_own_nets_are_known(kind: str) -> None:
    net, _ = narrow(kind)
    assert unlike(net) == "" and unlike(copy.deepcopy(net).eval().float()) == ""
    net.get_submodule("block1").register_buffer("note", torch.ones(1))
    assert unlike(net) == ""


def test_a_batch_norm_with_another_eps_is_known() -> None:
    net, data = toy()
    norm(eps=0.3, momentum=None)(net)
    assert unlike(net) == ""
    reference = copy.deepcopy(net)
    made = [int(choose(item.losses)) for item in steps(net, data)]
    with torch.no_grad():
        reference.block2.norm.momentum = 1.0
    assert made == [visit.choice for visit in plain(reference, data, SHORT)]


def test_what_has_changed_the_classes_themselves_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    net, data = toy()
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: 2 * forward(self, x))
    net.block1.norm = None
    net.block1.conv.bias = nn.Parameter(torch.ones(2).double())
    with pytest.raises(ValueError, match="the engine and the net's own forward give different logits"):
        next(train(net, data, SHORT))


def test_a_hook_on_all_modules_is_noticed() -> None:
    net, _ = toy()
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    assert "forward hook" in unlike(net)
    handle.remove()
    assert unlike(net) == ""


# Frozen and tied weights

FROZEN = [
    ["block2.conv.weight"],
    ["head.linear.weight", "head.linear.bias"],
    ["block1.conv.weight", "block1.norm.weight", "block1.norm.bias"],
    ["block4.norm.bias", "block3.conv.weight"],
]


@pytest.mark.parametrize(
    ("names", "level"), [*((names, "weight") for names in FROZEN), (FROZEN[3], "layer"), (FROZEN[3], "network")]
)
def test_frozen_weights_are_left_alone(names: list[str], level: str) -> None:
    net, data = toy()
    for name in names:
        net.get_parameter(name).requires_grad_(False)
    before, settings = state(net), replace(SHORT, level=level, weight_decay=0.01)
    rows = list(train(net, data, settings))
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in names)
    moved = [name for name, w in net.named_parameters() if not torch.equal(w, before[name])]
    assert set(moved) == {name for name, _ in net.named_parameters()} - set(names)
    assert rows[-1].steps == count_weights(net) == sum(w.numel() for w in net.parameters() if w.requires_grad)
    assert not {sweep.layer for sweep in sweeps(net, settings)} & set(names)


@pytest.mark.parametrize(
    ("names", "strategy"),
    [*((names, "sequential") for names in FROZEN), (FROZEN[0], "neuron"), (FROZEN[2], "layer"), (FROZEN[3], "neuron")],
)
def test_with_frozen_weights_the_engine_decides_as_the_plain_algorithm(names: list[str], strategy: str) -> None:
    """The oracle's net has them not among its parameters."""
    net, data = toy()
    reference, settings = copy.deepcopy(net), replace(SHORT, strategy=strategy)
    for name in names:
        net.get_parameter(name).requires_grad_(False)
        owner, _, tensor = name.rpartition(".")
        module = reference.get_submodule(owner)
        value = module._parameters.pop(tensor).data
        module.register_buffer(tensor, value)
    made = [(item.layer, int(choose(item.losses))) for item in steps(net, data, settings)]
    assert made == [(visit.layer, visit.choice) for visit in plain(reference, data, settings)]


def test_a_net_that_is_all_frozen_is_an_error() -> None:
    net, data = toy()
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no weights to search: all of its parameters are frozen: set requires_grad"):
        fit(net, data, SHORT)
    with pytest.raises(ValueError, match="no weights to search: it has no parameters"):
        fit(nn.Flatten(), data, SHORT)
    assert count_weights(net) == 0


def test_initialise_leaves_frozen_weights_alone() -> None:
    net = one_conv((1, 8, 8)).requires_grad_(False)
    before = state(net)
    initialise(net, 5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x.flatten(1)).relu()))


def test_tied_weights_are_one_weight() -> None:
    net, data = Tied().double(), images(26, (1, 4, 4))
    with pytest.warns(UserWarning, match="the net is a Tied, not a models.Net"):
        made = steps(net, data)
    assert len(made) == count_weights(net) == 256 + 2 * 16 + 48 + 3
    assert net.first.weight is net.second.weight


# Weights and nets that cannot be searched


def linear(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


class Returns(nn.Module):
    """A net whose logits become something else."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.make = linear(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x))


def with_weight(value: Tensor, name: str = "weight") -> nn.Module:
    net = linear()
    net[1]._parameters[name] = nn.Parameter(value)
    return net


def views(net: nn.Module) -> nn.Module:
    square = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).double()
    square[1].weight = nn.Parameter(square[0].weight.data.T)
    return nn.Sequential(nn.Flatten(), square, nn.Linear(16, 3).double())


WRONG_NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "views": (lambda: views(linear()), "1.0.weight and 1.1.weight of the net lie at the same place"),
    "expanded": (lambda: with_weight(torch.ones(5, 1).double().expand(5, 16)), "1.weight of the net lie at the same"),
    "half": (lambda: linear().half(), r"1.weight of the net is torch.float16: .*call .float\(\)"),
    "bfloat16": (lambda: linear().bfloat16(), "1.weight of the net is torch.bfloat16"),
    "complex": (lambda: with_weight(torch.ones(5, 16, dtype=torch.complex128)), "is torch.complex128"),
    "nan": (lambda: with_weight(torch.full((5, 16), torch.nan).double()), "1.weight of the net has NaN or infinite"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "1.weight of the net has no shape yet"),
    "elsewhere": (lambda: linear().to("meta"), "1.weight of the net is on meta, but the images are on cpu: call .to"),
    "float32": (
        lambda: linear().float(),
        r"the net cannot take images of the shape 2×1×4×4 \(torch.float64\) in train",
    ),
    "other_size": (lambda: nn.Linear(7, 3).double(), "the net cannot take images of the shape 2×1×4×4"),
    "tuple": (lambda: Returns(lambda logits: (logits, 0)), "the net returns a tuple; it must return one tensor of log"),
    "dict": (lambda: Returns(lambda logits: {"out": logits}), "the net returns a dict"),
    "vector": (
        lambda: Returns(lambda logits: logits.sum(1)),
        r"of the shape \(2,\) for 2 images; it must return float",
    ),
    "one_row": (lambda: Returns(lambda logits: logits[:1]), r"of the shape \(1, 3\) for 2 images"),
    "pictures": (lambda: Returns(lambda logits: logits[..., None, None]), r"the shape \(2, 3, 1, 1\) for 2 images"),
    "classes": (lambda: Returns(lambda logits: logits.argmax(1, keepdim=True)), "the net returns torch.int64"),
    "too_few": (lambda: linear(2), "the net has 2 outputs, but there is a label 2: make it with at least 3 classes"),
}


NOT_FOR_SGD = {"views", "expanded", "half", "bfloat16", "complex", "nan", "lazy"}
"""What SGD makes of these is torch's affair."""


@pytest.mark.parametrize(
    ("kind", "call"),
    [*((kind, "fit") for kind in WRONG_NETS), *((kind, "sgd") for kind in WRONG_NETS if kind not in NOT_FOR_SGD)],
)
def test_a_net_that_cannot_be_searched_is_an_error_before_the_first_step(kind: str, call: str) -> None:
    make, message = WRONG_NETS[kind]
    net, data = make(), images(26, (1, 4, 4))
    before = state(net) if kind not in ("lazy", "elsewhere") else {}
    with pytest.raises(ValueError, match=message):
        fit(net, data, SHORT) if call == "fit" else next(sgd.train(net, data, sgd.SGD(batch_size=8)))
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value) or kind == "nan"


@pytest.mark.parametrize("net", ["ours", "another"])
def test_images_of_another_kind_than_the_nets(net: str) -> None:
    known, data = toy()
    known = known if net == "ours" else linear()
    small = images(26, (1, 1, 1))
    with pytest.raises(ValueError, match="the net cannot take images of the shape 2×1×1×1"):
        fit(known, small, SHORT)
    if net == "ours":
        with pytest.raises(ValueError, match=r"cannot take images of the shape .*float64"):
            fit(copy.deepcopy(known).float(), data, SHORT)


def test_images_that_poolings_leave_nothing_of() -> None:
    """The mean over nothing would be NaN, for every candidate."""
    net, _ = narrow("max_pooled")
    with pytest.raises(ValueError, match="the net needs images of at least 4×4 pixels, not 3×3"):
        fit(net, images(26, (1, 3, 3)), SHORT)


def test_a_batch_of_one_image_has_no_statistics() -> None:
    """On maps of 1×1."""
    net, _ = narrow("folded")
    with pytest.raises(ValueError, match=r"the shape 1×1×4×4 .* in train mode: ValueError: Expected more than 1 value"):
        fit(net, images(26, (1, 4, 4)), replace(SHORT, batch_size=1))


def scalar() -> nn.Module:
    net = linear()
    net.register_parameter("temperature", nn.Parameter(torch.ones((), dtype=torch.float64)))
    net.register_parameter("none", nn.Parameter(torch.ones(0, 3, dtype=torch.float64)))
    net.register_parameter("counts", nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False))
    net.register_parameter("phase", nn.Parameter(torch.ones(2) * 1j, requires_grad=False))
    net.register_forward_hook(lambda module, args, out: out * module.temperature)
    return net


@pytest.mark.parametrize("settings", [SHORT, replace(SHORT, order="input"), replace(SHORT, level="network")])
def test_a_number_is_a_weight_and_what_is_frozen_may_be_of_any_kind(settings: RSO) -> None:
    net = scalar()
    with pytest.warns(UserWarning, match="not a models.Net"):
        rows = list(train(net, images(26, (1, 4, 4)), settings))
    assert rows[-1].steps == 16 * 5 + 5 + 15 + 3 + 1 == count_weights(net)
    assert net.counts.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_of_any_layout_are_searched(dtype: torch.dtype) -> None:
    """Transposed ones, and those that are parts of one vector."""
    data = images(26, (1, 4, 4), dtype=dtype)
    net = with_weight(torch.randn(16, 5, generator=generator(1)).T).to(dtype)
    parts = copy.deepcopy(net)
    parts[1].weight.data = parts[1].weight.data.contiguous()
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(parts.parameters()).detach(), parts.parameters())
    with pytest.warns(UserWarning, match="not a models.Net"):
        made = [[int(choose(item.losses)) for item in steps(one, data)] for one in (net, parts)]
    assert made[0] == made[1] and set(made[0]) == {0, 1, 2}


def test_a_net_may_write_into_its_images() -> None:
    net, data = nn.Sequential(nn.ReLU(inplace=True), *linear()), images(26, (1, 4, 4))
    before = data.train.images.clone()
    with pytest.warns(UserWarning, match="not a models.Net"):
        list(train(net, data, SHORT))
    assert torch.equal(data.train.images, before) and (before < 0).any()


# Labels that do not go with the net


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.full((26,), 9), ValueError, "labels of train must be 0 to 2, as there are 3 classes, not 9"),
        (torch.zeros(26), TypeError, "labels of train must be torch.int64"),
    ],
)
@pytest.mark.parametrize("call", ["fit", "sgd"])
def test_labels_are_checked_before_the_first_step(
    labels: Tensor, error: type[Exception], message: str, call: str
) -> None:
    net, data = toy()
    data = replace(data, train=Split(data.train.images, labels))
    with pytest.raises(error, match=message):
        fit(net, data, SHORT) if call == "fit" else next(sgd.train(net, data, sgd.SGD(batch_size=8)))


def test_evaluate_checks_what_it_scores() -> None:
    net, data = toy()
    with pytest.raises(TypeError, match=r"labels of split must be torch\.int64"):
        evaluate(net, Split(data.val.images, data.val.labels.float()))
    with pytest.raises(ValueError, match="the net has 3 outputs, but there is a label 3: make it with at least 4"):
        evaluate(net, Split(data.val.images, data.val.labels + 1))
    with pytest.raises(ValueError, match="the net cannot take images of the shape 2×1×2×2"):
        evaluate(net, Split(data.val.images[:, :, :2, :2], data.val.labels))
    with pytest.raises(ValueError, match="labels of split must be at least 0, not -1"):
        evaluate(net, Split(data.val.images, data.val.labels - 1))
    with pytest.raises(ValueError, match="of the net is on meta, but the images are on cpu"):
        evaluate(copy.deepcopy(net).to("meta"), data.val)


# Random numbers


class Noisy(nn.Module):
    """Draws from every generator, and counts its passes in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2), nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Linear(2, 3))
        self.register_buffer("passes", torch.zeros(()))
        self.seen: list[tuple[float, float]] = []

    def forward(self, x: Tensor) -> Tensor:
        noise = 1 + 0.1 * random.random() + 0.1 * np.random.random()
        self.seen.append((noise, float(self.passes)))
        if self.training:
            self.passes += 1
        return self.net(x) * noise + 0.01 * self.passes


@pytest.mark.filterwarnings("ignore:the net is a Noisy")
def test_the_candidates_of_a_step_meet_the_same_noise_and_buffers() -> None:
    """A change that changes nothing is a tie, and the next step draws anew."""
    net, data = Noisy().double(), images(26, (1, 4, 4))
    settings = replace(SHORT, distribution=lambda shape, rng: torch.zeros(shape))
    sitting = train(net, data, settings, steps=True)
    losses = []
    for _ in range(6):
        net.seen.clear()
        losses.append(next(sitting).losses)
        assert len(set(net.seen[-3:])) == 1
    assert all(len(set(step.tolist())) == 1 for step in losses)
    assert len({float(step[0]) for step in losses}) == 6


@pytest.mark.filterwarnings("ignore:the net is a Noisy")
@pytest.mark.parametrize("level", ["weight", "network"])
def test_noise_comes_from_the_seed_of_the_run_and_leaves_the_callers_generators(level: str) -> None:
    data, settings = images(26, (1, 4, 4)), replace(SHORT, level=level)
    start, made = Noisy().double(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        net = copy.deepcopy(start)
        made.append([replace(row, seconds=0.0) for row in train(net, data, settings)])
        calibrate(net, data.train.images)
        made[-1].append(evaluate(net, data.val))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    assert list(map(repr, made[0])) == list(map(repr, made[1]))
    with torch.no_grad():
        other = [repr(replace(row, seconds=0.0)) for row in train(start, data, replace(settings, seed=1))]
    assert other != list(map(repr, made[0][:-1]))


class Counting(nn.Module):
    """Counts its passes where no checkpoint and no search can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.passes = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(x) * self.passes


def drawn_anew(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs + torch.randn_like(outputs), labels, reduction="none")


@pytest.mark.filterwarnings("ignore:the net is a")
def test_a_state_that_candidates_do_not_share_is_warned_of() -> None:
    data, says = images(26, (1, 4, 4)), "losses .* when they come again: candidates of a step would not meet the same"
    with pytest.warns(UserWarning, match=says):
        next(train(Counting().double(), data, SHORT))
    net = one_conv((1, 4, 4), 3).double()
    with pytest.warns(UserWarning, match=says):
        next(train(net, data, SHORT, loss=drawn_anew))
    next(train(nn.Sequential(net), data, SHORT, loss=drawn_anew))  # whose noise is that of the step


# Modes, statistics and interrupts


def modes(net: nn.Module) -> list[bool]:
    return [module.training for module in net.modules()]


def another() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 3)).double()


@pytest.mark.filterwarnings("ignore:the net is a Sequential")
@pytest.mark.parametrize("kind", ["ours", "another"])
@pytest.mark.parametrize("level", ["weight", "layer", "network"])
def test_every_module_keeps_its_mode(kind: str, level: str) -> None:
    """At every report and step, and after an exception."""
    net, data = (toy()[0], toy()[1]) if kind == "ours" else (another(), images(26, (1, 4, 4)))
    net.eval()
    list(net.modules())[3].train()
    before = modes(net)
    for _ in islice(train(net, data, replace(SHORT, level=level), steps=True), 90):
        assert modes(net) == before
    calibrate(net, data.train.images)
    evaluate(net, data.val)
    if kind == "ours":
        memory.needed(net, data, SHORT)
    assert modes(net) == before
    for broken in (lambda: calibrate(net, data.train.images[:, :, :2, :2]), lambda: fit(net, replace(data), SHORT)):
        handle = net.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises((ZeroDivisionError, ValueError, RuntimeError)):
            broken()
        handle.remove()
        assert modes(net) == before


def test_an_instance_norm_is_calibrated_too() -> None:
    net = nn.Sequential(nn.InstanceNorm2d(2, track_running_stats=True)).double()
    pictures = torch.randn(40, 2, 3, 3, dtype=torch.float64) + 5
    calibrate(net, pictures)
    torch.testing.assert_close(net[0].running_mean, pictures.mean((0, 2, 3)))
    assert net[0].momentum == 0.1


def bad_in_cycle_2(cycle: int, cycles: int) -> float:
    return 1.0 if cycle < 1 else float("nan")


def test_an_error_in_a_later_cycle_leaves_net_and_history_as_behind_the_last_report() -> None:
    from rso_lib.history import History

    net, data = toy()
    other, history = copy.deepcopy(net), History()
    with pytest.raises(ValueError, match=r"schedule bad_in_cycle_2 \(1, 3\) returned nan"):
        fit(net, data, replace(SHORT, cycles=3, schedule=bad_in_cycle_2), history, progress=False)
    fit(other, data, replace(SHORT, schedule="constant"), progress=False)
    assert len(history.cycles.rows) == 1
    for (name, value), expected in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert name.endswith("tracked") or torch.equal(value, expected), name


TO_INFINITY: dict[str, dict[str, Any]] = {
    "candidates": {"candidates": (0, 1e300, -1e300)},
    "schedule": {"schedule": lambda cycle, cycles: 1e308},
    "rule": {"rule": lambda scores: scores.multiples[1:2] * 1e300},
}


@pytest.mark.filterwarnings("ignore:.*not a models.Net")
@pytest.mark.parametrize("kind", TO_INFINITY)
def test_a_weight_that_moves_to_infinity_is_an_error(kind: str) -> None:
    """A tanh saturates there, so that the loss is finite and may win."""
    torch.manual_seed(0)
    net, data = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.Tanh(), nn.Linear(1, 3)), images(26, (1, 4, 4))
    net[3].requires_grad_(False)
    with pytest.raises(ValueError, match=r"of the net has moved to infinity: .* torch.float32 can hold"):
        list(train(net, data.to(torch.float32), replace(SHORT, **TO_INFINITY[kind])))


class Stopped(KeyboardInterrupt):
    """An interrupt at a chosen pass."""


@contextmanager
def interrupted(net: nn.Module, at: int) -> Iterator[None]:
    passes = iter(range(at))

    def stop(*_: object) -> None:
        if next(passes, None) is None:
            raise Stopped

    handle = net.register_forward_pre_hook(stop)
    with pytest.raises(Stopped):
        yield
    handle.remove()


@pytest.mark.parametrize("at", range(3))
def test_an_interrupt_in_the_middle_of_a_step_leaves_the_old_weight(at: int) -> None:
    net, data = one_conv((1, 4, 4), 3), images(26, (1, 4, 4), dtype=torch.float32)
    before, weight = state(net), net.head.linear.weight.detach()
    x, labels = data.train.images, data.train.labels
    calls: dict[str, Callable[[], object]] = {
        "step": lambda: step(lambda: cross_entropy(net(x), labels), [weight], [torch.ones_like(weight)]),
        "plain_step": lambda: bench.plain_step(weight, 1, torch.tensor(0.5), lambda: cross_entropy(net(x), labels)),
        "image_losses": lambda: noise.image_losses(net, "head.linear.weight", 1, [0.0, 1.0, 2.0], data.train),
    }
    for name, call in calls.items():
        with interrupted(net, at), torch.no_grad():
            call()
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), name
