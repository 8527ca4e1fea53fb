"""Images, or rows of a table, as standardised tensors on a device: a training, a validation and a test part.

The whole set lives on the device: the search scores far more batches in a second than a loader could deliver.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import sources
from .calls import calling
from .proposals import generator
from .settings import check_arguments, check_choice, check_whole, function_of, plain
from .tensors import (
    Pair,
    argument_of,
    check_labels,
    check_pair,
    check_scale,
    count_of,
    items_of,
    labelled,
    names_of,
    pair_of,
)

NAMES = ("digits", *sources.TORCHVISION, "folder:PATH", "module:function")
VALIDATION_IMAGES = 5000
"""Size of the validation part, unless a tenth of the training images is less."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images [N, C, H, W], or rows of a table [N, F], and their labels or targets, on the same device.

    images  float32 or float64, standardised
    labels  numbers of classes [N], int64; where the loss is not cross entropy, targets [N, ...] of any kind
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:]))
        return f"Split({len(self):,} images of {size} on {self.images.device})"


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """Images and targets of a task, in three parts, as `load`, `Data.from_tensors` and `Data.from_dataset` return them.

    classes    the names of what a net gives an output for: the classes, or the columns of float targets
    mean, std  [C] of the channels of images, whose pixels are in 0..1; [F] of the columns of a table
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of an image, (C, H, W), or of a row of a table, (F,)."""
        return tuple(self.train.images.shape[1:])

    def to(self, *where: Any) -> "Data":
        """Move all tensors to a device, or turn the floating-point ones to a type, as `nn.Module.to` does."""

        def moved(x: Tensor) -> Tensor:
            return x.to(*where) if x.is_floating_point() else x.to(*where).to(x.dtype)

        train, val, test = (Split(moved(part.images), moved(part.labels)) for part in self.parts.values())
        return Data(self.name, train, val, test, self.classes, moved(self.mean), moved(self.std))

    @property
    def parts(self) -> dict[str, Split]:
        """Return the three parts by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def __repr__(self) -> str:
        parts = "".join(f",\n     {part}={getattr(self, part)}" for part in ("train", "val", "test"))
        return f"Data({self.name!r}, {len(self.classes)} classes{parts})"

    @classmethod
    def from_tensors(
        cls,
        x: Tensor,
        y: Tensor,
        *,
        val: float | tuple[Tensor, Tensor] | None = None,
        test: float | tuple[Tensor, Tensor] = 0.2,
        classes: int | Sequence[str] | None = None,
        seed: int = 0,
        standardise: bool = True,
        name: str = "tensors",
    ) -> "Data":
        """Split tensors into a training, a validation and a test part, and standardise them on the device they are on.

        x            images [N, C, H, W], rows of a table [N, F], or [N, C, ...]: float32, float64 or uint8 (0 to 255)
        y            labels [N], whole numbers from 0; or floating-point targets [N] or [N, T], for a loss of their own;
                     or truth values [N, T], one for each of several labels, which become 0.0 and 1.0
        val, test    each a share of all N (0.2), a whole number of them, or a pair (x, y) of other tensors; 0 for none.
                     By default a fifth is for the test, and of the rest a tenth, 5,000 at most, for validation
        classes      how many classes, or columns of targets, there are, or their names; else as many as y has
        seed         of the order in which the N are cut into parts
        standardise  each channel or column by mean and deviation of the training part; one that is constant there is
                     only shifted

        Raises ValueError or TypeError, naming the argument and the remedy, where these do not go together.
        """
        seed = plain(seed)
        check_whole("seed", seed, least=0)
        pairs = {"x": pair_of("x", (x, y))}
        for part, own in (("val", val), ("test", test)):
            if isinstance(own, (tuple, list)):
                pairs[part] = pair_of(part, own)
                check_scale(part, x, own[0])
        rows = len(x)
        if not rows:
            raise ValueError("x has no rows: give it at least one for training")
        names = names_of(classes, [targets for _, targets in pairs.values()])
        for part, (_, targets) in pairs.items():
            check_labels(argument_of("y", part), targets, len(names), labels=False)
        held = {}
        if "test" not in pairs:
            held["test"] = count_of("test", test, rows)
        if val is None:
            val = min(VALIDATION_IMAGES, (rows - held.get("test", 0)) // 10)
        if "val" not in pairs:
            held["val"] = count_of("val", val, rows)
        if (taken := sum(held.values())) >= rows:
            raise ValueError(f"val and test must leave some of the {rows:,} rows of x for training, not take {taken:,}")
        data = _raw(name, _cut(pairs.pop("x"), held, generator(seed)) | pairs, names)
        check_alike(data)
        return _standardised(data) if standardise else data

    @classmethod
    def from_dataset(cls, dataset: Any, *, val: Any = None, test: Any = 0.2, **options: Any) -> "Data":
        """Read all items (x, y) of a torch.utils.data.Dataset once, then split and standardise them as `from_tensors`.

        dataset    has a length and items, each a pair of tensors or numbers of one shape. What it changes at random
                   (augmentation) is drawn once
        val, test  as in `from_tensors`, or datasets
        options    as in `from_tensors`; the classes are by default those that the dataset names, if it does

        Raises ValueError or TypeError as `from_tensors`, and where an item is no such pair.
        """
        x, y = items_of("dataset", dataset)
        if labelled(y):
            options = {"classes": getattr(dataset, "classes", None), **options}
        val, test = (
            items_of(name, part) if isinstance(part, Dataset) else part for name, part in (("val", val), ("test", test))
        )
        return cls.from_tensors(x, y, val=val, test=test, **{"name": type(dataset).__name__, **options})


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    val_size: int | None = None,
) -> Data:
    """Read a set of images, split it, standardise it and put it on the device.

    name      "digits" (comes with scikit-learn); "mnist", "fashion_mnist", "kmnist", "qmnist", "emnist" (its balanced
              part of 47 letters and digits), "cifar10", "cifar100" (torchvision downloads them); "folder:PATH", images
              of one size in PATH/train/CLASS/* and PATH/test/CLASS/*; or "module:function", your function of
              (seed, val_size), the arguments below, that returns `Data`
    root      folder of the downloaded sets; by default the one that $RSO_DATA names, else data/ in `home()`
    device    where the tensors live
    seed      of the split, which is the same for the same seed on every device
    val_size  training images that are kept for validation: by default 5,000, or a tenth if that is less;
              0 trains on all of them, as the paper does

    The test part is the set's own; for digits it is a fifth of every class. The training part comes in random
    order, so that consecutive slices are fair batches. Each channel is standardised by mean and deviation of
    the training part (Algorithm 1, line 1); a channel that is constant there is only shifted. The images of a
    folder are all read as RGB unless all of them are grey.

    Raises ValueError or TypeError for an argument that is out of range, FileNotFoundError for files that are missing
    or that torchvision cannot read, ValueError for images of a folder that are broken and for files that do not fit
    together; the message names them, or their folder.
    """
    seed, val_size = plain(seed), plain(val_size)
    if not isinstance(name, str) or ":" not in name:
        check_choice("name", name, NAMES)
    check_whole("seed", seed, least=0)
    if val_size is not None:
        check_whole("val_size", val_size, least=0)
    if root is not None and not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be a folder, not {root!r}")
    _check_device(device)
    if ":" in name and not name.startswith("folder:"):
        return _of_function(name, seed, val_size).to(device)
    rng = generator(seed)
    (images, labels), test, classes = _read(name, root, rng)

    if val_size is None:
        val_size = min(VALIDATION_IMAGES, len(labels) // 10)
    if val_size >= len(labels):
        raise ValueError(f"val_size must be less than the {len(labels):,} training images, not {val_size:,}")
    parts = _cut((images, labels), {"val": val_size}, rng) | {"test": test}
    parts = {part: (_unit(pixels), targets.long()) for part, (pixels, targets) in parts.items()}
    return _standardised(_raw(name, parts, classes)).to(device)


def _of_function(name: str, seed: int, val_size: int | None) -> Data:
    """Return the data that a function of the user's makes. Raises ValueError or TypeError where it makes none."""
    function = function_of("name", name, {})
    check_arguments("name", function, "seed", "val_size")
    data = calling(f"{name} ({seed}, {val_size})", function, seed, val_size)
    if not isinstance(data, Data):
        raise TypeError(
            f"{name} returned a {type(data).__name__}; it must return Data, such as Data.from_tensors makes"
        )
    check_data(data, labels=False)
    return replace(data, name=name)


def _cut(pair: Pair, held: Mapping[str, int], rng: torch.Generator) -> dict[str, Pair]:
    """Cut images and labels at random into parts of given sizes; what is left is the training part."""
    images, labels = pair
    sizes = {**held, "train": len(labels) - sum(held.values())}
    order = torch.randperm(len(labels), generator=rng).to(images.device)
    return {part: (images[at], labels[at]) for part, at in zip(sizes, order.split([*sizes.values()]), strict=True)}


def _raw(name: str, parts: Mapping[str, Pair], classes: tuple[str, ...]) -> Data:
    """Return data that are not standardised: mean 0, deviation 1."""
    train, val, test = (Split(*parts[part]) for part in ("train", "val", "test"))
    zeros = train.images.new_zeros(train.images.shape[1])
    return Data(name, train, val, test, classes, mean=zeros, std=zeros + 1)


def _standardised(data: Data) -> Data:
    """Standardise each channel of data in place by the training part, and return the data."""
    images = data.train.images
    std, mean = torch.std_mean(images, dim=[0, *range(2, images.dim())], correction=0)
    each = (-1, *[1] * (images.dim() - 2))
    for part in data.parts.values():
        part.images.sub_(mean.view(each)).div_(torch.where(std > 0, std, 1.0).view(each))
    return replace(data, mean=mean, std=std)


def check_data(data: Data, labels: bool = True) -> None:
    """Raise ValueError or TypeError, naming the part and the remedy, where data made by hand cannot train a net.

    labels  whether targets must be the numbers of classes, as cross entropy needs them
    """
    for name, part in data.parts.items():
        check_split(name, part, len(data.classes), labels)
    if not len(data.train):
        raise ValueError(f"the train part of {data.name} has no images")
    check_alike(data)


def check_alike(data: Data) -> None:
    """Raise ValueError where the parts of data differ in shape, type or device."""
    for name, part in data.parts.items():
        for what in ("images", "labels"):
            its, of_train = _kind(getattr(part, what)), _kind(getattr(data.train, what))
            if len(part) and its != of_train:
                raise ValueError(f"{what} of the {name} part are {its}, but those of the train part are {of_train}")


def _kind(values: Tensor) -> str:
    """Return the shape, the type and the device of images, or of targets, as a text for errors."""
    return f"{'×'.join(map(str, values.shape[1:])) or 'numbers'}, {values.dtype}, on {values.device}"


def check_split(name: str, split: Split, classes: int | None = None, labels: bool = True) -> None:
    """Raise ValueError or TypeError, naming the part and the remedy, where images and labels do not go together.

    Arguments as in `tensors.check_pair`.
    """
    check_pair(f"images of {name}", f"labels of {name}", split.images, split.labels, classes, labels)


def home() -> Path:
    """Return the folder of data/ and runs/: the project's folder if this is a clone of it, else the current one."""
    project = Path(__file__).resolve().parents[1]
    return project if (project / "notebooks").is_dir() else Path()


def _check_device(device: str | torch.device) -> None:
    try:
        float(torch.zeros((), device=device, dtype=torch.float64))  # losses are summed in it, and read
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}; device='cpu' always can") from error


def _read(name: str, root: str | os.PathLike[str] | None, rng: torch.Generator) -> sources.Source:
    if name == "digits":
        return sources.digits(rng)
    if name in sources.TORCHVISION:
        return sources.torchvision(name, Path(root or os.environ.get("RSO_DATA") or home() / "data").expanduser())
    return sources.folder(Path(name.removeprefix("folder:")).expanduser())


def _unit(images: Tensor) -> Tensor:
    """Return pixels as float32 in 0..1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
