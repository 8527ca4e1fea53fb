"""Methods that train a net with losses alone, and backpropagation, behind one signature.

Each is a function (net, data, budget, seed, **settings) that trains the net in place and yields what it has `Spent`
after every update. It ends before the budget of image-forwards would be passed, and draws all it draws from its seed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ..algorithm import Batches, cross_entropies
from ..data import Data
from ..engine import scorer_of
from ..engine.module import ModuleScorer
from ..history import Report
from ..models import count_weights, searched
from ..proposals import gaussian, generator, linear, sigma
from ..run import sgd
from ..settings import RSO, exact_products
from ..train import train

SHUFFLE, DRAWS = 1, 2
"""What a generator is for."""


class Spent(NamedTuple):
    """What a method has paid so far: images that went through the whole net, and losses that were computed."""

    image_forwards: int
    evaluations: int


Method = Callable[..., Iterator[Spent]]


class Losses:
    """The loss of a net on a batch as a function of all its weights, as one vector; it counts its evaluations.

    One shuffle of the training part is cut into batches, which take turns: an update is made on one, and `update` goes
    on to the next. `rng` is for what a method draws.
    """

    def __init__(self, net: nn.Module, data: Data, budget: int, seed: int, batch_size: int):
        images, labels = data.train.images, data.train.labels
        self.batch_size = min(batch_size, len(labels))
        self.rng = generator(seed, DRAWS)
        order = torch.randperm(len(labels), generator=generator(seed, SHUFFLE)).to(labels.device)
        batches = Batches(images[order], labels[order], self.batch_size)
        settings = RSO(level="network", batch_size=self.batch_size)
        scorer = scorer_of(net, 0, batches, settings, cross_entropies, (seed,))
        assert isinstance(scorer, ModuleScorer)
        self.scorer, self.budget, self.turn, self.evaluations = scorer, budget, 0, 0
        self.weights = [weight.detach() for weight in searched(net).values()]

    @torch.no_grad()
    @exact_products()
    def __call__(self, vector: Tensor) -> float:
        """Return the mean loss of the net with these weights on the batch whose turn it is."""
        self.write(vector)
        self.evaluations += 1
        with self.scorer.same_net(self.turn):
            return float(self.scorer.losses(self.turn % len(self.scorer.labels)).mean())

    def write(self, vector: Tensor) -> None:
        """Write a vector of weights into the net."""
        for weight, part in zip(self.weights, vector.split([w.numel() for w in self.weights]), strict=True):
            weight.copy_(part.view_as(weight))

    def update(self, vector: Tensor) -> Spent:
        """Write new weights into the net, go on to the next batch, and return what was paid so far."""
        self.write(vector)
        self.turn += 1
        return self.spent()

    def vector(self) -> Tensor:
        """Return a copy of the weights of the net."""
        return parameters_to_vector(self.weights).clone()

    def sigmas(self) -> Tensor:
        """Return for each weight the σ of its tensor."""
        return torch.cat([torch.full((w.numel(),), sigma(w)) for w in self.weights])

    def afford(self, evaluations: int) -> bool:
        """Return whether the budget has so many evaluations left."""
        return (self.evaluations + evaluations) * self.batch_size <= self.budget

    def left(self) -> float:
        """Return the share of the budget that is left, by which rates are lowered."""
        return 1 - self.spent().image_forwards / self.budget

    def spent(self) -> Spent:
        """Return the image-forwards and evaluations that were paid so far."""
        return Spent(self.evaluations * self.batch_size, self.evaluations)


def rso(
    net: nn.Module, data: Data, budget: int, seed: int, *, cycles: int, scale: float = 1.0, **settings: Any
) -> Iterator[Spent]:
    """Search with `train`: a number of whole cycles, whose batches use up the budget.

    scale     factor of σ, beside the linear schedule
    settings  other settings of `RSO`, such as strategy or level

    Raises ValueError where the budget has not one image for each evaluation.
    """
    evaluations = len(settings.get("candidates", (0, 1, -1))) * count_weights(net) * cycles
    if budget < evaluations:
        raise ValueError(f"budget must be at least {evaluations:,} image-forwards for {cycles} cycles, not {budget:,}")
    batch = min(budget // evaluations, len(data.train))
    schedule = lambda cycle, cycles: scale * linear(cycle, cycles)  # noqa: E731
    asked = RSO(cycles=cycles, batch_size=batch, schedule=schedule, seed=seed, **settings)
    yield from add_up(item for item in train(net, data, asked) if isinstance(item, Report) and not item.is_cycle)


def add_up(reports: Iterable[Report]) -> Iterator[Spent]:
    """Yield the image-forwards and evaluations that were paid so far, after each report."""
    image_forwards = evaluations = 0
    for report in reports:
        image_forwards += report.image_forwards
        evaluations += report.evaluations
        yield Spent(image_forwards, evaluations)


def spsa(
    net: nn.Module, data: Data, budget: int, seed: int, *, rate: float, batch_size: int, reach: float = 1e-3
) -> Iterator[Spent]:
    """Go along one random direction for each two losses (Spall 1992; MeZO, arXiv 2305.17333), the rate falling to 0.

    rate   of a step, times the number of weights: the step's length is that of gradient descent with this rate, divided
           by the root of the number of weights
    reach  how far along the direction the two losses are taken
    """
    loss = Losses(net, data, budget, seed, batch_size)
    weights = loss.vector()
    while loss.afford(2):
        direction = gaussian((len(weights),), loss.rng).to(weights)
        slope = (loss(weights + reach * direction) - loss(weights - reach * direction)) / (2 * reach)
        weights -= rate / len(weights) * loss.left() * slope * direction
        yield loss.update(weights)


def es(
    net: nn.Module,
    data: Data,
    budget: int,
    seed: int,
    *,
    rate: float,
    batch_size: int,
    pairs: int,
    reach: float = 0.02,
) -> Iterator[Spent]:
    """Follow the mean of antithetic pairs, weighted by their ranks, with Adam (OpenAI-ES, arXiv 1703.03864).

    All members of a generation meet the same batch. The rate falls to 0.
    """
    loss = Losses(net, data, budget, seed, batch_size)
    weights = loss.vector()
    adam = torch.optim.Adam([weights], rate)
    while loss.afford(2 * pairs):
        directions = gaussian((pairs, len(weights)), loss.rng).to(weights)
        both = [[loss(weights + reach * one), loss(weights - reach * one)] for one in directions]
        ranks = centred_ranks(torch.tensor(both)).to(weights)
        weights.grad = (ranks[:, 0] - ranks[:, 1]) @ directions / (2 * pairs)
        adam.param_groups[0]["lr"] = rate * loss.left()
        adam.step()
        yield loss.update(weights)


def centred_ranks(losses: Tensor) -> Tensor:
    """Return the rank of each loss among all, from −1/2 for the lowest to 1/2; NaN counts as the highest."""
    order = losses.flatten().nan_to_num(nan=torch.inf).argsort(stable=True)
    ranks = torch.empty(len(order)).index_copy_(0, order, torch.linspace(-0.5, 0.5, len(order)))
    return ranks.view_as(losses)


def cma_es(net: nn.Module, data: Data, budget: int, seed: int, *, reach: float, batch_size: int) -> Iterator[Spent]:
    """Adapt a normal distribution with a scale for each weight: sep-CMA-ES of the library `cma`, as it recommends.

    A full covariance would have as many entries as the net has pairs of weights.

    reach  the first standard deviation, in σ of each tensor

    Raises ModuleNotFoundError, naming the remedy, where `cma` is not installed.
    """
    library = optional("cma")
    loss = Losses(net, data, budget, seed, batch_size)
    start = loss.vector()
    strategy = library.CMAEvolutionStrategy(
        start.double().cpu().numpy(),
        reach,
        {
            "CMA_diagonal": True,
            "CMA_stds": loss.sigmas().numpy(),
            "randn": lambda *shape: torch.randn(shape, generator=loss.rng, dtype=torch.float64).numpy(),
            "seed": float("nan"),
            "verbose": -9,
        },
    )
    while loss.afford(strategy.popsize):
        members = strategy.ask()
        losses = [loss(torch.as_tensor(one).to(start)) for one in members]
        strategy.tell(members, [value if value < torch.inf else 1e9 for value in losses])
        yield loss.update(torch.as_tensor(strategy.mean).to(start))


def optional(library: str) -> Any:
    """Import a library that only the scoreboard needs. Raises ModuleNotFoundError, naming the remedy."""
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"this method needs the library {library}: python -m pip install 'rso_lib[scoreboard]', or {library} alone"
        ) from error


def finite_differences(
    net: nn.Module,
    data: Data,
    budget: int,
    seed: int,
    *,
    rate: float,
    batch_size: int,
    share: float,
    reach: float = 5e-3,
    momentum: float = 0.9,
) -> Iterator[Spent]:
    """Take the slope of single weights from finite differences, for SGD with momentum (DeepZero, arXiv 2310.02025).

    A step costs one loss, and one more for each weight of a random share of all. The rate falls to 0.
    """
    loss = Losses(net, data, budget, seed, batch_size)
    weights = loss.vector()
    velocity, count = torch.zeros_like(weights), max(1, round(share * len(weights)))
    while loss.afford(1 + count):
        here, slopes = loss(weights), torch.zeros_like(weights)
        for index in torch.randperm(len(weights), generator=loss.rng)[:count].tolist():
            moved = weights.clone()
            moved[index] += reach
            slopes[index] = (loss(moved) - here) / reach
        velocity = momentum * velocity + slopes
        weights -= rate * loss.left() * velocity
        yield loss.update(weights)


def backprop(net: nn.Module, data: Data, budget: int, seed: int, *, rate: float, batch_size: int) -> Iterator[Spent]:
    """Train by `run.sgd`, each image counted as three image-forwards: as many whole epochs as the budget has.

    Raises ValueError where it has not one.
    """
    images = len(data.train) // batch_size * batch_size
    if budget < 3 * images:
        raise ValueError(f"budget must be at least {3 * images:,} image-forwards, an epoch, not {budget:,}")
    settings = sgd.SGD(epochs=budget // (3 * images), batch_size=batch_size, rate=rate, warmup=0, seed=seed)
    yield from add_up(sgd.train(net, data, settings))


def grid(**choices: Any) -> list[dict[str, Any]]:
    """Return all combinations of settings: a list of values is a choice; anything else is the same in all of them."""
    lists = [value if isinstance(value, list) else [value] for value in choices.values()]
    return [dict(zip(choices, values, strict=True)) for values in product(*lists)]


class Contender(NamedTuple):
    """A method on the scoreboard: how pictures and tables call it, its function, and the settings that are tried."""

    label: str
    run: Method
    grid: list[dict[str, Any]]


RSO_GRID: dict[str, Any] = {"cycles": [1, 2, 4, 8, 16, 32], "scale": [2.0, 1.0, 0.5, 0.25]}
JOINT_GRID: dict[str, Any] = {"cycles": [1, 4, 16], "scale": [1.0, 0.3, 0.1, 0.03]}
METHODS: Mapping[str, Contender] = {
    "rso": Contender("RSO", rso, grid(**RSO_GRID)),
    "rso_layer": Contender("RSO, strategy layer", rso, grid(**RSO_GRID, strategy="layer")),
    "joint_layer": Contender("joint search, layer", rso, grid(**JOINT_GRID, level="layer")),
    "joint_network": Contender("joint search, network", rso, grid(**JOINT_GRID, level="network")),
    "spsa": Contender("SPSA (as MeZO)", spsa, grid(rate=[1.0, 3.0, 10.0])),
    "es": Contender("OpenAI-ES", es, grid(rate=[0.001, 0.003, 0.01, 0.03, 0.1], pairs=[10])),
    "cma_es": Contender("sep-CMA-ES", cma_es, grid(reach=[0.003, 0.01, 0.03, 0.1])),
    "differences": Contender(
        "finite differences (as DeepZero)", finite_differences, grid(rate=[0.1, 0.5, 2.0], share=[0.005, 0.02, 0.1])
    ),
    "backprop": Contender("backpropagation", backprop, grid(rate=[0.005, 0.02, 0.1], batch_size=128)),
}
"""Those without a batch size, or cycles that give them one, get that of the board."""

LEAST_BATCH = 30
"""Cycles that would leave fewer images for an evaluation are not tried."""


def settings_tried(entry: Contender, budget: int, weights: int, batch_size: int) -> list[dict[str, Any]]:
    """Return the settings of a method that are tried at a budget, for a net with so many weights."""
    if "cycles" not in entry.grid[0]:
        return [{"batch_size": batch_size, **one} for one in entry.grid]
    least = entry.grid[0]["cycles"]
    return [one for one in entry.grid if one["cycles"] == least or one["cycles"] * 3 * weights * LEAST_BATCH <= budget]
