"""The valley of a live step: the loss of its batch along the visited weight, with the candidates on it."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..algorithm import cross_entropies
from ..known import unlike
from ..models import Net, grids
from ..passes import buffers_kept, losses_along, mode
from ..settings import exact_products
from ..train import image_order, sweeps
from .bench_report import operations
from .figure import CANDIDATES
from .live import LiveRun

POINTS = 25
MOST_OPERATIONS = 5e9
"""Of all points of a valley together: some tenths of a second. A larger net has no valley in its live picture."""
INK, PAPER = "#1A1A1A", "white"
FONT = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 24)


class Valley(NamedTuple):
    """The loss of a step's batch along the visited weight.

    values, along   of the weight, and the loss there: [POINTS], around the weight as it was
    multiples       of Δ, of the candidates: w is 0
    places, losses  of the candidates: [K]
    chosen          the value that the weight has now
    """

    values: Tensor
    along: Tensor
    multiples: Sequence[float]
    places: Tensor
    losses: Tensor
    chosen: float


@torch.no_grad()
@exact_products()
def valley_of(run: LiveRun) -> Valley | None:
    """Return the valley of a run's last step; the net stays as it is.

    None before the first step, and where there is no such curve, or none that is cheap: all weights move together, the
    steps of a sweep do not see each other, weights lie on a grid, the net is not a `models.Net`, or it is large.
    """
    step, settings, net = run.last, run.made_with, run.net
    if step is None or step.index is None or settings.strategy != "sequential":
        return None
    size = settings.batch(step.at.cycle)
    if not isinstance(net, Net) or unlike(net) or grids(net) or POINTS * size * _operations(net, run) > MOST_OPERATIONS:
        return None
    sweep = sweeps(net, settings)[step.at.sweep]
    turn = (sweep.before + step.at.step - 1) % (len(run.data.train) // size)
    rows = image_order(run.data, settings, step.at.cycle, sweep.position)[turn * size :][:size]
    images, targets = run.data.train.images[rows], run.data.train.labels[rows]
    loss = run.scored_by.get("loss", cross_entropies)

    weight = net.get_parameter(step.layer).detach().view(-1)
    now, delta = weight[step.index].cpu().clone(), step.delta.cpu()
    places = now + (torch.tensor(settings.candidates) - step.choice.cpu()) * delta
    reach = 1.3 * float((torch.cat([places, now[None]]) - places[0]).abs().max()) or 1.0
    values = (places[0] + reach * torch.linspace(-1, 1, POINTS)).to(weight)
    with mode(net, training=True), buffers_kept(net):
        for block in [*net.children()][: sweep.position]:  # the search takes their statistics as they are
            block.eval()
        along = losses_along(lambda: loss(net(images), targets).double().mean(), weight, step.index, values)
    return Valley(values.cpu(), along.cpu(), settings.candidates, places, step.losses.cpu(), float(now))


def _operations(net: Net, run: LiveRun) -> int:
    """Count the additions and multiplications of one image in the linear maps of a net."""
    channels, height, width = run.data.shape
    return sum(count.plain for count in operations(net, (channels, height, width)))


def name_candidate(multiple: float) -> str:
    """Return the name of w + m·Δ: w, w + Δ, w − 2 Δ …"""
    size = "" if abs(multiple) == 1 else f"{abs(multiple):.3g} "
    return f"w {'+' if multiple > 0 else '−'} {size}Δ" if multiple else "w"


def draw_valley(valley: Valley, size: tuple[int, int]) -> Image.Image:
    """Draw the loss curve, a dot for each candidate with its name above it, and a ring where the weight is now."""
    picture = Image.new("RGB", size, PAPER)
    draw, (width, height) = ImageDraw.Draw(picture), size
    heights = torch.cat([valley.along, valley.losses])
    low, high = float(heights.min()), float(heights.max())
    left, right = float(valley.values[0]), float(valley.values[-1])
    top, bottom, margin, radius = 56, height - 40, 24, 11

    def at(value: float, loss: float) -> tuple[float, float]:
        x = margin + (value - left) / (right - left) * (width - 2 * margin)
        return x, bottom - (loss - low) / ((high - low) or 1.0) * (bottom - top)

    draw.line([at(*point) for point in zip(valley.values.tolist(), valley.along.tolist(), strict=True)], INK, 4)
    for multiple, place, loss in zip(valley.multiples, valley.places.tolist(), valley.losses.tolist(), strict=True):
        x, y = at(place, loss)
        _, colour = CANDIDATES["kept" if multiple == 0 else "plus" if multiple > 0 else "minus"]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        if len(valley.places) <= 3:  # the names of more would overlap
            name = name_candidate(multiple)
            half = draw.textlength(name, FONT) / 2
            draw.text((min(max(x - half, 0), width - 2 * half), 2), name, colour, FONT)
    x, y = at(valley.chosen, float(np.interp(valley.chosen, valley.values, valley.along)))
    draw.ellipse((x - 20, y - 20, x + 20, y + 20), outline=INK, width=4)
    said = "loss of the batch along the weight"
    draw.text(((width - draw.textlength(said, FONT)) / 2, height - 32), said, INK, FONT)
    return picture
