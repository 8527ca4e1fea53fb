"""The compiled inner loops against torch in float64, and what happens where they cannot be had."""

import copy
import ctypes
import os
import platform
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import images, stirred
from pairwise import crossed
from steps import one_step, scorer
from torch import Tensor, nn

from rso_lib import models
from rso_lib.algorithm import Batches
from rso_lib.engine import kernels
from rso_lib.engine.inputs import offsets, planes
from rso_lib.engine.kernels import Kernels, Preactivation
from rso_lib.passes import calibrate

COMPILERS = ("c++", "g++", "clang++")
WIDTHS = (1, 2, 3, 7, 15, 28)
HEIGHTS = (1, 2, 3, 8)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-5}
"""Of what is a few units large."""

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    None: lambda u: u,
    "sign": lambda u: torch.where(u >= 0, 1.0, -1.0).to(u),
    "step": lambda u: (u >= 0).to(u),
}
"""As written out for numbers; what becomes of NaN is tested apart."""

CHANNELS = [(16, 16), (16, 32), (32, 32)]
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)
strides = pytest.mark.parametrize("stride", [1, 2])


OTHERS = {"64 bytes": ["-mavx2", "-DVECTOR_BYTES=64"], "32 bytes": ["-mavx2", "-mfma"], "16 bytes": []}
"""Vectors as they are on other machines, and the flags for them, for any x86; those of 64 bytes are made of two."""
VECTORS = ["this machine", *OTHERS]


@pytest.fixture(scope="module")
def loaded() -> Kernels:
    """The kernels as they are used on this machine."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    if os.environ.get("RSO_KERNELS") == "0":
        pytest.skip("RSO_KERNELS=0")
    kernels_here = kernels.load_compiled()
    assert kernels_here
    return kernels_here


@pytest.fixture(scope="module")
def libraries() -> dict[str, Kernels]:
    """What `compiled` has compiled, since tests ask for it in any order."""
    return {}


@pytest.fixture(scope="module", params=VECTORS)
def compiled(
    request: pytest.FixtureRequest,
    loaded: Kernels,
    libraries: dict[str, Kernels],
    tmp_path_factory: pytest.TempPathFactory,
) -> Kernels:
    """The kernels with vectors of all widths."""
    if request.param == "this machine":
        return loaded
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("flags for x86")
    if request.param not in libraries:
        library = tmp_path_factory.mktemp("kernels") / "kernels.so"
        flags = [flag for flag in kernels.FLAGS if flag not in ("-march=native", "-O3")]
        compiler = next(filter(None, map(shutil.which, COMPILERS)))
        command = [compiler, *flags, "-O1", *OTHERS[request.param], str(kernels.SOURCE), "-o", str(library)]
        subprocess.run(command, check=True)
        libraries[request.param] = Kernels(ctypes.CDLL(str(library)))
    return libraries[request.param]


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def close(actual: Tensor, expected: Tensor, rtol: float = 0.0) -> None:
    atol = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=atol, equal_nan=True)


def sums(z: Tensor, groups: int = 1) -> Tensor:
    """Sum and sum of squares [groups, 2, C] over the images and pixels of each group, in float64."""
    flat = z.permute(0, 2, 3, 1).reshape(groups, -1, z.shape[1])
    parts = [part.double() for part in flat.split(2**16, 1)]
    return torch.stack([sum(part.sum(1) for part in parts), sum(part.square().sum(1) for part in parts)], 1)


def check(made: Preactivation, expected: Tensor) -> None:
    """The output, and the moments, which are the sums of that very output."""
    close(made.z, expected)
    assert made.moments is not None and made.moments.dtype == torch.float64
    z = made.z.double()
    moments = torch.stack([z.sum((0, 2, 3)), z.square().sum((0, 2, 3))])[None]
    tolerance = TOLERANCE[made.z.dtype]
    torch.testing.assert_close(made.moments, moments, rtol=tolerance, atol=tolerance * z[:, 0].numel(), equal_nan=True)


def sizes(least: int) -> Iterator[tuple[int, int]]:
    """Heights and widths of at least so many pixels."""
    return ((h, w) for h, w in product(HEIGHTS, WIDTHS) if min(h, w) >= least)


def convolve(x: Tensor, taps: Tensor, stride: int) -> Tensor:
    """x [N, CI, H, W] with taps [3, 3, CI, CO], in float64; with stride 2 the pooled result."""
    z = F.conv2d(x.double(), taps.permute(3, 2, 0, 1).double(), padding=1)
    return F.avg_pool2d(z, 2) if stride == 2 else z


# Each function


@pytest.mark.parametrize(
    ("compiled", "channels", "folded", "dtype"),
    crossed(VECTORS, [1, 3, 16], [False, True], [*TOLERANCE]),
    indirect=["compiled"],
)
def test_rows_conv(compiled: Kernels, channels: int, folded: bool, dtype: torch.dtype) -> None:
    for rows, size in product((1, 2, 3, 4, 6), sizes(1 + folded)):
        x = last(torch.randn(3, channels, *size, dtype=dtype))
        kernel = torch.randn(rows, channels, 3, 3, dtype=dtype) / 10
        check(by_rows(compiled, x, kernel, folded), convolve(x, kernel.permute(2, 3, 1, 0), 1 + folded))


def by_rows(
    compiled: Kernels,
    x: Tensor,
    kernel: Tensor,
    folded: bool,
    like: Sequence[tuple[int, int]] = (),
    base: Tensor | None = None,
    of: Sequence[int] | None = None,
) -> Preactivation:
    """`base` is that of all rows, unless `of` says more."""
    entered = planes(x, folded)
    where = offsets(kernel[0].numel(), *entered.shape[2:], folded)
    size = x.shape[2] // (1 + folded), x.shape[3] // (1 + folded)
    made = compiled.rows_conv(entered, kernel.flatten(1), where, size, like, base, of or [0] * len(kernel))
    assert made.z.is_contiguous()
    return made


@dtypes
@pytest.mark.parametrize("folded", [False, True])
def test_rows_that_are_like_others_but_for_one_tap(compiled: Kernels, folded: bool, dtype: torch.dtype) -> None:
    moves = torch.tensor([0.5, -0.25, 0.125], dtype=dtype)
    for size in ((7, 9), (14, 14), (3, 3)):
        x, kernel = torch.randn(3, 4, *size, dtype=dtype), torch.randn(2, 4, 3, 3, dtype=dtype) / 10
        for j in range(36):
            taps = [j, j, 35 - j]
            rows = kernel[[0, 1, 1, 1, 0]].clone()
            rows.flatten(1)[[2, 3, 4], taps] += moves
            plain = convolve(x, rows.permute(2, 3, 1, 0), 1 + folded)
            base = torch.randn(plain[:, :1].shape, dtype=dtype)
            for added in (None, base):
                made = by_rows(compiled, x, rows, folded, [*zip((1, 1, 0), taps, strict=True)], added)
                check(made, plain if added is None else plain + base.double())
                same = by_rows(compiled, x, kernel[[0, 1, 1]], folded, [(1, j)], added).z
                assert torch.equal(same[:, 1], same[:, 2])
            bases, of = torch.cat([base, -base, base + 1], 1), [2, 0, 0, 0, 1]
            made = by_rows(compiled, x, rows, folded, [*zip((1, 1, 0), taps, strict=True)], bases, of)
            check(made, plain + bases[:, of].double())


@dtypes
@pytest.mark.parametrize("folded", [False, True])
def test_rows_of_equal_weights_are_equal_to_the_last_bit(compiled: Kernels, folded: bool, dtype: torch.dtype) -> None:
    """Also where lines and planes are no multiple of a vector: batch norm takes their moments, and a tie keeps w."""
    for size in ((7, 7), (14, 14), (13, 11), (15, 15), (28, 28)):
        x, kernel = torch.randn(3, 4, *size, dtype=dtype), torch.randn(2, 4, 3, 3, dtype=dtype) / 10
        base = torch.randn(3, 1, size[0] // (1 + folded), size[1] // (1 + folded), dtype=dtype)
        for added in (None, base):
            made = by_rows(compiled, x, kernel[[0, 1, 1, 1, 1]], folded, [(1, 5), (2, 35)], added)
            for row in range(2, 5):
                assert torch.equal(made.z[:, 1], made.z[:, row])
                assert made.moments is not None and torch.equal(made.moments[..., 1], made.moments[..., row])


@dtypes
@pytest.mark.parametrize("channels", kernels.CHANNELS)
def test_sums(compiled: Kernels, channels: int, dtype: torch.dtype) -> None:
    z = last(torch.randn(3, channels, 5, 7, dtype=dtype))
    for groups in (1, 3):
        expected = torch.stack([part.double().sum((0, 2, 3)) for part in z.chunk(groups)])
        torch.testing.assert_close(sums(z, groups)[:, 0], expected, rtol=0, atol=105 * TOLERANCE[dtype])
        torch.testing.assert_close(compiled.sums(z, groups), sums(z, groups), rtol=0, atol=105 * TOLERANCE[dtype])


@dtypes
@strides
@pytest.mark.parametrize("channels", kernels.CHANNELS)
def test_add_channels(compiled: Kernels, channels: int, stride: int, dtype: torch.dtype) -> None:
    for count, (height, width) in product((1, 3), sizes(stride)):
        changes = torch.randn(count, 3, 1, height, width, dtype=dtype)
        taps = torch.randn(count, 3, 3, channels, dtype=dtype) / count
        change = convolve(changes[:, :, 0].transpose(0, 1), taps.permute(1, 2, 0, 3), stride)
        base = last(torch.randn(change.shape, dtype=dtype))
        before = base.clone()
        check(compiled.add_channels(base, changes, taps, stride), before.double() + change)
        assert torch.equal(base, before)
        made = compiled.add_channels(base, changes, taps, stride, out=base)
        assert made.z is base
        check(made, before.double() + change)


def random_norm(channels: int, dtype: torch.dtype) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def by_torch(z: Tensor, norm: nn.BatchNorm2d, activation: str | None, taps: Tensor, stride: int) -> Tensor:
    """What `norm_conv` computes without a base, in float64."""
    scale, shift = norm.weight.double(), norm.bias.double()
    u = F.batch_norm(z.double(), None, None, scale, shift, training=True, eps=norm.eps)
    return convolve(ACTIVATIONS[activation](u), taps, stride)


def parts(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


@dtypes
@strides
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
@torch.no_grad()
def test_norm_conv(
    compiled: Kernels, inputs: int, outputs: int, activation: str | None, stride: int, dtype: torch.dtype
) -> None:
    norm = random_norm(inputs, dtype)
    taps = torch.randn(3, 3, inputs, outputs, dtype=dtype) / 10
    for height, width in sizes(stride):
        z = last(2 * torch.randn(3, inputs, height, width, dtype=dtype) + 1)
        plain = by_torch(z, norm, activation, taps, stride)
        base = last(torch.randn(plain.shape, dtype=dtype))
        for moments in (None, sums(z)):
            check(compiled.norm_conv(Preactivation(z, moments), *parts(norm), activation, taps, stride, None), plain)
            check(
                compiled.norm_conv(Preactivation(z, moments), *parts(norm), activation, taps, stride, base),
                plain + base.double(),
            )


@dtypes
@strides
@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
@torch.no_grad()
def test_groups_are_as_if_each_came_alone(
    compiled: Kernels, inputs: int, outputs: int, stride: int, dtype: torch.dtype
) -> None:
    norm, taps = random_norm(inputs, dtype), torch.randn(3, 3, inputs, outputs, dtype=dtype) / 10
    z = last(torch.randn(8, inputs, 6, 5, dtype=dtype) * torch.arange(1, 9)[:, None, None, None])
    base = last(torch.randn(8, outputs, 6 // stride, 5 // stride, dtype=dtype))
    for moments in (None, sums(z, 4)):
        made = compiled.norm_conv(Preactivation(z, moments, 4), *parts(norm), "relu", taps, stride, base)
        assert made.moments is not None and made.groups == 4 and made.count == 2 * base[0, 0].numel()
        for g in range(4):
            two = slice(2 * g, 2 * g + 2)
            before = Preactivation(z[two], None if moments is None else moments[g : g + 1])
            alone = compiled.norm_conv(before, *parts(norm), "relu", taps, stride, base[two])
            assert torch.equal(made.z[two], alone.z)
            assert alone.moments is not None and torch.equal(made.moments[g], alone.moments[0])
            close(alone.z, by_torch(z[two], norm, "relu", taps, stride) + base[two].double())


@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels", kernels.CHANNELS)
@torch.no_grad()
def test_norm_max(compiled: Kernels, channels: int, activation: str | None, dtype: torch.dtype) -> None:
    norm = random_norm(channels, dtype)
    for height, width in sizes(1):
        z = last(2 * torch.randn(6, channels, height, width, dtype=dtype) + 1)
        z[4, 5, -1, 0] = torch.nan
        known = sums(z.nan_to_num(), 2)
        expected = [by_torch_max(part, norm, activation) for part in z.nan_to_num().chunk(2)]
        expected[1][1, 5] = torch.nan
        made = compiled.norm_max(Preactivation(z, known, 2), *parts(norm), activation)
        close(made, torch.cat(expected))
        alone = compiled.norm_max(Preactivation(z[:3], None), *parts(norm), activation)
        close(alone, expected[0])


def by_torch_max(z: Tensor, norm: nn.BatchNorm2d, activation: str | None) -> Tensor:
    return F.adaptive_max_pool2d(by_torch_norm(z, norm, activation), 1).flatten(1)


@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.no_grad()
def test_norm_changes(compiled: Kernels, activation: str | None, dtype: torch.dtype) -> None:
    norm, pairs = random_norm(4, dtype), [(0, 2), (1, 3), (2, 0), (1, 1)]
    for height, width in sizes(1):
        z = 2 * torch.randn(6, 4, height, width, dtype=dtype) + 1
        z[:, 3] = z[:, 1]
        norm.weight[3], norm.bias[3] = norm.weight[1], norm.bias[1]
        known, normed = sums(z), by_torch_norm(z, norm, activation)
        z[4, 2, -1, 0] = normed[4, 2, -1, 0] = torch.nan
        made = compiled.norm_changes(Preactivation(z, known), *parts(norm), activation, pairs)
        expected = torch.stack([normed[:, now] - normed[:, was] for was, now in pairs])[:, :, None]
        close(made, expected)
        assert not made[1].any() and not made[3].any(), "equal rows do not differ in the last bit"


def by_torch_norm(z: Tensor, norm: nn.BatchNorm2d, activation: str | None) -> Tensor:
    scale, shift = norm.weight.double(), norm.bias.double()
    u = F.batch_norm(z.double(), None, None, scale, shift, training=True, eps=norm.eps)
    return ACTIVATIONS[activation](u)


@dtypes
@torch.no_grad()
def test_a_channel_that_is_the_same_everywhere(compiled: Kernels, dtype: torch.dtype) -> None:
    """Its variance is zero, and rounding must not make it negative."""
    z = last(torch.full((5, 16, 7, 7), 1 / 3, dtype=dtype))
    norm, taps = random_norm(16, dtype), torch.randn(3, 3, 16, 16, dtype=dtype)
    normed = norm.bias.double().relu()[:, None, None].expand(5, 16, 7, 7)
    made = compiled.norm_conv(Preactivation(z), *parts(norm), "relu", taps, 1, None)
    atol = 1e-9 if dtype == torch.float64 else 1e-2  # 1/√eps, 316, times the rounding of the mean
    torch.testing.assert_close(
        made.z.double(), F.conv2d(normed, taps.permute(3, 2, 0, 1).double(), padding=1), rtol=0, atol=atol
    )


@dtypes
@strides
@pytest.mark.parametrize("activation", ["relu", "sign", "step"])
@torch.no_grad()
def test_nan_goes_through_activations(compiled: Kernels, activation: str, stride: int, dtype: torch.dtype) -> None:
    """One pixel that is not a number reaches the outputs that read it, and no others."""
    z = last(torch.randn(2, 16, 7, 8, dtype=dtype))
    known = sums(z)
    norm, taps = random_norm(16, dtype), torch.randn(3, 3, 16, 16, dtype=dtype) / 10
    expected = by_torch(z, norm, activation, taps, stride)
    z[1, 3, 2, 5] = torch.nan
    made = compiled.norm_conv(Preactivation(z, known), *parts(norm), activation, taps, stride, None)
    touched = torch.zeros(2, 1, 7, 8, dtype=torch.float64)
    touched[1, 0, 2, 5] = 1
    touched = convolve(touched, torch.ones(3, 3, 1, 1), stride) > 0
    assert torch.equal(made.z.isnan(), touched.expand_as(made.z))
    close(made.z, expected.masked_fill(touched, torch.nan))
    assert made.moments is not None and made.moments.isnan().all()


@dtypes
@torch.no_grad()
def test_images_too_small_for_the_kernel(compiled: Kernels, dtype: torch.dtype) -> None:
    """One pixel in front of 2×2 pooling: nothing comes out, and nothing is written."""
    one = last(torch.randn(3, 16, 1, 1, dtype=dtype))
    nothing = torch.empty(3, 16, 0, 0, dtype=dtype)
    taps = torch.randn(3, 3, 16, 16, dtype=dtype)
    assert (
        compiled.norm_conv(Preactivation(one), *parts(random_norm(16, dtype)), "relu", taps, 2, None).z.shape
        == nothing.shape
    )
    assert (
        compiled.add_channels(nothing, one[None, :, :1].contiguous(), taps[None, :, :, 0].contiguous(), 2).z.shape
        == nothing.shape
    )
    made = by_rows(compiled, one, torch.ones(4, 16, 3, 3, dtype=dtype), True, [(1, 143), (0, 7)])
    assert made.z.shape == (3, 4, 0, 0) and made.moments is not None and not made.moments.any()


def test_equal_runs_give_equal_bits_on_many_threads(compiled: Kernels) -> None:
    """In float64: sums of float32 come out of a float64 sum in any order."""
    z, plane, taps = (torch.randn(shape, dtype=torch.float64) for shape in ((64, 16, 7, 7), (64, 1, 7, 7), (3, 3, 16)))
    z = last(z)
    torch.set_num_threads(5)
    try:
        made = [compiled.add_channels(z, plane[None], taps[None], 1) for _ in range(200)]
        kernel = taps.permute(2, 0, 1)[:3, None].contiguous()
        rows = [by_rows(compiled, plane, kernel, False, base=plane) for _ in range(200)]
    finally:
        torch.set_num_threads(1)
    check(made[0], z + F.conv2d(plane, taps.permute(2, 0, 1)[:, None], padding=1))
    check(rows[0], plane + convolve(plane, taps[:, :, None, :3], 1))
    for same in (made, rows):
        for other in same[1:]:
            assert torch.equal(other.z, same[0].z)
            assert torch.equal(other.moments, same[0].moments)


def test_which_sizes_are_compiled(loaded: Kernels) -> None:
    x = torch.zeros(1, 16, 4, 4)
    assert kernels.covering(x, 16) and kernels.covering(x, 32) and kernels.covering(x.double().repeat(1, 2, 1, 1), 32)
    assert not kernels.covering(x.repeat(1, 2, 1, 1), 16)
    assert not kernels.covering(x[:, :8], 16) and not kernels.covering(x, 10)
    assert not kernels.covering(x.half(), 16) and not kernels.covering(x.to("meta"), 16)
    assert kernels.for_tensor(x[:, :8]) and not kernels.for_tensor(x.half()) and not kernels.for_tensor(x.to("meta"))
    with pytest.raises(ValueError, match="add_channels is not compiled for these sizes"):
        loaded.add_channels(last(x[:, :8]), x[None, :, :1].contiguous(), torch.zeros(1, 3, 3, 8), 1)


# The engine on top of them


@pytest.mark.parametrize("position", range(6))
@torch.no_grad()
def test_the_engine_decides_the_same_without_them(
    loaded: Kernels, position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps around a boundary of two output channels of mnist_net, on three slices."""
    net = stirred(models.mnist_net((1, 20, 12), 3))
    train = images(30, (1, 20, 12)).train
    calibrate(net, train.images)
    calls: Counter[str] = Counter()
    call = Kernels._call

    def counted(self: Kernels, name: str, *arguments: Any) -> None:
        calls[name] += 1
        call(self, name, *arguments)

    monkeypatch.setattr(Kernels, "_call", counted)
    results = {}
    for way in ("compiled", "torch"):
        searched = copy.deepcopy(net).eval()
        if way == "torch":
            monkeypatch.setattr(kernels, "load_compiled", lambda: None)
        search = scorer(searched, position, Batches(train.images, train.labels, 10))
        for s in range(3):
            assert len(search.inputs[s].x) == 10
        if way == "compiled":
            calls.clear()
        weight = searched.get_parameter(f"block{position + 1}.conv.weight").detach()
        first = weight[:5].numel() - 4
        deltas = torch.randn(10, generator=torch.Generator().manual_seed(position), dtype=torch.float64) / 5
        losses = [one_step(search, "conv.weight", first + k, delta, k) for k, delta in enumerate(deltas)]
        results[way] = torch.stack(losses), weight
        calls[way] = calls.total()
    used = {"rows_conv", "norm_max"} | (set() if position == 5 else {"norm_changes", "add_channels"})
    assert used <= set(calls) and ("norm_conv" in calls) == (position < 5)
    assert calls["torch"] == 2 * calls["compiled"], "the second way calls no compiled function"
    torch.testing.assert_close(results["compiled"][0], results["torch"][0], rtol=0, atol=1e-12)
    assert torch.equal(results["compiled"][1], results["torch"][1])


@torch.no_grad()
@pytest.mark.parametrize("order", ["output", "input"])
def test_only_the_taps_that_differ_are_read(order: str, loaded: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two slices: after the first visit of each, a step reads its own tap, and those that the two steps before changed.

    What is known has its own memory from the first visit on: anew at each, it took a run's heap apart, up to 24 GB.
    """
    net, train = stirred(models.mnist_net((1, 20, 12), 3)).eval(), images(20, (1, 20, 12)).train
    calibrate(net, train.images)
    read: list[tuple[int, int]] = []
    rows_conv = Kernels.rows_conv

    def counted(self: Kernels, x: Tensor, weights: Tensor, *more: Any) -> Preactivation:
        read.append((len(weights), weights.shape[1]))
        return rows_conv(self, x, weights, *more)

    monkeypatch.setattr(Kernels, "rows_conv", counted)
    search = scorer(net, 1, Batches(train.images, train.labels, 10), order=order)
    weight = net.get_parameter("block2.conv.weight").detach().flatten(1)
    before, rooms = weight.clone(), []
    visits = [(0, j) for j in range(12)] if order == "output" else [(row, j) for j in range(8) for row in range(3)]
    for k, (row, j) in enumerate(visits):
        one_step(search, "conv.weight", 144 * row + j, torch.tensor(3.0, dtype=torch.float64), k)
        rooms.append(search.known[k % 2].z.data_ptr())
    assert rooms == [*rooms[:2]] * (len(visits) // 2) and rooms[0] != rooms[1]
    moved = {visit for visit in visits if weight[visit] != before[visit]}
    assert 0 < len(moved) < len(visits), "some of these weights are kept, and some are not"
    first = 144 if order == "output" else 1  # only an order that comes back has all channels kept at once
    assert read[:4] == [(16, 144), (3, first)] * 2  # all channels of a slice, then the candidates of one
    for k, made in enumerate(read[4:], 2):
        recent = visits[k - 2 : k + 1]
        taps = {j for row, j in recent[:2] if (row, j) in moved} | {recent[2][1]}
        assert made == (2 * len({row for row, _ in recent}) + 2, len(taps))


# Where they cannot be had


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with an empty cache, and a PATH that is this folder."""
    kernels.load_compiled.cache_clear()
    for name in ("CXX", "RSO_KERNELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    kernels.load_compiled.cache_clear()


def script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_switched_off_in_silence(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSO_KERNELS", "0")
    assert kernels.load_compiled() is None


def test_without_a_compiler_one_warning(elsewhere: Path) -> None:
    with pytest.warns(UserWarning, match=r"plain torch: there is no C\+\+ compiler"):
        assert kernels.load_compiled() is None
    assert kernels.load_compiled() is None
    assert not (elsewhere / "cache").exists()


def test_a_compiler_that_fails(elsewhere: Path) -> None:
    script(elsewhere / "g++", "exit 3")
    with pytest.warns(UserWarning, match="exit status 3"):
        assert kernels.load_compiled() is None
    assert not list((elsewhere / "cache" / "rso_lib").iterdir())


def test_a_library_that_cannot_be_loaded(elsewhere: Path) -> None:
    script(elsewhere / "c++", 'for out; do :; done; echo nonsense > "$out"')
    with pytest.warns(UserWarning, match="no compiled kernels"):
        assert kernels.load_compiled() is None


def test_a_cache_that_cannot_be_written(elsewhere: Path) -> None:
    script(elsewhere / "c++", "exit 0")
    (elsewhere / "cache").write_text("a file")
    with pytest.warns(UserWarning, match="no compiled kernels"):
        assert kernels.load_compiled() is None


def test_compiled_once_and_said_so(
    loaded: Kernels, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A compiler that copies what is compiled already; another source has its own library."""
    log, built = elsewhere / "log", loaded.library._name
    script(elsewhere / "c++", f'echo "$@" >> {log}', "for out; do :; done", f'/bin/cp {built} "$out"')
    for _ in range(2):
        kernels.load_compiled.cache_clear()
        assert kernels.load_compiled()
    assert capfd.readouterr().err == "Compiling the kernels: about 15 seconds, once on this machine\n"
    assert len(log.read_text().splitlines()) == 1
    other = elsewhere / "kernels.cpp"
    other.write_text(kernels.SOURCE.read_text() + "// changed\n")
    monkeypatch.setattr(kernels, "SOURCE", other)
    kernels.load_compiled.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.load_compiled()
    assert len(log.read_text().splitlines()) == 2
    assert len(list((elsewhere / "cache" / "rso_lib").iterdir())) == 2


def copier(elsewhere: Path, loaded: Kernels) -> Path:
    """Let the compiler copy what is compiled already. Returns the only file in the cache."""
    script(elsewhere / "c++", "for out; do :; done", f'/bin/cp {loaded.library._name} "$out"')
    kernels.load_compiled.cache_clear()
    assert kernels.load_compiled()
    [library] = (elsewhere / "cache" / "rso_lib").iterdir()
    kernels.load_compiled.cache_clear()
    return library


def test_a_cached_library_needs_no_compiler(loaded: Kernels, elsewhere: Path) -> None:
    library = copier(elsewhere, loaded)
    (elsewhere / "c++").unlink()
    found = kernels.load_compiled()
    assert found and found.library._name == str(library)


@pytest.mark.parametrize("size", [0, 1000, -1])
def test_a_library_that_was_cut_short_is_never_loaded(
    loaded: Kernels, elsewhere: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To load one may kill the process. It is compiled again, where there is a compiler."""
    library = copier(elsewhere, loaded)
    whole = library.read_bytes()
    library.write_bytes(whole[:size])
    (elsewhere / "c++").rename(elsewhere / "compiler")
    with pytest.warns(UserWarning, match=r"plain torch: there is no C\+\+ compiler"), monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda _: pytest.fail("it was loaded"))
        assert kernels.load_compiled() is None
    (elsewhere / "compiler").rename(elsewhere / "c++")
    kernels.load_compiled.cache_clear()
    assert kernels.load_compiled()
    assert [path.read_bytes() for path in library.parent.iterdir()] == [whole]


def test_an_empty_library_is_not_kept(elsewhere: Path) -> None:
    script(elsewhere / "c++", 'for out; do :; done; : > "$out"')
    with pytest.warns(UserWarning, match="made an empty library"):
        assert kernels.load_compiled() is None
    assert not list((elsewhere / "cache" / "rso_lib").iterdir())


def test_an_interrupt_while_compiling_leaves_nothing(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: list[str], **_: Any) -> None:
        Path(command[-1]).write_bytes(b"half")
        raise KeyboardInterrupt

    script(elsewhere / "c++", "exit 0")
    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernels.load_compiled()
    assert not list((elsewhere / "cache" / "rso_lib").iterdir())


def test_tensors_of_another_layout_or_type_are_refused() -> None:
    """The library reads memory by pointers: it would read other numbers, without a word."""
    run = kernels.load_compiled()
    assert run
    z = torch.randn(4, 16, 6, 6)
    norm, taps = (torch.ones(16), torch.zeros(16), 1e-5, "relu"), torch.randn(3, 3, 16, 16)
    wrong: list[Callable[[], object]] = [
        lambda: run.sums(z),
        lambda: run.norm_conv(Preactivation(z), *norm, taps, 1, None),
        lambda: run.norm_conv(Preactivation(last(z)), *norm, taps.permute(1, 0, 2, 3), 1, None),
        lambda: run.norm_conv(Preactivation(last(z)), *norm, taps.double(), 1, None),
        lambda: run.norm_conv(Preactivation(last(z)), *norm, taps, 1, z),
        lambda: run.norm_max(Preactivation(last(z)), torch.ones(32)[::2], *norm[1:]),
        lambda: run.norm_max(Preactivation(z), *norm),
        lambda: run.add_channels(z, torch.randn(1, 4, 1, 6, 6), taps[:1, :, 0], 1),
    ]
    for call in wrong:
        with pytest.raises(ValueError, match=r"must be channels last|takes no tensor"):
            call()
