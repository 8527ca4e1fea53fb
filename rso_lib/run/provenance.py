"""The provenance of a run: images, code and machine."""

import hashlib
import inspect
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import sources
from ..calls import called
from ..checks import decisions
from ..data import Data
from ..engine import ENGINE, kernels
from ..proposals import DISTRIBUTIONS, SCHEDULES
from ..rules import RULES
from ..settings import RSO, function_of

CPU = torch.device("cpu")
LIBRARY = Path(__file__).resolve().parents[1]
OWN = ("dataset", "net", "loss", "metric")
"""The settings that may name a function of the user's."""
PARTS = 16
"""Parts of a deviation, to which numbers that may be no pixels are rounded."""
KNOWN: dict[str, Mapping[str, Any]] = {"schedule": SCHEDULES, "distribution": DISTRIBUTIONS, "rule": RULES}
"""The settings that may be a function of the user's, and those that are none."""
LEVELS = 65280
"""Whole numbers for pixels in 0..1: multiples of 256 for images of 8 bits, of 4,080 for those of scikit-learn."""


def facts(data: Data) -> dict[str, Any]:
    """Return the facts that tell one set of images from another; rounding on another machine changes none of them.

    Pixels and labels are digests, in the order of the split. Numbers that are no pixels of 8 bits are rounded, and may
    have another digest where the mean is rounded otherwise; as they may be tiny or huge, data of the user's have a
    digest of their values in units of the deviation beside it. Files of JPEG may be read as other pixels by another
    version of the decoder, and then have another digest.
    """
    sizes = {part: len(getattr(data, part)) for part in ("train", "val", "test")}
    mean = [round(float(value), 4) for value in data.mean]
    counts = {"shape": list(data.shape), "classes": len(data.classes), **sizes, "mean": mean}
    labels = digest(*(part.labels.cpu() for part in (data.train, data.val, data.test)))
    found = {**counts, "class_names": list(data.classes), "labels": labels, "pixels": _pixels(data)}
    ours = data.name in (*sources.TORCHVISION, "digits") or data.name.startswith("folder:")
    return found if ours else {**found, "values": _values(data)}


def _pixels(data: Data) -> str:
    """Return a digest of the pixels as they were before they were standardised."""
    return _rounded(data, LEVELS * torch.where(data.std > 0, data.std, 1.0).double(), LEVELS * data.mean.double())


def _values(data: Data) -> str:
    """Return a digest of the values in units of the deviation of their channel in the training part."""
    images = data.train.images
    std, mean = torch.std_mean(images, dim=[0, *range(2, images.dim())], correction=0)
    scale = PARTS / torch.where(std > 0, std, 1.0).double()
    return _rounded(data, scale, -mean * scale)


def _rounded(data: Data, scale: Tensor, shift: Tensor) -> str:
    """Return a digest of all images times a scale, plus a shift, of each channel [C], as whole numbers of 16 bits."""
    each = (-1, *[1] * (len(data.shape) - 1))
    scale, shift = scale.view(each), shift.view(each)
    chunks = (chunk for part in data.parts.values() for chunk in part.images.split(4096))
    return digest(*((chunk * scale + shift).round_().long().to(torch.int16).cpu() for chunk in chunks))


def digest(*values: Tensor) -> str:
    """Return 16 digits that stand for the bits of some tensors on the CPU."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.contiguous().numpy().data)
    return found.hexdigest()[:16]


def code() -> dict[str, Any]:
    """Return the versions that may change decisions: of the engine, of the library's sources and of torch.

    engine      raised where decisions change by more than rounding does
    code        a digest of the sources that decide, kernels.cpp among them
    """
    return {"engine": ENGINE, "code": _sources(), "torch": torch.__version__}


def own_code(settings: Mapping[str, Any], search: RSO | None = None, device: torch.device = CPU) -> dict[str, str]:
    """Return a digest of the source of each function of the user's, by the setting that is or names it.

    The digest of a schedule, a distribution or a rule covers some of its values, too: what a function has from outside
    its lines changes it. Raises what these functions raise.

    device  of the run's images, on which the rule gets its scores
    """
    found = {}
    for name in OWN:
        module, colon, _ = str(settings.get(name)).partition(":")
        if colon and module != "folder":
            found[name] = _source(module, function_of(name, settings[name], {}))
    for name, known in KNOWN.items():
        if search and settings[name] not in known:
            function = getattr(search, name)
            found[name] = _source(function.__module__, function)
    if search and "schedule" in found:
        cycles = range(0, search.cycles, 1 + search.cycles // 1000)
        found["schedule"] += "".join(f" {search.sigma_factor(cycle):.6g}" for cycle in cycles).encode()
    if search and "distribution" in found:
        draws = search.draw()((8,), torch.Generator().manual_seed(0)).tolist()
        found["distribution"] += "".join(f" {draw:.4g}" for draw in draws).encode()
    if search and "rule" in found:
        first, again = decisions(search, device)
        if first == again:  # else train warns
            found["rule"] += "".join(f" {move:.4g}" for move in first).encode()
    return {name: hashlib.sha256(source).hexdigest()[:12] for name, source in found.items()}


def _source(module: str, function: Any) -> bytes:
    """Return the file of a function's module, or its lines where that is a notebook, or its name."""
    with suppress(OSError, TypeError):
        if file := inspect.getsourcefile(import_module(module)):
            return Path(file).read_bytes()
    with suppress(OSError, TypeError):
        return inspect.getsource(function).encode()
    return called(function).encode()


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the versions, the device and the threads, which can change the last bits of a run, and the commit."""
    device = torch.device(device)
    try:
        version = metadata.version("rso_lib")
    except metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "rso_lib": version,
        "commit": commit(LIBRARY.parent),
        **code(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "kernels": device.type == "cpu" and kernels.load_compiled() is not None,
        "kernels_cpp": hashlib.sha256(kernels.SOURCE.read_bytes()).hexdigest()[:12],
    }


@cache
def _sources() -> str:
    files = sorted([*LIBRARY.glob("*.py"), *LIBRARY.glob("engine/*.py"), *LIBRARY.glob("engine/*.cpp")])
    found = hashlib.sha256()
    for file in files:
        found.update(file.name.encode() + b"\0" + file.read_bytes().replace(b"\r\n", b"\n"))
    return found.hexdigest()[:12]


def commit(project: Path) -> str | None:
    """Return the first digits of the commit that a clone stands at; None where it is no clone, or git is missing."""
    if not (project / ".git").exists():  # installed by pip, perhaps within the clone of another project
        return None
    try:
        words = ["git", "-C", str(project), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    names = kernels.cpu_info("model name")
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()
