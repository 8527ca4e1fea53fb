"""How long a step takes: plain, with the paper's cache, and in the engine, measured in turn in one process.

    python -m rso_lib bench [--net mnist_net] [--net-options NAME=VALUE,...] [--batch 1000] [--slices N] [--device cpu]
                            [--json FILE]

plain    three forward passes of the whole net, channels_last, no gradients
cached   three forward passes from the searched layer on (section 4.7)
engine   what `rso_lib.train` does

A cycle is extrapolated from measured steps of every layer: its cached input is built once, every slice is
visited for the first time, and all further steps cost what those measured do. A step in the engine costs more where a
row of weights begins, so whole rows are timed; on a CUDA device whole sweeps, in which steps are recorded and replayed.
Steps are medians of several rounds. With --slices only so many are built and visited, which takes less memory and time:
the cache's time grows with the images, and the weights visited lie as far apart as they would on all slices; those
between are changed, as if visited. Images are random: the time does not depend on them. All three run with the same
allocator settings (`memory.keep_freed`).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import models
from ..algorithm import Batches, cross_entropies, cross_entropy
from ..engine import Moves, memory, replay, stepper
from ..engine.head import HeadScorer
from ..engine.inputs import cached_input
from ..engine.layers import channels_last, stages
from ..engine.sequential import SequentialScorer
from ..models import Flow, Head, Net, grids
from ..passes import calibrate
from ..proposals import sigma
from ..rules import argmin
from ..run import cli as command
from ..run.files import replacing
from ..run.nets import NETS, read_options
from ..settings import RSO, check_choice, check_whole, exact_products
from .bench_report import Timing, describe_machine, operations, operations_per_step, summary, tabulate_bench

SHAPES = {"one_conv": (1, 28, 28), "two_conv": (1, 28, 28), "mnist_net": (1, 28, 28)}
CIFAR = {f"cifar_net_{depth}": depth for depth in (3, 5, 10)}
IMAGES = {1: 60000, 3: 50000}
"""Training images of MNIST and of CIFAR-10, by channels."""


def build(name: str, options: str = "") -> tuple[Net, tuple[int, int, int]]:
    """Build a net by its name and options on the command line. Returns it, and the shape of its images."""
    net, fixed = ("cifar_net", {"depth": CIFAR[name]}) if name in CIFAR else (name, {})
    given = read_options(net, options) if options else {}
    if fixed.keys() & given:
        raise ValueError(f"net_options must not have depth, which {name} says, but it is {options!r}")
    shape = SHAPES.get(name, (3, 32, 32))
    return NETS[net](shape=shape, classes=10, seed=0, **fixed, **given), shape


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call, with the device's work included."""
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return 1e3 * (time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, size: int = 4096) -> float:
    """Return the operations per second of a float32 matrix product: the best of five."""
    a = torch.randn(size, size, device=device)
    out = torch.empty_like(a)
    return 2 * size**3 / min(clock(lambda: torch.mm(a, a, out=out), device) for _ in range(5)) * 1e3


def plain_step(weight: Tensor, index: int, delta: Tensor, loss: Callable[[], Tensor]) -> None:
    """Make a step as a careful user would write it: one element changed in place, three times."""
    flat = weight.view(-1)
    old = flat[index].clone()
    values = torch.stack([old, old + delta, old - delta])
    best, losses = old, []
    try:
        for value in values:
            flat[index] = value
            losses.append(loss())
        best = values.take(torch.stack(losses).argmin())
    finally:
        flat[index] = best


class TimedVisits:
    """Steps of the engine on the largest tensor of a layer.

    slices  batches of all images, of which the scorer may have a sample; the weights visited lie as far apart as they
            would on all of them
    """

    def __init__(self, net: Net, position: int, batches: Batches, slices: int):
        layer, device = net.layers[position], batches.images.device
        self.name, largest = max(layer.named_parameters(), key=lambda pair: pair[1].numel())
        self.weight = largest.detach()
        grid = grids(layer).get(self.name)
        self.delta = torch.tensor(grid.spacing if grid else 0.01 * sigma(largest), device=device)
        kind = HeadScorer if isinstance(layer, Head) else SequentialScorer
        self.scorer = kind(net, position, batches, RSO(batch_size=batches.size), cross_entropies)
        self.step = stepper(self.scorer, argmin, device)
        self.replays = isinstance(self.step, replay.Replay)
        self.sample, self.slices = len(self.scorer.labels), slices

    def build(self) -> None:
        """Build the cached input of every slice."""
        for batch in range(self.sample):
            self.scorer.inputs[batch]

    def __call__(self, turns: Iterable[int]) -> None:
        """Make the steps of some turns; the weights between them change too, as if visited on other batches."""
        weight, apart = self.scorer.w[self.name].view(-1), self.slices // self.sample
        for turn in turns:
            at = turn * apart % len(weight)
            weight[max(at - apart + 1, 0) : at] += self.delta
            self.step(Moves.of(self.name, at, self.delta, turn % self.sample))

    def turns(self, k: int) -> range:
        """Return the turns of the k-th timed round: a row of weights, or a whole sweep where steps are replayed."""
        if self.replays:
            return range(self.weight.numel() * self.sample // self.slices)
        row = max(1, self.weight[0].numel() // (self.slices // self.sample))
        return range(self.sample + k * row, self.sample + (k + 1) * row)


def plain_losses(net: Net, position: int, batches: Batches) -> dict[str, Callable[[], Tensor]]:
    """Return the losses on the first batch that "plain" and "cached" compute: of the whole net, and from a layer on."""
    x, labels = channels_last(batches.images[: batches.size]), batches.labels[: batches.size]
    behind = cached_input(stages(net.blocks[:position], calibrated=True), x, channels_last)
    behind = behind._replace(x=channels_last(behind.x))  # grey images have two layouts, and convolutions ask for one
    return {
        "plain": lambda: cross_entropy(net(x), labels),
        "cached": lambda: cross_entropy(run(net, position, behind), labels),
    }


def measure(net: Net, position: int, batches: Batches, repeats: int, sample: int | None = None) -> Timing:
    """Time the steps of the layer at a position, the three methods in turn, on all slices or a sample of them."""
    device, layer = batches.images.device, net.layers[position]
    slices = len(batches.labels) // batches.size
    part = batches
    if sample and sample < slices:
        images = sample * batches.size
        part = Batches(batches.images[:images], batches.labels[:images], batches.size)
    net.eval()
    visits = TimedVisits(net, position, part, slices)
    build = clock(visits.build, device) * len(batches.labels) / len(part.labels)
    first = [clock(partial(visits, [turn]), device) for turn in range(visits.sample)]
    losses = plain_losses(net, position, batches)
    times: dict[str, list[float]] = {"plain": [], "cached": [], "engine": []}
    for k in range(repeats):
        net.train()
        for method, loss in losses.items():
            plain = partial(plain_step, visits.weight, 0, visits.delta, loss)
            if visits.replays:
                plain()  # recording has left torch no memory for it
            times[method].append(clock(plain, device))
        if visits.replays:
            visits.scorer.begin()
        turns = visits.turns(k)
        times["engine"].append(clock(partial(visits, turns), device) / len(turns))
    return Timing(
        layer=list(dict(net.named_children()))[position],
        weights=models.count_weights(layer),
        **{method: statistics.median(values) for method, values in times.items()},
        first=statistics.median(first),
        build=build,
        firsts=0 if visits.replays else sum(min(slices, tensor.numel()) for tensor in layer.parameters()),
    )


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy with another process."""
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE
    ) as busy:
        try:
            assert busy.stdout is not None
            busy.stdout.readline()  # it has begun
            yield
        finally:
            busy.kill()


def beside_load(net: Net, timings: list[Timing], batches: Batches, repeats: int, sample: int | None) -> dict[str, Any]:
    """Measure the layer with most of the time of a cycle again, beside a process that keeps a core busy.

    Returns the layer, milliseconds of a step there, and the speed as a share of the quiet one.
    """
    position = max(range(len(timings)), key=lambda k: timings[k].cycle("engine"))
    with busy_core():
        loaded = measure(net, position, batches, repeats, sample).engine
    quiet = timings[position]
    return {"layer": quiet.layer, "engine": loaded, "share": quiet.engine / loaded}


def run(net: Net, position: int, flow: Flow) -> Tensor:
    """Return the logits that the layers from a position on compute."""
    for block in net.blocks[position:]:
        flow = block(flow)
    return net.head(flow)


@torch.no_grad()
def bench(
    net_name: str,
    batch: int,
    device: torch.device,
    images: int | None = None,
    repeats: int = 5,
    sample: int | None = None,
    net_options: str = "",
) -> dict:
    """Measure a net, on all slices or a sample of them. Returns the content of the JSON file."""
    net, shape = build(net_name, net_options)
    memory.keep_freed()
    count = images or IMAGES[shape[0]]
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randn(count, *shape, generator=rng).to(device)
    labels = torch.randint(10, (count,), generator=rng).to(device)
    net = net.to(device)
    calibrate(net, pictures)
    batches = Batches(pictures, labels, batch)
    rate = matrix_rate(device)
    positions = tqdm(range(len(net)), unit="layer")
    timings = [measure(net, position, batches, repeats, sample) for position in positions]
    beside = beside_load(net, timings, batches, repeats, sample) if device.type == "cpu" else None
    counts = operations(build(net_name, net_options)[0], shape)
    steps = [operations_per_step(counts, position, batch) for position in range(len(net))]
    cycle = summary(timings, steps, rate)
    made = {
        "net": net_name,
        "net_options": net_options,
        "batch": batch,
        "images": count,
        "slices": min(sample or count // batch, count // batch),
        "machine": describe_machine(device),
        "matrix_gflops": rate / 1e9,
        "peak_memory_gb": memory.peak(device) / 1e9,
        "cycle": cycle,
        "beside_load": beside,
        "layers": [asdict(timing) | {"operations": ops} for timing, ops in zip(timings, steps, strict=True)],
    }
    print(f"{net_name} {net_options}: milliseconds of a step\n\n{tabulate_bench(made)}")
    if beside:
        print(f"\nBeside a busy core: {beside['share']:.0%} of this speed in {beside['layer']}", end="")
        print(f" ({beside['engine']:.2f} ms a step)")
    return made


@dataclass
class Options:
    """What is measured."""

    net: str = field(default="mnist_net", metadata={"more": ", ".join([*SHAPES, *CIFAR])})
    """one of these:"""
    net_options: str = ""
    """of the net, such as activation=sign,levels=3"""
    batch: int = 1000
    """images in a batch"""
    images: int | None = None
    """training images; else MNIST's or CIFAR-10's number"""
    slices: int | None = None
    """how many are built and visited; else all"""
    device: str = "cpu"
    """such as cuda"""
    threads: int | None = None
    """of the CPU; else as many as torch chooses"""
    repeats: int = 5
    """timed rounds in every layer"""
    json: str | None = None
    """file for the figures"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure how long a step takes: plain, with the paper's cache, and in the engine.

    plain is three forward passes of the whole net, cached three from the searched layer on (section 4.7), engine what
    a run does. With --slices only so many are built and visited, which takes less memory and time.
    """
    options = Options(**command.parse("bench", main, arguments, Options))
    with command.ending("bench"):
        device, file = _checked(options)
        with exact_products():
            size = options.images, options.repeats, options.slices
            result = bench(options.net, options.batch, device, *size, options.net_options)
        if file:
            with replacing(file) as part:
                part.write_text(json.dumps(result, indent=1) + "\n")


def _checked(options: Options) -> tuple[torch.device, Path | None]:
    """Set the threads; return the device and the file. Raises ValueError for options that would fail later."""
    check_choice("net", options.net, [*SHAPES, *CIFAR])
    for name in ("batch", "images", "slices", "repeats"):
        if (value := getattr(options, name)) is not None:
            check_whole(name, value, least=1)
    _, (channels, *_) = build(options.net, options.net_options)
    check_whole("images", options.images or IMAGES[channels], least=options.batch)
    if options.threads is not None:
        command.set_threads(options.threads)
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {options.device!r} cannot be used here: {reason}") from error
    if options.json is None:
        return torch.device(options.device), None
    file = Path(options.json).expanduser()
    if not options.json.strip() or file.is_dir() or not os.access(file.parent, os.W_OK):
        raise ValueError(f"json must be a file in a folder that is there and can be written, not {options.json!r}")
    return torch.device(options.device), file
