"""The valley of a live step: the loss of its batch along the visited weight, with the candidates on it."""

from typing import NamedTuple

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..algorithm import cross_entropies
from ..known import unlike
from ..models import Net, grids
from ..passes import buffers_kept, mode
from ..settings import exact_products
from ..train import shuffled, sweeps
from .bench_report import operations
from .figure import BLUE, GREY, VERMILION
from .live import LiveRun

POINTS = 25
MOST_OPERATIONS = 5e9
"""Of all points of a valley together: some tenths of a second. A larger net has no valley in its live picture."""
INK, PAPER = "#1A1A1A", "white"
FONT = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 24)


class Valley(NamedTuple):
    """The loss of a step's batch along the visited weight.

    values, along   of the weight, and the loss there: [POINTS], around the weight as it was
    places, losses  of the candidates: [K], w first
    chosen          the value that the weight has now
    """

    values: Tensor
    along: Tensor
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
    rows = shuffled(run.data, settings, step.at.cycle, sweep.position)[turn * size :][:size]
    images, targets = run.data.train.images[rows], run.data.train.labels[rows]
    loss = run.scored_by.get("loss", cross_entropies)

    weight = net.get_parameter(step.layer).detach().view(-1)
    now, delta = weight[step.index].clone(), step.delta.cpu()
    places = now.cpu() + (torch.tensor(settings.candidates) - step.choice.cpu()) * delta
    reach = 1.3 * float((places - places[0]).abs().max()) or 1.0
    values = (places[0] + reach * torch.linspace(-1, 1, POINTS)).to(weight)
    along = []
    try:
        with mode(net, training=True), buffers_kept(net):
            for block in [*net.children()][: sweep.position]:  # the search takes their statistics as they are
                block.eval()
            for value in values:
                weight[step.index] = value
                along.append(loss(net(images), targets).double().mean())
    finally:
        weight[step.index] = now
    return Valley(values.cpu(), torch.stack(along).cpu(), places, step.losses.cpu(), float(now))


def _operations(net: Net, run: LiveRun) -> int:
    """Count the additions and multiplications of one image in the linear maps of a net."""
    channels, height, width = run.data.shape
    with mode(net, training=False):  # an image goes through the net, whose statistics stay
        return sum(count.plain for count in operations(net, (channels, height, width)))


def draw_valley(valley: Valley, size: tuple[int, int]) -> Image.Image:
    """Draw the curve, a dot for each candidate with its name above it, and a ring around the one that was kept."""
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
    for place, loss in zip(valley.places.tolist(), valley.losses.tolist(), strict=True):
        moved = place - float(valley.places[0])
        x, y = at(place, loss)
        ahead = moved * float(valley.places[min(1, len(valley.places) - 1)] - valley.places[0]) > 0
        colour, name = (GREY, "w") if moved == 0 else (BLUE, "w + Δ") if ahead else (VERMILION, "w − Δ")
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        if len(valley.places) == 3:
            half = draw.textlength(name, FONT) / 2
            draw.text((min(max(x - half, 0), width - 2 * half), 2), name, colour, FONT)
    kept = int((valley.places - valley.chosen).abs().argmin())
    x, y = at(float(valley.places[kept]), float(valley.losses[kept]))
    draw.ellipse((x - 20, y - 20, x + 20, y + 20), outline=INK, width=4)
    said = "loss of the batch along the weight"
    draw.text(((width - draw.textlength(said, FONT)) / 2, height - 32), said, INK, FONT)
    return picture
