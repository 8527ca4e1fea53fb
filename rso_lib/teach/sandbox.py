"""Run the cells of a hand-in in this process, which can write in its own folder only.

    python -m rso_lib.teach.sandbox    with cells on the standard input, as `grade` starts it

What a cell prints is dropped. After each check, a line says how it ended. On Linux the kernel refuses all else that is
written, also by processes that a cell starts; elsewhere Python refuses, which stops mistakes and no determined attack.
"""

import ctypes
import json
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Linux: Landlock

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
NO_NEW_PRIVILEGES = 38
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
CHANGES = WRITE_FILE | sum(1 << k for k in range(4, 13))
"""To write, remove, and make files, folders, sockets, pipes, devices and links."""


def landlock(folder: Path) -> bool:
    """Let this process, and all that it starts, change files in a folder only; False where Linux has no such rule."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(CREATE_RULESET, None, 0, 1)
    if version < 1:
        return False
    changes = CHANGES | (TRUNCATE if version >= 3 else 0)
    rules = libc.syscall(CREATE_RULESET, struct.pack("Q", changes), 8, 0)
    for path, allowed in ((folder, changes), (Path(os.devnull), changes & (WRITE_FILE | TRUNCATE))):
        place = os.open(path, os.O_PATH)
        libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0)
        os.close(place)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    return bool(libc.syscall(RESTRICT_SELF, rules, 0) == 0)


# Elsewhere: Python's audit events

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.startfile")
MOVES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def refuse(folder: Path) -> None:
    """Raise PermissionError, from now on, where Python changes files outside of a folder or starts a process."""
    folder = folder.resolve()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            raise PermissionError(f"a hand-in starts no process ({event})")
        if event in MOVES or (event == "open" and arguments[2] & WRITING):
            for path in arguments[:2] if event == "os.rename" else arguments[:1]:
                if isinstance(path, int) or path == os.devnull:  # an integer is a file that is open already
                    continue
                if not Path(os.fsdecode(path)).resolve().is_relative_to(folder):
                    raise PermissionError(f"a hand-in writes in its own folder only, not to {os.fsdecode(path)}")

    sys.addaudithook(hook)


# Running


def run(cells: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Run cells of (the exercise that they check, or ""; source). Yields for each check its name and how it ended."""
    from IPython.core.interactiveshell import InteractiveShell

    from ..lab import checks

    shell = InteractiveShell.instance()
    original = dict(vars(checks))
    for exercise, source in cells:
        if exercise:  # an answer may have given these names to something else
            vars(checks).update(original)
            shell.user_ns["check"] = checks.check
        result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        if exercise:
            yield exercise, checks.RIGHT if error is None else reason_of(error)


def reason_of(error: BaseException) -> str:
    """Return the message of an error in a line."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, AssertionError) and lines[0] else f"{type(error).__name__}: {lines[0]}"


def main() -> None:
    """Read cells from the standard input, shut the process in, run them, and write how the checks ended."""
    cells = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    from ..engine import kernels

    kernels.load_compiled()  # while the compiler may still be started
    if Path("/proc/self/oom_score_adj").exists():
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this process ends first
    if not landlock(Path.cwd()):
        refuse(Path.cwd())
    for name, ended in run(cells):
        print(json.dumps([name, ended]), file=answers, flush=True)


if __name__ == "__main__":
    main()
