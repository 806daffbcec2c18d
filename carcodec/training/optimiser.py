"""Muon for convolution kernels, Adam for everything else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from carcodec.networks.blocks import PlaneNetwork

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
            # together: a GPU waits for small products, and for being told of each
            alike: dict[torch.Size, list[tuple[Tensor, Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                alike.setdefault(p.shape, []).append((p, p.grad, state["momentum"]))
            for shape, found in alike.items():
                members, grads, momenta = map(list, zip(*found, strict=True))
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                mixed = torch._foreach_lerp(grads, momenta, group["momentum"])
                updates = _orthogonalise(torch.stack([m.flatten(1) for m in mixed]))
                updates *= 0.2 * max(updates.shape[1:]) ** 0.5
                steps = list(updates.reshape(-1, *shape).unbind())
                torch._foreach_add_(members, steps, alpha=-group["lr"])


def _orthogonalise(matrices: Tensor) -> Tensor:
    """Of ``(N, rows, columns)`` each."""
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.is_cuda:  # as its authors have it: the steps forgive what is lost
        x = x.bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


def build_optimisers(
    downscaler: nn.Module, upscaler: nn.Module, kind: str, downscaler_rate: float
) -> list[torch.optim.Optimizer]:
    """Adam as in the paper (beta 0.9, 0.999), or Muon for both networks' hidden convolutions.

    Muon's update is scaled to the size of Adam's (0.2 RMS per element), so one learning
    rate serves both. Parameter groups carry a ``ratio`` to that rate: ``downscaler_rate`` for the
    downscaler's hidden convolutions and, under Muon, half of it for the rest of the downscaler,
    whose last layers set kernels directly. A network's own ``slower`` layers come on top, under
    Adam.
    """
    adam: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for network, ratio in ((upscaler, 1.0), (downscaler, downscaler_rate)):
        hidden: list[Tensor] = []
        rest: dict[float, list[Tensor]] = {}
        half = 0.5 if kind == "muon" and network is downscaler else 1.0
        slower = getattr(network, "slower", {}) if kind == "adam" else {}
        for name, p in network.named_parameters():
            if kind == "muon" and p.ndim == 4 and _is_hidden(network, name):
                hidden.append(p)
            else:
                share = half * ratio * slower.get(name.partition(".")[0], 1.0)
                rest.setdefault(share, []).append(p)
        adam += [{"params": found, "ratio": share} for share, found in rest.items()]
        if hidden:
            muon.append({"params": hidden, "ratio": ratio})
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(adam, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    ]
    if muon:
        optimisers.append(Muon(muon, lr=0.0))
    return optimisers


def _is_hidden(network: nn.Module, name: str) -> bool:
    """Whether a convolution lies between features and features, not between them and an image."""
    if isinstance(network, PlaneNetwork):
        weight = network.get_parameter(name)
        return name.endswith("weight") and min(weight.shape[:2]) > 4 and name != "down.weight"
    part, *rest = name.split(".")
    if part == "body":
        return True
    branch = getattr(network, part)
    return isinstance(branch, nn.Sequential) and int(rest[0]) < len(branch) - 1
