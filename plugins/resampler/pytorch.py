"""The resampler's kernels under PyTorch, on its tensors, memory and streams; with gradients."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from carcodec.plugins import launching
from carcodec.plugins.compiling import CompilingError
from carcodec.plugins.driver import DriverError
from carcodec.plugins.launching import Launcher
from carcodec.plugins.resampler import SOURCE, backward_entry, entry, geometry

__all__ = ["resample", "usable"]


@functools.cache
def usable(device: int) -> bool:
    """Whether the kernels load on that GPU; if not, the log says why, once."""
    try:
        launching.kernels(SOURCE, device)
    except (DriverError, CompilingError) as error:
        logging.getLogger("carcodec").warning("the resampler runs without its kernel: %s", error)
        return False
    return True


def resample(
    image: Tensor,
    weights: Tensor,
    offsets: Tensor,
    scale: int,
    *,
    convex: bool = False,
    quantise: bool = False,
    kernels: Launcher | None = None,
) -> Tensor:
    """LR from the raw heads, in one kernel: eq. 1-3 with offsets bounded and weights normalised.

    Args:
        image: ``(N, 3, H, W)`` in [0, 1], H and W multiples of ``scale``.
        weights: ``(N, k*k, H/scale, W/scale)``, raw: see
            :func:`carcodec.networks.car.normalised_weights`.
        offsets: ``(N, 2*k*k, H/scale, W/scale)``, raw: see
            :func:`carcodec.networks.car.bounded_offsets`.
        scale: HR pixels per LR pixel.
        convex: which normalisation.
        quantise: clamp and round to 8 bits, for which there is no gradient.
        kernels: what launches; the shipped kernels on the image's GPU where it is left out.

    All three are float32, or float16 without gradients, on one GPU.

    Returns:
        ``(N, 3, H/scale, W/scale)`` of the image's dtype.

    Raises:
        ValueError: shapes that do not belong together, or another dtype.
        DriverError: the kernels cannot be loaded.
    """
    n, taps, h, w = weights.shape
    kernel = round(taps**0.5)
    wanted = ((n, 3, h * scale, w * scale), (n, kernel**2, h, w), (n, 2 * kernel**2, h, w))
    if tuple(tuple(t.shape) for t in (image, weights, offsets)) != wanted:
        raise ValueError(
            f"image {tuple(image.shape)}, weights {tuple(weights.shape)} and offsets "
            f"{tuple(offsets.shape)} do not belong together at scale {scale}"
        )
    if len({image.dtype, weights.dtype, offsets.dtype}) > 1:
        raise ValueError("image, weights and offsets must have one dtype")
    launcher = kernels or launching.kernels(SOURCE, image.device.index)
    found: Tensor = _Resample.apply(image, weights, offsets, scale, convex, quantise, launcher)  # type: ignore[no-untyped-call]
    return found


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, weights: Tensor, offsets: Tensor, scale: int, convex: bool,
        quantise: bool, launcher: Launcher,
    ) -> Tensor:  # fmt: skip
        given = tuple(_planes(t) for t in (image, weights, offsets))
        n, taps, h, w = weights.shape
        kernel = round(taps**0.5)
        small = image.new_empty((n, 3, h, w))
        name, block = entry(str(image.dtype).removeprefix("torch."), scale, kernel)
        numbers = (h, w, scale, kernel, int(convex), int(quantise))
        launching.launch(launcher, name, geometry(n, h, w, block), (*given, *numbers, small))
        ctx.save_for_backward(*given)
        ctx.told = (scale, kernel, convex, launcher)
        if quantise:
            ctx.mark_non_differentiable(small)
        return small

    @staticmethod
    def backward(ctx: Any, d_small: Tensor) -> tuple[Tensor | None, ...]:
        image, weights, offsets = ctx.saved_tensors
        scale, kernel, convex, launcher = ctx.told
        if image.dtype != torch.float32:
            raise ValueError(f"the resampler has gradients in float32, not {image.dtype}")
        n, _, h, w = weights.shape
        # neighbouring kernels add to the same pixels of the photo
        d_image = torch.zeros_like(image)
        d_weights, d_offsets = torch.empty_like(weights), torch.empty_like(offsets)
        name, block = backward_entry()
        numbers = (h, w, scale, kernel, int(convex))
        given = (image, weights, offsets, _planes(d_small))
        found = (d_image, d_weights, d_offsets)
        launching.launch(launcher, name, geometry(n, h, w, block), (*given, *numbers, *found))
        return *found, None, None, None, None


def _planes(tensor: Tensor) -> Tensor:
    """In the kernels' layout, also where convolutions left it channels last."""
    return tensor.contiguous(memory_format=torch.contiguous_format)
