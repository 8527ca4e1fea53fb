"""Several processes on the loopback device: one run, whatever they share of it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.multiprocessing as mp
from oracle import images, narrow
from torch import Tensor

from rso_lib.engine import Visits, owners
from rso_lib.models import Block, Head, Net
from rso_lib.run import folder as runs
from rso_lib.run import processes as parallel
from rso_lib.run.processes import World, world
from rso_lib.settings import RSO
from rso_lib.train import ALONE, Alone, Position, Step, train

Outcome = tuple[list[Tensor], dict[str, Tensor], list[dict[str, Any]]]
"""The losses of the steps that a process made, its net's weights in the end, and its reports."""

RUNS: dict[str, tuple[str, RSO]] = {
    "neurons": ("skips", RSO(cycles=2, batch_size=10, strategy="neuron", order="shuffled")),
    "layers, compiled": ("wide", RSO(cycles=1, batch_size=10, strategy="layer")),
    "layers on a grid": ("grid", RSO(cycles=1, batch_size=10, strategy="layer", rule="parabola")),
    "layers": ("growing", RSO(cycles=2, batch_size=10, strategy="layer", weight_decay=0.01)),
}


def net_of(kind: str) -> tuple[Net, tuple[int, int, int]]:
    if kind == "wide":  # 16 channels, which the compiled kernels are for
        blocks = [Block(1, 16), Block(16, 16, pool="avg"), Block(16, 16)]
        return Net(blocks, Head(16, 3, pool="max"), seed=0).double(), (1, 4, 4)
    if kind == "grid":
        blocks = [Block(1, 4, activation="sign", levels=3), Block(4, 3, levels=4)]
        return Net(blocks, Head(3, 3, pool="max", levels=2), seed=0).double(), (1, 4, 4)
    return narrow(kind)


def outcome(name: str, processes: Alone = ALONE) -> Outcome:
    kind, settings = RUNS[name]
    net, shape = net_of(kind)
    losses, reports = [], []
    for item in train(net, images(26, shape), settings, steps=True, world=processes):
        if isinstance(item, Step):
            losses.append(item.losses)
        else:
            reports.append(vars(item))
    return losses, net.state_dict(), reports


def process(rank: int, folder: Path, ports: dict[int, int]) -> None:
    """What each of the processes does: the runs that it has a part in, and in the end the first two part badly."""
    torch.set_num_threads(1)
    for size, port in ports.items():
        if rank < size:
            meet(rank, size, port)
            for name in RUNS:
                torch.save(outcome(name, world), folder / f"{name} {rank} of {size}")
            if size == 2:
                leave_alone(rank, folder)
            parallel.leave()


def spawn(work: Callable[..., None], count: int, *arguments: Any, seconds: float = 900) -> None:
    """Run work(rank, *arguments) in some processes, which all end with this call. Raises what one of them raises."""
    ranks = mp.spawn(work, arguments, count, join=False)
    end = time.monotonic() + seconds
    try:
        while not ranks.join(timeout=1):
            assert time.monotonic() < end, f"some of {count} processes have not ended after {seconds} s"
    finally:
        for process in ranks.processes:
            process.kill()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def meet(rank: int, size: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    parallel.join()


def leave_alone(rank: int, folder: Path) -> None:
    """The second of two processes ends; what the first one says."""
    world.gather(torch.zeros(1))
    if not rank:
        try:
            world.gather(torch.zeros(1))
        except RuntimeError as error:
            (folder / "said").write_text(str(error))
    os._exit(0)  # torch sometimes aborts where Python ends behind a lost process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What some processes, started once, have left: first four that share the runs, then two of them."""
    folder = tmp_path_factory.mktemp("together")
    spawn(process, 4, folder, {4: free_port(), 2: free_port()})
    return folder


@pytest.fixture(params=[2, 4])
def together(request: pytest.FixtureRequest, made: Path) -> list[dict[str, Outcome]]:
    """All runs in some processes: what came out in each."""
    size = request.param
    return [{name: torch.load(made / f"{name} {rank} of {size}") for name in RUNS} for rank in range(size)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Outcome]:
    return {name: outcome(name) for name in RUNS}


def place() -> dict[str, str]:
    """Where processes meet."""
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


@pytest.mark.parametrize("name", RUNS)
def test_some_processes_make_the_decisions_of_one(
    name: str, together: list[dict[str, Outcome]], alone: dict[str, Outcome]
) -> None:
    losses, weights, reports = alone[name]
    for rank, outcomes in enumerate(together):
        _, copy, rows = outcomes[name]
        for key, weight in weights.items():
            if "running" not in key:
                assert torch.equal(copy[key], weight), f"{key} of process {rank}"
        for row, expected in zip(rows, reports, strict=True):
            assert [row[key] for key in ("layer", "kept", "plus")] == [expected[k] for k in ("layer", "kept", "plus")]
            if expected["layer"]:
                assert row["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-11)
    made = [loss.tolist() for outcomes in together for loss in outcomes[name][0]]
    assert sorted(made) == sorted(loss.tolist() for loss in losses)  # every step is made once
    assert sorted(len(outcomes[name][0]) for outcomes in together)[-2] > 0.1 * len(losses)  # some have no neuron


def test_two_bits_for_a_weight() -> None:
    for steps in (0, 1, 4, 7, 2304):
        choices = torch.randint(3, (steps,))
        packed = parallel.pack(choices, -(-steps // 4))
        assert packed.nbytes == -(-steps // 4)
        assert torch.equal(parallel.unpack(packed, steps).long(), choices)


def test_each_process_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **place()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="each process needs a GPU of its own, and this machine has 1"):
        parallel.join("cuda")


def test_a_process_waits_for_the_sweeps_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself gloo gives them half an hour."""
    met: dict[str, Any] = {}
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", **place()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, **options: met.update(options))
    assert parallel.join() == "cpu"
    assert met["timeout"].days >= 7


def test_a_process_that_is_gone_is_noticed(made: Path) -> None:
    """Not after 30 days, for which the sweeps of another one are waited for."""
    assert (made / "said").read_text().startswith("process 0 lost another process of the run")


def test_strategies_need_a_net_of_blocks_and_whole_sweeps() -> None:
    net, shape = narrow("flat")
    settings = RSO(cycles=1, batch_size=8, strategy="layer")
    with pytest.raises(ValueError, match='strategy="sequential"'):
        next(train(torch.nn.Flatten(), images(26, shape), settings))
    with pytest.raises(ValueError, match="within a sweep"):
        next(train(net, images(26, shape), settings, begun=[Step(Position(), "", 0, *torch.zeros(3))] * 3))


def test_sequential_steps_are_not_shared() -> None:
    net, shape = narrow("flat")
    with pytest.raises(ValueError, match=r'2 processes cannot share sequential steps.*set strategy to "neuron"'):
        next(train(net, images(26, shape), RSO(cycles=1, batch_size=8), world=World(size=2)))


def test_the_first_layer_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _ = narrow("folded")
    names = [name for name, _ in net.named_parameters()]
    strange = names[3:5]

    def gather(hashes: list[Any], own: dict[str, str]) -> None:
        hashes[:] = [own, {name: "another" if name in strange else digest for name, digest in own.items()}]

    monkeypatch.setattr(parallel.dist, "all_gather_object", gather)
    world.agree(net)  # one process has nobody to differ from
    monkeypatch.setattr(world, "size", 2)
    with pytest.raises(RuntimeError, match=f"^{re.escape(names[3])} of process 1 differs from that of process 0"):
        world.agree(net)
    strange.clear()
    world.agree(net)


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_a_process_has_its_own_slices(processes: int) -> None:
    """Of three, as long as they go round; where there are more processes, all of them have steps."""
    visits = Visits("conv.weight", 4, torch.randperm(36), torch.zeros(36), offset=5)
    found = owners("layer", visits, 3, processes)
    assert set(found.tolist()) == set(range(processes))
    slices = [(5 + t) % 3 for t in range(36)]
    owned = {(s, owner) for s, owner in zip(slices, found.tolist(), strict=True)}
    assert len(owned) == (3 if processes <= 3 else 12)


# The command


def start(folder: Path, processes: int, project: Path, *more: str) -> "subprocess.Popen[str]":
    """Some processes that train on digits."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += [f"--master-port={free_port()}", "-m", "rso_lib", "train", str(folder), *more]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=project, env=env, text=True, stdout=pipe, stderr=pipe)


SMALL = ["--net=two_conv", "--cycles=2", "--batch-size=128", "--strategy=neuron"]


def test_a_process_that_dies_ends_the_others_and_another_number_goes_on(tmp_path: Path, project: Path) -> None:
    """As a user would: torchrun, kill one, start again with three; the bits are those of one process."""
    command = start(tmp_path / "run", 2, project, *SMALL)
    wait((tmp_path / "run" / "checkpoint.pt").exists)
    workers = [child for child in psutil.Process(command.pid).children() if "rso_lib" in child.cmdline()]
    victim = next(worker for worker in workers if worker.environ()["RANK"] == "1")
    victim.send_signal(signal.SIGKILL)
    _, errors = command.communicate(timeout=900)
    assert command.returncode != 0
    assert re.search(r"rank\s*: 1 ", errors) and "SIGKILL" in errors, errors
    assert not any(worker.is_running() for worker in workers)

    done = runs.load(tmp_path / "run").history
    assert 0 < len(done.cycles.rows) + len(done.rows) < len(runs_alone(tmp_path).history.rows)
    more = start(tmp_path / "run", 3, project)
    said, errors = more.communicate(timeout=900)
    assert more.returncode == 0, errors
    assert "test accuracy, final" in said
    there, alone = runs.load(tmp_path / "run"), runs_alone(tmp_path)
    for (name, weight), (_, expected) in zip(there.net.named_parameters(), alone.net.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name
    assert [row.kept for row in there.history.rows] == [row.kept for row in alone.history.rows]
    last = there.history.last
    assert 0.1 < last.bytes_sent / last.steps < 1


def runs_alone(folder: Path) -> runs.Run:
    settings = RSO(cycles=2, batch_size=128, strategy="neuron")
    torch.set_num_threads(1)
    return runs.start(folder / "alone", dataset="digits", net="two_conv", settings=settings, progress=False)


def variants(folder: Path, project: Path, *more: list[str]) -> list[tuple[int, str]]:
    """Start a process for each list of arguments, as torchrun would, and end none: status and words of each."""
    commands = []
    env = os.environ | {"OMP_NUM_THREADS": "1", "WORLD_SIZE": str(len(more)), **place()}
    for rank, words in enumerate(more):
        command = [sys.executable, "-m", "rso_lib", "train", str(folder), *SMALL, *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        commands.append(subprocess.Popen(command, cwd=project, env=env | {"RANK": str(rank)}, **pipes))
    try:
        said = [command.communicate(timeout=120)[1] for command in commands]
    finally:
        for command in commands:
            command.kill()
    return [(command.returncode, words) for command, words in zip(commands, said, strict=True)]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--data-seed=1", "data_seed is 1 in process 1, not 0 as in process 0"),
        ("--order=input", "order is 'input' in process 1, not 'output' as in process 0"),
        ("--dataset=folder:NOWHERE", "process 1 cannot take part, and the run does not begin: FileNotFoundError"),
    ],
)
def test_processes_that_disagree_end_with_what_differs(
    tmp_path: Path, project: Path, argument: str, words: str
) -> None:
    (zero, said), (one, also) = variants(tmp_path / "run", project, [], [argument])
    assert (zero, one) == (2, 2), said + also
    assert words in said
    assert words.rpartition(": ")[2].removeprefix("FileNotFoundError") in also
    assert not (tmp_path / "run").exists()


def test_what_processes_must_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, types, and what the functions among the settings do; they tell each other of what they compare."""
    net, shape = narrow("flat")
    data = images(26, shape)
    mine = runs._traits(net, data, RSO(cycles=3))
    assert mine.keys() >= {"engine", "code", "torch", "dtype", "kernels", "device"}
    assert runs._traits(net.double(), data, RSO(cycles=3))["dtype"] == "torch.float64"
    for name, value in {
        "schedule": lambda cycle, cycles: 0.5,
        "distribution": lambda shape, rng: torch.ones(shape),
    }.items():
        theirs = runs._traits(net, data, RSO(cycles=3, **{name: value}))
        monkeypatch.setattr(world, "size", 2)
        monkeypatch.setattr(world, "everyone", lambda value, theirs=theirs: [value, theirs])
        with pytest.raises(ValueError, match=f"{name}'s .* in process 1, not .* as in process 0"):
            world.compare(runs._traits(net, data, RSO(cycles=3)))


def test_nothing_is_saved_that_processes_do_not_agree_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = []

    def agree(net: torch.nn.Module) -> None:
        agreed.append(net)
        if len(agreed) == 3:
            raise RuntimeError("block1 of process 1 differs")

    monkeypatch.setattr(world, "agree", agree)
    with pytest.raises(RuntimeError, match="differs"):
        runs_alone(tmp_path)
    assert len(runs.load(tmp_path / "alone").history.rows) == 2


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", **place()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(parallel, "MEETING", timedelta(seconds=1))
    store = torch.distributed.HashStore()
    monkeypatch.setattr(parallel.dist, "rendezvous", lambda *_, **__: iter([(store, 0, 3)]))
    with pytest.raises(RuntimeError, match="of 3 processes these did not come within 0:00:01: 1, 2"):
        parallel.join()


def wait(condition: Any, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
