"""Calls of the user's functions, and the names that errors give to these functions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def calling(what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function of the user's.

    Raises ValueError, naming the call, where the function raises anything or writes into a tensor that it is given.
    """
    given = [x for x in arguments if isinstance(x, Tensor) and not x.is_inference()]  # of which torch counts the writes
    versions = [x._version for x in given]
    try:
        found = function(*arguments, **named)
    except Exception as error:  # whatever goes wrong in a function of the user's
        raise ValueError(f"{what} raised {type(error).__name__}: {error}") from error
    if [x._version for x in given] != versions:
        raise ValueError(f"{what} has written into a tensor that it was given; let it work on a copy: x.clone()")
    return found


def called(function: Any) -> str:
    """Return the name that an error gives to a function of the user's."""
    return getattr(function, "__name__", None) or repr(function)
