"""Sources of images: scikit-learn's digits, the sets that torchvision downloads, anybody's own folder."""

import socket
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "qmnist": "QMNIST",
    "emnist": "EMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
PUBLISHED = {"MNIST": 0.1307, "FashionMNIST": 0.2860, "KMNIST": 0.1918}
"""The mean of the training part's pixels in 0..1, by which these sets are told from others in the same file format."""
COUNTS = dict.fromkeys(PUBLISHED, (60_000, 10_000)) | {"QMNIST": (60_000, 60_000), "EMNIST": (112_800, 18_800)}
"""Images in the two parts of the sets in MNIST's file format; torchvision itself checks the MD5 sums of CIFAR's."""
TIMEOUT = 15.0
"""Seconds without an answer after which a download is given up."""

GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's modes with at most 8 bits per channel. An image of another mode would lose detail."""

Part = tuple[Tensor, Tensor]
"""Images [N, C, H, W], uint8 or float32 in 0..1, and labels [N]."""


class Source(NamedTuple):
    """Images and labels as they are published."""

    train: Part
    test: Part
    classes: tuple[str, ...]


def digits(rng: torch.Generator) -> Source:
    """Return 1,797 digits of 8×8. In random order, then sorted by class, every fifth is a test image."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    labels = torch.from_numpy(bunch.target)
    order = torch.randperm(len(labels), generator=rng)
    order = order[labels[order].argsort(stable=True)]
    held = torch.arange(len(order)) % 5 == 0
    train, test = order[~held], order[held]
    return Source((images[train], labels[train]), (images[test], labels[test]), tuple("0123456789"))


def torchvision(name: str, root: Path) -> Source:
    """Read a set that torchvision knows from its files under `root`, and let torchvision download missing ones."""
    from torchvision import datasets

    dataset = getattr(datasets, TORCHVISION[name])
    options = {"split": "balanced"} if name == "emnist" else {}
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        train, test = (dataset(root, train=part, download=True, **options) for part in (True, False))
    except Exception as error:  # whatever the network, the disk and damaged files lead to
        raise FileNotFoundError(_remedy(dataset, root, error)) from error
    finally:
        socket.setdefaulttimeout(timeout)
    source = Source(_tensors(train), _tensors(test), tuple(label.split(" - ")[0] for label in train.classes))
    if dataset.__name__ in COUNTS and (strange := _strange(source, dataset.__name__)):
        raise ValueError(
            f"{train.raw_folder} does not hold {dataset.__name__}: {strange}. Delete these files, and the next load "
            "downloads them; images of your own are loaded with folder:PATH"
        )
    return source


def _tensors(part: Any) -> Part:
    """Return the images of a part, upright, and its labels."""
    labels = torch.as_tensor(part.targets)
    if isinstance(part.data, np.ndarray):
        return _channels_first(part.data), labels
    images = part.data.transpose(1, 2) if type(part).__name__ == "EMNIST" else part.data
    return images.unsqueeze(1), labels if labels.dim() == 1 else labels[:, 0]  # QMNIST's others say who wrote the digit


def _channels_first(pixels: np.ndarray) -> Tensor:
    """Move the channels of images to the front: [N, H, W, C] → [N, C, H, W]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _remedy(dataset: Any, root: Path, error: Exception) -> str:
    """Return what is wrong with the files of a set, and what to do, in words."""
    cifar = hasattr(dataset, "base_folder")
    folder = dataset.base_folder if cifar else f"{dataset.__name__}/raw"
    reason = (str(error).strip() or repr(error)).splitlines()[-1]
    place = root.absolute() if cifar else root.absolute() / folder
    addresses = _archives(dataset)
    archives, origin = ", ".join(Path(address).name for address in addresses), addresses[0].rpartition("/")[0]
    return (
        f"{root / folder}: files of {dataset.__name__} are missing or broken ({reason}). Delete a broken one, or all, "
        f"and the next load downloads it again. Without a network, put {archives} (from {origin}) into {place}, "
        f"or let root or $RSO_DATA name a folder that has {folder}"
    )


def _archives(dataset: Any) -> list[str]:
    """Return the addresses that a set is downloaded from."""
    if hasattr(dataset, "url"):
        return [dataset.url]
    if isinstance(dataset.resources, dict):
        return [url for part in ("train", "test") for url, _ in dataset.resources[part]]
    return [dataset.mirrors[0] + file for file, _ in dataset.resources]


def _strange(source: Source, name: str) -> str:
    """Return the first difference between a set in MNIST's file format and the published one, in words; "" for none."""
    for part, (images, labels), count in zip(("train", "test"), source[:2], COUNTS[name], strict=True):
        if images.shape != (count, 1, 28, 28) or len(labels) != count:
            size = f"{len(images):,} images of {images.shape[3]}×{images.shape[2]} pixels and {len(labels):,} labels"
            return f"its {part} part has {size}, not {count:,} of 28×28"
        if (high := int(labels.max())) >= len(source.classes):
            return f"its {part} part has a label {high}, but there are {len(source.classes)} classes"
    mean = float(source.train[0].mean(dtype=torch.float64)) / 255
    published = PUBLISHED.get(name, mean)
    if abs(mean - published) > 0.01:
        return f"its pixels have a mean of {mean:.3f}, not {published:.3f}, so this is another set of the same size"
    return ""


def folder(path: Path) -> Source:
    """Read the images in `path`/train/CLASS/* and `path`/test/CLASS/*."""
    classes, other = _classes(path / "train"), _classes(path / "test")
    if classes != other:
        unlike = ", ".join(sorted(set(classes) ^ set(other)))
        raise ValueError(f"{path}: train and test must have the same classes, but only one of the two has {unlike}")
    train, test = _files(path / "train", classes), _files(path / "test", classes)
    images = _images([file for file, _ in train + test])
    labels = torch.tensor([label for _, label in train + test])
    n = len(train)
    return Source((images[:n], labels[:n]), (images[n:], labels[n:]), tuple(classes))


def _classes(part: Path) -> list[str]:
    if not part.is_dir():
        raise FileNotFoundError(f"{part} is missing; images are expected in PATH/train/CLASS/* and PATH/test/CLASS/*")
    classes = sorted(entry.name for entry in part.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise FileNotFoundError(f"{part} has no folders; images are expected in one folder per class, {part / 'CLASS'}")
    return classes


def _files(part: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return every image file of a part, with its label."""
    from torchvision.datasets.folder import IMG_EXTENSIONS

    files = []
    for label, name in enumerate(classes):
        entries = sorted(entry for entry in (part / name).iterdir() if not entry.name.startswith("."))
        found = [(entry, label) for entry in entries if entry.suffix.lower() in IMG_EXTENSIONS]
        if not found:
            raise FileNotFoundError(f"{part / name} has no images, that is no files in {', '.join(IMG_EXTENSIONS)}")
        files += found
    return files


def _images(files: list[Path]) -> Tensor:
    """Read images as uint8: [N, 1, H, W] if all of them are grey, else [N, 3, H, W]."""
    images: list[np.ndarray] = []
    for file in tqdm(files, desc="reading images", unit=" images", delay=1, leave=False):
        images.append(_pixels(file))
        (height, width), (first_height, first_width) = images[-1].shape[:2], images[0].shape[:2]
        if (height, width) != (first_height, first_width):
            raise ValueError(
                f"{file} has {width}×{height} pixels, but {files[0]} has {first_width}×{first_height}; "
                "resize them to one size"
            )
    if all(image.ndim == 2 for image in images):
        return torch.from_numpy(np.stack(images)).unsqueeze(1)
    return _channels_first(np.stack([image if image.ndim == 3 else np.stack([image] * 3, -1) for image in images]))


def _pixels(file: Path) -> np.ndarray:
    """Read an image as uint8: [H, W] if it is grey, else [H, W, 3]; transparency is dropped."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode in GREY + COLOUR:
                return np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
            reason = f"pixels of mode {image.mode}; save it with 8 bits per channel"
    except Exception as error:  # whatever the decoder trips over in a damaged file
        reason = str(error)
    raise ValueError(f"{file} cannot be read as an image: {reason}")
