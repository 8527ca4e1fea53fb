"""Share one run between several processes, over torch.distributed.

Each process searches some of the weights, or of the output neurons, with whole batches. All draw the same Δ, so the
choice among w, w + Δ and w − Δ, 2 bits, is all that a process tells the others. Sequential steps wait for each other
and are not shared.

`torchrun --nproc-per-node=N -m rso_lib RUNFOLDER --strategy neuron ...` starts the processes; without it `world` is one
process. Section 4.6 leaves the distributed setting as a hypothesis.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..train import Alone

PATIENCE = timedelta(days=30)
"""How long a process waits for the sweeps of the others. That one is gone shows at once: its connection closes."""


@dataclass
class World(Alone):
    """The processes of a run.

    sent    bytes that this process has sent
    """

    rank: int = 0
    size: int = 1
    sent: int = 0

    def add(self, x: Tensor) -> Tensor:
        """x added up over the processes, each element in the same order, so that ties stay ties."""
        parts = self.gather(x)
        return sum(parts[1:], start=parts[0])

    def gather(self, x: Tensor) -> list[Tensor]:
        """The tensors of this shape of all processes."""
        everyone = [torch.empty_like(x) for _ in range(self.size)]
        self.sent += (self.size - 1) * x.numel() * x.element_size()
        _named(dist.all_gather, everyone, x.contiguous())
        return everyone

    def take_sent(self) -> int:
        """The bytes sent since the last call."""
        sent, self.sent = self.sent, 0
        return sent

    def exchange(self, choices: Tensor, owners: Tensor) -> Tensor:
        """The choices [steps] (0, 1 or 2) of all processes, given those that this one made, and who made which."""
        parts = [choices[owners == rank] for rank in range(self.size)]
        room = -(-max(map(len, parts)) // 4)
        everyone = self.gather(pack(parts[self.rank], room))
        merged = torch.empty_like(choices)
        for rank, packed in enumerate(everyone):
            merged[owners == rank] = unpack(packed, len(parts[rank])).to(choices)
        return merged

    def exchange_values(self, values: Tensor, owners: Tensor) -> Tensor:
        """Return the values [steps], float64, of all processes, given those of this one and the owner of each step."""
        everyone = torch.stack(self.gather(values))
        return everyone.gather(0, owners[None].to(everyone.device))[0]

    def agree(self, net: nn.Module) -> None:
        """Compare the weights of all processes. Raises RuntimeError, naming the first layer that differs."""
        if self.size == 1:
            return
        hashes: list[Any] = [None] * self.size
        _named(dist.all_gather_object, hashes, {name: digest(weight) for name, weight in net.named_parameters()})
        for name in hashes[0]:
            for rank, theirs in enumerate(hashes):
                if theirs[name] != hashes[0][name]:
                    raise RuntimeError(f"{name} of process {rank} differs from that of process 0; the run is stopped")

    def tell(self, value: Any) -> Any:
        """What process 0 passes here, in all processes."""
        box = [value]
        if self.size > 1:
            _named(dist.broadcast_object_list, box)
        return box[0]

    def first(self, load: Callable[[], Any]) -> Any:
        """`load()`, in process 0 before the others, so that one process downloads."""
        if self.rank:
            self.tell(None)
        value = load()
        if not self.rank:
            self.tell(None)
        return value


world = World()
"""This process and those beside it."""


def join(device: str = "cpu") -> str:
    """Meet the other processes that torchrun has started, if it has. Returns this process's device."""
    if "RANK" not in os.environ:
        return device
    backend = "gloo"
    if torch.device(device).type == "cuda":
        place, backend = int(os.environ["LOCAL_RANK"]), "cpu:gloo,cuda:nccl"
        if place >= torch.cuda.device_count():
            raise ValueError(f"each process needs a GPU of its own, and this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(place)
        device = f"cuda:{place}"
    dist.init_process_group(backend, timeout=PATIENCE)
    world.rank, world.size = dist.get_rank(), dist.get_world_size()
    return device


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
    world.__init__()  # type: ignore[misc]


def pack(choices: Tensor, room: int) -> Tensor:
    """Choices [steps] (0, 1 or 2), four to a byte: [room], uint8, on the CPU."""
    padded = torch.zeros(4 * room, dtype=torch.uint8)
    padded[: len(choices)] = choices.cpu()
    quads = padded.view(room, 4)
    return quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6


def unpack(packed: Tensor, steps: int) -> Tensor:
    """The inverse of `pack`."""
    return torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], 1).flatten()[:steps]


def digest(weight: Tensor) -> str:
    return hashlib.sha256(weight.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def _named(collective: Callable[..., Any], *arguments: Any) -> None:
    """Call a collective; where another process is gone, say which process noticed it."""
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise RuntimeError(
            f"process {world.rank} lost another process of the run, which stops; "
            f"the same command goes on behind the last finished sweep: {error}"
        ) from error
