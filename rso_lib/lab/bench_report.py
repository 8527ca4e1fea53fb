"""The report of a benchmark: operations of a step by count, and a cycle's figures from those of its layers."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..engine import kernels
from ..engine.layers import folds
from ..models import Flow, Net
from ..passes import mode
from .markdown import table


@dataclass
class Operations:
    """Operations of one image in a layer: as a plain forward, with the pooling folded, and for one input channel."""

    plain: int
    folded: int
    channel: int


def operations(net: Net, shape: tuple[int, int, int]) -> list[Operations]:
    """Count the operations of every layer's linear maps, for images of a shape (C, H, W).

    A multiplication and an addition are two operations. The net's batch norm statistics stay as they are.
    """
    flow, counts = Flow(net.head.linear.weight.new_zeros(1, *shape)), []
    with mode(net, training=False):  # an image goes through the blocks, and batch norm's statistics stay
        for block in net.blocks:
            channels, height, width = flow.x.shape[1:]
            pairs = channels * block.conv.out_channels
            plain = 2 * 9 * height * width * pairs
            folded = 2 * 16 * (height // 2) * (width // 2) * pairs if folds(block) else plain
            shortcut = 2 * height * width * block.get_parameter("shortcut.0.weight").numel() if block.shortcut else 0
            counts.append(Operations(plain + shortcut, folded + shortcut, folded // channels))
            flow = block(flow)
    plain = 2 * net.head.linear.weight.numel()
    return [*counts, Operations(plain, plain, plain // flow.x.shape[1])]


def operations_per_step(counts: list[Operations], position: int, batch: int) -> dict[str, int]:
    """Count the operations of a step in the layer at a position, by method.

    The engine's count is what remains with every saving: three times the next layer for one channel and
    the layers after it in full. What its bookkeeping adds is not counted. A convolution and the pooling behind it
    count as one 4×4 convolution with stride 2; the compiled kernels take 2×2 means first and need 9/16 of that.
    """
    after = counts[position + 1 :]
    remain = after[0].channel + sum(count.folded for count in after[1:]) if after else counts[-1].channel
    return {
        "plain": 3 * batch * sum(count.plain for count in counts),
        "cached": 3 * batch * sum(count.plain for count in counts[position:]),
        "engine": 3 * batch * remain,
    }


@dataclass
class Timing:
    """Milliseconds in one layer: of a step by method; in the engine also of the cache and a slice's first visit.

    firsts  the first visits that `engine` does not include: none where whole sweeps are timed
    """

    layer: str
    weights: int
    plain: float
    cached: float
    engine: float
    first: float
    build: float
    firsts: int

    def cycle(self, method: str) -> float:
        """Return the milliseconds of a whole sweep."""
        if method == "engine":
            return self.build + self.firsts * self.first + (self.weights - self.firsts) * self.engine
        return self.weights * getattr(self, method) + (self.build if method == "cached" else 0)


def summary(timings: list[Timing], steps: list[dict[str, int]], rate: float) -> dict[str, float]:
    """Return the figures of a cycle from those of its layers; `rate` is the measured matrix rate."""
    weights = sum(timing.weights for timing in timings)
    ms = {method: sum(timing.cycle(method) for timing in timings) for method in ("plain", "cached", "engine")}
    count = {m: sum(t.weights * ops[m] for t, ops in zip(timings, steps, strict=True)) for m in ms}
    return {
        "steps": weights,
        **{f"{method}_ms_per_step": ms[method] / weights for method in ms},
        "engine_steps_per_second": 1e3 * weights / ms["engine"],
        "engine_seconds": ms["engine"] / 1e3,
        "speedup_over_plain": ms["plain"] / ms["engine"],
        "speedup_over_cache": ms["cached"] / ms["engine"],
        **{f"{method}_operations": count[method] for method in ms},
        "image_forwards_saved": 1 - count["engine"] / count["plain"],
        "share_of_peak": count["engine"] / (ms["engine"] / 1e3) / rate,
    }


def describe_machine(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}, {cpu_name()}, torch {torch.__version__}"


def cpu_name() -> str:
    """Return the processor's name where the system tells, with the widest vector instructions that torch uses."""
    [name, *_] = kernels.cpu_info("model name") or [platform.processor()]
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def tabulate_bench(bench: Mapping[str, Any]) -> str:
    """Return a table in Markdown of the milliseconds of a step in every layer and over a cycle, and what a cycle costs.

    bench  what a figures/bench_NAME.json holds
    """
    cycle, rate = bench["cycle"], bench["matrix_gflops"] * 1e9
    shares = [one["operations"]["engine"] / (one["engine"] / 1e3) / rate for one in bench["layers"]]
    whole = {method: cycle[f"{method}_ms_per_step"] for method in ("plain", "cached", "engine")}
    layers = [*bench["layers"], {"layer": "**cycle**", "weights": cycle["steps"], **whole}]
    rows = []
    for one, share in zip(layers, [*shares, cycle["share_of_peak"]], strict=True):
        plain, cached, engine = (one[method] for method in whole)
        times = [f"{one[method]:,.2f}" for method in whole]
        ratios = [f"{plain / engine:.1f}", f"{cached / engine:.1f}", f"{100 * share:.0f} %"]
        rows.append([one["layer"], f"{one['weights']:,}", *times, *ratios])
    columns = ["layer", "weights", "plain", "cached", "engine", "over plain", "over cache", "share of peak"]
    return f"{table(columns, 'lrrrrrrr', rows)}\n\n{describe_cycle(bench)}"


def describe_cycle(bench: Mapping[str, Any]) -> str:
    """Return what a cycle costs, from what a figures/bench_NAME.json holds."""
    cycle = bench["cycle"]
    seconds, share = cycle["engine_seconds"], cycle["engine_operations"] / cycle["plain_operations"]
    length = f"{seconds:.3g} seconds" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
    return (
        f"A cycle of {bench['net']} with batches of {bench['batch']:,} takes {length}, extrapolated from measured "
        f"steps of every layer and the set-up of each: {cycle['speedup_over_plain']:.1f} times faster than plain, "
        f"{cycle['speedup_over_cache']:.1f} times faster than cached. The engine does {100 * share:.1f} % of the plain "
        f"algorithm's operations, at {100 * cycle['share_of_peak']:.0f} % of the rate of a large matrix product "
        f"({bench['matrix_gflops']:.0f} GFLOP/s), with {bench['peak_memory_gb']:.1f} GB. ({bench['machine']}.)"
    )
