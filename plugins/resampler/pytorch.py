"""The resampler's kernels under PyTorch, on its tensors, memory and streams; with gradients."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from carcodec.plugins.compiling import CompilingError, shipped
from carcodec.plugins.driver import DriverError, Kernels, Pointer, Triple
from carcodec.plugins.resampler import SOURCE, backward_entry, entry, geometry

__all__ = ["Launcher", "resample", "usable"]


class Launcher(Protocol):
    """What starts kernels: :class:`carcodec.plugins.driver.Kernels`."""

    def launch(
        self, name: str, grid: Triple, block: Triple, stream: int, arguments: Sequence[int]
    ) -> None: ...


@functools.cache
def _kernels(device: int) -> Kernels:
    """The kernels in PyTorch's context of one GPU."""
    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # PyTorch makes its context when it is used
        return Kernels(shipped(SOURCE))


@functools.cache
def usable(device: int) -> bool:
    """Whether the kernels load on that GPU; if not, the log says why, once."""
    try:
        _kernels(device)
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
    launcher = kernels or _kernels(image.device.index)
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
        _launch(launcher, name, geometry(n, h, w, block), (*given, *numbers, small))
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
        _launch(launcher, name, geometry(n, h, w, block), (*given, *numbers, *found))
        return *found, None, None, None, None


def _planes(tensor: Tensor) -> Tensor:
    """In the kernels' layout, also where convolutions left it channels last."""
    return tensor.contiguous(memory_format=torch.contiguous_format)


def _launch(
    launcher: Launcher,
    name: str,
    size: tuple[Triple, Triple],
    arguments: Sequence[Tensor | int],
) -> None:
    device = next(a.device for a in arguments if isinstance(a, Tensor))
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    values = [Pointer(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    launcher.launch(name, *size, stream, values)
