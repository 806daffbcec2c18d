"""One training on several processes, as `torchrun` starts them, each on a device of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

__all__ = ["World", "join"]


class World:
    """The processes that train together; one alone needs none of it."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and reports."""
        return self.rank == 0

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.size == 1 or not tensors:
            return
        together = torch.cat([t.flatten() for t in tensors])
        distributed.all_reduce(together)
        together /= self.size
        taken = 0
        for tensor in tensors:
            tensor.copy_(together[taken : taken + tensor.numel()].view_as(tensor))
            taken += tensor.numel()

    def same(self, value: float, device: torch.device) -> float:
        """The first process's value, for all."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)

    def leave(self) -> None:
        """Part from the others."""
        if self.size > 1:
            distributed.destroy_process_group()


def join(device: str) -> tuple[World, torch.device]:
    """The world that torchrun describes in the environment, and this process's device."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    own = torch.device("cuda", local) if device == "cuda" and size > 1 else torch.device(device)
    if size == 1:
        return World(), own
    if own.type == "cuda":
        torch.cuda.set_device(own)
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    return World(distributed.get_rank(), size), own
