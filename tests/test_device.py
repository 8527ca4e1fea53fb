"""A step on a GPU, watched without one: torch's fake tensors say on which device each operation would run.

They hold no values, so that whatever a step would read back (and wait for) is an error, and so is an operation that
mixes devices. What comes out is tested in `test_engine.py`, on the devices that there are.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rso_lib import models
from rso_lib.algorithm import Batches, ModuleSearch, choose
from rso_lib.engine import block as engine
from rso_lib.engine import replay as graphs
from rso_lib.engine.replay import GraphSearch, Work
from rso_lib.engine.strategies import BLOCK_SEARCHES, NeuronSearch
from rso_lib.models import Head, Net
from rso_lib.run import folder as runs

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch was built without CUDA")

NETS: dict[str, Callable[[], Net]] = {
    "one_conv": lambda: models.one_conv((1, 8, 8), 3),
    "mnist_net": lambda: models.mnist_net((1, 8, 8), 3),
    "mnist_net of the text": lambda: models.mnist_net((1, 8, 8), 3, pool_last=True, head="mean"),
    "depth 10": lambda: models.cifar_net(10, (3, 8, 8), 3),
}


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
    monkeypatch.setattr(graphs, "shifts", engine.shifts.__wrapped__)  # what is kept for all searches holds values
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


def searches(net: Net, position: int, on: Batches, cache: str) -> list[Any]:
    if isinstance(net[position], Head):
        return [engine.HeadSearch(net, position, on)]
    return [search(net, position, on, cache) for search in [*BLOCK_SEARCHES.values(), engine.BlockSearch]]


class Unrecorded:
    """The work that a graph would record, done each time."""

    works: ClassVar[list[Work]] = []

    def __init__(self, work: Work, inputs: tuple[Tensor, Tensor], beside: object = None):
        self.work = work
        self.works.append(work)

    def __call__(self, *inputs: Tensor) -> Tensor:
        with Copies() as copies:
            losses = self.work(*inputs)
        assert copies.between_devices == 0
        return losses


@pytest.mark.parametrize(
    ("name", "cache"),
    [("one_conv", "full"), ("mnist_net", "full"), ("mnist_net of the text", "half"), ("depth 10", "input")],
)
def test_a_step_stays_on_the_device(name: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "Graph", Unrecorded)
    monkeypatch.setattr(Unrecorded, "works", [])
    net, on = on_cuda(NETS[name]()), batches()
    on = on._replace(images=on.images.expand(-1, net[0].conv.in_channels, -1, -1))
    for position in range(len(net.layers)):
        for search in searches(net, position, on, cache):
            for tensor, weight in search.w.items():
                search.begin()
                size = weight[0].numel()
                # both slices, and the first again when two rows have changed; a graph is of steps where one has
                for t in range(7 if isinstance(search, GraphSearch) else 3):
                    delta = torch.randn(2, device="cuda")
                    both = [size - 1, min(2 * size - 1, weight.numel() - 1)]
                    at = torch.tensor(both, device="cuda")
                    with Copies() as copies:
                        if isinstance(search, NeuronSearch):
                            losses = search.steps(tensor, both, at, delta, t)
                        else:
                            losses = search.step(tensor, min(size - 1 + min(t, 1), weight.numel() - 1), delta[0], t)
                    assert losses.device.type == "cuda"
                    if not isinstance(search, engine.HeadSearch):  # which uploads the places of scattered columns
                        assert copies.between_devices == 0, f"{type(search).__name__}, {position}, {tensor}"
    assert Unrecorded.works or cache == "input"


def test_reading_a_value_back_is_noticed() -> None:
    with pytest.raises(DataDependentOutputException):
        choose(torch.randn(3, device="cuda")).item()
    net, on = on_cuda(NETS["one_conv"]()), batches()
    with pytest.raises(DataDependentOutputException):  # the reference takes the winner's number to the host
        ModuleSearch(net, on).step("block1.conv.weight", 0, torch.randn((), device="cuda"), 0)
    with Copies() as copies:
        torch.randn(2, device="cuda")[[1, 0]]
    assert copies.between_devices == 1


def test_what_a_run_saves_and_tells_is_on_the_cpu() -> None:
    """Other processes would put a tensor of a GPU back on that GPU."""
    net = on_cuda(models.mnist_net((1, 8, 8), 3))
    assert {value.device.type for value in net.state_dict().values()} == {"cuda"}
    assert {value.device.type for value in runs._state(net).values()} == {"cpu"}


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
        def __init__(self, work: Work, inputs: tuple[Tensor, Tensor], beside: object = None):
            self.inputs, self.made, self.graph = [x.clone() for x in inputs], work(*inputs), self  # type: ignore

        def replay(self) -> None:
            pass

    monkeypatch.setattr(graphs, "Graph", Replayed)
    counts = {}
    for kind in (engine.BlockSearch, GraphSearch):
        search, delta = kind(on_cuda(NETS["mnist_net"]()), 1, batches()), torch.randn((), device="cuda")
        for t in range(7):
            with Launches() as launches:
                search.step("conv.weight", t, delta, t)
        counts[kind] = launches.count
    assert counts == {engine.BlockSearch: 74, GraphSearch: 4}  # the README says so
