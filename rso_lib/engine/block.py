"""The steps of Algorithm 1, fast: the same decisions for a small fraction of the work.

All weights of a block belong to one of its output channels, its *rows*: those of the convolution, of
batch norm's scale and shift, of the shortcut. So one weight moves one channel of the block's output, and
the next layer, which is linear, sees one changed input channel. A step on a slice of the training set is

1. the block, restricted to the rows that matter: those searched since the slice was last visited, and
   the searched row twice more, with w + Δ and with w − Δ. The compiled loops start from what these rows gave on the
   slice before, and add only the input planes whose weights differ since then. Batch norm treats each row by itself,
   so each candidate has its own statistics;
2. the next layer's response, kept for every slice, and a one-channel convolution of each change;
3. the rest of the net for each candidate, with the statistics of the batch. Where batches are small, several
   candidates go through it as one.

The searched layer's input is computed once for every slice that is visited (the paper's cache, section 4.7), with the
batch-norm statistics of `models.calibrate`. `SearchedBlock` is all this, and `BlockSearch` makes one step after the
other with it; `strategies` has searches that make some at once. `HeadSearch` is for the final layer, `JointSearch` for
many weights at once.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..algorithm import Batches, ModuleSearch, choose, cross_entropy, step
from ..models import Flow, Net
from . import kernels
from .kernels import Preactivation
from .layers import (
    CHUNK,
    BlockStage,
    Candidate,
    HeadStage,
    Index,
    Stage,
    Weights,
    advance,
    bridge,
    channels_last,
    folds,
    forward,
    fused_norm,
    normalise,
    one,
    outputs,
    stages,
    weights_of,
)

AT_ONCE, AT_ONCE_ON_A_CPU = 2**26, 2**22
"""Values of an activation, at the most, of all candidates that go through the net as one batch."""

MANY = 16
"""Where fewer candidates than these fit, they go one by one: what is saved is less than the copies cost (measured)."""

Made = TypeVar("Made")


class OnDemand(dict[int, Made]):
    """Something for every slice, made when it is first asked for."""

    def __init__(self, make: Callable[[int], Made]):
        super().__init__()
        self.make = make

    def __missing__(self, s: int) -> Made:
        self[s] = self.make(s)
        return self[s]


def copied(w: Weights) -> Weights:
    return {key: value.clone() for key, value in w.items()}


# The searched block's input is cached as planes, so that a weight of a row is multiplied with one plane, shifted.


def planes(x: Tensor, folded: bool) -> Tensor:
    """[N, C, H, W] → what the convolution reads, contiguous: x with its border, [N, C, H + 2, W + 2].

    With the pooling folded in, the means of all 2×2 windows of that instead, in one plane for even and odd lines and
    columns each, [N, 4C, ...], where a stride of 2 is one of 1.
    """
    if not folded:
        return F.pad(x, (1, 1, 1, 1)).contiguous()
    means = F.avg_pool2d(x, 2, stride=1, padding=1)
    images, channels, height, width = means.shape
    means = F.pad(means, (0, width % 2, 0, height % 2))
    apart = means.new_empty(images, channels, 4, (height + 1) // 2, (width + 1) // 2)
    for k in range(4):
        apart[:, :, k] = means[:, :, k // 2 :: 2, k % 2 :: 2]
    return apart.flatten(1, 2)


def plane_kernel(kernel: Tensor, folded: bool) -> Tensor:
    """[O, C, 3, 3] → the kernel for `planes`: itself, or [O, 4C, 2, 2]."""
    return F.pixel_unshuffle(F.pad(kernel, (0, 1, 0, 1)), 2) if folded else kernel


def place(j: int, folded: bool) -> tuple[int, int, int]:
    """Plane, line and column of the value that weight j of a row meets first."""
    channel, (y, x) = j // 9, divmod(j % 9, 3)
    return (4 * channel + 2 * (y % 2) + x % 2, y // 2, x // 2) if folded else (channel, y, x)


@cache
def shifts(weights: int, height: int, width: int, folded: bool) -> Tensor:
    """The same for each weight of a row, as which value of an image's planes [..., height, width]: int64."""
    return torch.tensor([(c * height + y) * width + x for c, y, x in (place(j, folded) for j in range(weights))])


def cached_input(
    before: Sequence[Stage], images: Tensor, prepare: Callable[[Tensor], Tensor], half: bool = False
) -> Flow:
    """The flow behind calibrated stages for some images, with `prepare` applied to what a convolution reads."""
    flow = forward(before, images[:1])
    skip = None if flow.skip is None else _room(flow.skip, len(images), half)
    whole = Flow(_room(prepare(flow.x), len(images), half), skip)  # before what is temporary, which leaves no holes
    for first in range(0, len(images), CHUNK):
        flow = forward(before, images[first : first + CHUNK])
        for target, part in zip(whole, (prepare(flow.x), flow.skip), strict=True):
            if target is not None and part is not None:
                target[first : first + CHUNK] = part
    return whole


def _room(part: Tensor, images: int, half: bool) -> Tensor:
    """Uninitialised memory for `images` rows like those of a part."""
    dtype = torch.float16 if half else part.dtype
    layout = torch.contiguous_format if part.is_contiguous() else torch.channels_last
    return torch.empty((images, *part.shape[1:]), dtype=dtype, device=part.device, memory_format=layout)


def most_at_once(device: torch.device) -> int:
    """Values of an activation of all candidates that go through the net as one batch on a device."""
    return AT_ONCE_ON_A_CPU if device.type == "cpu" else AT_ONCE


class SearchedBlock:
    """The block at a position of the net (in eval mode, calibrated), and the losses where one of its rows changes.

    plane   lines and columns of the cached input's planes
    size    height and width of what the convolution makes of them
    """

    def __init__(self, net: Net, position: int, batches: Batches, cache: str = "full"):
        self.block, after = net.blocks[position], net.layers[position + 1 :]
        self.w = weights_of(self.block)
        self.next, *_ = self.stages = stages(after)
        self.joined = (  # the next block, where it closes the skip that this one opens
            self.next if self.block.opens and isinstance(self.next, BlockStage) and self.next.block.closes else None
        )
        self.cache, self.row_size = cache, self.block.conv.weight[0].numel()
        self.folded = folded = folds(self.block)
        prepare = lambda x: planes(x, folded)  # noqa: E731  # not self, which would keep itself alive
        images, before = batches.slices(batches.images), stages(net.blocks[:position], calibrated=True)
        self.inputs = OnDemand(lambda s: cached_input(before, images[s], prepare, half=cache == "half"))
        self.labels = batches.slices(batches.labels)
        _, _, *self.plane = cached_input(before, images[0][:1], prepare).x.shape
        less = 1 if folded else 2
        self.size = self.plane[0] - less, self.plane[1] - less
        self.at_once = self.candidates_at_once(batches.images.device)
        self.begin()

    def candidates_at_once(self, device: torch.device) -> int:
        """How many candidates go through the net as one batch on a device.

        Many where they are small, as calls cost more than their arithmetic.
        """
        channels = [self.block.conv.out_channels, *(len(cut.w["conv.weight"]) for cut in self.stages[:-1])]
        count = most_at_once(device) // (len(self.labels[0]) * max(channels) * math.prod(self.size))
        return count if count >= MANY else 1

    def begin(self) -> None:
        """Start a sweep, or go on within it, with nothing kept for any slice."""
        self.begin_from(self.w)

    def begin_from(self, before: Weights) -> None:
        """The same, where a step sees the block as it is in `before`."""
        self.before, self.cut = before, BlockStage(self.block, before)
        self.forget()

    def forget(self) -> None:
        """Keep nothing for any slice."""
        self.responses: dict[int, Preactivation] = {}
        self.skips: dict[int, Tensor | None] = {}

    def respond(self, s: int, z: Preactivation) -> None:
        """Keep for slice s the next layer's response where the block's batch norm receives z, and the skip behind."""
        z, skip = Preactivation(self.cut.layout(z.z), z.moments), self.inputs[s].skip
        if self.joined:
            flow = self.cut.finish(z, skip)
            self.responses[s], self.skips[s] = Preactivation(self.joined.response(flow.x)), flow.skip
        else:
            self.responses[s], self.skips[s] = advance(self.cut, self.next, z, skip)

    def linear(
        self, s: int, w: Weights, rows: Sequence[Index] | None = None, like: Sequence[tuple[int, Index]] = ()
    ) -> Preactivation:
        """What the block's batch norm receives on slice s, contiguous: [batch, len(w), H, W].

        rows  that the weights w are of, unless it is all
        like  of each of the last rows of w: which of those before them it is like but for its weight j of some tensor,
              and j (of the convolution: any, where that is not the tensor)
        """
        return self.bridged(s, self.convolved(s, w["conv.weight"], rows, like), w, rows)

    def bridged(self, s: int, z: Preactivation, w: Weights, rows: Sequence[Index] | None = None) -> Preactivation:
        """z with the skip added where the block closes one."""
        if not self.block.closes:
            return z
        return Preactivation((z.z + bridge(self.block, w, self.inputs[s].skip, rows)).contiguous())

    def convolved(
        self, s: int, kernel: Tensor, rows: Sequence[Index] | None, like: Sequence[tuple[int, Index]]
    ) -> Preactivation:
        """The same without the skip."""
        x = self.inputs[s].x.to(kernel.dtype)
        if compiled := kernels.for_tensor(x):
            where = shifts(self.row_size, *self.plane, self.folded)
            return compiled.rows_conv(x, kernel.flatten(1), where, self.size, [(row, int(j)) for row, j in like])
        known = F.conv2d(x, plane_kernel(kernel[: len(kernel) - len(like)], self.folded))
        return self.moved_on(x, kernel, [*known.unbind(1)], like)

    def moved_on(self, x: Tensor, kernel: Tensor, z: list[Tensor], like: Sequence[tuple[int, Index]]) -> Preactivation:
        """The convolution of planes x, given z [batch, H, W] of the first rows: a weight moves its row by a multiple of
        one shifted plane, so that what changes nothing does so to the last bit."""
        for weights, (row, j) in zip(kernel.flatten(1)[len(z) :], like, strict=True):
            z.append(torch.addcmul(z[row], self.tap(x, j), weights[j] - kernel[row].view(-1)[j]))
        return Preactivation(torch.stack(z, 1))

    def tap(self, x: Tensor, j: Index) -> Tensor:
        """What weight j of a row of the convolution is multiplied with, out of planes x: [batch, H, W]."""
        plane, line, column = place(int(j), self.folded)
        height, width = self.size
        return x[:, plane, line : line + height, column : column + width]

    def changes(
        self,
        s: int,
        w: Weights,
        rows: Sequence[Index],
        like: Sequence[tuple[int, Index]],
        pairs: Sequence[tuple[int, int]],
    ) -> Flow:
        """How what comes behind some rows changes on slice s: channels [pairs, batch, 1, H, W] of the next layer's
        input, and of the skip that is opened.

        pairs  of places in w: that of a row as it was, and as it is; other arguments as in `linear`
        """
        z = self.linear(s, w, rows, like)
        norm = fused_norm(self.block) if isinstance(self.next, BlockStage) and not self.block.opens else None
        if norm and z.moments is not None and (compiled := kernels.for_tensor(z.z)):
            fused = w["norm.weight"], w["norm.bias"], norm.eps, self.block.relu
            return Flow(compiled.norm_changes(z, *fused, pairs))
        normed = normalise(self.block, w, z)
        x, skip = self.next.enter(self.block.activate(normed)), self.block.passes(normed, None)
        change = lambda y: torch.stack([y[:, now, None] - y[:, was, None] for was, now in pairs])  # noqa: E731
        return Flow(change(x), None if skip is None else change(skip))

    def scores(self, s: int, candidates: Iterable[Candidate]) -> Tensor:
        """The losses on slice s of what the next layer may receive."""
        labels, made = self.labels[s], outputs(self.stages, candidates, self.at_once)
        logits = torch.stack(list(made)).double()
        return F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none").mean(1)

    def kept(self, s: int) -> Candidate:
        """What the next layer receives with the weights as they were kept."""
        return self.joining(self.responses[s], self.skips[s])

    def moved(self, s: int, rows: Sequence[Index], changes: Flow) -> Iterator[Candidate]:
        """The same with one of the rows changed at a time, as `changes` says.

        The change is added, so that what changes nothing has the same loss to the last bit: a tie keeps w.
        """
        for k, row in enumerate(rows):
            skip = self.skips[s]
            if skip is not None and changes.skip is not None:
                skip = skip.clone()
                skip[:, one(row)] += changes.skip[k]
            yield self.joining(self.add_channels(self.responses[s], changes.x[k : k + 1], [row]), skip)

    def joining(self, z: Preactivation, skip: Tensor | None) -> Candidate:
        if self.joined:
            z = Preactivation(z.z + bridge(self.joined.block, self.joined.w, skip))
        return z, skip

    def add_channels(
        self, z: Preactivation, changes: Tensor, rows: Sequence[Index], in_place: bool = False
    ) -> Preactivation:
        """What the next layer receives when channels of its input, rows, change by [rows, batch, 1, H, W]."""
        if isinstance(self.next, BlockStage) and (compiled := kernels.covering(z.z, z.z.shape[1])):
            taps = torch.stack([self.next.taps[:, :, row] for row in rows])
            made = compiled.add_channels(z.z, changes, taps, self.next.stride, z.z if in_place else None)
            # where the moments of z are still to be summed, so are these: another order would break ties
            return made if z.moments is not None else Preactivation(made.z)
        total = z.z
        for k, (change, row) in enumerate(zip(changes, rows, strict=True)):
            response = self.next.response(change, one(row))
            total = total.add_(response) if in_place or k else response.add_(total)
        return Preactivation(total)


def some(changes: Flow, pairs: slice) -> Flow:
    """The changes of some of the pairs."""
    return Flow(changes.x[pairs], None if changes.skip is None else changes.skip[pairs])


class Kept(NamedTuple):
    """What some rows of the convolution gave on a slice: z [batch, rows, H, W], due to weights [rows, taps]."""

    rows: list[Index]
    weights: Tensor
    z: Tensor


class BlockSearch(SearchedBlock):
    """One weight at a time: a step sees all steps before it.

    With compiled loops each slice keeps what the row gave that was searched last, or what all rows gave where the order
    of the visits comes back to a row.
    """

    def begin(self) -> None:
        """As in `SearchedBlock`."""
        self.comes_back = False
        self.left: set[int] = set()
        super().begin()

    def forget(self) -> None:
        """As in `SearchedBlock`."""
        super().forget()
        self.seen: dict[int, Weights] = {}
        self.outputs: dict[int, Kept] = {}
        self.visited: list[int] = []

    def step(self, name: str, index: int, delta: Tensor, turn: int) -> Tensor:
        """Visit the weight `index` (flat) of the tensor `name`: three losses, and the best is written back.

        turn   of the step among those of the layer, over all tensors; the slices are used in turn
        """
        if self.cache == "input":
            self.forget()
        s, (row, j) = turn % len(self.labels), divmod(index, self.w[name][0].numel())
        self.come_to(row)
        changed = self.changed(s, row)
        return self.decide(s, name, len(changed), delta, index, j, *(changed or [row]))

    def decide(self, s: int, name: str, stale: int, delta: Tensor, index: Index, j: Index, *rows: Index) -> Tensor:
        """The step on slice s, which is brought up to date first: in its `stale` rows, or as a whole where these are 0.

        index, j  of the weight, in the tensor and in its row
        rows      the stale ones, this one last
        """
        weight, row, now = self.w[name].view(-1), rows[-1], stale + len(rows) - 1
        value = weight[one(index)]
        candidates = torch.cat([value, value + delta, value - delta])
        if not stale:
            self.respond(s, self.linear(s, self.w))
            self.remember(s)
        changed = rows[:stale]
        w = self.rows([(self.seen[s], changed), (self.w, [*rows, row, row])], name, j, candidates[1:])
        like = (now, j % self.row_size)
        pairs = [*((k, stale + k) for k in range(stale)), (now, now + 1), (now, now + 2)]
        changes = self.changes(s, w, [*changed, *rows, row, row], [like, like], pairs)
        if stale:
            self.refresh(s, changed, some(changes, slice(stale)))
        moved = self.moved(s, [row, row], some(changes, slice(stale, None)))
        losses = self.scores(s, chain([self.kept(s)], moved))
        weight[one(index)] = candidates.take(choose(losses))
        return losses

    def come_to(self, row: int) -> None:
        """Note which row is visited. From the first return to one on, all rows of a slice are kept."""
        if self.visited and self.visited[-1] != row:
            self.left.add(self.visited[-1])
        if row in self.left and not self.comes_back:
            self.forget()
            self.comes_back = True
        self.visited.append(row)

    def convolved(
        self, s: int, kernel: Tensor, rows: Sequence[Index] | None, like: Sequence[tuple[int, Index]]
    ) -> Preactivation:
        """As in `SearchedBlock`. Of rows that are kept, only the taps whose weights differ are read."""
        compiled, weights = kernels.for_tensor(kernel), kernel.flatten(1)
        if not compiled:
            return super().convolved(s, kernel, rows, like)
        if rows is None:
            made = super().convolved(s, kernel, rows, like)
            if self.comes_back:
                self.keep(s, range(len(weights)), weights, made.z)
            return made
        kept, (now, j) = self.outputs.get(s), like[0]
        if kept and {*rows} <= {*kept.rows}:
            of = [kept.rows.index(row) for row in rows]
            x, differences = self.inputs[s].x.to(kernel.dtype), weights - kept.weights[of]
            differ = differences.any(0)
            differ[j] = True
            where = shifts(len(differ), *self.plane, self.folded)[differ]
            likes = [(now, int(differ[:j].sum()))] * len(like)
            made = compiled.rows_conv(x, differences[:, differ], where, self.size, likes, kept.z, of)
        else:
            made = super().convolved(s, kernel, rows, like)
        are = slice((now + 1) // 2, now + 1)  # as many rows before these are as they were, or none
        self.keep(s, rows[are], weights[are], made.z[:, are])
        return made

    def keep(self, s: int, rows: Sequence[Index], weights: Tensor, z: Tensor) -> None:
        """Keep what some rows gave on slice s, in the same memory each time: new pieces would riddle the heap."""
        if not self.comes_back:
            rows, weights, z = rows[-1:], weights[-1:], z[:, -1:]
        if s not in self.outputs:
            self.outputs[s] = Kept([*rows], weights.clone(), z.contiguous())
            return
        kept = self.outputs[s]
        if not self.comes_back:
            kept.rows[:] = rows
        for row, w, output in zip(rows, weights, z.unbind(1), strict=True):
            place = kept.rows.index(row)
            kept.weights[place] = w
            kept.z[:, place] = output

    def changed(self, s: int, row: int) -> list[int]:
        """The rows with other weights than what is kept for slice s is due to, this one, which may have decayed, last.

        None where all is to be computed: on the first visit, and where that is cheaper than so many changes.
        """
        rows = [*sorted(set(self.visited[-len(self.labels) - 1 :]) - {row}), row]
        share = 3 / 4 if s in self.outputs and self.comes_back else 1 / 4  # measured: of what `respond` costs
        few = max(1, int(self.block.conv.out_channels * share))
        return rows if s in self.responses and len(rows) <= few else []

    def remember(self, s: int) -> None:
        """Keep the weights that the response to slice s is due to, as they go on to change."""
        if s not in self.seen:
            self.seen[s] = copied(self.w)
        for key, weight in self.w.items():
            self.seen[s][key].copy_(weight)

    def rows(self, parts: Sequence[tuple[Weights, Sequence[Index]]], name: str, j: Index, tried: Tensor) -> Weights:
        """Rows out of some states of the block, put together; in the last ones weight j takes the tried values."""
        w = {key: torch.cat([weights[key][one(row)] for weights, rows in parts for row in rows]) for key in self.w}
        w[name].view(len(w[name]), -1)[-len(tried) :, one(j)] = tried[:, None]
        return w

    def refresh(self, s: int, rows: Sequence[Index], changes: Flow) -> None:
        """Bring slice s up to date in these rows, given how what comes behind them has changed."""
        self.responses[s] = self.add_channels(self.responses[s], changes.x, rows, in_place=True)
        if (skip := self.skips[s]) is not None and changes.skip is not None:
            for row, change in zip(rows, changes.skip, strict=True):
                skip[:, one(row)] += change
        self.remember(s)


class Others(NamedTuple):
    """What the loss of a slice needs besides one logit (the row's): it changes only when another logit does."""

    row: int
    log_sum: Tensor
    target: Tensor
    is_target: Tensor

    def losses(self, z: Tensor) -> Tensor:
        """Cross entropy for some values z [k, batch] of the logit: [k], summed in float64."""
        target = torch.where(self.is_target, z, self.target)
        return (torch.logaddexp(self.log_sum, z) - target).double().mean(1)


class HeadSearch:
    """One weight at a time of the final layer: a step adds a multiple of one feature to one logit.

    A bias is the weight of a feature that is always 1.
    """

    def __init__(self, net: Net, position: int, batches: Batches):
        self.w = weights_of(net.head)
        cut = HeadStage(net.head)
        images, before = batches.slices(batches.images), stages(net.blocks, calibrated=True)
        features = lambda x: cut.enter(x).flatten(1)  # noqa: E731
        self.inputs = OnDemand(lambda s: cached_input(before, images[s], features).x.T.contiguous())
        self.labels = batches.slices(batches.labels)
        self.one = self.w["linear.weight"].new_ones(1, batches.size)
        self.begin()

    def begin(self) -> None:
        """As in `BlockSearch`."""
        self.logits: dict[int, Tensor] = {}
        self.seen: dict[int, Tensor] = {}
        self.others: dict[int, Others] = {}
        self.rows: list[int] = []
        self.columns: list[int] = []

    def step(self, name: str, index: int, delta: Tensor, turn: int) -> Tensor:
        """As in `BlockSearch`."""
        s = turn % len(self.labels)
        matrix = self.w[name].view(len(self.w[name]), -1)
        x = self.one if name == "linear.bias" else self.inputs[s]
        row, column = divmod(index, matrix.shape[1])
        self.rows.append(row)
        self.columns.append(column)
        self.refresh(s, row, matrix, x)
        weight = matrix[row, column]
        candidates = torch.stack([weight, weight + delta, weight - delta])
        z = torch.addcmul(self.logits[s][row], (candidates - weight)[:, None], x[column])
        losses = self.others[s].losses(z)
        weight.copy_(candidates.take(choose(losses)))
        return losses

    def refresh(self, s: int, row: int, matrix: Tensor, x: Tensor) -> None:
        """Bring what is kept for slice s up to date with the matrix as it is, for a visit of a row."""
        recent = slice(-len(self.labels) - 1, None)  # a weight that is visited now may have decayed
        visited = {*self.rows[recent]}
        if s in self.logits:
            changed, columns = slice(min(visited), max(visited) + 1), span({*self.columns[recent]})
            change = matrix[changed, columns] - self.seen[s][changed, columns]
            self.logits[s][changed].addmm_(change, x[columns])
        else:
            self.logits[s] = self.logits_of(s)
        self.seen[s] = matrix.clone()
        if s not in self.others or {self.others[s].row, *visited} != {row}:
            self.others[s] = others(self.logits[s], self.labels[s], row)

    def logits_of(self, s: int) -> Tensor:
        """The logits [classes, batch] on slice s."""
        z = self.w["linear.weight"] @ self.inputs[s]
        return z + self.w["linear.bias"][:, None] if "linear.bias" in self.w else z


def others(logits: Tensor, labels: Tensor, row: int) -> Others:
    """Of logits [classes, batch], what concerns the other rows."""
    log_sum = torch.cat([logits[:row], logits[row + 1 :]]).logsumexp(0)
    return Others(row, log_sum, logits.gather(0, labels[None])[0], labels == row)


def span(indices: set[int]) -> slice | list[int]:
    """The indices as a slice where they are consecutive, so that picking them copies nothing."""
    first, last = min(indices), max(indices)
    return slice(first, last + 1) if last - first + 1 == len(indices) else sorted(indices)


class JointSearch(ModuleSearch):
    """All weights of some tensors at once (section 4.2), from the cached input of the layer at a position.

    For the network level the position is 0, and the cached input are the images.
    """

    def __init__(self, net: Net, position: int, batches: Batches, cache: str = "full"):
        super().__init__(net, batches)
        self.layers = net.layers[position:]
        images, before = self.x, stages(net.blocks[:position], calibrated=True)
        self.inputs = OnDemand(lambda s: cached_input(before, images[s], channels_last, half=cache == "half"))

    def step_jointly(self, weights: Sequence[Tensor], deltas: Sequence[Tensor], turn: int) -> Tensor:
        return step(lambda: self.loss(turn % len(self.x)), weights, deltas)

    def loss(self, s: int) -> Tensor:
        searched, flow = stages(self.layers), self.inputs[s]
        flow = flow._replace(x=flow.x.to(self.x[s]))  # a skip is made so where it ends
        [z] = outputs(searched, [(Preactivation(searched[0].receive(flow)), flow.skip)], at_once=1)
        return cross_entropy(z, self.labels[s])
