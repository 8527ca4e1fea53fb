"""Images as standardised tensors on a device, split into a training, a validation and a test part.

The whole set lives on the device: the search scores far more batches in a second than a loader could deliver.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import sources
from .proposals import generator
from .settings import check_choice, check_whole, plain

NAMES = ("digits", *sources.TORCHVISION, "folder:PATH")
VALIDATION_IMAGES = 5000
"""Size of the validation part, unless a tenth of the training images is less."""


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images [N, C, H, W], float32 and standardised, and labels [N], int64, on the same device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.images.shape[1:]))
        return f"Split({len(self):,} images of {size} on {self.images.device})"


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """What `load` returns. `mean` and `std`, both [C], are those of the training part's pixels in 0..1."""

    name: str
    train: Split
    val: Split
    test: Split
    classes: tuple[str, ...]
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def __repr__(self) -> str:
        parts = "".join(f",\n     {part}={getattr(self, part)}" for part in ("train", "val", "test"))
        return f"Data({self.name!r}, {len(self.classes)} classes{parts})"


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
    val_size: int | None = None,
) -> Data:
    """Read a set of images, split it, standardise it and put it on the device.

    name      "digits" (comes with scikit-learn); "mnist", "fashion_mnist", "kmnist", "cifar10" (torchvision
              downloads them); "folder:PATH", images of one size in PATH/train/CLASS/* and PATH/test/CLASS/*
    root      folder of the downloaded sets; by default the one that $RSO_DATA names, else data/ in `home()`
    device    where the tensors live
    seed      of the split, which is the same for the same seed on every device
    val_size  training images that are kept for validation: by default 5,000, or a tenth if that is less;
              0 trains on all of them, as the paper does

    The test part is the set's own; for digits it is a fifth of every class. The training part comes in random
    order, so that consecutive slices are fair batches. Each channel is standardised by mean and deviation of
    the training part (Algorithm 1, line 1); a channel that is constant there is only shifted. The images of a
    folder are all read as RGB unless all of them are grey.

    Raises ValueError or TypeError for an argument that is out of range, FileNotFoundError for files that are
    missing, ValueError for files that are broken or do not fit together; the message names them.
    """
    seed, val_size = plain(seed), plain(val_size)
    check_wanted(name, seed, val_size)
    if root is not None and not isinstance(root, (str, os.PathLike)):
        raise TypeError(f"root must be a folder, not {root!r}")
    _check_device(device)
    rng = generator(seed)
    (images, labels), test, classes = _read(name, root, rng)

    if val_size is None:
        val_size = min(VALIDATION_IMAGES, len(labels) // 10)
    if val_size >= len(labels):
        raise ValueError(f"val_size must be less than the {len(labels):,} training images, not {val_size:,}")
    order = torch.randperm(len(labels), generator=rng)
    val, train = order[:val_size], order[val_size:]

    pixels = _unit(images[train])
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0)
    scale = torch.where(std > 0, std, 1.0)

    def split(pixels: Tensor, labels: Tensor) -> Split:
        standardised = pixels.sub_(mean[:, None, None]).div_(scale[:, None, None])
        return Split(standardised.to(device), labels.long().to(device))

    return Data(
        name,
        train=split(pixels, labels[train]),
        val=split(_unit(images[val]), labels[val]),
        test=split(_unit(test[0]), test[1]),
        classes=classes,
        mean=mean.to(device),
        std=std.to(device),
    )


def check_wanted(
    dataset: object, seed: object, val_size: object, *, called: tuple[str, str] = ("name", "seed")
) -> None:
    """Raise ValueError or TypeError where there is no such set of images, seed of its split or validation part.

    called  what the caller calls the set and the seed
    """
    if not isinstance(dataset, str) or not dataset.startswith("folder:"):
        check_choice(called[0], dataset, NAMES)
    check_whole(called[1], seed, least=0)
    if val_size is not None:
        check_whole("val_size", val_size, least=0)


def check_data(data: Data) -> None:
    """Raise ValueError or TypeError, naming the part and the remedy, where data made by hand cannot train a net."""
    parts = {"train": data.train, "val": data.val, "test": data.test}
    for name, part in parts.items():
        check_split(name, part, len(data.classes))
    if not len(data.train):
        raise ValueError(f"the train part of {data.name} has no images")
    of_train = _kind(data.train.images)
    for name, part in parts.items():
        if len(part) and (its := _kind(part.images)) != of_train:
            raise ValueError(f"images of the {name} part are {its}, but those of the train part are {of_train}")


def _kind(images: Tensor) -> str:
    """What images of one net have in common: shape, type and device."""
    return f"{'×'.join(map(str, images.shape[1:]))}, {images.dtype}, on {images.device}"


def check_split(name: str, split: Split, classes: int | None = None) -> None:
    """Raise ValueError or TypeError, naming the part and the remedy, where images and labels do not go together.

    classes  how many there are, where that is known
    """
    images, labels = split.images, split.labels
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"images and labels of {name} must be tensors: call torch.as_tensor")
    if not images.is_floating_point():
        raise TypeError(f"images of {name} must be floating-point numbers, not {images.dtype}: call .float()")
    if labels.dtype != torch.int64:
        raise TypeError(
            f"labels of {name} must be torch.int64, the numbers of classes, not {labels.dtype}: call .long()"
        )
    if labels.dim() != 1 or images.dim() < 2 or len(images) != len(labels):
        raise ValueError(
            f"{name} must have images [N, C, H, W] and as many labels [N], "
            f"not of the shapes {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if images.device != labels.device:
        raise ValueError(f"images of {name} are on {images.device}, but its labels on {labels.device}")
    if not images.numel():
        return
    if not torch.stack(torch.aminmax(images.detach())).isfinite().all():
        raise ValueError(f"images of {name} have NaN or infinite values: leave them out, or replace these values")
    low, high = (int(value) for value in torch.aminmax(labels))
    if low < 0 or high >= (high + 1 if classes is None else classes):
        least = "at least 0" if classes is None else f"0 to {classes - 1}, as there are {classes} classes"
        raise ValueError(f"labels of {name} must be {least}, not {low if low < 0 else high}")


def home() -> Path:
    """Where data/ and runs/ lie: the project's folder if this is a clone of it, else the current one."""
    project = Path(__file__).resolve().parents[1]
    return project if (project / "notebooks").is_dir() else Path()


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device, dtype=torch.float64)  # losses are summed in it
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
    """Pixels as float32 in 0..1."""
    return images.float() / 255 if images.dtype == torch.uint8 else images
