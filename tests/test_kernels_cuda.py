"""The GPU's kernels against torch in float64, and the engine that runs on them against the oracle.

Without a GPU Triton's interpreter runs them on the CPU: the same arithmetic, value by value.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

from collections.abc import Iterator
from itertools import islice, takewhile

import torch.nn.functional as F
from oracle import images, plan, stirred
from pairwise import pairwise
from test_engine import REAL, compare, engine_steps, settings_of
from torch import Tensor

from rso_lib import models
from rso_lib.discrete import activate
from rso_lib.engine import kernels
from rso_lib.engine.inputs import offsets, planes
from rso_lib.engine.kernels import Preactivation
from rso_lib.engine.kernels_cuda import CudaKernels
from rso_lib.engine.layers import channels_last, fold
from rso_lib.settings import RSO

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32] if DEVICE == "cuda" else [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
ACTIVATIONS = ["relu", "sign", "step", None]
LAYERS = ["head.linear.weight", "block6.conv.weight", "block3.norm.bias", "block2.conv.weight"]
SIZES = [(7, 9), (14, 14), (3, 3), (2, 5)]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, dtype=dtype).to(DEVICE)


def close(made: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[made.dtype]
    torch.testing.assert_close(made.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def convolve(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """A 3×3 convolution in float64; with stride 2 it is pooled."""
    z = F.conv2d(x.double(), kernel.double(), padding=1)
    return F.avg_pool2d(z, 2) if stride == 2 else z


def normalised(z: Tensor, groups: int, scale: Tensor, shift: Tensor, activation: str | None) -> Tensor:
    parts = [F.batch_norm(part, None, None, scale.double(), shift.double(), True) for part in z.double().chunk(groups)]
    return activate(torch.cat(parts), activation)


def taps_of(kernel: Tensor, stride: int) -> Tensor:
    return (fold(kernel) if stride == 2 else kernel).permute(2, 3, 1, 0).contiguous()


@pytest.mark.parametrize(
    ("channels", "groups", "stride", "activation", "size", "dtype"),
    pairwise([(16, 16), (16, 32), (32, 32)], [1, 3], [1, 2], ACTIVATIONS, SIZES, DTYPES),
)
def test_norm_conv_and_norm_max(
    channels: tuple[int, int],
    groups: int,
    stride: int,
    activation: str | None,
    size: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    """Also with the running statistics, a base to add to, and a NaN, which spreads as in torch."""
    inputs, outputs = channels
    z = channels_last(random(4 * groups, inputs, *size, dtype=dtype))
    kernel = random(outputs, inputs, 3, 3, dtype=dtype) / 10
    scale, shift = random(inputs, dtype=dtype), random(inputs, dtype=dtype)
    taps, norm = taps_of(kernel, stride), (scale, shift, 1e-5, activation)
    run = CudaKernels()
    for broken in (False, True):
        if broken:
            z[0, 0, 0, 0] = torch.nan
        u = normalised(z, groups, scale, shift, activation)
        expected = convolve(u, kernel, stride)
        base = channels_last(torch.randn_like(expected).to(dtype))
        for added in (None, base):
            made = run.norm_conv(Preactivation(z, groups=groups), *norm, taps, stride, added)
            close(made.z, expected if added is None else expected + added)
            assert made.groups == groups
        close(run.norm_max(Preactivation(z, groups=groups), *norm), u.amax((2, 3)))
    mean, var = random(inputs, dtype=torch.float64), random(inputs, dtype=torch.float64).square() + 0.1
    known = Preactivation(z[1:2], torch.stack([mean, var + mean.square()])[None], count=1.0)
    u = activate(F.batch_norm(z[1:2].double(), mean, var, scale.double(), shift.double()), activation)
    if activation not in ("sign", "step"):  # whose jumps rounding may cross
        close(run.norm_conv(known, *norm, taps, stride, None).z, convolve(u, kernel, stride))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3])
def test_sums_of_parts(groups: int, dtype: torch.dtype) -> None:
    """Channels last and contiguous, of numbers of channels that fill no vector."""
    for channels, order in ((16, channels_last), (3, Tensor.contiguous), (5, Tensor.contiguous)):
        z = order(random(4 * groups, channels, 14, 14, dtype=dtype))
        each = z.double().unflatten(0, (groups, -1))
        expected = torch.stack([each, each.square()], 1)
        torch.testing.assert_close(CudaKernels().sums(z, groups).sum(1), expected.sum((2, 4, 5)), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize(("outputs", "stride", "size", "dtype"), pairwise([16, 32], [1, 2], SIZES, DTYPES))
def test_add_channels(outputs: int, stride: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    kernel, x = random(outputs, 4, 3, 3, dtype=dtype) / 10, random(2, 5, 1, *size, dtype=dtype)
    taps = taps_of(kernel, stride)
    taps = torch.stack([taps[:, :, 0], taps[:, :, 3]])
    base = channels_last(random(5, outputs, *(side // stride for side in size), dtype=dtype))
    first, second = (base + convolve(plane, kernel[:, k : k + 1], stride) for plane, k in zip(x, (0, 3), strict=True))
    run = CudaKernels()
    side = run.side_by_side(base, x, taps, stride)
    assert side.groups == 3
    close(side.z, torch.cat([base.double(), first, second]))
    assert torch.equal(side.z[:5], base)
    close(run.add_channels(base, x, taps, stride).z, first + second - base)
    nothing = run.side_by_side(base, 0 * x, taps, stride)
    assert torch.equal(nothing.z, base.repeat(3, 1, 1, 1))
    statistics = run.affine(nothing, *random(2, outputs, dtype=dtype), 1e-5)
    assert torch.equal(statistics, statistics[:1].expand(3, -1, -1))  # or a change of nothing would break a tie
    assert run.add_channels(base, x, taps, stride, base).z is base
    close(base, first + second - side.z[:5])


@pytest.mark.parametrize(("folded", "size", "dtype"), pairwise([False, True], SIZES, DTYPES))
def test_rows_conv_and_norm_changes(folded: bool, size: tuple[int, int], dtype: torch.dtype) -> None:
    x, kernel = random(3, 4, *size, dtype=dtype), random(2, 4, 3, 3, dtype=dtype) / 10
    run, entered, stride = CudaKernels(), planes(x, folded), 1 + folded
    where = offsets(36, *entered.shape[2:], folded, x.device)
    rows = kernel[[0, 1, 1, 1, 0]].clone()
    rows.flatten(1)[[2, 3, 4], [5, 35, 0]] += torch.tensor([0.5, -0.25, 0.0], dtype=dtype, device=x.device)
    expected, small = convolve(x, rows, stride), tuple(side // stride for side in size)
    for likes in ([5, 35, 0], [torch.tensor([tap], device=x.device) for tap in (5, 35, 0)]):
        made = run.rows_conv(entered, rows.flatten(1), where, small, [*zip((1, 1, 0), likes, strict=True)])
        close(made.z, expected)
        assert torch.equal(made.z[:, 4], made.z[:, 0])
    many = run.rows_conv(entered, kernel.repeat(8, 1, 1, 1).flatten(1), where, small)
    close(many.z, expected[:, :2].repeat(1, 8, 1, 1))
    pairs, (scale, shift) = [(0, 1), (1, 2), (1, 3), (0, 4)], random(2, 5, dtype=dtype)
    for activation in ("relu", None):
        u = normalised(expected, 1, scale, shift, activation)
        changes = run.norm_changes(made, scale, shift, 1e-5, activation, pairs)
        close(changes, torch.stack([u[:, now, None] - u[:, was, None] for was, now in pairs]))


def test_tensors_of_another_layout_are_refused() -> None:
    """The kernels read memory in one order: they would read other numbers, without a word."""
    run, z = CudaKernels(), random(4, 16, 6, 6, dtype=torch.float32)
    norm, taps = (
        (torch.ones(16).to(DEVICE), torch.zeros(16).to(DEVICE), 1e-5, "relu"),
        random(3, 3, 16, 16, dtype=z.dtype),
    )
    fine, planes_of_one = channels_last(z), random(1, 4, 1, 6, 6, dtype=z.dtype)
    for call in (
        lambda: run.norm_conv(Preactivation(z), *norm, taps, 1, None),
        lambda: run.norm_conv(Preactivation(fine), *norm, taps, 1, z),
        lambda: run.norm_max(Preactivation(z), *norm),
        lambda: run.add_channels(z, planes_of_one, taps[None, :, :, 0], 1),
        lambda: run.side_by_side(z, planes_of_one, taps[None, :, :, 0], 1),
    ):
        with pytest.raises(ValueError, match="must be channels last"):
            call()


def test_they_compile_for_a_gpu() -> None:
    """Without one; in a process of its own, as Triton's interpreter takes the place of the compiler here."""
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rso_lib.engine import kernels_triton as kernels

POINTERS = dict.fromkeys(["z", "norm", "scale", "shift", "kernel", "base", "out", "planes", "x", "weights"], "*fp32")
POINTERS |= dict.fromkeys(["shifts", "like", "changed", "pairs"], "*i64") | {"sums": "*fp64"}
CHOSEN = dict(B=128, C=16, P=64, R=4, CI=16, CO=32, EPS=1e-5, STRIDE=2, SIDE=4, APART=True, ACTIVATION="sign")
for name, function in vars(kernels).items():
    if name.endswith("_kernel"):
        names = function.arg_names
        signature = {n: "constexpr" if n.isupper() else POINTERS.get(n, "i32") for n in names}
        constants = {(k,): CHOSEN[n] for k, n in enumerate(names) if n.isupper()}
        source = ASTSource(function, signature, constants)
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True})
        print(name, len(made.asm["cubin"]))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7


@pytest.fixture
def on_these_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The engine on a CPU takes the kernels of a GPU."""
    run = CudaKernels()
    monkeypatch.setattr(kernels, "for_tensor", lambda x: run)
    yield


@pytest.mark.skipif(DEVICE == "cuda", reason="test_engine runs these on the GPU")
@pytest.mark.parametrize(
    ("kind", "name", "layer"),
    [
        ("mnist_net", "paper", "block2.conv.weight"),
        ("mnist_net", "paper", "block5.norm.weight"),
        ("mnist_net", "inverted", "block3.conv.weight"),
        ("depth 5", "neurons", "block3.conv.weight"),
        ("depth 10", "paper", "block3.conv.weight"),
        ("depth 10", "layers", "block9.norm.bias"),
    ],
)
def test_the_engine_decides_as_the_plain_algorithm(kind: str, name: str, layer: str, on_these_kernels: None) -> None:
    """Around the boundary of two rows of the layer, where two rows are stale."""
    net, data = stirred(REAL[kind]()), images(20, (3, 5, 4) if "depth" in kind else (1, 8, 8))
    settings = settings_of(name)
    [sweep] = [k for k, (_, names) in enumerate(plan(net, settings)) if names == [layer]]
    weight = net.get_parameter(layer)
    first = max(weight[0].numel() * (len(weight) // 2) - 2, 0) if name == "paper" else 0
    compare(net, data, settings, (0, sweep, first), 6)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("order", ["output", "input"])
@pytest.mark.parametrize(
    "layer", ["head.linear.weight", "block6.conv.weight", "block3.norm.bias", "block2.conv.weight"]
)
def test_steps_on_a_gpu_are_those_on_a_cpu(order: str, layer: str) -> None:
    """In float32, replayed: the losses of the first steps until rounding turns a decision, of which there are few."""
    data, net = images(1000, (1, 28, 28), 10, dtype=torch.float32), models.mnist_net(seed=1)
    settings = RSO(cycles=1, batch_size=250, order=order)
    [sweep] = [k for k, (_, names) in enumerate(plan(net, settings)) if names == [layer]]
    pairs = []
    for device in ("cpu", "cuda"):
        steps = engine_steps(copy.deepcopy(net).to(device), data.to(device), settings, (0, sweep, 0))
        pairs.append([(step.losses.cpu(), float(step.choice)) for step in islice(steps, 16)])
    agreed = sum(1 for _ in takewhile(lambda pair: pair[0][1] == pair[1][1], zip(*pairs, strict=True)))
    assert agreed >= 4
    for (cpu, _), (gpu, _) in zip(*(made[:agreed] for made in pairs), strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-5, atol=1e-5)
