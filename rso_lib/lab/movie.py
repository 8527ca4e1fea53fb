"""One step after another as a moving picture: figures/step.gif, by `python -m rso_lib movie`."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.colors import CenteredNorm
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from ..algorithm import cross_entropy
from ..data import Data, load
from ..models import count_weights
from ..passes import losses_along, mode
from ..run import cli as command
from ..run.folder import build_net
from ..settings import RSO
from ..sweep import Step
from ..train import evaluate, train
from .figure import BLACK, BLUE, CANDIDATES, GREY, Picture, new_picture, style
from .pictures import lay_out_weights
from .results import FIGURES
from .valley import Valley

CAPTION = (
    "Steps of RSO on handwritten digits, one after the other. Left: the loss along the visited weight, with three dots "
    "at w, w + Δ and w − Δ; the lowest is ringed and kept. Middle: the weights of the layer, the visited one framed. "
    "Right: the validation accuracy, which rises from chance."
)
"""What a page says in place of the moving picture."""
MILLISECONDS = (350, 250)
"""How long the three dots are shown, and the winner."""
MULTIPLES = (0.0, 1.0, -1.0)
"""Of Δ, of the three candidates."""
SLOW, SLOWLY = 4, (1500, 900)
"""So many steps at the beginning are shown for longer: time to read the question, and to guess."""


class Shot(NamedTuple):
    """A step as it is drawn: where the weight could go, what that costs, and how far the run is.

    tiles    the layer's weights before the step and after it, and the cell of the visited weight in both
    updates  full updates so far, and the validation accuracy there
    """

    step: Step
    valley: Valley
    tiles: tuple[Tensor, Tensor]
    cell: tuple[int, int]
    updates: float
    accuracy: float


def shots(net: nn.Module, data: Data, settings: RSO, every: dict[str, int]) -> Iterator[Shot]:
    """Train a net, and yield every so many steps as a shot, for each tensor that is named.

    Every step must see all images, so that the loss along a weight is one curve: batch_size is their number.
    """
    steps = (item for item in train(net, data, settings, steps=True) if isinstance(item, Step))
    for count, step in enumerate(steps, 1):
        if step.layer in every and step.index is not None and step.index % every[step.layer] == 0:
            yield look(net, data, step, count / count_weights(net))


@torch.no_grad()
def look(net: nn.Module, data: Data, step: Step, updates: float) -> Shot:
    """Return the shot of a step that was just made. The net stays as it is."""
    assert step.index is not None
    weights, delta = net.get_parameter(step.layer).view(-1), float(step.delta)
    now = float(weights[step.index])
    places = now + delta * (torch.tensor(MULTIPLES) - float(step.choice))
    values = places[0] + 2.2 * abs(delta) * torch.linspace(-1, 1, 41)
    with mode(net, training=False):
        loss = lambda: cross_entropy(net(data.train.images), data.train.labels)  # noqa: E731
        along = losses_along(loss, weights, step.index, values).cpu()
    after = lay_out_weights(net, step.layer)
    before, cell = after.values.clone(), after.cell(step.index)
    before[cell] = places[0]
    valley = Valley(values, along, MULTIPLES, places, step.losses.cpu(), now)
    return Shot(step, valley, (before, after.values), cell, updates, evaluate(net, data.val)[1])


@style()
def draw(shot: Shot, curve: Sequence[tuple[float, float]], end: float, decided: bool) -> Picture:
    """Draw a step before it is decided or after: valley, tile, and the curve of updates and accuracies up to here."""
    picture = new_picture(9.5, 3.4, left=0.5, top=0.65, wspace=0.45)
    picture.set_dpi(84)
    axes, tile, progress = picture.subplots(1, 3)
    names, colours = zip(*CANDIDATES.values(), strict=True)
    step, valley = shot.step, shot.valley
    axes.plot(valley.values, valley.along, color=BLACK, linestyle="-")
    axes.scatter(valley.places, valley.losses, color=colours, s=90, zorder=3)
    for name, colour, place in zip(names, colours, valley.places.tolist(), strict=True):
        axes.annotate(name, (place, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", color=colour)
    axes.set(xlabel="value of the weight", ylabel="loss of all images", yticks=[])
    axes.locator_params(axis="x", nbins=3)
    axes.margins(y=0.15)
    tile.imshow(shot.tiles[decided].numpy(), cmap="PuOr", norm=CenteredNorm(0), interpolation="nearest")
    tile.add_patch(Rectangle((shot.cell[1] - 0.5, shot.cell[0] - 0.5), 1, 1, fill=False, linewidth=2.5))
    tile.set(xticks=[], yticks=[], facecolor="#DDDDDD", xlabel=f"weight {step.index} of {step.layer}")
    tile.grid(False)
    progress.plot([x for x, _ in curve], [100 * y for _, y in curve], color=BLUE)
    progress.scatter([curve[-1][0]], [100 * curve[-1][1]], color=BLUE, s=60)
    progress.set(xlim=(0, end), ylim=(0, 100), xlabel="updates of all weights", ylabel="validation accuracy (%)")
    said, colour = "Which of the three?", GREY
    if decided:
        winner = MULTIPLES.index(float(step.choice))
        said, colour = f"{names[winner]} wins.", colours[winner]
        axes.scatter(
            valley.places[winner],
            valley.losses[winner],
            s=330,
            facecolors="none",
            edgecolors=BLACK,
            linewidths=2,
            zorder=3,
        )
    picture.suptitle(said, color=colour, fontweight="bold", y=0.995)
    picture.alt = CAPTION
    return picture


def make_movie(net: nn.Module, data: Data, settings: RSO, every: dict[str, int]) -> bytes:
    """Train a net and return some of its steps as a GIF that repeats for ever."""
    frames: list[Image.Image] = []
    curve = [(0.0, evaluate(net, data.val)[1])]
    for shot in shots(net, data, settings, every):
        frames.append(draw(shot, curve, settings.cycles, decided=False).image())
        curve.append((shot.updates, shot.accuracy))
        frames.append(draw(shot, curve, settings.cycles, decided=True).image())
    palette = Image.fromarray(np.vstack([np.asarray(frame) for frame in frames[:: len(frames) // 4]])).quantize(
        96, dither=Image.Dither.NONE
    )
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    steps = len(small) // 2
    durations = [*SLOWLY * min(SLOW, steps), *MILLISECONDS * max(0, steps - SLOW)]
    durations[-1] = 2000
    buffer = io.BytesIO()
    small[0].save(buffer, "GIF", save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


@dataclass
class Options:
    """What is filmed."""

    cycles: int = 4
    """passes over all weights"""
    seed: int = 0
    """of the net and of all draws"""
    out: str = str(FIGURES / "step.gif")
    """file of the moving picture"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train a small net on digits, and draw some of its steps as a moving picture."""
    options = Options(**command.parse("movie", main, arguments, Options))
    with command.ending("movie"):
        torch.set_num_threads(1)
        data = load("digits")
        net = build_net("one_conv", data.shape, len(data.classes), options.seed)
        settings = RSO(cycles=options.cycles, batch_size=len(data.train), order="shuffled", seed=options.seed)
        file = Path(options.out)
        file.write_bytes(make_movie(net, data, settings, {"head.linear.weight": 160, "block1.conv.weight": 16}))
        print(file)
