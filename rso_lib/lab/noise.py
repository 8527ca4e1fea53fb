"""The measurements behind the notebooks: what a batch decides, and settings against each other."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .. import models
from ..algorithm import choose
from ..data import Data, Split
from ..engine.layers import CHUNK
from ..history import NAN, History
from ..models import Net
from ..proposals import SCHEDULES, generator, sigma
from ..settings import RSO
from ..train import train
from .plots import BLACK, BLUE, CANDIDATES, GREY, ORANGE, VERMILION, Picture, blank, style

if TYPE_CHECKING:
    import pandas

COLUMNS = ["net", "batch_size", "seconds", "loss", "accuracy", "julia_seconds", "julia_loss", "julia_accuracy"]
UNKNOWN = (float("nan"),) * 3
JULIA = (
    ("one_conv", 32, 212, 0.6316686, 0.8075),
    ("one_conv", 64, 345, 0.55254054, 0.8353),
    ("one_conv", 256, 1641, 0.37202972, 0.8929),
    ("one_conv", 512, 2834, 0.29727805, 0.9152),
    ("one_conv", 1024, 5046, 0.3011675, 0.9148),
    ("two_conv", 32, 1457, 0.5126024, 0.8504),
    ("two_conv", 512, 19186, 0.19334497, 0.9397),
    ("two_conv", 1000, 36464, 0.12634973, 0.9604),
)
"""Net, batch size, seconds, loss and accuracy after 10 rounds on MNIST: Heesoo Song's Julia notebook "RSO: Fitting a
neural network by optimizing one weight at a time", section 2-3, on a CPU that it does not name."""


# What a batch decides


@dataclass(frozen=True, eq=False)
class Visits:
    """Steps that were tried but not made, with the loss of every image.

    layers  the tensor of each visit: M names
    losses  of w, w + Δ and w − Δ for every image of the training part: [M, 3, N], float64

    The loss of a batch is the mean over its images, so what any batch would decide follows from these.
    """

    layers: list[str]
    losses: Tensor

    def __len__(self) -> int:
        return len(self.layers)


@torch.no_grad()
def visits(net: Net, split: Split, per_layer: int, *, factor: float = 1.0, seed: int = 0) -> Visits:
    """Try steps at weights chosen by chance, `per_layer` in each tensor, and undo them.

    factor  of σ, such as `RSO.sigma_factor` of a cycle

    Raises ValueError for a net with batch norm: there the loss of an image depends on the batch.
    """
    _check_no_norm(net)
    layers, losses = [], []
    for k, (name, weight) in enumerate(net.named_parameters()):
        rng = generator(seed, k)
        chosen = torch.randint(weight.numel(), (per_layer,), generator=rng)
        deltas = torch.randn(per_layer, generator=rng) * sigma(weight) * factor
        for index, delta in zip(chosen.tolist(), deltas.tolist(), strict=True):
            layers.append(name)
            old = weight.view(-1)[index].item()
            candidates = (old, old + delta, old - delta)
            losses.append(torch.stack(list(_image_losses(net, split, weight.view(-1), index, candidates))))
    return Visits(layers, torch.stack(losses))


def _check_no_norm(net: nn.Module) -> None:
    if any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        raise ValueError("the net has batch norm, so an image has no loss of its own: take one_conv or two_conv")


def _image_losses(
    net: nn.Module, split: Split, weight: Tensor, index: int, values: Iterable[float]
) -> Iterator[Tensor]:
    """The losses of all images with some values of a weight; then the old one is written back."""
    old = weight[index].clone()
    for value in values:
        weight[index] = value
        logits = torch.cat([net(images) for images in split.images.split(CHUNK)])
        yield F.cross_entropy(logits.double(), split.labels, reduction="none")
    weight[index] = old


@torch.no_grad()
def losses_along(net: nn.Module, name: str, split: Split, offsets: Tensor) -> Tensor:
    """The loss of every image while one weight of a tensor after the other moves: [weights, K, N], float64.

    name     of the tensor
    offsets  from where a weight stands, in units of its σ: [K]

    Raises ValueError for a net with batch norm, as `visits`.
    """
    _check_no_norm(net)
    weight = net.get_parameter(name).detach()
    lines = []
    for index in tqdm(range(weight.numel()), unit="weight"):
        values = weight.view(-1)[index].item() + sigma(weight) * offsets
        lines.append(torch.stack(list(_image_losses(net, split, weight.view(-1), index, values.tolist()))))
    return torch.stack(lines)


def batch_losses(visits: Visits, batch_size: int, batches: int, seed: int = 0) -> Tensor:
    """The three losses on random batches: [M, 3, batches], float64."""
    images = visits.losses.shape[-1]
    rng = generator(seed, batch_size)
    picks = torch.stack([torch.randperm(images, generator=rng)[:batch_size] for _ in range(batches)], 1)
    share = torch.zeros(images, batches, dtype=torch.float64).scatter_(0, picks, 1 / batch_size)
    return visits.losses @ share.to(visits.losses.device)


def wrong(visits: Visits, batch_size: int, batches: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """For each visit, how often a random batch decides otherwise than all images, and how often that does harm.

    Harm: on all images, what the batch chooses is worse than w. Returns two tensors [M], fractions of 1.
    """
    full = visits.losses.mean(-1)
    chosen = choose(batch_losses(visits, batch_size, batches, seed).transpose(0, 1))
    harmful = full.gather(1, chosen) > full[:, :1]
    return (chosen != choose(full.T)[:, None]).double().mean(1), harmful.double().mean(1)


def wrong_by_layer(visits: Visits, batch_sizes: Sequence[int], batches: int = 200, seed: int = 0) -> "pandas.DataFrame":
    """A row for each batch size and layer: visits, wrong, wrong_error, harmful, harmful_error.

    The errors are standard errors of the mean over the visits.
    """
    import pandas

    rows = []
    for batch_size in batch_sizes:
        shares = dict(zip(("wrong", "harmful"), wrong(visits, batch_size, batches, seed), strict=True))
        for layer in dict.fromkeys(visits.layers):
            here = torch.tensor([name == layer for name in visits.layers])
            row: dict[str, Any] = {"batch_size": batch_size, "layer": layer, "visits": int(here.sum())}
            for name, share in shares.items():
                row |= {name: float(share[here].mean()), f"{name}_error": standard_error(share[here])}
            rows.append(row)
    return pandas.DataFrame(rows)


def sequential(
    decide: Callable[[Tensor], tuple[int, int]], visits: Visits, orders: int = 3, seed: int = 0
) -> tuple[float, float]:
    """How a rule does that chooses how many images it looks at: the share of wrong decisions, and the mean of images.

    decide  losses of w, w + Δ and w − Δ for all images in a random order [3, N] → its choice (0, 1 or 2), and how
            many of them it has looked at
    orders  random orders for each visit
    """
    rng = generator(seed)
    best = choose(visits.losses.mean(-1).T).tolist()
    made = []
    for right, losses in zip(best, visits.losses, strict=True):
        for _ in range(orders):
            choice, used = decide(losses[:, torch.randperm(losses.shape[1], generator=rng)])
            made.append((choice != right, used))
    mistakes, images = zip(*made, strict=True)
    return sum(mistakes) / len(made), sum(images) / len(made)


def standard_error(values: Tensor) -> float:
    """Of the mean of independent values [n]; NaN for one."""
    return float(values.std() / len(values) ** 0.5) if len(values) > 1 else NAN


# Settings against each other


def compare(
    net: Callable[..., Net],
    data: Data,
    base: RSO,
    variants: Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
    *,
    progress: bool = True,
) -> dict[str, list[History]]:
    """Runs with settings that differ from `base` in some fields: label → a history for each seed.

    net   (shape, classes, seed=) → a fresh net, such as `models.one_conv`

    With the same seed all variants begin with the same net. An interrupt ends the comparison: a part of a run is no
    result.
    """
    jobs = [(label, seed) for seed in seeds for label in variants]
    runs: dict[str, list[History]] = {label: [] for label in variants}
    for label, seed in tqdm(jobs, unit="run", disable=not progress):
        runs[label].append(_whole_run(net, data, replace(base, seed=seed, **variants[label])))
    return runs


def _whole_run(net: Callable[..., Net], data: Data, settings: RSO) -> History:
    """From a fresh net to the last cycle. `fit` would keep what an interrupt leaves; here it is passed on."""
    fresh = net(data.shape, len(data.classes), seed=settings.seed).to(data.train.labels.device)
    return History(list(train(fresh, data, settings)))  # type: ignore[arg-type]  # without steps these are reports


def differences(
    runs: Mapping[str, Sequence[History]], default: str, field: str = "test_accuracy"
) -> "pandas.DataFrame":
    """How far each variant ends from the default: variant, seeds, mean, difference, error.

    The difference is taken seed by seed, so that what a seed's first net does to both cancels; `error` is the
    standard error of its mean. Raises ValueError where the default is not among the runs.
    """
    import pandas

    if default not in runs:
        raise ValueError(f"default must be one of {', '.join(runs)}, not {default!r}")
    ends = {label: torch.tensor([getattr(h.last, field) for h in histories]) for label, histories in runs.items()}
    rows = []
    for label, values in ends.items():
        apart = values - ends[default]
        rows.append(
            {
                "variant": label,
                "seeds": len(values),
                "mean": float(values.mean()),
                "difference": float(apart.mean()),
                "error": standard_error(apart),
            }
        )
    return pandas.DataFrame(rows)


def julia_table(
    data: Data, sizes: Mapping[str, Sequence[int]], *, cycles: int = 10, seed: int = 0, progress: bool = True
) -> "pandas.DataFrame":
    """The Julia notebook's table: net → batch sizes, trained for `cycles` rounds with a constant σ, as it does.

    Columns: net, batch_size, seconds, loss, accuracy (test part); and on MNIST julia_*, where it has that row.
    An interrupt ends it, as in `compare`.
    """
    import pandas

    quoted = {(net, size): numbers for net, size, *numbers in JULIA if data.name == "mnist"}
    rows = []
    jobs = [(net, size) for net, batch_sizes in sizes.items() for size in batch_sizes]
    for name, size in tqdm(jobs, unit="run", disable=not progress):
        settings = RSO(cycles=cycles, batch_size=size, schedule="constant", seed=seed)
        last = _whole_run(getattr(models, name), data, settings).last
        rows.append((name, size, last.seconds, last.test_loss, last.test_accuracy, *quoted.get((name, size), UNKNOWN)))
    return pandas.DataFrame(rows, columns=COLUMNS)


# Pictures


@style()
def decision(visits: Visits, visit: int, batch_size: int, batches: int = 500) -> Picture:
    """What random batches say about one visit: how much w + Δ and w − Δ change the loss, in nats.

    A cross marks what all images say. Left of zero, a change is an improvement.
    """
    losses = batch_losses(visits, batch_size, batches)[visit].cpu()
    full = visits.losses[visit].mean(-1).cpu()
    changes, truth = losses[1:] - losses[0], full[1:] - full[0]
    reach = float(torch.cat([changes.flatten(), truth]).abs().max()) or 1.0
    names = [name for name, _ in CANDIDATES.values()]
    colours = [colour for _, colour in CANDIDATES.values()]
    picture = blank(7, 3.2)
    axes = picture.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    for k, (change, true) in enumerate(zip(changes, truth, strict=True), 1):
        axes.hist(
            change, bins=40, range=(-reach, reach), color=colours[k], alpha=0.5, label=names[k], histtype="stepfilled"
        )
        axes.plot([float(true)], [0], "X", color=colours[k], markersize=14, markeredgecolor="white", clip_on=False)
    axes.set(xlabel="change of the loss (nats)", ylabel=f"batches (of {batches})", xlim=(-1.05 * reach, 1.05 * reach))
    axes.legend()
    chosen, right = choose(losses), int(choose(full))
    shares = ", ".join(f"{name} in {float((chosen == k).double().mean()):.0%}" for k, name in enumerate(names))
    picture.alt = (
        f"A weight of {visits.layers[visit]}. Of {batches} batches of {batch_size:,} images, {shares} wins. "
        f"All {visits.losses.shape[-1]:,} images choose {names[right]}, so that "
        f"{float((chosen != right).double().mean()):.0%} of the batches are wrong."
    )
    return picture


@style()
def wrong_decisions(table: "pandas.DataFrame", batch_size: int | None = None, column: str = "wrong") -> Picture:
    """How often a batch is wrong (or does harm), by its size and layer, with standard errors.

    table       of `wrong_by_layer`; a column `cycles` gives a panel for each number of cycles
    batch_size  to mark
    column      "wrong" or "harmful"
    """
    stages: dict[Any, Any] = dict(tuple(table.groupby("cycles"))) if "cycles" in table else {None: table}
    picture = blank(max(7, 3.6 * len(stages)), 3.6, right=0.3, wspace=0.15)
    panels = picture.subplots(1, len(stages), sharey=True, squeeze=False)[0]
    sizes = sorted(set(table.batch_size))
    for axes, (cycles, part) in zip(panels, stages.items(), strict=True):
        for layer, rows in part.groupby("layer", sort=False):
            share, error = 100 * rows[column], 100 * rows[f"{column}_error"]
            axes.errorbar(rows.batch_size, share, error, label=layer, capsize=4, marker="o")
        if batch_size is not None:
            axes.axvline(batch_size, color=GREY, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes[:: 1 if len(stages) == 1 else 2], sizes[:: 1 if len(stages) == 1 else 2])
        axes.set(xlabel="batch size (images)", ylim=(0, 100), title="" if cycles is None else f"after {cycles} cycles")
    panels[0].set_ylabel(f"{column} decisions (%)")
    panels[-1].legend()
    picture.alt = f"Share of {column} decisions by batch size and layer, with standard errors. "
    picture.alt += "; ".join(
        f"{row['layer']}, {row['batch_size']:,} images{f', {cycles} cycles' if cycles is not None else ''}: "
        f"{row[column]:.0%} ± {row[f'{column}_error']:.0%}"
        for cycles, part in stages.items()
        for row in part.to_dict("records")
        if row["batch_size"] == (batch_size or sizes[len(sizes) // 2])
    )
    return picture


@style()
def proposals(schedule: str, distribution: str, cycles: int) -> Picture:
    """Left: σ by cycle, the other schedules in grey. Right: Δ in the first, the middle and the last cycle. In first σs.

    A schedule's name stands where its line ends.
    """
    settings = RSO(schedule=schedule, distribution=distribution, cycles=cycles)
    shown = sorted({0, cycles // 2, cycles - 1})
    picture = blank(9, 3.2, wspace=0.55)
    left, right = picture.subplots(1, 2)
    ends = {}
    for name, factor in SCHEDULES.items():
        factors = [factor(cycle, cycles) for cycle in range(cycles)]
        look = {"color": BLUE, "linewidth": 3, "zorder": 3} if name == schedule else {"color": GREY, "linewidth": 1}
        left.plot(range(1, cycles + 1), factors, marker="o", markersize=4, linestyle="-", **look)
        ends[name] = factors[-1]
    lines: dict[str, float] = {}
    for name in sorted(ends, key=ends.__getitem__):
        lines[name] = max(ends[name], max(lines.values(), default=0.0) + 0.09)  # below each other, not on each other
    lower = max(0.0, max(lines.values()) - 1)
    for name, line in lines.items():
        look = {"color": BLUE if name == schedule else GREY, "fontsize": 10, "va": "center"}
        left.text(1.03, line - lower, name, transform=left.get_yaxis_transform(), **look)
    # few ticks, and titles whose place need not be looked for: each tick takes three milliseconds
    left.set(xlabel="cycle", ylabel="σ / first σ", ylim=(0, 1.1), yticks=(0, 0.5, 1))
    left.set_title(schedule, y=1)
    draws = settings.draw()((20_000,), generator(0))
    for cycle, colour in zip(shown, (BLUE, ORANGE, VERMILION), strict=False):
        scaled = draws * settings.sigma_factor(cycle)
        right.hist(scaled, 81, (-4, 4), color=colour, histtype="step", linewidth=2, label=f"cycle {cycle + 1}")
    right.set(xlabel="Δ / first σ", ylabel="of 20,000 draws", xticks=(-2, 0, 2))
    right.yaxis.get_major_locator().set_params(nbins=3)
    right.set_title(distribution, y=1)
    right.legend(loc="upper right")
    scales = ", ".join(f"{settings.sigma_factor(cycle):.2f} in cycle {cycle + 1}" for cycle in shown)
    picture.alt = (
        f"Schedule {schedule}: σ is, in units of the first, {scales}. "
        f"Distribution {distribution}: in 20,000 draws, |Δ| is at most {float(draws.abs().max()):.1f} σ, "
        f"and {float((draws == 0).double().mean()):.0%} of them are 0."
    )
    return picture


@style()
def apart(table: "pandas.DataFrame", default: str) -> Picture:
    """How far each variant ends from the default, with standard errors: the table of `differences`."""
    rows = table[table.variant != default]
    picture = blank(8, 1.2 + 0.42 * len(rows), left=2.6)
    axes = picture.subplots()
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.errorbar(100 * rows.difference, range(len(rows)), xerr=100 * rows.error, fmt="o", color=BLUE, capsize=4)
    axes.set(xlabel="test accuracy, difference to the default (percentage points)", ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), rows.variant)
    ends = "; ".join(
        f"{row['variant']} {100 * row['difference']:+.1f} ± {100 * row['error']:.1f}" for row in rows.to_dict("records")
    )
    mean = float(table[table.variant == default]["mean"].iloc[0])
    picture.alt = f"The default ends at {mean:.1%}. Differences in points, with standard errors: {ends}."
    return picture


@style()
def julia_picture(table: "pandas.DataFrame") -> Picture:
    """Accuracy and seconds by batch size, with the Julia notebook's beside them where the table holds them."""
    picture = blank(9, 3.4, wspace=0.4)
    left, right = picture.subplots(1, 2)
    quoted = table.julia_seconds.notna().any()
    for name, rows in table.groupby("net", sort=False):
        for prefix, label, line in (("", "here", "-"), ("julia_", "Julia notebook", ":")):
            if rows[prefix + "seconds"].notna().any():
                look = {"color": BLUE if name == "one_conv" else VERMILION, "linestyle": line, "marker": "o"}
                left.plot(rows.batch_size, 100 * rows[prefix + "accuracy"], **look)
                right.plot(rows.batch_size, rows[prefix + "seconds"], label=f"{name}, {label}", **look)
    sizes = sorted(set(table.batch_size))
    ticks = [size for size, larger in zip(sizes, [*sizes[1:], math.inf], strict=True) if larger > 1.2 * size]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(size) for size in ticks])
    left.set(xlabel="batch size (images)", ylabel="test accuracy (%)")
    right.set(xlabel="batch size (images)", ylabel="time (seconds)")
    top = 50 * right.get_ylim()[1]  # room for the legend
    right.set(**{"yscale": "log", "ylim": (None, top)} if quoted else {"ylim": (0, None)})
    right.legend(loc="upper left" if quoted else "best", fontsize=10)
    picture.alt = "Test accuracy and time by batch size. " + "; ".join(
        f"{row['net']}, {row['batch_size']:,} images: {row['accuracy']:.1%} in {row['seconds']:.0f} s"
        for row in table.to_dict("records")
    )
    return picture


def save(folder: str, name: str, table: "pandas.DataFrame", picture: Picture) -> None:
    """Write NAME.csv and NAME.png into a folder, which is made where it is missing."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    table.to_csv(path / f"{name}.csv", index=False, lineterminator="\n")
    picture.save(path / f"{name}.png")
