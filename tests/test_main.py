"""`python -m rso_lib train`: settings from the command line, errors that help, an interrupt that costs nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rso_lib import RSO, History, __main__
from rso_lib.run import folder as runs
from rso_lib.run import presets
from rso_lib.run.cli import Place, Size, What, documents, main, parse
from rso_lib.run.nets import read_options

ONCE = ["--dataset", "digits", "--net", "one_conv", "--cycles", "2", "--batch-size", "100"]


def call(*arguments: object) -> None:
    main(list(map(str, arguments)))


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says when it ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        call(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def settings(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "settings.json").read_text())["settings"]


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call("--help")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    for one in (RSO, What, Place, Size):
        assert documents(one).keys() == {field.name for field in fields(one)}
        for field in fields(one):
            value = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            default = "" if value in (None, "") else rf"\(default: {re.escape(str(value))}\)"
            entry = re.search(rf"--{field.name.replace('_', '-')} \S+ (.{{7,}}?){default}", text)
            assert entry, field.name
    assert "passes over all weights (the paper's C)" in text


def test_a_new_field_is_an_option_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """With its type, and with the text below it."""
    words = ["--candidates", "0", "-1", "1.5", "--rule", "best", "--share=0.5"]
    assert parse("x", call, words, Newer) == {"candidates": (0.0, -1.0, 1.5), "rule": "best", "share": 0.5}
    for words in (["--candidates", "0,-1,1.5", "--share", "0.5"], ["--candidates", "0,", "-1,", "1.5", "--share=0.5"]):
        assert parse("x", call, words, Newer) == {"candidates": (0.0, -1.0, 1.5), "share": 0.5}
    assert parse("x", call, [], Newer) == {}
    with pytest.raises(SystemExit):
        parse("x", call, ["--help"], Newer)
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "what is tried (default: 0.0 1.0)" in text and "of three (default: best)" in text


def test_a_terminal_of_no_width_has_the_usual_one(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    with pytest.raises(SystemExit):
        parse("x", call, ["--help"], Newer)
    assert "what is tried" in capsys.readouterr().out


@dataclass
class Newer:
    candidates: tuple[float, ...] = (0.0, 1.0)
    """what is tried"""
    rule: str | Callable[[int], float] = "best"
    """of three"""
    share: float | None = None


# The commands


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[object, str]:
    """The status of `python -m rso_lib`, and what it says."""
    monkeypatch.setattr(sys, "argv", ["rso_lib", *words])
    status: object = 0
    try:
        __main__.main()
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_every_command_has_a_module_and_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    _, text = command(capsys, monkeypatch)
    for name, (_, what) in __main__.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", text, re.MULTILINE)
        status, text_of_one = command(capsys, monkeypatch, name, "--help")
        assert status == 0 and f"usage: python -m rso_lib {name}" in text_of_one
        status, said = command(capsys, monkeypatch, name, "somewhere", "--nosuch", "3")
        assert status == 2 and "--nosuch" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("runs/mine --cycles 3", "not 'runs/mine'. For a run: python -m rso_lib train runs/mine --cycles 3\n"),
        ("--preset smoke", "For a run: python -m rso_lib train --preset smoke\n"),
        ("trian runs/mine", "did you mean 'train'?\n"),
    ],
)
def test_another_command_is_an_error_that_says_the_new_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, says: str
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    status, said = command(capsys, monkeypatch, *words.split())
    assert status == 2 and said.endswith(says)


def test_a_run_and_what_it_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, *ONCE)
    out = capsys.readouterr().out
    history = History.load(tmp_path / "history.csv")
    best = max(history.cycles.rows, key=lambda row: row.val_accuracy)
    assert f"test accuracy, final               {history.last.test_accuracy:.4f}\n" in out
    assert f"test accuracy at best validation   {best.test_accuracy:.4f} (cycle {best.cycle})\n" in out
    assert f"seconds                            {history.last.seconds:.1f}\n" in out
    for again in ([], ONCE, ["--cycles", "2"]):
        call(tmp_path, *again)
        assert capsys.readouterr().out == out
    words = fails(capsys, tmp_path, "--cycles", 3, "--order", "input")
    assert f"{tmp_path} holds a run with other settings" in words
    assert "cycles is 2 there, not 3" in words and "order is 'output' there, not 'input'" in words
    assert "batch_size" not in words


def test_defaults_of_the_command_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On digits, which have fewer images than the paper's batch."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(runs, "start", lambda folder, **arguments: asked.update(arguments) or sys.exit())
    for dataset, batch_size in (("digits", 128), ("mnist", 5000)):
        with pytest.raises(SystemExit):
            call(tmp_path, *([] if dataset == "digits" else ["--dataset", dataset]))
        assert (asked["dataset"], asked["settings"].batch_size) == (dataset, batch_size)


def test_help_on_a_terminal_without_greek(project: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "cp1252"}
    words = [sys.executable, "-m", "rso_lib", "train", "--help"]
    done = subprocess.run(words, cwd=project, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"--threads" in done.stdout


def test_without_a_validation_part_there_is_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path, *ONCE, "--val-size", 0, "--cycles", 1)
    out = capsys.readouterr().out
    assert "final" in out and "best validation" not in out


def test_dashes_and_underscores_are_the_same(tmp_path: Path) -> None:
    call(tmp_path / "a", *ONCE, "--weight-decay", "1e-4", "--data-seed=3")
    call(tmp_path / "b", *ONCE, "--weight_decay=0.0001", "--data_seed", 3)
    assert settings(tmp_path / "a") == settings(tmp_path / "b")
    assert (settings(tmp_path / "a")["weight_decay"], settings(tmp_path / "a")["data_seed"]) == (1e-4, 3)
    with_underscore = tmp_path / "my_run"
    call(with_underscore, *ONCE)
    assert with_underscore.is_dir()


def test_every_setting_arrives(tmp_path: Path) -> None:
    asked = RSO(
        cycles=1, batch_size=100, schedule="cosine", distribution="template", order="shuffled", direction="forward"
    )
    asked = replace(asked, first_batch=50, level="layer", weight_decay=0.01, seed=5, cache="input")
    asked = replace(asked, candidates=(0.0, 2.0), rule="clear")
    values = {name: value if isinstance(value, list) else [value] for name, value in asked.to_dict().items()}
    words = [word for name, value in values.items() for word in (f"--{name}", *map(str, value))]
    call(tmp_path, "--net=one_conv", *words)
    assert {name: settings(tmp_path)[name] for name in asked.to_dict()} == asked.to_dict()


def test_a_preset_gives_values_that_others_override(tmp_path: Path) -> None:
    call(tmp_path, "--preset", "smoke", "--cycles", 1)
    smoke = presets.PRESETS["smoke"]
    assert settings(tmp_path).items() >= (smoke | {"cycles": 1}).items()
    call(tmp_path, "--preset", "smoke", "--cycles", 1)


def test_options_of_the_net(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    asked: dict[str, Any] = {}
    with monkeypatch.context() as patch:
        patch.setattr(runs, "start", lambda folder, **arguments: asked.update(arguments) or sys.exit())
        with pytest.raises(SystemExit):
            call(tmp_path, "--net", "cifar_net", "--net-options", "depth=3,head=mean,pool_last=True")
    assert asked["net_options"] == {"depth": 3, "head": "mean", "pool_last": True}
    words = fails(capsys, tmp_path, "--net", "mnist_net", "--net-options", "heat=mean")
    assert "did you mean 'head'" in words
    assert not list(tmp_path.iterdir())


def test_options_are_read_by_their_types() -> None:
    for truth, words in ((True, ("true", "yes", "True", "YES")), (False, ("false", "no", "False"))):
        for word in words:
            assert read_options("mnist_net", f"pool_last={word}, head=max") == {"pool_last": truth, "head": "max"}
    assert read_options("cifar_net", "depth=5,pool-last=no") == {"depth": 5, "pool_last": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pool_last=maybe", "pool_last of cifar_net must be true or false"),
        ("pool_last=2", "pool_last of cifar_net must be true or false"),
        ("depth=5.0", "depth of cifar_net must be a whole number, not 5.0"),
        ("depth=five", "depth of cifar_net must be a whole number, not 'five'"),
        ("depth=True", "depth of cifar_net must be a whole number, not True"),
        ("depth=3,depth=5", "net_options has depth twice"),
        ("pool_last=yes,pool-last=no", "net_options has pool_last twice"),
        ("depth=", "net_options must be names with values"),
        ("", "net_options must be names with values"),
        ("depth=3,", "net_options must be names with values"),
        ("pool_last", "net_options must be names with values, such as depth=5,head=mean, not 'pool_last'"),
        ("seed=3", "an option of cifar_net must be one of activation, depth, head, "),
        ("heat=mean", "did you mean 'head'"),
    ],
)
def test_options_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        read_options("cifar_net", text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cylces", "3"], "Perhaps you meant: --cycles"),
        (["--cycles", "many"], "Error parsing --cycles: invalid literal for int() with base 10: 'many'"),
        (["--cycles", "0"], "cycles must be at least 1, not 0"),
        (["--order", "inputs"], "did you mean 'input'"),
        (["--preset", "papers"], "preset must be one of smoke, laptop, paper, not 'papers'; did you mean 'paper'"),
        (["--dataset", "MNIST"], "dataset must be one of"),
        (["--data-seed", "-1"], "data_seed must be at least 0, not -1"),
        (["--net-options", "depth=3"], "an option of one_conv"),
        (["--threads", "999999"], "threads must be at most"),
        (["--dataset", "mnist", "--data-root", "NOWHERE"], "NOWHERE/MNIST/raw"),
        (["--batch-size", "5000"], "the training part of digits has 1294 images"),
        (["--dataset", "minst"], "did you mean 'mnist'"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
    ],
)
def test_errors_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    arguments = [str(tmp_path / "nowhere") if word == "NOWHERE" else word for word in arguments]
    said = " ".join(fails(capsys, tmp_path / "run", *arguments).replace("│", "").split())
    said = re.sub("─+ ", "", said)
    assert words.replace("NOWHERE", str(tmp_path / "nowhere")) in said
    assert "Traceback" not in said


def _no_network(*_: object) -> None:
    raise OSError("no network")


def test_an_interrupt_while_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.images, "load", interrupted)
    with pytest.raises(SystemExit) as ended:
        call(tmp_path / "run", *ONCE)
    assert ended.value.code == 130
    assert "stopped before the end" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&- <&-"])
def test_a_closed_terminal_does_not_end_the_run(tmp_path: Path, project: Path, closed: str) -> None:
    """Nor does what is meant for it get into a file of the run."""
    words = " ".join(["-m", "rso_lib", "train", str(tmp_path / "run"), *ONCE, "--cycles=1"])
    done = subprocess.run(f"{sys.executable} {words} {closed}", shell=True, cwd=project, check=False)
    assert done.returncode == 0
    assert runs.load(tmp_path / "run").finished


@pytest.mark.parametrize("name", ["", " ", "~/run"])
def test_the_name_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if name.strip():
        call(name, *ONCE, "--cycles=1")
        assert runs.load(tmp_path / "run").finished
    else:
        assert "RUNFOLDER must be the name of a folder, such as runs/mine" in fails(capsys, name, *ONCE)
        assert not list(tmp_path.iterdir())


def test_a_stray_rank_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    words = fails(capsys, tmp_path / "run", *ONCE)
    assert "RANK is set in the environment, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT" in words
    assert "torchrun" in words and "unset RANK" in words


def test_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        call(tmp_path, *ONCE, "--cycles", 1, "--threads", 2)
        assert json.loads((tmp_path / "settings.json").read_text())["machines"][0]["threads"] == 2
    finally:
        torch.set_num_threads(before)


def test_an_interrupt_ends_cleanly_and_the_command_goes_on(tmp_path: Path) -> None:
    arguments = [*ONCE[:-4], "--cycles", "8", "--batch_size", "400"]
    command = [sys.executable, "-m", "rso_lib", "train", str(tmp_path / "a"), *arguments]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    while not (tmp_path / "a" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=900)
    assert (process.returncode, out) == (130, "")
    assert f"stopped before the end; the same command goes on in {tmp_path / 'a'}" in err
    assert "Traceback" not in err
    rows = len(runs.load(tmp_path / "a").history.rows)
    assert 0 < rows < 8 * 5

    call(tmp_path / "a")
    call(tmp_path / "b", *arguments)
    run, other = runs.load(tmp_path / "a"), runs.load(tmp_path / "b")
    assert run.finished
    assert all(map(torch.equal, run.net.state_dict().values(), other.net.state_dict().values()))
    assert [replace(row, seconds=0.0) for row in run.history.cycles.rows] == [
        replace(row, seconds=0.0) for row in other.history.cycles.rows
    ]
