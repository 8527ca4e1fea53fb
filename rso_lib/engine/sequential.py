"""Score one weight at a time in a block: a step sees all steps before it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models import Flow
from ..rules import Scores
from . import kernels
from .block import BlockScorer, copied
from .inputs import offsets
from .kernels import Preactivation
from .layers import BlockStage, Index, Weights, one
from .plans import Moves


class SequentialScorer(BlockScorer):
    """Score one weight at a time: a step sees all steps before it (strategy="sequential").

    Each commit raises the version of one output channel. A channel is stale on a batch whose cache has seen an earlier
    version; the next step on the batch brings it up to date.

    on_forget     called when the caches are dropped
    keeps_memory  write what is cached for a batch to the same memory each time, for graphs that replay on it
    """

    keeps_memory = False
    on_forget: Callable[[], None] | None = None

    def begin(self) -> None:
        self.cut = BlockStage(self.block, self.w)
        self.versions = [0] * self.block.conv.out_channels
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.base: dict[int, Weights] = {}
        self.seen: dict[int, list[int]] = {}
        self.known: dict[int, Known] = {}
        if self.on_forget:
            self.on_forget()

    def score(self, moves: Moves) -> Scores:
        return self.score_at(moves, *self.find(moves))

    def find(self, moves: Moves) -> tuple[int, list[Index]]:
        """Look up the place of a weight and the stale channels, which the step on that weight needs.

        Returns how many channels of the batch are stale (0 if all is to be computed), and some numbers: the weight's
        place in its channel, then the stale channels, the visited one last.
        """
        batch, (row, j) = moves.batch, divmod(moves.indices[0], self.w[moves.tensor][0].numel())
        if self.cache == "input":
            self.forget()
        stale = self.stale(batch, row)
        self.seen[batch] = [*self.versions]
        self.versions[row] += 1
        return len(stale), [j, *(stale or [row])]

    def stale(self, batch: int, row: int) -> list[int]:
        """List the channels that differ from the cache of a batch, the visited one (it may have decayed) last.

        Empty on the first visit, and where it is cheaper to compute all channels than so many changes.
        """
        if batch not in self.responses:
            return []
        changed = [k for k, (now, seen) in enumerate(zip(self.versions, self.seen[batch], strict=True)) if now > seen]
        rows = [*(k for k in changed if k != row), row]
        share = 3 / 4 if self.returns and batch in self.known else 1 / 4  # measured: of what `respond` costs
        return rows if len(rows) <= max(1, int(len(self.versions) * share)) else []

    def score_at(self, moves: Moves, stale: int, places: Sequence[Index]) -> Scores:
        """Bring the batch up to date and return the losses of the candidates; arguments as from `find`."""
        batch, tensor, (j, *current) = moves.batch, moves.tensor, places
        if not stale:
            self.respond(batch, self.linear(batch, self.w))
            self.remember(batch)
        values = self.variants(moves)[0]
        cached, tried = current[:stale], [current[-1]] * len(values)  # the visited channel is the last one
        w = stacked([(self.base[batch], cached), (self.w, [*current, *tried])])
        visited = len(cached) + len(current) - 1  # its place in the stack; then come its candidates
        w[tensor].view(len(w[tensor]), -1)[visited + 1 :, one(j)] = values[:, None]
        like = [(visited, j % self.fan_in)] * len(values)
        news = [(k, stale + k) for k in range(stale)]
        trials = [(visited, visited + 1 + k) for k in range(len(values))]
        changes = self.changes(batch, w, [*cached, *current, *tried], like, news + trials)
        if stale:
            self.refresh(batch, cached, some(changes, slice(stale)))
        images = self.losses(batch, self.with_unchanged(batch, tried, some(changes, slice(stale, None))))
        return Scores(images.mean(1)[None], images[None], self.multiples, moves.deltas)

    def respond(self, batch: int, z: Preactivation) -> None:
        response, skip = self.responses.get(batch), self.skips.get(batch)
        super().respond(batch, z)
        if self.keeps_memory and response is not None:
            self.responses[batch] = Preactivation(response.z.copy_(self.responses[batch].z))
            if skip is not None and (made := self.skips[batch]) is not None:
                self.skips[batch] = skip.copy_(made)

    def convolved(
        self, batch: int, kernel: Tensor, rows: Sequence[Index] | None, like: Sequence[tuple[int, Index]]
    ) -> Preactivation:
        """Convolve the cached input. Compiled loops take a channel's known output, and add what has changed since."""
        compiled, weights, known = kernels.for_tensor(kernel), kernel.flatten(1), self.known.get(batch)
        if not isinstance(compiled, kernels.Kernels):
            return super().convolved(batch, kernel, rows, like)
        asked = [*range(len(weights))] if rows is None else [*map(int, rows)]
        if known and {*asked} <= {*known.rows}:
            places = [known.rows.index(row) for row in asked]
            now, j = like[0] if like else (len(asked) - 1, 0)
            differences = weights - known.weights[places]
            differ = differences.any(0)
            differ[j] = True
            x, where = self.inputs[batch].x.to(kernel.dtype), offsets(self.fan_in, *self.plane, self.folded)[differ]
            likes = [(now, int(differ[:j].sum()))] * len(like)
            made = compiled.rows_conv(x, differences[:, differ], where, self.size, likes, known.z, places)
        else:
            made = super().convolved(batch, kernel, rows, like)
        count = len(asked) - len(like)
        self.keep(batch, asked[:count], weights[:count], made.z[:, :count])
        return made

    def keep(self, batch: int, rows: list[int], weights: Tensor, z: Tensor) -> None:
        """Keep outputs of the convolution, in the same memory each time: new pieces would riddle the heap."""
        if not self.returns:
            rows, weights, z = rows[-1:], weights[-1:], z[:, -1:]
        if batch not in self.known:
            self.known[batch] = Known([*rows], weights.clone(), z.clone(memory_format=torch.contiguous_format))
            return
        known = self.known[batch]
        if not self.returns:
            known.rows[:] = rows
        for row, weight, output in zip(rows, weights, z.unbind(1), strict=True):
            place = known.rows.index(row)
            known.weights[place], known.z[:, place] = weight, output

    def remember(self, batch: int) -> None:
        """Note that the cache of a batch belongs to the weights as they are now."""
        if batch not in self.base:
            self.base[batch] = copied(self.w)
        for key, weight in self.w.items():
            self.base[batch][key].copy_(weight)

    def refresh(self, batch: int, rows: Sequence[Index], changes: Flow) -> None:
        """Bring the cache of a batch up to date in some channels, given the changes of the next layer's input."""
        self.responses[batch] = self.add_channels(self.responses[batch], changes.x, rows, in_place=True)
        if (skip := self.skips[batch]) is not None and changes.skip is not None:
            for row, change in zip(rows, changes.skip, strict=True):
                skip[:, one(row)] += change
        self.remember(batch)


def stacked(parts: Sequence[tuple[Weights, Sequence[Index]]]) -> Weights:
    """Stack channels of the weights of a block in several states."""
    (first, _), *_ = parts
    places = [(weights, picked_rows(rows)) for weights, rows in parts if rows]
    return {key: torch.cat([weights[key][at] for weights, rows in places for at in rows]) for key in first}


def picked_rows(rows: Sequence[Index]) -> list[slice | Tensor]:
    """Return indices of rows: one tensor of them all where they lie on a GPU, so that few kernels are launched."""
    on_gpu = [row for row in rows if isinstance(row, Tensor)]
    return [torch.cat(on_gpu)] if on_gpu else [one(row) for row in rows]


class Known(NamedTuple):
    """Outputs z [N, channels, H, W] of a convolution on a batch, and the weights [channels, fan in] that made them.

    rows  the channels: the one that was visited last, or all where the order of visits comes back to a channel
    """

    rows: list[int]
    weights: Tensor
    z: Tensor


def some(changes: Flow, pairs: slice) -> Flow:
    """Return the changes of some of the pairs."""
    return Flow(changes.x[pairs], None if changes.skip is None else changes.skip[pairs])
