"""Tables of the paper follow from histories; random directions are measured as they are described."""

import copy
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
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from rso_lib import RSO, History, load, models
from rso_lib.algorithm import cross_entropy
from rso_lib.data import Split, home
from rso_lib.engine.head import HeadScorer
from rso_lib.engine.layers import channels_last
from rso_lib.history import Report
from rso_lib.lab import costs, directions, presets, tables, variants
from rso_lib.proposals import generator, sigma


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


def test_checkpoints_of_the_paper() -> None:
    rows = tables.pick_checkpoints(run([k / 50 for k in range(50)]))
    assert [round(row.cycle * 12016, -5) for row in rows] == [100_000 * k for k in range(1, 7)]
    assert [row.cycle for row in tables.pick_checkpoints(run([0.1] * 6))] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="set cycles to 6"):
        tables.pick_checkpoints(run([0.1] * 5))


def test_table_2() -> None:
    table = tables.tabulate_levels({"layer": [run([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])]})
    assert list(table.steps) == [10, 20, 30, 40, 50, 60]
    assert list(table.accuracy) == pytest.approx([10, 20, 30, 40, 50, 60])
    assert list(table.paper) == [94.85, 95.77, 96.95, 97.24, 97.25, 97.53]


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
        ("07_in_parallel", {"processes": "1, 0"}, "processes must be above 0"),
        ("07_in_parallel", {"processes": "1; 2"}, "processes must be whole numbers"),
        ("07_in_parallel", {"cycles": -3}, "cycles must be at least 1"),
    ],
)
def test_a_value_that_cannot_be_run_is_an_error_before_the_first_run(
    notebook: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        presets.check_sizes(presets.choose_sizes(notebook, "smoke", values), load("digits"))


def test_the_presets_can_be_run() -> None:
    data = load("digits")
    for notebook in ("05_mnist", "07_in_parallel"):
        presets.check_sizes(presets.choose_sizes(notebook, "smoke", {}), data)
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


class Plain(nn.Module):
    """The logits are two weights, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.T.expand(len(x), 2)


def functions(split: Split, tries: int) -> list[Callable[..., Any]]:
    """`loss_changes` and `tabulate` of notebook 06, for a batch."""
    asked = SimpleNamespace(tries=tries)
    names = {"torch": torch, "copy": copy, "channels_last": channels_last, "sigma": sigma, "generator": generator}
    names |= {"parameters_to_vector": parameters_to_vector, "vector_to_parameters": vector_to_parameters}
    names |= {"cross_entropy": cross_entropy, "batch": split, "asked": asked}
    names |= {"pandas": pandas, "tables": tables, "tqdm": iter_quietly}
    changes = function_of("06_one_weight_or_many", "loss_changes", **names)
    return [changes, function_of("06_one_weight_or_many", "tabulate", **names, loss_changes=changes)]


def iter_quietly(things: Sequence[Any], unit: str) -> Sequence[Any]:
    return things


def test_changes_are_those_of_the_loss() -> None:
    """Both weights move: labels 0 and 1 in equal parts, so the loss is ln(2 cosh(z / 2)) for their difference z."""
    net, split = Plain(), Split(torch.zeros(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
    changes, _ = functions(split, 2000)
    both = changes(net, 2, 0.5)
    torch.testing.assert_close(both[:, 0], both[:, 1])  # the minimum is symmetric
    assert bool((both > 0).all())
    z = torch.acosh((both[:, 0] + math.log(2)).exp() / 2) * 2
    assert float(z.pow(2).mean().sqrt()) == pytest.approx(0.5 * sigma(net.weight) * math.sqrt(2), rel=0.05)
    one = changes(net, 1, 0.5)[:, 0]
    z = torch.acosh((one + math.log(2)).exp() / 2) * 2
    assert float(z.pow(2).mean().sqrt()) == pytest.approx(0.5 * sigma(net.weight), rel=0.05)
    assert not net.weight.any()


def test_directions_count_what_helps() -> None:
    net, split = Plain(), Split(torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    table = functions(split, 20)[1](net, [1, 2], [1.0])
    assert list(table.helps) == [1, 1]  # a slope without a minimum: one of Δ and −Δ always helps
    assert bool((table.gain > 0).all())
    split = Split(torch.zeros(4, 1, 1, 1), torch.tensor([0, 1, 0, 1]))
    table = functions(split, 20)[1](net, [2], [1.0])
    assert (table.helps[0], table.gain[0]) == (0, 0)


# Pictures


def test_a_histogram_of_changes() -> None:
    """Of two directions one helps, by 1 nat."""
    picture = directions.plot_changes(torch.tensor([[-1.0, 1.0], [2.0, 4.0]]), "the net")
    assert sum(bar.get_height() for bar in picture.axes[0].patches) == 4
    assert picture.alt.startswith("the net: the change of the loss has a mean of +1.5 and a deviation of 2.1 nats.")
    assert picture.alt.endswith("50% of the directions help; a step changes the loss by -0.5 in the mean.")


def test_curves_of_directions() -> None:
    table = pandas.DataFrame({"weights": [1, 8], "factor": [0.5, 0.5], "helps": [0.75, 0.25], "helps_error": [0.1, 0]})
    picture = directions.plot_directions({"fresh": table, "trained": table.assign(factor=1.0)})
    for axes, label in zip(picture.axes, ("0.5 σ", "σ"), strict=True):
        [curve] = axes.containers
        assert curve.get_label() == label
        assert curve.lines[0].get_xydata().tolist() == [[1, 75], [8, 25]]
    assert "fresh, 0.5 σ: 75% for one weight, 25% for all 8; trained, σ: 75% for one weight" in picture.alt


def test_curves_of_levels() -> None:
    """The paper's are drawn where they are asked for."""
    histories = {"layer": [run([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])], "weight": [run([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])]}
    table = tables.tabulate_levels(histories)
    alone, beside = (tables.plot_levels(table, paper) for paper in (False, True))
    dotted = {line.get_label(): list(line.get_ydata()) for line in beside.axes[0].lines if line.get_linestyle() == ":"}
    assert dotted == {f"{level}, paper": list(tables.PAPER_2[level]) for level in histories}
    assert len(alone.axes[0].lines) == len(beside.axes[0].lines) - 2
    layer, _ = alone.axes[0].containers
    assert layer.lines[0].get_ydata().tolist() == pytest.approx([10, 20, 30, 40, 50, 60])
    assert alone.alt.endswith("At the last checkpoint: layer 60.00 %; weight 100.00 %.")


def test_presets_of_the_notebooks() -> None:
    mnist = presets.choose_sizes("05_mnist", "paper", {"cycles": 3, "order": None, "out": ""})
    assert (mnist.cycles, mnist.order, hasattr(mnist, "out")) == (3, "both", False)
    assert presets.choose_sizes("06_one_weight_or_many", "laptop", {}).net == "one_conv"
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        presets.choose_sizes("06_one_weight_or_many", "papr", {})
