"""Share one run between several processes, over torch.distributed.

Each process searches some of the weights, or of the output neurons, with whole batches. All draw the same Δ, so a
process tells the others only its choices: 2 bits each where a step has at most four candidates, and the multiple of Δ
in float64 otherwise. Sequential steps wait for each other and are not shared.

`torchrun --nproc-per-node=N -m rso_lib train RUNFOLDER --strategy neuron ...` starts the processes; without it `world`
is one process. Section 4.6 leaves the distributed setting as a hypothesis.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..train import Alone
from .provenance import digest

MEETING = timedelta(minutes=10)
"""How long a process waits at the beginning until all of them are there."""
PATIENCE = timedelta(days=30)
"""How long a process waits for the sweeps of the others. That one has ended shows at once: its connection closes."""
NEEDED = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The variables that torchrun sets beside RANK."""


@dataclass
class World(Alone):
    """The processes of a run.

    sent    bytes that this process has sent
    """

    rank: int = 0
    size: int = 1
    sent: int = 0

    def add(self, x: Tensor) -> Tensor:
        """Return the sum of x over the processes, added in the same order in each, so that ties stay ties."""
        parts = self.gather(x)
        return sum(parts[1:], start=parts[0])

    def gather(self, x: Tensor) -> list[Tensor]:
        """Return the tensor that each process passes here, all of one shape, by rank."""
        everyone = [torch.empty_like(x) for _ in range(self.size)]
        self.sent += (self.size - 1) * x.numel() * x.element_size()
        _named(dist.all_gather, everyone, x.contiguous())
        return everyone

    def take_sent(self) -> int:
        """Return the bytes sent since the last call."""
        sent, self.sent = self.sent, 0
        return sent

    def exchange(self, choices: Tensor, owners: Tensor) -> Tensor:
        """Return the choices [steps] (0 to 3) of all processes, given the choices of this one and each step's owner."""
        parts = [choices[owners == rank] for rank in range(self.size)]
        room = -(-max(map(len, parts)) // 4)
        everyone = self.gather(pack(parts[self.rank], room))
        merged = torch.empty_like(choices)
        for rank, packed in enumerate(everyone):
            merged[owners == rank] = unpack(packed, len(parts[rank])).to(choices)
        return merged

    def exchange_values(self, values: Tensor, owners: Tensor) -> Tensor:
        """Return the values [steps], float64, of all processes, given the values of this one and each step's owner."""
        everyone = torch.stack(self.gather(values))
        return everyone.gather(0, owners[None].to(everyone.device))[0]

    def agree(self, net: nn.Module) -> None:
        """Compare the weights of all processes. Raises RuntimeError, naming the first layer that differs."""
        if self.size == 1:
            return
        hashes = self.everyone({name: digest(weight.detach().cpu()) for name, weight in net.named_parameters()})
        for name in hashes[0]:
            for rank, theirs in enumerate(hashes):
                if theirs.get(name) != hashes[0][name]:
                    raise RuntimeError(f"{name} of process {rank} differs from that of process 0; the run is stopped")

    def compare(self, what: Mapping[str, Any]) -> None:
        """Raise ValueError, in all processes, where they pass different values; it names what differs, and where."""
        everyone = self.everyone(dict(what))
        lines = [
            f"  {name} is {theirs.get(name)!r} in process {rank}, not {everyone[0].get(name)!r} as in process 0"
            for rank, theirs in enumerate(everyone)
            for name in {**everyone[0], **theirs}
            if theirs.get(name) != everyone[0].get(name)
        ]
        if lines:
            raise ValueError(
                "the processes of the run disagree, and it does not begin; start all of them with one command, "
                "on the same images and with the same versions:\n" + "\n".join(lines)
            )

    def everyone(self, value: Any) -> list[Any]:
        """Return the objects that the processes pass here, by rank."""
        values = [value] * self.size
        if self.size > 1:
            _named(dist.all_gather_object, values, value)
        return values

    def tell(self, value: Any) -> Any:
        """Return in all processes the object that process 0 passes here."""
        box = [value]
        if self.size > 1:
            _named(dist.broadcast_object_list, box)
        return box[0]

    def together(self, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, called in process 0 before the others, so that one process downloads.

        Where it fails in one process, no process goes on: that one raises its error, and the others RuntimeError, which
        quotes it.
        """
        made: Any = None
        failed: Exception | None = None
        if not self.rank or self.tell(None) is None:  # the others wait until process 0 has tried, and hear what failed
            try:
                made = make()
            except Exception as error:
                failed = error
        said = f"{type(failed).__name__}: {failed}" if failed else None
        if not self.rank:
            self.tell(said)
        everyone = self.everyone(said)
        if failed:
            raise failed
        for rank, text in enumerate(everyone):
            if text:
                raise RuntimeError(f"process {rank} cannot take part, and the run does not begin: {text}")
        return made


world = World()
"""This process and those beside it."""


def join(device: str = "cpu") -> str:
    """Meet the other processes that torchrun has started, if it has, and return the device of this one.

    Raises ValueError where only some of torchrun's variables are set, or where there are too few GPUs, RuntimeError
    where a process does not come.
    """
    if "RANK" not in os.environ:
        return device
    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        raise ValueError(
            f"RANK is set in the environment, but {', '.join(missing)} is not: start several processes with torchrun, "
            f"and for one process take RANK away (unset RANK)"
        )
    backend = "gloo"
    if torch.device(device).type == "cuda":
        place, backend = int(os.environ.get("LOCAL_RANK", os.environ["RANK"])), "cpu:gloo,cuda:nccl"
        if place >= torch.cuda.device_count():
            raise ValueError(f"each process needs a GPU of its own, and this machine has {torch.cuda.device_count()}")
        torch.cuda.set_device(place)
        device = f"cuda:{place}"
    store, rank, size = next(dist.rendezvous("env://", timeout=MEETING))
    _meet(store, rank, size)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    world.rank, world.size = rank, size
    return device


def _meet(store: Any, rank: int, size: int) -> None:
    """Wait until all processes are there. Raises RuntimeError, naming those that did not come."""
    store.set(f"here {rank}", "1")
    here = [f"here {other}" for other in range(size)]
    try:
        store.wait(here, MEETING)
    except RuntimeError as error:
        missing = ", ".join(str(other) for other, key in enumerate(here) if not store.check([key]))
        raise RuntimeError(f"of {size} processes these did not come within {MEETING}: {missing}") from error


def leave() -> None:
    """Leave the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()
    world.rank, world.size, world.sent = 0, 1, 0


def pack(choices: Tensor, room: int) -> Tensor:
    """Pack choices [steps] (0, 1 or 2), four to a byte: [room], uint8, on the CPU."""
    padded = torch.zeros(4 * room, dtype=torch.uint8)
    padded[: len(choices)] = choices.cpu()
    quads = padded.view(room, 4)
    return quads[:, 0] | quads[:, 1] << 2 | quads[:, 2] << 4 | quads[:, 3] << 6


def unpack(packed: Tensor, steps: int) -> Tensor:
    """Return the choices [steps] that `pack` has packed."""
    return torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], 1).flatten()[:steps]


def _named(collective: Callable[..., Any], *arguments: Any) -> None:
    """Call a collective operation. Where another process is gone, the error says which process noticed it."""
    try:
        collective(*arguments)
    except RuntimeError as error:
        raise RuntimeError(
            f"process {world.rank} lost another process of the run, which stops; "
            f"the same command goes on behind the last finished sweep: {error}"
        ) from error
