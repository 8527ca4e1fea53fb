"""Pictures show the numbers that they are given, and say in words what they show."""

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from PIL import Image

from rso_lib import History, models
from rso_lib.history import Report
from rso_lib.lab import figure, pictures, redraw


def run(accuracies: Sequence[float], *, test_shift: float = -0.1, seconds: float = 2.0) -> History:
    """A history of two sweeps a cycle, whose numbers can be computed by hand."""
    rows = []
    for cycle, accuracy in enumerate(accuracies, 1):
        sweeps = {"head.linear.weight": (30, 6, 14), "block1.conv.weight": (10, 5, 2)}
        for layer, (steps, kept, plus) in sweeps.items():
            rows.append(row(cycle, layer, steps, kept, plus))
        scores = {f"{part}_loss": 1 - accuracy for part in ("train", "val", "test")}
        scores |= {"train_accuracy": accuracy, "val_accuracy": accuracy, "test_accuracy": accuracy + test_shift}
        rows.append(row(cycle, "", 40, 11, 16, seconds=seconds * cycle, **scores))
    return History(rows)


def row(cycle: int, layer: str, steps: int, kept: int, plus: int, **scores: float) -> Report:
    forwards = 3 * steps * 100
    minus = steps - kept - plus
    counts = {"steps": steps, "kept": kept, "plus": plus, "minus": minus, "evaluations": 3 * steps}
    return Report(cycle=cycle, layer=layer, sigma=0.5, image_forwards=forwards, **counts, **scores)


def lines(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def texts(legend: Legend) -> list[str]:
    return [label.get_text() for label in legend.get_texts()]


def same(shown: np.ndarray, expected: object) -> None:
    np.testing.assert_allclose(np.ma.filled(shown, np.nan), np.asarray(expected), rtol=1e-6)


def test_curves_of_one_run() -> None:
    picture = pictures.plot_curves(run([0.5, 0.7, 0.9]))
    accuracy, loss = picture.axes
    assert lines(accuracy)["training"] == ([1, 2, 3], [0.5, 0.7, 0.9])
    assert lines(accuracy)["test"][1] == pytest.approx([0.4, 0.6, 0.8])
    assert lines(loss)["validation"][1] == pytest.approx([0.5, 0.3, 0.1])
    assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("updates of all weights", "accuracy (%)")
    assert loss.get_ylabel() == "cross entropy (nats)"
    assert texts(*picture.legends) == ["training", "validation", "test"]
    assert accuracy.yaxis.get_major_formatter()(0.5) == "50"
    assert "training 90.00%" in picture.alt
    assert "test 80.00%" in picture.alt


def test_curves_of_a_run_without_validation() -> None:
    rows = [replace(row, val_accuracy=math.nan, val_loss=math.nan) for row in run([0.5, 0.7]).rows]
    picture = pictures.plot_curves(History(rows))
    assert texts(*picture.legends) == ["training", "test"]
    assert "nan" not in picture.alt


def test_curves_over_seeds_are_mean_and_range() -> None:
    picture = pictures.plot_curves({"small": [run([0.2, 0.4]), run([0.4, 0.6])], "large": run([0.7, 0.9])})
    accuracy = picture.axes[0]
    assert lines(accuracy)["small"][1] == pytest.approx([0.2, 0.4])  # of the test part
    assert lines(accuracy)["large"][1] == pytest.approx([0.6, 0.8])
    assert [axes.get_ylabel() for axes in picture.axes] == ["test accuracy (%)", "test cross entropy (nats)"]
    [band] = accuracy.collections  # a single run has none
    corners = band.get_paths()[0].vertices[:, 1]
    assert (corners.min(), corners.max()) == pytest.approx((0.1, 0.5))
    assert texts(*picture.legends) == ["small", "large"]
    assert "small, test 40.00% (mean of 2 runs, 30.00% to 50.00%)" in picture.alt


@pytest.mark.parametrize(
    ("against", "expected"),
    [("steps", [40, 80, 120]), ("image_forwards", [12000, 24000, 36000]), ("seconds", [2, 4, 6]), ("cycle", [1, 2, 3])],
)
def test_what_curves_are_drawn_against(against: str, expected: list[float]) -> None:
    axes = pictures.plot_curves(run([0.5, 0.7, 0.9]), parts=["test"], against=against, log=True).axes[0]
    assert lines(axes)["test"][0] == expected
    assert axes.get_xlabel() == pictures.COSTS[against]
    assert axes.get_xscale() == "log"


@pytest.mark.parametrize("label", ["run number", "a run whose name is as long as this"])
def test_the_legend_hides_no_curve(label: str) -> None:
    picture = pictures.plot_curves({f"{label} {k}": [run([0.5, 0.7]), run([0.6, 0.9])] for k in range(7)})
    picture.image()
    [legend] = picture.legends
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= picture.bbox.x1
    low = legend.get_window_extent().y0
    assert all(axes.get_window_extent().y1 <= low for axes in picture.axes)
    assert legend.get_window_extent().y1 <= picture.bbox.y1


def test_the_title_of_curves_stands_above_the_legend() -> None:
    picture = pictures.plot_curves({"small": run([0.5, 0.7]), "large": run([0.7, 0.9])}, title="digits, one_conv")
    picture.image()
    [legend] = picture.legends
    assert legend.get_title().get_text() == "digits, one_conv"
    assert all(axes.get_window_extent().y1 <= legend.get_window_extent().y0 for axes in picture.axes)
    assert legend.get_window_extent().y1 <= picture.bbox.y1
    assert picture.alt.startswith("digits, one_conv: accuracy (left)")


def test_a_shorter_run_ends_the_mean() -> None:
    axes = pictures.plot_curves([run([0.5, 0.7, 0.9]), run([0.7, 0.9])], parts=["train"]).axes[0]
    assert lines(axes)["training"] == ([1, 2], pytest.approx([0.6, 0.8]))


def test_curves_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="against must be one of cycle, steps, image_forwards, seconds, not 'epochs'"):
        pictures.plot_curves(run([0.5]), against="epochs")
    with pytest.raises(ValueError, match="parts must be one of train, val, test, not 'dev'"):
        pictures.plot_curves(run([0.5]), parts=["dev"])
    with pytest.raises(ValueError, match="no cycle is finished yet in slow"):
        pictures.plot_curves({"slow": History(run([0.5]).rows[:1])})


def test_acceptance() -> None:
    picture = pictures.plot_kept_shares(run([0.5, 0.7]), least=10)
    left, right, bar = picture.axes
    heights = [[patch.get_height() for patch in bars] for bars in left.containers]
    same(np.array(heights), np.array([[11, 11], [16, 16], [13, 13]]) / 40)
    tops = [patch.get_y() + patch.get_height() for patch in left.containers[-1]]
    assert tops == pytest.approx([1, 1])
    assert texts(left.get_legend()) == ["w", "w + Δ", "w − Δ"]
    same(right.images[0].get_array(), [[20, 20], [50, 50]])
    assert [label.get_text() for label in right.get_yticklabels()] == ["head.linear.weight", "block1.conv.weight"]
    assert bar.get_ylabel() == "steps that keep w (%)"
    assert "28%" in picture.alt
    assert "from 20% to 50%" in picture.alt


def test_acceptance_leaves_out_a_cycle_that_is_not_finished() -> None:
    history = run([0.5, 0.7])
    history.rows.pop()
    assert pictures.plot_kept_shares(history, least=10).axes[1].images[0].get_array().shape == (2, 1)


@pytest.mark.parametrize(("least", "layers"), [(10, 2), (20, 1), (31, 2)])
def test_acceptance_leaves_out_small_layers(least: int, layers: int) -> None:
    """Of 30 and 10 weights; all of them are drawn where none is large enough."""
    assert pictures.plot_kept_shares(run([0.5]), least=least).axes[1].images[0].get_array().shape == (layers, 1)


def test_loss_along_one_weight() -> None:
    values, candidates = torch.linspace(-1, 1, 5), torch.tensor([0.0, 0.5, -0.5])
    scores = torch.tensor([0.3, math.nan, 0.2])
    picture = pictures.plot_loss_along(values, values**2, candidates, scores, name="weight 7")
    [axes] = picture.axes
    assert axes.lines[0].get_ydata().tolist() == [1, 0.25, 0, 0.25, 1]
    assert [line.get_xdata()[0] for line in axes.lines[1:]] == [0, 0.5, -0.5]
    assert [text.get_text() for text in axes.texts] == ["w", "w + Δ", "w − Δ"]
    marks, ring = axes.collections
    same(marks.get_offsets()[[0, 2]], [[0, 0.3], [-0.5, 0.2]])
    same(ring.get_offsets(), [[-0.5, 0.2]])
    assert axes.get_xlabel() == "value of weight 7"
    assert picture.alt.endswith("The batch: w − Δ wins.")


def test_loss_along_one_weight_for_several_batches() -> None:
    values, candidates = torch.linspace(-1, 1, 5), torch.tensor([0.0, 0.5, -0.5])
    curves = {"16 images": values, "64 images": values**2}
    scores = {"16 images": candidates, "64 images": candidates**2}
    picture = pictures.plot_loss_along(values, curves, candidates, scores)
    assert texts(picture.axes[0].get_legend()) == ["16 images", "64 images"]
    assert "16 images: w − Δ wins. 64 images: w wins." in picture.alt


def test_sweep() -> None:
    losses = torch.tensor([[3.0, 2.0, 4.0], [2.0, 2.5, 2.0], [2.0, math.nan, 1.0], [1.0, 2.0, 0.5]])
    picture = pictures.plot_sweep(losses, block=2)
    curve, wins = picture.axes
    assert curve.lines[0].get_ydata().tolist() == [2, 2, 1, 0.5]
    assert [text.get_text() for text in curve.texts] == ["0", "1"]
    assert [text.get_position()[0] for text in curve.texts] == [1, 3]
    assert wins.get_xticks().tolist() == [0, 2, 4]
    rows = {tuple(row.get_positions()): matplotlib.colors.to_hex(row.get_color()).upper() for row in wins.collections}
    assert rows == {(2,): figure.GREY, (1,): figure.BLUE, (3, 4): figure.VERMILION}
    heights = {label.get_text(): tick for label, tick in zip(wins.get_yticklabels(), wins.get_yticks(), strict=True)}
    assert heights == {"w (1)": 2, "w + Δ (1)": 1, "w − Δ (2)": 0}
    assert [row.get_lineoffset() for row in wins.collections] == [2, 1, 0]
    assert "Wins: w (1), w + Δ (1), w − Δ (2)." in picture.alt


def pixels_of(picture: figure.Picture) -> np.ma.MaskedArray:
    return picture.axes[0].images[0].get_array()


def test_weights_of_a_convolution_are_put_where_they_belong() -> None:
    net = models.mnist_net()
    picture = pictures.plot_weights(net, "block2.conv.weight", mark=16 * 9 * 3 + 9 * 5 + 7)  # output 3, input 5, tap 7
    pixels = pixels_of(picture)
    assert pixels.shape == (16 * 4 - 1, 16 * 4 - 1)
    kernel = net.get_parameter("block2.conv.weight").detach()
    same(pixels[4 * 5 : 4 * 5 + 3, 4 * 3 : 4 * 3 + 3], kernel[3, 5])
    assert pixels.mask[3].all() and pixels.mask[:, 3].all()
    frame = picture.axes[0].patches[-1]
    assert frame.get_xy() == (4 * 3 + 1 - 0.5, 4 * 5 + 2 - 0.5)
    assert picture.axes[0].get_xlabel() == "output channel"
    assert picture.axes[0].get_ylabel() == "input channel"
    assert f"Weight 484 is framed: {float(kernel[3, 5, 2, 1]):.3f}." in picture.alt


def test_weights_of_the_final_layer_are_cut_into_pictures() -> None:
    net = models.one_conv((1, 8, 8))
    picture = pictures.plot_weights(net, "head.linear.weight")
    matrix = net.get_parameter("head.linear.weight").detach()
    pixels = pixels_of(picture)
    assert pixels.shape == (4 * 5 - 1, 10 * 5 - 1)
    same(pixels[5 * 3 : 5 * 3 + 4, 5 * 7 : 5 * 7 + 4], matrix[7].view(4, 4, 4)[3])
    assert picture.axes[0].get_xlabel() == "class"
    assert "10 × 4 pictures of 4 × 4" in picture.alt


def test_weights_that_are_no_pictures() -> None:
    net = models.mnist_net()
    matrix = net.get_parameter("head.linear.weight").detach()
    same(pixels_of(pictures.plot_weights(net, "head.linear.weight")), matrix.T)
    assert pixels_of(pictures.plot_weights(net, "block1.norm.weight", mark=3)).shape == (1, 16)
    flat = pixels_of(pictures.plot_weights(models.one_conv((1, 8, 12)), "head.linear.weight"))
    assert flat.shape == (4 * 2 - 1, 10 * 25 - 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_images(channels: int) -> None:
    batch = torch.randn(3, channels, 8, 8)
    picture = pictures.plot_images(batch, [4, "two", 0], title="digits")
    assert [axes.get_title() for axes in picture.axes] == ["4", "two", "0"]
    shown = picture.axes[1].images[0].get_array()
    expected = (batch[1] - batch.min()) / (batch[1] - batch.min()).max()
    same(shown.reshape(8, 8, channels), expected.permute(1, 2, 0))
    assert picture.alt == "3 images, digits: 4, two, 0."


def test_a_picture_shows_itself_with_its_text() -> None:
    picture = pictures.plot_curves(run([0.5, 0.9]))
    picture.alt = 'w < w + Δ & "more"'
    data, metadata = DisplayFormatter().format(picture)
    assert data["text/plain"] == picture.alt
    assert 'alt="w &lt; w + Δ &amp; &quot;more&quot;"' in data["text/html"]
    assert f'src="data:image/png;base64,{data["image/png"]}"' in data["text/html"]
    assert metadata["image/png"] == {"alt": picture.alt}


def test_png(tmp_path: Path) -> None:
    picture = pictures.plot_curves(run([0.5, 0.9]))
    picture.save(tmp_path / "a.png")
    pictures.plot_curves(run([0.5, 0.9])).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() == picture.png()
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Description"] == picture.alt
        assert image.size == (1080, 432)
        shown = np.array(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(shown, axis=0)) > 20


def test_nothing_global_changes() -> None:
    """Neither matplotlib's settings, also when threads draw at the same time, nor pyplot's figures."""
    before = dict(matplotlib.rcParams)
    threads = [threading.Thread(target=lambda: pictures.plot_curves(run([0.5, 0.9])).png()) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before


def test_runs_as_a_table(tmp_path: Path) -> None:
    runs = {"64, small": [run([0.2, 0.4]), run([1 / 3, 0.6], test_shift=math.pi / 10)], "512": [run([0.7])]}
    redraw.save_runs(tmp_path / "runs.csv", runs)
    table = pandas.read_csv(tmp_path / "runs.csv")
    assert [*zip(table.run, table.repeat, table.cycle, strict=True)] == [
        ("64, small", 0, 1),
        ("64, small", 0, 2),
        ("64, small", 1, 1),
        ("64, small", 1, 2),
        ("512", 0, 1),
    ]
    assert table.test_accuracy[2] == runs["64, small"][1].cycles.rows[0].test_accuracy
