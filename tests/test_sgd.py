"""Backpropagation: its steps by hand, its rows, and runs in folders that can be stopped."""

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rso_lib import Data, History, load, models
from rso_lib.algorithm import cross_entropies
from rso_lib.data import Split
from rso_lib.history import Report
from rso_lib.losses import accuracies
from rso_lib.models import Block, Head, Net
from rso_lib.run import baseline, files, sgd
from rso_lib.run.sgd import SGD

QUICK = SGD(epochs=4, batch_size=100, rate=0.1, warmup=1)


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


def small(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 10, *, seed: int = 0) -> Net:
    blocks = [Block(shape[0], 8, pool="avg"), Block(8, 16)]
    return Net(blocks, Head(16, classes, pool="max"), seed)


def facts(history: History) -> list[str]:
    """The rows without the time, as text, so that NaN equals NaN."""
    return [repr(replace(row, seconds=0)) for row in history.rows]


def test_steps_by_hand(digits: Data) -> None:
    """Momentum, weight decay, warm-up and step-down, one batch per epoch, in float64."""
    images, labels = digits.train.images[:200].double(), digits.train.labels[:200]
    data = replace(digits, train=Split(images, labels), val=Split(images, labels), test=Split(images, labels))
    settings = SGD(epochs=4, batch_size=200, rate=0.3, momentum=0.8, weight_decay=0.01, warmup=2)
    net, by_hand = small().double(), small().double()
    sgd.fit(net, data, settings, progress=False)

    velocity = [torch.zeros_like(w) for w in by_hand.parameters()]
    for rate in (0.15, 0.3, 0.03, 0.003):
        loss = F.nll_loss(by_hand(images).log_softmax(1), labels)
        gradient = torch.autograd.grad(loss, list(by_hand.parameters()))
        for w, v, g in zip(by_hand.parameters(), velocity, gradient, strict=True):
            v.mul_(0.8).add_(g + 0.01 * w.detach())
            w.data -= rate * v
    for name, w in net.named_parameters():
        torch.testing.assert_close(w, by_hand.get_parameter(name), rtol=1e-10, atol=1e-12)


def test_the_noise_of_dropout_follows_from_the_seed_and_a_run_goes_on_with_it(digits: Data) -> None:
    made = []
    for torch_seed, stop in ((1, 2), (2, 4)):
        net = nn.Sequential(small(), nn.Dropout(0.5)).double()
        torch.manual_seed(torch_seed)
        run = sgd.Descent(net, digits.to(torch.float64), QUICK, cross_entropies, accuracies)
        for report in run:
            if report.cycle // (len(digits.train) // QUICK.batch_size) == stop:
                break
        if stop < QUICK.epochs:
            after = sgd.Descent(net, digits.to(torch.float64), QUICK, cross_entropies, accuracies)
            after.restore(copy.deepcopy(run.state()))
            assert len(list(after)) == QUICK.epochs - stop
        made.append(net.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_rates_of_section_4_5() -> None:
    """Batch 5,000 of 55,000 images: 11 steps per epoch, five epochs of linear warm-up to 0.5."""
    rates = [SGD(epochs=20, rate=0.5, warmup=5).rate_at(step, 11) for step in range(220)]
    assert rates[:3] == pytest.approx([0.5 / 55, 1.0 / 55, 1.5 / 55])
    assert rates[53] < rates[54] == rates[109] == 0.5
    assert rates[110] == rates[164] == pytest.approx(0.05)
    assert rates[165] == rates[219] == pytest.approx(0.005)
    constant = SGD(epochs=20, rate=0.5, warmup=0, schedule="constant")
    assert {constant.rate_at(step, 11) for step in range(220)} == {0.5}


def test_it_learns_and_says_what_it_did(digits: Data) -> None:
    net = small()
    history = sgd.fit(net, digits, replace(QUICK, epochs=10), progress=False)
    assert [row.cycle for row in history.rows] == [12 * k for k in range(1, 11)]  # 1,294 images: 12 steps per epoch
    last = history.last
    assert (last.steps, last.evaluations, last.image_forwards) == (12, 12, 3 * 12 * 100)
    assert (last.kept, last.plus, last.minus) == (0, 0, 0)
    assert last.test_accuracy > 0.9
    assert history.rows[0].seconds < last.seconds

    z = F.avg_pool2d(net[0].conv(digits.train.images), 2)  # batch norm is scored with the statistics of these images
    torch.testing.assert_close(net[0].norm.running_mean, z.mean((0, 2, 3)))
    right = (net.eval()(digits.test.images).argmax(1) == digits.test.labels).double().mean()
    assert last.test_accuracy == pytest.approx(float(right))


def test_a_seed_repeats_and_another_does_not(digits: Data) -> None:
    first, again, other = (
        sgd.fit(small(), digits, replace(QUICK, epochs=2, seed=seed), progress=False) for seed in (1, 1, 2)
    )
    assert facts(first) == facts(again)
    assert facts(first) != facts(other)


def test_every_epoch_uses_every_image_once(digits: Data) -> None:
    """But for what a whole number of batches leaves over; and in another order each time."""
    seen: list[torch.Tensor] = []

    def recorded(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(targets)
        return F.cross_entropy(outputs, targets, reduction="none")

    labels = torch.arange(10).repeat(130)[: len(digits.train)]
    data = replace(digits, train=Split(digits.train.images, labels))
    next(sgd.train(small(), data, replace(QUICK, batch_size=647), loss=recorded))
    batches = [targets for targets in seen if len(targets) == 647]
    assert len(batches) == 2
    assert torch.cat(batches).bincount().tolist() == labels.bincount().tolist()
    assert torch.cat(batches).tolist() != labels.tolist()


def test_it_ends_where_the_loss_is_not_finite(digits: Data) -> None:
    net = models.one_conv((1, 8, 8))
    said = r"diverged in epoch \d of 50: the loss is nan.*set rate lower than 1e\+30, or warmup higher than 0"
    with pytest.warns(UserWarning, match=said):
        history = sgd.fit(net, digits, SGD(epochs=50, batch_size=100, rate=1e30, warmup=0), progress=False)
    assert len(history.rows) < 5
    assert not math.isfinite(history.last.train_loss)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("epochs", 0, ValueError),
        ("batch_size", 1.5, TypeError),
        ("rate", 0, ValueError),
        ("rate", "0.1", TypeError),
        ("momentum", None, TypeError),
        ("rate", math.nan, ValueError),
        ("momentum", 1, ValueError),
        ("weight_decay", -1, ValueError),
        ("warmup", -1, ValueError),
        ("warmup", 26, ValueError),
        ("schedule", "stairs", ValueError),
    ],
)
def test_settings_are_checked(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must"):
        SGD(**{name: value})


def test_what_does_not_fit_the_data_is_an_error(digits: Data) -> None:
    with pytest.raises(ValueError, match="batch_size must be at most the 1294 training images"):
        sgd.fit(small(), digits, SGD(), progress=False)


def test_what_cannot_begin_leaves_nothing_behind(digits: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at most"):
        baseline.train_seeds(tmp_path / "run", "one_conv", digits, SGD(), 1)
    with pytest.raises(ValueError, match="an option of one_conv"):
        baseline.train_seeds(tmp_path / "run", "one_conv", digits, QUICK, 1, {"depth": 3})
    assert not (tmp_path / "run").exists()


def renamed(data: Data) -> Data:
    """The images with two classes the other way round."""
    other = data.train.labels.clone()
    other[data.train.labels == 3], other[data.train.labels == 5] = 5, 3
    return replace(data, train=Split(data.train.images, other))


def test_other_images_are_no_runs_of_the_same_kind(digits: Data, tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=2)
    baseline.train_seeds(tmp_path, "one_conv", digits, settings, 1)
    with pytest.raises(ValueError, match=r"labels is '\w+' there, not '\w+'"):
        baseline.train_seeds(tmp_path, "one_conv", renamed(digits), settings, 1)


def test_a_folder_from_before_a_setting_was_added_is_read(digits: Data, tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=2)
    baseline.train_seeds(tmp_path, "one_conv", digits, settings, 1)
    about = json.loads((tmp_path / "settings.json").read_text())
    for name in ("loss", "metric", "straight_through"):
        del about[name]
    (tmp_path / "settings.json").write_text(json.dumps(about))
    assert len(baseline.train_seeds(tmp_path, "one_conv", digits, settings, 1)) == 1


def test_the_folder_notes_who_trained(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each machine once for the runs that it made; whoever only reads is none."""

    def noted(seeds: int, name: str) -> list[str]:
        monkeypatch.setattr("rso_lib.run.about.machine", lambda _: {"device": name})
        baseline.train_seeds(tmp_path, "one_conv", digits, replace(QUICK, epochs=1, warmup=0), seeds)
        return [one["device"] for one in json.loads((tmp_path / "settings.json").read_text())["machines"]]

    assert noted(1, "first") == noted(2, "first") == noted(2, "reader") == ["first"]
    with pytest.warns(UserWarning, match="device is 'first' there, not 'second'"):
        assert noted(3, "second") == ["first", "second"]


def test_a_full_disk_leaves_the_epochs_that_were_saved(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = History.save

    def full(history: History, path: Path) -> None:
        if len(history.rows) == 3:
            raise OSError(28, "No space left on device")
        save(history, path)

    monkeypatch.setattr(History, "save", full)
    with pytest.raises(OSError, match=r"0.csv.part cannot be written \(No space left on device\); what was saved"):
        baseline.train_seeds(tmp_path, "one_conv", digits, QUICK, 1)
    assert len(History.load(tmp_path / "0.csv.part").rows) == 2


def test_one_process_trains_in_a_folder(digits: Data, tmp_path: Path) -> None:
    tmp_path.joinpath("run").mkdir()
    with files.alone(tmp_path / "run"), pytest.raises(RuntimeError, match="another process runs in"):
        baseline.train_seeds(tmp_path / "run", "one_conv", digits, QUICK, 1)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"data": 5}', '{"epochs": 3}', '{"data": {}, "settings": {}}'])
def test_torn_settings_are_named_and_kept(digits: Data, tmp_path: Path, content: str) -> None:
    about = tmp_path / "settings.json"
    about.write_text(content)
    with pytest.raises(ValueError, match=r"settings.json is not the settings of runs of SGD, or torn"):
        baseline.train_seeds(tmp_path, "one_conv", digits, QUICK, 1)
    assert about.read_text() == content
    about.unlink()
    (tmp_path / "0.csv").write_text("")
    with pytest.raises(ValueError, match=r"0.csv belongs to no run"):
        baseline.train_seeds(tmp_path, "one_conv", digits, QUICK, 1)


def test_torn_histories_are_named_and_kept(digits: Data, tmp_path: Path) -> None:
    baseline.train_seeds(tmp_path, "one_conv", digits, QUICK, 1)
    history = tmp_path / "0.csv"
    whole = history.read_text()
    for torn in (whole[:-200], ""):
        history.write_text(torn)
        with pytest.raises(ValueError, match=r"0.csv is (torn|not)"):
            baseline.train_seeds(tmp_path, "one_conv", digits, QUICK, 1)
        assert history.read_text() == torn


def test_the_baseline_is_not_repeated_and_not_confused(digits: Data, tmp_path: Path) -> None:
    settings = SGD(epochs=1, batch_size=64, rate=0.05, warmup=0)
    [first, second] = baseline.train_seeds(tmp_path, "one_conv", digits, settings, 2)
    assert first.last.test_accuracy != second.last.test_accuracy
    [again] = baseline.train_seeds(tmp_path, "one_conv", digits, settings, 1)
    assert again.last.seconds == first.last.seconds
    with pytest.raises(ValueError, match=r"holds runs with other settings or images; .*\n  epochs is 1 there, not 2$"):
        baseline.train_seeds(tmp_path, "one_conv", digits, replace(settings, epochs=2), 1)
    assert json.loads((tmp_path / "settings.json").read_text())["epochs"] == 1


@pytest.mark.parametrize("kind", [{}, {"levels": 3}])
def test_a_baseline_that_is_stopped_goes_on_to_the_same_bits(
    kind: dict[str, Any], digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, epochs=4, straight_through=bool(kind))
    epoch_of = sgd._epoch

    def only_two(*arguments: Any) -> int:
        if arguments[4] > 1:  # the epoch
            raise KeyboardInterrupt
        return epoch_of(*arguments)

    [whole] = baseline.train_seeds(tmp_path / "whole", "one_conv", digits, settings, 1, kind)
    with monkeypatch.context() as broken:
        broken.setattr(sgd, "_epoch", only_two)
        with pytest.raises(KeyboardInterrupt):
            baseline.train_seeds(tmp_path / "run", "one_conv", digits, settings, 1, kind)
    assert len(History.load(tmp_path / "run" / "0.csv.part").rows) == 2
    epochs: list[int] = []
    monkeypatch.setattr(sgd, "_epoch", lambda *given: (epochs.append(given[4]), epoch_of(*given))[1])
    [history] = baseline.train_seeds(tmp_path / "run", "one_conv", digits, settings, 1, kind)
    assert epochs == [2, 3]
    taken_up, unbroken = ([replace(row, seconds=0) for row in made.rows] for made in (history, whole))
    assert repr(taken_up) == repr(unbroken)
    assert history.last.seconds > history.rows[1].seconds
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["0.csv", "lock", "settings.json"]


def test_a_baseline_goes_on_from_its_own_checkpoint_alone(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(row: Report, epochs: int, settings: SGD) -> bool:
        raise KeyboardInterrupt

    def begin(name: str, settings: SGD) -> Path:
        with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
            broken.setattr(sgd, "ended", stopped)
            baseline.train_seeds(tmp_path / name, "one_conv", digits, settings, 1)
        return tmp_path / name

    run, other = begin("run", QUICK), begin("other", replace(QUICK, rate=0.2))
    own = (run / "0.pt").read_bytes()
    shutil.copy(other / "0.pt", run)
    with pytest.raises(ValueError, match=r"0.pt is of another run; move it away, .*\n  rate is 0.2 there, not 0.1$"):
        baseline.train_seeds(run, "one_conv", digits, QUICK, 1)
    assert (run / "0.pt").read_bytes() == (other / "0.pt").read_bytes()
    (run / "0.pt").write_bytes(own)
    (run / "0.csv.part").write_text("sorted and torn by a spreadsheet\n")
    [whole] = baseline.train_seeds(tmp_path / "whole", "one_conv", digits, QUICK, 1)
    [history] = baseline.train_seeds(run, "one_conv", digits, QUICK, 1)
    assert facts(history) == facts(whole)


def test_a_torn_checkpoint_of_a_baseline_is_said(digits: Data, tmp_path: Path) -> None:
    (tmp_path / "0.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"0.pt is torn or no checkpoint .* move it away"):
        baseline.train_seeds(tmp_path, "one_conv", digits, QUICK, 1)
    assert (tmp_path / "0.pt").read_bytes() == b"torn"


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    what = "--net cifar_net --net-options depth=3 --epochs 1 --batch-size 100 --rate 0.1 --warmup 0 --threads 1"
    baseline.main([str(tmp_path / "run"), *what.split()])
    history = History.load(tmp_path / "run" / "0.csv")
    assert f"test accuracy {history.last.test_accuracy:.4f} after 12 updates" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (stored["net"], stored["net_options"], stored["weight_decay"]) == ("cifar_net", {"depth": 3}, 1e-4)
    with pytest.raises(SystemExit) as ended:
        baseline.main([str(tmp_path / "other"), "--rate", "-1"])
    assert ended.value.code == 2
    assert "rate must be above 0" in capsys.readouterr().err


def test_an_interrupt_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While images are read, and while it trains."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for module, name in ((baseline, "load"), (sgd, "_epoch")):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(module, name, interrupted)
            baseline.main([str(tmp_path), "--epochs=2", "--warmup=0"])
        assert ended.value.code == 130
        assert "sgd: stopped before the end" in capsys.readouterr().err


def test_a_warm_up_ends_before_the_rate_is_stepped_down() -> None:
    """Else the rate that is asked for is never reached."""
    with pytest.raises(ValueError, match="warmup must be at most 2 of 4 epochs, not 5, or the rate is never reached"):
        SGD(epochs=4, warmup=5)
    for settings in (SGD(epochs=4, warmup=2), SGD(epochs=4, warmup=4, schedule="constant")):
        assert max(settings.rate_at(step, 11) for step in range(44)) == settings.rate


def test_defaults_of_the_command_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On digits, which have fewer images than the paper's batch."""
    asked = []
    monkeypatch.setattr(
        baseline, "train_seeds", lambda folder, net, data, settings, *_, **__: asked.append((data, settings)) or []
    )
    baseline.main([str(tmp_path)])
    [(data, settings)] = asked
    sgd.check_descent(data, settings)
    assert (data.name, settings) == ("digits", SGD(batch_size=128))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--seeds 0", "seeds must be at least 1, not 0"),
        ("--momentun 0.5", "--momentum FLOAT"),
        ("--net one_con", "did you mean 'one_conv'"),
    ],
)
def test_errors_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, says: str) -> None:
    with pytest.raises(SystemExit) as ended:
        baseline.main([str(tmp_path / "run"), *words.split()])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
