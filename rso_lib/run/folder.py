"""A run on disk: a folder that is written as the run goes, and from which it is taken up again.

    settings.json   what is run, and the machines that it ran on
    checkpoint.pt   the net and the history behind the last finished sweep
    history.csv     a copy of that history to read and plot, made at the end of every cycle and at a stop
    lock            held by the process that runs in the folder

Every draw of a run comes from a generator that is seeded by where in the run it is used (`proposals`), so
the net and the history are all that is needed to go on. They are in one file, which is replaced as a whole:
whenever a run is killed, it goes on behind the last finished sweep and ends with the same bits.
"""

import inspect
import io
import json
import os
import platform
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import data as images
from .. import models
from ..data import Data
from ..engine import kernels
from ..history import History, read
from ..models import Net
from ..proposals import DISTRIBUTIONS, SCHEDULES
from ..rules import RULES
from ..settings import RSO, check_choice, check_named
from ..train import check, train, with_bar
from .processes import world

if sys.platform != "win32":
    import fcntl
if TYPE_CHECKING:
    import pandas

NETS: dict[str, Callable[..., Net]] = {
    "one_conv": models.one_conv,
    "two_conv": models.two_conv,
    "mnist_net": models.mnist_net,
    "cifar_net": models.cifar_net,
}
FORMAT = "rso_lib run 1"

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
        """The images of the run, as `load` gives them."""
        return images.load(
            self.settings["dataset"], root, device, self.settings["data_seed"], self.settings["val_size"]
        )

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
    for name in ("schedule", "distribution", "rule"):
        check_named(name, getattr(settings, name))
    images.check_wanted(dataset, data_seed, val_size, called=("dataset", "data_seed"))
    options = dict(net_options or {})
    data = world.first(lambda: images.load(dataset, root, device, data_seed, val_size))
    asked = {
        "dataset": dataset,
        "net": net,
        "net_options": options,
        "data_seed": data_seed,
        "val_size": val_size,
        **settings.to_dict(),
    }
    about = {"format": FORMAT, "settings": _plain(asked), "data": facts(data), "machines": []}
    fresh = _build(about).to(device)
    folder = Path(folder)
    if world.rank:
        return _follow(folder, about, fresh, data, settings)
    if not (folder / "settings.json").exists():
        check(fresh, data, settings, world=world)  # a run that cannot begin leaves no folder
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if (folder / "settings.json").exists():
            about = _agreed(folder, about)
        elif strange := [name for name in ("checkpoint.pt", "history.csv") if (folder / name).exists()]:
            raise ValueError(
                f"{folder / strange[0]} belongs to no run, as there is no settings.json; choose another folder"
            )
        run = _restore(folder, about, fresh)
        world.tell((_state(run.net), [vars(row) for row in run.history.rows]))
        if not run.finished:
            _note_machine(folder, about, device)  # the first file of a run: without it the others belong to none
            _train(run, data, settings, progress)
        run = load(folder)
        _copy_history(run)
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
    return _read(Path(folder))["settings"]


def load(folder: str | Path) -> Run:
    """The net (on the CPU) and the history of a run, finished or not. Errors as in `start`, FileNotFoundError."""
    about = _read(Path(folder))
    return _restore(Path(folder), about, _build(about))


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


def build(net: str, shape: Sequence[int], classes: int, seed: int, **options: Any) -> Net:
    """A net of `models` by its name. Raises ValueError for a name or an option that it does not have."""
    check_choice("net", net, NETS)
    known = inspect.signature(NETS[net]).parameters.keys() - {"shape", "classes", "seed"}
    for name in options:
        check_choice(f"an option of {net}", name, sorted(known))
    return NETS[net](shape=tuple(shape), classes=classes, seed=seed, **options)


def _follow(folder: Path, about: Mapping[str, Any], net: Net, data: Data, settings: RSO) -> Run:
    """Take part in the run of the first process, which keeps the folder."""
    state, rows = world.tell(None)
    net.load_state_dict(state)
    history = History([*map(read, rows)])
    for item in train(net, data, settings, history, world=world):
        history.append(item)  # type: ignore[arg-type]  # without steps these are reports
    return Run(folder, about["settings"], net, history)


def _train(run: Run, data: Data, settings: RSO, progress: bool) -> None:
    """Train to the end, saving after every sweep."""
    items = train(run.net, data, settings, run.history, steps=True, world=world)
    try:
        for report in with_bar(items, run.net, settings, run.history, progress):
            _save(run)
            if report.is_cycle:
                _copy_history(run)
    except KeyboardInterrupt:
        warnings.warn(f"stopped before the end; the same command goes on in {run.folder}", stacklevel=3)


def _build(about: Mapping[str, Any]) -> Net:
    settings, facts = about["settings"], about["data"]
    return build(settings["net"], facts["shape"], facts["classes"], settings["seed"], **settings["net_options"])


def _restore(folder: Path, about: Mapping[str, Any], net: Net) -> Run:
    """The run as its checkpoint has it, or at its beginning where there is none."""
    settings = about["settings"]
    path = folder / "checkpoint.pt"
    if not path.exists():
        return Run(folder, settings, net, History())
    content = _checkpoint(path)
    if unlike := differences(_plain(content["settings"]), settings):
        raise ValueError(f"{path} is of another run than settings.json beside it; it stays as it is:\n{unlike}")
    net.load_state_dict(content["net"])
    return Run(folder, settings, net, History([*map(read, content["history"])]))


def _state(net: Net) -> dict[str, Tensor]:
    """Weights and statistics on the CPU: whoever reads them has them on a device of its own."""
    return {name: value.cpu() for name, value in net.state_dict().items()}


def _save(run: Run) -> None:
    content = {
        "format": FORMAT,
        "settings": run.settings,
        "history": [vars(row) for row in run.history.rows],
        "net": _state(run.net),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(run.folder / "checkpoint.pt") as part:
        part.write_bytes(buffer.getbuffer())


def _copy_history(run: Run) -> None:
    """Write history.csv. Windows refuses that while another program reads it: the run goes on without."""
    try:
        with replacing(run.folder / "history.csv") as part:
            run.history.save(part)
    except OSError as error:
        warnings.warn(f"{error}; the checkpoint has it all", stacklevel=2)


def _checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint. Raises ValueError for a file that is torn, damaged or not one of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # checksums, which torch.load does not look at
                raise ValueError("its checksums are wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers trip over in a damaged file
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is torn or no checkpoint ({reason}); {_AS_IT_IS}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of a run; {_AS_IT_IS}")
    return content


_AS_IT_IS = "it stays as it is: move it away to begin the run anew, or choose another folder"


def _read(folder: Path) -> dict[str, Any]:
    """The content of settings.json. Raises FileNotFoundError where it is missing, ValueError where it is not ours."""
    path = folder / "settings.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {path} is missing")
    try:
        about = json.loads(path.read_text())
        ours = about["format"] == FORMAT
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise ValueError(f"{path} is not the settings of a run; {_AS_IT_IS}")
    about["settings"] = _plain(about["settings"])
    return about


def _plain(settings: Mapping[str, Any]) -> Settings:
    """The settings as JSON gives them back, with the defaults of fields that are newer than the run."""
    return {**RSO().to_dict(), **json.loads(json.dumps(settings))}


def _agreed(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What settings.json holds. Raises ValueError where something else is asked for."""
    about = _read(folder)
    unlike = [differences(about[part], asked[part]) for part in ("settings", "data")]
    if any(unlike):
        lines = "\n".join(filter(None, unlike))
        raise ValueError(f"{folder} holds a run with other settings; choose another folder, or its settings:\n{lines}")
    return about


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """What two sets of settings do not have in common, a line for each."""
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    return "\n".join(f"  {name} is {there.get(name)!r} there, not {asked.get(name)!r}" for name in names)


def facts(data: Data) -> dict[str, Any]:
    """What tells one set of images from another; nothing that rounding on another machine could change."""
    sizes = {part: len(getattr(data, part)) for part in ("train", "val", "test")}
    mean = [round(float(value), 4) for value in data.mean]
    return {"shape": list(data.shape), "classes": len(data.classes), **sizes, "mean": mean}


def _note_machine(folder: Path, about: dict[str, Any], device: str | torch.device) -> None:
    """Add this machine to settings.json, unless the run was here last."""
    here = machine(device) | ({"processes": world.size} if world.size > 1 else {})
    machines = about["machines"]
    if machines and machines[-1] != here:
        lines = differences(machines[-1], here)
        warnings.warn(f"the last bits may differ from those of an unbroken run:\n{lines}", stacklevel=3)
    if not machines or machines[-1] != here:
        about["machines"] = [*machines, here]
        with replacing(folder / "settings.json") as part:
            part.write_text(json.dumps(about, indent=2) + "\n")


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Versions, device and threads: what can change the last bits of a run."""
    device = torch.device(device)
    try:
        version = metadata.version("rso_lib")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "rso_lib": version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "kernels": device.type == "cpu" and kernels.load() is not None,
    }


def _processor() -> str:
    names = kernels.cpu_info("model name")
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when the process ends, however it ends."""
    with open(folder / "lock", "w") as file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"another process runs in {folder}; wait for it, or choose another folder") from None
        yield


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to. It takes the place of `path` at once and only when it is on the disk as a whole."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        if sys.platform != "win32":
            _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        reason = error.strerror or error
        raise OSError(f"{path} cannot be written ({reason}); what was saved before is still there") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
