"""A step on a GPU as one replayed graph, in place of launches that take longer than their arithmetic.

A CUDA graph repeats the same kernels on the same memory. So what is kept for a slice keeps its place, and what differs
between the steps on a slice is read from tensors: which weight, in which row, which other rows have changed, and Δ.
The choice among the candidates and its write-back are in the graph too: nothing is read back to the host.

With RSO_GRAPHS=0 in the environment each kernel is launched by itself: the same steps.
"""

import os
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .engine import BlockSearch, shifts
from .kernels import Preactivation
from .models import Net
from .parallel import world
from .reference import Batches
from .stages import Place

Work = Callable[[Tensor, Tensor], Tensor]
Kind = tuple[int, str, int]
"""Of a step: its slice, its tensor, and how many rows of the slice are brought up to date."""


class Graph:
    """What some work launches on a CUDA device for inputs of certain sizes: recorded here, done by each call."""

    def __init__(self, work: Work, inputs: tuple[Tensor, Tensor], beside: "Graph | None" = None):
        """beside  a graph that shares its memory for what is temporary: the two never run at the same time"""
        self.inputs = [x.clone() for x in inputs]
        self.graph = torch.cuda.CUDAGraph()
        pool = beside.graph.pool() if beside else None
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.made = work(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for mine, x in zip(self.inputs, inputs, strict=True):
            mine.copy_(x)
        self.graph.replay()
        return self.made.clone()


class GraphSearch(BlockSearch):
    """The steps of `BlockSearch` on a CUDA device. Those that do the same on a slice share a graph."""

    def __init__(self, net: Net, position: int, batches: Batches, cache: str = "full"):
        self.graphs: dict[Kind, Graph | None] = {}
        self.records = True
        super().__init__(net, position, batches, cache)
        device, (height, width) = batches.images.device, self.size
        self.numbers = torch.arange(max(weight.numel() for weight in self.w.values()), device=device)
        self.shifts = shifts(self.row_size, *self.plane, self.folded).to(device)
        self.pixels = (self.plane[1] * torch.arange(height)[:, None] + torch.arange(width)).flatten().to(device)

    def forget(self) -> None:
        """As in `BlockSearch`. Graphs go with the memory that they work on."""
        super().forget()
        self.graphs.clear()

    def decide(self, s: int, name: str, old: int, delta: Tensor, *places: Place) -> Tensor:
        """As in `BlockSearch`. The first step of a kind runs as it is, which makes what its graph has to find."""
        kind, where = (s, name, old), torch.stack([self.numbers[place] for place in places])
        work = partial(self.work, *kind)
        if kind not in self.graphs or not self.records:
            self.graphs[kind] = None
            return work(delta, where)
        try:
            graph = self.graphs[kind] = self.graphs[kind] or Graph(work, (delta, where), self.any_graph())
        except RuntimeError as error:
            warnings.warn(f"the steps are not replayed but launched kernel by kernel: {error}", stacklevel=2)
            self.records = False
            self.forget()  # what was recorded in part
            index, j, *_, row = places
            self.visited.append(int(row))
            return self.decide(s, name, 0, delta, index, j, row)
        return graph(delta, where)

    def work(self, s: int, name: str, old: int, delta: Tensor, where: Tensor) -> Tensor:
        """The step with its places [n] on the device."""
        return super().decide(s, name, old, delta, *where.split(1))

    def any_graph(self) -> Graph | None:
        return next((graph for graph in self.graphs.values() if graph), None)

    def respond(self, s: int, z: Preactivation) -> None:
        """As in `BlockSearch`, in the same memory each time."""
        response, skip = self.responses.get(s), self.skips.get(s)
        super().respond(s, z)
        if response is not None:
            self.responses[s] = Preactivation(response.z.copy_(self.responses[s].z))
        if skip is not None and (made := self.skips[s]) is not None:
            self.skips[s] = skip.copy_(made)

    def tap(self, x: Tensor, j: Place) -> Tensor:
        """As in `BlockSearch`."""
        return x.flatten(1)[:, self.pixels + self.shifts[j]].view(-1, *self.size)


def block_search(net: Net, position: int, batches: Batches, cache: str = "full") -> BlockSearch:
    """The sequential search of the block at a position of the net, with replayed steps where `covers` says so."""
    search = GraphSearch if covers(batches.images.device, cache) else BlockSearch
    return search(net, position, batches, cache)


def covers(device: torch.device, cache: str) -> bool:
    """Whether steps are replayed: on a CUDA device, where what is kept stays, and no process waits for another."""
    kept = cache != "input" and not world.splits_batch
    return kept and device.type == "cuda" and os.environ.get("RSO_GRAPHS") != "0"
