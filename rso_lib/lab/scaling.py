"""Several processes: runs that measure the gain, and a model of where it ends (notebook 07, section 4.6)."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..models import Head
from ..run.folder import Run, load
from . import bench
from .figure import Picture, new_picture, style

SPLITS = {"sequential": "batch", "neuron": "weights", "layer": "weights"}
"""What processes would share, by strategy. Sequential steps could share a batch only; `rso_lib` does not do it."""


def launch_run(folder: str | Path, processes: int, **settings: Any) -> Run:
    """Run the command line with several processes of one thread each on this machine, and wait for its end.

    settings  as on the command line of `python -m rso_lib train`

    Raises RuntimeError, with the end of what the processes printed, where they fail.
    """
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, "-m", *torchrun, "-m", "rso_lib", "train", str(folder), *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return load(folder)


# The model


class Layer(NamedTuple):
    """Costs of a layer for a process alone.

    step, cache      seconds of a step, and of building the cache
    norms, channels  batch norms from this layer to the head, and their channels together
    """

    weights: int
    neurons: int
    step: float
    cache: float
    norms: int
    channels: int


class Network(NamedTuple):
    """Seconds until a message arrives, and bytes per second that a process sends."""

    latency: float
    bandwidth: float


NETWORKS = {
    "one machine": Network(5e-5, 1e10),
    "a cluster": Network(2e-5, 1e10),
    "an office": Network(5e-4, 1e8),
    "the open internet": Network(5e-2, 1e6),
}
"""Orders of magnitude, not measurements."""


def read_layers(report: str | Path, size: float = 1.0) -> list[Layer]:
    """Read the costs of a net's layers from a report of `python -m rso_lib bench --json`.

    size  multiplies the channels of the net: the weights and the time of a step grow with its square
    """
    found = json.loads(Path(report).read_text())
    net, _ = bench.build(found["net"])
    rows = []
    for position, (layer, timed) in enumerate(zip(net.layers, found["layers"], strict=True)):
        behind = [block.conv.out_channels for block in net.blocks[position:]]
        outputs = 1 if isinstance(layer, Head) else layer.conv.out_channels
        rows.append(
            Layer(
                weights=round(timed["weights"] * size**2),
                neurons=max(1, round(outputs * size)),
                step=timed["engine"] / 1e3 * size**2,
                cache=timed["build"] / 1e3 * size,
                norms=len(behind),
                channels=round(sum(behind) * size),
            )
        )
    return rows


def predict_cycle(layers: Sequence[Layer], processes: int, strategy: str, network: Network) -> dict[str, float]:
    """Predict the seconds of a cycle: compute, latency, bytes (on the wire), and total, their sum.

    The steps are shared; the caches too where the strategy is "layer", as a process has its own slices there.
    A message to all takes ⌈log₂ processes⌉ latencies, as in a tree; a process sends its own part to each of the
    others.
    """
    share = dict.fromkeys(("compute", "latency", "bytes"), 0.0)
    rounds, others = math.ceil(math.log2(processes)), processes - 1
    for layer in layers:
        if strategy == "sequential":
            shared, messages = layer.weights / processes, layer.weights * (layer.norms + 1)
            sent = layer.weights * 8 * (6 * layer.channels + layer.norms + 4)
        else:
            units = 1 if layer.norms == 0 else layer.neurons if strategy == "neuron" else layer.weights
            shared, messages = layer.weights * math.ceil(units / processes) / units, 1
            sent = math.ceil(shared / 4)
        own_slices = strategy == "layer" and layer.norms > 0
        share["compute"] += shared * layer.step + layer.cache / (processes if own_slices else 1)
        share["latency"] += messages * rounds * network.latency
        share["bytes"] += sent * others / network.bandwidth
    return {**share, "total": sum(share.values())}


@style()
def plot_speedups(layers: Sequence[Layer], network: Network, processes: int) -> Picture:
    """Draw how many times faster a cycle is with several processes than with one, for the three strategies.

    processes  the number to mark, and to tell in the text
    """
    picture = new_picture(9.5, 3.8, right=2.8)
    axes = picture.subplots()
    counts, says = [2**k for k in range(13)], []
    for strategy, split in SPLITS.items():
        alone = predict_cycle(layers, 1, strategy, network)["total"]
        gains = [alone / predict_cycle(layers, n, strategy, network)["total"] for n in counts]
        [line] = axes.plot(counts, gains, label=f"{strategy} ({split} split)")
        here = alone / predict_cycle(layers, processes, strategy, network)["total"]
        axes.scatter([processes], [here], color=line.get_color(), s=40, zorder=3)
        best = max(range(len(counts)), key=gains.__getitem__)
        says.append(f"{strategy} {here:.3g} times, at most {gains[best]:.3g} (with {counts[best]:,})")
    axes.plot(counts, counts, color="#8C8C8C", linewidth=1, linestyle="-", zorder=0, label="ideal")
    axes.axvline(processes, color="#BBBBBB", linewidth=1, linestyle=":", zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="processes", ylabel="times as fast", ylim=(0.01, 5000))
    picture.legend(loc="center right", fontsize=10)
    picture.alt = f"A cycle by {processes:,} processes against one: {'; '.join(says)}."
    return picture
