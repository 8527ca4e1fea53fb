"""Nets of `models` by their names, and their options, each checked by its type."""

import ast
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from .. import models
from ..calls import calling
from ..models import Net
from ..proposals import noise
from ..settings import check_choice, function_of, plain

NETS: dict[str, Callable[..., Net]] = {
    "one_conv": models.one_conv,
    "two_conv": models.two_conv,
    "mnist_net": models.mnist_net,
    "cifar_net": models.cifar_net,
}


def build_net(net: str, shape: Sequence[int], classes: int, seed: int, **options: Any) -> nn.Module:
    """Make a net of `models` by its name, or the net of a function, "module:function".

    A function of the user's gets what it has arguments for: shape, classes, seed, and the options. What it draws from
    torch's generators, as the modules of torch do, follows from the seed as well.

    Raises ValueError for an unknown net, TypeError where the function makes no module, and what `check_options` raises.
    """
    check_options(net, options)
    if net in NETS:
        return NETS[net](shape=tuple(shape), classes=classes, seed=seed, **options)
    function, given = function_of("net", net, NETS), {"shape": tuple(shape), "classes": classes, "seed": seed}
    taken = inspect.signature(function).parameters
    given = {name: value for name, value in given.items() if name in taken}
    with noise(torch.device("cpu"), seed):
        made = calling(f"net {net}", function, **given, **options)
    if not isinstance(made, nn.Module):
        raise TypeError(f"{net} returned a {type(made).__name__}; it must return a torch.nn.Module")
    return made


def check_options(net: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown net or option of a net, and TypeError for an option of another type.

    Types other than those in `NAMES`, and their unions, are not checked.
    """
    function = function_of("net", net, NETS)
    known, kinds = inspect.signature(function).parameters.keys() - {*GIVEN}, get_type_hints(function)
    for name, value in options.items():
        if not known:
            raise ValueError(f"{net} has no options, and net_options gives it {name}: leave that out")
        check_choice(f"an option of {net}", name, sorted(known))
        kind = kinds.get(name)
        allowed = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if float in allowed:
            allowed = (*allowed, int)
        if all(one in NAMES for one in allowed) and type(value) not in allowed:
            raise TypeError(f"{name} of {net} must be {' or '.join(NAMES[one] for one in allowed)}, not {value!r}")


def plain_options(net: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return options of a net with numbers of Python in place of numpy's.

    Raises TypeError where they are no table, or, naming the option, where one is of a kind that settings.json cannot
    hold.
    """
    if not isinstance(options, Mapping | None):
        raise TypeError(f"net_options must be a table such as {{'levels': 3}}, not {options!r}")
    found = {name: plain(value) for name, value in (options or {}).items()}
    for name, value in found.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} of {net} must be a number, a word, a truth value or None, or a list of these, not {value!r}"
            ) from error
    return found


def read_options(net: str, text: str) -> dict[str, Any]:
    """Return the options that a text such as depth=5,pool_last=yes gives a net, as values of Python.

    Raises ValueError for a text of another form or a name that comes twice, and what `check_options` raises.
    """
    options = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not (name and equals and value):
            raise ValueError(f"net_options must be names with values, such as depth=5,head=mean, not {text!r}")
        name = name.replace("-", "_")
        if name in options:
            raise ValueError(f"net_options has {name} twice: {text!r}")
        options[name] = _value(value)
    check_options(net, options)
    return options


def _value(text: str) -> Any:
    """Return a truth value, a number or None where a text is one, and else the text."""
    if text.lower() in TRUTH:
        return TRUTH[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


TRUTH = {"true": True, "yes": True, "false": False, "no": False}
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "None"}
GIVEN = ("shape", "classes", "seed")
"""Arguments of a net that come from its run and are no options."""
