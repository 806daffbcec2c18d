"""Encode a photo to .carimg bytes and back; reads as the diagram in the README does.

photo → pixels → downscaler → LR → storage codec → container → bytes
photo ← pixels ← upscaler   ← LR ← storage codec ← container ← bytes
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carcodec import coarseness, container, ensemble, pixels, storage, tiling, zoo
from carcodec.errors import ImageError, LimitError, StorageError

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_STORAGE",
    "MAX_PIXELS",
    "Encoded",
    "Prepared",
    "decode",
    "decode_array",
    "encode",
    "prepare",
    "store",
    "thumbnail",
]

DEFAULT_MODEL = "car-x2"
DEFAULT_STORAGE = "jpegxl"
# Photos whose LR has more pixels than this carry a preview, so that a thumbnail takes milliseconds;
# smaller LR decodes quickly itself. It takes at most this share of LR's bytes, or is left out.
PREVIEW_FROM = 2**21
PREVIEW_SIDE = 320
PREVIEW_SHARE = 1 / 32
MAX_PIXELS = 2**30  # HR pixels; more is refused before anything is allocated

Report = Callable[[float], None]
Region = tuple[int, int, int, int]
_Over = Callable[[Iterator[Any]], Iterator[Any]]


def _quiet(share: float) -> None:
    pass


@dataclass(frozen=True)
class Encoded:
    """A finished .carimg.

    Attributes:
        data: the file's bytes.
        header: what it says of itself.
        quality: the storage codec's, ``None`` is lossless. What the upscaler is told is in
            the header.
    """

    data: bytes
    header: container.Header
    quality: float | None

    @property
    def bpp(self) -> float:
        """Bits per HR pixel, whole file."""
        return 8 * len(self.data) / (self.header.width * self.header.height)


def encode(
    photo: Image.Image | NDArray[Any] | pixels.Photo,
    *,
    model: str = DEFAULT_MODEL,
    storage_codec: str = DEFAULT_STORAGE,
    quality: float | None = None,
    alpha_quality: int | None = None,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    effort: int = storage.DEFAULT_EFFORT,
    progress: Report = _quiet,
) -> Encoded:
    """Encode at one setting, all of it said; :func:`carcodec.encode` chooses what is left open.

    Args:
        photo: see :func:`carcodec.pixels.from_image` and :func:`~carcodec.pixels.from_array`
            for the modes and shapes accepted.
        model: name of an installed model; its newest version is taken.
        storage_codec: how LR is stored: png, jpegls, jpeg2000, jpegxl, avif or webp.
        quality: 0…100 on the storage codec's scale; ``None`` stores LR losslessly.
        alpha_quality: 0…100 stores alpha lossily as WebP; ``None`` losslessly.
        engine, threads: what runs the network, and on how many threads everything; 0 is all.
        tile: window side in LR pixels; 0 chooses. It never changes the result.
        effort: the storage codec's, 0…9.
        progress: called with the finished share, 0…1.

    Raises:
        ImageError, LimitError: the picture cannot be taken.
        ModelNotFoundError, EngineError, StorageError: as their names say.
    """
    chosen = _storage(storage_codec, quality)
    prepared = prepare(
        photo,
        model=model,
        alpha_quality=alpha_quality,
        engine=engine,
        threads=threads,
        tile=tile,
        progress=progress,
    )
    return store(prepared, chosen.name, quality, threads, effort)


@dataclass(frozen=True)
class Prepared:
    """A photo that is downscaled already and can be stored at any quality.

    Attributes:
        photo: its planes and metadata.
        card: the model that made ``small``.
        small: LR, ``(h, w)`` or ``(h, w, 3)`` uint8.
        alpha: the alpha channel's codestream, if there is any, made by storage codec number
            ``alpha_storage`` at ``alpha_quality``.
    """

    photo: pixels.Photo
    card: zoo.ModelCard
    small: storage.Pixels
    alpha: bytes | None
    alpha_storage: int
    alpha_quality: int | None

    @functools.cached_property
    def previews(self) -> dict[tuple[int, int], container.Preview]:
        """Previews made so far, by divisor of the side and quality: a search stores LR often."""
        return {}


def prepare(
    photo: Image.Image | NDArray[Any] | pixels.Photo,
    *,
    model: str = DEFAULT_MODEL,
    alpha_quality: int | None = None,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    progress: Report = _quiet,
) -> Prepared:
    """The first half of :func:`encode`, which takes the time: everything but storing LR."""
    taken = pixels.from_any(photo)
    card = zoo.find(model)
    height, width = taken.colour.shape[:2]
    _check_size(width, height)
    small = downscale(taken.colour, card, engine, threads, tile, progress)
    alpha, alpha_number = None, 0
    if taken.alpha is not None and taken.alpha.min() < 255:
        alpha_codec = storage.by_name("webp" if alpha_quality is not None else "jpegxl")
        alpha = alpha_codec.encode(taken.alpha, alpha_quality, threads)
        alpha_number = alpha_codec.number
    return Prepared(taken, card, small, alpha, alpha_number, alpha_quality)


def store(
    prepared: Prepared,
    storage_codec: str,
    quality: float | None = None,
    threads: int = 0,
    effort: int = storage.DEFAULT_EFFORT,
    told: int | None = None,
) -> Encoded:
    """The second half of :func:`encode`. The header records what the upscaler is to be told.

    That is ``quality`` as a whole number, or the step it came to (:mod:`carcodec.coarseness`),
    which takes as long as storing does: a ``told`` that is given is recorded instead, until
    :func:`tell`.

    Raises:
        StorageError: no such codec, a quality it does not have, or it failed.
    """
    codec = _storage(storage_codec, quality)
    photo, card = prepared.photo, prepared.card
    lr = codec.encode(prepared.small, quality, threads, effort)
    if told is None:
        told = _told(prepared, codec, quality, lr, threads, effort)
    height, width = photo.colour.shape[:2]
    header = container.Header(
        width,
        height,
        card.scale,
        _mode_number(photo.mode),
        codec.number,
        told,
        card.name,
        card.version,
        card.short_digest,
        card.grey and photo.colour.ndim == 3,
        card.mixes and photo.colour.ndim == 2,
    )
    file = container.Carimg(
        header,
        lr,
        prepared.alpha,
        prepared.alpha_storage,
        255 if prepared.alpha_quality is None else prepared.alpha_quality,
        photo.icc,
        photo.exif,
        photo.xmp,
        None if photo.alpha is not None else _preview(prepared, len(lr) * PREVIEW_SHARE),
    )
    return Encoded(container.write(file), header, quality)


def tell(encoded: Encoded, prepared: Prepared, threads: int, effort: int) -> Encoded:
    """What :func:`store` made with a ``told`` of the caller's, with what is to be told instead."""
    file = container.read(encoded.data)
    codec = storage.by_number(file.header.storage)
    told = _told(prepared, codec, encoded.quality, file.lr, threads, effort)
    header = replace(file.header, quality=told)
    return replace(encoded, data=container.write(replace(file, header=header)), header=header)


def _told(
    prepared: Prepared,
    codec: storage.StorageCodec,
    quality: float | None,
    lr: bytes,
    threads: int,
    effort: int,
) -> int:
    if quality is None:
        return 255
    usual = lr if effort <= storage.DEFAULT_EFFORT else None
    kind = prepared.card.told
    return coarseness.told(kind, codec, prepared.small, quality, usual, threads)


def _storage(name: str, quality: float | None) -> storage.StorageCodec:
    if quality is not None and not 0 <= quality <= 100:
        raise StorageError(f"quality must be from 0 to 100, not {quality}")
    return storage.by_name(name)


def decode(
    data: bytes | container.Carimg,
    *,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    progress: Report = _quiet,
    region: Region | None = None,
    model: str = "",
    self_ensemble: bool = False,
) -> Image.Image:
    """Restore the full-size photo as a Pillow image of the original's mode.

    Metadata is in ``info`` under Pillow's usual keys: ``exif``, ``icc_profile``, ``xmp``.
    16-bit colour, which Pillow has no mode for, becomes 8-bit: see :func:`decode_array`.
    With a ``region``, left, top, right and bottom in the photo's pixels as for Pillow's ``crop``,
    the network runs only there; what it restores is the same. ``model`` restores with another
    model than the file's own, ``newest`` or ``fast``: see :func:`restorer`. ``self_ensemble`` takes
    eight times as long and comes nearer to the photo, for models that store its own pixels: see
    :mod:`.ensemble`.

    Raises:
        ContainerError, DigestMismatchError: not a sound .carimg file.
        StorageError: a codestream in it is damaged.
        ModelNotFoundError: the model it asks for is not installed.
        LimitError: larger than :data:`MAX_PIXELS`.
        ImageError: the region is empty or not within the photo, the model does not fit, or a
            self-ensemble is not for it.
    """
    return pixels.to_image(
        restore(data, engine, threads, tile, progress, region, model, self_ensemble)
    )


def decode_array(
    data: bytes | container.Carimg,
    *,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    progress: Report = _quiet,
    region: Region | None = None,
    model: str = "",
    self_ensemble: bool = False,
) -> NDArray[Any]:
    """Restore the photo as an array ``(H, W)`` or ``(H, W, 2…4)``, uint8, or uint16 if it was.

    ``region``, ``model``, ``self_ensemble`` and what is raised: as for :func:`decode`.
    """
    return pixels.to_array(
        restore(data, engine, threads, tile, progress, region, model, self_ensemble)
    )


def thumbnail(data: bytes | container.Carimg, size: tuple[int, int] | None = None) -> Image.Image:
    """The stored small image, ``1/scale`` of the photo's size; needs no model and no network.

    Where ``size`` (width, height) is given and a large photo's preview is at least as large, the
    preview is returned: it decodes in milliseconds. Alpha, if any, is downscaled to the
    small image. Colour profile in ``info["icc_profile"]``.

    Raises: as :func:`decode`, but never for the model.
    """
    file = data if isinstance(data, container.Carimg) else container.read(data)
    found = file.preview
    if found and size and found.width >= size[0] and found.height >= size[1]:
        codec = storage.by_number(found.storage)
        small = codec.decode(found.data, (found.width, found.height), file.header.lr_channels)
    else:
        small = stored_image(file)
    image = Image.fromarray(small)
    if file.header.colour_lr:
        image = image.convert("L")
    alpha = _alpha(file)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha).resize(image.size, Image.Resampling.BOX))
    if file.icc and not file.header.grey_lr:  # a profile for colours
        image.info["icc_profile"] = file.icc
    return image


def stored_image(file: container.Carimg, threads: int = 0) -> storage.Pixels:
    """LR as an array, ``(h, w)`` or ``(h, w, 3)`` uint8. Raises: as :func:`thumbnail`."""
    header = file.header
    _check_size(header.width, header.height)
    codec = storage.by_number(header.storage)
    return codec.decode(file.lr, header.lr_size, header.lr_channels, threads)


def downscale(
    colour: pixels.Plane,
    card: zoo.ModelCard,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    progress: Report = _quiet,
) -> storage.Pixels:
    """HR ``(H, W)`` or ``(H, W, 3)`` to LR of as many axes, uint8, by the downscaler.

    How many LR has otherwise is the model's: :meth:`.zoo.ModelCard.lr_channels`.
    """
    if card.downscaler.family == "none" and colour.dtype == np.uint8:
        from carcodec import engines

        engines.resolve(engine)  # which decoding will need
        progress(1.0)
        return colour.astype(np.uint8)
    scale = card.scale
    height, width = colour.shape[:2]
    lr_width, lr_height = container.ceil_div(width, scale), container.ceil_div(height, scale)
    # the network wants an even number of LR pixels a side, four at least
    padded = (max(4, _multiple(lr_width)), max(4, _multiple(lr_height)))
    channels = card.lr_channels(3 if colour.ndim == 3 else 1)
    small = np.empty((lr_height, lr_width, 3)[: 2 + channels // 3], np.uint8)
    peak = np.float32(65535 if colour.dtype == np.uint16 else 255)
    step = card.step("downscaler")
    over, levelled = _over(step, "downscaler", engine, threads, card.downscaler.steps, colour)

    def read(rows: slice, columns: slice) -> NDArray[Any]:
        part = taken(colour, rows, columns)
        return part if levelled else network_input(part, peak)

    def write(rows: slice, columns: slice, block: NDArray[Any]) -> None:
        # Round again: 255 times a rounded fraction can fall just short of its integer, and what
        # recurs is not rounded yet.
        levels = block
        if not levelled:
            levels = np.rint(np.clip(block, 0, 1) * np.float32(255)).astype(np.uint8)
        target = small[rows, columns]
        levels = levels[:, : target.shape[0], : target.shape[1]]
        target[...] = levels.transpose(1, 2, 0) if target.ndim == 3 else levels[0]

    with _in_turn(over) if levelled else contextlib.nullcontext(over) as taking:
        tiling.run(
            taking,
            padded,
            _multiple(card.downscaler.halo),
            _multiple(max(tile or step.window("downscaler"), 2 * card.downscaler.halo + 4)),
            read,
            write,
            steps=card.downscaler.steps,
            read_scale=step.scale,
            progress=progress,
        )
    return small


def upscale(
    small: storage.Pixels,
    size: tuple[int, int],
    bits: int,
    card: zoo.ModelCard,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    progress: Report = _quiet,
    quality: int | None = None,
    channels: int = 0,
) -> pixels.Plane:
    """LR to HR of ``size`` (width, height) by the model's upscaler; uint16 if ``bits`` is 16.

    ``quality`` is that at which LR was stored, for a conditioned upscaler; ``None`` is lossless.
    ``channels`` are the photo's, 1 or 3, where LR has others.
    """
    if card.upscaler.family == "bicubic":  # no engine is needed
        progress(1.0)
        return _enlarged(small, size, bits, card.scale)
    width, height = size
    step = card.step("upscaler")
    stride = card.upscaler.stride
    padded = (_multiple(small.shape[1], stride), _multiple(small.shape[0], stride))
    peak = np.float32(65535 if bits == 16 else 255)
    channels = channels or (3 if small.ndim == 3 else 1)
    told = 1.0 if quality is None else quality / 100
    steps = card.upscaler.steps
    over, levelled = _over(
        step, "upscaler", engine, threads, steps, small, told, int(peak), channels
    )
    shape = (height, width, 3)[: 2 + channels // 3]
    colour: Any = np.empty(shape, np.uint16 if bits == 16 else np.uint8)

    def read(rows: slice, columns: slice) -> NDArray[Any]:
        part = taken(small, rows, columns)
        return part if levelled else network_input(part, np.float32(255))

    def write(rows: slice, columns: slice, block: NDArray[Any]) -> None:
        target = colour[rows, columns]
        levels = block[:, : target.shape[0], : target.shape[1]]
        if not levelled:
            if target.ndim == 2:
                levels = levels.mean(0, keepdims=True)
            scaled = levels * peak
            scaled += np.float32(0.5)
            levels = np.clip(scaled, 0, peak, out=scaled).astype(colour.dtype)
        target[...] = levels.transpose(1, 2, 0) if target.ndim == 3 else levels[0]

    with _in_turn(over) if levelled else contextlib.nullcontext(over) as taking:
        tiling.run(
            taking,
            padded,
            card.upscaler.halo,
            _multiple(max(tile or card.window("upscaler"), 2 * card.upscaler.halo + 1), stride),
            read,
            write,
            steps=steps,
            write_scale=step.scale,
            progress=progress,
        )
    finished: pixels.Plane = colour
    return finished


def _enlarged(small: storage.Pixels, size: tuple[int, int], bits: int, scale: int) -> pixels.Plane:
    """Bicubic, in float32, so that levels are rounded once."""
    width, height = size
    peak = 65535 if bits == 16 else 255
    planes = small[..., None] if small.ndim == 2 else small
    found = np.empty((height, width, planes.shape[2]), np.uint16 if bits == 16 else np.uint8)
    for channel in range(planes.shape[2]):
        plane = Image.fromarray(planes[..., channel].astype(np.float32))
        whole = (plane.width * scale, plane.height * scale)
        large = np.array(plane.resize(whole, Image.Resampling.BICUBIC))[:height, :width]
        large *= np.float32(peak / 255)
        large += np.float32(0.5)
        found[..., channel] = np.clip(large, 0, peak, out=large)
    return found if small.ndim == 3 else found[..., 0]


def restore(
    data: bytes | container.Carimg,
    engine: str = "auto",
    threads: int = 0,
    tile: int = 0,
    progress: Report = _quiet,
    region: Region | None = None,
    model: str = "",
    self_ensemble: bool = False,
) -> pixels.Photo:
    """Restore the photo with its metadata: what :func:`decode` and :func:`decode_array` wrap."""
    file = data if isinstance(data, container.Carimg) else container.read(data)
    header = file.header
    width, height = header.width, header.height
    _check_size(width, height)
    left, top, right, bottom = region or (0, 0, width, height)
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ImageError(
            f"the region {left},{top},{right},{bottom} is not a part of {width}×{height} pixels: "
            "give left, top, right and bottom within them, left less than right, top than bottom"
        )
    card = zoo.find(header.model, header.model_version, header.model_digest)
    if header.lr_channels != card.lr_channels(header.photo_channels):
        raise ImageError(
            f"the small image has {header.lr_channels} channels, which its model {card.name} does "
            "not restore"
        )
    if card.scale != header.scale:
        raise ImageError(
            f"the file says scale {header.scale}, its model {card.name} has scale {card.scale}"
        )
    if model:
        card = restorer(card, model)
    if self_ensemble:
        ensemble.check(card)
    small = stored_image(file, threads)
    rows, above = _window(top, small.shape[0], bottom, card)
    columns, before = _window(left, small.shape[1], right, card)
    small = small[rows, columns]
    colour: pixels.Plane = small
    quality = None if header.lossless_lr else header.quality
    if card.scale > 1 or quality is not None or header.bits == 16 or card.grey:
        # else nothing was lost that a network could restore
        size = (
            min(columns.stop * card.scale, width) - columns.start * card.scale,
            min(rows.stop * card.scale, height) - rows.start * card.scale,
        )

        def restored(view: storage.Pixels, size: tuple[int, int], report: Report) -> pixels.Plane:
            return upscale(
                view, size, header.bits, card, engine, threads, tile, report, quality,
                header.photo_channels,
            )  # fmt: skip

        if self_ensemble:
            stored = storage.by_number(header.storage)
            colour = ensemble.averaged(restored, small, size, card, stored, progress)
        else:
            colour = restored(small, size, progress)
    colour = colour[above : above + bottom - top, before : before + right - left]
    alpha = _alpha(file, threads)
    if alpha is not None:
        alpha = alpha[top:bottom, left:right]
    elif header.has_alpha:
        alpha = np.full(colour.shape[:2], 255, np.uint8)
    return pixels.Photo(header.mode_name, colour, alpha, file.icc, file.exif, file.xmp)


def restorer(own: zoo.ModelCard, model: str) -> zoo.ModelCard:
    """The model called ``model``, for what ``own`` made; ``newest`` is its newest that fits.

    One fits whose downscaler is the same, trained for the same storage codec and told the same of
    it: a later version whose upscaler alone went on learning, or another network. ``fast`` is the
    one of these that is named so, with a small upscaler, or ``own`` where there is none.

    Raises:
        ModelNotFoundError: it is not installed.
        ImageError: it does not fit.
    """

    def made(card: zoo.ModelCard) -> tuple[Any, ...]:
        return card.scale, card.storage, card.told, card.downscaler.sha256

    if model == "newest":
        later = [c for c in zoo.installed() if c.name == own.name and made(c) == made(own)]
        return max([own, *later], key=lambda card: card.version)
    if model == "fast":
        quick = [c for c in zoo.installed() if c.name == f"{own.usual}-fast"]  # newest first
        return next((c for c in quick if made(c) == made(own)), own)
    card = zoo.find(model)
    if made(card) != made(own):
        fitting = {c.name for c in zoo.installed() if made(c) == made(own)} | {own.name}
        raise ImageError(
            f"{card.name} version {card.version} is not made to restore what {own.name} version "
            f"{own.version} makes; what is: {', '.join(sorted(fitting))}, newest or fast"
        )
    return card


def _window(start: int, length: int, stop: int, card: zoo.ModelCard) -> tuple[slice, int]:
    """What HR pixels ``start`` … ``stop`` are restored from, of ``length`` LR pixels.

    Beside it, where in its restoration they begin.
    """
    upscaler = card.upscaler
    # a network that recurs reaches half as far, in LR pixels, with each step
    reach = upscaler.halo * min(upscaler.steps, 2)
    first = max(start // card.scale - reach, 0) // upscaler.stride * upscaler.stride
    last = min(container.ceil_div(stop, card.scale) + reach, length)
    return slice(first, last), start - first * card.scale


def _preview(prepared: Prepared, budget: float) -> container.Preview | None:
    small, made = prepared.small, prepared.previews
    if small.shape[0] * small.shape[1] <= PREVIEW_FROM:
        return None
    for form in ((1, 40), (1, 30), (2, 40)):
        if form not in made:
            made[form] = _reduced(small, *form)
        if len(made[form].data) <= budget:
            return made[form]
    return None


def _reduced(small: storage.Pixels, divisor: int, quality: int) -> container.Preview:
    codec, side = storage.by_name("avif"), PREVIEW_SIDE // divisor
    image = Image.fromarray(small)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = codec.encode(np.asarray(image), quality, effort=2)
    return container.Preview(codec.number, image.width, image.height, data)


def _alpha(file: container.Carimg, threads: int = 0) -> NDArray[np.uint8] | None:
    if file.alpha is None:
        return None
    codec = storage.by_number(file.alpha_storage)
    return codec.decode(file.alpha, (file.header.width, file.header.height), 1, threads)


def taken(image: NDArray[Any], rows: slice, columns: slice) -> NDArray[Any]:
    """A part of an image, its last row and column repeated where it reaches beyond."""
    height, width = image.shape[:2]
    # a tile may lie beyond the image altogether, where a scale is large and the image is not
    part = image[
        min(rows.start, height - 1) : rows.stop, min(columns.start, width - 1) : columns.stop
    ]
    missing = [(0, rows.stop - rows.start - part.shape[0])]
    missing += [(0, columns.stop - columns.start - part.shape[1])]
    if any(after for _, after in missing):
        part = np.pad(part, missing + [(0, 0)] * (part.ndim - 2), "edge")
    return part


def network_input(part: NDArray[Any], peak: np.float32) -> NDArray[np.float32]:
    """``(h, w)`` or ``(h, w, 3)`` levels to ``(1, 3, h, w)`` float32 in [0, 1]."""
    planes = np.ascontiguousarray(part.transpose(2, 0, 1) if part.ndim == 3 else part[None])
    scaled = planes.astype(np.float32)
    scaled /= peak
    return scaled[None] if len(scaled) == 3 else np.repeat(scaled[None], 3, 1)


def _over(
    card: zoo.ModelCard,
    side: str,
    engine: str,
    threads: int,
    steps: int,
    image: pixels.Plane,
    quality: float = 1.0,
    peak: int = 255,
    channels: int = 3,
) -> tuple[_Over, bool]:
    """The network, over an image's tiles, and whether it takes and gives levels, and not floats.

    Between several steps there are floats.
    """
    from carcodec import engines

    network = _network(card, side, engine, threads)
    direct = steps == 1 and isinstance(network, engines.Levelled)
    if not direct or not network.takes(image[:1, :1], peak, channels):
        return (lambda tiles: engines.over(network, tiles, quality)), False

    def levels(tiles: Iterator[Any]) -> Iterator[Any]:
        for result in network.levels(tiles, quality, peak, channels):
            yield result.transpose(2, 0, 1)[None]  # planes, as floats are

    return levels, True


@contextlib.contextmanager
def _in_turn(over: _Over) -> Iterator[_Over]:
    """``over``, for one photo at a time.

    Two at once would be coded at once, too, and leave the GPU idle then. The next one's turn is
    when this one's last tile is taken: its results are still to come.
    """
    with contextlib.ExitStack() as turn:
        turn.enter_context(_TURN)

        def handed(tiles: Iterator[Any]) -> Iterator[Any]:
            yield from tiles
            turn.close()

        yield lambda tiles: over(handed(tiles))


def _network(card: zoo.ModelCard, side: str, engine: str, threads: int) -> Any:
    """The loaded network, kept for the next photo."""
    from carcodec import engines

    key = (str(card.folder), card.digest, side, engine, threads)
    with _LOADING:
        if key not in _NETWORKS:
            if len(_NETWORKS) >= 8:
                _NETWORKS.pop(next(iter(_NETWORKS)))
            _NETWORKS[key] = engines.load(engine, card, side, threads)
        return _NETWORKS[key]


_LOADING = threading.Lock()
_TURN = threading.Lock()
_NETWORKS: dict[tuple[str, str, str, str, int], Any] = {}


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise LimitError(
            f"{width}×{height} is more than {MAX_PIXELS // 2**20} megapixels: "
            "raise carcodec.codec.MAX_PIXELS if you trust the source"
        )


def _mode_number(name: str) -> int:
    return next(number for number, mode in container.MODES.items() if mode[0] == name)


def _multiple(value: int, of: int = 2) -> int:
    """The next multiple, at or above."""
    return container.ceil_div(value, of) * of
