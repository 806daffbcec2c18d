"""Refine LR for one photo: gradient steps on its pixels through the frozen upscaler.

What the downscaler does in one pass for any photo is a starting point: for a given photo, the
rate-distortion loss of training can be lowered further by moving LR's pixels themselves. The
storage codec stands in the loop; its proxy gives the gradient and the bits (see
:mod:`carcodec.training.proxies`). Needs the torch extra.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carcodec import coarseness, codec, storage, tiling
from carcodec.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["refine", "require"]

_WINDOW = 192  # LR pixels
_RATE = 0.2  # of a bit, in squared steps, as the shipped models were trained
# A coefficient's move for a gradient of one squared step, in steps: small, because what the codec
# rounds away now it would code after a larger move
_RATIO = 0.002
_MOMENTUM = 0.8


def require() -> None:
    """Check for the torch extra.

    Raises:
        MissingDependencyError: it is not installed.
    """
    if missing := [m for m in ("torch", "onnx") if importlib.util.find_spec(m) is None]:
        raise MissingDependencyError(
            f'this effort refines with {missing[0]}: pip install "carcodec[torch]", '
            "or choose an effort up to 6"
        )


def refine(
    prepared: codec.Prepared, storage_codec: str, quality: float, steps: int, threads: int = 0
) -> storage.Pixels | None:
    """LR after ``steps`` gradient steps at the given storage quality.

    ``None`` for grey LR and for scale 1, where LR is the photo and the storage codec's own search
    is better. Nothing promises that the result is better: compare real files.
    """
    import torch

    from carcodec.engines import pytorch

    small, card = prepared.small, prepared.card
    if small.ndim == 2 or card.scale == 1:
        return None
    if threads:
        torch.set_num_threads(threads)
    upscaler = pytorch.network(card, "upscaler").requires_grad_(False)
    upscaler.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    colour = prepared.photo.colour
    peak = 65535 if colour.dtype == np.uint16 else 255
    chosen = storage.by_name(storage_codec)
    told = coarseness.told(card.told, chosen, small, quality, threads=threads)
    refined = small.copy()
    recurs = card.upscaler.steps > 1  # each step sees half as far as the one before
    halo = min(card.upscaler.halo * (1 + recurs), 24)

    def improve(rows: slice, columns: slice) -> NDArray[np.float32]:
        s = card.scale
        rows_hr = slice(rows.start * s, rows.stop * s)
        photo = codec.taken(colour, rows_hr, slice(columns.start * s, columns.stop * s))
        start = small[rows, columns]
        return _improve(upscaler, start, _tensor(photo, peak), chosen, quality, told, steps)

    def write(rows: slice, columns: slice, block: NDArray[Any]) -> None:
        refined[rows, columns] = np.rint(block * 255).astype(np.uint8).transpose(1, 2, 0)

    size = (small.shape[1], small.shape[0])
    tiling.run(lambda tiles: tiles, size, halo, max(_WINDOW, 2 * halo + 8), improve, write)
    return refined


def _tensor(image: NDArray[Any], peak: int = 255) -> Tensor:
    import torch

    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    tensor = torch.from_numpy(planes / np.float32(peak))[None]
    return tensor.contiguous(memory_format=torch.channels_last)


def _improve(
    upscaler: Any,
    start: storage.Pixels,
    photo: Tensor,
    chosen: storage.StorageCodec,
    quality: float,
    told: int,
    steps: int,
) -> NDArray[np.float32]:
    """A window's LR ``(1, 3, h, w)`` in [0, 1] after the gradient steps.

    They move the 8×8 DCT coefficients, in units of the codec's step, and only those that survive
    quantisation: moving the others would cost bits before it changed anything.
    """
    import torch

    from carcodec.training import proxies

    height, width = start.shape[:2]

    def stored(levels: storage.Pixels) -> storage.Pixels:
        return chosen.decode(chosen.encode(levels, quality, 1), (width, height), 3, 1)

    if chosen.name in proxies.SHAPES:
        step, shape = proxies.dct_step(chosen.name, quality), proxies.SHAPES[chosen.name]
    else:  # as coarse as the noise that it makes
        error = stored(start).astype(np.float32) - start
        step, shape = max(1.0, float((12 * np.square(error).mean()) ** 0.5)), {}
    grid = proxies.Grid(_tensor(start), step, **shape)
    share = torch.tensor([told / 100])
    coefficients = grid.forward(_tensor(start)).requires_grad_()
    kept = (coefficients.detach().abs() > 0.5).float()
    motion = torch.zeros_like(kept)
    for i in range(steps):
        small = grid.backward(coefficients)
        levels = small.detach().clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0)
        exact = _tensor(stored(np.ascontiguousarray(levels.numpy())))
        given = (small + (exact - small).detach()).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            restored = upscaler(given, share)
        error = (restored.float() - photo) * 255 / step
        loss = error.square().mean() * (height * width) + _RATE * grid.bits(coefficients)
        (gradient,) = torch.autograd.grad(loss, coefficients)
        with torch.no_grad():
            motion = _MOMENTUM * motion + gradient * kept
            coefficients -= _RATIO * (1 - i / steps) * motion.clamp(-5, 5)
    return grid.backward(coefficients.detach()).clamp(0, 1).numpy()
