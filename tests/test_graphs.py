"""Replayed steps. A recording on the CPU stands for the CUDA graph: the same operations, again, on the same memory.

So whatever a graph would not see (another tensor in an old one's place, a number that the host has put in) makes
other decisions here. Whether a step could be recorded on a GPU at all, `test_device.py` asks.
"""

from typing import Any

import pytest
import torch
from oracle import NARROW, images, narrow, plan, stirred
from pairwise import halved
from steps import scorer
from test_engine import DEVICES, REAL, compare, settings_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rso_lib import models
from rso_lib.algorithm import Batches
from rso_lib.engine import kernels, stepper
from rso_lib.engine import replay as graphs
from rso_lib.engine.replay import Decided, Graph, Replay, Work
from rso_lib.rules import argmin
from rso_lib.settings import RSO
from rso_lib.train import train


class Recording(TorchDispatchMode):
    """What `Graph` does, on the CPU."""

    made_so_far, replays = 0, 0

    def __init__(self, work: Work, inputs: tuple[Tensor, ...], beside: "Recording | None" = None):
        super().__init__()
        Recording.made_so_far += 1
        self.inputs, self.calls, self.is_fresh = [x.clone() for x in inputs], [], True
        with self:
            self.result = work(*self.inputs)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "a value is read back to the host"
        made = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, made))
        return made

    def __call__(self, *inputs: Tensor) -> Decided:
        for mine, x in zip(self.inputs, inputs, strict=True):
            mine.copy_(x)
        if not self.is_fresh:  # what has been recorded has been done, too
            self.replay()
        self.is_fresh = False
        losses, choices = self.result
        return losses.clone(), choices.clone()

    def replay(self) -> None:
        Recording.replays += 1
        for function, args, kwargs, made in self.calls:
            again = function(*args, **kwargs)
            for then, now in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(then, Tensor) and then.data_ptr() != now.data_ptr():  # neither a view nor in place
                    then.copy_(now)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    monkeypatch.setattr(Recording, "made_so_far", 0)
    monkeypatch.setattr(Recording, "replays", 0)
    monkeypatch.setattr(kernels, "load_compiled", lambda: None)
    monkeypatch.setattr(graphs, "Graph", Recording)
    monkeypatch.setattr(graphs, "covers", lambda *_: True)
    monkeypatch.setattr(graphs, "MIN_VISITS", 0)
    return Recording


@pytest.mark.parametrize("name", ["paper", "inverted", "many_slices", "whole_set"])
@pytest.mark.parametrize("kind", NARROW)
def test_replayed_steps_decide_as_the_plain_algorithm(kind: str, name: str, recorded: type[Recording]) -> None:
    net, shape = narrow(kind)
    settings = settings_of(name)
    assert len(compare(net, images(26, shape), settings, (settings.cycles - 1, 0, 0))) == models.count_weights(net)
    assert recorded.replays > 20


@pytest.mark.parametrize(("kind", "name"), halved([*REAL], ["paper", "mixed"]))
def test_real_nets(kind: str, name: str, recorded: type[Recording]) -> None:
    """Around the boundary of two rows: steps where one row has changed, and where two have."""
    net, data = stirred(REAL[kind]()), images(20, (3, 5, 4) if "depth" in kind else (1, 8, 8))
    for sweep, (position, names) in enumerate(plan(net, settings_of(name))):
        weight = net.get_parameter(names[0])
        replays, first = recorded.replays, max(weight[0].numel() * (len(weight) // 2) - 5, 0)
        compare(net, data, settings_of(name), (0, sweep, first), 11)
        if names[0].endswith("conv.weight") and name == "paper":  # the others have no two steps of a kind here, or few
            assert recorded.replays > replays, f"nothing is replayed in block {position + 1}"


def test_what_is_recorded(recorded: type[Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row of nine weights on four slices: not the first steps of a slice, not the first one behind these."""
    net, data = stirred(REAL["one_conv"]()), images(16, (1, 8, 8))
    settings = RSO(cycles=1, batch_size=4, direction="forward")
    compare(net, data, settings, (0, 0, 0), 5)
    assert recorded.made_so_far == 0
    compare(net, data, settings, (0, 0, 0), 9)
    assert recorded.made_so_far == 4
    for worth, recordings in ((9, 4), (10, 0)):  # 36 weights, 9 for each slice
        monkeypatch.setattr(recorded, "made_so_far", 0)
        monkeypatch.setattr(graphs, "MIN_VISITS", worth)
        compare(net, data, settings, (0, 0, 0), 9)
        assert recorded.made_so_far == recordings


@pytest.mark.parametrize("fails", [1, 3])
def test_steps_go_on_where_they_cannot_be_recorded(
    fails: int, recorded: type[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a recording has begun to change what is kept."""

    class Failing(Recording):
        def __init__(self, work: Work, inputs: tuple[Tensor, ...], beside: Recording | None = None):
            if Recording.made_so_far + 1 >= fails:
                search = work.__closure__[1].cell_contents.scorer  # type: ignore[index]
                for response in search.responses.values():
                    response.z.fill_(torch.nan)
                raise RuntimeError("operation not permitted when stream is capturing")
            super().__init__(work, inputs, beside)

    monkeypatch.setattr(graphs, "Graph", Failing)
    net, shape = narrow("growing")
    with pytest.warns(UserWarning, match="kernel by kernel: operation not permitted"):
        visits = compare(net, images(26, shape), settings_of("many_slices"))
    assert len(visits) == models.count_weights(net)


def test_what_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.delenv("RSO_GRAPHS", raising=False)
    assert graphs.covers(cuda, "full") and graphs.covers(cuda, "half")
    assert not graphs.covers(cpu, "full") and not graphs.covers(cuda, "input")
    monkeypatch.setenv("RSO_GRAPHS", "0")
    assert not graphs.covers(cuda, "full")


def test_which_scorer_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    net, shape = narrow("flat")
    train_part = images(26, shape).train
    batches, cpu = Batches(train_part.images, train_part.labels, 8), torch.device("cpu")
    block, head = (scorer(net.eval(), position, batches) for position in (0, len(net.blocks)))
    assert not isinstance(stepper(block, argmin, cpu), Replay)
    monkeypatch.setattr(graphs, "covers", lambda *_: True)
    assert isinstance(stepper(block, argmin, cpu), Replay)
    assert not isinstance(stepper(head, argmin, cpu), Replay)
    assert not isinstance(stepper(scorer(net, 0, batches, strategy="neuron"), argmin, cpu), Replay)


@pytest.mark.parametrize("device", DEVICES[1:])
@pytest.mark.parametrize("order", ["output", "input"])
def test_a_gpu_gives_the_same_net_with_graphs_and_without(
    order: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets = []
    for graphed in ("1", "0"):
        monkeypatch.setenv("RSO_GRAPHS", graphed)
        net, data = stirred(REAL["mnist_net"]()).to(device), images(26, (1, 8, 8), device=device)
        replayed = []
        monkeypatch.setattr(Graph, "__call__", _counting(Graph.__call__, replayed))
        list(train(net, data, RSO(cycles=1, batch_size=8, order=order)))
        assert bool(replayed) is (graphed == "1")
        nets.append(net)
        monkeypatch.undo()
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(one, other)


def _counting(call: Any, calls: list[object]) -> Any:
    def counted(self: Graph, *inputs: Tensor) -> Decided:
        calls.append(self)
        return call(self, *inputs)

    return counted
