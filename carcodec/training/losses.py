"""What training weighs beside the error of pixels, and LR as the storage codec itself gives it.

Images are float tensors ``(N, 3, H, W)``, RGB in [0, 1].
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from carcodec.training import coding
from carcodec.training.recipe import SSIM_WINDOW

__all__ = ["structure", "through", "tint"]

_SIGMA = 1.5  # pixels, of the window
_STABLE = 0.01**2, 0.03**2


def structure(restored: Tensor, image: Tensor, scales: int) -> Tensor:
    """log(1 - SSIM) of luma, the mean of full size, half, quarter ...: ``(N,)``."""
    weights = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    pair = torch.cat((restored.clamp(0, 1), image)).mul(weights).sum(1, keepdim=True)
    found = []
    for _ in range(scales):
        found.append((1 - _likeness(*pair[:, 0].chunk(2)) + 1e-3).log())
        pair = functional.avg_pool2d(pair, 2)
    return torch.stack(found).mean(0)


def _likeness(x: Tensor, y: Tensor) -> Tensor:
    """SSIM ``(N,)`` of planes ``(N, H, W)`` in [0, 1], as Wang et al. 2004 define it.

    pytorch-msssim's, by products of matrices: its convolutions of a single channel are a quarter
    of what a GPU has to do for a step, and in TF32, which loses small variances.
    """
    with torch.autocast(x.device.type, enabled=False):
        moments = torch.stack((x, y, x * x + y * y, x * y))
        height, width = x.shape[1:]
        down, across = _blur(height, x.device), _blur(width, x.device)
        mean_x, mean_y, squares, product = down @ moments @ across.mT
    both, means = mean_x * mean_y, mean_x.square() + mean_y.square()
    first, second = _STABLE
    light = (2 * both + first) / (means + first)
    likeness: Tensor = light * (2 * (product - both) + second) / (squares - means + second)
    return likeness.mean((1, 2))


@cache
def _blur(size: int, device: torch.device) -> Tensor:
    """SSIM's Gaussian window along a line, as a matrix: ``(size - 10, size)``."""
    window = torch.signal.windows.gaussian(SSIM_WINDOW, std=_SIGMA)
    lines = torch.eye(size)[:, None]  # on the CPU: on a GPU convolutions round to TF32
    found = functional.conv1d(lines, (window / window.sum())[None, None])[:, 0]
    return found.mT.contiguous().to(device)


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
    """
    levels = small.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    pairs = zip(levels, quality.tolist(), strict=True)
    decoded, says = zip(*(coding.stored(name, i, int(q), told) for i, q in pairs), strict=True)
    found = torch.from_numpy(np.stack(decoded)).to(small.device)
    return found.permute(0, 3, 1, 2).float().div(255), quality.new_tensor(says) / 100
