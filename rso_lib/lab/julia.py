"""The table of the Julia notebook that came before this series, measured again (notebook 02)."""

import math
from collections.abc import Mapping, Sequence

import pandas

from .. import models
from ..data import Data
from ..settings import RSO
from .figure import BLUE, VERMILION, Picture, new_picture, style
from .variants import in_memory, run_variants

QUOTED = (
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


def measure_table(
    data: Data, sizes: Mapping[str, Sequence[int]], *, cycles: int = 10, seed: int = 0, progress: bool = True
) -> pandas.DataFrame:
    """Train nets with the Julia notebook's batch sizes, for as many rounds and with a constant σ, as it does.

    sizes  the batch sizes of each net of `models`

    Columns: net, batch_size, seconds, loss, accuracy (test part), and julia_* where the notebook has that row of MNIST.
    """
    quoted = {(net, size): numbers for net, size, *numbers in QUOTED if data.name == "mnist"}
    rows = []
    for net, batch_sizes in sizes.items():
        variants = {str(size): RSO(cycles=cycles, batch_size=size, schedule="constant") for size in batch_sizes}
        made = run_variants(variants, [seed], in_memory(getattr(models, net), data), progress=progress)
        for size, [history] in zip(batch_sizes, made.values(), strict=True):
            last, beside = history.last, quoted.get((net, size), [math.nan] * 3)
            rows.append((net, size, last.seconds, last.test_loss, last.test_accuracy, *beside))
    names = ["seconds", "loss", "accuracy"]
    return pandas.DataFrame(rows, columns=["net", "batch_size", *names, *(f"julia_{name}" for name in names)])


@style()
def plot_table(table: pandas.DataFrame) -> Picture:
    """Draw accuracy and seconds by batch size, with the Julia notebook's beside them where the table holds them."""
    picture = new_picture(9, 3.4, wspace=0.4)
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
