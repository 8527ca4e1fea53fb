"""The model of several processes, against counts made by hand, and against what it is meant to show."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cells import function_of

from rso_lib import History, algorithm
from rso_lib.history import Report
from rso_lib.lab import scaling
from rso_lib.lab.scaling import Layer, Network
from rso_lib.models import mnist_net

CONV = Layer(weights=100, neurons=4, step=0.01, cache=0.5, norms=2, channels=12)
HEAD = Layer(weights=40, neurons=1, step=0.001, cache=0.25, norms=0, channels=0)
SLOW = Network(latency=0.1, bandwidth=1000.0)


def test_one_process_takes_its_steps_and_its_caches() -> None:
    for strategy in scaling.SPLITS:
        cost = scaling.predict_cycle([CONV, HEAD], 1, strategy, SLOW)
        assert cost == pytest.approx({"compute": 1.0 + 0.5 + 0.04 + 0.25, "latency": 0, "bytes": 0, "total": 1.79})


def test_three_processes_by_hand() -> None:
    layer = scaling.predict_cycle([CONV, HEAD], 3, "layer", SLOW)
    assert layer["compute"] == pytest.approx(34 * 0.01 + 0.5 / 3 + 0.04 + 0.25)
    assert layer["latency"] == pytest.approx(2 * 2 * 0.1)  # a message for each layer, of two latencies
    assert layer["bytes"] == pytest.approx(2 * (math.ceil(34 / 4) + 10) / 1000)
    neuron = scaling.predict_cycle([CONV, HEAD], 3, "neuron", SLOW)
    assert neuron["compute"] == pytest.approx(100 * 2 / 4 * 0.01 + 0.5 + 0.04 + 0.25)
    batch = scaling.predict_cycle([CONV], 2, "sequential", SLOW)
    assert batch["latency"] == pytest.approx(100 * 3 * 0.1)  # two norms and the loss, at every step
    assert batch["compute"] == pytest.approx(50 * 0.01 + 0.5)


def test_neurons_end_where_all_have_one() -> None:
    free = Network(0.0, math.inf)
    times = [scaling.predict_cycle([CONV], n, "neuron", free)["total"] for n in (1, 2, 4, 8, 1000)]
    assert times == pytest.approx([1.5, 1.0, 0.75, 0.75, 0.75])


def test_layers_are_those_of_the_benchmark(tmp_path: Path) -> None:
    names = [f"block{k}" for k in range(1, 7)] + ["head"]
    net = mnist_net()
    timed = [
        {"layer": name, "weights": sum(w.numel() for w in layer.parameters()), "engine": 7.0, "build": 90.0}
        for name, layer in zip(names, net.layers, strict=True)
    ]
    (tmp_path / "bench.json").write_text(json.dumps({"net": "mnist_net", "layers": timed}))
    found = scaling.read_layers(tmp_path / "bench.json")
    assert [layer.weights for layer in found] == [176, 2336, 2336, 2336, 2336, 2336, 160]
    assert [layer.norms for layer in found] == [6, 5, 4, 3, 2, 1, 0]
    assert found[0] == Layer(176, 16, 0.007, 0.09, 6, 96)
    wide = scaling.read_layers(tmp_path / "bench.json", size=2.0)
    assert wide[1] == Layer(4 * 2336, 32, pytest.approx(0.028), pytest.approx(0.18), 5, 160)
    picture = scaling.plot_speedups(found, scaling.NETWORKS["the open internet"], 16)
    assert "neuron" in picture.alt


def test_processes_that_fail_say_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="did you mean"):
        scaling.launch_run(tmp_path / "run", 1, dataset="digit")


# Notebook 07


def test_two_steps_that_are_right_alone() -> None:
    """The loss (a + b - 1)² with the same Δ = 1 for both: one after the other, and merged."""
    matrix = torch.zeros(1, 2, dtype=torch.float64)
    names = {"matrix": matrix, "algorithm": algorithm, "loss": lambda: (matrix.sum() - 1).square()}
    sweep = function_of("07_in_parallel", "sweep", **names)
    assert sweep(torch.ones(1, 2), merged=False) == (0, 1)
    assert sweep(torch.ones(1, 2), merged=True) == (1, 2)
    assert not matrix.any()


def test_the_fastest_of_the_cycles_sweep_by_sweep() -> None:
    counts = dict.fromkeys(("steps", "kept", "plus", "minus", "evaluations", "image_forwards"), 1)
    ends = [("head", 1.0), ("block1", 4.0), ("", 4.5), ("head", 6.5), ("block1", 8.5), ("", 8.75)]
    rows = [Report(cycle=1, layer=layer, sigma=1.0, seconds=seconds, **counts) for layer, seconds in ends]
    found = function_of("07_in_parallel", "fastest")(SimpleNamespace(history=History(rows)))
    assert dict(found) == {"head": 1, "block1": 2, "": 0.25}


def test_what_is_shared_is_divided() -> None:
    seconds = {"head.linear.weight": 2.0, "block1.conv.weight": 16.0, "": 1.0}
    predict = function_of("07_in_parallel", "predict", fastest=lambda run: seconds, math=math)
    neuron, layer = (SimpleNamespace(settings={"strategy": strategy}) for strategy in ("neuron", "layer"))
    assert predict(neuron, 1) == predict(layer, 1) == 19
    assert predict(neuron, 5) == 3 + 4  # of 16 neurons one process has four
    assert predict(layer, 5) == pytest.approx(3 + 16 * 29 / 144)
    assert predict(neuron, 100) == 3 + 1
