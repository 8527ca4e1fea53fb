"""Loading: values against numpy in float64, splits, and what a user is told when files are not as they should be."""

import gzip
import hashlib
import io
import pickle
import re
import socket
import struct
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from rso_lib import sources
from rso_lib.data import Data, Split, check_data, load

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

QMNIST_FILES = ("images-idx3-ubyte", "labels-idx2-int")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network: a download fails as it does on a machine that has none."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def pixels(data: Data) -> np.ndarray:
    """All images in the original range 0..1, in float64."""
    parts = torch.cat([part.images for part in (data.train, data.val, data.test)]).double()
    return (parts * data.std[:, None, None] + data.mean[:, None, None]).numpy()


def labels(data: Data) -> np.ndarray:
    return torch.cat([part.labels for part in (data.train, data.val, data.test)]).numpy()


def rows(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
    """Images with labels, in an order that does not depend on that of the arguments."""
    flat = images.reshape(len(images), -1).round().astype(int)
    return sorted(map(tuple, np.column_stack([flat, labels]).tolist()))


# digits


def test_digits_are_scikit_learns_each_once() -> None:
    data, source = load("digits"), load_digits()
    assert (len(data.train), len(data.val), len(data.test)) == (1294, 143, 360)
    assert data.shape == (1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert data.train.images.dtype == torch.float32
    assert data.train.labels.dtype == torch.int64
    assert rows(pixels(data) * 16, labels(data)) == rows(source.images, source.target)


def test_training_part_is_standardised_with_its_own_mean_and_deviation() -> None:
    data = load("digits")
    x = pixels(data)[: len(data.train)]
    assert data.mean.item() == pytest.approx(x.mean(), abs=1e-6)
    assert data.std.item() == pytest.approx(x.std(), abs=1e-6)
    z = data.train.images.double()
    assert z.mean().item() == pytest.approx(0, abs=1e-6)
    assert z.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert abs(data.val.images.mean().item()) > 1e-4  # standardised with the training part's numbers, not its own


def test_test_part_is_a_fifth_of_every_class() -> None:
    data = load("digits")
    held = np.bincount(data.test.labels.numpy())
    everything = np.bincount(load_digits().target)
    assert np.abs(held - everything / 5).max() <= 1


def test_the_seed_decides_the_split() -> None:
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    for part in ("train", "val", "test"):
        images = getattr(first, part).images
        assert torch.equal(images, getattr(again, part).images)
        assert not torch.equal(images[:100], getattr(other, part).images[:100])


def test_training_part_comes_in_random_order() -> None:
    """A slice is then a fair batch: no class is missing, none has half of it."""
    share = np.bincount(load("digits").train.labels[:200].numpy(), minlength=10) / 200
    assert share.min() > 0.02
    assert share.max() < 0.25


@pytest.mark.parametrize("val_size", [0, 1, 300])
def test_val_size(val_size: int) -> None:
    data = load("digits", val_size=val_size)
    assert (len(data.train), len(data.val), len(data.test)) == (1437 - val_size, val_size, 360)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_split_is_the_same_on_a_gpu() -> None:
    here, there = load("digits"), load("digits", device="cuda")
    assert there.train.images.device.type == there.mean.device.type == there.test.labels.device.type == "cuda"
    assert torch.equal(here.train.images, there.train.images.cpu())
    assert torch.equal(here.test.labels, there.test.labels.cpu())


def test_repr_is_short() -> None:
    assert "train=Split(1,294 images of 1×8×8 on cpu)" in repr(load("digits"))


# arguments


def test_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"digits, mnist, .* cifar100, folder:PATH, module:function.*mean 'mnist'"):
        load("mnits")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("MNIST", "mnist"), ("Fashion-MNIST", "fashion_mnist"), ("CIFAR10", "cifar10"), ("Digits", "digits")],
)
def test_capitals_have_a_hint_too(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"^name must be one of .*, not '{typed}'; did you mean '{meant}'"):
        load(typed)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("root", 3, TypeError),
        ("name", Path("folder:x"), ValueError),
        ("val_size", -1, ValueError),
        ("val_size", 1437, ValueError),
        ("val_size", 0.1, TypeError),
        ("seed", -1, ValueError),
        ("seed", "one", TypeError),
        ("device", "gpu", ValueError),
        ("name", 3, ValueError),
    ],
)
def test_an_argument_out_of_range_is_named(argument: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=argument):
        load(**{"name": "digits", argument: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"device 'cuda' cannot be used here.*device='cpu'"):
        load("digits", device="cuda")


# the sets of torchvision


def idx(array: np.ndarray) -> bytes:
    """MNIST's file format: a magic number, the sizes, the bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sets in MNIST's file format have 50 and 10 images, whatever these are."""
    monkeypatch.setattr(sources, "COUNTS", dict.fromkeys(sources.COUNTS, (50, 10)))
    monkeypatch.setattr(sources, "PUBLISHED", {})


def small_mnist(rng: np.random.Generator) -> dict[str, np.ndarray]:
    shapes = [(50, 28, 28), (50,), (10, 28, 28), (10,)]
    tops = [256, 10, 256, 10]
    return {
        file: rng.integers(0, top, shape).astype(np.uint8) for file, shape, top in zip(IDX, shapes, tops, strict=True)
    }


@pytest.fixture
def mnist_like(tmp_path: Path, small_sets: None) -> tuple[Path, dict[str, np.ndarray]]:
    """A small set in the place of KMNIST."""
    raw = tmp_path / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = small_mnist(np.random.default_rng(0))
    for file, array in arrays.items():
        (raw / file).write_bytes(idx(array))
    return tmp_path, arrays


def test_mnist_like_files_are_read_as_they_are(mnist_like: tuple[Path, dict[str, np.ndarray]]) -> None:
    root, arrays = mnist_like
    data = load("kmnist", root, val_size=5)
    images, targets, test_images, test_targets = (arrays[file] for file in IDX)
    n = len(images)
    assert rows(pixels(data)[:n] * 255, labels(data)[:n]) == rows(images, targets)
    np.testing.assert_allclose(pixels(data)[n:, 0] * 255, test_images, atol=1e-3)
    np.testing.assert_array_equal(data.test.labels, test_targets)
    assert data.classes == tuple(datasets.KMNIST.classes)


def test_root_comes_from_the_environment(
    mnist_like: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RSO_DATA", str(mnist_like[0]))
    assert len(load("kmnist").test) == 10


@pytest.mark.parametrize("file", IDX)
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_files_that_are_broken_or_half_unpacked(
    mnist_like: tuple[Path, dict[str, np.ndarray]], file: str, damage: Callable[[bytes], bytes]
) -> None:
    raw = mnist_like[0] / "KMNIST" / "raw"
    (raw / file).write_bytes(damage((raw / file).read_bytes()))
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(str(raw))}: .*broken \(.+\)\. Delete a broken one"):
        load("kmnist", mnist_like[0])


def test_a_missing_file(mnist_like: tuple[Path, dict[str, np.ndarray]]) -> None:
    raw = mnist_like[0] / "KMNIST" / "raw"
    (raw / IDX[3]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(str(raw))}: files of KMNIST are missing .*no network"):
        load("kmnist", mnist_like[0])
    assert {file.name for file in raw.iterdir()} == {*IDX[:3]}


OTHER_SETS = {
    "a_label_of_200": ({"labels": np.full(50, 200, np.uint8)}, "train part has a label 200, but there are 10 classes"),
    "fewer_labels": ({"labels": np.zeros(49, np.uint8)}, "50 images of 28×28 pixels and 49 labels, not 50 of 28×28"),
    "more_images": (
        {"images": np.zeros((60, 28, 28), np.uint8), "labels": np.zeros(60, np.uint8)},
        "60 images of 28×28 pixels and 60 labels, not 50 of 28×28",
    ),
    "larger_images": ({"images": np.zeros((50, 32, 30), np.uint8)}, "50 images of 30×32 pixels"),
    "other_pictures": ({"images": np.full((50, 28, 28), 99, np.uint8)}, "a mean of 0.388, not 0.192"),
}


@pytest.mark.parametrize("kind", OTHER_SETS)
def test_another_set_in_the_place_of_a_known_one_is_noticed(
    mnist_like: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(sources, "PUBLISHED", {"KMNIST": 0.1918})
    changed, message = OTHER_SETS[kind]
    for name, array in changed.items():
        file = next(file for file in IDX if file.startswith(f"train-{name}"))
        (mnist_like[0] / "KMNIST" / "raw" / file).write_bytes(idx(array))
    with pytest.raises(ValueError, match=rf"KMNIST/raw does not hold KMNIST: .*{re.escape(message)}.*folder:PATH"):
        load("kmnist", mnist_like[0])


@pytest.mark.parametrize(
    ("name", "place", "archives"),
    [
        ("mnist", "MNIST/raw", [f"{file}.gz" for file in IDX]),
        ("fashion_mnist", "FashionMNIST/raw", [f"{file}.gz" for file in IDX]),
        ("kmnist", "KMNIST/raw", [f"{file}.gz" for file in IDX]),
        ("cifar10", "", ["cifar-10-python.tar.gz"]),
        ("cifar100", "", ["cifar-100-python.tar.gz"]),
        ("emnist", "EMNIST/raw", ["gzip.zip"]),
        ("qmnist", "QMNIST/raw", [f"qmnist-{p}-{f}.gz" for p in ("train", "test") for f in QMNIST_FILES]),
    ],
)
def test_without_network_it_says_which_files_to_put_where(
    tmp_path: Path, name: str, place: str, archives: list[str]
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert "no network" in message
    assert f"into {tmp_path / place}," in message
    assert f"put {', '.join(archives)} (from http" in message
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    assert socket.getdefaulttimeout() is None


def publish(monkeypatch: pytest.MonkeyPatch, dataset: type, archives: dict[str, bytes]) -> None:
    """Let torchvision expect these archives."""
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
    if issubclass(dataset, datasets.CIFAR10):
        monkeypatch.setattr(dataset, "tgz_md5", sums[0][1])
    elif dataset is datasets.EMNIST:
        monkeypatch.setattr(dataset, "md5", sums[0][1])
    elif dataset is datasets.QMNIST:
        monkeypatch.setattr(dataset, "resources", {"train": sums[:2], "test": sums[2:]})
    else:
        monkeypatch.setattr(dataset, "resources", sums)


def put_by_hand(root: Path, name: str, archives: dict[str, bytes]) -> Path:
    """Write archives where torchvision looks for those of a set, and return that folder."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for file, content in archives.items():
        (raw / file).write_bytes(content)
    return raw


def test_archives_put_there_by_hand_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sets: None
) -> None:
    arrays = small_mnist(np.random.default_rng(1))
    archives = {f"{file}.gz": gzip.compress(idx(array), mtime=0) for file, array in arrays.items()}
    publish(monkeypatch, datasets.KMNIST, archives)
    raw = put_by_hand(tmp_path, "KMNIST", archives)
    data = load("kmnist", tmp_path)
    np.testing.assert_array_equal(data.test.labels, arrays[IDX[3]])
    assert {file.name for file in raw.iterdir()} == {*IDX, *archives}


def test_emnist_from_an_archive_put_there_by_hand_is_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sets: None
) -> None:
    """Its files have every letter transposed."""
    arrays = small_mnist(np.random.default_rng(4))
    arrays[IDX[1]] = (np.arange(50) % 47).astype(np.uint8)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for file, array in arrays.items():
            part, what = ("train" if "train" in file else "test"), file.partition("-")[2]
            packed.writestr(f"gzip/emnist-balanced-{part}-{what}.gz", gzip.compress(idx(array)))
    publish(monkeypatch, datasets.EMNIST, {"gzip.zip": archive.getvalue()})
    put_by_hand(tmp_path, "EMNIST", {"gzip.zip": archive.getvalue()})
    data = load("emnist", tmp_path, val_size=0)
    assert data.classes[:11] == (*"0123456789", "A") and len(data.classes) == 47
    np.testing.assert_allclose(pixels(data)[50:, 0] * 255, arrays[IDX[2]].transpose(0, 2, 1), atol=1e-3)
    assert rows(pixels(data)[:50] * 255, labels(data)[:50]) == rows(
        arrays[IDX[0]].transpose(0, 2, 1), arrays[IDX[1]].astype(int)
    )


def test_qmnist_from_archives_put_there_by_hand_has_the_digits_as_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sets: None
) -> None:
    """Its labels are rows of eight numbers, the first of which is the digit."""
    arrays = small_mnist(np.random.default_rng(5))
    words = {file: np.random.default_rng(6).integers(0, 10, (len(arrays[file]), 8)) for file in (IDX[1], IDX[3])}
    archives = {}
    for k, part in enumerate(("train", "test")):
        images, targets = arrays[IDX[2 * k]], words[IDX[2 * k + 1]]
        content = struct.pack(">HBB2I", 0, 12, 2, *targets.shape) + targets.astype(">i4").tobytes()
        archives[f"qmnist-{part}-{QMNIST_FILES[0]}.gz"] = gzip.compress(idx(images), mtime=0)
        archives[f"qmnist-{part}-{QMNIST_FILES[1]}.gz"] = gzip.compress(content, mtime=0)
    publish(monkeypatch, datasets.QMNIST, archives)
    put_by_hand(tmp_path, "QMNIST", archives)
    data = load("qmnist", tmp_path)
    np.testing.assert_array_equal(data.test.labels, words[IDX[3]][:, 0])
    np.testing.assert_allclose(pixels(data)[50:, 0] * 255, arrays[IDX[2]], atol=1e-3)


class Answer(io.BytesIO):
    """What the network answers: an archive."""

    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url, self.length = url, len(content)


def test_missing_files_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_sets: None) -> None:
    """Half an archive, which an interrupted download left behind, is downloaded again."""
    arrays = small_mnist(np.random.default_rng(8))
    archives = {f"{file}.gz": gzip.compress(idx(array), mtime=0) for file, array in arrays.items()}
    publish(monkeypatch, datasets.KMNIST, archives)
    raw = put_by_hand(tmp_path, "KMNIST", {f"{IDX[0]}.gz": b"half of it"})
    timeouts = set()

    def answer(request: urllib.request.Request) -> Answer:
        timeouts.add(socket.getdefaulttimeout())
        return Answer(request.full_url, archives[request.full_url.rpartition("/")[2]])

    with monkeypatch.context() as online:
        online.setattr(urllib.request, "urlopen", answer)
        load("kmnist", tmp_path)
    assert timeouts == {sources.TIMEOUT} and socket.getdefaulttimeout() is None
    for archive in archives:
        (raw / archive).unlink()
    np.testing.assert_array_equal(load("kmnist", tmp_path).test.labels, arrays[IDX[3]])


def small_cifar(monkeypatch: pytest.MonkeyPatch, dataset: type) -> tuple[bytes, np.ndarray, np.ndarray]:
    """An archive with 4 images in each batch, which torchvision is made to expect; the images and labels."""
    rng = np.random.default_rng(2)
    names = [name for name, _ in dataset.train_list + dataset.test_list]
    images = rng.integers(0, 256, (len(names), 4, 3, 32, 32)).astype(np.uint8)
    targets = rng.integers(0, 10, (len(names), 4))
    kind = "labels" if dataset is datasets.CIFAR10 else "fine_labels"
    batches = [
        {"data": pixels.reshape(4, -1), kind: labels.tolist(), "coarse_labels": [99] * 4}
        for pixels, labels in zip(images, targets, strict=True)
    ]
    files = {name: pickle.dumps(batch) for name, batch in zip(names, batches, strict=True)}
    files[dataset.meta["filename"]] = pickle.dumps({dataset.meta["key"]: list("abcdefghij")})
    sums = [[name, hashlib.md5(content).hexdigest()] for name, content in files.items()]
    monkeypatch.setattr(dataset, "train_list", sums[:-2])
    monkeypatch.setattr(dataset, "test_list", sums[-2:-1])
    monkeypatch.setattr(dataset, "meta", dataset.meta | {"md5": sums[-1][1]})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{dataset.base_folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    publish(monkeypatch, dataset, {dataset.filename: archive.getvalue()})
    return archive.getvalue(), images.reshape(-1, 3, 32, 32), targets.ravel()


@pytest.mark.parametrize("dataset", [datasets.CIFAR10, datasets.CIFAR100])
def test_cifar_from_an_archive_put_there_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: type
) -> None:
    archive, images, targets = small_cifar(monkeypatch, dataset)
    (tmp_path / dataset.filename).write_bytes(archive)
    data, n = load(dataset.__name__.lower(), tmp_path), len(images) - 4
    assert data.shape == (3, 32, 32)
    assert data.classes == tuple("abcdefghij")
    assert rows(pixels(data)[:n] * 255, labels(data)[:n]) == rows(images[:n], targets[:n])
    np.testing.assert_allclose(pixels(data)[n:] * 255, images[n:], atol=1e-3)
    np.testing.assert_array_equal(data.test.labels, targets[n:])
    np.testing.assert_allclose(data.mean, pixels(data)[: len(data.train)].mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(data.std, pixels(data)[: len(data.train)].std((0, 2, 3)), atol=1e-6)


def test_a_broken_cifar_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(small_cifar(monkeypatch, datasets.CIFAR10)[0])
    load("cifar10", tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(b"not a batch")
    load("cifar10", tmp_path)  # the archive is still there
    batch.write_bytes(b"not a batch")
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^{re.escape(str(batch.parent))}: files of CIFAR10 .*broken"):
        load("cifar10", tmp_path)


def test_real_mnist(real_data: Path) -> None:
    data = load("mnist", real_data)
    assert (len(data.train), len(data.val), len(data.test)) == (55_000, 5_000, 10_000)
    assert data.shape == (1, 28, 28)
    assert data.classes == tuple("0123456789")
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = np.bincount(labels(data)[:60_000])
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    # the well-known mean and deviation of all 60,000
    everything = load("mnist", real_data, val_size=0)
    assert everything.mean.item() == pytest.approx(0.1307, abs=5e-5)
    assert everything.std.item() == pytest.approx(0.3081, abs=5e-5)


# folders


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, dict[Path, np.ndarray]]:
    """3 training images and 1 test image of each of two classes, in colour."""
    rng = np.random.default_rng(3)
    files = [tmp_path / "train" / c / f"{k}.png" for c in ("cat", "dog") for k in range(3)]
    files += [tmp_path / "test" / c / "0.PNG" for c in ("cat", "dog")]
    content = {file: rng.integers(0, 256, (5, 6, 3)).astype(np.uint8) for file in files}
    for file, array in content.items():
        save(file, array)
    return tmp_path, content


def test_folder(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    path, content = images
    (path / "train" / "cat" / "notes.txt").write_text("not an image")
    (path / "train" / "cat" / "._0.png").write_text("what other systems leave behind")
    (path / "train" / ".ipynb_checkpoints").mkdir()
    data = load(f"folder:{path}", val_size=2)
    assert data.shape == (3, 5, 6)
    assert data.classes == ("cat", "dog")
    arrays = np.stack(list(content.values())).transpose(0, 3, 1, 2)
    targets = np.array([file.parent.name == "dog" for file in content])
    assert rows(pixels(data)[:6] * 255, labels(data)[:6]) == rows(arrays[:6], targets[:6])
    np.testing.assert_allclose(pixels(data)[6:] * 255, arrays[6:], atol=1e-3)
    assert data.train.images.is_contiguous()


def test_grey_images_have_one_channel(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    path, content = images
    for file, array in content.items():
        save(file, array[:, :, 0])
    data = load(f"folder:{path}", val_size=0)
    assert data.shape == (1, 5, 6)
    np.testing.assert_allclose(pixels(data)[6:, 0] * 255, np.stack(list(content.values()))[6:, :, :, 0], atol=1e-3)


def test_one_colour_image_makes_all_rgb(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    path, content = images
    for file, array in list(content.items())[1:]:
        save(file, array[:, :, 0])
    data = load(f"folder:{path}", val_size=0)
    assert data.shape == (3, 5, 6)
    grey = pixels(data)[6:]
    np.testing.assert_allclose(grey[:, 0], grey[:, 2], atol=1e-6)


def test_a_constant_channel_is_only_shifted(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    path, content = images
    for file, array in content.items():
        save(file, array * np.array([1, 0, 1], np.uint8))
    data = load(f"folder:{path}", val_size=0)
    assert data.std[1] == 0
    assert (data.train.images[:, 1] == 0).all()


def test_an_unreadable_image_is_named(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    file = images[0] / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} cannot be read as an image"):
        load(f"folder:{images[0]}")


def test_an_image_of_another_size_is_named(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    file = images[0] / "test" / "dog" / "0.PNG"
    save(file, np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} has 5×6 pixels, but .*cat/0\.png has 6×5"):
        load(f"folder:{images[0]}")


def test_sixteen_bits_per_channel_are_refused(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    file = images[0] / "test" / "dog" / "0.PNG"
    save(file, np.zeros((5, 6), np.uint16))
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))}.*8 bits per channel"):
        load(f"folder:{images[0]}")


def test_classes_of_train_and_test_must_agree(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    (images[0] / "test" / "dog").rename(images[0] / "test" / "dogs")
    with pytest.raises(ValueError, match=r"same classes, but only one of the two has dog, dogs"):
        load(f"folder:{images[0]}")


def test_an_empty_class_is_named(images: tuple[Path, dict[Path, np.ndarray]]) -> None:
    (images[0] / "test" / "dog" / "0.PNG").unlink()
    with pytest.raises(FileNotFoundError, match=r"test/dog has no images"):
        load(f"folder:{images[0]}")


def test_folders_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train is missing; .* PATH/train/CLASS/\*"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"train has no folders"):
        load(f"folder:{tmp_path}")


def test_every_known_set_is_torchvisions() -> None:
    assert all(hasattr(datasets, name) for name in sources.TORCHVISION.values())


# data made by hand


def by_hand(**changed: object) -> Data:
    """Ten images of two classes, two of them in each other part, with changes: part_images, part_labels, classes."""
    parts = {}
    for name, size in (("train", 10), ("val", 2), ("test", 2)):
        images = changed.get(f"{name}_images", torch.ones(size, 1, 2, 2))
        parts[name] = Split(images, changed.get(f"{name}_labels", torch.arange(size) % 2))  # type: ignore[arg-type]
    return Data("mine", **parts, classes=changed.get("classes", ("a", "b")), mean=torch.zeros(1), std=torch.ones(1))


BY_HAND: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "label_too_high": ({"test_labels": torch.tensor([0, 2])}, ValueError, "labels of test must be 0 to 1, .*, not 2"),
    "label_ignored": (
        {"val_labels": torch.tensor([0, -100])},
        ValueError,
        "labels of val must be 0 to 1, .*, not -100",
    ),
    "float_labels": ({"train_labels": torch.zeros(10)}, TypeError, "labels of train must be torch.int64.*float32"),
    "int32_labels": ({"train_labels": torch.zeros(10).int()}, TypeError, "labels of train .*call .long"),
    "one_hot": ({"train_labels": torch.ones(10, 2).long()}, ValueError, r"labels of train as many labels .*\(10, 2\)"),
    "lists": ({"train_labels": [0] * 10}, TypeError, "labels of train must be a tensor, not a list"),
    "fewer_labels": ({"train_labels": torch.zeros(9).long()}, ValueError, "images of train must be images"),
    "bytes": ({"train_images": torch.ones(10, 1, 2, 2).byte()}, TypeError, "images of train must be floating-point"),
    "nan": ({"val_images": torch.full((2, 1, 2, 2), torch.nan)}, ValueError, "NaN or infinite values in images of val"),
    "inf": (
        {"test_images": torch.full((2, 1, 2, 2), -torch.inf)},
        ValueError,
        "NaN or infinite values in images of test",
    ),
    "no_images": (
        {"train_images": torch.ones(0, 1, 2, 2), "train_labels": torch.ones(0).long()},
        ValueError,
        "the train part of mine has no images",
    ),
    "other_shape": ({"test_images": torch.ones(2, 1, 3, 2)}, ValueError, "images of the test part are 1×3×2"),
    "other_type": (
        {"test_images": torch.ones(2, 1, 2, 2).double()},
        ValueError,
        "images of the test part are .*float64",
    ),
    "other_device": (
        {"test_images": torch.ones(2, 1, 2, 2, device="meta")},
        ValueError,
        "images of test and labels of test must be on one device",
    ),
    "no_classes": ({"classes": ()}, ValueError, "labels of train must be"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_data_made_by_hand_are_checked(case: str) -> None:
    changed, error, message = BY_HAND[case]
    check_data(by_hand())
    with pytest.raises(error, match=message):
        check_data(by_hand(**changed))


def test_parts_without_images_are_data() -> None:
    check_data(by_hand(val_images=torch.ones(0, 1, 2, 2), val_labels=torch.ones(0).long()))
