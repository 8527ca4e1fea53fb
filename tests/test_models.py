"""The nets: their weights, the order of what a block does, and the wiring of skips, against torch's functions."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rso_lib.models import (
    Block,
    Flow,
    Head,
    Net,
    cifar_net,
    count_weights,
    initialise,
    mnist_net,
    one_conv,
    two_conv,
)
from rso_lib.passes import calibrate

# Weights


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (mnist_net(), 12_016),
        (cifar_net(), 57_104),
        (cifar_net(10), 57_104),
        (one_conv(), 7_890),
        (two_conv(), 10_330),
        (cifar_net(3), (3 * 32 + 32 * 32) * 9 + 2 * 64 + 320),
        (cifar_net(5), (3 * 16 + 16 * 16 + 16 * 32 + 32 * 32) * 9 + 2 * (16 + 16 + 32 + 32) + 320),
        (one_conv((1, 8, 8)), 4 * 9 + 4 + 4 * 16 * 10 + 10),
        (one_conv((3, 32, 30), 7), 4 * 27 + 4 + 4 * 16 * 15 * 7 + 7),
        (mnist_net(pool_last=True, head="mean"), 12_016),
        (cifar_net(pool_last=True, head="mean"), 57_104),
    ],
)
def test_number_of_weights(net: Net, expected: int) -> None:
    assert count_weights(net) == expected


def test_where_there_are_biases() -> None:
    biased = {name for name, _ in mnist_net().named_parameters() if "conv.bias" in name or "linear.bias" in name}
    assert not biased
    assert {name for name, _ in two_conv().named_parameters()} == {
        *(f"block{k}.conv.{tensor}" for k in (1, 2) for tensor in ("weight", "bias")),
        *("head.linear.weight", "head.linear.bias"),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_initial_weights(seed: int) -> None:
    net = cifar_net(10, seed=seed)
    for name, weight in net.named_parameters():
        if weight.dim() > 1:
            he = math.sqrt(2 / weight[0].numel())
            assert weight.std().item() == pytest.approx(he, rel=4 / math.sqrt(2 * weight.numel())), name
            assert weight.mean().item() == pytest.approx(0, abs=4 * he / math.sqrt(weight.numel())), name
        else:
            assert (weight == (1 if name.endswith("weight") else 0)).all(), name
    assert (one_conv().block1.conv.bias == 0).all() and (one_conv().head.linear.bias == 0).all()


def test_initial_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    first = mnist_net(seed=4)
    torch.manual_seed(5)
    second, other = mnist_net(seed=4), mnist_net(seed=5)
    assert all(torch.equal(w, v) for w, v in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.block1.conv.weight, other.block1.conv.weight)


# One block, written with torch's functions. N is batch norm in train mode.


def parts(block: Block) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The block's convolution, its batch norm and its shortcut, as functions."""

    def norm(layer: nn.BatchNorm2d, z: Tensor) -> Tensor:
        mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), unbiased=False, keepdim=True)
        return (z - mean) / (var + 1e-5).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]

    def shortcut(x: Tensor) -> Tensor:
        return norm(block.shortcut[1], F.conv2d(x, block.shortcut[0].weight))

    return (
        lambda x: F.conv2d(x, block.conv.weight, block.conv.bias, padding=1),
        lambda z: norm(block.norm, z),
        shortcut,
    )


def stirred(block: Block) -> Block:
    with torch.no_grad():
        for weight in block.double().parameters():
            weight += 0.5 * torch.randn_like(weight)
    return block


X = torch.randn(5, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SKIP = torch.randn(5, 2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WIDE_SKIP = SKIP[:, [0, 1, 0, 1]] * torch.tensor([1, 2, 3, 4])[:, None, None]


def test_block_in_the_authors_order() -> None:
    """Convolution, average pooling, batch norm, ReLU."""
    block = stirred(Block(2, 3, pool="avg"))
    conv, norm, _ = parts(block)
    x, skip = block(Flow(X))
    torch.testing.assert_close(x, F.relu(norm(F.avg_pool2d(conv(X), 2))))
    assert skip is None


def test_block_in_the_texts_order() -> None:
    """Convolution, batch norm, ReLU, average pooling."""
    block = stirred(Block(2, 3, pool="avg", pool_last=True))
    conv, norm, _ = parts(block)
    torch.testing.assert_close(block(Flow(X)).x, F.avg_pool2d(F.relu(norm(conv(X))), 2))


@pytest.mark.parametrize("pool_last", [False, True])
def test_block_of_the_julia_notebook(pool_last: bool) -> None:
    """Convolution with bias, max pooling, ReLU; there the place of the pooling makes no difference."""
    block = stirred(Block(2, 3, pool="max", norm=False, pool_last=pool_last))
    conv, _, _ = parts(block)
    torch.testing.assert_close(block(Flow(X)).x, F.max_pool2d(F.relu(conv(X)), 2))


def test_block_without_relu() -> None:
    block = stirred(Block(2, 3, activation=None))
    conv, norm, _ = parts(block)
    torch.testing.assert_close(block(Flow(X)).x, norm(conv(X)))


def test_block_that_opens_a_skip_before_its_relu() -> None:
    block = stirred(Block(2, 3, pool="avg", skip="open"))
    conv, norm, _ = parts(block)
    x, skip = block(Flow(X))
    normed = norm(F.avg_pool2d(conv(X), 2))
    torch.testing.assert_close(x, F.relu(normed))
    torch.testing.assert_close(skip, normed)


def test_block_that_opens_a_skip_and_pools_last() -> None:
    block = stirred(Block(2, 3, pool="avg", pool_last=True, skip="open"))
    conv, norm, _ = parts(block)
    x, skip = block(Flow(X))
    torch.testing.assert_close(x, F.avg_pool2d(F.relu(norm(conv(X))), 2))
    torch.testing.assert_close(skip, F.avg_pool2d(norm(conv(X)), 2))


def test_block_that_passes_a_skip_by() -> None:
    block = stirred(Block(2, 3))
    conv, norm, _ = parts(block)
    x, skip = block(Flow(X, SKIP))
    torch.testing.assert_close(x, F.relu(norm(conv(X))))
    assert skip is SKIP


def test_block_that_closes_a_skip_of_its_width() -> None:
    """Convolution + skip, pooling, batch norm, ReLU."""
    block = stirred(Block(2, 4, pool="avg", skip="close", closes=4))
    conv, norm, _ = parts(block)
    x, skip = block(Flow(X, WIDE_SKIP))
    torch.testing.assert_close(x, F.relu(norm(F.avg_pool2d(conv(X) + WIDE_SKIP, 2))))
    assert skip is None and block.shortcut is None


def test_block_that_closes_a_skip_of_another_width_and_opens_the_next() -> None:
    """A 1×1 convolution with its own batch norm adapts the skip."""
    block = stirred(Block(2, 4, pool="avg", skip="both", closes=2))
    conv, norm, shortcut = parts(block)
    x, skip = block(Flow(X, SKIP))
    normed = norm(F.avg_pool2d(conv(X) + shortcut(SKIP), 2))
    torch.testing.assert_close(x, F.relu(normed))
    torch.testing.assert_close(skip, normed)


@pytest.mark.parametrize(
    ("pool", "features"), [("max", X.amax((2, 3))), ("mean", X.mean((2, 3))), ("flatten", X.reshape(5, 84))]
)
@pytest.mark.parametrize("bias", [False, True])
def test_head(pool: str, features: Tensor, bias: bool) -> None:
    head = Head(features.shape[1], 3, pool=pool, bias=bias).double()
    expected = features @ head.linear.weight.T + (head.linear.bias if bias else 0)
    torch.testing.assert_close(head(Flow(X)), expected)


# Whole nets, written with torch's functions on their weights


def functional(net: Net) -> tuple[Callable[[Tensor, str], Tensor], Callable[[Tensor, str], Tensor]]:
    """Convolution and batch norm (in train mode) with the weights of a module by its name."""
    w = dict(net.named_parameters())

    def conv(x: Tensor, name: str) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(x, kernel, w.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True)

    return conv, norm


def double(net: Net) -> Net:
    with torch.no_grad():
        for weight in net.double().parameters():
            weight += 0.1 * torch.randn_like(weight)
    return net


def test_mnist_net_of_the_authors_code() -> None:
    net, x = double(mnist_net()), torch.randn(6, 1, 28, 28, dtype=torch.float64)
    conv, norm = functional(net)
    z = x
    for k in range(1, 7):
        z = conv(z, f"block{k}.conv")
        z = F.avg_pool2d(z, 2) if k in (2, 4, 6) else z
        z = norm(z, f"block{k}.norm")
        z = F.relu(z) if k < 6 else z
    assert z.shape == (6, 16, 3, 3)
    torch.testing.assert_close(net(x), z.amax((2, 3)) @ net.head.linear.weight.T)


def test_mnist_net_of_the_papers_text() -> None:
    net, x = double(mnist_net(pool_last=True, head="mean")), torch.randn(6, 1, 28, 28, dtype=torch.float64)
    conv, norm = functional(net)
    z = x
    for k in range(1, 7):
        z = F.relu(norm(conv(z, f"block{k}.conv"), f"block{k}.norm"))
        z = F.avg_pool2d(z, 2) if k in (2, 4, 6) else z
    torch.testing.assert_close(net(x), z.mean((2, 3)) @ net.head.linear.weight.T)


@pytest.mark.parametrize(("depth", "pooled"), [(3, (1,)), (5, (2, 3))])
def test_plain_cifar_nets(depth: int, pooled: tuple[int, ...]) -> None:
    net, x = double(cifar_net(depth)), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    conv, norm = functional(net)
    z = x
    for k in range(1, depth):
        z = conv(z, f"block{k}.conv")
        z = norm(F.avg_pool2d(z, 2) if k in pooled else z, f"block{k}.norm")
        z = F.relu(z) if k < depth - 1 else z
    assert [block.conv.out_channels for block in list(net)[:-1]] == ([32, 32] if depth == 3 else [16, 16, 32, 32])
    torch.testing.assert_close(net(x), z.amax((2, 3)) @ net.head.linear.weight.T)


def test_the_residual_net() -> None:
    """Skips from convolution 1 to 3, 3 to 5, 5 to 7 and 7 to 9; 3 and 5 are pooled; from 16 to 32 channels before 5."""
    net, x = double(cifar_net()), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    conv, norm = functional(net)

    def body(z: Tensor, k: int) -> Tensor:
        return conv(F.relu(z), f"block{k}.conv")

    n1 = norm(conv(x, "block1.conv"), "block1.norm")
    n2 = norm(body(n1, 2), "block2.norm")
    n3 = norm(F.avg_pool2d(body(n2, 3) + n1, 2), "block3.norm")
    n4 = norm(body(n3, 4), "block4.norm")
    adapted = norm(conv(n3, "block5.shortcut.0"), "block5.shortcut.1")
    n5 = norm(F.avg_pool2d(body(n4, 5) + adapted, 2), "block5.norm")
    n6 = norm(body(n5, 6), "block6.norm")
    n7 = norm(body(n6, 7) + n5, "block7.norm")
    n8 = norm(body(n7, 8), "block8.norm")
    n9 = norm(body(n8, 9) + n7, "block9.norm")
    assert [n.shape[1] for n in (n1, n2, n3, n4, n5, n6, n7, n8, n9)] == [16, 16, 16, 32, 32, 32, 32, 32, 32]
    torch.testing.assert_close(net(x), n9.amax((2, 3)) @ net.head.linear.weight.T)


def test_julia_nets() -> None:
    net, x = double(two_conv()), torch.randn(4, 1, 28, 28, dtype=torch.float64)
    conv, _ = functional(net)
    z = F.max_pool2d(F.relu(conv(x, "block1.conv")), 2)
    z = F.max_pool2d(F.relu(conv(z, "block2.conv")), 2)
    torch.testing.assert_close(net(x), net.head.linear(z.flatten(1)))


def test_another_depth_is_an_error_that_names_the_three() -> None:
    with pytest.raises(ValueError, match="depth must be 3, 5 or 10, not 4"):
        cifar_net(4)


UNKNOWN = [
    (lambda: one_conv((1, 1, 9)), "one_conv needs images of at least 2×2 pixels, not 1×9"),
    (lambda: two_conv((1, 3, 9)), "two_conv needs images of at least 4×4 pixels, not 3×9"),
    (lambda: mnist_net((1, 28, 7)), "mnist_net needs images of at least 8×8 pixels, not 28×7"),
    (lambda: cifar_net(3, (3, 1, 1)), "cifar_net of depth 3 needs images of at least 2×2 pixels, not 1×1"),
    (lambda: cifar_net(10, (3, 3, 3)), "cifar_net of depth 10 needs images of at least 4×4 pixels, not 3×3"),
    (lambda: one_conv((28, 28)), r"shape must be \(channels, height, width\) of an image, not \(28, 28\)"),
    (lambda: mnist_net(classes=0), "classes must be at least 1, not 0"),
    (lambda: mnist_net(seed=-1), "seed must be at least 0, not -1"),
    (lambda: Block(1, 2, pool="mean"), "pool must be one of avg, max, not 'mean'"),
    (lambda: Block(1, 2, skip="opens"), "skip must be one of open, close, both, not 'opens'; did you mean 'open'"),
    (lambda: Head(4, 2, pool="avg"), "pool must be one of max, mean, flatten, not 'avg'"),
    (lambda: mnist_net(head="avg"), "head must be one of max, mean, not 'avg'"),
    (lambda: cifar_net(3, head="flatten"), "head must be one of max, mean, not 'flatten'"),
]


@pytest.mark.parametrize(("make", "message"), UNKNOWN)
def test_what_is_unknown_is_an_error_that_names_the_choices(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("training", [True, False])
def test_the_shift_of_a_growing_shortcut_changes_nothing(training: bool) -> None:
    """The block's own norm takes it out again, whatever its size; its scale does change the output."""
    net = cifar_net(10, (3, 8, 8)).double().train(training)
    images = torch.randn(30, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def outputs() -> Tensor:
        calibrate(net, images)
        return net(images)

    [shift] = [w for name, w in net.named_parameters() if name.endswith("shortcut.1.bias")]
    assert shift.numel() == 32
    with torch.no_grad():
        before = outputs()
        shift += torch.linspace(-3, 3, 32, dtype=torch.float64)
        torch.testing.assert_close(outputs(), before, rtol=0, atol=1e-11)
        net.get_submodule("block5.shortcut")[1].weight *= 2
        assert (outputs() - before).abs().max() > 0.01


# Calibration


@pytest.mark.parametrize("momentum", [1.0, 0.1, None])
def test_calibration_takes_the_first_2000_images(momentum: float | None) -> None:
    """Also in nets of somebody else, whose batch norm keeps a running mean."""
    images = torch.randn(2500, 2, 2, 3, dtype=torch.float64)
    images[2000:] += 5
    net = nn.Sequential(nn.BatchNorm2d(2, momentum=momentum)).double()
    calibrate(net, torch.rand(7, 2, 2, 2, dtype=torch.float64))
    calibrate(net, images)
    first = images[:2000].transpose(0, 1).flatten(1)
    torch.testing.assert_close(net[0].running_mean, first.mean(1))
    torch.testing.assert_close(net[0].running_var, first.var(1))
    assert net[0].momentum == momentum


@pytest.mark.parametrize("training", [False, True])
def test_calibration_leaves_weights_and_mode(training: bool) -> None:
    net = mnist_net().train(training)
    before = [w.detach().clone() for w in net.parameters()]
    calibrate(net, torch.randn(20, 1, 28, 28))
    assert all(module.training == training for module in net.modules())
    assert all(torch.equal(w, v) for w, v in zip(net.parameters(), before, strict=True))
    assert all(w.grad is None for w in net.parameters())


def test_initialise_works_for_any_module() -> None:
    net = nn.Sequential(nn.Linear(50, 40), nn.LayerNorm(40), nn.Linear(40, 30, bias=False))
    initialise(net, 1)
    assert net[0].weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.1)
    assert (net[0].bias == 0).all() and (net[1].weight == 1).all() and (net[1].bias == 0).all()
