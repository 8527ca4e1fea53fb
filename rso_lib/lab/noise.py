"""Batch noise: how often a batch decides otherwise than all images would (notebook 02, and the curves of 01)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas
import torch
from torch import Tensor, nn

from ..algorithm import cross_entropies
from ..data import Split
from ..engine.layers import chunk
from ..passes import losses_along
from ..proposals import generator
from ..rules import choose
from .figure import BLACK, CANDIDATES, Picture, new_picture, style


@torch.no_grad()
def image_losses(net: nn.Module, name: str, index: int, values: Iterable[float], split: Split) -> Tensor:
    """Return the loss of every image while one weight takes some values: [values, N], float64.

    name, index  of the weight: its tensor, and its flat index there

    The weight has its own value again at the end, and where an interrupt or an error ends the measurement.
    Raises ValueError for a net with batch norm, where the loss of an image depends on its batch.
    """
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        raise ValueError("the net has batch norm, so an image has no loss of its own: take one_conv or two_conv")
    parts = split.images.split(chunk(split.images.device))
    losses = lambda: cross_entropies(torch.cat([net(images) for images in parts]), split.labels)  # noqa: E731
    return losses_along(losses, net.get_parameter(name).view(-1), index, values)


@dataclass(frozen=True, eq=False)
class TriedSteps:
    """The loss of every image in steps that were tried but not made.

    layers  the tensor of each step: M names
    losses  of w, w + Δ and w − Δ for every image of the training part: [M, 3, N], float64

    The loss of a batch is the mean over its images, so what any batch would decide follows from these.
    """

    layers: list[str]
    losses: Tensor


def sample_batch_losses(tried: TriedSteps, batch_size: int, batches: int, seed: int = 0) -> Tensor:
    """Return the three losses of each step on random batches: [M, 3, batches], float64."""
    images = tried.losses.shape[-1]
    rng = generator(seed, batch_size)
    picks = torch.stack([torch.randperm(images, generator=rng)[:batch_size] for _ in range(batches)], 1)
    share = torch.zeros(images, batches, dtype=torch.float64).scatter_(0, picks, 1 / batch_size)
    return tried.losses @ share.to(tried.losses.device)


def score_stopping_rule(
    decide: Callable[[Tensor], tuple[int, int]], tried: TriedSteps, orders: int = 3, seed: int = 0
) -> tuple[float, float]:
    """Return the share of wrong decisions, and the mean number of images, of a rule that stops when it is sure.

    decide  losses of w, w + Δ and w − Δ for all images in a random order [3, N] → its choice (0, 1 or 2), and how
            many of the images it has looked at
    orders  random orders for each step
    """
    rng = generator(seed)
    wrong, images = [], []
    for right, losses in zip(choose(tried.losses.mean(-1).T).tolist(), tried.losses, strict=True):
        for _ in range(orders):
            choice, used = decide(losses[:, torch.randperm(losses.shape[1], generator=rng)])
            wrong.append(choice != right)
            images.append(used)
    return sum(wrong) / len(wrong), sum(images) / len(images)


@style()
def plot_decision(tried: TriedSteps, step: int, batch_size: int, batches: int = 500) -> Picture:
    """Draw how much w + Δ and w − Δ change the loss of random batches, for one step, in nats.

    Crosses mark the change on all images. Left of zero, a change is an improvement.
    """
    losses = sample_batch_losses(tried, batch_size, batches)[step].cpu()
    full = tried.losses[step].mean(-1).cpu()
    changes, truth = losses[1:] - losses[0], full[1:] - full[0]
    reach = float(torch.cat([changes.flatten(), truth]).abs().max()) or 1.0
    names = [name for name, _ in CANDIDATES.values()]
    colours = [colour for _, colour in CANDIDATES.values()]
    picture = new_picture(7, 3.2)
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
    shares = ", ".join(f"{float((chosen == k).double().mean()):.0%} choose {name}" for k, name in enumerate(names))
    picture.alt = (
        f"A weight of {tried.layers[step]}. Of {batches} batches of {batch_size:,} images, {shares}. "
        f"All {tried.losses.shape[-1]:,} images choose {names[right]}, so that "
        f"{float((chosen != right).double().mean()):.0%} of the batches are wrong."
    )
    return picture


@style()
def plot_wrong(table: pandas.DataFrame) -> Picture:
    """Draw how often a batch decides wrongly, by its size and layer, with standard errors over the steps.

    table  a row for each step that was tried: cycles (a panel each), batch_size, layer, and wrong as a fraction of 1
    """
    picture = new_picture(3.6 * table.cycles.nunique(), 3.6, right=0.3, wspace=0.15)
    panels = picture.subplots(1, table.cycles.nunique(), sharey=True, squeeze=False)[0]
    sizes, says = sorted(set(table.batch_size)), []
    for axes, (cycles, part) in zip(panels, table.groupby("cycles"), strict=True):
        for layer, rows in part.groupby("layer", sort=False):
            share = 100 * rows.groupby("batch_size").wrong.agg(["mean", "sem"])
            axes.errorbar(share.index, share["mean"], share["sem"], label=layer, capsize=4, marker="o")
            mean, error = share.loc[sizes[len(sizes) // 2]]
            says.append(f"{layer}, {cycles} cycles: {mean:.0f}% ± {error:.0f}%")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes[::2], sizes[::2])
        axes.set(xlabel="batch size (images)", ylim=(0, 100), title=f"after {cycles} cycles")
    panels[0].set_ylabel("wrong decisions (%)")
    panels[0].legend(loc="upper right", fontsize=10)
    picture.alt = "Share of wrong decisions by batch size and layer, with standard errors. "
    picture.alt += f"With batches of {sizes[len(sizes) // 2]:,}: {'; '.join(says)}."
    return picture
