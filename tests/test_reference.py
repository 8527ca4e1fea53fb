"""Algorithm 1, against decisions that can be worked out by hand."""

import math

import pytest
import torch
from steps import one_step, scorer
from torch import Tensor, nn

from rso_lib.algorithm import Batches, algorithm_1, choose, cross_entropy, one_hot, step
from rso_lib.engine import JointMove
from rso_lib.proposals import generator

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("losses", "choice"),
    [
        ([2.0, 1.0, 3.0], 1),
        ([2.0, 3.0, 1.0], 2),
        ([1.0, 2.0, 3.0], 0),
        ([1.0, 1.0, 1.0], 0),
        ([1.0, 1.0, 2.0], 0),
        ([1.0, 2.0, 1.0], 0),
        ([2.0, 1.0, 1.0], 1),
        ([1.0, NAN, 0.5], 2),
        ([1.0, NAN, NAN], 0),
        ([1.0, -INF, INF], 0),
        ([NAN, 2.0, 3.0], 1),
        ([INF, NAN, 3.0], 2),
        ([NAN, NAN, NAN], 0),
        ([INF, -INF, NAN], 0),
        ([NAN, INF, INF], 0),
        ([INF, 1e38, NAN], 1),
    ],
)
def test_choose(losses: list[float], choice: int) -> None:
    assert int(choose(torch.tensor(losses))) == choice


def test_choose_for_many_steps_at_once() -> None:
    losses = torch.tensor([[2.0, 1.0, NAN], [1.0, 1.0, 5.0], [3.0, 0.0, INF]])
    assert choose(losses).tolist() == [1, 2, 1]


# One step


def squared(w: Tensor, target: float) -> Tensor:
    return ((w - target) ** 2).sum()


@pytest.mark.parametrize(
    ("target", "delta", "losses", "kept"),
    [
        (3.0, 1.0, [4, 1, 9], 2.0),
        (3.0, -1.0, [4, 9, 1], 2.0),
        (1.0, 0.5, [0, 0.25, 0.25], 1.0),
        (1.5, 1.0, [0.25, 0.25, 2.25], 1.0),
        (3.0, 0.0, [4, 4, 4], 1.0),
    ],
)
def test_step_on_a_parabola(target: float, delta: float, losses: list[float], kept: float) -> None:
    w = torch.tensor([1.0])
    got = step(lambda: squared(w, target), [w], [torch.tensor([delta])])
    assert got.dtype == torch.float64
    assert got.tolist() == losses
    assert w.item() == kept


def test_step_moves_several_tensors_together() -> None:
    """w + Δ = (2, 0) and w − Δ = (0, 2), against (0, 2)."""
    a, b = torch.tensor([1.0]), torch.tensor([1.0])
    losses = step(lambda: squared(a, 0) + squared(b, 2), [a, b], [torch.tensor([1.0]), torch.tensor([-1.0])])
    assert losses.tolist() == [2, 8, 0]
    assert (a.item(), b.item()) == (0, 2)


def test_a_rejected_step_leaves_every_bit() -> None:
    """In float32, 1e-8 + 1 − 1 is 0: the old value must be kept, not computed."""
    w = torch.tensor([1e-8, math.pi, -0.0])
    before = w.clone()
    step(lambda: squared(w, 0), [w], [torch.ones(3) * 10])
    assert torch.equal(w.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize(("broken", "kept"), [([1], 1.0), ([1, 2], 1.0), ([0], 2.0), ([0, 1, 2], 1.0)])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_loss_that_is_not_finite_never_wins(broken: list[int], kept: float, value: float) -> None:
    """The losses would be 4, 1 and 9."""
    w = torch.tensor([1.0])
    calls = iter(range(3))
    step(lambda: torch.tensor(value) if next(calls) in broken else squared(w, 3), [w], [torch.tensor([1.0])])
    assert w.item() == kept


def test_step_tracks_no_gradient() -> None:
    net = nn.Linear(2, 1)
    x = torch.ones(4, 2)
    step(lambda: net(x).square().mean(), [net.weight], [torch.ones(1, 2)])
    assert net.weight.requires_grad and net.weight.grad is None and net.weight.is_leaf


def test_one_hot() -> None:
    assert one_hot(torch.ones(2, 3), 4, 0.5).tolist() == [[0, 0, 0], [0, 0.5, 0]]
    kernel = one_hot(torch.ones(2, 3, 1, 2, dtype=torch.float64), 7, -1.0)
    assert kernel.dtype == torch.float64 and kernel[1, 0, 0, 1] == -1 and kernel.abs().sum() == 1


# Batches and the loss


def test_slices_leave_the_rest_out() -> None:
    batches = Batches(torch.arange(7), torch.arange(7) + 10, 3)
    assert [part.tolist() for part in batches.slices(batches.images)] == [[0, 1, 2], [3, 4, 5]]
    assert [part.tolist() for part in batches.slices(batches.labels)] == [[10, 11, 12], [13, 14, 15]]


def test_cross_entropy_is_summed_in_float64() -> None:
    logits, labels = torch.randn(1000, 4) * 5, torch.randint(4, (1000,))
    expected = sum(
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    )
    loss = cross_entropy(logits, labels)
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(expected / 1000, rel=1e-13)


def test_module_search_takes_the_slices_in_turn() -> None:
    """A weight decides between two logits: w·x against 0."""
    net = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        net.weight.zero_()
    images = torch.tensor([[1.0], [1.0], [-2.0], [-2.0], [9.0]])
    search = scorer(net, 0, Batches(images, torch.zeros(5, dtype=torch.long), 2))

    def expected(z: float) -> float:
        return math.log1p(math.exp(-z))

    losses = one_step(search, "weight", 0, torch.tensor(1.0), 0)
    assert losses.tolist() == pytest.approx([expected(0), expected(1), expected(-1)])
    assert net.weight.tolist() == [[1.0], [0.0]]
    losses = one_step(search, "weight", 0, torch.tensor(0.5), 1)
    assert losses.tolist() == pytest.approx([expected(-2), expected(-3), expected(-1)])
    assert net.weight.tolist() == [[0.5], [0.0]]
    losses = one_step(search, "weight", 0, torch.tensor(0.5), 3)
    assert losses.tolist() == pytest.approx([expected(-1), expected(-2), expected(0)])
    scores = search.score(JointMove(["weight"], 4 % 2, 4, [0], [torch.tensor([[1.0], [-1.0]])]))
    assert scores.losses[0].tolist() == pytest.approx([expected(0), expected(2), expected(-2)])


# The whole algorithm


def test_algorithm_1_walks_downhill_as_worked_out_by_hand() -> None:
    """The loss is a sum of parabolas, one for each weight: what is kept depends on that weight and its Δ alone."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, bias=False)).double()
    targets = {name: 0.3 * torch.arange(w.numel()).view(w.shape) for name, w in net.named_parameters()}
    seen: list[tuple[Tensor, Tensor]] = []

    def loss(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        seen.append((x, labels))
        return sum(((w - targets[name]) ** 2).sum() for name, w in net.named_parameters())

    images = torch.rand(10, 3, dtype=torch.float64) * 7 + 5
    labels = torch.arange(10)
    assert algorithm_1(net, loss, images, labels, cycles=2, batch_size=4, seed=5) is net

    # Lines 2 to 6: weights from N(0, √(2 / fan_in)), biases 0, σ of the tensor (1/6 for biases).
    rng = generator(5)
    weights = {
        "0.weight": torch.randn(2, 3, generator=rng) * math.sqrt(2 / 3),
        "0.bias": torch.zeros(2),
        "1.weight": torch.randn(1, 2, generator=rng) * math.sqrt(2 / 2),
    }
    weights = {name: w.double() for name, w in weights.items()}
    sigmas = {name: w.std().item() if w.dim() > 1 else 1 / 6 for name, w in weights.items()}
    # Lines 8 to 16, from the labels to the input.
    rng = generator(5)
    batches = []
    for _ in range(2):
        for name in ("1.weight", "0.bias", "0.weight"):
            w, target = weights[name].view(-1), targets[name].view(-1)
            for j in range(len(w)):
                batches.append(torch.randperm(10, generator=rng)[:4])
                delta = torch.randn(1, generator=rng).item() * sigmas[name]
                w[j] = min((w[j], w[j] + delta, w[j] - delta), key=lambda value, j=j, t=target: abs(value - t[j]))

    for name, w in net.named_parameters():
        torch.testing.assert_close(w.data, weights[name], rtol=0, atol=1e-12)

    # Line 1, and one batch for the three losses of a step.
    standardised = (images - images.mean()) / images.std()
    assert len(seen) == 3 * 2 * (2 + 2 + 6)
    for k, (x, y) in enumerate(seen):
        assert torch.equal(y, labels[batches[k // 3]])
        torch.testing.assert_close(x, standardised[batches[k // 3]], rtol=0, atol=1e-12)


def test_algorithm_1_learns_a_linear_map() -> None:
    x = torch.randn(64, 3, generator=generator(1))
    y = x @ torch.tensor([[0.5], [-1.0], [0.25]])
    net = nn.Linear(3, 1)
    loss = lambda net, x, y: (net(x) - y).square().mean()  # noqa: E731
    algorithm_1(net, loss, x, y, cycles=60, batch_size=64)
    assert loss(net, (x - x.mean()) / x.std(), y).item() < 0.01 * y.var().item()


def test_algorithm_1_repeats_itself() -> None:
    x, y = torch.randn(16, 3), torch.randint(2, (16,))
    nets = [nn.Linear(3, 2) for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        algorithm_1(net, lambda n, x, y: cross_entropy(n(x), y), x, y, cycles=2, batch_size=5, seed=seed)
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert not torch.equal(nets[0].weight, nets[2].weight)
