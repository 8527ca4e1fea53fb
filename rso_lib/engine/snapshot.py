"""Score several weights of a block at a time: steps that do not see each other (section 4.6)."""

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from ..rules import Scores
from .block import BlockScorer, copied
from .kernels import Preactivation
from .layers import BlockStage, Candidate, Index, Weights
from .plans import Moves


class SnapshotScorer(BlockScorer):
    """Score several weights at a time, against the block as it was when the sweep began.

    strategy="neuron" sees the steps before in the same channel too; strategy="layer" sees none, so only what concerns
    the batch at hand is cached, and w is scored once for all steps that are made together, or for the whole batch where
    steps go one by one.
    """

    def begin(self) -> None:
        self.base = copied(self.w)
        self.cut = BlockStage(self.block, self.base)
        self.forget()

    @property
    def sees_its_channel(self) -> bool:
        """Return whether a step sees the steps before it in its own channel."""
        return self.strategy == "neuron"

    @property
    def steps_at_once(self) -> int:
        count = len(self.multiples)
        return max(1, self.at_once // count if self.sees_its_channel else (self.at_once - 1) // (count - 1))

    def score(self, moves: Moves) -> Scores:
        self.turn_to(moves.batch)
        images = self.losses_of_own_channel(moves) if self.sees_its_channel else self.losses_of_base(moves)
        return Scores(images.mean(2), images, self.multiples, moves.deltas)

    def turn_to(self, batch: int) -> None:
        """Make the cache of a batch, where there is none."""
        if self.cache == "input" and self.sees_its_channel:
            self.forget()
        if batch in self.responses:
            return
        if not self.sees_its_channel:
            self.forget()
        z = self.convolved(batch, self.base["conv.weight"], None, ())
        self.z = None if self.sees_its_channel else z.z
        self.respond(batch, self.bridged(batch, z, self.base))
        alone = not self.sees_its_channel and self.steps_at_once == 1
        self.loss_of_w = self.losses(batch, [self.unchanged(batch)]) if alone else None

    def losses_of_own_channel(self, moves: Moves) -> Tensor:
        """Return the losses [n, K, N] where all candidates of a weight change the channel that the caches hold."""
        n, variants = len(moves.indices), len(self.multiples) - 1
        per_step = [[n + k, *(2 * n + variants * k + v for v in range(variants))] for k in range(n)]
        pairs = [(k, place) for k, places in enumerate(per_step) for place in places]
        candidates = self.candidates(moves, [self.base, self.w], pairs)
        return self.losses(moves.batch, candidates).view(n, variants + 1, -1)

    def losses_of_base(self, moves: Moves) -> Tensor:
        """Return the losses [n, K, N] where the caches hold w itself."""
        n, variants = len(moves.indices), len(self.multiples) - 1
        candidates = self.candidates(moves, [self.base], [(k // variants, n + k) for k in range(variants * n)])
        if self.loss_of_w is None:
            images = self.losses(moves.batch, chain([self.unchanged(moves.batch)], candidates))
        else:
            images = torch.cat([self.loss_of_w, self.losses(moves.batch, candidates)])
        return torch.cat([images[:1].expand(n, 1, -1), images[1:].view(n, variants, -1)], 1)

    def candidates(
        self, moves: Moves, states: Sequence[Weights], pairs: Sequence[tuple[int, int]]
    ) -> Iterator[Candidate]:
        """Yield the next layer's candidate where a channel changes from the first to the second of each pair.

        A pair is of places in this stack: the channels of the n weights in each state, then the variants of each
        weight, which are in the last state but for that weight.
        """
        n, (*_, now), size = len(moves.indices), states, self.w[moves.tensor][0].numel()
        variants = self.variants(moves)
        count = variants.shape[1]
        at, again = moves.at // size, (moves.at // size).repeat_interleave(count)
        w = {key: torch.cat([*(state[key][at] for state in states), now[key][again]]) for key in now}
        places = (moves.at % size).repeat_interleave(count)[:, None]
        w[moves.tensor].view(len(w[moves.tensor]), -1)[-count * n :].scatter_(1, places, variants.reshape(-1, 1))
        last = n * (len(states) - 1)
        like = [(last + k // count, moves.indices[k // count] % size % self.fan_in) for k in range(count * n)]
        channels = [index // size for index in moves.indices]
        rows = channels * len(states) + [row for row in channels for _ in range(count)]
        return self.changed(
            moves.batch, [rows[was] for was, _ in pairs], self.changes(moves.batch, w, rows, like, pairs)
        )

    def convolved(
        self, batch: int, kernel: Tensor, rows: Sequence[Index] | None, like: Sequence[tuple[int, Index]]
    ) -> Preactivation:
        if rows is None or self.z is None:
            return super().convolved(batch, kernel, rows, like)
        known = [self.z[:, row] for row in rows[: -len(like)]]
        return self.moved_on(self.inputs[batch].x.to(kernel.dtype), kernel, known, like)
