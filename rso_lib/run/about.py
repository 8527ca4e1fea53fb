"""settings.json: the settings, images and machines of a run, and which run may be taken up again."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import data as images
from ..algorithm import Loss
from ..losses import LOSSES, METRICS, Metric
from ..settings import RSO, check_choice, function_of
from .files import check_files, folder_at, replacing
from .processes import world
from .provenance import KNOWN, machine

FORMAT = "rso_lib run 1"
"""The name and the number of the format of a run's files."""

Settings = dict[str, Any]
"""The settings of a run as plain values: the fields of `RSO`, and those of `WHAT`."""
WHAT = ("dataset", "net", "net_options", "data_seed", "val_size", "loss", "metric")
NEWER = {"loss": "cross_entropy", "metric": "accuracy"}
"""Settings that the first folders do not note, and the value that all of these had."""
FILES = ("settings.json", "checkpoint.pt", "history.csv")
AS_IT_IS = "it stays as it is: move the folder away to begin the run anew, or choose another folder"


def check_dataset(name: object) -> None:
    """Raise ValueError where a run's images have a name that `load` does not know."""
    if ":" not in str(name):
        check_choice("dataset", name, images.NAMES)
    elif not str(name).startswith("folder:"):
        function_of("dataset", name, {})


def settings_of(folder: str | Path) -> Settings:
    """Return the settings of the run in a folder. Raises FileNotFoundError where there is none."""
    return read_about(folder_at(folder))["settings"]


def rso_of(settings: Settings) -> RSO:
    """Return the settings of the search. Raises ValueError where one is a function, as a folder holds only its name."""
    for name, known in KNOWN.items():
        if name in settings and settings[name] not in known:
            raise ValueError(
                f"the {name} of this run is a function, {settings[name]}, which its folder does not hold: "
                f"call start with it"
            )
    return RSO(**{name: value for name, value in settings.items() if name not in WHAT})


def scored_by(loss: Loss | str, metric: Metric | str) -> dict[str, Any]:
    """Return loss and metric, given as functions or by name. Raises ValueError where one cannot be imported."""
    return {"loss": function_of("loss", loss, LOSSES), "metric": function_of("metric", metric, METRICS)}


def is_of_a_run(path: Path, content: Any, parts: Mapping[str, type]) -> bool:
    """Return whether the content of a file is that of a run, with parts of these types.

    Raises ValueError for the format of another version.
    """
    if not isinstance(content, dict):
        return False
    found = str(content.get("format"))
    if found != FORMAT and found.startswith("rso_lib run "):
        raise ValueError(
            f"{path} was written by a newer rso_lib (as {found!r}, and this one reads {FORMAT!r}): update rso_lib, or "
            f"choose another folder"
        )
    return found == FORMAT and all(isinstance(content.get(part), kind) for part, kind in parts.items())


def read_about(folder: Path) -> dict[str, Any]:
    """Read settings.json. Raises FileNotFoundError where it is missing, ValueError where it is not one of a run."""
    path = folder / "settings.json"
    check_files(folder, *FILES)
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no run: {path} is missing")
    try:
        about = json.loads(path.read_text())
    except ValueError:
        about = None
    parts = {"settings": dict, "data": dict, "machines": list}
    needed = {*WHAT, "seed"} - {*NEWER}
    whole = is_of_a_run(path, about, parts) and needed <= {*about["settings"]}
    if not (whole and {"shape", "classes"} <= {*about["data"]}):
        raise ValueError(f"{path} is not the settings of a run, or torn; {AS_IT_IS}")
    about["settings"] = complete(about["settings"])
    if unknown := about["settings"].keys() - {*WHAT, *RSO().to_dict()}:
        raise ValueError(
            f"{path} has a setting that this rso_lib does not know, {', '.join(sorted(unknown))}: update rso_lib, or "
            f"choose another folder"
        )
    return about


def complete(settings: Mapping[str, Any]) -> Settings:
    """Return the settings of a file, with the defaults of the settings that are newer than the file.

    The first folders also note a precision; float32 is the only one that is left.
    """
    noted = {name: value for name, value in settings.items() if (name, value) != ("precision", "float32")}
    return {**RSO().to_dict(), **NEWER, **noted}


def agreed(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of settings.json, with the facts about the images that it does not know yet.

    A folder of images may have moved, if the images are the same. Raises ValueError where other settings are asked
    for, or where the images are others.
    """
    about = read_about(folder)
    about["data"] = {**asked["data"], **about["data"]}
    settings = asked.get("settings", about["settings"])
    other_images = describe_differences(about["data"], asked["data"])
    if not other_images:
        about["settings"] = moved_to(about["settings"], settings["dataset"])
    if lines := describe_differences(about["settings"], settings):
        lines = "\n".join(filter(None, [lines, other_images]))
        raise ValueError(f"{folder} holds a run with other settings; choose another folder, or its settings:\n{lines}")
    if other_images:
        raise ValueError(
            f"the images are not those that the run in {folder} began with; put them back as they were, or choose "
            f"another folder (another version of pillow may read other pixels from a JPEG):\n{other_images}"
        )
    return about


def moved_to(settings: Settings, dataset: object) -> Settings:
    """Return the settings with another folder of images, where the images are in a folder."""
    folders = all(str(one).startswith("folder:") for one in (settings["dataset"], dataset))
    return {**settings, "dataset": dataset} if folders else settings


def describe_differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the differences of two sets of settings, a line for each."""
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    return "\n".join(f"  {name} is {there.get(name)!r} there, not {asked.get(name)!r}" for name in names)


def write_settings(path: Path, about: Mapping[str, Any], here: dict[str, Any]) -> list[dict[str, Any]]:
    """Write settings, with this machine behind those that the file names, unless it is the last. Returns them all."""
    machines = machines_of(path)
    if machines[-1:] != [here]:
        machines.append(here)
    with replacing(path) as part:
        part.write_text(json.dumps({**about, "machines": machines}, indent=2) + "\n")
    return machines


def machines_of(path: Path) -> list[dict[str, Any]]:
    """Return the machines that settings name; none where the file is not there."""
    return list(json.loads(path.read_text()).get("machines", [])) if path.exists() else []


def note_machine(folder: Path, about: dict[str, Any], device: str | torch.device, own: Mapping[str, str]) -> None:
    """Add this machine and this code to settings.json, unless the run was here last; warn of what has changed.

    own  the digests of the user's functions (`own_code`)
    """
    here = machine(device) | ({"processes": world.size} if world.size > 1 else {})
    if own:
        here["own_code"] = own
    last = about["machines"][-1:]
    about["machines"] = write_settings(folder / "settings.json", about, here)
    if last and (lines := describe_differences(*({**one, "commit": None} for one in (last[0], here)))):
        warnings.warn(
            f"the run goes on with other code or on another machine, and may decide or round otherwise than an "
            f"unbroken run:\n{lines}",
            stacklevel=3,
        )


def warn_of_own_code(folder: Path, about: Mapping[str, Any], own: Mapping[str, str]) -> None:
    """Warn where a finished run was made with other functions of the user's that have the same names."""
    there = about["machines"][-1].get("own_code", {}) if about["machines"] else {}
    if changed := [name for name in own if there.get(name, own[name]) != own[name]]:
        warnings.warn(
            f"the run in {folder} is finished, and was made with another {' and '.join(changed)} of yours than now: it "
            f"stays as it is; choose another folder for a new one",
            stacklevel=3,
        )
