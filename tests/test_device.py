"""A step on a GPU, watched without one: torch's fake tensors say on which device each operation would run.

They hold no values, so that whatever a step would read back (and wait for) is an error, and so is an operation that
mixes devices. What comes out is tested in `test_engine.py`, on the devices that there are.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from steps import scorer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rso_lib import models
from rso_lib.algorithm import Batches
from rso_lib.engine import Moves, block, inputs, kernels, stepper
from rso_lib.engine import replay as graphs
from rso_lib.engine.head import HeadScorer
from rso_lib.engine.replay import Decided, Replay, Work
from rso_lib.models import Head, Net
from rso_lib.rules import argmin, choose
from rso_lib.run import checkpoint

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")

NETS: dict[str, Callable[[], Net]] = {
    "one_conv": lambda: models.one_conv((1, 8, 8), 3),
    "mnist_net": lambda: models.mnist_net((1, 8, 8), 3),
    "mnist_net of the text": lambda: models.mnist_net((1, 8, 8), 3, pool_last=True, head="mean"),
    "depth 10": lambda: models.cifar_net(10, (3, 8, 8), 3),
}


ONE_OF_EACH_KIND = {2: (0, 1), 7: (0, 1, 5, 6), 10: (0, 1, 4, 8, 9)}
"""Positions in a net of so many layers: with pooling and without, before the head, that open a skip and close it."""


class Copies(TorchDispatchMode):
    """Counts the operations whose tensors lie on more than one device."""

    def __init__(self) -> None:
        super().__init__()
        self.between_devices = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, made)) if isinstance(leaf, Tensor)]
        self.between_devices += len({tensor.device.type for tensor in tensors}) > 1
        return made


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (block, inputs):
        monkeypatch.setattr(
            module, "offsets", inputs.offsets.__wrapped__
        )  # what is cached for all scorers holds values
    monkeypatch.setattr(kernels, "load_cuda", lambda: None)  # Triton wants tensors that hold values
    with FakeTensorMode(), torch.no_grad():
        yield


def on_cuda(net: Net) -> Net:
    for module in net.modules():  # `to` cannot exchange the memory of fake parameters
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(weight.detach().to("cuda")))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, value.to("cuda"))
    return net.eval()


def batches() -> Batches:
    return Batches(torch.randn(12, 1, 8, 8, device="cuda"), torch.randint(0, 3, (12,), device="cuda"), 6)


def scorers(net: Net, position: int, on: Batches, cache: str) -> list[Any]:
    strategies = ["sequential"] if isinstance(net[position], Head) else ["sequential", "neuron", "layer"]
    return [scorer(net, position, on, cache=cache, strategy=strategy) for strategy in strategies]


class Unrecorded:
    """The work that a graph would record, done each time."""

    works: ClassVar[list[Work]] = []

    def __init__(self, work: Work, inputs: tuple[Tensor, ...], beside: object = None):
        self.work = work
        self.works.append(work)

    def __call__(self, *inputs: Tensor) -> Decided:
        with Copies() as copies:
            made = self.work(*inputs)
        assert copies.between_devices == 0
        return made


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("one_conv", "full"),
        pytest.param("mnist_net", "full", marks=pytest.mark.exhaustive),
        ("mnist_net of the text", "half"),
        pytest.param("depth 10", "input", marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_stays_on_the_device(name: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "Graph", Unrecorded)
    monkeypatch.setattr(Unrecorded, "works", [])
    net, on = on_cuda(NETS[name]()), batches()
    on = on._replace(images=on.images.expand(-1, net[0].conv.in_channels, -1, -1))
    for position in ONE_OF_EACH_KIND[len(net.layers)]:
        for of in scorers(net, position, on, cache):
            for graphed in ("0", "1") if of.strategy == "sequential" else ("0",):
                monkeypatch.setenv("RSO_GRAPHS", graphed)
                make = stepper(of, argmin, torch.device("cuda"), cache)
                for tensor in of.w:
                    steps_stay_on_the_device(of, make, tensor)
    assert Unrecorded.works or cache == "input"


def steps_stay_on_the_device(of: Any, make: Any, tensor: str) -> None:
    """On both batches, and on the first again when two channels have changed; a graph is of steps where one has."""
    of.begin()
    size, count = of.w[tensor][0].numel(), of.w[tensor].numel()
    for t in range(7 if isinstance(make, Replay) else 3):
        delta = torch.randn(2, device="cuda")
        indices = [size - 1, min(2 * size - 1, count - 1)]
        if of.strategy == "sequential":
            indices, delta = [min(size - 1 + min(t, 1), count - 1)], delta[:1]
        at = torch.tensor(indices, device="cuda")
        with Copies() as copies:
            losses, choices = make(Moves(tensor, t % 2, t, [t] * len(indices), indices, at, delta))
        assert losses.device.type == choices.device.type == "cuda"
        if not isinstance(of, HeadScorer):  # which uploads the places of scattered columns
            assert copies.between_devices == 0, f"{type(of).__name__}, {tensor}"


def test_reading_a_value_back_is_noticed() -> None:
    with pytest.raises(DataDependentOutputException):
        choose(torch.randn(3, device="cuda")).item()
    with Copies() as copies:
        torch.randn(2, device="cuda")[[1, 0]]
    assert copies.between_devices == 1


def test_what_a_run_saves_and_tells_is_on_the_cpu() -> None:
    """Other processes would put a tensor of a GPU back on that GPU."""
    net = on_cuda(models.mnist_net((1, 8, 8), 3))
    assert {value.device.type for value in net.state_dict().values()} == {"cuda"}
    assert {value.device.type for value in checkpoint.state_of(net).values()} == {"cpu"}


class Launches(TorchDispatchMode):
    """Counts the operations that launch kernels: all but views, questions, and memory that is not filled."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not function.is_view and not function.name().startswith(("aten::empty", "prim::"))
        return function(*args, **(kwargs or {}))


def test_a_replayed_step_launches_a_handful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each step does around its graph, against a step without one."""

    class Replayed(graphs.Graph):
        def __init__(self, work: Work, inputs: tuple[Tensor, ...], beside: object = None):
            self.inputs, self.made, self.graph = [x.clone() for x in inputs], work(*inputs), self  # type: ignore

        def replay(self) -> None:
            pass

    monkeypatch.setattr(graphs, "Graph", Replayed)
    counts = {}
    for graphed in ("0", "1"):
        monkeypatch.setenv("RSO_GRAPHS", graphed)
        of, delta = scorer(on_cuda(NETS["mnist_net"]()), 1, batches()), torch.randn(1, device="cuda")
        make = stepper(of, argmin, torch.device("cuda"))
        at = torch.arange(7, device="cuda")
        for t in range(7):
            with Launches() as launches:
                make(Moves("conv.weight", t % 2, t, [t], [t], at[t : t + 1], delta))
        counts[graphed] = launches.count
    assert counts == {"0": 81, "1": 6}
