"""The CPU's inner loops (kernels.cpp), compiled on first use where there is a C++ compiler with OpenMP.

Without one (Apple's has no OpenMP), or with the environment variable RSO_KERNELS=0, `load` gives None and the engine
uses torch throughout: the same steps, two to three times slower. `for_tensor` finds those of a GPU too (kernels_cuda).
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .kernels_cuda import CudaKernels

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
CHANNELS = (16, 32)
CODES = {None: 0, "relu": 1, "sign": 2, "step": 3}
"""The numbers of the activations in kernels.cpp."""


class Preactivation:
    """A linear map's output z [groups × N, C, H, W] for some candidates, one group of N images after the other.

    moments  its sums and sums of squares [groups, 2, C], float64, if they are known
    count    of the values in each of these sums: N × H × W unless said otherwise
    """

    __slots__ = ("count", "groups", "moments", "z")

    def __init__(self, z: Tensor, moments: Tensor | None = None, groups: int = 1, count: float | None = None):
        self.z, self.moments, self.groups = z, moments, groups
        self.count = count or float(z.numel() // (z.shape[1] * groups))


class Kernels:
    """The compiled library's functions, for float32 and float64 tensors in channels-last layout."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library

    def sums(self, z: Tensor, groups: int = 1) -> Tensor:
        """Return the sums and sums of squares [groups, 2, C], float64, of z [groups × N, C, H, W], channels last."""
        images, channels, height, width = z.shape
        out = torch.empty(groups, 2, channels, dtype=torch.float64)
        self._call("moments", last(z), out, groups, images // groups, height, width, channels)
        return out

    def rows_conv(
        self,
        x: Tensor,
        weights: Tensor,
        shifts: Tensor,
        size: tuple[int, int],
        like: Sequence[tuple[int, int | Tensor]] = (),
        base: Tensor | None = None,
        of: Sequence[int] = (),
    ) -> Preactivation:
        """Return some output channels, rows, of a convolution without a border (+ base): [N, rows, *size], contiguous.

        x        [N, C, H, W], contiguous
        weights  [rows, taps]
        shifts   [taps], int64: which value of an image of x a tap meets at the first pixel of the output
        size     height and width of the output
        like     of each of the last rows: before these, the row that it is like but for one tap, and that tap
        base     [N, bases, *size], contiguous, or None
        of       of each row: which of the bases it is added to
        """
        moved, images, (rows, taps) = len(like), len(x), weights.shape
        out = torch.empty((images, rows, *size), dtype=x.dtype)
        moments = torch.empty(1, 2, rows, dtype=torch.float64)
        likes = torch.tensor([(row, int(tap)) for row, tap in like], dtype=torch.int64)
        self._call(
            "rows_conv",
            *(x, shifts, weights, likes, base, torch.tensor(of, dtype=torch.int64), out, moments),
            *(0 if base is None else base.shape[1], taps, rows - moved, moved),
            *(images, x[0].numel(), *size, x.shape[3]),
        )
        return Preactivation(out, moments)

    def norm_changes(
        self,
        z: Preactivation,
        scale: Tensor,
        shift: Tensor,
        eps: float,
        activation: str | None,
        pairs: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Normalise and activate rows, and subtract the first of each pair from the second: [pairs, N, 1, H, W].

        z      [N, rows, H, W], contiguous, with its moments; batch norm takes its statistics from these
        scale  of batch norm: [rows], as its shift
        """
        assert z.moments is not None
        images, rows, height, width = z.z.shape
        out = torch.empty((len(pairs), images, 1, height, width), dtype=z.z.dtype)
        self._call(
            "norm_changes",
            *(z.z, z.moments, z.count, scale, shift, eps, CODES[activation], torch.tensor(pairs), out),
            *(len(pairs), images, rows, height * width),
        )
        return out

    def add_channels(
        self, base: Tensor, planes: Tensor, taps: Tensor, stride: int, out: Tensor | None = None
    ) -> Preactivation:
        """Add the 3×3 convolution of some input channels to a base.

        base    [N, CO, H', W'] channels last; `out` may be the same tensor
        planes  [channels, N, 1, H, W], contiguous
        taps    [channels, 3, 3, CO]
        stride  1, or 2 where average pooling follows the convolution
        """
        channels, images, _, height, width = planes.shape
        outputs = base.shape[1]
        out = torch.empty_like(base) if out is None else out
        moments = torch.empty(1, 2, outputs, dtype=torch.float64)
        sizes = channels, images, height, width, outputs, stride
        self._call("add_channels", last(base), planes, taps, last(out), moments, *sizes)
        return Preactivation(out, moments)

    def norm_conv(
        self,
        before: Preactivation,
        scale: Tensor,
        shift: Tensor,
        eps: float,
        activation: str | None,
        taps: Tensor,
        stride: int,
        base: Tensor | None,
    ) -> Preactivation:
        """Normalise with the statistics that follow from before.moments, activate, and convolve 3×3 (+ base).

        scale   of batch norm: [CI], as its shift
        taps    [3, 3, CI, CO]
        stride  1, or 2 where average pooling follows the convolution
        base    like the result: [groups × N, CO, H', W'], channels last, or None
        """
        z, groups = before.z, before.groups
        images, inputs, height, width = z.shape
        outputs = taps.shape[-1]
        size = height // stride, width // stride
        out = torch.empty((images, outputs, *size), dtype=z.dtype, memory_format=torch.channels_last)
        moments = torch.empty(groups, 2, outputs, dtype=torch.float64)
        self._call(
            "norm_conv",
            *(last(z), self._moments(before), before.count, scale, shift, eps, CODES[activation]),
            *(taps, None if base is None else last(base), out, moments),
            *(groups, images // groups, height, width, inputs, outputs, stride),
        )
        return Preactivation(out, moments, groups)

    def norm_max(
        self, before: Preactivation, scale: Tensor, shift: Tensor, eps: float, activation: str | None
    ) -> Tensor:
        """Normalise and activate as `norm_conv`; return each channel's maximum over the picture: [groups × N, C]."""
        z, groups = before.z, before.groups
        images, channels, height, width = z.shape
        out = torch.empty((images, channels), dtype=z.dtype)
        self._call(
            "norm_max",
            *(last(z), self._moments(before), before.count, scale, shift, eps, CODES[activation], out),
            *(groups, images // groups, height, width, channels),
        )
        return out

    def _moments(self, z: Preactivation) -> Tensor:
        return self.sums(z.z, z.groups) if z.moments is None else z.moments

    def _call(self, name: str, *arguments: Tensor | float | int | None) -> None:
        """Call a function of the library with tensors of one type, but for indices and moments [groups, 2, C].

        Raises ValueError for a tensor of another type, on another device, or with gaps.
        """
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        dtype = tensors[0].dtype
        for x in tensors:
            typed = x.dtype in (dtype, torch.int64) or (x.dtype == torch.float64 and x.dim() == 3)
            dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
            if not (typed and dense and x.device.type == "cpu"):
                raise ValueError(f"{name} takes no tensor {list(x.shape)}, {x.dtype}, {x.device}, strides {x.stride()}")
        function = getattr(self.library, f"{name}_{str(dtype).removeprefix('torch.')}")
        if not function(*map(_as_c, arguments), torch.get_num_threads()):
            raise ValueError(f"{name} is not compiled for these sizes: {arguments[-6:]}")


def last(z: Tensor) -> Tensor:
    """Return the tensor z [N, C, H, W]. Raises ValueError unless its layout is channels last."""
    if z.numel() and not z.is_contiguous(memory_format=torch.channels_last):
        raise ValueError(f"a tensor {list(z.shape)} must be channels last, and its strides are {z.stride()}")
    return z


def for_tensor(x: Tensor) -> "Kernels | CudaKernels | None":
    """Return the compiled kernels for the device and type of x; None where there are none."""
    if x.device.type == "cuda" and x.dtype == torch.float32:
        return load_cuda()
    return load_compiled() if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else None


def covering(z: Tensor, outputs: int) -> "Kernels | CudaKernels | None":
    """Return the compiled kernels for z, if they cover a convolution of z to so many channels."""
    covered = z.shape[1] in CHANNELS and outputs in CHANNELS and z.shape[1] <= outputs
    return for_tensor(z) if covered else None


@cache
def load_compiled() -> Kernels | None:
    """Compile or find the kernels of the CPU; None where that fails."""
    if os.environ.get("RSO_KERNELS") == "0":
        return None
    try:
        return Kernels(ctypes.CDLL(str(_compiled())))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or b""
        reason = " ".join([str(error), *said.decode(errors="replace").splitlines()[:1]])
        warnings.warn(f"no compiled kernels, the search runs in plain torch: {reason}", stacklevel=2)
        return None


def on_cuda(found: "Kernels | CudaKernels | None") -> "CudaKernels | None":
    """Return the kernels that were found if they are for a GPU, else None."""
    return None if isinstance(found, Kernels) else found


@cache
def load_cuda() -> "CudaKernels | None":
    """Return the kernels of a GPU, or None where Triton is missing (PyTorch for Windows comes without it)."""
    if os.environ.get("RSO_KERNELS") == "0" or importlib.util.find_spec("triton") is None:
        return None
    from .kernels_cuda import CudaKernels

    return CudaKernels()


def _compiled() -> Path:
    """Return the library for this machine in the user's cache; compile it where it is missing, or not whole.

    The name of the file holds a digest of the content: to load a file that was cut short may kill the process. The name
    does not depend on the compiler, which the nodes of a cluster may lack: a library of any compiler is taken.
    """
    source = SOURCE.read_text(encoding="utf-8")
    key = hashlib.sha256(f"{source}{FLAGS}{_processor()}".encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "rso_lib"
    there = sorted(folder.glob(f"kernels-{key}-*.so"))
    return next((path for path in there if _name(key, path.read_bytes()) == path.name), None) or _compile(folder, key)


def _compile(folder: Path, key: str) -> Path:
    """Compile the library into a folder, in which no half-written file is ever seen."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("there is no C++ compiler")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        part = Path(scratch) / "kernels.so"
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(part)]
        print("Compiling the kernels: about 15 seconds, once on this machine", file=sys.stderr)
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        content = part.read_bytes()
        if not content:
            raise OSError(f"{compiler} made an empty library")
        for stale in folder.glob(f"kernels-{key}-*.so"):  # each of them is not what its name says
            stale.unlink(missing_ok=True)
        return part.replace(folder / _name(key, content))


def _name(key: str, content: bytes) -> str:
    return f"kernels-{key}-{hashlib.sha256(content).hexdigest()[:16]}.so"


def _processor() -> str:
    """Return the system and processor that the compiled code is for: several machines may share a home folder."""
    return f"{platform.system()}{platform.machine()}{platform.processor()}{cpu_info('flags', 'Features')[:1]}"


def cpu_info(*keys: str) -> list[str]:
    """Return the values of some keys in /proc/cpuinfo, for each processor; none where there is no such file."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(keys)]


def _as_c(value: Tensor | float | int | None) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(None) if value is None else int(value)
