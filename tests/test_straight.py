"""The straight-through estimator, against gradients that are worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rso_lib import load, models
from rso_lib.discrete import activate
from rso_lib.models import Block, Head, Net
from rso_lib.run import sgd
from rso_lib.run.sgd import SGD, StraightThrough, through


def net(activation: str = "sign", levels: int = 3, seed: int = 0) -> Net:
    block = Block(1, 4, pool="avg", activation=activation, levels=levels)
    return Net([block], Head(64, 10, pool="flatten", levels=levels), seed)


def test_forward_it_is_the_function_and_backward_the_identity() -> None:
    x = torch.linspace(-2, 2, 41, requires_grad=True)
    made = through(x, torch.sign(x))
    assert torch.equal(made, x.detach().sign())
    made.sum().backward()
    assert torch.equal(x.grad, torch.ones(41))


@pytest.mark.parametrize("activation", ["sign", "step"])
def test_the_gradient_of_a_twin(activation: str) -> None:
    """Forward the twin is the net with its rounded weights; backward each sign is a line between -1 and 1."""
    twin = StraightThrough(net(activation), 1).double().train()
    x, labels = torch.randn(8, 1, 8, 8, dtype=torch.float64), torch.arange(8)
    conv, head = (twin.twin.get_parameter(name) for name in ("block1.conv.weight", "head.linear.weight"))
    grid, grid_of_head = (twin.grids[name] for name in ("block1.conv.weight", "head.linear.weight"))
    F.cross_entropy(twin(x), labels).backward()

    kernel = grid.nearest(conv.detach()).requires_grad_()
    matrix = grid_of_head.nearest(head.detach()).requires_grad_()
    z = F.batch_norm(F.avg_pool2d(F.conv2d(x, kernel, padding=1), 2), None, None, training=True)
    values = activate(z.detach(), activation)
    logits = values.flatten(1) @ matrix.T
    slope = torch.autograd.grad(F.cross_entropy(logits.requires_grad_(), labels), logits)[0] @ matrix.detach()
    slope = slope.view_as(z) * (z.abs() < 1) * (1.0 if activation == "sign" else 0.5)
    z.backward(slope.detach())
    torch.testing.assert_close(conv.grad, kernel.grad)


def test_sgd_trains_it_and_leaves_every_weight_on_the_grid() -> None:
    data, ours = load("digits"), net()
    history = sgd.fit(ours, data, SGD(epochs=6, batch_size=64, rate=0.05, warmup=0, straight_through=True))
    assert history.last.test_accuracy > 0.75
    for name, grid in models.grids(ours).items():
        weight = ours.get_parameter(name).detach()
        assert torch.equal(weight, grid.nearest(weight))


def test_without_it_only_the_last_layer_learns() -> None:
    data, ours = load("digits"), net(levels=0)
    before = {name: w.detach().clone() for name, w in ours.named_parameters()}
    sgd.fit(ours, data, SGD(epochs=1, batch_size=64, rate=0.05, weight_decay=0, warmup=0))
    learnt = {name for name, w in ours.named_parameters() if not torch.equal(w, before[name])}
    assert learnt == {"head.linear.weight"}
    assert all(w.grad is not None for w in ours.parameters())


def test_what_it_cannot_train_is_refused() -> None:
    data = load("digits")
    with pytest.raises(ValueError, match="lie on a grid, which SGD would leave: set straight_through"):
        sgd.fit(net(), data, SGD(epochs=1, batch_size=64, warmup=0))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"straight_through is for a net of blocks, models.Net: it is none"):
        sgd.fit(plain, data, SGD(epochs=1, batch_size=64, warmup=0, straight_through=True))
    with pytest.raises(TypeError, match="straight_through must be True or False, not 1"):
        SGD(straight_through=1)  # type: ignore[arg-type]
