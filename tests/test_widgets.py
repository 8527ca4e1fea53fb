"""Live runs: steered at any step, they do what `train` does; controls and pictures say what is so."""

import base64
import gc
import html
import io
import math
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Any

import ipywidgets
import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from rso_lib import RSO, Data, History, load, models, train
from rso_lib.data import Split
from rso_lib.lab import figure, pictures, worker
from rso_lib.lab import live as live_module
from rso_lib.lab import panel as panel_module
from rso_lib.lab.bench_report import operations
from rso_lib.lab.live import FAILED, FINISHED, PAUSED, READY, STOPPED, LiveRun
from rso_lib.lab.live_sgd import LiveSGD
from rso_lib.lab.live_view import draw_layer, draw_step, draw_wins, name_candidate
from rso_lib.lab.panel import SAVED, WAITS, Names, Panel, all_parts
from rso_lib.lab.valley import draw_valley, valley_of
from rso_lib.lab.widgets import Explorer, LiveTrainer, Race, SGDTrainer, scale_schedule
from rso_lib.models import Block, Head, Net, cifar_net, two_conv
from rso_lib.proposals import linear
from rso_lib.run.sgd import SGD
from rso_lib.train import Step

SETTINGS = RSO(batch_size=64, cycles=2, seed=3)
Make = Callable[..., LiveRun]


@pytest.fixture(scope="module")
def data() -> Data:
    return load("digits")


@pytest.fixture(autouse=True)
def leave_nothing_running() -> Iterator[None]:
    yield
    for run in list(worker.runs):
        run.stop()
        settle(run)
    worker.ask(worker.runs.clear)


def small_net() -> Net:
    """112 weights, with batch norm: scoring recalibrates it."""
    return Net([Block(1, 2, pool="avg"), Block(2, 3, pool="avg")], Head(3, 10, pool="max"), seed=1)


HANGS = 600
"""Seconds that nothing here takes, however busy the machine is."""


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + HANGS
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def until(run: LiveRun, condition: Callable[[LiveRun], bool]) -> None:
    assert run.wait(condition, HANGS)


def settle(run: LiveRun) -> None:
    """Wait until all commands have been taken."""
    until(run, lambda run: True)


def finish(run: LiveRun) -> None:
    run.start()
    until(run, lambda run: run.state == FINISHED)
    settle(run)


def weights(run: LiveRun) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in run.net.parameters()])


def steps(items: Iterator[object], count: int) -> list[Step]:
    return list(islice((item for item in items if isinstance(item, Step)), count))


def taken(run: LiveRun, count: int) -> list[Step]:
    """Press Step a number of times."""
    made = []
    for _ in range(count):
        run.step()
        settle(run)
        assert run.last is not None
        made.append(run.last)
    return made


def same(one: Step, other: Step) -> bool:
    return one[:3] == other[:3] and torch.equal(one.delta, other.delta) and torch.equal(one.losses, other.losses)


def test_a_watched_run_is_the_unwatched_run(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and pictures behind every step change no bit of the net nor of the reports."""
    monkeypatch.setattr(live_module, "next_time", lambda began, least: 0.0)
    monkeypatch.setattr(live_module, "TURN_SECONDS", 0.0)
    shown: list[int] = []
    run = LiveRun(small_net, data, SETTINGS, show=lambda run: shown.append(run.steps))
    finish(run)
    net, history = small_net(), History()
    for report in train(net, data, SETTINGS):
        history.append(report)
    assert len(run.curve) > run.steps == 2 * 112
    assert set(shown) == set(range(run.steps + 1))
    assert torch.equal(weights(run), torch.cat([weight.detach().flatten() for weight in net.parameters()]))
    for row in run.history.rows + history.rows:
        object.__setattr__(row, "seconds", 0.0)
        object.__setattr__(row, "train_accuracy", 0.0 if math.isnan(row.train_accuracy) else row.train_accuracy)
    assert run.history.frame().equals(history.frame())


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 32},
        {"distribution": "template"},
        {"order": "input"},
        {"schedule": scale_schedule("linear", 4.0)},
        {"weight_decay": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_change_counts_from_the_next_step(data: Data, change: dict[str, object]) -> None:
    """By hand: a generator that is left after 10 of 30 steps, and another one that is opened there."""
    run = LiveRun(small_net, data, SETTINGS)
    seen = taken(run, 10)
    run.change(**change)
    seen += taken(run, 12)

    net = small_net()
    expected = steps(train(net, data, SETTINGS, steps=True), 10)
    expected += steps(train(net, data, replace(SETTINGS, **change), steps=True, begun=[*expected]), 12)
    assert [step.at for step in seen] == [(0, 0, k) for k in range(1, 23)]
    assert all(map(same, seen, expected))
    unchanged = steps(train(small_net(), data, SETTINGS, steps=True), 22)
    assert not all(map(same, seen, unchanged))


@pytest.mark.parametrize("at", [29, 30, 31, 112, 113])
def test_a_change_loses_no_report(data: Data, at: int) -> None:
    """Also behind the last step of a sweep (30) and of a cycle (112), before its report is there."""
    run = LiveRun(small_net, data, SETTINGS)
    taken(run, at)
    run.change(batch_size=32)
    finish(run)
    rows = [(row.cycle, row.layer, row.steps) for row in run.history.rows]
    assert rows == [(row.cycle, row.layer, row.steps) for row in train(small_net(), data, SETTINGS)]
    assert run.steps == 224


def test_a_change_waits_for_the_end_of_a_merged_sweep(data: Data) -> None:
    """Its steps have not seen each other, so it cannot be cut."""
    run = LiveRun(small_net, data, replace(SETTINGS, strategy="layer"))
    taken(run, 35)  # five steps of the second sweep
    run.change(strategy="sequential")
    finish(run)
    rows = list(train(small_net(), data, replace(SETTINGS, strategy="layer")))
    assert [row.steps for row in run.history.rows] == [row.steps for row in rows]
    assert [row.kept for row in run.history.rows[:2]] == [row.kept for row in rows[:2]]
    assert [row.kept for row in run.history.rows[2:]] != [row.kept for row in rows[2:]]


def test_a_change_of_direction_begins_the_cycle_anew(data: Data) -> None:
    run = LiveRun(small_net, data, SETTINGS)
    taken(run, 112 + 30 + 5)  # a cycle, a sweep and five steps
    run.change(direction="forward")
    [step] = taken(run, 1)
    assert (step.layer, step.at) == ("block1.conv.weight", (1, 0, 1))
    assert [row.cycle for row in run.history.rows] == [1] * 8
    finish(run)
    assert len(run.history.cycles.rows) == 2


def test_pause_step_and_start(data: Data) -> None:
    other = LiveRun("one_conv", data, RSO(batch_size=64, cycles=50))
    run = LiveRun(small_net, data, SETTINGS)
    assert run.state == READY
    run.pause()
    settle(run)
    assert run.state == READY
    run.start()
    until(run, lambda run: run.steps > 20)
    run.pause()
    settle(run)
    assert run.state == PAUSED
    count = run.steps
    other.start()
    until(other, lambda other: other.steps > 20)  # the thread gives turns, and this run has none
    assert run.steps == count
    other.stop()
    taken(run, 1)
    assert (run.state, run.steps) == (PAUSED, count + 1)
    finish(run)
    assert run.steps == 224


def test_stop_is_final_and_reset_begins_anew(data: Data) -> None:
    run = LiveRun(small_net, data, SETTINGS)
    first = weights(run)
    taken(run, 35)
    run.stop()
    run.start()
    run.step()
    settle(run)
    assert (run.state, run.steps) == (STOPPED, 35)
    assert not torch.equal(weights(run), first)
    run.reset()
    settle(run)
    assert (run.state, run.steps, run.history.rows, len(run.curve)) == (READY, 0, [], 1)
    assert torch.equal(weights(run), first)


def test_what_goes_wrong_is_said_and_can_be_mended(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    run = trainer.run
    taken(run, 3)
    run.change(batch_size=10_000)
    run.start()
    assert wait_for(lambda: run.state == FAILED)
    settle(run)
    assert "Failed: ValueError: batch_size is 10000" in trainer.status.value
    assert "set batch_size to at most 1294" in trainer.status.value
    with pytest.raises(ValueError, match="batch_size"):
        run.wait(lambda run: False)
    run.change(batch_size=64)
    finish(run)
    assert run.steps == 224
    assert "Finished" in trainer.status.value


@pytest.mark.parametrize("strategy", ["neuron", "layer"])
def test_a_stopped_run_with_merged_sweeps_takes_changes(data: Data, strategy: str) -> None:
    """Which count when it is reset."""
    run = LiveRun(small_net, data, replace(SETTINGS, strategy=strategy))
    taken(run, 35)
    run.stop()
    run.change(batch_size=64)
    settle(run)
    assert (run.state, run.steps, run.settings.batch_size) == (STOPPED, 35, 64)


@pytest.mark.parametrize("broken", ["setting", "picture", "step"])
@pytest.mark.parametrize("strategy", ["sequential", "neuron"])
def test_a_failure_within_a_sweep_can_be_mended(
    strategy: str, broken: str, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = LiveTrainer(small_net, data, replace(SETTINGS, strategy=strategy))
    run = trainer.run
    taken(run, 35)
    if broken == "setting":
        run.change(order="inpt")
    else:
        where = "rso_lib.lab.widgets.draw_step" if broken == "picture" else "rso_lib.engine.layers.advance"
        monkeypatch.setattr(where, lambda *_: 1 / 0)
        monkeypatch.setattr("rso_lib.engine.block.advance", lambda *_: 1 / 0)
        run.step()
    assert wait_for(lambda: run.state == FAILED)
    monkeypatch.undo()
    finish(run)
    assert len(run.history.cycles.rows) == 2


def test_a_picture_that_fails_is_said_too(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    monkeypatch.setattr("rso_lib.lab.widgets.draw_step", lambda run: 1 / 0)
    trainer.run.step()
    assert wait_for(lambda: "Failed: ZeroDivisionError: division by zero" in trainer.status.value)


def test_unknown_nets_and_settings_are_named(data: Data) -> None:
    with pytest.raises(ValueError, match="net must be one of one_conv"):
        LiveRun("one_con", data, SETTINGS)
    run = LiveRun(small_net, data, SETTINGS)
    run.change(order="inpt")
    assert wait_for(lambda: run.state == FAILED)
    assert "did you mean 'input'" in str(run.error)


def test_a_new_run_pauses_the_others(data: Data) -> None:
    first = LiveRun("one_conv", data, RSO(batch_size=64, cycles=50))
    first.start()
    until(first, lambda run: run.steps > 0)
    second = LiveRun(small_net, data, SETTINGS)
    settle(second)
    assert (first.state, second.state) == (PAUSED, READY)


def test_a_run_that_rests_keeps_no_caches_and_goes_on_the_same(data: Data) -> None:
    """At every place of the first sweeps, also where all steps of one are done and its report is to come."""
    for at in (1, 30, 31, 49, 50):
        run, alone = (LiveRun(small_net, data, SETTINGS) for _ in range(2))
        taken(run, at)
        LiveRun(small_net, data, SETTINGS)
        settle(run)
        assert run.items is None
        for each in (run, alone):
            taken(each, 60 - each.steps)
        assert run.steps == alone.steps == 60
        assert torch.equal(weights(run), weights(alone))
        run.stop()
        settle(run)
        assert run.items is None


@pytest.mark.parametrize("strategy", ["neuron", "layer"])
def test_a_run_with_merged_sweeps_rests_too(data: Data, strategy: str) -> None:
    """Such a sweep cannot be cut: its steps are made again, and the run ends as if it had not rested."""
    settings = replace(SETTINGS, strategy=strategy, weight_decay=0.1)
    run, alone = (LiveRun(small_net, data, settings) for _ in range(2))
    taken(run, 35)
    LiveRun(small_net, data, SETTINGS)
    settle(run)
    assert run.items is None
    assert (run.steps, run.image_forwards) == (30, 30 * 3 * 64)
    finish(run)
    finish(alone)
    assert run.steps == alone.steps == 224
    assert torch.equal(weights(run), weights(alone))


def is_gone(ref: Callable[[], object]) -> bool:
    gc.collect()
    return ref() is None


def test_a_run_that_nobody_holds_is_gone(data: Data) -> None:
    run = LiveRun(small_net, data, SETTINGS)
    taken(run, 1)
    ref, net = weakref.ref(run), weakref.ref(run.net)
    del run
    assert wait_for(lambda: is_gone(ref) and is_gone(net))


@pytest.mark.parametrize("kind", ["trainer", "race"])
def test_a_cell_that_is_run_again_lets_go_of_its_panels(kind: str, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though ipywidgets and the notebook's `Out` keep all panels, and buttons their runs."""

    def cell(name: str, execution: str) -> Panel:
        monkeypatch.setattr(panel_module, "running_cell", lambda: (name, execution))
        if kind == "trainer":
            return LiveTrainer(small_net, data, SETTINGS)
        return Race([LiveTrainer(small_net, data, SETTINGS, title) for title in "ab"])

    def trainers(panel: Panel) -> list[LiveTrainer]:
        return [part for part in all_parts(panel) if isinstance(part, LiveTrainer)]

    out = [cell("first", "1"), cell("second", "2")]
    nets = [[weakref.ref(trainer.run.net) for trainer in trainers(panel)] for panel in out]
    trainers(out[0])[0].run.start()
    out.append(cell("first", "3"))
    assert wait_for(lambda: all(map(is_gone, nets[0])))
    assert all(ref() is not None for ref in nets[1])
    assert len(worker.runs) == 2 * len(nets[0])
    for trainer in trainers(out[0]):
        trainer.run.reset()  # a button of the old panel does nothing
        assert trainer.run.state == STOPPED
        assert trainer.comm is None


def test_the_cell_that_is_run_is_told_by_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """JupyterLab and Notebook 7 send the cell's id; papermill does not."""
    assert panel_module.running_cell() is None
    request: dict[str, dict[str, str]] = {"header": {"msg_id": "7"}, "metadata": {}}
    shell = SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: request))
    monkeypatch.setattr(panel_module, "get_ipython", lambda: shell)
    assert panel_module.running_cell() is None
    request["metadata"]["cellId"] = "a"
    assert panel_module.running_cell() == ("a", "7")


def test_all_that_changes_a_run_happens_in_one_thread(data: Data) -> None:
    """Its beginning, too; what goes wrong there is raised where the run is made."""
    threads = []

    def make() -> Net:
        threads.append(threading.current_thread())
        if len(threads) > 1:
            raise RuntimeError("no net")
        return small_net()

    LiveRun(make, data, SETTINGS)
    with pytest.raises(RuntimeError, match="no net"):
        LiveRun(make, data, SETTINGS)
    assert threads[0] is threads[1] is not threading.current_thread()


def test_sgd_keeps_its_optimiser_while_another_run_works(data: Data) -> None:
    run = LiveSGD(small_net, data, SGD(epochs=5, batch_size=100, warmup=1))
    run.step()
    settle(run)
    items = run.items
    LiveRun(small_net, data, SETTINGS)
    settle(run)
    assert run.items is items is not None


class Clock:
    """It stands in for `time` in a live run: a step of a run takes as long as the run's batch is large."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def train(self, net: Net, data: Data, settings: RSO, *more: Any, **options: Any) -> Iterator[Any]:
        for item in train(net, data, settings, *more, **options):
            self.now += settings.batch_size / 10_000
            yield item


def test_racing_runs_get_the_same_time(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a step takes: one run's are here 32 times as long as the other's, and half a turn at the least."""
    clock = Clock()
    monkeypatch.setattr(live_module, "time", clock)
    monkeypatch.setattr(live_module, "train", clock.train)
    monkeypatch.setattr(live_module, "TURN_SECONDS", 0.2)
    small, large = (LiveRun("two_conv", data, RSO(batch_size=size, cycles=50)) for size in (32, 1024))
    small.start()
    large.start()
    assert small.wait(lambda run: large.steps >= 40, 1e6)  # seconds of that clock
    small.do(lambda: [run.enter(STOPPED) for run in (small, large)])  # both between two turns
    settle(small)
    assert small.seconds == pytest.approx(large.seconds, abs=0.3)
    assert small.steps > 20 * large.steps


def test_sgd(data: Data) -> None:
    """A step is an epoch of 10 batches; a change begins anew."""
    run = LiveSGD("one_conv", data, SGD(batch_size=128, epochs=3, rate=0.1, warmup=0))
    run.step()
    settle(run)
    assert (run.updates, run.image_forwards, len(run.history.rows)) == (10, 3 * 10 * 128, 1)
    run.change(rate=0.05)
    settle(run)
    assert (run.updates, run.state, run.settings.rate) == (0, READY, 0.05)
    finish(run)
    assert run.updates == 30
    assert run.curve[-1].accuracy == run.history.last.val_accuracy > 0.5


# What is shown.


def picture(text: str) -> np.ndarray:
    [data] = re.findall('base64,([^"]*)"', text)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def alt(text: str) -> str:
    [found] = re.findall('alt="([^"]*)"', text)
    return html.unescape(found)


def test_controls_change_the_settings(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    for name, value in {
        "batch_size": 128,
        "schedule": "cosine",
        "distribution": "uniform",
        "order": "shuffled",
        "direction": "forward",
    }.items():
        trainer.controls[name].value = value
        settle(trainer.run)
        assert getattr(trainer.run.settings, name) == value
    trainer.controls["factor"].value = 4.0
    settle(trainer.run)
    assert trainer.run.settings.sigma_factor(1) == pytest.approx(0.4)
    assert trainer.run.settings.to_dict()["schedule"] == "4 × cosine"


def always(factor: float, cycle: int, cycles: int) -> float:
    return factor


def test_settings_that_are_functions_without_a_name(data: Data) -> None:
    """A menu has them, too."""
    settings = replace(SETTINGS, schedule=partial(always, 0.5))
    trainer = LiveTrainer(small_net, data, settings)
    assert trainer.run.settings.schedule is settings.schedule
    assert "partial" in scale_schedule(settings.schedule, 2.0).__name__  # type: ignore[union-attr]


def test_scaled() -> None:
    assert scale_schedule("linear", 1.0) == "linear"
    double = scale_schedule("linear", 2.0)
    assert [double(c, 50) for c in (0, 20, 49)] == [2 * linear(c, 50) for c in (0, 20, 49)]
    assert scale_schedule(lambda cycle, cycles: cycle, 3.0)(5, 9) == 15


def test_buttons_send_commands(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    press = {button.description: button.click for button in all_parts(trainer) if isinstance(button, ipywidgets.Button)}
    assert list(press) == ["Start", "Pause", "Step", "Stop", "Reset"]
    press["Step"]()
    settle(trainer.run)
    assert (trainer.run.steps, trainer.run.state) == (1, PAUSED)
    press["Start"]()
    until(trainer.run, lambda run: run.steps > 1)
    press["Pause"]()
    settle(trainer.run)
    assert trainer.run.state == PAUSED
    press["Stop"]()
    settle(trainer.run)
    assert trainer.run.state == STOPPED
    press["Reset"]()
    settle(trainer.run)
    assert trainer.run.steps == 0


@pytest.mark.parametrize("kind", [LiveTrainer, SGDTrainer])
def test_every_control_has_a_name(data: Data, kind: type[LiveTrainer]) -> None:
    silent = ipywidgets.Box | ipywidgets.HTML | Names
    shown = [part for part in all_parts(kind("one_conv", data)) if not isinstance(part, silent)]
    assert len(shown) >= 8
    assert all(part.description for part in shown)


def test_the_visited_weight_is_framed(data: Data) -> None:
    """The square in the black frame has the colour of that weight, for tensors of two, four and one dimensions."""
    run = LiveRun("one_conv", data, RSO(batch_size=64))
    for index, name in ((237, "head.linear.weight"), (31, "block1.conv.weight"), (2, "block1.conv.bias")):
        weight = run.net.get_parameter(name).detach()
        weight.uniform_(-1, 1)
        run.last = Step(at=None, layer=name, index=index, delta=torch.zeros(()), losses=torch.zeros(3), choice=0.0)
        drawn, text = draw_layer(run, (640, 180))
        pixels = np.asarray(drawn)
        rows, columns = np.nonzero((pixels == 0).all(2))
        inside = pixels[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
        value = float(weight.flatten()[index] / weight.abs().max())
        expected = matplotlib.colormaps["PuOr"](0.5 + value / 2, bytes=True)[:3]
        assert inside.tolist() == list(expected)
        assert f"Weight {index} is framed" in text


def test_neurons_that_see_pixels_are_drawn_as_images() -> None:
    """In a plain module, if the shape of an image is given."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5))
    raster = pictures.lay_out_weights(net, "1.weight", (1, 8, 8))
    assert raster.tiles == (5, 1, 8, 8)
    assert raster.values[raster.cell(64 + 11)] == net[1].weight[1, 11]
    assert pictures.lay_out_weights(net, "1.weight").tiles == (5, 64, 1, 1)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: two_conv(), "head.linear.weight"),
        (lambda: cifar_net(10), "block9.conv.weight"),
        (lambda: Net([Block(1, 90), Block(90, 120)], Head(120, 10, pool="max"), seed=0), "block2.conv.weight"),
    ],
    ids=["flat maps", "32 channels", "more than fit"],
)
def test_the_last_weight_of_many_is_in_the_picture(data: Data, make: Callable[[], Net], name: str) -> None:
    run = LiveRun(small_net, data, SETTINGS)
    run.net = make()
    run.last = Step(
        at=None,
        layer=name,
        index=run.net.get_parameter(name).numel() - 1,
        delta=torch.zeros(()),
        losses=torch.zeros(3),
        choice=torch.zeros(()),
    )
    rows, columns = np.nonzero((np.asarray(draw_layer(run, (640, 180))[0]) == 0).all(2))
    assert len(set(rows)) > 2 and len(set(columns)) > 2


def test_bar(data: Data) -> None:
    run = LiveRun(small_net, data, SETTINGS)
    assert "%" not in draw_wins(run)
    run.recent.extend([0] * 10 + [1] * 30 + [2] * 60)
    assert 'aria-label="Winners of the last 100 steps: w 10%, w + Δ 30%, w − Δ 60%"' in draw_wins(run)
    assert re.findall(r"width: ([\d.]+)%", draw_wins(run))[1:4] == ["10.0", "30.0", "60.0"]


def test_text_says_the_batch_of_a_cycle_that_grows(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, replace(SETTINGS, first_batch=25, batch_size=400))
    taken(trainer.run, 1)
    settle(trainer.run)
    assert "on 25 images: weight" in html.unescape(trainer.numbers.value)


def test_text_says_what_the_step_did(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    [step] = taken(trainer.run, 1)
    settle(trainer.run)
    losses = [f"{loss:.4f}" for loss in step.losses.tolist()]
    text = html.unescape(trainer.numbers.value)
    assert f"weight 0 of head.linear.weight, Δ = {float(step.delta):+.3f}" in text
    assert f"Losses {losses[0]} for w, {losses[1]} for w + Δ, {losses[2]} for w − Δ" in text
    won = ["w", "w + Δ", "w − Δ"][int(step.losses.argmin())]
    assert f" {won} wins." in text
    assert f"validation accuracy {trainer.run.curve[-1].accuracy:.1%}" in alt(trainer.screen.value)


def test_knobs_are_not_turned_by_the_test_part(data: Data) -> None:
    """The curves are those of the validation part, unless there is none; axes and words say which."""
    for part, given in (("val", data), ("test", replace(data, val=Split(data.val.images[:0], data.val.labels[:0])))):
        trainer = LiveTrainer(small_net, given, SETTINGS)
        finish(trainer.run)
        last, name = trainer.run.history.last, {"val": "validation", "test": "test"}[part]
        assert trainer.run.curve[-1].accuracy == getattr(last, f"{part}_accuracy")
        assert trainer.run.curve[-1].loss == getattr(last, f"{part}_loss")
        assert trainer.curves.axes[0].get_ylabel() == f"{name}\naccuracy (%)"
        assert {name, "batches"} == {*trainer.curves.lines[1]}
        words = trainer.numbers.value + trainer.status.value
        assert f"{name} accuracy" in words.lower() and f"{name} loss" in words


def test_text_names_other_candidates(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, replace(SETTINGS, candidates=(0, 2)))
    taken(trainer.run, 1)
    settle(trainer.run)
    assert re.search(r"Losses [\d.]+ for w, [\d.]+ for w \+ 2 Δ\. w", html.unescape(trainer.numbers.value))
    assert [name_candidate(m) for m in (0, 1, -1, -0.5)] == ["w", "w + Δ", "w − Δ", "w − 0.5 Δ"]


def test_log_axis(data: Data) -> None:
    """While nothing runs, too."""
    trainer = LiveTrainer(small_net, data, SETTINGS)
    linear_axis = trainer.screen.value
    trainer.log_axis.value = True
    settle(trainer.run)
    settle(trainer.run)
    assert trainer.curves.axes[1].get_yscale() == "log"
    assert trainer.screen.value != linear_axis


def test_explorer_draws_for_its_values() -> None:
    drawn: list[float] = []

    def draw(power: float, sign: int) -> figure.Picture:
        drawn.append(power * sign)
        x = torch.linspace(0, 1, 5)
        return pictures.plot_loss_along(x, sign * x**power, name="<w> & co")

    explorer = Explorer(
        draw,
        power=ipywidgets.FloatSlider(2.0, min=1, max=4, description="power"),
        sign=ipywidgets.Dropdown(options=[1, -1], description="sign"),
    )
    before = picture(explorer.screen.value)
    explorer.controls["power"].value = 3.0
    explorer.controls["sign"].value = -1
    assert drawn == [2.0, 3.0, -3.0]
    assert not np.array_equal(before, picture(explorer.screen.value))
    assert "<w> & co" in alt(explorer.screen.value)
    assert "&lt;w&gt; &amp; co" in explorer.text.value


def test_race(data: Data) -> None:
    make = {title: RSO(batch_size=size, cycles=2) for title, size in (("batch 32", 32), ("batch 256", 256))}
    race = Race([LiveTrainer(small_net, data, settings, title) for title, settings in make.items()])
    buttons = race.children[0].children
    buttons[0].click()
    for trainer in race.trainers:
        until(trainer.run, lambda run: run.state == FINISHED)
        settle(trainer.run)
    for axes, score in zip(race.curves.lines, ("accuracy", "loss"), strict=True):
        for trainer in race.trainers:
            assert list(axes[trainer.title].get_ydata()) == [getattr(s, score) for s in trainer.run.curve]
    race.against.value = "image_forwards"
    settle(race.trainers[0].run)
    assert race.curves.lines[0]["batch 256"].get_xdata()[-1] == 2 * 112 * 3 * 256
    for title, trainer in zip(make, race.trainers, strict=True):
        assert f"{title}: After 2.00 full updates: validation accuracy" in alt(race.screen.value)
        assert trainer.run.updates == 2


def test_a_race_needs_titles(data: Data) -> None:
    with pytest.raises(ValueError, match="different titles, not \\['RSO', 'RSO'\\]"):
        Race([LiveTrainer(small_net, data, SETTINGS), LiveTrainer(small_net, data, SETTINGS)])


def test_still(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Executed to be read: pictures with alt text, no controls and no script."""
    trainer = LiveTrainer(small_net, data, SETTINGS)
    assert "application/vnd.jupyter.widget-view+json" in trainer._repr_mimebundle_()
    monkeypatch.setenv("RSO_STATIC", "1")
    bundle = trainer._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    images = re.findall("<img [^>]*>", bundle["text/html"])
    assert len(images) == 2
    assert all('alt="' in image and 'alt=""' not in image for image in images)
    assert "script" not in bundle["text/html"] and "onload" not in bundle["text/html"]


def test_a_saved_panel_says_how_to_start(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the panel stands its picture, which the live panel hides: without a kernel it is what is left."""
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(panel_module, "display", lambda bundle, raw: shown.append(bundle))
    trainer = LiveTrainer(small_net, data, SETTINGS)
    trainer._ipython_display_()
    saved, live = shown
    assert "application/vnd.jupyter.widget-view+json" in live and set(saved) == {"text/html", "text/plain"}
    assert saved["text/html"].count("<img ") == 2 and SAVED in saved["text/html"]
    [name] = re.findall('<div class="(rso-saved-[0-9a-f]+)">', saved["text/html"])
    hides = [
        part.value for part in all_parts(trainer) if getattr(part, "value", "") and f".{name} {{" in str(part.value)
    ]
    assert len(hides) == 1
    monkeypatch.setenv("RSO_STATIC", "1")
    shown.clear()
    trainer._ipython_display_()
    assert len(shown) == 1


def test_it_is_said_that_a_click_waits(data: Data) -> None:
    """Once below every panel, and once for a race."""
    race = Race([LiveTrainer(small_net, data, SETTINGS, title=title) for title in "ab"])
    seen = [part for part in all_parts(race) if getattr(part, "value", "") == WAITS and part.layout.display != "none"]
    assert seen == [race.waits]


# The valley of a step


@pytest.mark.parametrize("make", [small_net, "one_conv"], ids=["batch norm", "one_conv"])
@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, candidates=(0, 1, -1, 2), order="shuffled")])
def test_the_candidates_lie_on_the_valley_of_the_steps_own_batch(data: Data, make: Any, settings: RSO) -> None:
    """Also behind the first slice and the first sweep: losses of the curve are those that the search has found."""
    run = LiveRun(make, data, settings)
    for count in (60, 400):
        step = taken(run, count)[-1]
        before = [tensor.clone() for tensor in (*run.net.parameters(), *run.net.buffers())]
        valley = valley_of(run)
        now = [*run.net.parameters(), *run.net.buffers()]
        assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
        assert torch.equal(valley.losses, step.losses) and len(valley.places) == len(settings.candidates)
        order = valley.values.argsort()
        on_curve = np.interp(valley.places, valley.values[order], valley.along[order])
        bend = float((valley.along[2:] - 2 * valley.along[1:-1] + valley.along[:-2]).abs().max())
        assert np.abs(on_curve - valley.losses.numpy()).max() < bend / 2 + 1e-5
        assert float(valley.along.max() - valley.along.min()) > 0
        weight = run.net.get_parameter(step.layer).detach().view(-1)[step.index]
        assert valley.chosen == float(weight)
        assert float(valley.places[int(step.losses.argmin())]) == pytest.approx(valley.chosen, abs=1e-6)


def test_the_ring_is_where_the_weight_is(data: Data) -> None:
    """Also where a rule goes beyond all candidates, as the minimum of a parabola may lie."""
    run = LiveRun("one_conv", data, replace(SETTINGS, rule="parabola"))
    choices = set()
    for _ in range(12):
        [step] = taken(run, 1)
        valley = valley_of(run)
        assert valley.chosen == float(run.net.get_parameter(step.layer).detach().view(-1)[step.index])
        assert float(valley.values[0]) < valley.chosen < float(valley.values[-1])
        x = 24 + (valley.chosen - float(valley.values[0])) / float(valley.values[-1] - valley.values[0]) * (480 - 48)
        ink = (np.asarray(draw_valley(valley, (480, 280)))[:, round(x)] == (0x1A, 0x1A, 0x1A)).all(1)
        assert ink.sum() >= 8  # the ring is cut twice, 4 dots thick
        choices.add(float(step.choice))
    assert not choices <= {0.0, 1.0, -1.0}


def test_words_are_those_of_the_settings_that_the_step_was_made_with(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    taken(trainer.run, 2)
    before = trainer.numbers.value
    trainer.run.change(batch_size=200, candidates=(0, 2))
    settle(trainer.run)
    assert trainer.run.state == PAUSED
    assert trainer.numbers.value == before


def test_counting_operations_leaves_the_net_as_it_is() -> None:
    net = small_net().double().train()
    before = [tensor.clone() for tensor in net.state_dict().values()]
    assert operations(net, (1, 8, 8))
    assert all(torch.equal(a, b) for a, b in zip(before, net.state_dict().values(), strict=True))


def test_where_there_is_no_valley(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    assert valley_of(LiveRun(small_net, data, SETTINGS)) is None
    for changes in ({"level": "layer"}, {"strategy": "neuron"}):
        run = LiveRun(small_net, data, replace(SETTINGS, **changes))
        taken(run, 1)
        assert valley_of(run) is None
    run = LiveRun(lambda: models.one_conv(data.shape, levels=3), data, SETTINGS)
    taken(run, 1)
    assert valley_of(run) is None
    run = LiveRun(small_net, data, SETTINGS)
    taken(run, 1)
    assert valley_of(run) is not None
    monkeypatch.setattr("rso_lib.lab.valley.MOST_OPERATIONS", 1e3)
    assert valley_of(run) is None


def test_a_picture_of_the_valley(data: Data) -> None:
    """A dot of each candidate's colour, at the height of its loss: the ring is around the lowest."""
    run = LiveRun("one_conv", data, SETTINGS)
    taken(run, 3)
    valley = valley_of(run)
    pixels = np.asarray(draw_valley(valley, (480, 280)))[40:-40]
    heights = {}
    for name, colour in (("w", figure.GREY), ("w + Δ", figure.BLUE), ("w − Δ", figure.VERMILION)):
        rows, _ = np.nonzero((pixels == matplotlib.colors.to_rgba_array(colour)[0, :3].__mul__(255).round()).all(2))
        heights[name] = rows.mean()
    order = sorted(heights, key=heights.get, reverse=True)
    assert order == [["w", "w + Δ", "w − Δ"][k] for k in valley.losses.argsort().tolist()]
    assert "Along it the loss of the batch goes from" in draw_step(run)[1]


def test_more_settings_wait_behind_a_button(data: Data) -> None:
    trainer = LiveTrainer(small_net, data, SETTINGS)
    [more] = [part for part in all_parts(trainer) if isinstance(part, ipywidgets.ToggleButton)]
    [menus] = [part for part in trainer.children if trainer.controls["order"] in getattr(part, "children", ())]
    assert menus.layout.display == "none"
    more.value = True
    assert menus.layout.display is None
    more.value = False
    assert menus.layout.display == "none"


def test_the_valley_is_that_of_the_settings_that_the_step_was_made_with(data: Data) -> None:
    run = LiveRun(small_net, data, SETTINGS)
    taken(run, 5)
    before = valley_of(run)
    run.change(batch_size=200, candidates=(0, 2))
    settle(run)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(before, valley_of(run), strict=True))
