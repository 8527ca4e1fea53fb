"""Replay a step on a GPU as one CUDA graph, in place of launches that take longer than their arithmetic.

A CUDA graph repeats the same kernels on the same memory. So what is cached for a batch keeps its place, and what
differs between the steps on a batch is read from tensors: which weight, in which channel, which channels are stale, and
Δ. The rule and the commit are in the graph too: nothing is read back to the host.

With RSO_GRAPHS=0 in the environment each kernel is launched by itself: the same steps, up to rounding.
"""

import os
import threading
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ..rules import Rule
from .plans import Moves
from .sequential import SequentialScorer

MIN_VISITS = 8
"""Visits of a batch within a sweep, on average, from which graphs are recorded: recording takes as long as a few steps
(an estimate, not a measurement)."""

Decided = tuple[Tensor, Tensor]
"""The losses [1, K] and the choice [1] of a step."""
Work = Callable[[Tensor, Tensor, Tensor], Decided]
Kind = tuple[int, str, int]
"""What tells graphs apart: batch, tensor, number of stale channels."""


class Graph:
    """The launches of some work for inputs of certain sizes: recorded once, and replayed by each call.

    beside  a graph that shares its memory for temporaries: the two never run at the same time
    """

    def __init__(self, work: Work, inputs: tuple[Tensor, ...], beside: "Graph | None" = None):
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

    def __call__(self, *inputs: Tensor) -> Decided:
        for mine, x in zip(self.inputs, inputs, strict=True):
            mine.copy_(x)
        self.graph.replay()
        losses, choices = self.made
        return losses.clone(), choices.clone()  # before another graph writes there


@cache
def stream_of(device: torch.device, thread: int) -> torch.cuda.Stream:
    """Return the stream that a thread records on.

    Graphs of one stream share a workspace, which in some versions of torch goes with the first of them; those of one
    scorer go together.
    """
    return torch.cuda.Stream(device)


class Replay:
    """Make the steps of a sequential scorer; those that do the same on a batch share a graph.

    records  whether graphs can be recorded: until it fails once in a sweep
    """

    def __init__(self, scorer: SequentialScorer, rule: Rule, device: torch.device):
        self.scorer, self.rule = scorer, rule
        self.graphs: dict[Kind, Graph] = {}
        self.warm: set[tuple[str, int]] = set()
        self.records = True
        self.numbers = torch.arange(max(weight.numel() for weight in scorer.w.values()), device=device)
        scorer.keep_places_on(device)
        scorer.keeps_memory = True
        scorer.on_forget = self.graphs.clear  # graphs go with the memory that they work on

    def __call__(self, moves: Moves) -> Decided:
        """Score, choose and commit one step, by a graph where that pays."""
        stale, places = self.scorer.find(moves)
        kind = moves.batch, moves.tensor, stale
        where = torch.stack([self.numbers[place] for place in places])  # a copy within the device: no upload
        inputs = moves.at, moves.deltas, where
        work = self.work(moves, stale)
        if kind not in self.graphs and self.is_ready(*kind) and not self.record(kind, work, inputs):
            self.scorer.forget()  # what was recorded in part
            return self(moves)
        self.warm.add((moves.tensor, stale))
        return self.graphs.get(kind, work)(*inputs)

    def work(self, moves: Moves, stale: int) -> Work:
        """Return the step as a function of tensors: the weight's index [1], Δ [1] and the places [n]."""

        def step(at: Tensor, delta: Tensor, where: Tensor) -> Decided:
            here = moves._replace(at=at, deltas=delta)
            scores = self.scorer.score_at(here, stale, where.split(1))
            choices = self.rule(scores)
            self.scorer.commit(here, choices)
            return scores.losses, choices

        return step

    def is_ready(self, batch: int, tensor: str, stale: int) -> bool:
        """Return whether a step is ready to be recorded.

        It will be repeated often enough, the tensors that it changes have their place in memory, and a step that was
        not recorded has set up the libraries.
        """
        often = self.scorer.w[tensor].numel() >= MIN_VISITS * len(self.scorer.labels)
        return often and batch in self.scorer.responses and (tensor, stale) in self.warm and self.records

    def record(self, kind: Kind, work: Work, inputs: tuple[Tensor, ...]) -> bool:
        """Make a graph of the steps of a kind. Returns whether that was possible."""
        try:
            self.graphs[kind] = Graph(work, inputs, next(iter(self.graphs.values()), None))
        except RuntimeError as error:
            warnings.warn(f"the steps are not replayed but launched kernel by kernel: {error}", stacklevel=2)
            self.records = False
        return self.records


def covers(device: torch.device, cache: str) -> bool:
    """Return whether steps are replayed: on a CUDA device, where the caches of a batch stay."""
    return cache != "input" and device.type == "cuda" and os.environ.get("RSO_GRAPHS") != "0"
