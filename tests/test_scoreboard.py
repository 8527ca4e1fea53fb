"""Methods of the scoreboard: they learn, pay what they say, and repeat themselves; entries are made once."""

import math
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rso_lib import Data, load, models
from rso_lib.history import History
from rso_lib.lab import methods, scoreboard
from rso_lib.lab.methods import METHODS, Losses, centred_ranks, settings_tried
from rso_lib.lab.scoreboard import KNOWN, Board, board_page, make_entry, read_board
from rso_lib.lab.trial import play
from rso_lib.run import cli
from rso_lib.run.folder import build_net
from rso_lib.train import evaluate

needs_cma = pytest.mark.skipif(not find_spec("cma"), reason="the extra `scoreboard` is not installed")
NAMES = [pytest.param(name, marks=[needs_cma] if name == "cma_es" else []) for name in METHODS]
every_method = pytest.mark.parametrize("method", NAMES)
LEARNT = {
    "rso": {"cycles": 4},
    "rso_layer": {"cycles": 4, "strategy": "layer"},
    "joint_layer": {"cycles": 1, "level": "layer"},
    "joint_network": {"cycles": 1, "level": "network"},
    "spsa": {"rate": 3.0, "batch_size": 128},
    "es": {"rate": 0.1, "pairs": 10, "batch_size": 128},
    "cma_es": {"reach": 0.1, "batch_size": 128},
    "differences": {"rate": 0.1, "share": 0.1, "batch_size": 32},
    "backprop": {"rate": 0.05, "batch_size": 128},
}
"""Settings with which a method learns something for 200,000 image-forwards."""


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


def fresh(data: Data, seed: int = 0) -> nn.Module:
    return models.one_conv(data.shape, seed=seed)


def same(a: History, b: History) -> bool:
    """Whether two histories agree in all but the seconds."""
    return a.frame().drop(columns="seconds").equals(b.frame().drop(columns="seconds"))


# Methods


@every_method
def test_a_method_learns(digits: Data, method: str) -> None:
    """From one in ten to at least four in ten, for less than the budget, and the loss falls by a third."""
    net, budget = fresh(digits), 200_000
    before = evaluate(net, digits.test)[0]
    history = play(METHODS[method].run, net, digits, budget, 0, LEARNT[method], progress=False)
    last = history.rows[-1]
    assert last.test_accuracy >= 0.4
    assert last.test_loss < 2 / 3 * before
    assert 0.9 * budget < sum(row.image_forwards for row in history.rows) <= budget
    assert [math.isnan(row.test_accuracy) for row in history.rows] == [True] * (len(history.rows) - 1) + [False]
    assert evaluate(net, digits.test) == (last.test_loss, last.test_accuracy)


@pytest.mark.parametrize("method", [name for name in NAMES if name.values[0] != "rso_layer"])
def test_image_forwards_are_those_that_go_through_the_net(
    digits: Data, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by a hook, which makes RSO send each candidate through the whole net, one weight at a time."""
    monkeypatch.setattr(sys.modules["rso_lib.train"], "calibrate", lambda *_: None)
    net, sent = fresh(digits), []
    net.register_forward_hook(lambda module, given, _: sent.append(len(given[0])) if module.training else None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "forward hook.*|.*every step sends its batch", UserWarning)
        *_, spent = METHODS[method].run(net, digits, 20_000, 0, **LEARNT[method] | few(method))
    searched = [images for images in sent if images > 2]  # the checks before a run send two
    assert spent.image_forwards == sum(searched) * (3 if method == "backprop" else 1)
    assert spent.evaluations == len(searched)


def few(method: str) -> dict[str, Any]:
    return {"cycles": 1} if "cycles" in LEARNT[method] else {}


@every_method
def test_same_seed_same_bits(digits: Data, method: str) -> None:
    """Of the method: the nets begin alike."""

    def made(seed: int) -> History:
        return play(METHODS[method].run, fresh(digits), digits, 10_000, seed, LEARNT[method] | few(method))

    first = made(1)
    assert same(first, made(1))
    assert not same(first, made(2))


def test_losses_are_those_of_the_net(digits: Data) -> None:
    """On one batch after the other, the weights written into the net."""
    net = fresh(digits)
    loss = Losses(net, digits, 10_000, 0, 100)
    vector = loss.vector() * 0.5
    at_first = loss(vector)
    assert torch.equal(torch.nn.utils.parameters_to_vector(net.parameters()), vector)
    images = loss.scorer.x[0]
    logits = net(images).detach().double()
    assert at_first == pytest.approx(float(nn.functional.cross_entropy(logits, loss.scorer.labels[0])), abs=1e-6)
    loss.turn += len(loss.scorer.labels)
    assert loss(vector) == at_first
    assert loss.spent() == (200, 2)
    assert loss.afford(98) and not loss.afford(99)


@pytest.mark.parametrize("name", ["differences", "spsa"])
def test_slopes_are_those_of_backpropagation(digits: Data, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small reach: of each weight, and along a direction."""
    net, moves = fresh(digits), {"differences": {"share": 1.0, "momentum": 0.0}, "spsa": {}}[name]
    weights = list(net.parameters())
    before = torch.cat([w.detach().flatten().clone() for w in weights])
    monkeypatch.setattr(Losses, "left", lambda _: 1.0)
    loss = Losses(net, digits, 10**6, 0, 128)
    nn.functional.cross_entropy(net(loss.scorer.x[0]), loss.scorer.labels[0]).backward()
    slopes = torch.cat([w.grad.flatten() for w in weights])
    next(METHODS[name].run(net, digits, 10**6, 0, rate=1.0, batch_size=128, **moves))
    moved = torch.cat([w.detach().flatten() for w in weights]) - before
    if name == "spsa":
        direction = torch.randn(len(before), generator=methods.generator(0, methods.DRAWS))
        slopes = (slopes @ direction) * direction / len(before)
    torch.testing.assert_close(moved, -slopes, atol=0.03 * float(slopes.abs().max()), rtol=0)


def test_centred_ranks() -> None:
    ranks = centred_ranks(torch.tensor([[3.0, 1.0], [math.nan, 2.0], [7.0, 5.0]]))
    assert ranks.flatten().tolist() == pytest.approx([0, -0.5, 0.5, -0.3 + 0.1, 0.3, 0.1], abs=0.21)
    assert ranks.flatten().argsort().tolist() == [1, 3, 0, 5, 4, 2]
    assert ranks.sum() == pytest.approx(0, abs=1e-6)


def test_the_answer_of_cma_is_its_mean(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a member of its last generation; and a member whose loss is NaN is told as a bad one."""
    told: list[float] = []

    class Strategy:
        popsize = 2

        def __init__(self, start: np.ndarray, reach: float, options: dict[str, Any]):
            self.mean = start + 1
            assert reach == 0.1 and options["CMA_diagonal"] and len(options["CMA_stds"]) == len(start)

        def ask(self) -> list[np.ndarray]:
            return [self.mean - 1, np.nan * self.mean]

        def tell(self, _: list[np.ndarray], losses: list[float]) -> None:
            told.extend(losses)

    monkeypatch.setattr(methods, "import_module", lambda _: SimpleNamespace(CMAEvolutionStrategy=Strategy))
    net = fresh(digits)
    before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    assert next(METHODS["cma_es"].run(net, digits, 500, 0, reach=0.1, batch_size=100)) == (200, 2)
    torch.testing.assert_close(nn.utils.parameters_to_vector(net.parameters()).detach(), before + 1)
    assert told[0] < 10 and told[1] == 1e9


def test_a_missing_library_is_named(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(methods, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'rso_lib\[scoreboard\]'"):
        next(METHODS["cma_es"].run(fresh(digits), digits, 10_000, 0, reach=0.1, batch_size=10))


@pytest.mark.parametrize(("method", "budget"), [("rso", 2_000), ("backprop", 3_000), ("es", 1_000)])
def test_a_budget_that_is_too_small_is_refused(digits: Data, method: str, budget: int) -> None:
    with pytest.raises(ValueError, match="budget must be"):
        play(METHODS[method].run, fresh(digits), digits, budget, 0, LEARNT[method] | few(method), progress=False)


def test_cycles_that_leave_small_batches_are_not_tried() -> None:
    assert {one["cycles"] for one in settings_tried(METHODS["rso"], 100_000, 690, 128)} == {1}
    assert {one["cycles"] for one in settings_tried(METHODS["rso"], 300_000, 690, 128)} == {1, 2, 4}
    assert all(one["batch_size"] == 128 for one in settings_tried(METHODS["spsa"], 100_000, 690, 128))


# Entries


@pytest.fixture
def making(digits: Data, tmp_path: Path) -> Callable[..., scoreboard.Entry]:
    def make(method: str = "spsa", budget: int = 10_000, **asked: Any) -> scoreboard.Entry:
        return make_entry(tmp_path, method, budget, Board(**{"seeds": 2, **asked}), cli.What(), digits, progress=False)

    return make


@pytest.mark.parametrize("other", [{"net": "two_conv"}, {"data_seed": 1}])
def test_a_board_has_one_net_and_one_set_of_images(
    other: dict[str, Any], making: Callable[..., scoreboard.Entry], tmp_path: Path, digits: Data
) -> None:
    making("backprop", 5_000, seeds=1)
    data = load("digits", seed=1) if "data_seed" in other else digits
    with pytest.raises(ValueError, match="compares methods on another net or images; choose another folder:\n  "):
        make_entry(tmp_path, "backprop", 10_000, Board(seeds=1), cli.What(**other), data, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5000"]


def test_an_entry_is_made_once(making: Callable[..., scoreboard.Entry], tmp_path: Path) -> None:
    """What is missing is made, with the same bits, and what is there is not touched."""
    first = making()
    assert len(first.tried) == len(METHODS["spsa"].grid) and len(first.others) == 1
    assert first.best == max(range(3), key=lambda k: first.tried[k].rows[-1].val_accuracy)
    whole = {path: path.read_bytes() for path in first.folder.glob("*.csv")}
    (first.folder / f"tried_{first.best}_seed_1.csv").unlink()
    times = {path: path.stat().st_mtime_ns for path in first.folder.glob("tried_?.csv")}
    again = making()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert same(again.others[0], first.others[0]) and set(first.folder.glob("*.csv")) == set(whole)
    assert len(making(seeds=3).others) == 2
    [read] = read_board(tmp_path)
    assert read.accuracies.tolist() == [100 * one.rows[-1].test_accuracy for one in read.histories]


def test_another_entry_is_refused(making: Callable[..., scoreboard.Entry]) -> None:
    making(seeds=1)
    with pytest.raises(ValueError, match="batch_size is 128 there, not 64"):
        making(batch_size=64)


def test_settings_may_come_from_a_smaller_budget(making: Callable[..., scoreboard.Entry]) -> None:
    small = making(seeds=1)
    large = making(budget=20_000, tuned_at=10_000)
    assert large.about["tried"] == [small.about["tried"][small.best]]
    assert len(large.tried) == 1 and len(large.histories) == 2


def test_the_page(making: Callable[..., scoreboard.Entry], tmp_path: Path) -> None:
    making(), making(budget=20_000, seeds=1, tuned_at=10_000)
    entries = read_board(tmp_path)
    text = board_page(entries, "results/scoreboard/mine")
    table = scoreboard.tabulate_entries(entries)
    assert f"| SPSA (as MeZO) | {table.accuracy[0]:.2f} ± {table.error[0]:.2f} |" in text
    assert f"{table.accuracy[1]:.2f} (one seed) |" in text
    assert "--methods spsa --budgets 20000 --seeds 1 --tuned-at 10000" in text


def test_the_command(digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--methods", "spsa", "--budgets", "1e4", "--seeds", "1"]
    scoreboard.main(words)
    assert "SPSA (as MeZO), 10 k image-forwards" in capsys.readouterr().out
    assert (tmp_path / "README.md").read_text() == board_page(read_board(tmp_path), tmp_path.as_posix())
    with pytest.raises(SystemExit):
        scoreboard.main([str(tmp_path), "--methods", "spas"])
    assert "did you mean 'spsa'?" in capsys.readouterr().err


def test_processes_write_the_page_of_a_board_in_turn(
    making: Callable[..., scoreboard.Entry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    making("backprop", 5_000, seeds=1)
    at_work: list[bool] = []

    def slowly(entries: Any, board: str) -> str:
        at_work.append(True)
        time.sleep(0.2)
        at_work.append(False)
        return board_page(entries, board)

    monkeypatch.setattr(scoreboard, "board_page", slowly)
    with ThreadPoolExecutor(2) as pool:  # the lock is one of open files: threads take turns as processes do
        [*pool.map(scoreboard._write_page, [tmp_path] * 2)]
    assert at_work == [True, False] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5000", "README.md", "lock"]


WRONG = [
    ("--budgets nan", "budgets must be whole numbers of at least 1, not nan"),
    ("--budgets inf", "budgets must be whole numbers of at least 1, not inf"),
    ("--budgets 0.5", "budgets must be whole numbers of at least 1, not 0.5"),
    ("--budgets -5", "budgets must be whole numbers of at least 1, not -5"),
    ("--batch-size 0", "batch_size must be at least 1, not 0"),
    ("--val-size 0", "settings are chosen on the validation part, which is empty: set val_size"),
    ("--tuned-at 77", "holds no entry, as there is no settings.json: make that entry first"),
    ("--dataset test_own:table --net test_own:mlp", "the targets of test_own:table are no labels"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_a_command_that_cannot_begin_leaves_no_entry(
    words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scoreboard.main([str(tmp_path), "--methods", "spsa", "--seeds", "1", *words.split()])
    assert says in capsys.readouterr().err and not [*tmp_path.rglob("*")]


def test_a_run_that_fails_leaves_no_settings(making: Callable[..., scoreboard.Entry], tmp_path: Path) -> None:
    """Or the corrected command would be refused."""
    with pytest.raises(ValueError, match="budget must be larger"):
        making(budget=10)
    assert not [*tmp_path.rglob("settings.json")]


def test_a_torn_entry_is_named(making: Callable[..., scoreboard.Entry]) -> None:
    path = making(seeds=1).folder / "settings.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"settings.json is torn, .* move .* away, and the entry is made anew"):
        making()


def test_a_copy_of_a_history_is_no_other_seed(making: Callable[..., scoreboard.Entry], tmp_path: Path) -> None:
    entry = making("backprop", 5_000)
    name = f"tried_{entry.best}_seed_1"
    shutil.copy(entry.folder / f"{name}.csv", entry.folder / f"{name} (copy).csv")
    assert len(read_board(tmp_path)[0].histories) == 2


def test_other_seeds_belong_to_the_settings_that_are_best_now(
    making: Callable[..., scoreboard.Entry], tmp_path: Path
) -> None:
    entry = making()
    another = entry.folder / f"tried_{(entry.best + 1) % 3}.csv"
    shutil.copy(entry.folder / f"tried_{entry.best}.csv", another)
    (entry.folder / f"tried_{entry.best}.csv").write_text(another.read_text().replace(",0.", ",0.0"))
    [changed] = read_board(tmp_path)
    assert changed.best != entry.best and not changed.others


@pytest.mark.parametrize("name", ["tried_0.csv", "tried_{best}_seed_1.csv"])
@pytest.mark.parametrize("kept", [1, -1])
def test_a_history_without_its_end_is_named(
    name: str, kept: int, making: Callable[..., scoreboard.Entry], tmp_path: Path
) -> None:
    entry = making("backprop", 5_000)
    path = entry.folder / name.format(best=entry.best)
    path.write_text("\n".join(path.read_text().splitlines()[:kept]) + "\n")
    for act in (lambda: making("backprop", 5_000), lambda: read_board(tmp_path)):
        with pytest.raises(ValueError, match=rf"{path.name} is torn, as its end is missing: move it away"):
            act()


@pytest.mark.parametrize(("budget", "word"), [(3e5, "300 k"), (1e7, "10 M"), (1.5e9, "1.5 G"), (12, "12")])
def test_budgets_in_words(budget: float, word: str) -> None:
    assert scoreboard.in_words(budget) == word


def boards(project: Path) -> list[Path]:
    return sorted(path.parent for path in project.glob("results/scoreboard/*/README.md"))


def test_the_committed_pages_say_what_the_folders_hold(project: Path) -> None:
    assert boards(project), "results/scoreboard holds no board"
    for board in boards(project):
        name = board.relative_to(project).as_posix()
        written = board_page(read_board(board), name)
        assert (board / "README.md").read_text() == written, f"{name}: run the command again"


def test_the_committed_commands_make_their_entries(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def understood(_: Path, method: str, budget: int, board: Board, what: cli.What, __: Data) -> None:
        settings = {**vars(what), "method": method, "budget": budget, "batch_size": board.batch_size}
        asked.append({**settings, "tuned_at": board.tuned_at, "seeds": board.seeds})

    entries = {board: read_board(board) for board in boards(project)}
    monkeypatch.setattr(scoreboard, "make_entry", understood)
    monkeypatch.setattr(scoreboard, "read_board", lambda _: [])
    monkeypatch.setattr(scoreboard, "load", lambda *_, **__: None)
    for board in entries:
        for entry in entries[board]:
            words = scoreboard.command_of(entry, board.as_posix()).removeprefix("python -m rso_lib scoreboard ").split()
            scoreboard.main(words)
            found = asked.pop()
            assert found.pop("seeds") == len(entry.histories)
            assert {name: entry.about[name] for name in found} == found


def test_the_committed_entries_tried_what_the_methods_try_now(project: Path) -> None:
    """Else the commands beside them would be refused."""
    for board in boards(project):
        for entry in read_board(board):
            about = entry.about
            net = build_net(about["net"], about["data"]["shape"], about["data"]["classes"], 0)
            tried = settings_tried(KNOWN[entry.method], entry.budget, models.count_weights(net), about["batch_size"])
            chosen = about["tuned_at"] is not None
            assert all(one in tried for one in about["tried"]) if chosen else about["tried"] == tried, entry.folder
