"""The straight-through estimator: what one would use instead of a search where the gradient is zero.

Forward, a sign is a sign and a weight lies on its grid. Backward, both are taken for the identity wherever their input
lies within their range (Bengio et al. 2013; Courbariaux et al. 2015 and 2016). The weights that learn are floats; they
are rounded to the grid in every forward pass, and kept within its ends.
"""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..discrete import activate
from ..known import unlike
from ..models import Block, Net, grids, initialise, pool2


class StraightThrough(nn.Module):
    """A twin of a net of blocks that has a gradient: [N, C, H, W] → logits [N, classes].

    The parameters are floats, drawn as He does. `write` puts what the twin has learnt into the net.
    Raises ValueError for another net: a module of torch keeps the gradient of its own functions.
    """

    def __init__(self, net: nn.Module, seed: int):
        super().__init__()
        if not isinstance(net, Net) or (reason := unlike(net)):
            why = "it is none" if not isinstance(net, Net) else reason
            raise ValueError(f"straight_through is for a net of blocks, models.Net: {why}")
        self.twin, self.grids = copy.deepcopy(net), grids(net)
        for layer in self.twin.layers:
            layer.levels = 0
        initialise(self.twin, seed)
        for block in self.twin.blocks:
            block.activate = partial(_activate, block)  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.twin, self.rounded(), (x,))

    def rounded(self) -> dict[str, Tensor]:
        """Return the parameters by name, those of grids rounded."""
        floats = dict(self.twin.named_parameters())
        return floats | {name: through(floats[name], grid.nearest(floats[name])) for name, grid in self.grids.items()}

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the floats between the ends of their grids, where their gradient would stay for ever."""
        for name, grid in self.grids.items():
            end = grid.spacing * (grid.levels - 1) / 2
            self.twin.get_parameter(name).clamp_(-end, end)

    @torch.no_grad()
    def write(self, net: nn.Module) -> None:
        """Copy the rounded parameters and batch norm's statistics to a net of the same kind."""
        net.load_state_dict({**self.twin.state_dict(), **self.rounded()})


def through(x: Tensor, value: Tensor) -> Tensor:
    """Return a value, to the last bit, whose gradient is that of x."""
    return value.detach() + (x - x.detach())


def _activate(block: Block, z: Tensor) -> Tensor:
    """Activate as the block does; backward, sign and step are a line between -1 and 1."""
    if block.activation in ("sign", "step"):
        line = z.clamp(-1, 1) if block.activation == "sign" else (z.clamp(-1, 1) + 1) / 2
        z = through(line, activate(z, block.activation))
    else:
        z = activate(z, block.activation)
    return pool2(z, block.pool) if block.pool_last else z
