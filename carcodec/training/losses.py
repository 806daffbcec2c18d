"""What training weighs beside the error of pixels, and LR as the storage codec itself gives it.

Images are float tensors ``(N, 3, H, W)``, RGB in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from pytorch_msssim import ssim
from torch import Tensor
from torch.nn import functional

from carcodec import coarseness, storage

__all__ = ["structure", "through", "tint"]

_EFFORT = 2  # of the storage codec


def structure(restored: Tensor, image: Tensor, scales: int) -> Tensor:
    """log(1 - SSIM) of luma, the mean of full size, half, quarter ...: ``(N,)``."""
    weights = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    pair = torch.cat((restored.clamp(0, 1), image)).mul(weights).sum(1, keepdim=True)
    found = []
    for _ in range(scales):
        likeness = ssim(*pair.chunk(2), data_range=1, size_average=False)
        found.append((1 - likeness + 1e-3).log())
        pair = functional.avg_pool2d(pair, 2)
    return torch.stack(found).mean(0)


def tint(error: Tensor) -> Tensor:
    """Mean square of what R - G and B - G are off by over 8 x 8 pixels, beyond one level.

    Nobody sees one level; without the threshold the term would be spent on what is everywhere
    instead of on the few places where it is 20.
    """
    differences = functional.avg_pool2d(error[:, ::2] - error[:, 1:2], 8, 4)
    return functional.relu(differences.abs() - 1 / 255).square().mean()


def through(
    name: str, small: Tensor, quality: Tensor, told: str = "quality"
) -> tuple[Tensor, Tensor]:
    """LR ``(N, 3, h, w)`` encoded and decoded by a storage codec at whole qualities ``(N,)``.

    With it comes what the upscaler is told, ``(N,)`` in [0, 1]: the recipe's ``told`` says what.

    With less effort than photos get: what is lost is much the same, and AVIF's speed 5 would take
    longer than the networks.
    """
    codec = storage.by_name(name)
    levels = small.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    size = (levels.shape[2], levels.shape[1])
    decoded, says = [], []
    for image, q in zip(levels, quality.tolist(), strict=True):
        data = codec.encode(image, int(q), 1, _EFFORT)
        decoded.append(codec.decode(data, size, 3, 1))
        says.append(coarseness.told(told, codec, image, q, data, 1, _EFFORT))
    found = torch.from_numpy(np.stack(decoded)).to(small.device)
    return found.permute(0, 3, 1, 2).float().div(255), quality.new_tensor(says) / 100
