"""Muon for convolution kernels, Adam for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "build_optimisers"]


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised per weight matrix.

    A convolution kernel ``(out, in, kh, kw)`` counts as an ``out × in*kh*kw`` matrix. The
    update's singular values are brought near 1 by five Newton-Schulz steps with the quintic
    coefficients of K. Jordan et al., "Muon: An optimizer for hidden layers in neural
    networks" (2024); torch.optim.Muon takes plain matrices only.
    """

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["momentum"], group["momentum"]).flatten(1)
                shape = update.shape
                update = _orthogonalise(update) * (0.2 * max(shape) ** 0.5)
                p.add_(update.view_as(p), alpha=-group["lr"])


def _orthogonalise(matrix: Tensor) -> Tensor:
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def build_optimisers(
    downscaler: nn.Module, upscaler: nn.Module, kind: str, downscaler_rate: float
) -> list[torch.optim.Optimizer]:
    """Adam as in the paper (beta 0.9, 0.999), or Muon for the upscaler's hidden convolutions.

    Muon's update is scaled to the size of Adam's (0.2 RMS per element), so one learning
    rate serves both. Parameter groups carry a ``ratio`` to that rate, ``downscaler_rate`` for the
    downscaler. Muon is kept from the downscaler: its updates have one size however weak the
    gradient that reaches it through the upscaler, and its kernels never settled.
    """
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    for name, p in upscaler.named_parameters():
        inside = kind == "muon" and p.ndim == 4 and name.split(".")[0] == "body"
        (hidden if inside else rest).append(p)
    groups: list[dict[str, Any]] = [{"params": rest, "ratio": 1.0}]
    if behind := list(downscaler.parameters()):
        groups.append({"params": behind, "ratio": downscaler_rate})
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    ]
    if hidden:
        optimisers.append(Muon([{"params": hidden, "ratio": 1.0}], lr=0.0))
    return optimisers
