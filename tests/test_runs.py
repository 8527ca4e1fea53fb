"""A run in a folder: killed, resumed, refused, read back."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rso_lib import RSO, Data, History, evaluate, load, models
from rso_lib.engine import memory
from rso_lib.history import Report
from rso_lib.models import Block, Head, Net
from rso_lib.passes import calibrate
from rso_lib.run import checkpoint, provenance
from rso_lib.run import folder as runs
from rso_lib.run.files import alone
from rso_lib.run.folder import Run

SETTINGS = RSO(cycles=5, batch_size=200, seed=3)


def tiny(shape: tuple[int, int, int], classes: int, *, seed: int = 0, width: int = 2, pool_last: bool = False) -> Net:
    """A net with batch norm, a skip and few weights."""
    blocks = (
        Block(shape[0], width, pool="avg", pool_last=pool_last, skip="open"),
        Block(width, width, skip="close", closes=width),
    )
    return Net(blocks, Head(width, classes, pool="mean"), seed)


runs.NETS["tiny"] = tiny


def begin(folder: Path, settings: RSO = SETTINGS, **other: Any) -> Run:
    return runs.start(folder, **{"dataset": "digits", "net": "tiny", "progress": False, **other}, settings=settings)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return begin(tmp_path_factory.mktemp("runs") / "unbroken")


def bits(run: Run) -> dict[str, bytes]:
    """Weights and batch-norm statistics; not the number of batches that batch norm has seen, which nothing reads."""
    state = run.net.state_dict()
    return {name: value.numpy().tobytes() for name, value in state.items() if not name.endswith("batches_tracked")}


def facts(history: History) -> list[str]:
    """The rows without the time, as text, so that NaN equals NaN."""
    return [repr(replace(row, seconds=0)) for row in history.rows]


def assert_same(run: Run, other: Run) -> None:
    assert facts(run.history) == facts(other.history)
    assert bits(run) == bits(other)


@contextlib.contextmanager
def stopping_after(reports: int, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> Iterator[None]:
    """Raise in the first step behind the given number of reports."""
    train = runs.train

    def stopped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        seen = 0
        for item in train(*args, **kwargs):
            yield item
            seen += isinstance(item, Report)
            if seen >= reports and not isinstance(item, Report):
                raise error

    with monkeypatch.context() as patch:
        patch.setattr(runs, "train", stopped)
        yield


def test_the_folder_holds_what_was_run(unbroken: Run) -> None:
    assert unbroken.finished
    assert len(unbroken.history.cycles.rows) == 5
    assert (unbroken.settings["net"], unbroken.settings["batch_size"], unbroken.settings["seed"]) == ("tiny", 200, 3)
    assert_same(runs.load(unbroken.folder), unbroken)
    assert facts(History.load(unbroken.folder / "history.csv")) == facts(unbroken.history)
    data = load("digits")
    calibrate(unbroken.net, data.train.images)
    assert evaluate(unbroken.net, data.test)[1] == unbroken.history.last.test_accuracy


KILLED = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
from test_runs import Path, begin, load, runs
load("digits")  # imports what is needed once, for all children
folder, rows = Path({folder!r}), []
checkpoint = folder / "checkpoint.pt"
saved = lambda: checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
for kill in range(5):
    before = saved()
    child = os.fork()
    if not child:
        begin(folder)
        os._exit(0)
    while kill and saved() == before:  # the first may die before it has saved anything, the others go on for a bit
        assert not os.waitpid(child, os.WNOHANG)[0], "it has ended"
        time.sleep(0.001)
    time.sleep(random.uniform(0, {limit}))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it had ended"
    rows.append(len(runs.load(folder).history.rows) if saved() else 0)
print(*rows)
"""


def test_killed_at_five_random_moments_it_ends_with_the_same_bits(unbroken: Run, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    first, *_, last = unbroken.history.cycles.rows  # the first cycle holds what is done once, such as compiling
    limit = (last.seconds - first.seconds) / 12
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), limit=limit)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = list(map(int, done.stdout.split()))
    assert rows == sorted(rows)
    assert 3 <= rows[-1] < len(unbroken.history.rows)
    assert_same(begin(folder), unbroken)


@pytest.mark.parametrize("files", range(3))
def test_killed_between_its_first_files_it_ends_with_the_same_bits(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    written = []

    def write(part: Path, path: Path) -> None:
        if len(written) == files:
            raise KeyboardInterrupt
        written.append(part.rename(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", write)
        with contextlib.suppress(KeyboardInterrupt), warnings.catch_warnings(action="ignore"):
            begin(tmp_path)
    assert len(written) == files
    assert_same(begin(tmp_path), unbroken)


def test_stopped_after_every_sweep_it_ends_with_the_same_bits(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in unbroken.history.rows[:-2]:
        if not row.is_cycle:
            with stopping_after(1, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="same command"):
                run = begin(tmp_path)
            assert [r.layer for r in run.history.rows if not r.is_cycle][-1] == row.layer
            assert not run.finished
    assert len(run.history.rows) == 38
    assert_same(begin(tmp_path), unbroken)


def test_a_run_stopped_within_a_cycle_has_a_net_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopping_after(14, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        run = begin(tmp_path)
    data = load("digits")
    scored = evaluate(run.net, data.test)
    calibrate(run.net, data.train.images)
    assert evaluate(run.net, data.test) == scored


def test_resume_takes_the_settings_of_the_folder(unbroken: Run, tmp_path: Path, monkeypatch: Any) -> None:
    with stopping_after(11, monkeypatch, RuntimeError), pytest.raises(RuntimeError):
        begin(tmp_path)
    assert_same(runs.resume(tmp_path, progress=False), unbroken)


def test_a_finished_run_is_only_read(unbroken: Run) -> None:
    before = files(unbroken.folder)
    assert_same(begin(unbroken.folder), unbroken)
    assert files(unbroken.folder) == before


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def copy(unbroken: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unbroken.folder, tmp_path / "copy"))


def refused(folder: Path, error: type[Exception], *words: str, settings: RSO = SETTINGS, **other: Any) -> None:
    """Assert that the run is refused with these words, and that every file stays as it is."""
    before = files(folder)
    with pytest.raises(error) as caught:
        begin(folder, settings, **other)
    assert [word for word in words if word not in str(caught.value)] == []
    assert files(folder) == before


def test_other_settings_are_refused_with_the_difference(copy: Path) -> None:
    other = replace(SETTINGS, cycles=6, order="input")
    refused(
        copy, ValueError, str(copy), "cycles is 5 there, not 6", "order is 'output' there, not 'input'", settings=other
    )
    refused(copy, ValueError, "net is 'tiny' there, not 'one_conv'", net="one_conv")
    refused(copy, ValueError, "net_options is {} there, not {'width': 3}", net_options={"width": 3})
    refused(copy, ValueError, "val_size is None there, not 9", "train is 1294 there, not 1428", val_size=9)


class Trap:
    """Whose unpickling leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_foreign_files_are_named_and_kept(copy: Path, tmp_path: Path) -> None:
    path = copy / "checkpoint.pt"
    for foreign in ({"weights": torch.zeros(3)}, [1, 2]):
        torch.save(foreign, path)
        refused(copy, ValueError, str(path), "not a checkpoint of a run")
    path.write_text("a letter")
    refused(copy, ValueError, str(path))
    torch.save(Trap(tmp_path / "trace"), path)
    refused(copy, ValueError, str(path))
    assert not (tmp_path / "trace").exists()

    (copy / "settings.json").write_text("[]")
    refused(copy, ValueError, str(copy / "settings.json"), "not the settings of a run")
    (copy / "settings.json").unlink()
    refused(copy, ValueError, str(path), "belongs to no run")
    with pytest.raises(FileNotFoundError, match="holds no run"):
        runs.load(copy)


def test_the_checkpoint_of_another_run_is_refused(copy: Path, tmp_path: Path) -> None:
    other = begin(tmp_path / "other", replace(SETTINGS, cycles=1, seed=4))
    shutil.copy(other.folder / "checkpoint.pt", copy)
    refused(copy, ValueError, str(copy / "checkpoint.pt"), "seed is 4 there, not 3", "cycles is 1 there, not 5")


def test_a_full_disk_leaves_the_last_checkpoint(unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource", reason="no limit on a file's size")
    with stopping_after(3, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        begin(tmp_path)
    checkpoint = (tmp_path / "checkpoint.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(checkpoint) // 2, hard))
    try:
        full = pytest.warns(UserWarning, match="the run goes on, and saves again after the next sweep")
        with full, pytest.raises(OSError, match=r"checkpoint.pt cannot be written \(File too large\)"):
            begin(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "checkpoint.pt").read_bytes() == checkpoint
    assert not list(tmp_path.glob("*.part"))
    assert_same(begin(tmp_path), unbroken)


def test_the_history_is_copied_once_a_cycle_and_at_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied, settings = [], replace(SETTINGS, cycles=2)
    save = History.save

    def counted(history: History, path: Path) -> None:
        copied.append(len(history.rows))
        save(history, path)

    monkeypatch.setattr(History, "save", counted)
    with stopping_after(3, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        run = begin(tmp_path, settings)
    assert copied == [3]
    assert facts(History.load(tmp_path / "history.csv")) == facts(run.history)
    begin(tmp_path, settings)
    assert copied == [3, 8, 16]


def test_a_history_that_cannot_be_replaced_does_not_end_the_run(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, while another program reads it."""
    replaced = os.replace

    def in_use(part: Path, path: Path) -> None:
        if path.name == "history.csv":
            raise PermissionError(13, "Permission denied")
        replaced(part, path)

    monkeypatch.setattr(os, "replace", in_use)
    with pytest.warns(UserWarning, match=r"history.csv cannot be written \(Permission denied\)"):
        run = begin(tmp_path)
    assert_same(run, unbroken)


def test_what_a_killed_writer_leaves_behind_is_ignored(copy: Path, unbroken: Run) -> None:
    """A half-written new file beside the old one, and a history that is one sweep behind its checkpoint."""
    rows = (copy / "history.csv").read_text().splitlines(keepends=True)
    (copy / "history.csv").write_text("".join(rows[:-3]))
    (copy / "checkpoint.pt.part").write_bytes(b"half")
    (copy / "history.csv.part").write_bytes(b"half")
    assert_same(begin(copy), unbroken)
    assert facts(History.load(copy / "history.csv")) == facts(unbroken.history)


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopping_after(3, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        begin(tmp_path)
    with alone(tmp_path):
        refused(tmp_path, RuntimeError, str(tmp_path), "another process")
        assert len(runs.load(tmp_path).history.rows) == 3  # reading needs no lock
    begin(tmp_path)


def test_another_machine_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stopping_after(1, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        begin(tmp_path)
    monkeypatch.setattr(torch, "__version__", "1.0")
    monkeypatch.setattr(provenance, "ENGINE", 2)
    changes = r"(?s)on another machine.*\n  engine is 1 there, not 2\n  torch is '.*' there, not '1.0'"
    with pytest.warns(UserWarning, match=changes):
        begin(tmp_path)
    machines = json.loads((tmp_path / "settings.json").read_text())["machines"]
    assert [(machine["torch"] == "1.0", machine["engine"]) for machine in machines] == [(False, 1), (True, 2)]
    assert machines[0]["threads"] == 1 and machines[0]["device"]
    assert all(machine[name] for machine in machines for name in ("code", "kernels_cpp", "rso_lib"))


def half(cycle: int, cycles: int) -> float:
    return 0.5


def test_a_named_function_is_told_from_others(tmp_path: Path) -> None:
    settings = replace(SETTINGS, cycles=1, schedule=half)
    assert begin(tmp_path, settings).settings["schedule"] == "half"
    assert begin(tmp_path, settings).finished
    refused(tmp_path, ValueError, "schedule is 'half' there, not 'linear'", settings=replace(SETTINGS, cycles=1))


def test_a_function_is_asked_for_where_only_its_name_is_known(tmp_path: Path) -> None:
    run = begin(tmp_path, replace(SETTINGS, cycles=1, schedule=half))
    for act in (lambda: run.rso, lambda: runs.resume(tmp_path)):
        with pytest.raises(ValueError, match=r"the schedule of this run is a function, half, .* call start with it"):
            act()


def test_the_bar_counts_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    steps = 5 * models.count_weights(tiny((1, 8, 8), 10))
    with stopping_after(9, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        begin(tmp_path, progress=True)
    capfd.readouterr()
    begin(tmp_path, progress=True)
    bar = re.findall(rf"(\d+)/{steps} \[(?:.*?)<", capfd.readouterr().err)
    assert int(bar[0]) == steps // 5 + 20  # a cycle and the final layer were done before
    assert int(bar[-1]) == steps


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"net": "mnist_nett"}, "did you mean 'mnist_net'"),
        ({"net": "mnist_net", "net_options": {"heads": "mean"}}, "an option of mnist_net .* did you mean 'head'"),
        ({"dataset": "digit"}, "did you mean 'digits'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"settings": replace(SETTINGS, batch_size=1295)}, "set batch_size to at most 1294"),
        ({"settings": replace(SETTINGS, schedule=lambda cycle, cycles: 1.0)}, "schedule must be .* write it with def"),
        ({"settings": replace(SETTINGS, distribution=partial(torch.full, fill_value=1.0))}, "distribution must be "),
    ],
)
def test_wrong_arguments_leave_no_folder_behind(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        begin(tmp_path / "run", **other)
    assert not (tmp_path / "run").exists()


def test_a_run_without_memory_leaves_no_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is there is read where it would not fit."""
    done = begin(tmp_path / "done", replace(SETTINGS, cycles=1))
    monkeypatch.setattr(memory, "available", lambda device: 0)
    with pytest.raises(MemoryError, match="a smaller batch_size"):
        begin(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert_same(begin(done.folder, replace(SETTINGS, cycles=1)), done)


# Half a folder


def test_a_history_without_its_checkpoint_is_not_written_over(copy: Path) -> None:
    (copy / "checkpoint.pt").unlink()
    refused(copy, ValueError, "checkpoint.pt is gone", "has 40 rows of the run", "move history.csv away")
    with pytest.raises(ValueError, match=r"checkpoint.pt is gone"):
        runs.load(copy)


@pytest.mark.parametrize("name", ["settings.json", "checkpoint.pt", "history.csv"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_file_is_an_error_or_is_made_whole(copy: Path, unbroken: Run, name: str, share: float) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    if name == "history.csv":  # a copy
        assert_same(begin(copy), unbroken)
        assert facts(History.load(path)) == facts(unbroken.history)
    else:
        refused(copy, ValueError, str(path), "torn", "move the folder away")
        with pytest.raises(ValueError, match=re.escape(str(path))):
            runs.load(copy)


def test_a_flipped_byte_is_an_error_or_changes_nothing(copy: Path, unbroken: Run) -> None:
    for name, step in (("checkpoint.pt", 97), ("settings.json", 13)):
        path = copy / name
        whole = path.read_bytes()
        for place in range(0, len(whole), step):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
            try:
                run = runs.load(copy)
            except (ValueError, TypeError) as error:
                assert str(error)
            else:
                assert_same(run, unbroken)
        path.write_bytes(whole)


def change_checkpoint(folder: Path, **parts: Any) -> None:
    content = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save({**content, **parts}, folder / "checkpoint.pt")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PAUSES", (0, 0))


def test_other_images_of_the_same_name_are_refused(copy: Path) -> None:
    about = copy / "settings.json"
    about.write_text(about.read_text().replace("0.3059", "0.3058"))
    refused(copy, ValueError, "mean is [0.3058] there, not [0.3059]")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_checkpoint_is_named_and_kept(copy: Path, share: float) -> None:
    path = copy / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(copy, ValueError, str(path), "torn", "move the folder away")
    with pytest.raises(ValueError, match=re.escape(str(path))):
        runs.load(copy)


def test_a_flipped_bit_is_noticed(copy: Path) -> None:
    path = copy / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    weights = runs.load(copy).net.block2.conv.weight.detach().numpy().tobytes()
    content[content.index(weights) + 5] ^= 1
    path.write_bytes(content)
    refused(copy, ValueError, str(path), "checksums")


def test_a_run_from_before_a_setting_was_added_goes_on(copy: Path) -> None:
    about = copy / "settings.json"
    content = json.loads(about.read_text())
    assert content["settings"].pop("direction") == RSO().direction
    about.write_text(json.dumps(content))
    assert begin(copy).finished
    refused(copy, ValueError, "direction is 'backward' there", settings=replace(SETTINGS, direction="forward"))


def test_an_older_checkpoint_beside_a_newer_history_is_refused(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopping_after(3, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        begin(tmp_path)
    shutil.copy(unbroken.folder / "history.csv", tmp_path)
    refused(tmp_path, ValueError, "has 40 rows", "is an older one of 3", "move history.csv away")


def test_a_foreign_history_is_named_and_kept(copy: Path) -> None:
    (copy / "history.csv").write_text("when,what\n1066,a battle\n")
    refused(copy, ValueError, str(copy / "history.csv"), "no history of a run", "move it away")


@pytest.mark.parametrize("name", ["settings.json", "checkpoint.pt", "history.csv", "lock", "checkpoint.pt.part"])
def test_a_folder_in_a_files_place_is_named(copy: Path, name: str, tmp_path: Path) -> None:
    for folder in (copy, tmp_path / "new"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)
        if folder == copy and name == "lock":
            continue  # a finished run is only read
        with pytest.raises(ValueError, match=f"{re.escape(str(folder / name))} is not a file.*move it"):
            begin(folder)
        assert (folder / name).is_dir() and not (tmp_path / "new" / "checkpoint.pt").is_file()


def test_weights_that_do_not_fit_are_refused(copy: Path, unbroken: Run) -> None:
    state = {name: value.clone() for name, value in unbroken.net.state_dict().items()}
    first = state["block1.conv.weight"]
    broken = {
        "not finite": first / 0,
        "[2, 1, 3, 4]": torch.zeros(2, 1, 3, 4),
        "torch.float64": first.double(),
        "is missing": None,
    }
    for words, weight in broken.items():
        other = {**state, "block1.conv.weight": weight} if weight is not None else {"head.linear.weight": first}
        change_checkpoint(copy, net=other)
        refused(copy, ValueError, str(copy / "checkpoint.pt"), "block1.conv.weight", words)
    change_checkpoint(copy, net=state, history=[{"cycle": 1}])
    refused(copy, ValueError, str(copy / "checkpoint.pt"), "does not fit the run")
    change_checkpoint(copy, net=[1])
    refused(copy, ValueError, str(copy / "checkpoint.pt"), "is not a checkpoint")


def edit_settings(folder: Path, change: Any) -> None:
    content = json.loads((folder / "settings.json").read_text())
    change(content)
    (folder / "settings.json").write_text(json.dumps(content))


def test_the_folder_of_a_newer_version_is_refused(copy: Path) -> None:
    change_checkpoint(copy, format="rso_lib run 2")
    refused(copy, ValueError, str(copy / "checkpoint.pt"), "newer rso_lib (as 'rso_lib run 2'")
    edit_settings(copy, lambda content: content.update(format="rso_lib run 12"))
    refused(copy, ValueError, str(copy / "settings.json"), "newer rso_lib (as 'rso_lib run 12'")
    edit_settings(copy, lambda content: content.update(format="rso_lib run 1"))
    edit_settings(copy, lambda content: content["settings"].update(parabola=True))
    refused(copy, ValueError, "does not know, parabola", "update rso_lib")


@pytest.mark.parametrize("part", ["settings", "data", "machines", "format"])
def test_settings_without_a_part_are_refused(copy: Path, part: str) -> None:
    edit_settings(copy, lambda content: content.pop(part))
    refused(copy, ValueError, str(copy / "settings.json"), "not the settings of a run")


@pytest.mark.parametrize("act", [begin, runs.resume, runs.load, runs.settings_of])
def test_the_name_of_a_folder(act: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: Run) -> None:
    monkeypatch.setenv("HOME", str(unbroken.folder.parent))
    monkeypatch.chdir(tmp_path)
    act("~/unbroken")
    for empty in ("", " "):
        with pytest.raises(ValueError, match="folder must be the name of a folder, such as runs/mine"):
            act(empty)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file, and folder must be the name of a folder"):
        act(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot be written .*choose another folder"):
        begin(tmp_path / "file" / "run")
    with pytest.raises(OSError, match=r"/proc/\w+ cannot be written .*choose another folder"):
        begin(Path("/proc/run"))


def test_a_checkpoint_that_is_locked_for_a_moment(
    unbroken: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in a row it is tried again; where that fails too, the run goes on to the next sweep."""
    replaced, tries = os.replace, []

    def locked(part: Path, path: Path) -> None:
        if path.name == "checkpoint.pt":
            tries.append(path)
            if len(tries) in (1, 2, 7, 8, 9):
                raise PermissionError(13, "Permission denied")
        replaced(part, path)

    monkeypatch.setattr(os, "replace", locked)
    with pytest.warns(UserWarning, match=r"Permission denied.*the run goes on, and saves again") as warned:
        run = begin(tmp_path)
    assert len(warned) == 1
    assert_same(run, unbroken)
    assert_same(runs.load(tmp_path), unbroken)


# Images and engines that change under a run


def pictures(folder: Path, names: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    """Six images of 4×4 of each class, for training and for tests."""
    for seed, part in enumerate(("train", "test")):
        rng = torch.Generator().manual_seed(seed)
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for k in range(6):
                pixels = torch.randint(256, (8, 8), generator=rng, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / part / name / f"{k}.png")
    return folder


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run on pictures that was stopped."""
    pictures(tmp_path / "pictures")
    with stopping_after(3, monkeypatch, KeyboardInterrupt), pytest.warns(UserWarning, match="stopped"):
        begin(tmp_path / "run", replace(SETTINGS, batch_size=8), dataset=f"folder:{tmp_path / 'pictures'}")
    return tmp_path / "run"


def rename(pictures: Path) -> None:
    for part in ("train", "test"):
        (pictures / part / "cat").rename(pictures / part / "zebra")


def exchange(pictures: Path) -> None:
    for place, name in ((0, "dog"), (1, "emu")):
        (pictures / "train" / name / "0.png").rename(pictures / f"{place}.png")
    (pictures / "0.png").rename(pictures / "train" / "emu" / "0.png")
    (pictures / "1.png").rename(pictures / "train" / "dog" / "0.png")


def paint(pictures: Path) -> None:
    path = pictures / "test" / "emu" / "3.png"
    with Image.open(path) as image:
        image.putpixel((2, 3), image.getpixel((2, 3)) ^ 1)
        image.save(path)


def lose(pictures: Path) -> None:
    (pictures / "train" / "cat" / "5.png").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rename, "class_names is ['cat', 'dog', 'emu'] there, not ['dog', 'emu', 'zebra']"),
        (exchange, "pixels is '"),
        (paint, "pixels is '"),
        (lose, "train is 17 there, not 16"),
    ],
)
def test_images_that_changed_under_a_run(interrupted: Path, change: Any, words: str) -> None:
    change(interrupted.parent / "pictures")
    before = files(interrupted)
    for act in (lambda: runs.resume(interrupted, progress=False), lambda: runs.load(interrupted).data()):
        with pytest.raises(ValueError, match=r"images are not those that the run in .* began with") as caught:
            act()
        assert words in str(caught.value)
    assert files(interrupted) == before


@pytest.mark.parametrize("by", ["resume", "start"])
def test_images_that_moved_as_a_whole_are_the_same(interrupted: Path, tmp_path: Path, by: str) -> None:
    """Settings and checkpoint then name the new folder; a folder of other images stays refused."""
    there = (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    moved, settings = f"folder:{there}", replace(SETTINGS, batch_size=8)
    with pytest.raises(FileNotFoundError, match=r"pictures/train is missing"):
        runs.resume(interrupted, progress=False)
    other = shutil.copytree(there, tmp_path / "other")
    paint(Path(other))
    refused(interrupted, ValueError, "dataset is", "pixels is", settings=settings, dataset=f"folder:{other}")
    refused(interrupted, ValueError, "dataset is", "not 'digits'", settings=settings)
    if by == "resume":
        run = runs.resume(interrupted, dataset=moved, progress=False)
    else:
        run = begin(interrupted, settings, dataset=moved)
    assert run.finished and run.settings["dataset"] == moved and len(run.data().train) == 17
    assert runs.resume(interrupted, progress=False).finished
    assert_same(run, begin(tmp_path / "unbroken", settings, dataset=moved))


def test_the_digest_is_of_the_pixels_as_they_were_read() -> None:
    """It does not depend on how they are standardised, and one pixel of 256 levels counts."""
    data = load("digits")
    again = replace(
        data,
        train=replace(data.train, images=data.train.images * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)),
        val=replace(data.val, images=data.val.images * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)),
        test=replace(data.test, images=data.test.images * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)),
        mean=torch.zeros(1),
        std=torch.ones(1),
    )
    assert provenance._pixels(again) == provenance._pixels(data)
    again.test.images[-1, 0, 3, 3] += 1 / 255
    assert provenance._pixels(again) != provenance._pixels(data)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e18])
def test_the_digest_tells_tables_of_small_and_of_huge_numbers_apart(unit: float, standardise: bool) -> None:
    columns, labels = torch.randn(20, 2, dtype=torch.float64) * unit, torch.arange(20) % 2
    one, again, other = (
        provenance.facts(Data.from_tensors(columns[:, [k]].clone(), labels, standardise=standardise)) for k in (0, 0, 1)
    )
    assert one == again
    assert one["values"] != other["values"]
    assert "values" not in provenance.facts(load("digits"))


def test_the_commit_of_a_clone(tmp_path: Path) -> None:
    """Not that of a clone around the library, and none where git finds none."""
    assert provenance.commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b@c"]
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert provenance.commit(tmp_path) is None
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=first"], check=True)
    found = provenance.commit(tmp_path)
    assert found and (tmp_path / ".git" / "refs" / "heads").is_dir() and re.fullmatch(r"[0-9a-f]{12}", found)
    (tmp_path / "installed").mkdir()
    assert provenance.commit(tmp_path / "installed") is None


# Options of nets


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        ("mnist_net", {"pool_last": "no"}, "pool_last of mnist_net must be true or false, not 'no'"),
        ("cifar_net", {"depth": 5.0}, "depth of cifar_net must be a whole number, not 5.0"),
        ("mnist_net", {"head": None}, "head of mnist_net must be a word, not None"),
    ],
)
def test_an_option_of_another_type_is_refused(tmp_path: Path, net: str, options: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        begin(tmp_path / "run", net=net, net_options=options)
    assert not (tmp_path / "run").exists()


def test_options_that_are_no_table_are_named(copy: Path, tmp_path: Path) -> None:
    edit_settings(copy, lambda content: content["settings"].update(net_options="levels=3"))
    acts = (runs.load, runs.resume, lambda _: begin(tmp_path / "run", net_options="levels=3"))
    for act in acts:
        with pytest.raises(TypeError, match=r"net_options must be a table such as {'levels': 3}, not 'levels=3'"):
            act(copy)


def test_every_net_of_the_table_starts_and_loads(tmp_path: Path) -> None:
    for name in ("one_conv", "two_conv", "mnist_net", "cifar_net"):
        net = runs.build_net(name, (1, 8, 8), 10, seed=1)
        again = getattr(models, name)(shape=(1, 8, 8), classes=10, seed=1)
        assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
    assert len(runs.build_net("cifar_net", (3, 32, 32), 10, seed=0, depth=3)) == 3
