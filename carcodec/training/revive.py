"""Dead features, found and started again.

A ReLU that nothing in the data makes positive has no gradient and stays so for good: up to three of
a trained EDSR's seven blocks were found to add constants. As in ReDo (G. Sokar et al., "The dormant
neuron phenomenon in deep reinforcement learning", ICML 2023), what feeds such a feature is drawn
anew, and what reads it is set to zero, so that the network goes on from what it computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from carcodec.networks.blocks import ResidualBlock
from carcodec.training.world import World

__all__ = ["Reviver"]


class Reviver:
    """Watches the ReLUs of networks' residual blocks while they train.

    Args:
        networks: by the name that the names of their weights begin with.

    Attributes:
        most: for each such block, what each feature was at most since the last search.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        self.blocks: dict[str, ResidualBlock] = {}
        self.most: dict[str, Tensor] = {}
        self.seen: dict[str, Tensor] = {}
        for side, network in networks.items():
            for part, block in network.named_modules():
                if isinstance(block, ResidualBlock) and isinstance(block.activation, nn.ReLU):
                    name = f"{side}.{part}"
                    self.blocks[name] = block
                    weight = block.first.weight.detach()
                    self.most[name] = weight.new_full((len(weight),), -torch.inf)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What the networks compute meanwhile counts, unless torch.compile's kernels do it."""
        hooks = [
            b.first.register_forward_hook(self._watch(name)) for name, b in self.blocks.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch(self, name: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor], found: Tensor) -> None:
            if torch.is_grad_enabled():  # training, not validation
                most = found.detach().amax((0, 2, 3)).to(self.most[name].dtype)
                torch.maximum(self.most[name], most, out=self.most[name])
                self.seen[name] = given[0].detach()

        return hook

    def revive(
        self,
        average: Mapping[str, Tensor],
        optimisers: Iterable[torch.optim.Optimizer],
        seed: int,
        world: World | None = None,
    ) -> int:
        """Start again what was never positive while watched since the last call.

        Where nothing was watched nothing is. Returns how many features.

        Args:
            average: the averaged weights, by name, changed likewise.
            optimisers: their state of these weights is cleared.
            seed: of the drawn weights: the same in every process of ``world``.
        """
        count = 0
        states = [optimiser.state for optimiser in optimisers]
        for name, block in self.blocks.items():
            alive = (self.most[name] > 0).float()
            if world is not None:
                world.mean([alive])
            dead = alive == 0
            self.most[name].fill_(-torch.inf)
            given = self.seen.pop(name, None)
            if not dead.any() or given is None:
                continue
            count += int(dead.sum())
            first, second = block.first, block.second
            with torch.no_grad():
                size = first.weight.flatten(1).norm(dim=1)
                typical = size[~dead].mean() if (~dead).any() else size.mean()
                generator = torch.Generator().manual_seed(seed + count)
                drawn = torch.randn(first.weight.shape, generator=generator).to(first.weight)
                drawn *= (typical / drawn.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
                # centred on what it sees now, so that half of it is positive
                middle = functional.conv2d(given.float(), drawn, padding=1)
                offset = -middle.mean((0, 2, 3))
                if world is not None:
                    world.mean([offset])
                assert first.bias is not None
                own = (first.weight, first.bias, second.weight)
                shadows = [
                    average[f"{name}.{part}"]
                    for part in ("first.weight", "first.bias", "second.weight")
                ]
                for weight, bias, reader in (own, shadows):
                    weight[dead], bias[dead], reader[:, dead] = drawn[dead], offset[dead], 0.0
            for state in states:
                for p, axis in ((first.weight, 0), (first.bias, 0), (second.weight, 1)):
                    for value in state.get(p, {}).values():
                        if isinstance(value, Tensor) and value.shape == p.shape:
                            value[(slice(None),) * axis + (dead,)] = 0
        return count
