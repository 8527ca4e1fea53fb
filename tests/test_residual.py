"""Depth-10 with fewer channels, through a whole cycle of the plain algorithm: the wiring of skips is the real one."""

import pytest
import torch
from oracle import images, stirred
from test_engine import compare

from rso_lib import RSO
from rso_lib.models import Block, Head, Net, cifar_net, count_weights

SKIPS = {(True, False): "open", (True, True): "both", (False, True): "close", (False, False): None}


def narrow_depth_10(wide: int) -> Net:
    """Depth-10 with 2 channels in place of 16 and `wide` in place of 32, stirred, in float64."""
    channels = {3: 1, 16: 2, 32: wide}
    blocks, closes = [], 0
    for block in cifar_net(10).blocks:
        inputs, outputs = channels[block.conv.in_channels], channels[block.conv.out_channels]
        skip = SKIPS[bool(block.opens), bool(block.closes)]
        blocks.append(Block(inputs, outputs, pool=block.pool, activation=block.activation, skip=skip, closes=closes))
        closes = outputs if block.opens else closes
    return stirred(Net(blocks, Head(wide, 3, pool="max"), seed=0).double())


@pytest.mark.parametrize("wide", [2, 3], ids=["same width", "growing shortcut"])
def test_a_whole_cycle_of_depth_10(wide: int) -> None:
    net = narrow_depth_10(wide)
    shortcuts = [block.shortcut for block in net.blocks if block.shortcut is not None]
    assert len(shortcuts) == (wide == 3)
    settings = RSO(cycles=1, batch_size=8, weight_decay=1e-4)
    visits = compare(net, images(26, (1, 8, 8)), settings)
    assert len(visits) == count_weights(net)
    chosen = torch.tensor([visit.choice for visit in visits]).bincount(minlength=3)
    assert bool((chosen > 0.05 * len(visits)).all())
