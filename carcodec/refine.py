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

from carcodec import codec, storage, tiling
from carcodec.errors import MissingDependencyError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["refine", "require"]

_WINDOW = 192  # LR pixels
_RATE = 0.2  # of a bit, in squared steps, as the shipped models were trained
_LEVELS = 0.6  # first step's size in 8-bit levels; it falls along a cosine


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
    """LR after ``steps`` of Adam at the given storage quality; ``None`` for grey LR, for scale 1
    (where LR is the photo and the codec's own search is better), and for JPEG XL, which has no
    proxy.

    Nothing promises that it is better: compare real files.
    """
    import torch

    from carcodec.engines import pytorch
    from carcodec.training import proxies

    small, card = prepared.small, prepared.card
    known = storage_codec in proxies.SHAPES or storage_codec == "jpeg2000"
    if small.ndim == 2 or card.scale == 1 or not known:
        return None
    if threads:
        torch.set_num_threads(threads)
    upscaler = pytorch.network(card, "upscaler").requires_grad_(False)
    upscaler.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    colour = prepared.photo.colour
    peak = 65535 if colour.dtype == np.uint16 else 255
    refined = small.copy()
    halo = min(card.upscaler.halo, 24)

    def network(block: NDArray[np.float32]) -> NDArray[np.float32]:
        return block

    def improve(rows: slice, columns: slice) -> NDArray[np.float32]:
        s = card.scale
        part = codec._taken(
            colour,
            slice(rows.start * s, rows.stop * s),
            slice(columns.start * s, columns.stop * s),
        )
        photo = _tensor(part, peak)
        start = _tensor(small[rows, columns])
        found = _improve(upscaler, start, photo, storage_codec, quality, steps)
        return found.numpy()

    def write(rows: slice, columns: slice, block: NDArray[Any]) -> None:
        refined[rows, columns] = np.rint(block * 255).astype(np.uint8).transpose(1, 2, 0)

    size = (small.shape[1], small.shape[0])
    tiling.run(network, size, halo, max(_WINDOW, 2 * halo + 8), improve, write)
    return refined


def _tensor(image: NDArray[Any], peak: int = 255) -> Tensor:
    import torch

    planes = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
    tensor = torch.from_numpy(planes / np.float32(peak))[None]
    return tensor.contiguous(memory_format=torch.channels_last)


def _improve(
    upscaler: Any, start: Tensor, photo: Tensor, storage_codec: str, quality: float, steps: int
) -> Tensor:
    import torch

    from carcodec.training import proxies

    chosen = storage.by_name(storage_codec)
    share = torch.tensor([round(quality) / 100])
    size = (start.shape[3], start.shape[2])
    if storage_codec == "jpeg2000":
        step = torch.tensor([12**0.5 * 255 / 10 ** ((20 + 0.4 * quality) / 20)])
    else:
        step = torch.tensor([proxies.dct_step(storage_codec, quality)])
    small = start.clone().requires_grad_()
    rate = _LEVELS / 255
    adam = torch.optim.Adam([small], lr=rate, betas=(0.9, 0.95))
    for i in range(steps):
        adam.param_groups[0]["lr"] = rate * 0.5 * (1 + np.cos(np.pi * i / steps))
        if storage_codec == "jpeg2000":
            coded = proxies.wavelet_codec(small, step)
        else:
            coded = proxies.dct_codec(small, step, **proxies.SHAPES[storage_codec])
        levels = small.detach().clamp(0, 1).mul(255).round().byte()[0].permute(1, 2, 0).numpy()
        stored = chosen.decode(chosen.encode(levels, quality, 1), size, 3, 1)
        exact = _tensor(stored)
        given = coded.image + (exact - coded.image).detach()
        with torch.autocast("cpu", torch.bfloat16):
            restored = upscaler(given, share)
        error = (restored.float() - photo) * 255 / step
        loss = error.square().mean() + _RATE * coded.bits.mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            small.clamp_(0, 1)
    return small.detach()[0][None]
