"""A step on a GPU as one replayed graph, in place of launches that take longer than their arithmetic.

A CUDA graph repeats the same kernels on the same memory. So what is kept for a slice keeps its place, and what differs
between the steps on a slice is read from tensors: which weight, in which row, which other rows are out of date, and Δ.
The choice among the candidates and its write-back are in the graph too: nothing is read back to the host.

With RSO_GRAPHS=0 in the environment each kernel is launched by itself: the same steps, up to rounding.
"""

import os
import threading
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from ..algorithm import Batches
from ..models import Net
from .block import BlockSearch, shifts
from .kernels import Preactivation
from .layers import Index

WORTH = 8
"""Steps on a slice within a sweep, in the mean, from which on graphs are recorded: recording takes as long as a few
steps (an estimate, not a measurement)."""

Work = Callable[[Tensor, Tensor], Tensor]
Kind = tuple[int, str, int]
"""Of a step: its slice, its tensor, and how many rows of the slice are out of date."""


class Graph:
    """What some work launches on a CUDA device for inputs of certain sizes: recorded here, done by each call."""

    def __init__(self, work: Work, inputs: tuple[Tensor, Tensor], beside: "Graph | None" = None):
        """beside  a graph that shares its memory for what is temporary: the two never run at the same time"""
        self.inputs = [x.clone() for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        device, pool = inputs[0].device, beside.graph.pool() if beside else None
        stream = stream_of(device, threading.get_ident())
        with torch.cuda.device(device):
            usual = torch.cuda.current_stream()
            try:
                with torch.cuda.graph(self.graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    self.made = work(*self.inputs)
            finally:
                torch.cuda.set_stream(usual)  # after a failure, torch before 2.15 stays on the other

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, x in zip(self.inputs, inputs, strict=True):
            mine.copy_(x)
        self.graph.replay()
        return self.made.clone()  # before another graph writes there


@cache
def stream_of(device: torch.device, thread: int) -> torch.cuda.Stream:
    """Where a thread records. Graphs of one stream share a workspace, which in some versions of torch goes with the
    first of them; those of one search go together."""
    return torch.cuda.Stream(device)


class GraphSearch(BlockSearch):
    """The steps of `BlockSearch` on a CUDA device. Those that do the same on a slice share a graph.

    records  whether graphs can be recorded in this process: until it fails
    """

    records: ClassVar[bool] = True

    def __init__(self, net: Net, position: int, batches: Batches, cache: str = "full"):
        self.graphs: dict[Kind, Graph] = {}
        self.warm: set[tuple[str, int]] = set()
        super().__init__(net, position, batches, cache)
        device, (height, width) = batches.images.device, self.size
        self.numbers = torch.arange(max(weight.numel() for weight in self.w.values()), device=device)
        # in an image's planes: what each weight of a row meets first, and what lies between that and each pixel's
        self.tap_shifts = shifts(self.row_size, *self.plane, self.folded).to(device)
        self.pixels = (self.plane[1] * torch.arange(height)[:, None] + torch.arange(width)).flatten().to(device)

    def forget(self) -> None:
        """As in `BlockSearch`. Graphs go with the memory that they work on."""
        super().forget()
        self.graphs.clear()

    def come_to(self, row: int) -> None:
        """As in `BlockSearch`. The outputs of rows are not kept here, so that it makes no difference if one returns."""
        self.visited.append(row)

    def decide(self, s: int, name: str, stale: int, delta: Tensor, *places: Index) -> Tensor:
        """As in `BlockSearch`, by a graph where that is worth while."""
        kind = s, name, stale
        where = torch.stack([self.numbers[place] for place in places])  # out of memory of the device: no upload
        work = partial(self.decide_there, *kind)
        if kind not in self.graphs and self.is_ready(*kind) and not self.record(kind, work, (delta, where)):
            self.forget()  # what was recorded in part
            index, j, *_, row = places
            self.visited.append(int(row))
            return self.decide(s, name, 0, delta, index, j, row)
        self.warm.add((name, stale))
        return self.graphs.get(kind, work)(delta, where)

    def decide_there(self, s: int, name: str, stale: int, delta: Tensor, where: Tensor) -> Tensor:
        """The step with its places [n] on the device."""
        return super().decide(s, name, stale, delta, *where.split(1))

    def is_ready(self, s: int, name: str, stale: int) -> bool:
        """Whether to record a step: if it will be repeated, what it changes has its place, and the libraries are set up
        for it by one that ran as it is."""
        often = self.w[name].numel() >= WORTH * len(self.labels)
        return often and s in self.responses and (name, stale) in self.warm and self.records

    def record(self, kind: Kind, work: Work, inputs: tuple[Tensor, Tensor]) -> bool:
        """Make a graph of the steps of a kind. Returns whether that was possible."""
        try:
            self.graphs[kind] = Graph(work, inputs, next(iter(self.graphs.values()), None))
        except RuntimeError as error:
            warnings.warn(f"the steps are not replayed but launched kernel by kernel: {error}", stacklevel=2)
            GraphSearch.records = False
        return self.records

    def respond(self, s: int, z: Preactivation) -> None:
        """As in `BlockSearch`, in the same memory each time."""
        response, skip = self.responses.get(s), self.skips.get(s)
        super().respond(s, z)
        if response is not None:
            self.responses[s] = Preactivation(response.z.copy_(self.responses[s].z))
        if skip is not None and (made := self.skips[s]) is not None:
            self.skips[s] = skip.copy_(made)

    def tap(self, x: Tensor, j: Index) -> Tensor:
        """As in `BlockSearch`."""
        return x.flatten(1)[:, self.pixels + self.tap_shifts[j]].view(-1, *self.size)


def block_search(net: Net, position: int, batches: Batches, cache: str = "full") -> BlockSearch:
    """The sequential search of the block at a position of the net, with replayed steps where `covers` says so."""
    search = GraphSearch if covers(batches.images.device, cache) else BlockSearch
    return search(net, position, batches, cache)


def covers(device: torch.device, cache: str) -> bool:
    """Whether steps are replayed: on a CUDA device, where the caches of a batch stay."""
    return cache != "input" and device.type == "cuda" and os.environ.get("RSO_GRAPHS") != "0"
