"""Steps that do not see each other (section 4.6): some of them are made at once, as one batch of candidates."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from ..algorithm import choose
from .block import BlockSearch, SearchedBlock, copied
from .kernels import Preactivation
from .layers import Candidate, Index, Weights
from .replay import block_search


class Where(NamedTuple):
    """Some weights of a tensor: the row of each and the place in it, on the host and on the weights' device."""

    rows: list[int]
    places: list[int]
    at_rows: Tensor
    at_places: Tensor


class NeuronSearch(SearchedBlock):
    """Steps that see only those of their own row, their output neuron (strategy="neuron", section 4.6).

    One of each row may be made at once: their candidates go through the net as one batch.
    """

    def begin(self) -> None:
        """As in `SearchedBlock`. The other rows are seen as they are now."""
        self.begin_from(copied(self.w))

    def turns(self, visits: Tensor, before: int) -> Tensor:
        """The turn of each visit (flat indices [n] in the order of a sweep): those with the same may be made at once.

        Here each row takes the slices by itself.

        before  steps of the layer that precede the sweep
        """
        size = len(visits) // self.block.conv.out_channels
        turns = torch.empty_like(visits)
        turns[(visits // size).argsort(stable=True)] = torch.arange(len(visits)) % size
        return before + turns

    @property
    def steps_at_once(self) -> int:
        """How many steps are made at once, at the most."""
        return max(1, self.at_once // 3)

    def steps(self, name: str, indices: Sequence[int], at: Tensor, deltas: Tensor, turn: int) -> Tensor:
        """Visit some weights of the tensor `name` that have the same turn: losses [n, 3]; the best are written back.

        indices  of the weights, flat; `at` is the same on their device
        deltas   [n]
        """
        weight = self.w[name].view(-1)
        size = len(weight) // len(self.w[name])
        now = weight[at]
        candidates = torch.stack([now, now + deltas, now - deltas], 1)
        where = Where([i // size for i in indices], [i % size for i in indices], at // size, at % size)
        losses = self.losses_of(turn % len(self.labels), name, where, candidates)
        weight[at] = candidates.gather(1, choose(losses.T)[:, None])[:, 0]
        return losses

    def losses_of(self, s: int, name: str, where: Where, candidates: Tensor) -> Tensor:
        """The losses [n, 3] on slice s where some weights take the values w, w + Δ and w − Δ."""
        if self.cache == "input":
            self.forget()
        if s not in self.responses:
            self.respond(s, self.linear(s, self.before))
        n = len(where.rows)
        pairs = [(k, place) for k in range(n) for place in (n + k, 2 * n + 2 * k, 2 * n + 2 * k + 1)]
        moved = self.tried(s, [self.before, self.w], name, where, candidates, pairs)
        return self.scores(s, moved).view(n, 3)

    def tried(
        self,
        s: int,
        states: Sequence[Weights],
        name: str,
        where: Where,
        candidates: Tensor,
        pairs: Sequence[tuple[int, int]],
    ) -> Iterator[Candidate]:
        """What the next layer receives on slice s where rows change from the first to the second of each pair.

        A pair is of places among: the n weights' rows for each state of the block, and twice more for the last, where
        each row has w + Δ and then w − Δ.
        """
        n, (*earlier, now) = len(where.rows), states
        thrice = torch.cat([where.at_rows, where.at_rows.repeat_interleave(2)])
        w = {key: weight[thrice] for key, weight in now.items()}
        if earlier:
            w = {key: torch.cat([*(state[key][where.at_rows] for state in earlier), w[key]]) for key in w}
        places = where.at_places.repeat_interleave(2)[:, None]
        w[name].view(len(w[name]), -1)[-2 * n :].scatter_(1, places, candidates[:, 1:].reshape(-1, 1))
        last = n * len(earlier)
        like = [(last + k // 2, where.places[k // 2] % self.row_size) for k in range(2 * n)]
        rows = where.rows * len(states) + [row for row in where.rows for _ in range(2)]
        return self.moved(s, [rows[was] for was, _ in pairs], self.changes(s, w, rows, like, pairs))


class LayerSearch(NeuronSearch):
    """Steps that see no other (strategy="layer", section 4.6).

    Steps on a slice may follow each other, so only what concerns the slice at hand is kept: more of it, and in the
    processor's cache. w is scored once for all steps that are made at once, or where these are one, for a slice.
    """

    def turns(self, visits: Tensor, before: int) -> Tensor:
        """As in `NeuronSearch`. Here steps on one slice may be made at once."""
        return (before + torch.arange(len(visits))) % len(self.labels)

    @property
    def steps_at_once(self) -> int:
        """As in `NeuronSearch`."""
        return max(1, (self.at_once - 1) // 2)

    def losses_of(self, s: int, name: str, where: Where, candidates: Tensor) -> Tensor:
        """As in `NeuronSearch`."""
        if s not in self.responses:
            self.turn_to(s)
        n = len(where.rows)
        moved = self.tried(s, [self.before], name, where, candidates, [(k // 2, n + k) for k in range(2 * n)])
        if self.loss is None:
            losses = self.scores(s, chain([self.kept(s)], moved))
        else:
            losses = torch.cat([self.loss, self.scores(s, moved)])
        return torch.cat([losses[:1].expand(n, 1), losses[1:].view(n, 2)], 1)

    def convolved(
        self, s: int, kernel: Tensor, rows: Sequence[Index] | None, like: Sequence[tuple[int, Index]]
    ) -> Preactivation:
        """As in `SearchedBlock`. The first rows are known."""
        if rows is None:
            return super().convolved(s, kernel, rows, like)
        known = [self.z[:, row] for row in rows[: -len(like)]]
        return self.moved_on(self.inputs[s].x.to(kernel.dtype), kernel, known, like)

    def turn_to(self, s: int) -> None:
        """Keep what concerns slice s, and nothing else."""
        self.forget()
        z = self.convolved(s, self.before["conv.weight"], None, ())
        self.z = z.z
        self.respond(s, self.bridged(s, z, self.before))
        self.loss = self.scores(s, [self.kept(s)]) if self.steps_at_once == 1 else None


BLOCK_SEARCHES: dict[str, Callable[..., BlockSearch | NeuronSearch]] = {
    "sequential": block_search,
    "neuron": NeuronSearch,
    "layer": LayerSearch,
}
"""How a block is searched, by strategy."""
