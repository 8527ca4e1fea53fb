"""The memory that a run needs and that the machine has, and how freed memory is kept."""

import contextlib
import copy
import ctypes
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ..data import Data
from ..known import unlike
from ..models import Flow, Net, pool2
from ..settings import CACHES, RSO
from . import replay
from .block import most_at_once
from .inputs import planes
from .layers import channels_last, folds, stage

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NORMED, PLAIN = 8, 4
"""Tensors of the size of the largest activation that a step holds at once, in a net with batch norm and in one without
(measured: see tests/test_memory.py)."""


def keep_freed() -> bool:
    """Let glibc keep freed blocks of up to 1 GiB instead of handing them back to the system.

    A fresh 60 MB tensor costs more in page faults than the arithmetic on it: with batch 5,000 this makes
    a step three to eight times faster. Returns False, and changes nothing, where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def release() -> None:
    """Give the system the memory back that `keep_freed` has kept: its pieces may not suit the sizes that come."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available(device: torch.device) -> int:
    """Return the free bytes of a device's memory; on a CPU, the share of one of the processes that torchrun started."""
    if device.type == "cuda":
        freed = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch has it for its next
        return torch.cuda.mem_get_info(device)[0] + freed
    import psutil

    free = min(psutil.virtual_memory().available, _left_to_the_container())
    return int(free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _left_to_the_container(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the bytes left to a container on Linux; files that it can drop count as free; inf for no limit."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return math.inf
    return max(limit - used + int(counts["inactive_file"]), 0)


def peak(device: torch.device) -> int:
    """Return the most bytes in use at once so far: of the process, or of the CUDA device's tensors."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss begins with that of the parent process there
        return 1024 * int(next(line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@torch.no_grad()
def needed(net: Net, data: Data, settings: RSO) -> int:
    """Return the bytes that the search of the most demanding layer takes in this process, beyond the data itself.

    Per image: the shuffled copy, the searched layer's input and the open skip. At the weight level, unless
    settings.cache is "input" or settings.strategy "layer", also the next layer's response and the skip that the layer
    opens, and in the sequential strategy what one row of the layer gives, or all rows where settings.order comes back
    to them. Per image of a batch: `NORMED` or `PLAIN` tensors of the largest activation, times the candidates that go
    through the net together, and one more for an input in half precision, two where a step is joint.
    Raises ValueError for a net that the engine does not know.
    """
    if reason := unlike(net):
        raise ValueError(f"the estimate is for a models.Net that the engine knows: {reason}")
    image, half, jointly = data.train.images[:1], settings.cache == "half", settings.level != "weight"
    net = copy.deepcopy(net).eval()  # in train mode one image would replace the calibrated statistics
    flow, most, largest = Flow(channels_last(image)), 0, image.numel()
    for block, following in zip(net.blocks, net.layers[1:], strict=True):
        output = block(flow)
        x = flow.x if jointly else planes(flow.x, folds(block))
        kept = [x] if flow.skip is None else [x, flow.skip]
        cut = stage(following)
        entered = cut.enter(output.x)
        row = pool2(flow.x[:, :1], block.pool) if folds(block) else flow.x[:, :1]
        states = [cut.response(entered), *([output.skip] if block.opens else [])]
        if settings.strategy == "sequential":
            states += [row] * (1 if settings.order == "output" else block.conv.out_channels)
        input_size = 2 if half else image.element_size()
        size = sum(part.numel() for part in kept) * input_size
        if settings.cache != "input" and settings.strategy != "layer" and not jointly:
            size += sum(part.numel() for part in states) * image.element_size()
        if settings.level != "network" or block is net.blocks[0]:
            most = max(most, size)
        unpooled = flow.x if folds(block) else block.conv(flow.x)
        largest = max(largest, *(part.numel() for part in [*kept, *states, entered, unpooled]))
        flow = output
    per_image = most + image.numel() * image.element_size()
    temporaries = NORMED if any(block.norm for block in net.blocks) else PLAIN
    if settings.strategy == "sequential" and not jointly and replay.covers(image.device, settings.cache):
        temporaries *= 2  # graphs have memory of their own
    values = settings.batch_size * largest
    values = half * (1 + jointly) * values + temporaries * together(values, net, data, settings)
    return len(data.train) * per_image + values * image.element_size()


def together(candidate: int, net: Net, data: Data, settings: RSO) -> int:
    """Return the values of the largest activation for all candidates in one batch, given those for one candidate."""
    slices = max(len(data.train) // settings.batch_size, 1)
    sweep = max((block.conv.weight.numel() for block in net.blocks), default=0)
    tried = len(settings.candidates)
    candidates = {
        "sequential": tried,
        "neuron": tried * max((block.conv.out_channels for block in net.blocks), default=1),
        "layer": (tried - 1) * -(-sweep // slices) + 1,
    }[settings.strategy]
    most = most_at_once(data.train.images.device)
    return max(min(candidates * candidate, most), candidate)


def check_room(net: Net, data: Data, settings: RSO) -> None:
    """Raise MemoryError, with the numbers and the settings to change, where a run would not fit."""
    device = data.train.images.device
    need, free = needed(net, data, settings), available(device)
    if need <= free:
        return
    less = [cache for cache in CACHES if needed(net, data, replace(settings, cache=cache)) < need]
    ways = " or ".join([*(f'cache="{cache}"' for cache in less), f"a smaller batch_size (now {settings.batch_size})"])
    raise MemoryError(
        f"this run needs about {need / 1e9:.1f} GB, and {device} has {free / 1e9:.1f} GB free: set {ways}"
    )
