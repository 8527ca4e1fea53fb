"""The steps of a sweep: a plan is followed, and each of its moves is scored, decided and committed."""

from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import engine
from .discrete import Grid, moved
from .engine import JointMove, Moves, Scorer, Visits
from .history import History
from .known import unlike
from .models import grids
from .proposals import ORDERS, generator, sigma
from .settings import RSO

SHUFFLE, DRAWS, NOISE = 1, 2, 3
"""Uses of a generator: to shuffle a layer's batches, to draw order and Δ of a sweep, to serve a net that draws."""


class Alone:
    """A run of one process. `run.processes.World` is its counterpart for several, which share the steps of a sweep.

    rank, size  the number of this process, and how many there are
    """

    rank, size = 0, 1

    def exchange(self, codes: Tensor, owners: Tensor) -> Tensor:
        """Return the codes (0 to 3) [steps] of all processes, given the codes of this one and each step's owner."""
        return codes

    def exchange_values(self, values: Tensor, owners: Tensor) -> Tensor:
        """Return the values [steps], float64, of all processes, as `exchange` does for codes."""
        return values

    def add(self, x: Tensor) -> Tensor:
        """Return the sum of x over the processes."""
        return x

    def agree(self, net: nn.Module) -> None:
        """Raise RuntimeError where the weights of the processes differ."""

    def take_sent(self) -> int:
        """Return the bytes sent since the last call."""
        return 0


ALONE = Alone()


class Position(NamedTuple):
    """The position of a run: finished cycles, finished sweeps of this cycle, finished steps of this sweep."""

    cycle: int = 0
    sweep: int = 0
    step: int = 0

    @classmethod
    def after(cls, history: History) -> "Position":
        """Return the position after the last row of a history."""
        cycles = len(history.cycles.rows)
        return cls(cycles, sum(row.cycle > cycles for row in history.rows))


class Sweep(NamedTuple):
    """One pass over all weights of a layer, or of the network: one row of the history.

    number    of the sweep in its cycle, from 0
    layer     the tensor, or "network"
    position  of the searched layer in the net
    names     of the tensors that are searched together
    before    steps of the layer that precede the sweep
    steps     visits of the sweep
    """

    number: int
    layer: str
    position: int
    names: Sequence[str]
    before: int
    steps: int


class Step(NamedTuple):
    """One visit of a sweep.

    at      the step's place in the run: cycle, sweep, and its number in the sweep from 1 (strategies other than
            "sequential" make the steps of a sweep in another order)
    layer   the tensor
    index   of the weight in it, flat; None where all weights move together
    delta   Δ, 0-dim; NaN where all weights move together
    losses  of the candidates, w first: [K], float64
    choice  the multiple of Δ that the weight has moved by, 0-dim, float64: 0 where w was kept; a weight on a grid has
            gone to the value nearest to that
    """

    at: Position
    layer: str
    index: int | None  # type: ignore[assignment]  # tuples have a method of this name
    delta: Tensor
    losses: Tensor
    choice: Tensor


class SweepResult(NamedTuple):
    """The choices of a sweep, [steps], multiples of Δ, and the sum of the losses of the written candidates."""

    choices: Tensor
    loss: Tensor


def steps_of(
    net: nn.Module, scorer: Scorer, settings: RSO, cycle: int, sweep: Sweep, begun: Sequence[Step], world: Alone
) -> Generator[Step, None, SweepResult]:
    """Make the steps of a sweep: one loop for every strategy, level, device and net.

    begun  the first steps of the sweep, which are not made again, but count

    Raises ValueError where a weight has moved to infinity.
    """
    kind = WeightPlan if settings.level == "weight" else JointPlan
    plan = kind(net, scorer, settings, cycle, sweep, len(begun), world)
    results = Results(settings.multiples(plan.device), sweep.steps)
    for place, step in enumerate(begun):
        results.add([place], step.losses[None], step.choice[None])
    scorer.begin()
    make = engine.stepper(scorer, settings.decide(), plan.device, settings.cache)
    for moves in plan:
        losses, choices = make(moves)
        results.add(moves.places, losses, choices)
        for k, (place, index, delta) in enumerate(moves.visits()):
            yield Step(Position(cycle, sweep.number, place + 1), sweep.layer, index, delta, losses[k], choices[k])
    result = plan.close(results)
    _check_finite(net, sweep)
    return result


def _check_finite(net: nn.Module, sweep: Sweep) -> None:
    """Raise ValueError where a weight has moved to infinity: functions that saturate have a finite loss there."""
    for name in sweep.names:
        weight = net.get_parameter(name)
        if not weight.isfinite().all():
            raise ValueError(
                f"{name} of the net has moved to infinity: keep schedule, candidates, distribution and rule to steps "
                f"that {weight.dtype} can hold"
            )


class WeightPlan:
    """A plan of the visits of a tensor's weights, of which each process makes its own.

    made  steps of the sweep that have been made already
    """

    def __init__(
        self, net: nn.Module, scorer: Scorer, settings: RSO, cycle: int, sweep: Sweep, made: int, world: Alone
    ):
        weight = net.get_parameter(sweep.layer).detach()
        self.settings, self.world, self.device = settings, world, weight.device
        if settings.strategy != "sequential":  # its steps see the weights as they are when the sweep begins
            weight *= 1 - settings.weight_decay
        self.weight, self.grid = weight.view(-1), grids(net).get(sweep.layer)
        self.visits = _visits(net, settings, cycle, sweep)
        self.before = self.weight[self.visits.indices]
        batches = len(scorer.labels)
        self.owners = engine.owners(scorer.strategy, self.visits, batches, world.size)
        own = (self.owners == world.rank).nonzero().flatten()[made:]
        self.moves = engine.plan(scorer.strategy, self.visits, batches, scorer.steps_at_once, own)

    def __iter__(self) -> Iterator[Moves]:
        decay = self.settings.weight_decay if self.settings.strategy == "sequential" else 0.0
        for moves in self.moves:
            if decay:
                self.weight[moves.at] *= 1 - decay
            yield moves

    def close(self, results: "Results") -> SweepResult:
        """Return the result of the sweep. Processes that share it exchange their choices first, and write them all."""
        if self.world.size == 1:
            return SweepResult(results.choices, results.loss())
        choices = results.exchange(self.owners, self.settings.few_choices, self.world)
        self.weight[self.visits.indices] = moved(self.before, self.visits.deltas, choices, self.grid)
        return SweepResult(choices, self.world.add(results.loss().cpu()))


def _visits(net: nn.Module, settings: RSO, cycle: int, sweep: Sweep) -> Visits:
    """Draw the order and the Δ of a sweep."""
    weight = net.get_parameter(sweep.layer).detach()
    rng = generator(settings.seed, cycle, DRAWS, sweep.number)
    indices = ORDERS[settings.order](tuple(weight.shape), rng)
    [scale], [grid] = scales(net, sweep.names, settings, cycle), [grids(net).get(sweep.layer)]
    deltas = drawn(settings, (len(indices),), rng, grid) * scale
    name = sweep.layer if unlike(net) else sweep.layer.split(".", 1)[1]
    return Visits(name, weight.shape[:1].numel(), indices, deltas.to(weight), sweep.before)


def scales(net: nn.Module, names: Sequence[str], settings: RSO, cycle: int) -> list[float]:
    """Return the scale of Δ for some tensors in a cycle: σ, or the spacing of the grid that the weights lie on."""
    weights, on_grid, factor = map(net.get_parameter, names), grids(net), settings.sigma_factor(cycle)
    pairs = zip(names, weights, strict=True)
    return [on_grid[name].spacing if name in on_grid else sigma(weight) * factor for name, weight in pairs]


def drawn(settings: RSO, shape: tuple[int, ...], rng: torch.Generator, grid: Grid | None) -> Tensor:
    """Draw Δ in units of its scale; on a grid only its sign counts, as a weight moves to a neighbouring value."""
    made = settings.draw()(shape, rng)
    return made if grid is None else made.sign()


class JointPlan:
    """Steps that move all weights of the sweep's tensors together, one for every weight they have (section 4.2)."""

    def __init__(
        self, net: nn.Module, scorer: Scorer, settings: RSO, cycle: int, sweep: Sweep, made: int, world: Alone
    ):
        self.settings, self.cycle, self.sweep, self.made = settings, cycle, sweep, made
        self.weights = [net.get_parameter(name).detach() for name in sweep.names]
        self.scales = scales(net, sweep.names, settings, cycle)
        self.grids = [grids(net).get(name) for name in sweep.names]
        self.batches, self.device = len(scorer.labels), self.weights[0].device

    def __iter__(self) -> Iterator[JointMove]:
        settings, sweep = self.settings, self.sweep
        tensors = list(zip(self.weights, self.scales, self.grids, strict=True))
        for t in range(self.made, sweep.steps):
            rng = generator(settings.seed, self.cycle, DRAWS, sweep.number, t)
            deltas = [(drawn(settings, tuple(w.shape), rng, grid) * scale).to(w) for w, scale, grid in tensors]
            for weight in self.weights:
                weight *= 1 - settings.weight_decay
            turn = sweep.before + t
            yield JointMove(sweep.names, turn % self.batches, turn, [t], deltas)

    def close(self, results: "Results") -> SweepResult:
        """Return the result of the sweep."""
        return SweepResult(results.choices, results.loss())


class Results:
    """Losses and choices of the steps of a sweep, in the order in which they were made.

    They lie in a few large tensors. A small tensor for each step would fragment the memory, and the process would grow.

    losses   of the candidates: [steps, K], float64
    choices  multiples of Δ: [steps], float64
    places   of the steps in the sweep
    """

    def __init__(self, multiples: Tensor, steps: int):
        self.multiples, self.places = multiples, list[int]()
        self.losses = multiples.new_empty(steps, len(multiples))
        self.choices = multiples.new_empty(steps)

    def add(self, places: Sequence[int], losses: Tensor, choices: Tensor) -> None:
        """Add the losses [n, K] and the choices [n] of some steps."""
        first, last = len(self.places), len(self.places) + len(places)
        self.losses[first:last], self.choices[first:last] = losses, choices
        self.places.extend(places)

    def written(self) -> Tensor:
        """Return the number of the candidate that each step has written, or of the nearest one: [steps made]."""
        return (self.choices[: len(self.places), None] - self.multiples).abs().argmin(1)

    def loss(self) -> Tensor:
        """Return the sum of the losses of the candidates that were written."""
        return self.losses[: len(self.places)].gather(1, self.written()[:, None]).sum()

    def exchange(self, owners: Tensor, few: bool, world: Alone) -> Tensor:
        """Return the choices [steps] of all processes, in the order of the sweep.

        few  whether each choice is one of at most four candidates, so that 2 bits tell it
        """
        mine = torch.zeros(len(owners), dtype=torch.float64)
        mine[self.places] = (self.written() if few else self.choices[: len(self.places)]).cpu().double()
        if few:
            return self.multiples[world.exchange(mine.long(), owners).to(self.multiples.device)]
        return world.exchange_values(mine, owners).to(self.choices)
