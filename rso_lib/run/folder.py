"""A run on disk: a folder that is written as the run goes, and from which it is taken up again.

    settings.json   what is run, and the machines that it ran on
    checkpoint.pt   the net and the history behind the last finished sweep
    history.csv     a copy of that history to read and plot, made at the end of every cycle and at a stop
    lock            held by the process that runs in the folder

Every draw of a run comes from a generator that is seeded by where in the run it is used (`proposals`), so
the net and the history are all that is needed to go on. They are in one file, which is replaced as a whole:
whenever a run is killed, it goes on behind the last finished sweep and ends with the same bits.
"""

import io
import json
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import data as images
from ..data import Data
from ..history import COLUMNS, NEEDED, History, read
from ..models import Net
from ..proposals import DISTRIBUTIONS, SCHEDULES
from ..rules import RULES
from ..settings import RSO, check_choice, check_named, check_whole
from ..train import check, train, with_bar
from .files import alone, check_files, folder_at, make, replacing
from .nets import NETS as NETS
from .nets import as_built, build
from .processes import world
from .provenance import PROVENANCE, code, facts, machine

if TYPE_CHECKING:
    import pandas

FORMAT, NUMBER = "rso_lib run", 1
"""What the files of a run begin with. A program reads those of its own number and of smaller ones."""
SHAPE = ("shape", "classes")
"""What a net needs to know of its images."""
FILES = ("settings.json", "checkpoint.pt", "history.csv")
PAUSES = (0.2, 1.0, 5.0)
"""Seconds before a checkpoint that could not be written is tried again."""

Settings = dict[str, Any]
"""What decides about a run, as plain values: the fields of `RSO`, and `WHAT`."""
WHAT = ("dataset", "net", "net_options", "data_seed", "val_size")


class Run(NamedTuple):
    """What `start`, `resume` and `load` return. `net` and `history` are those behind the last finished sweep."""

    folder: Path
    settings: Settings
    net: Net
    history: History

    @property
    def rso(self) -> RSO:
        """The settings of the search."""
        return _rso(self.settings)

    def data(self, root: str | Path | None = None, device: str | torch.device = "cpu") -> Data:
        """Load the images of the run. Raises ValueError where they are others than those that it began with."""
        what = (self.settings[name] for name in ("data_seed", "val_size"))
        data = images.load(self.settings["dataset"], root, device, *what)
        _agreed(self.folder, {"data": facts(data)})
        return data

    @property
    def finished(self) -> bool:
        """Whether all cycles are done."""
        return len(self.history.cycles.rows) == self.settings["cycles"]


def start(
    folder: str | Path,
    *,
    dataset: str,
    net: str,
    settings: RSO,
    net_options: Mapping[str, Any] | None = None,
    data_seed: int = 0,
    val_size: int | None = None,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Run:
    """Begin a run in a folder, or take up the one that is there, and train to its end.

    folder                    is made if it is not there
    dataset, data_seed, val_size, root, device   as in `load` (seed and name of the split are the run's own)
    net, net_options          name of a net of `models`, which is initialised with settings.seed, and its options
    progress                  whether to show a bar with the time left

    An interrupt from the keyboard ends the sitting with a warning: the same call goes on.
    Raises what `train` does where the run cannot begin, and then makes no folder; ValueError where a callable of the
    settings has no name, where the folder holds a run with other settings, a torn or a foreign file (which stay as they
    are), RuntimeError where another process runs in it (not noticed on Windows), OSError where it cannot be written.
    """
    folder = folder_at(folder)
    for name in ("schedule", "distribution", "rule"):
        check_named(name, getattr(settings, name))
    asked = {
        "dataset": dataset,
        "net": net,
        "net_options": dict(net_options or {}),
        "data_seed": data_seed,
        "val_size": val_size,
        **settings.to_dict(),
    }
    about, data, fresh = world.together(lambda: _prepared(asked, root, device))
    if world.size > 1:
        world.compare({**about["settings"], **about["data"], **_traits(fresh, data, settings)})
    with ExitStack() as held:
        run = Run(folder, about["settings"], fresh, History())
        if not world.rank:
            run = world.together(lambda: _opened(held, run, about, data, settings, device))
        else:
            world.together(lambda: None)
        state, rows = world.tell((_state(run.net), [vars(row) for row in run.history.rows]))
        run.net.load_state_dict(state)
        run = run._replace(history=History([*map(read, rows)]))
        if not run.finished:
            world.together(lambda: check(fresh, data, settings, world=world))
            _train(run, data, settings, progress)
        return run if world.rank else load(folder)


def _prepared(asked: Settings, root: str | Path | None, device: str | torch.device) -> tuple[dict[str, Any], Data, Net]:
    """Return the content of a new settings.json, the images, and the net as it begins."""
    dataset, data_seed, val_size = (asked[name] for name in ("dataset", "data_seed", "val_size"))
    check_whole("data_seed", data_seed, least=0)
    check_dataset(dataset)
    data = images.load(dataset, root, device, data_seed, val_size)
    about = {"format": f"{FORMAT} {NUMBER}", "settings": _plain(asked), "data": facts(data), "machines": []}
    return about, data, _build(about).to(device)


def check_dataset(name: object) -> None:
    """Raise ValueError where a run's images have a name that `load` does not know."""
    if not str(name).startswith("folder:"):
        check_choice("dataset", name, images.NAMES)


def _traits(net: Net, data: Data, settings: RSO) -> dict[str, Any]:
    """Return what processes must have in common beside settings and images."""
    factors = [settings.sigma_factor(cycle) for cycle in range(settings.cycles)]  # a function may have anyone's name
    draws = settings.draw()((8,), torch.Generator().manual_seed(0)).tolist()
    types = {"dtype": str(next(net.parameters()).dtype), "device": data.train.images.device.type}
    here = {**code(), "kernels": machine(types["device"])["kernels"], **types}
    return {**here, "schedule's factors": factors, "distribution's draws": draws}


def _opened(
    held: ExitStack, run: Run, about: dict[str, Any], data: Data, settings: RSO, device: str | torch.device
) -> Run:
    """Return the run as its folder has it, with the folder held, and written to, where it is not finished."""
    folder = run.folder
    check_files(folder, *FILES)
    if (folder / "settings.json").exists() and (done := _restore(folder, _agreed(folder, about), run.net)).finished:
        _copy_history(done)
        return done
    check(run.net, data, settings, world=world)  # a run that cannot begin leaves no folder
    make(folder)
    held.enter_context(alone(folder))
    if (folder / "settings.json").exists():
        about = _agreed(folder, about)
    elif strange := [name for name in FILES if (folder / name).exists()]:
        raise ValueError(
            f"{folder / strange[0]} belongs to no run, as there is no settings.json; put that back, or choose another "
            f"folder"
        )
    run = _restore(folder, about, run.net)
    if not run.finished:
        _note_machine(folder, about, device)  # the first file of a run: without it the others belong to none
    return run


def resume(
    folder: str | Path,
    *,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Run:
    """Take up the run in a folder with its own settings.

    Arguments and errors as in `start`; ValueError where one of the settings is a function, which only `start` can have.
    """
    folder = folder_at(folder)
    stored = settings_of(folder)
    what = {name: stored[name] for name in WHAT}
    return start(folder, **what, settings=_rso(stored), root=root, device=device, progress=progress)


def _rso(settings: Settings) -> RSO:
    for name, known in (("schedule", SCHEDULES), ("distribution", DISTRIBUTIONS), ("rule", RULES)):
        if name in settings and settings[name] not in known:
            raise ValueError(
                f"the {name} of this run is a function, {settings[name]}, which its folder does not hold: "
                f"call start with it"
            )
    return RSO(**{name: value for name, value in settings.items() if name not in WHAT})


def settings_of(folder: str | Path) -> Settings:
    """The settings of the run in a folder. Raises FileNotFoundError where there is none."""
    return _read(folder_at(folder))["settings"]


def load(folder: str | Path) -> Run:
    """The net (on the CPU) and the history of a run, finished or not. Errors as in `start`, FileNotFoundError."""
    folder = folder_at(folder)
    about = _read(folder)
    return _restore(folder, about, _build(about))


def compare(runs: Sequence[str | Path] | Mapping[str, str | Path | History]) -> "pandas.DataFrame":
    """The cycle rows of several runs in one frame, whose first column `run` holds their names.

    runs   folders, or a mapping of names to folders or histories

    Raises ValueError where two folders have the same name, and as `load`.
    """
    import pandas

    named = runs if isinstance(runs, Mapping) else {Path(run).name: run for run in runs}
    if len(named) < len(runs):
        raise ValueError("runs are told apart by the names of their folders, and two are the same: pass a mapping")
    histories = {name: run if isinstance(run, History) else load(run).history for name, run in named.items()}
    frames = [history.cycles.frame().assign(run=name) for name, history in histories.items()]
    frame = pandas.concat(frames, ignore_index=True)
    return frame[["run", *frame.columns.drop("run")]]


def _train(run: Run, data: Data, settings: RSO, progress: bool) -> None:
    """Train to the end, saving after every sweep what all processes agree on."""
    items = train(run.net, data, settings, run.history, steps=True, world=world)
    checkpoint = Checkpoint(run.folder)
    try:
        for report in with_bar(items, run.net, settings, run.history, progress and not world.rank):
            world.agree(run.net)
            if world.rank:
                continue
            checkpoint.save(run)
            if report.is_cycle and checkpoint.unsaved is None:
                _copy_history(run)
    except KeyboardInterrupt:
        if world.rank:
            raise
        warnings.warn(f"stopped before the end; the same command goes on in {run.folder}", stacklevel=3)
    checkpoint.finish()
    if not world.rank:
        _copy_history(load(run.folder))


def _build(about: Mapping[str, Any]) -> Net:
    settings, facts = about["settings"], about["data"]
    return build(settings["net"], facts["shape"], facts["classes"], settings["seed"], **settings["net_options"])


def _restore(folder: Path, about: Mapping[str, Any], net: Net) -> Run:
    """Return the run as its checkpoint has it, or at its beginning where nothing was saved yet.

    Raises ValueError for a checkpoint that is not one of this run, or that is gone.
    """
    settings = about["settings"]
    path, copy = folder / "checkpoint.pt", folder / "history.csv"
    saved = _saved_rows(copy)
    if not path.exists():
        if saved:
            raise ValueError(
                f"{path} is gone, and {copy.name} beside it has {saved} rows of the run: put the checkpoint back, or "
                f"move {copy.name} away to begin the run anew"
            )
        return Run(folder, settings, net, History())
    content = _checkpoint(path)
    if unlike := differences(_stored(content["settings"]), settings):
        raise ValueError(f"{path} is of another run than settings.json beside it; it stays as it is:\n{unlike}")
    try:
        history = History([*map(read, content["history"])])
        _check_weights(net, content["net"])
        net.load_state_dict(content["net"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit the run ({reason}); {_AS_IT_IS}") from error
    if saved > len(history.rows):
        raise ValueError(
            f"{copy} has {saved} rows, and {path.name} beside it is an older one of {len(history.rows)}: put the newer "
            f"checkpoint back, or move {copy.name} away to go on from the older one"
        )
    return Run(folder, settings, net, history)


def _saved_rows(path: Path) -> int:
    """Return how many rows history.csv has: 0 where it is missing, or torn before its first.

    Raises ValueError where it is another table.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    known = lines and (",".join(COLUMNS).startswith(lines[0]) or {*NEEDED} <= {*lines[0].split(",")})
    if lines and not known:
        raise ValueError(f"{path} is no history of a run, and would be written over: move it away")
    return max(len(lines) - 1, 0)


def _check_weights(net: Net, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError where weights are missing, of another shape or type, or not finite."""
    for name, weight in net.named_parameters():
        if name not in state:
            raise ValueError(f"{name} is missing")
        there = state[name]
        if (there.shape, there.dtype) != (weight.shape, weight.dtype):
            unlike = f"{list(there.shape)} of {there.dtype}, not {list(weight.shape)} of {weight.dtype}"
            raise ValueError(f"{name} is {unlike}")
        if not there.isfinite().all():
            raise ValueError(f"{name} has weights that are not finite")


def _state(net: Net) -> dict[str, Tensor]:
    """Weights and statistics on the CPU: whoever reads them has them on a device of its own."""
    return {name: value.cpu() for name, value in net.state_dict().items()}


class Checkpoint:
    """The file of a run's checkpoint. Where one cannot be written, the run goes on, and the next is tried."""

    def __init__(self, folder: Path):
        self.path = folder / "checkpoint.pt"
        self.unsaved: bytes | None = None

    def save(self, run: Run) -> None:
        """Write the net and the history of a run; warn where that fails several times."""
        content = {
            "format": f"{FORMAT} {NUMBER}",
            "settings": run.settings,
            "history": [vars(row) for row in run.history.rows],
            "net": _state(run.net),
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.unsaved = buffer.getvalue()
        try:
            self.finish()
        except OSError as error:
            warnings.warn(f"{error}; the run goes on, and saves again after the next sweep", stacklevel=3)

    def finish(self) -> None:
        """Write what is not saved yet. Raises OSError where that fails several times."""
        pauses = list(PAUSES)
        while self.unsaved is not None:
            try:
                with replacing(self.path) as part:
                    part.write_bytes(self.unsaved)
                self.unsaved = None
            except OSError:  # another program may hold the file for a moment
                if not pauses:
                    raise
                time.sleep(pauses.pop(0))


def _copy_history(run: Run) -> None:
    """Write history.csv if it is another. Windows refuses that while another program reads it: the run goes on."""
    path = run.folder / "history.csv"
    try:
        if run.history.rows and not _is_copy(path, run.history):
            with replacing(path) as part:
                run.history.save(part)
    except OSError as error:
        warnings.warn(f"{error}; the checkpoint has it all", stacklevel=2)


def _is_copy(path: Path, history: History) -> bool:
    try:
        return path.exists() and repr(History.load(path)) == repr(history)  # NaN differs from NaN, but not its name
    except (ValueError, TypeError):
        return False


def _checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint. Raises ValueError for a file that is torn, damaged or not one of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # checksums, which torch.load does not look at
                raise ValueError("its checksums are wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers trip over in a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is torn or no checkpoint ({reason}); {_AS_IT_IS}") from error
    if not _ours(path, content, {"settings": dict, "history": list, "net": dict}):
        raise ValueError(f"{path} is not a checkpoint of a run; {_AS_IT_IS}")
    return content


_AS_IT_IS = "it stays as it is: move the folder away to begin the run anew, or choose another folder"


def _ours(path: Path, content: Any, parts: Mapping[str, type]) -> bool:
    """Return whether a file's content is that of a run, with these parts. Raises ValueError where it is newer."""
    if not isinstance(content, dict):
        return False
    name, _, number = str(content.get("format")).rpartition(" ")
    if name != FORMAT or not number.isdecimal():
        return False
    if int(number) > NUMBER:
        raise ValueError(
            f"{path} was written by a newer rso_lib (format {number}, and this one reads {NUMBER}): update rso_lib, or "
            f"choose another folder"
        )
    return all(isinstance(content.get(part), kind) for part, kind in parts.items())


def _read(folder: Path) -> dict[str, Any]:
    """The content of settings.json. Raises FileNotFoundError where it is missing, ValueError where it is not ours."""
    path = folder / "settings.json"
    check_files(folder, *FILES)
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no run: {path} is missing")
    try:
        about = json.loads(path.read_text())
    except ValueError:
        about = None
    needed = {"settings": dict, "data": dict, "machines": list}
    whole = _ours(path, about, needed) and {*WHAT, "seed"} <= {*about["settings"]} and {*SHAPE} <= {*about["data"]}
    if not whole:
        raise ValueError(f"{path} is not the settings of a run, or torn; {_AS_IT_IS}")
    about["settings"] = _stored(about["settings"])
    if unknown := about["settings"].keys() - {*WHAT, *RSO().to_dict()}:
        raise ValueError(
            f"{path} has a setting that this rso_lib does not know, {', '.join(sorted(unknown))}: update rso_lib, or "
            f"choose another folder"
        )
    return about


def _plain(settings: Mapping[str, Any]) -> Settings:
    """The settings as JSON gives them back, with the defaults of fields that are newer than the run."""
    return {**RSO().to_dict(), **json.loads(json.dumps(settings))}


def _stored(settings: Mapping[str, Any]) -> Settings:
    """The settings of a file, with the net's options as they were understood."""
    plain = _plain(settings)
    return {**plain, "net_options": as_built(plain["net"], plain["net_options"])}


def _agreed(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what settings.json holds, with the facts that it does not know yet.

    Raises ValueError where other settings are asked for, or where the images are others.
    """
    about = _read(folder)
    about["data"] = {**asked["data"], **about["data"]}
    if lines := differences(about["settings"], asked.get("settings", about["settings"])):
        more = differences(about["data"], asked["data"])
        lines = "\n".join(filter(None, [lines, more]))
        raise ValueError(f"{folder} holds a run with other settings; choose another folder, or its settings:\n{lines}")
    if lines := differences(about["data"], asked["data"]):
        raise ValueError(
            f"the images are not those that the run in {folder} began with; put them back as they were, or choose "
            f"another folder:\n{lines}{_decoder(lines)}"
        )
    return about


def _decoder(lines: str) -> str:
    """Say what else may change pixels alone."""
    if lines.lstrip().startswith("pixels"):
        return "\n(files of JPEG may be read as other pixels by another version of pillow)"
    return ""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What two sets of settings do not have in common, a line for each."""
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    return "\n".join(f"  {name} is {there.get(name)!r} there, not {asked.get(name)!r}" for name in names)


def _note_machine(folder: Path, about: dict[str, Any], device: str | torch.device) -> None:
    """Add this machine and this code to settings.json, unless the run was here last; warn of what is new."""
    here = machine(device) | ({"processes": world.size} if world.size > 1 else {})
    machines = about["machines"]
    if not machines or machines[-1] != here:
        about["machines"] = [*machines, here]
    with replacing(folder / "settings.json") as part:
        part.write_text(json.dumps(about, indent=2) + "\n")
    if machines:
        _warn_of_changes(machines[-1], here)


def _warn_of_changes(before: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Warn where the rest of a run may decide otherwise than the part before it, or round otherwise."""
    if before.get("engine") != here["engine"]:
        was = f"engine {before['engine']}" if "engine" in before else "an engine from before they were numbered"
        warnings.warn(
            f"this run was made by {was} and goes on with engine {here['engine']}, which may decide otherwise; for a "
            f"run of one engine begin anew in another folder",
            stacklevel=4,
        )
    said = {"commit", "engine", *(name for name in PROVENANCE if name not in before)}  # those were not noted once
    same = ({name: value for name, value in some.items() if name not in said} for some in (before, here))
    if lines := differences(*same):
        warnings.warn(f"the last bits may differ from those of an unbroken run:\n{lines}", stacklevel=4)
