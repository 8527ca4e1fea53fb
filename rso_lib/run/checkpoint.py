"""The files checkpoint.pt and history.csv of a run, written and read."""

import io
import time
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..history import COLUMNS, NEEDED, History
from ..passes import trial
from .about import AS_IT_IS, FORMAT, is_of_a_run
from .files import replacing

if TYPE_CHECKING:
    from .folder import Run


PAUSES = (0.2, 1.0, 5.0)
"""Seconds before a checkpoint that could not be written is tried again."""


class Checkpoint:
    """The file of a run's checkpoint. Where it cannot be written, the run goes on and saves after the next sweep."""

    def __init__(self, run: "Run"):
        self.run, self.best = run, run.best
        self.path = run.folder / "checkpoint.pt"
        self.unsaved: bytes | None = None

    def save(self) -> None:
        """Write the net and the history of the run; warn where that fails several times."""
        history, state = self.run.history, state_of(self.run.net)
        if history.rows[-1].is_cycle and history.validated and history.best is history.rows[-1]:
            self.best = {"cycle": history.best.cycle, "net": {name: value.clone() for name, value in state.items()}}
        content = {
            "format": FORMAT,
            "settings": self.run.settings,
            "history": [vars(row) for row in history.rows],
            "net": state,
            "best": self.best,
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        self.unsaved = buffer.getvalue()
        try:
            self.finish()
        except OSError as error:
            warnings.warn(f"{error}; the run goes on, and saves again after the next sweep", stacklevel=3)

    def finish(self) -> None:
        """Write the checkpoint that is not saved yet. Raises OSError where that fails several times."""
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


def copy_history(run: "Run") -> None:
    """Write history.csv, unless it is up to date; warn where that fails.

    Windows refuses it while another program reads the file.
    """
    path = run.folder / "history.csv"
    try:
        written = repr(History.load(path)) if path.exists() else ""
    except (ValueError, TypeError):  # it is torn
        written = ""
    if not run.history.rows or written == repr(run.history):  # as texts, in which NaN equals NaN
        return
    try:
        with replacing(path) as part:
            run.history.save(part)
    except OSError as error:
        warnings.warn(f"{error}; the checkpoint has it all", stacklevel=2)


def read_checkpoint(path: Path, remedy: str = AS_IT_IS) -> dict[str, Any]:
    """Read a checkpoint. Raises ValueError, with the remedy, for a file that is torn, damaged or not one of a run."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # checksums, which torch.load does not look at
                raise ValueError("its checksums are wrong")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers trip over in a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is torn or no checkpoint ({reason}); {remedy}") from error
    if not is_of_a_run(path, content, {"settings": dict, "history": list, "net": dict}):
        raise ValueError(f"{path} is not a checkpoint of a run; {remedy}")
    return content


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights and buffers of a net on the CPU, for readers that have another device."""
    return {name: value.cpu() for name, value in net.state_dict().items()}


@torch.no_grad()
def check_state(net: nn.Module, images: Tensor) -> None:
    """Raise ValueError where a checkpoint cannot hold the state of a net; warn of a buffer that it does not hold."""
    state = net.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(
            f"{strange[0]} of the net is no tensor, and a checkpoint holds no other state: register it as a buffer, in "
            f"place of get_extra_state"
        )
    before = {name: value.clone() for name, value in net.named_buffers() if name not in state}
    if not before:
        return
    with trial(net, training=True, device=images.device):
        net(images[:2].clone())
        after = dict(net.named_buffers())
        changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed:
        warnings.warn(
            f"{changed[0]} of the net changes in a pass, but is in no checkpoint, so that a run that is taken up again "
            f"goes on otherwise: register it with persistent=True",
            stacklevel=4,
        )


def saved_rows(path: Path) -> int:
    """Return how many rows history.csv has: 0 where it is missing, or torn before its first; empty ones do not count.

    Raises ValueError where it is another table.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().decode("utf-8-sig", "replace").splitlines()
    known = lines and (",".join(COLUMNS).startswith(lines[0]) or {*NEEDED} <= {*lines[0].split(",")})
    if lines and not known:
        raise ValueError(f"{path} is no history of a run, and would be written over: move it away")
    return sum(bool(line.strip(", ")) for line in lines[1:])


def check_shapes(net: nn.Module, state: Mapping[str, Tensor]) -> None:
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
