"""settings.json: the settings, images and machines of a run, and which run may be taken up again."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from .. import data as images
from ..algorithm import Loss
from ..losses import LOSSES, METRICS, Metric
from ..proposals import DISTRIBUTIONS, SCHEDULES
from ..rules import RULES
from ..settings import RSO, check_choice, function_of
from .files import check_files, folder_at, replacing
from .nets import as_built
from .processes import world
from .provenance import PROVENANCE, machine, own_code

FORMAT, NUMBER = "rso_lib run", 1
"""What the files of a run begin with. A program reads those of its own number and of smaller ones."""
SHAPE = ("shape", "classes")
"""What a net needs to know of its images."""
FILES = ("settings.json", "checkpoint.pt", "history.csv")

Settings = dict[str, Any]
"""What decides about a run, as plain values: the fields of `RSO`, and `WHAT`."""
WHAT = ("dataset", "net", "net_options", "data_seed", "val_size", "loss", "metric")
NEWER = {"loss": "cross_entropy", "metric": "accuracy"}
"""What folders did not note once, and what it was."""
FORMER = {"precision": "float32"}
"""What folders noted once, and the only value that is left."""
AS_IT_IS = "it stays as it is: move the folder away to begin the run anew, or choose another folder"


def check_dataset(name: object) -> None:
    """Raise ValueError where a run's images have a name that `load` does not know."""
    if ":" not in str(name):
        check_choice("dataset", name, images.NAMES)
    elif not str(name).startswith("folder:"):
        function_of("dataset", name, {})


def settings_of(folder: str | Path) -> Settings:
    """The settings of the run in a folder. Raises FileNotFoundError where there is none."""
    return read_about(folder_at(folder))["settings"]


def rso_of(settings: Settings) -> RSO:
    """Return the settings of the search. Raises ValueError where one is a function, of which a folder has the name."""
    for name, known in (("schedule", SCHEDULES), ("distribution", DISTRIBUTIONS), ("rule", RULES)):
        if name in settings and settings[name] not in known:
            raise ValueError(
                f"the {name} of this run is a function, {settings[name]}, which its folder does not hold: "
                f"call start with it"
            )
    return RSO(**{name: value for name, value in settings.items() if name not in WHAT})


class Scored(TypedDict):
    """Loss and metric of a run."""

    loss: Loss
    metric: Metric


def scored_by(loss: Loss | str, metric: Metric | str) -> Scored:
    """Return loss and metric, given them or their names. Raises ValueError where one cannot be imported."""
    return {"loss": function_of("loss", loss, LOSSES), "metric": function_of("metric", metric, METRICS)}


def ours(path: Path, content: Any, parts: Mapping[str, type]) -> bool:
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


def read_about(folder: Path) -> dict[str, Any]:
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
    always = {*WHAT, "seed"} - {*NEWER}
    whole = ours(path, about, needed) and always <= {*about["settings"]} and {*SHAPE} <= {*about["data"]}
    if not whole:
        raise ValueError(f"{path} is not the settings of a run, or torn; {AS_IT_IS}")
    about["settings"] = stored(about["settings"])
    if unknown := about["settings"].keys() - {*WHAT, *RSO().to_dict()}:
        raise ValueError(
            f"{path} has a setting that this rso_lib does not know, {', '.join(sorted(unknown))}: update rso_lib, or "
            f"choose another folder"
        )
    return about


def plain_settings(settings: Mapping[str, Any]) -> Settings:
    """The settings as JSON gives them back, with the defaults of fields that are newer than the run."""
    return {**RSO().to_dict(), **NEWER, **json.loads(json.dumps(settings))}


def stored(settings: Mapping[str, Any]) -> Settings:
    """The settings of a file, with the net's options as they were understood."""
    plain = plain_settings({name: value for name, value in settings.items() if (name, value) not in FORMER.items()})
    return {**plain, "net_options": as_built(plain["net"], plain["net_options"])}


def agreed(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return what settings.json holds, with the facts that it does not know yet.

    A folder of images may have moved, if the images are known and the same. Raises ValueError where other settings are
    asked for, or where the images are others.
    """
    about = read_about(folder)
    if not differences(about["data"], {**about["data"], **asked["data"]}):
        about["settings"] = moved_to(about["settings"], asked.get("settings", {}).get("dataset"))
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


def moved_to(settings: Settings, dataset: object) -> Settings:
    """Return settings with another folder of images, where they are of a folder."""
    folders = all(str(one).startswith("folder:") for one in (settings["dataset"], dataset))
    return {**settings, "dataset": dataset} if folders else settings


def _decoder(lines: str) -> str:
    """Say what else may change pixels alone."""
    if lines.lstrip().startswith("pixels"):
        return "\n(files of JPEG may be read as other pixels by another version of pillow)"
    return ""


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the differences of two sets of settings, a line for each."""
    names = [name for name in {**there, **asked} if there.get(name) != asked.get(name)]
    return "\n".join(f"  {name} is {there.get(name)!r} there, not {asked.get(name)!r}" for name in names)


def note_machine(folder: Path, about: dict[str, Any], device: str | torch.device) -> None:
    """Add this machine and this code to settings.json, unless the run was here last; warn of what is new."""
    here = machine(device) | ({"processes": world.size} if world.size > 1 else {})
    if own := own_code(about["settings"]):
        here["own_code"] = own
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
    own, was_own = here.get("own_code", {}), before.get("own_code", {})
    if changed := [name for name in own if was_own.get(name, own[name]) != own[name]]:
        warnings.warn(
            f"the file of this run's {' and '.join(changed)} has changed since its last sitting, and the run may go on "
            f"otherwise; put it back as it was, or begin anew in another folder",
            stacklevel=4,
        )
    said = {
        "commit",
        "engine",
        "own_code",
        *(name for name in PROVENANCE if name not in before),
    }  # those were not noted once
    same = ({name: value for name, value in some.items() if name not in said} for some in (before, here))
    if lines := differences(*same):
        warnings.warn(f"the last bits may differ from those of an unbroken run:\n{lines}", stacklevel=4)
