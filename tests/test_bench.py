"""The benchmark: its operation counts against counts made by hand, and its report against its own medians."""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from rso_lib import models
from rso_lib.engine import Moves, memory
from rso_lib.engine import replay as graphs
from rso_lib.engine.sequential import SequentialScorer
from rso_lib.lab import bench
from rso_lib.lab.bench import plain_step
from rso_lib.lab.bench_report import Timing, operations, operations_per_step, summary
from rso_lib.rules import Scores

METHODS = ("plain", "cached", "engine")

# Multiplications of one image, by hand: 9 taps (16 taps of a quarter of the pixels where the pooling is
# folded in) × output channels × input channels × pixels of the output.
MNIST = [
    9 * 16 * 1 * 28 * 28,
    9 * 16 * 16 * 28 * 28,
    9 * 16 * 16 * 14 * 14,
    9 * 16 * 16 * 14 * 14,
    9 * 16 * 16 * 7 * 7,
    9 * 16 * 16 * 7 * 7,
    16 * 10,
]
MNIST_FOLDED = [
    9 * 16 * 1 * 28 * 28,
    16 * 16 * 16 * 14 * 14,
    9 * 16 * 16 * 14 * 14,
    16 * 16 * 16 * 7 * 7,
    9 * 16 * 16 * 7 * 7,
    16 * 16 * 16 * 3 * 3,
    16 * 10,
]
MNIST_CHANNELS = [1, 16, 16, 16, 16, 16, 16]
MNIST_WEIGHTS = [9 * 16 + 2 * 16, *[9 * 16 * 16 + 2 * 16] * 5, 16 * 10]
DEPTH_10 = [
    9 * 16 * 3 * 32 * 32,
    9 * 16 * 16 * 32 * 32,
    9 * 16 * 16 * 32 * 32,
    9 * 32 * 16 * 16 * 16,
    9 * 32 * 32 * 16 * 16 + 32 * 16 * 16 * 16,  # with the 1×1 convolution of the skip
    *[9 * 32 * 32 * 8 * 8] * 4,
    32 * 10,
]
DEPTH_10_WEIGHTS = [
    9 * 16 * 3 + 2 * 16,
    9 * 16 * 16 + 2 * 16,
    9 * 16 * 16 + 2 * 16,
    9 * 32 * 16 + 2 * 32,
    9 * 32 * 32 + 2 * 32 + 32 * 16 + 2 * 32,
    *[9 * 32 * 32 + 2 * 32] * 4,
    32 * 10,
]


def test_operations_of_mnist_net() -> None:
    counts = operations(models.mnist_net(), (1, 28, 28))
    assert [count.plain for count in counts] == [2 * n for n in MNIST]
    assert [count.folded for count in counts] == [2 * n for n in MNIST_FOLDED]
    assert [count.channel for count in counts] == [
        2 * n // c for n, c in zip(MNIST_FOLDED, MNIST_CHANNELS, strict=True)
    ]


def test_operations_of_depth_10() -> None:
    counts = operations(models.cifar_net(10), (3, 32, 32))
    assert [count.plain for count in counts] == [2 * n for n in DEPTH_10]
    assert counts[2].folded == 2 * 16 * 16 * 16 * 16 * 16
    assert counts[4].folded == 2 * (16 * 32 * 32 * 8 * 8 + 32 * 16 * 16 * 16)
    assert [k for k, count in enumerate(counts) if count.folded != count.plain] == [2, 4]
    assert [models.count_weights(layer) for layer in models.cifar_net(10)] == DEPTH_10_WEIGHTS


def test_pooling_that_comes_last_is_not_folded() -> None:
    for net in (models.mnist_net(pool_last=True), models.two_conv()):
        assert all(count.folded == count.plain for count in operations(net, (1, 28, 28)))


def test_operations_of_a_step() -> None:
    """mnist_net's third block: the whole net, the part from there on, one channel of the fourth and the rest."""
    counts = operations(models.mnist_net(), (1, 28, 28))
    steps = operations_per_step(counts, 2, batch=50)
    assert steps["plain"] == 3 * 50 * 2 * sum(MNIST)
    assert steps["cached"] == 3 * 50 * 2 * sum(MNIST[2:])
    assert steps["engine"] == 3 * 50 * 2 * (MNIST_FOLDED[3] // 16 + sum(MNIST_FOLDED[4:]))
    assert operations_per_step(counts, 5, 50)["engine"] == 3 * 50 * 2 * 10
    assert operations_per_step(counts, 6, 50)["engine"] == 3 * 50 * 2 * 10


@pytest.mark.parametrize(
    ("name", "multiplications", "weights", "saving"),
    [("mnist_net", MNIST, MNIST_WEIGHTS, 2.95), ("cifar_net_10", DEPTH_10, DEPTH_10_WEIGHTS, 3.54)],
)
def test_the_papers_saving_by_the_cache(
    name: str, multiplications: list[int], weights: list[int], saving: float
) -> None:
    """Section 4.7: 3.0 for the MNIST net and 3.5 for Depth-10, as |W| F / Σ |W_d| F_d."""
    counts = operations(*bench.build(name))
    steps = [operations_per_step(counts, k, 1) for k in range(len(counts))]
    plain, cached = (sum(w * step[m] for w, step in zip(weights, steps, strict=True)) for m in ("plain", "cached"))
    by_hand = sum(w * sum(multiplications[d:]) for d, w in enumerate(weights))
    assert plain / cached == pytest.approx(sum(weights) * sum(multiplications) / by_hand, rel=1e-12)
    assert plain / cached == pytest.approx(saving, abs=0.005)
    assert round(plain / cached, 1) == {"mnist_net": 3.0, "cifar_net_10": 3.5}[name]


def test_operations_of_a_cycle_in_the_engine() -> None:
    counts = operations(models.mnist_net(), (1, 28, 28))
    total = sum(w * operations_per_step(counts, k, 1000)["engine"] for k, w in enumerate(MNIST_WEIGHTS))
    by_hand = MNIST_WEIGHTS[6] * 10
    for d in range(6):
        by_hand += MNIST_WEIGHTS[d] * (MNIST_FOLDED[d + 1] // 16 + sum(MNIST_FOLDED[d + 2 :]))
    assert total == 3 * 1000 * 2 * by_hand
    assert total / 1e12 == pytest.approx(9.14, abs=0.005)


# Time


def test_plain_step_keeps_the_best_of_three() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen: list[float] = []

    def loss() -> Tensor:
        seen.append(float(weight[1, 0]))
        return (weight[1, 0] - 2.6).abs()

    plain_step(weight, 2, torch.tensor(0.5), loss)
    assert seen == [3.0, 3.5, 2.5]
    assert weight.tolist() == [[1.0, 2.0], [2.5, 4.0]]


def test_a_cycle_is_extrapolated() -> None:
    """Ten weights on four slices: four first visits and six further ones, and the cache is built once."""
    timing = Timing("block1", weights=10, plain=7.0, cached=3.0, engine=1.0, first=2.0, build=5.0, firsts=4)
    assert [timing.cycle(method) for method in METHODS] == [70.0, 35.0, 19.0]
    cycle = summary([timing, timing], [{"plain": 100, "cached": 50, "engine": 19}] * 2, rate=1e6)
    assert cycle["engine_ms_per_step"] == pytest.approx(1.9)
    assert cycle["speedup_over_plain"] == pytest.approx(70 / 19)
    assert cycle["speedup_over_cache"] == pytest.approx(35 / 19)
    assert cycle["engine_operations"] == 380
    assert cycle["share_of_peak"] == pytest.approx(380 / 0.038 / 1e6)
    assert cycle["image_forwards_saved"] == pytest.approx(1 - 19 / 100)


def test_matrix_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of five products of two 256 × 256 matrices, of 2 · 256³ operations each."""
    shown = iter([5.0, 4.0, 2.0, 3.0, 4.0])

    def clock(work: Callable[[], object], device: torch.device) -> float:
        work()
        return next(shown)

    monkeypatch.setattr(bench, "clock", clock)
    assert bench.matrix_rate(torch.device("cpu"), 256) == pytest.approx(2 * 256**3 / 2e-3)


def test_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds between two readings, one before the work and one behind it."""
    readings = iter([5.0, 5.25])
    seen: list[float] = []
    monkeypatch.setattr(time, "perf_counter", lambda: seen.append(next(readings)) or seen[-1])
    assert bench.clock(lambda: seen.append(0), torch.device("cpu")) == 250
    assert seen == [5, 0, 5.25]


# The command


@pytest.fixture(params=["one_conv", "mnist_net"])
def report(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], str]:
    """What the command writes for 3 slices of 8 images, as JSON and on the terminal; a small matrix gives the rate."""
    monkeypatch.setattr(bench, "matrix_rate", partial(bench.matrix_rate, size=256))
    file = tmp_path / "bench.json"
    options = ["--net", request.param, "--batch", "8", "--images", "26", "--repeats", "3", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    bench.main()
    return json.loads(file.read_text()), capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--batch 100 --images 50", "images must be at least 100, not 50"),
        ("--batch 70000", "images must be at least 70000, not 60000"),
        ("--threads 0", "threads must be at least 1, not 0"),
        ("--slices 0", "slices must be at least 1, not 0"),
        ("--device abacus", "device 'abacus' cannot be used here"),
        ("--net mnist_nett", "did you mean 'mnist_net'"),
        ("--net-options levels=1", "levels must be 0 for floats or at least 2"),
        ("--net-options width=3", "an option of mnist_net must be one of"),
        ("--net cifar_net_3 --net-options depth=5", "net_options must not have depth, which cifar_net_3 says"),
        ("--json nowhere/figures.json", "json must be a file in a folder that is there and can be written, not"),
        ("--json .", "json must be a file in a folder"),
    ],
)
def test_errors_of_the_command(
    words: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "bench", lambda *_: pytest.fail("it is measured"))
    with pytest.raises(SystemExit):
        bench.main(words.split())
    assert says in capsys.readouterr().err


def test_the_report_follows_from_its_medians(report: tuple[dict[str, Any], str]) -> None:
    """A cycle as it can be recomputed from the layers in the file."""
    made, _ = report
    net, shape = bench.build(made["net"])
    assert [layer["weights"] for layer in made["layers"]] == [models.count_weights(layer) for layer in net]
    counts = operations(net, shape)
    assert [layer["operations"] for layer in made["layers"]] == [
        operations_per_step(counts, k, made["batch"]) for k in range(len(net))
    ]
    assert [layer["firsts"] for layer in made["layers"]] == [3 * len(list(layer.parameters())) for layer in net]
    weights = sum(layer["weights"] for layer in made["layers"])
    plain = sum(layer["weights"] * layer["plain"] for layer in made["layers"])
    cached = sum(layer["build"] + layer["weights"] * layer["cached"] for layer in made["layers"])
    engine = sum(
        layer["build"] + layer["firsts"] * layer["first"] + (layer["weights"] - layer["firsts"]) * layer["engine"]
        for layer in made["layers"]
    )
    cycle = made["cycle"]
    assert cycle["steps"] == weights
    assert cycle["plain_ms_per_step"] == pytest.approx(plain / weights)
    assert cycle["cached_ms_per_step"] == pytest.approx(cached / weights)
    assert cycle["engine_ms_per_step"] == pytest.approx(engine / weights)
    assert cycle["engine_steps_per_second"] == pytest.approx(1e3 * weights / engine)
    assert cycle["speedup_over_plain"] == pytest.approx(plain / engine)
    assert cycle["speedup_over_cache"] == pytest.approx(cached / engine)
    remain = sum(layer["weights"] * layer["operations"]["engine"] for layer in made["layers"])
    assert cycle["share_of_peak"] == pytest.approx(remain / (engine / 1e3) / (made["matrix_gflops"] * 1e9))
    assert made["peak_memory_gb"] == pytest.approx(memory.peak(torch.device("cpu")) / 1e9, rel=0.2)


def test_the_report_says_what_a_busy_core_costs(report: tuple[dict[str, Any], str]) -> None:
    made, printed = report
    beside, [layer] = (
        made["beside_load"],
        [one for one in made["layers"] if one["layer"] == made["beside_load"]["layer"]],
    )
    assert beside["share"] == layer["engine"] / beside["engine"] > 0
    assert f"Beside a busy core: {beside['share']:.0%} of this speed in {layer['layer']}" in printed


def test_a_core_is_busy_for_as_long_as_it_is_asked() -> None:
    with bench.busy_core():
        [busy] = psutil.Process().children()
        before = sum(busy.cpu_times()[:2])
        while sum(busy.cpu_times()[:2]) < before + 0.1:
            time.sleep(0.01)
    assert not busy.is_running()


def test_the_table_shows_what_the_file_holds(report: tuple[dict[str, Any], str]) -> None:
    made, printed = report
    lines = printed.splitlines()
    cycle = made["cycle"]
    [row] = [line for line in lines if line.startswith("| **cycle**")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [
        f"{cycle['steps']:,}",
        *(f"{cycle[f'{method}_ms_per_step']:,.2f}" for method in METHODS),
        f"{cycle['speedup_over_plain']:.1f}",
        f"{cycle['speedup_over_cache']:.1f}",
        f"{100 * cycle['share_of_peak']:.0f} %",
    ]
    for layer in made["layers"]:
        [row] = [line for line in lines if line.startswith(f"| {layer['layer']} ")]
        assert f"| {layer['plain']:,.2f} | {layer['cached']:,.2f} | {layer['engine']:,.2f} |" in row
        share = layer["operations"]["engine"] / layer["engine"] * 1e3 / (made["matrix_gflops"] * 1e9)
        assert row.endswith(f"| {100 * share:.0f} % |")
    assert f"{cycle['speedup_over_plain']:.1f} times faster than plain" in printed
    assert made["machine"] in printed and "thread" in made["machine"]


def test_all_methods_have_the_layout_that_convolutions_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for grey images, whose tensors are contiguous and channels-last at once."""
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(models.Net, "forward", lambda self, x: seen.append(x.stride()) or torch.zeros(len(x), 10))
    monkeypatch.setattr(bench, "run", lambda net, k, flow: seen.append(flow.x.stride()) or torch.zeros(len(flow.x), 10))
    net, shape = bench.build("one_conv")
    batches = bench.Batches(torch.randn(16, *shape), torch.randint(10, (16,)), 8)
    with torch.no_grad():
        bench.measure(net, 0, batches, repeats=1)
    assert set(seen) == {(784, 1, 28, 1)} and len(seen) == 6


def test_a_net_with_options() -> None:
    """Steps on a grid are measured as a run makes them: by whole levels."""
    net, shape = bench.build("two_conv", "activation=sign,levels=3")
    assert {block.activation for block in net.blocks} == {"sign"}
    batches = bench.Batches(torch.randn(16, *shape), torch.randint(10, (16,)), 8)
    spacing = models.grids(net)["block2.conv.weight"].spacing
    with torch.no_grad():
        bench.measure(net, 1, batches, repeats=1)
    steps = net.blocks[1].conv.weight / spacing
    assert torch.equal(steps, steps.round())
    assert not torch.equal(steps * spacing, models.two_conv(levels=3).blocks[1].conv.weight)


def test_measured_times_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts its own readings, each method's time is the median of what it was shown."""
    shown: list[float] = []

    def clock(work: Callable[[], object], device: torch.device) -> float:
        work()
        shown.append(float(len(shown)))
        return shown[-1]

    monkeypatch.setattr(bench, "clock", clock)
    net, shape = bench.build("one_conv")
    batches = bench.Batches(torch.randn(20, *shape), torch.randint(10, (20,)), 8)
    with torch.no_grad():
        timing = bench.measure(net, 0, batches, repeats=3)
    _, *first = shown[:3]  # the cache, then two slices for the first time
    rest = shown[3:]
    assert timing.first == statistics.median(first)
    assert timing.plain == statistics.median(rest[0::3])
    assert timing.cached == statistics.median(rest[1::3])
    assert timing.engine == statistics.median(rest[2::3]) / 9, "a row of one_conv has nine weights"
    assert len(rest) == 9


def test_where_steps_are_replayed_whole_sweeps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As recording takes time, and the first visits are part of them."""
    monkeypatch.setattr(graphs, "covers", lambda *_: True)
    monkeypatch.setattr(graphs, "MIN_VISITS", math.inf)  # all steps run as they are
    turns: list[int] = []
    step = graphs.Replay.__call__

    def watched(self: Any, moves: Moves) -> graphs.Decided:
        turns.append(moves.indices[0])
        return step(self, moves)

    monkeypatch.setattr(graphs.Replay, "__call__", watched)
    net, shape = bench.build("two_conv")
    batches = bench.Batches(torch.randn(16, *shape), torch.randint(10, (16,)), 8)
    with torch.no_grad():
        timing = bench.measure(net, 0, batches, repeats=2)
    assert turns == [*range(2), *range(144), *range(144)]
    assert timing.cycle("engine") == timing.build + timing.weights * timing.engine


def test_a_sample_of_the_slices_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten slices, two of them visited: the cache's time times five, and weights five apart, five in a row of 27."""
    visited: list[tuple[int, int]] = []
    score, build = SequentialScorer.score, SequentialScorer.__init__
    now = iter(range(100))

    def watched(self: Any, moves: Moves) -> Scores:
        visited.append((moves.batch, moves.indices[0]))
        return score(self, moves)

    def small(self: Any, net: models.Net, position: int, batches: bench.Batches, *more: Any) -> None:
        assert len(batches.images) == len(batches.labels) == 16
        build(self, net, position, batches, *more)

    monkeypatch.setattr(SequentialScorer, "score", watched)
    monkeypatch.setattr(SequentialScorer, "__init__", small)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    net, shape = bench.build("cifar_net_3")
    batches = bench.Batches(torch.randn(83, *shape), torch.randint(10, (83,)), 8)
    with torch.no_grad():
        timing = bench.measure(net, 0, batches, repeats=2, sample=2)
    assert visited == [(k % 2, 5 * k) for k in range(2 + 2 * 5)]
    assert timing.build == pytest.approx(1e3 * 83 / 16)
    assert timing.firsts == 10 + 10 + 10
