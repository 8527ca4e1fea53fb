"""Sources of images: scikit-learn's digits, the sets that torchvision downloads, anybody's own folder."""

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
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
"""Images in the two parts of the sets in MNIST's file format."""
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
    """Read a set that torchvision knows from its files under `root`, and download missing ones."""
    from torchvision import datasets

    dataset = getattr(datasets, TORCHVISION[name])
    return _cifar(dataset, root) if name.startswith("cifar") else _mnist(_published(dataset), root)


class Published(NamedTuple):
    """A set in MNIST's file format.

    parts     the beginning of the file names of the training part, and of the test part
    labels    the end of the file names of labels
    classes   the names of the classes
    archives  the archives that are downloaded from an address, with their MD5 sums
    fetch     downloads the archives to a folder
    upright   whether images are stored row by row
    """

    name: str
    parts: tuple[str, str]
    labels: str
    classes: Sequence[str]
    archives: dict[str, str]
    url: str
    fetch: Callable[[Path], object]
    upright: bool = True


def _published(dataset: Any) -> Published:
    name, bytes_, words = dataset.__name__, "labels-idx1-ubyte", "labels-idx2-int"
    if name == "EMNIST":
        parts, archives = ("emnist-balanced-train", "emnist-balanced-test"), {Path(dataset.url).name: dataset.md5}
        classes, fetch = dataset.classes_split_dict["balanced"], partial(dataset, split="balanced", download=True)
        return Published(name, parts, bytes_, classes, archives, dataset.url, fetch, upright=False)
    classes = [label.split(" - ")[0] for label in dataset.classes]
    if name == "QMNIST":
        files = [*dataset.resources["train"], *dataset.resources["test"]]
        archives, url = {Path(file).name: md5 for file, md5 in files}, files[0][0].rpartition("/")[0]
        return Published(name, ("qmnist-train", "qmnist-test"), words, classes, archives, url, partial(_both, dataset))
    fetch, archives = partial(dataset, download=True), dict(dataset.resources)
    return Published(name, ("train", "t10k"), bytes_, classes, archives, dataset.mirrors[0], fetch)


def _both(dataset: Any, folder: Path) -> None:
    """Download the training and the test part of QMNIST, each by itself."""
    for train in (True, False):
        dataset(folder, train=train, download=True)


def _mnist(known: Published, root: Path) -> Source:
    raw = root / known.name / "raw"
    files = [raw / f"{part}-{what}" for part in known.parts for what in ("images-idx3-ubyte", known.labels)]
    if missing := [file for file in files if not file.is_file()]:
        _download(known.fetch, root, missing, raw, known.archives, known.url)
    train, test = (_idx(raw, part, known) for part in known.parts)
    source = Source(train, test, tuple(known.classes))
    if strange := _strange(source, known):
        raise ValueError(
            f"{raw} does not hold {known.name}: {strange}. Delete these files, and the next load downloads them; "
            "images of your own are loaded with folder:PATH"
        )
    return source


def _strange(source: Source, known: Published) -> str:
    """Return the first difference between a set and the published one, in words; "" for none."""
    for part, (images, labels), count in zip(known.parts, source[:2], COUNTS[known.name], strict=True):
        if images.shape[2:] != (28, 28):
            return f"{part}-* has images of {images.shape[3]}×{images.shape[2]} pixels, not 28×28"
        if len(labels) and (high := int(labels.max())) >= len(source.classes):
            return f"{part}-* has a label {high}, but there are {len(source.classes)} classes"
        if len(labels) != count:
            return f"{part}-* has {len(labels):,} images, not {count:,}"
    pixels, mean = source.train[0], PUBLISHED.get(known.name)
    its = float(pixels.sum(dtype=torch.float64)) / pixels.numel() / 255
    if mean is not None and abs(its - mean) > 0.01:
        return f"its pixels have a mean of {its:.3f}, not {mean:.3f}, so this is another set of the same size"
    return ""


def _idx(raw: Path, part: str, known: Published) -> Part:
    """Read a part in MNIST's own file format."""
    from torchvision.datasets.mnist import read_image_file, read_label_file, read_sn3_pascalvincent_tensor

    reader = read_label_file if known.labels.startswith("labels-idx1") else read_sn3_pascalvincent_tensor
    images = _parse(read_image_file, raw / f"{part}-images-idx3-ubyte")
    labels = _parse(reader, raw / f"{part}-{known.labels}")
    if len(images) != len(labels):
        raise ValueError(f"{raw}: {len(images):,} images but {len(labels):,} labels in {part}-*; delete these files")
    labels = labels if labels.dim() == 1 else labels[:, 0]  # the other columns of QMNIST say who wrote the digit
    return (images if known.upright else images.transpose(1, 2)).unsqueeze(1), labels


def _parse(reader: Any, file: Path) -> Tensor:
    try:
        return reader(str(file))
    except Exception as error:  # whatever the reader trips over in a damaged file
        raise ValueError(f"{file} is broken; delete it, and the next load downloads it again") from error


def _cifar(dataset: Any, root: Path) -> Source:
    from torchvision.datasets.utils import check_integrity

    files = [*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])]
    paths = [(root / dataset.base_folder / file, md5) for file, md5 in files]
    if missing := [path for path, md5 in paths if not check_integrity(path, md5)]:
        fetch = partial(dataset, download=True)
        _download(fetch, root, missing, root, {dataset.filename: dataset.tgz_md5}, dataset.url)
    train, test = (dataset(root, train=part) for part in (True, False))
    return Source(_from_cifar(train), _from_cifar(test), tuple(train.classes))


def _from_cifar(part: Any) -> Part:
    return _channels_first(part.data), torch.tensor(part.targets)


def _channels_first(pixels: np.ndarray) -> Tensor:
    """Move the channels of images to the front: [N, H, W, C] → [N, C, H, W]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _download(
    fetch: Callable[[Path], object], root: Path, missing: list[Path], place: Path, archives: dict[str, str], url: str
) -> None:
    """Fetch and unpack the archives in a temporary folder, and move the missing files in once all are whole."""
    from torchvision.datasets.utils import check_integrity

    given = [place / archive for archive in archives if (place / archive).is_file()]  # put there by hand
    whole = [file for file in given if check_integrity(file, archives[file.name])]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as name:
            temporary = Path(name)
            target = temporary / place.relative_to(root)
            target.mkdir(parents=True, exist_ok=True)
            for file in whole:
                shutil.copy(file, target)
            fetch(temporary)
            for file in missing:
                file.parent.mkdir(parents=True, exist_ok=True)
                (temporary / file.relative_to(root)).replace(file)
    except (OSError, RuntimeError) as error:
        wrong = missing + [file for file in given if file not in whole]
        reason = str(error).strip().splitlines()[-1]
        raise FileNotFoundError(
            f"missing or broken: {', '.join(map(str, wrong))}. They could not be downloaded ({reason}). "
            f"Put {', '.join(archives)} (from {url}) into {place.absolute()}, "
            f"or let root or $RSO_DATA name a folder that has {missing[0].parent.relative_to(root)}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


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
