"""A run on disk: a folder that is written as the run goes, and from which it is taken up again.

    settings.json   what is run, and the machines that it ran on
    checkpoint.pt   the net and the history behind the last finished sweep, and the weights of the best cycle
    history.csv     a copy of that history to read and plot, made at the end of every cycle and at a stop
    lock            held by the process that runs in the folder

Every draw of a run comes from a generator that is seeded by where in the run it is used (`proposals`), so
the net and the history are all that is needed to go on. They are in one file, which is replaced as a whole:
whenever a run is killed, it goes on behind the last finished sweep and ends with the same bits.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import data as images
from ..algorithm import Loss
from ..checks import check_run
from ..data import Data
from ..fit import with_bar
from ..history import History, read_row
from ..losses import LOSSES, METRICS, Metric
from ..settings import RSO, check_named, check_whole, plain, qualified
from ..train import train
from .about import (
    AS_IT_IS,
    FILES,
    FORMAT,
    WHAT,
    Settings,
    agreed,
    check_dataset,
    complete,
    describe_differences,
    moved_to,
    note_machine,
    read_about,
    rso_of,
    scored_by,
    settings_of,
    warn_of_own_code,
)
from .checkpoint import Checkpoint, check_shapes, check_state, copy_history, read_checkpoint, saved_rows, state_of
from .files import alone, check_files, folder_at, make
from .nets import NETS as NETS
from .nets import build_net, plain_options
from .processes import world
from .provenance import code, facts, machine, own_code


class Run(NamedTuple):
    """A run in a folder: its settings, and net and history after the last finished sweep.

    best  the number of the best cycle on the validation part ("cycle") and its weights ("net"), where there is one
    """

    folder: Path
    settings: Settings
    net: nn.Module
    history: History
    best: Mapping[str, Any] | None = None

    @property
    def rso(self) -> RSO:
        """Return the settings of the search."""
        return rso_of(self.settings)

    @property
    def scored(self) -> dict[str, Any]:
        """Return loss and metric, as arguments of `train`, `evaluate` and `scores`."""
        return scored_by(self.settings["loss"], self.settings["metric"])

    def data(self, root: str | Path | None = None, device: str | torch.device = "cpu") -> Data:
        """Load the images of the run. Raises ValueError where the run began with other images."""
        what = (self.settings[name] for name in ("data_seed", "val_size"))
        data = images.load(self.settings["dataset"], root, device, *what)
        agreed(self.folder, {"data": facts(data)})
        return data

    @property
    def finished(self) -> bool:
        """Return whether all cycles are done."""
        return len(self.history.cycles.rows) == self.settings["cycles"]


def start(
    folder: str | Path,
    *,
    dataset: str,
    net: str,
    settings: RSO,
    net_options: Mapping[str, Any] | None = None,
    loss: Loss | str = "cross_entropy",
    metric: Metric | str = "accuracy",
    data_seed: int = 0,
    val_size: int | None = None,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Run:
    """Begin a run in a folder, or take up the one that is there, and train to its end.

    folder                    is made if it is not there
    dataset, data_seed, val_size, root, device   as in `load` (seed and name of the split are the run's own)
    net, net_options          name of a net of `models`, or of a function, "module:function", whose nets are made with
                              settings.seed (`nets.build_net`), and its options
    loss, metric              as in `train`, or "module:function"
    progress                  whether to show a bar with the time left

    An interrupt from the keyboard ends the sitting with a warning: the same call goes on.
    A folder of images may lie elsewhere than before, if it holds the same images.
    Raises what `train` does where the run cannot begin, and then makes no folder; ValueError where a callable has no
    name, where the folder holds a run with other settings, a torn or a foreign file (which stay as they
    are), RuntimeError where another process runs in it (not noticed on Windows), OSError where it cannot be written.
    """
    folder = folder_at(folder)
    for name in ("schedule", "distribution", "rule"):
        check_named(name, getattr(settings, name))
    check_named("loss", loss)
    check_named("metric", metric)
    scored = scored_by(loss, metric)
    asked = {
        **settings.to_dict(),
        "loss": qualified(loss, LOSSES),
        "metric": qualified(metric, METRICS),
        "dataset": dataset,
        "net": net,
        "net_options": plain_options(net, net_options),
        "data_seed": plain(data_seed),
        "val_size": plain(val_size),
    }
    about, data, fresh, own = world.together(lambda: _prepare(asked, settings, root, device))
    if world.size > 1:
        world.compare({**about["settings"], **about["data"], **_traits(fresh, data, settings)})
    begun = Run(folder, about["settings"], fresh, History())

    def check_here() -> None:
        check_run(fresh, data, settings, world=world, **scored)
        check_state(fresh, data.train.images)

    with ExitStack() as locks:
        run = world.together(lambda: begun if world.rank else _open(locks, begun, about, check_here, device, own))
        state, rows = world.tell((state_of(run.net), [vars(row) for row in run.history.rows]))
        run.net.load_state_dict(state)
        run = run._replace(history=History([*map(read_row, rows)]))
        if not run.finished:
            world.together(check_here)
            _train(run, data, settings, scored, progress)
        if world.rank:
            return run
        saved = load(folder)
        copy_history(saved)
        return saved


def _prepare(
    asked: Settings, settings: RSO, root: str | Path | None, device: str | torch.device
) -> tuple[dict[str, Any], Data, nn.Module, dict[str, str]]:
    """Return the content of a new settings.json, the images, the net as it begins, and digests of the user's code."""
    check_whole("data_seed", asked["data_seed"], least=0)
    check_dataset(asked["dataset"])
    data = images.load(asked["dataset"], root, device, asked["data_seed"], asked["val_size"])
    written = json.loads(json.dumps(asked))
    about = {"format": FORMAT, "settings": written, "data": facts(data), "machines": []}
    return about, data, _build(about).to(device), own_code(written, settings, data.train.images.device)


def _traits(net: nn.Module, data: Data, settings: RSO) -> dict[str, Any]:
    """Return the traits of a run that all processes must share, beside settings and images."""
    factors = [settings.sigma_factor(cycle) for cycle in range(settings.cycles)]  # a function may have anyone's name
    draws = settings.draw()((8,), torch.Generator().manual_seed(0)).tolist()
    types = {"dtype": str(next(net.parameters()).dtype), "device": data.train.images.device.type}
    here = {**code(), "kernels": machine(types["device"])["kernels"], **types}
    return {**here, "schedule's factors": factors, "distribution's draws": draws}


def _open(
    locks: ExitStack,
    run: Run,
    about: dict[str, Any],
    check_here: Callable[[], None],
    device: str | torch.device,
    own: Mapping[str, str],
) -> Run:
    """Return the run as its folder has it, with the folder locked, and written to, where it is not finished.

    locks      gets the lock of the folder, and frees it
    check_here  raises what keeps the run from beginning, which leaves no folder
    own        digests of the user's code
    """
    folder, fresh = run.folder, run.net
    check_files(folder, *FILES)
    path = folder / "settings.json"
    if path.exists():
        there = agreed(folder, about)
        if (done := _restore(folder, there, fresh)).finished:
            warn_of_own_code(folder, there, own)
            return done
    check_here()
    make(folder)
    locks.enter_context(alone(folder))
    if path.exists():  # another process may have changed it before the folder was locked
        about = agreed(folder, about)
    elif strange := [name for name in FILES if (folder / name).exists()]:
        raise ValueError(
            f"{folder / strange[0]} belongs to no run, as there is no settings.json; put that back, or choose another "
            f"folder"
        )
    run = _restore(folder, about, fresh)
    if not run.finished:
        note_machine(folder, about, device, own)  # the first file of a run: without it the others belong to none
    return run


def resume(
    folder: str | Path,
    *,
    dataset: str | None = None,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Run:
    """Take up the run in a folder with its own settings.

    dataset  "folder:PATH" where the folder of its images lies elsewhere now

    Other arguments and errors as in `start`; ValueError where a setting is a function, which only `start` can have.
    """
    folder = folder_at(folder)
    there = settings_of(folder)
    what = {name: there[name] for name in WHAT} | ({"dataset": dataset} if dataset else {})
    return start(folder, **what, settings=rso_of(there), root=root, device=device, progress=progress)


def load(folder: str | Path, *, best: bool = False) -> Run:
    """Return the net (on the CPU) and the history of a run, finished or not.

    best  give the net the weights of the best cycle on the validation part (`History.best`), in place of the last ones

    A net that is named as module:function is made by that function, so its module is imported. Raises errors as
    `start`, FileNotFoundError where there is no run, and ValueError where there is no best cycle, or its weights were
    not kept.
    """
    folder = folder_at(folder)
    about = read_about(folder)
    run = _restore(folder, about, _build(about))
    if best:
        cycle = run.history.best.cycle
        if run.best is None or run.best["cycle"] != cycle:
            raise ValueError(f"{folder} has not the weights of cycle {cycle}, which was made before they were kept")
        run.net.load_state_dict(run.best["net"])
    return run


def _train(run: Run, data: Data, settings: RSO, scored: dict[str, Any], progress: bool) -> None:
    """Train a run to its end, and save after every sweep what all processes agree on."""
    items = train(run.net, data, settings, run.history, steps=True, world=world, **scored)
    checkpoint = Checkpoint(run)
    try:
        for report in with_bar(items, run.net, settings, run.history, progress and not world.rank):
            world.agree(run.net)
            if world.rank:
                continue
            checkpoint.save()
            if report.is_cycle and checkpoint.unsaved is None:
                copy_history(run)
    except KeyboardInterrupt:
        if world.rank:
            raise
        warnings.warn(f"stopped before the end; the same command goes on in {run.folder}", stacklevel=3)
    checkpoint.finish()


def _build(about: Mapping[str, Any]) -> nn.Module:
    """Return the net of a run as it begins."""
    settings, facts = about["settings"], about["data"]
    options = plain_options(settings["net"], settings["net_options"])
    return build_net(settings["net"], facts["shape"], facts["classes"], settings["seed"], **options)


def _restore(folder: Path, about: Mapping[str, Any], net: nn.Module) -> Run:
    """Return the run as its checkpoint has it, or at its beginning where nothing was saved yet.

    Raises ValueError for a checkpoint that is not one of this run, or that is gone.
    """
    settings = about["settings"]
    path, copy = folder / "checkpoint.pt", folder / "history.csv"
    saved = saved_rows(copy)
    if not path.exists():
        if saved:
            raise ValueError(
                f"{path} is gone, and {copy.name} beside it has {saved} rows of the run: put the checkpoint back, or "
                f"move {copy.name} away to begin the run anew"
            )
        return Run(folder, settings, net, History())
    content = read_checkpoint(path)
    if unlike := describe_differences(moved_to(complete(content["settings"]), settings["dataset"]), settings):
        raise ValueError(f"{path} is of another run than settings.json beside it; it stays as it is:\n{unlike}")
    try:
        history = History([*map(read_row, content["history"])])
        check_shapes(net, content["net"])
        net.load_state_dict(content["net"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit the run ({reason}); {AS_IT_IS}") from error
    if saved > len(history.rows):
        raise ValueError(
            f"{copy} has {saved} rows, and {path.name} beside it is an older one of {len(history.rows)}: put the newer "
            f"checkpoint back, or move {copy.name} away to go on from the older one"
        )
    return Run(folder, settings, net, history, content.get("best"))
