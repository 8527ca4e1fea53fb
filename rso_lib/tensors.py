"""Tensors and datasets that users bring: read and checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .settings import check_number, check_whole, plain

Pair = tuple[Tensor, Tensor]
"""Images or rows [N, ...], and labels or targets [N, ...]."""
FLOATS = (torch.float32, torch.float64)
MOST_CLASSES = 1_000_000
BYTES_OR_FLOATS = (torch.uint8, *FLOATS)


def labelled(targets: Tensor) -> bool:
    """Return whether targets are the number of one class for each image: [N], int64."""
    return targets.dtype == torch.int64 and targets.dim() == 1


def pair_of(part: str, pair: Any) -> Pair:
    """Return copies of x and y as `Data` holds them: labels as int64, truth values of several labels as float32.

    Raises ValueError or TypeError, naming what is wrong.
    """
    if len(pair) != 2:
        raise ValueError(f"{part} must be a pair (x, y) of tensors, a share or a whole number, not {len(pair)} things")
    x, y = pair
    check_tensor(argument_of("x", part), x)
    check_tensor(argument_of("y", part), y)
    if x.dtype not in BYTES_OR_FLOATS:
        raise TypeError(f"{argument_of('x', part)} must be float32, float64 or uint8, not {x.dtype}: call .float()")
    if y.dtype == torch.bool and y.dim() > 1:
        y = y.float()
    elif not (y.is_floating_point() or y.is_complex()):
        y = y.long()
    x, y = x.detach().clone(), y.detach().clone()
    x = x.float() / 255 if x.dtype == torch.uint8 else x
    check_pair(argument_of("x", part), argument_of("y", part), x, y, labels=False)
    return x, y


def check_scale(part: str, x: Tensor, own: Tensor) -> None:
    """Raise TypeError where only one of x and the images of a part holds bytes, which are divided by 255."""
    if (x.dtype == torch.uint8) != (own.dtype == torch.uint8):
        raise TypeError(
            f"x of {part} must be of the type of x, which is {x.dtype}, not {own.dtype}: bytes are divided by 255, "
            f"and other numbers are not"
        )


def argument_of(name: str, part: str) -> str:
    """Return the name of x or y in an error: "x", or "x of val" for a part with tensors of its own."""
    return name if part == "x" else f"{name} of {part}"


def items_of(name: str, dataset: Any) -> Pair:
    """Return all items of a dataset as tensors x [N, ...] and y [N, ...]. Raises ValueError or TypeError, naming it."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"{name} must have a length and items (x, y), as a torch.utils.data.Dataset has, and not be a "
            f"{type(dataset).__name__}"
        )
    if not len(dataset):
        raise ValueError(f"{name} has no items")
    rows: list[Pair] = []
    for k in tqdm(range(len(dataset)), desc="reading items", unit=" items", delay=1, leave=False):
        try:
            item = dataset[k]
            if isinstance(item, Mapping):
                raise TypeError(f"a {type(item).__name__} with {', '.join(map(str, item))}")
            x, y = item
            rows.append((_tensor(x).clone(), _tensor(y).clone()))  # the next item may lie in the same memory
        except Exception as error:  # whatever goes wrong in a dataset of the user's
            raise ValueError(
                f"item {k} of {name} is no pair (x, y) of tensors or numbers ({type(error).__name__}: {error}): give "
                f"the dataset a transform that makes one, such as torchvision.transforms.ToTensor(), or give a list of "
                f"such pairs"
            ) from error
        for what, one, first in zip(("x", "y"), rows[-1], rows[0], strict=True):
            if (one.shape, one.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"{what} of item {k} of {name} is {list(one.shape)} of {one.dtype}, but that of item 0 is "
                    f"{list(first.shape)} of {first.dtype}: bring them to one size and type"
                )
    images, targets = (torch.stack(column) for column in zip(*rows, strict=True))
    return images, targets


def _tensor(value: Any) -> Tensor:
    if type(value).__module__.startswith("PIL."):  # torch would take its channels for columns
        raise TypeError(f"a {type(value).__name__} of PIL")
    return torch.as_tensor(value)


def count_of(name: str, size: Any, rows: int) -> int:
    """Return how many rows a share or a whole number means. Raises ValueError or TypeError where it is neither."""
    size = plain(size)
    check_number(name, size)
    if isinstance(size, int):
        check_whole(name, size, least=0)
        return size
    if not 0 <= size < 1:
        raise ValueError(f"{name} must be a share of the rows, at least 0 and below 1, or a whole number, not {size}")
    return round(size * rows)


def names_of(classes: int | Sequence[str] | None, targets: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the names of the classes, or of the columns of float targets; where none are given, numbers from 0.

    Raises ValueError or TypeError where there are not as many names as columns.
    """
    y = targets[0]
    found = y.shape[1] if y.dim() > 1 else 1
    if not y.is_floating_point():
        found = max(int(each.max()) + 1 for each in targets if each.numel())
        if found > MOST_CLASSES:
            raise ValueError(
                f"y has the label {found - 1:,}, and labels are the numbers of classes, from 0; numbers that are no "
                f"labels must be floating-point: call .float()"
            )
    classes = found if classes is None else plain(classes)
    if isinstance(classes, int):
        check_whole("classes", classes, least=1)
        classes = [*map(str, range(classes))]
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a whole number or a list of names, not {classes!r}")
    if y.is_floating_point() and len(classes) != found:
        raise ValueError(f"classes must have a name for each of the {found} columns of y, not {len(classes)}")
    return tuple(classes)


def check_pair(x: str, y: str, images: Any, targets: Any, classes: int | None = None, labels: bool = True) -> None:
    """Raise ValueError or TypeError, with the names x and y and the remedy, where images and targets do not fit.

    classes  how many there are, where that is known
    labels   whether targets must be the numbers of classes, as cross entropy needs them
    """
    check_tensor(x, images)
    check_tensor(y, targets)
    if not images.is_floating_point():
        raise TypeError(f"{x} must be floating-point numbers, not {images.dtype}: call .float()")
    if labels and targets.dtype != torch.int64:
        raise TypeError(
            f"{y} must be torch.int64, the numbers of classes, not {targets.dtype}: call .long(), or train and "
            f"evaluate with a loss for such targets (loss=...)"
        )
    if targets.dtype not in (torch.int64, *FLOATS):
        raise TypeError(f"{y} must be torch.int64, float32 or float64, not {targets.dtype}: call .long() or .float()")
    if images.dim() < 2 or targets.dim() < 1 or len(images) != len(targets) or (labels and targets.dim() > 1):
        of_each, remedy = (
            ("[N]", "; call .squeeze(1) on a column, .argmax(1) on rows of 0 and 1") if labels else ("[N, ...]", "")
        )
        raise ValueError(
            f"{x} must be images [N, C, H, W] or rows [N, F], and {y} as many labels {of_each}, "
            f"not of the shapes {tuple(images.shape)} and {tuple(targets.shape)}{remedy}"
        )
    if images.device != targets.device:
        raise ValueError(f"{x} and {y} must be on one device, not on {images.device} and {targets.device}: call .to")
    for name, values in ((x, images), (y, targets)):
        if values.numel() and not torch.stack(torch.aminmax(values.detach())).isfinite().all():
            raise ValueError(f"NaN or infinite values in {name}: leave them out, or replace them")
    check_labels(y, targets, classes, labels)


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError where an argument is not a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, not a {type(value).__name__}: call torch.as_tensor")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, not {value.layout}: call .to_dense()")


def check_labels(name: str, targets: Tensor, classes: int | None, labels: bool) -> None:
    """Raise ValueError where targets are labels, and one is below 0 or at least `classes`.

    Arguments as in `check_pair`.
    """
    if not labelled(targets) or not len(targets):
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low >= 0 and (classes is None or high < classes):
        return
    allowed = "at least 0" if classes is None else f"0 to {classes - 1}, as there are {classes} classes"
    hint = "" if labels else "; numbers that are no labels must be floating-point: call .float()"
    raise ValueError(f"{name} must be {allowed}, not {low if low < 0 else high}{hint}")
