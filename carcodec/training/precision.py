"""Half precision for features, float32 for images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from carcodec.networks.blocks import Luma, Reduction, Shortcut

__all__ = ["exact_images"]

_PLANES = 4  # at most so many channels are an image's
_MAKERS = ("down", "image", "last", "skip", "tail")  # layers whose outputs may be its pixels


def exact_images(network: nn.Module) -> None:
    """Have the layers that read or make images compute in float32 under autocast.

    Above a half, bfloat16 has 128 numbers for 128 levels, which are not those of 8 bits; below
    it twice as many, and so on. An image in bfloat16 is off by half a level one way, and a
    downscaler can learn that darker LR is more exact LR: TAD's drifted by 28 levels. Features
    are computed in whatever autocast wants.
    """
    for name, module in network.named_modules():
        if isinstance(module, (Luma, Reduction, Shortcut)):
            features = False
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            features = module.out_channels > _PLANES and name not in _MAKERS
            if features and module.in_channels > _PLANES:
                continue
        else:
            continue
        module.forward = _in_float32(module.forward, features)


def _in_float32(forward: Callable[..., Tensor], features: bool) -> Callable[[Tensor], Tensor]:
    """The layer in float32, what it gives in autocast's type if those are features."""

    def run(x: Tensor) -> Tensor:
        kind = x.device.type
        halved = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            y = forward(x.float())
        return y.to(torch.get_autocast_dtype(kind)) if features and halved else y

    return run
