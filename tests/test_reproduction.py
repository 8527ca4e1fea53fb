"""Tables of the paper follow from histories; random directions are measured as they are described."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from cells import function_of
from torch import nn

from rso_lib import RSO, History, load, models
from rso_lib.data import Split, home
from rso_lib.engine.head import HeadScorer
from rso_lib.history import Report
from rso_lib.lab import costs, directions, presets, tables, variants
from rso_lib.proposals import generator


def report(cycle: int, layer: str = "", *, steps: int = 10, kept: int = 1, **scores: float) -> Report:
    counts = {"plus": steps - kept, "minus": 0, "evaluations": 3 * steps, "image_forwards": 30 * steps}
    return Report(cycle=cycle, layer=layer, sigma=1.0, steps=steps, kept=kept, **counts, **scores)


def run(test: list[float], val: list[float] | None = None) -> History:
    pairs = zip(test, val or test, strict=True)
    return History([report(k, kept=k, test_accuracy=t, val_accuracy=v) for k, (t, v) in enumerate(pairs, 1)])


def test_scores_are_final_chosen_on_validation_and_peeked() -> None:
    found = tables.summarise_accuracy([run([0.5, 0.9, 0.7], val=[0.8, 0.6, 0.7]), run([0.1, 0.2, 0.3])])
    assert found["final"] == pytest.approx(50)
    assert found["error"] == pytest.approx(20)  # deviation 28.28 of 70 and 30, over √2
    assert found["at_best_validation"] == pytest.approx((50 + 30) / 2)
    assert found["peeking"] == pytest.approx((90 + 30) / 2)
    assert math.isnan(tables.summarise_accuracy([run([0.5])])["error"])
    assert math.isnan(tables.summarise_accuracy([run([0.5], val=[math.nan])])["at_best_validation"])


def test_a_row_for_each_method() -> None:
    table = tables.tabulate_accuracy({"SGD": [run([0.5, 0.75])], "RSO": [run([0.5]), run([0.25])]}).set_index("method")
    assert list(table.index) == ["SGD", "RSO"]
    assert (table.final["SGD"], table.updates["SGD"], table.runs["RSO"]) == (75, 2, 2)
    assert table.final["RSO"] == 37.5


def test_architectures_are_drawn_from_the_nets() -> None:
    picture = costs.plot_architectures({"Depth-10": models.cifar_net(10), "five": models.cifar_net(5)}, (3, 32, 32))
    assert "Depth-10: channels 16 16 16 32 32 32 32 32 32, pooling after 3 and 5, 4 skips" in picture.alt
    assert "five: channels 16 16 32 32, pooling after 2 and 3, 0 skips" in picture.alt
    texts = [text.get_text() for text in picture.axes[0].texts]
    assert texts.count("32\n8×8") == 7
    assert texts.count("16\n32×32") == 3


def test_depths_are_drawn_with_their_errors() -> None:
    ends = {1: {"search": torch.tensor([90.0, 92.0])}, 5: {"search": torch.tensor([80.0, 84.0])}}
    assert "Nets of 1, 5 layers" in costs.plot_depths(ends).alt
    assert "search: 91.0 ± 1.0, 82.0 ± 2.0 %." in costs.plot_depths(ends).alt


@pytest.mark.parametrize(
    ("notebook", "values", "words"),
    [
        ("05_mnist", {"epochs": 0}, "epochs must be at least 1, not 0"),
        ("05_mnist", {"rate": -1}, "rate must be above 0"),
        ("05_mnist", {"seeds": 0}, "seeds must be at least 1"),
        ("05_mnist", {"order": "inputs"}, "did you mean 'input'"),
        ("05_mnist", {"schedule": "linea"}, "did you mean 'linear'"),
        ("05_mnist", {"dataset": "MNIST"}, "dataset must be one of"),
        ("05_mnist", {"net": "one_con"}, "did you mean 'one_conv'"),
        ("05_mnist", {"batch_size": 5000}, "set batch_size to at most 1294"),
        ("05_mnist", {"cycles": -3}, "cycles must be at least 1"),
    ],
)
def test_a_value_that_cannot_be_run_is_an_error_before_the_first_run(
    notebook: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        presets.check_sizes(presets.choose_sizes(notebook, "smoke", values), load("digits"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"cycles": 0}, "cycles must be at least 1, not 0"),
        ({"depths": "three"}, "depths must be whole numbers separated by commas, not 'three'"),
        ({"dataset": "CIFAR10"}, "did you mean 'cifar10'"),
    ],
)
def test_wrong_sizes_are_an_error_before_images_are_read(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        presets.choose_sizes("08_cifar10", "smoke", values)


def test_the_presets_can_be_run() -> None:
    data = load("digits")
    presets.check_sizes(presets.choose_sizes("05_mnist", "smoke", {}), data)
    for notebook in presets.SIZES:
        for name in ("laptop", "paper"):
            presets.choose_sizes(notebook, name, {})


def test_runs_are_taken_up(tmp_path: Path) -> None:
    settings = RSO(cycles=1, batch_size=64)
    run = variants.in_folder(tmp_path, dataset="digits", net="one_conv")
    made = variants.run_variants({"rso": settings}, range(2), run)["rso"]
    assert [one.folder for one in made] == [tmp_path / "rso" / f"seed_{seed}" for seed in range(2)]
    assert [one.settings["seed"] for one in made] == [0, 1]
    again = variants.run_variants({"rso": settings}, range(2), run)["rso"]
    seconds = [[row.seconds for row in one.history.rows] for one in made]
    assert [[row.seconds for row in one.history.rows] for one in again] == seconds


def test_a_run_that_is_stopped_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one does not begin, and the same call goes on."""
    settings = {"rso": RSO(cycles=1, batch_size=64)}
    run = variants.in_folder(tmp_path, dataset="digits", net="one_conv", progress=False)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HeadScorer, "score", interrupted)
        with (
            pytest.warns(UserWarning, match="stopped before the end"),
            pytest.raises(KeyboardInterrupt, match=r"seed 0 was stopped; the same call goes on in .*seed_0"),
        ):
            variants.run_variants(settings, range(2), run)
    assert not (tmp_path / "rso" / "seed_1").exists()
    assert [made.finished for made in variants.run_variants(settings, range(2), run)["rso"]] == [True, True]


def test_the_folder_of_a_notebook(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home() == project  # wherever a kernel or a command is started
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "home", lambda: tmp_path)
    assert presets.make_folder("here", "05", "smoke") == Path("here")
    assert presets.make_folder("", "05", "laptop") == tmp_path / "runs/05/laptop"
    assert presets.make_folder("", "05", "smoke") != presets.make_folder("", "05", "smoke")


INPUTS, CLASSES, HIDDEN = 3, 2, 4
K = (INPUTS + CLASSES) * HIDDEN


def functions(*wanted: str, seeds: int = 2) -> list[Callable[..., Any]]:
    """Functions of notebook 06, for nets of 20 weights on 50 images whose labels are the sign of a pixel."""
    images = torch.cat([torch.randn(50, 2), torch.ones(50, 1)], 1)
    labels = (images[:, 0] > 0).long()
    split = Split(images[:, :2].view(50, 1, 1, 2), labels)
    names: dict[str, Any] = {"torch": torch, "generator": generator, "pandas": pandas, "tqdm": iter_quietly}
    names |= {"inputs": INPUTS, "classes": CLASSES, "hidden": HIDDEN, "k": K, "scale": torch.ones(K), "tries": 40}
    names |= {
        "images": images,
        "labels": labels,
        "x": images,
        "y": labels,
        "seeds": seeds,
        "cycles": 2,
        "batch_size": 50,
    }
    names["data"] = SimpleNamespace(val=split)
    for name in ("flat", "outputs", "losses", "moved", "loss_changes", "gradient_step", "tabulate", "search"):
        names[name] = function_of("06_one_weight_or_many", name, **names)
    return [names[name] for name in wanted]


def iter_quietly(things: Sequence[Any], **_: object) -> Sequence[Any]:
    return things


def as_module(row: torch.Tensor) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(INPUTS, HIDDEN, bias=False), nn.ReLU(), nn.Linear(HIDDEN, CLASSES, bias=False))
    net[0].weight.data, net[2].weight.data = (
        row[: INPUTS * HIDDEN].view(INPUTS, -1).T,
        row[INPUTS * HIDDEN :].view(HIDDEN, -1).T,
    )
    return net


def test_nets_side_by_side_have_the_losses_of_each() -> None:
    [losses] = functions("losses")
    rows, x, y = torch.randn(3, K), torch.randn(10, INPUTS), torch.randint(CLASSES, (10,))
    alone = [nn.functional.cross_entropy(as_module(row)(x), y) for row in rows]
    torch.testing.assert_close(losses(rows, x, y), torch.stack(alone))


def test_as_many_weights_move_as_were_asked_for() -> None:
    [moved] = functions("moved")
    assert moved(5, 3, generator(0)).sum(1).tolist() == [3] * 5
    assert not torch.equal(*moved(2, 3, generator(0)))


def test_a_search_keeps_what_is_best() -> None:
    """On one batch of all images no net gets worse, and all get better in two cycles, by one weight or by all."""
    search, losses = functions("search", "losses")
    for weights, size in ((1, 1.0), (K, K**-0.5)):
        ended, curve = search(weights, size)
        begun = torch.randn(2, K, generator=generator(0))
        split = torch.cat([torch.randn(50, 2, generator=generator(1)), torch.ones(50, 1)], 1)
        assert curve.shape == (2, 2) and bool((curve <= 100).all())
        y = (split[:, 0] > 0).long()
        assert bool((losses(ended, split, y) < losses(begun, split, y)).all())


def test_changes_are_those_of_the_loss_and_the_gradient_goes_down() -> None:
    loss_changes, gradient_step = functions("loss_changes", "gradient_step")
    row = torch.randn(1, K)
    both, lengths = loss_changes(row, K, 1e-3, generator(0))
    assert both.shape == (40, 2)
    torch.testing.assert_close(both[:, 0], -both[:, 1], rtol=0.2, atol=1e-5)  # close by, the slope is all
    assert gradient_step(row, float(lengths.mean())) < float(both.min())


def test_directions_count_what_helps() -> None:
    """Close by one of Δ and −Δ nearly always helps; ten thousand σ away hardly anything does."""
    [tabulate] = functions("tabulate")
    table = tabulate(0.1 * torch.randn(1, K), [K], (1e-2, 1e4))
    assert table.helps[0] > 0.9 > 0.5 > table.helps[1]
    assert bool((table.helps_error > 0).all()) and table.gain[0] > 0


# Pictures


def test_a_histogram_of_changes() -> None:
    """Of two directions one helps, by 1 nat."""
    picture = directions.plot_changes(torch.tensor([[-1.0, 1.0], [2.0, 4.0]]), "the net", -3.0)
    assert sum(bar.get_height() for bar in picture.axes[0].patches) == 4
    assert [line.get_xdata()[0] for line in picture.axes[0].lines] == [0, -3]
    assert picture.alt.startswith("the net: the change of the loss has a mean of +1.5 and a deviation of 2.1 nats.")
    assert "50% of the directions help; a step changes the loss by -0.5 on average." in picture.alt
    assert picture.alt.endswith("A gradient step of the same length changes it by -3.")


def test_curves_of_directions() -> None:
    table = pandas.DataFrame({"weights": [1, 8], "factor": [0.5, 0.5], "helps": [0.75, 0.25], "helps_error": [0.1, 0]})
    picture = directions.plot_directions({"fresh": table, "trained": table.assign(factor=1.0)})
    for axes, label in zip(picture.axes, ("each moves by 0.5 σ", "each moves by σ"), strict=True):
        [curve] = axes.containers
        assert curve.get_label() == label
        assert curve.lines[0].get_xydata().tolist() == [[1, 75], [8, 25]]
    assert "fresh, each moves by 0.5 σ: 75% for one weight, 25% for all 8; trained, each moves by σ: 75%" in picture.alt


def test_presets_of_the_notebooks() -> None:
    mnist = presets.choose_sizes("05_mnist", "paper", {"cycles": 3, "order": None, "out": ""})
    assert (mnist.cycles, mnist.order, hasattr(mnist, "out")) == (3, "both", False)
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        presets.choose_sizes("08_cifar10", "papr", {})
