"""Numbers on the pages are those of the folders in results/, which `python -m rso_lib figures` writes there."""

import math
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from rso_lib import RSO, models
from rso_lib.engine import ENGINE
from rso_lib.history import History, Report
from rso_lib.lab import redraw, results, tables
from rso_lib.lab.markdown import table
from rso_lib.lab.results import Result
from rso_lib.run import baseline, cli, sgd
from rso_lib.run import folder as runs

REMEDY = "run python -m rso_lib figures"
QUOTED = {98.0, 81.8, *tables.PAPER_1.values(), *tables.PAPER_3.values()}
"""Numbers of the paper that a page may name in its text."""


@pytest.fixture(scope="module")
def made() -> list[Result]:
    return results.read_results()


def pages(project: Path) -> dict[str, str]:
    """The text of each page that shows results."""
    texts = {page: (project / page).read_text() for page in redraw.PAGES}
    for name in redraw.NOTEBOOKS:
        notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
        texts[name] = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return texts


def link(page: str) -> str:
    return "results/" if page.endswith(".md") else "../results/"


def strays(text: str) -> list[str]:
    """What looks like an accuracy outside of the blocks that are written from folders, and is not the paper's."""
    found = re.findall(r"(?<![\d.,])\d\d\.\d{1,3}(?![\d.])", results.BLOCK.sub("", text))
    return [number for number in found if float(number) not in QUOTED]


def commands(text: str) -> list[str]:
    """Commands of runs in results/ outside of these blocks."""
    return re.findall(r"^python -m rso_lib (?:train|sgd) results/.*$", results.BLOCK.sub("", text), re.MULTILINE)


def engines(result: Result) -> set[int]:
    """The engines that made a run; sittings from before engines were numbered have none."""
    return {machine["engine"] for machine in result.about["machines"] if "engine" in machine}


# What is committed


def test_the_pages_say_what_the_folders_hold(project: Path, made: list[Result]) -> None:
    assert made, "results/ holds no run"
    assert (project / "results" / "README.md").read_text() == results.page(made), REMEDY
    for page, text in pages(project).items():
        assert results.BLOCK.search(text) or page in redraw.NOTEBOOKS, "a notebook may have cells instead"
        assert results.fill(text, made, link(page)) == text, f"{page}: {REMEDY}"


def test_a_changed_digit_is_noticed(project: Path, made: list[Result]) -> None:
    """In a block it differs from the folder, and outside of them it has none."""
    for page, text in pages(project).items():
        whole = list(results.BLOCK.finditer(text))
        digits = [k for block in whole for k in range(block.end(1), block.start(4)) if text[k].isdigit()]
        for k in digits[:: max(1, len(digits) // 10)]:
            wrong = f"{text[:k]}{9 - int(text[k])}{text[k + 1 :]}"
            assert results.fill(wrong, made, link(page)) == text
        assert strays(f"{text}\nIt ends at 98.76 %.") == ["98.76"]


def test_no_other_number_stands_there(project: Path) -> None:
    assert {page: strays(text) for page, text in pages(project).items() if strays(text)} == {}


def test_our_run_on_mnist_is_a_few_tenths_below_the_papers(project: Path, made: list[Result]) -> None:
    """At every place where the two can be compared: notebook 05 says so in its answer. 06 shows the paper's numbers."""
    [search] = [result for result in made if result.name == "mnist_paper_inverted"]
    weights = models.count_weights(models.mnist_net())
    marks = {5: 98.0} | {round(steps / weights): accuracy for steps, accuracy in tables.PAPER_2.items()}
    below = [
        theirs - 100 * search.rows[cycle - 1].test_accuracy
        for cycle, theirs in marks.items()
        if cycle <= len(search.rows)
    ]
    assert len(below) == 7
    assert round(100 * below[-1]) == 11, "write the answer of notebook 05 anew, and the head of the README"
    assert all(0.05 < points < 0.55 for points in below), "write the answer of notebook 05 anew"
    row = " | ".join(f"{accuracy:.2f}" for accuracy in tables.PAPER_2.values())
    assert f"| one weight | {row} |" in (project / "notebooks" / "06_one_weight_or_many.ipynb").read_text()


def test_the_runs_were_made_by_the_engine_of_today(made: list[Result]) -> None:
    for result in made:
        assert engines(result) == {ENGINE}, f"{result.name} was made by another engine: make it again, or remove it"
        older = {**result.about, "machines": [*result.about["machines"], {"engine": ENGINE - 1}]}
        assert engines(result._replace(about=older)) != {ENGINE}


def test_the_commands_are_those_of_the_folders(
    project: Path, made: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is understood as the settings of its folder; commands elsewhere on the pages are written in the same way."""
    for result in made:
        asked = understood(results.command_of(result), monkeypatch)
        assert {name: result.settings.get(name, value) for name, value in asked.settings.items()} == asked.settings
    for text in pages(project).values():
        for command in commands(text):
            assert results.command_of(understood(command, monkeypatch)) == command


def understood(command: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    """What a command would train, as far as its folder would know."""
    kind, folder, *words = command.removeprefix("python -m rso_lib ").split()
    given: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        if kind == "train":
            patch.setattr(cli, "describe_run", lambda _: "")
            patch.setattr(runs, "start", lambda _, **asked: (given.update(asked), Done)[1])
            cli.main([f"runs/none/{folder}", *words])
            rso = given.pop("settings").to_dict()
            settings = {**{name: given[name] for name in runs.WHAT}, **rso}
            return Result(Path(folder), settings, {}, History(), models.one_conv((1, 8, 8)))
        patch.setattr(baseline, "load", lambda *_, **asked: (given.update(asked), None)[1])
        patch.setattr(
            baseline, "train_seeds", lambda _, net, __, asked, *___, **____: given.update(net=net, asked=asked) or []
        )
        baseline.main([folder, *words])
    about = {**vars(given["asked"]), "net": given["net"], "dataset": words[words.index("--dataset") + 1]}
    return Result(Path(folder), about, {"data": {"val": given["val_size"]}}, History(), None)


class Done:
    finished = True


def test_the_pictures_are_drawn_from_the_folders(project: Path, tmp_path: Path) -> None:
    """And figures/ holds no other picture but screenshots."""
    drawn = redraw.redraw(figures=tmp_path)
    there = {path.name for path in (project / "figures").glob("*.png") if not path.name.startswith("screenshot")}
    assert {path.name for path in drawn} == there, REMEDY
    for path in drawn:
        with Image.open(path) as new, Image.open(project / "figures" / path.name) as old:
            assert new.text["Description"] == old.text["Description"], REMEDY
            assert new.size == old.size
            apart = np.abs(np.array(new.convert("L"), float) - np.array(old.convert("L"), float))
            assert apart.mean() < 3, f"{path.name} is another picture: {REMEDY}"


# How it is written


def result(name: str, accuracies: list[float], forwards: int, *, descent: bool = False, **settings: Any) -> Result:
    """A run on MNIST of so many cycles or epochs, with the same number of image-forwards in each."""
    counts = {"steps": 1, "kept": 0, "plus": 1, "minus": 0, "evaluations": 3, "image_forwards": forwards}
    rows = [
        Report(cycle=k, layer="", sigma=math.nan, test_accuracy=accuracy / 100, seconds=3600.0 * k, **counts)
        for k, accuracy in enumerate(accuracies, 1)
    ]
    search = {**RSO(cycles=4).to_dict(), "net_options": {}, "val_size": None, "data_seed": 0}
    plain = vars(sgd.SGD(epochs=30)) if descent else search
    known = {"dataset": "mnist", "net": "mnist_net", **plain, **settings}
    data = {"train": 55000, "val": 5000, "test": 10000}
    machine = {"device": "a machine", "threads": 2, "torch": "2.9"}
    return Result(
        Path("results") / name,
        known,
        {"data": data, "machines": [machine, {**machine, "engine": 1, "commit": "abc"}]},
        History(rows),
        None if descent else models.one_conv((1, 8, 8)),
    )


SEARCH = result("search", [50, 90, 95], 100_000_000, order="input")
DESCENT = result("descent", [60, 80, 90], 1_000_000, descent=True)


def test_the_bill_is_for_the_last_cycle() -> None:
    """80 %, after three cycles of 100 million; two epochs of one. The best cycle, at 90 %, does not count."""
    search, other = (
        result("search", [50, 90, 80], 100_000_000),
        result("digits", [99], 1, descent=True, dataset="digits"),
    )
    [said] = results.bills([search, DESCENT, other])
    assert said.startswith("After its last finished cycle (search, 3 of 4 cycles) RSO is at 80.00 % on the test part")
    assert "has sent 300.0 million images" in said
    assert "SGD (descent) first reaches that in epoch 2, after 2.0 million" in said
    assert said.endswith("RSO pays 150 times as much.")


def test_runs_of_different_metrics_have_no_bill() -> None:
    other = result("top", [60, 80, 90], 1_000_000, descent=True, metric="mine:top3")
    assert results.bills([SEARCH, other]) == []
    assert results.bills([SEARCH, result("plain", [96], 1, descent=True, metric="accuracy")])
    assert "| 90.00 % (`mine:top3`) |" in results.tabulate([other])


@pytest.mark.parametrize("content", ["{", "[1]", '"x"'])
def test_a_torn_folder_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"torn/settings\.json is torn: put it back, or move .*torn away"):
        results.read_results(tmp_path)


def test_a_bill_that_sgd_has_not_reached() -> None:
    [said] = results.bills([SEARCH, DESCENT])
    assert said.endswith("whole net. SGD (descent) has not reached that after 3 of 30 epochs.")
    with pytest.raises(ValueError, match=r"never reached 96\.00 %"):
        results.reach(SEARCH, 96)


def test_the_table_has_the_papers_column_where_the_paper_has_a_number() -> None:
    flat = result("flat", [90], 1, net_options={"activation": "sign", "levels": 3})
    assert results.tabulate([flat]).splitlines()[0] == "| run | what | done | test accuracy |"
    assert results.tabulate([flat]).endswith("| 1 of 4 cycles | 90.00 % |")
    both = results.tabulate([flat, SEARCH]).splitlines()
    assert both[0].endswith("| the paper, at its end |") and both[2].endswith("| 90.00 % |  |")


def test_a_table_in_markdown() -> None:
    assert table(["a", "b"], "lr", [["x", 1], ["", 2]]).splitlines() == [
        "| a | b |",
        "|---|---:|",
        "| x | 1 |",
        "|  | 2 |",
    ]
    with pytest.raises(ValueError, match="each row must have 2 cells"):
        table(["a", "b"], "lr", [["x"]])


def test_nets_without_a_gradient_are_named_in_words() -> None:
    """One colour for a net, one line for a method; a run that is not done says so."""
    sign = {"net_options": {"activation": "sign", "levels": 3}}
    search, straight = (result(name, [50, 90], 1, descent=name == "b", **sign) for name in "ab")
    straight = straight._replace(settings={**straight.settings, "epochs": 2})
    picture = redraw.plot_progress([search, straight], "image_forwards")
    one, two = picture.axes[0].lines
    assert one.get_label() == "3-valued weights, sign neurons: search, 2 of 4 cycles"
    assert two.get_label() == "3-valued weights, sign neurons: straight-through"
    assert one.get_color() == two.get_color() and (one.get_linestyle(), two.get_linestyle()) == ("-", "--")
    assert result("c", [], 0, net_options={"levels": 2}).kind == "2-valued weights, ReLU: search"


def test_filters_are_tiled() -> None:
    kernels = torch.arange(12.0).view(3, 1, 2, 2)
    rows = redraw.tile(kernels).nan_to_num(-1).tolist()
    assert rows == [[0, 1, -1, 4, 5], [2, 3, -1, 6, 7], 5 * [-1], [8, 9, -1, -1, -1], [10, 11, -1, -1, -1]]


def test_a_page_of_an_unfinished_run() -> None:
    begun = result("begun", [], 0)
    page = results.page([SEARCH, begun])
    assert (
        "| [search](search) | RSO, inverted order: `mnist_net` on `mnist`, batches of 5,000 | 3 of 4 cycles |" in page
    )
    assert "| 95.00 % | 99.12 % |" in page
    assert "0 of 4 cycles | none yet | 99.06 % |" in page
    assert "3 of 4 cycles are done, 300,000,000 image-forwards, in 3.0 hours." in page
    assert "| 1 | a machine | 2 | 2.9 | from before they were numbered | not noted |" in page
    assert "| 2 | a machine | 2 | 2.9 | 1 | abc |" in page
    assert "\npython -m rso_lib train results/search --dataset mnist --net mnist_net --cycles 4 --order input\n" in page


def test_blocks_are_of_the_images_that_are_named() -> None:
    text = "<!-- results cifar10 -->\n<!-- end -->\n98\n<!-- results mnist -->\nold\n<!-- end -->"
    filled = results.fill(text, [SEARCH])
    assert filled.startswith("<!-- results cifar10 -->\nNo run is there yet.\n<!-- end -->\n98\n")
    assert "95.00 %" in filled and "old" not in filled
    assert results.BLOCK.sub("", filled) == "\n98\n"


def test_what_the_paper_has() -> None:
    deep = {"net": "cifar_net", "net_options": {"depth": 10}}
    for dataset in ("cifar10", "folder:cifar10-jpeg"):
        assert result("a", [], 0, dataset=dataset, **deep).paper == 81.80
    assert result("a", [], 0, descent=True, dataset="cifar10", **deep).paper == 82.94
    assert result("a", [], 0, dataset="digits").paper is None
    assert DESCENT.paper == 99.27
    assert DESCENT._replace(settings={**DESCENT.settings, "batch_size": 64}).paper is None


def test_progress_needs_a_cycle() -> None:
    picture = redraw.plot_progress([SEARCH, DESCENT])
    assert "RSO, inverted order, 3 of 4 cycles, 95.00 %; SGD, 3 of 30 epochs, 90.00 %; paper: 98.0 %" in picture.alt
    twice = redraw.plot_progress([SEARCH, SEARCH], "image_forwards")
    assert [line.get_label() for line in twice.axes[0].lines] == 2 * ["search, 3 of 4 cycles"]
    assert list(twice.axes[0].lines[0].get_xdata()) == [1e8, 2e8, 3e8]
    with pytest.raises(ValueError, match="no run has finished a cycle yet"):
        redraw.plot_progress([result("begun", [], 0)])


def test_depth_5_is_above_depth_3_in_the_first_six_cycles(made: list[Result]) -> None:
    """By two to six points, as notebook 08 says."""
    shallow, deep = ([row.test_accuracy for row in one.rows[:6]] for one in made if one.name.startswith("cifar_depth"))
    assert all(1.5 < 100 * (b - a) < 6 for a, b in zip(shallow, deep, strict=True)), "write notebook 08 anew"
