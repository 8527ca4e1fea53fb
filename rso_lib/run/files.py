"""Files of a run: each is on the disk as a whole or not at all, and one process writes in a folder at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


def folder_at(path: str | Path, name: str = "folder") -> Path:
    """Return the path of a folder that need not be there, with ~ read as the user's home.

    Raises ValueError, naming the argument, where the path is empty or that of a file.
    """
    if not str(path).strip():
        raise ValueError(f"{name} must be the name of a folder, such as runs/mine, not {str(path)!r}")
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and {name} must be the name of a folder: choose another one")
    return folder


def check_files(folder: Path, *names: str) -> None:
    """Raise ValueError where something else than a file has one of these names, or that of its half-written copy."""
    for path in (folder / (name + end) for name in names for end in ("", PART)):
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise ValueError(f"{path} is not a file, and the run needs its name: move it, or choose another folder")


def make(folder: Path) -> None:
    """Make a folder, with those above it, if it is not there. Raises OSError, naming the remedy."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, error) from error


class Busy(RuntimeError):
    """Another process holds the lock of a folder."""


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when the process ends, however it ends.

    wait  until no other process holds it (on Windows processes do not wait)

    Raises `Busy` where another process holds it (not noticed on Windows), OSError where it cannot be written.
    """
    check_files(folder, "lock")
    try:
        file = open(folder / "lock", "a")  # noqa: SIM115  # closed by the `with` below
    except OSError as error:
        raise _not_writable(folder, error) from error
    with file:
        if sys.platform != "win32":
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Busy(f"another process runs in {folder}; wait for it, or choose another folder") from None
        yield


PART = ".part"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file. It takes the place of `path` at once, when it is on the disk as a whole."""
    part = path.with_name(path.name + PART)
    try:
        yield part
        _sync(part)
        os.replace(part, path)
        if sys.platform != "win32":
            _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise OSError(f"{path} cannot be written ({reason}); what was saved before is still there") from error
        raise


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_writable(folder: Path, error: OSError) -> OSError:
    reason = error.strerror or error
    return OSError(f"{folder} cannot be written ({reason}): give yourself the right to, or choose another folder")
