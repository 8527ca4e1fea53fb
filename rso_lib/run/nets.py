"""Nets of `models` by their names, and their options, each checked by its type."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

import torch
from torch import nn

from .. import models
from ..models import Net
from ..proposals import noise
from ..settings import calling, check_choice, function_of

NETS: dict[str, Callable[..., Net]] = {
    "one_conv": models.one_conv,
    "two_conv": models.two_conv,
    "mnist_net": models.mnist_net,
    "cifar_net": models.cifar_net,
}


def build(net: str, shape: Sequence[int], classes: int, seed: int, **options: Any) -> nn.Module:
    """Make a net of `models` by its name, or the net of a function, "module:function".

    A function of the user's gets what it has arguments for: shape, classes, seed, and the options. What it draws from
    torch's generators, as the modules of torch do, follows from the seed as well.

    Raises ValueError for a name or an option that there is not, TypeError for an option of another type, or where the
    function makes no module.
    """
    kinds = option_kinds(net)
    for name, value in options.items():
        check_choice(f"an option of {net}", name, sorted(kinds))
        if not _is_of(value, kinds[name]):
            raise TypeError(f"{name} of {net} must be {_said(kinds[name])}, not {value!r}")
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


def option_kinds(net: str) -> dict[str, Any]:
    """Return the options of a net with the type of each. Raises ValueError where there is no net of this name."""
    function = function_of("net", net, NETS)
    kinds = get_type_hints(function)
    return {name: kinds.get(name, Any) for name in inspect.signature(function).parameters if name not in GIVEN}


def read_options(net: str, text: str) -> dict[str, Any]:
    """Return the options that a text such as depth=5,pool_last=yes gives a net, each read as its type.

    Raises ValueError, naming the option, for what cannot be read, an unknown name, or a name that comes twice.
    """
    kinds, options = option_kinds(net), {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        name = name.replace("-", "_")
        if not (name and equals and value):
            raise ValueError(f"net_options must be names with values, such as depth=5,head=mean, not {text!r}")
        check_choice(f"an option of {net}", name, sorted(kinds))
        if name in options:
            raise ValueError(f"net_options has {name} twice: {text!r}")
        options[name] = _option(f"{name} of {net}", value, kinds[name])
    return options


def _option(name: str, text: str, kind: Any) -> Any:
    """Return what a text says, as a type. Raises ValueError where it says nothing of that type."""
    if kind is bool and text.lower() in TRUTH:
        return TRUTH[text.lower()]
    try:
        value = text if kind is str else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    value = float(value) if kind is float and type(value) is int else value
    if not _is_of(value, kind):
        raise ValueError(f"{name} must be {_said(kind)}, not {text!r}")
    return value


def _is_of(value: object, kind: Any) -> bool:
    """Return whether a value is of a type; True is no number, and a type that is none of ours holds everything."""
    kinds = get_args(kind) or (kind,)
    known = [one for one in kinds if one in SAID]
    return len(known) < len(kinds) or type(value) in known or (float in known and type(value) is int)


def _said(kind: Any) -> str:
    return " or ".join(SAID[one] for one in get_args(kind) or (kind,))


TRUTH = {word: truth for truth, words in ((True, "true yes on 1"), (False, "false no off 0")) for word in words.split()}
SAID = {
    bool: "true or false (yes, no, 1, 0)",
    int: "a whole number",
    float: "a number",
    str: "a word",
    type(None): "None",
}
GIVEN = ("shape", "classes", "seed")
"""What a net gets from its run."""


def as_built(net: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored run's options as its net was built, from before types were checked: any text turned an option on,
    and 5.0 was 5."""
    kinds = option_kinds(net) if net in NETS else {}
    read = {bool: bool, int: int}
    return {name: read.get(kinds.get(name, Any), _itself)(value) for name, value in options.items()}


def _itself(value: Any) -> Any:
    return value
