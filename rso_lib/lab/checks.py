"""What the check cells of the notebooks say."""

from collections.abc import Callable
from typing import Any

Test = tuple[Callable[[Any], Any], str]
"""A condition that the answer must meet, and what to say where it does not."""


def check(answer: Any, *tests: Test) -> None:
    """Print whether an answer is right, and where it is not, why: the reason of the first test that fails."""
    print(verdict(answer, *tests))


def verdict(answer: Any, *tests: Test) -> str:
    """What `check` prints. An answer of None is not given yet."""
    if answer is None:
        return "Not answered yet."
    for holds, reason in tests:
        try:
            right = bool(holds(answer))
        except Exception as error:
            return f"Not yet: your answer raises {type(error).__name__}: {error}"
        if not right:
            return f"Not yet: {reason}"
    return "Right."
