"""What is compared: standard codecs at their real strength, and carcodec's models."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from carcodec import codec as core
from carcodec import dial, ensemble, storage, zoo
from carcodec.errors import CompareError

__all__ = ["DIAL", "STANDARD", "Codec", "carcodecs", "standard"]

DIAL = "carcodec-dial"  # the codec whose quality is that of `carcodec encode --quality`

Pixels = NDArray[np.uint8]


def _ready() -> str:
    return ""


@dataclass(frozen=True)
class Codec:
    """One way to store a photo, at several qualities.

    Attributes:
        name: short and unique within a comparison; it names curves, rows and cached results.
        encode: RGB ``(H, W, 3)`` uint8 and a quality to a whole file.
        decode: the file to RGB ``(H, W, 3)`` uint8.
        qualities: from few bytes to many, on the codec's own scale.
        title: for people; the name where it is left out.
        how: how it is run, in a few words; change it when ``encode`` changes, for results are
            cached by it.
        version: returns the version of what does the work; raises
            :class:`~carcodec.errors.CompareError` where that is not installed.
        families: curves that this codec's points belong to, each the convex hull over its members;
            its own name makes it one of carcodec's curves by itself, none makes it an anchor.
        shown_as: MIME type, where browsers show the file itself.
        whole: qualities between those listed are whole numbers.
        small: the file to the small image that opens at once, for codecs that have one.
    """

    name: str
    encode: Callable[[Pixels, float], bytes]
    decode: Callable[[bytes], Pixels]
    qualities: tuple[float, ...]
    title: str = ""
    how: str = ""
    version: Callable[[], str] = _ready
    families: tuple[str, ...] = ()
    shown_as: str = ""
    whole: bool = True
    small: Callable[[bytes], Pixels] | None = None


def standard(names: Iterable[str]) -> list[Codec]:
    """The standard codecs of these names (keys of :data:`STANDARD`), ready to use.

    Raises:
        CompareError: unknown, or missing from what is installed; says how to get it.
    """
    found = []
    for name in names:
        if name not in STANDARD:
            raise CompareError(f"unknown codec {name!r}: choose from {', '.join(STANDARD)}")
        STANDARD[name].version()
        found.append(STANDARD[name])
    return found


def carcodecs(
    storages: Iterable[str] = ("avif", "jpeg2000"),
    models: Iterable[str] = (),
    *,
    engine: str = "auto",
    effort: int = storage.DEFAULT_EFFORT,
) -> list[Codec]:
    """carcodec's branches: each model with the storage codec that it was trained for.

    All are members of the family ``carcodec``, and of ``carcodec-STORAGE``: hulls, which take for
    each picture and rate the best model, as a search for a target does. Beside them stands
    :data:`DIAL`, if ``storages`` have the one that the dial takes by itself: what ``--quality``
    alone makes, the same model for every picture. Models named explicitly are taken instead, with
    each of ``storages``; with lossless ones they have one point. A name that ends in ``+`` is
    decoded by a self-ensemble (:mod:`carcodec.ensemble`).

    Raises:
        ModelNotFoundError, StorageError: no such model or storage codec.
        ImageError: a self-ensemble is not for that model.
        CompareError: there is nothing to compare.
    """
    listed = [storage.by_name(name).name for name in storages]
    named = [(model, name) for name in listed for model in models]
    pairs = named or [(model, name) for name in listed for model in dial.branches(name)]
    if not pairs:
        raise CompareError(
            f"no model is trained for {' or '.join(listed) or 'no storage codec'}: name some with "
            "--models"
        )
    found = [_branch(model, name, engine, effort) for model, name in pairs]
    if not named and dial.settle(quality=0.0).storage in listed:
        found.append(_dialled(engine, effort))
    return found


# Qualities of LR; from what a thumbnail's bytes buy to where the storage codec is transparent.
_LR_QUALITIES: dict[str, tuple[float, ...]] = {
    "avif": (5, 14, 22, 30, 38, 46, 54, 62, 72, 84),
    "jpeg2000": (0, 1, 2, 3, 4, 7, 10, 16, 22, 28, 34, 40, 47, 56),
}


# Results are remembered by it: changes when the bytes of files do, but for models and settings.
_FORM = {"avif": 5, "jpeg2000": 4}


def _form(storage_codec: str, effort: int) -> int:
    if effort > storage.DEFAULT_EFFORT and storage_codec in _FORM:
        return 6
    return _FORM.get(storage_codec, 2)


def _branch(model: str, storage_codec: str, engine: str, effort: int) -> Codec:
    averaged = model.endswith("+")
    model = model.removesuffix("+")
    card = zoo.find(model)
    if averaged:
        ensemble.check(card)
    stored = storage.by_name(storage_codec)
    qualities: tuple[float, ...] = (100.0,)
    if stored.lossy:
        qualities = _LR_QUALITIES.get(storage_codec, (5, 15, 25, 35, 45, 55, 65, 75, 85))
    made_for = card.storage == storage_codec
    return _own(
        lambda quality, image: dial.Setting(
            model, storage_codec, quality if stored.lossy else None
        ),
        name=(model if made_for else f"{model}-{storage_codec}") + "+" * averaged,
        title=f"{model} v{card.version}, {stored.title}" + ", self-ensemble" * averaged,
        qualities=qualities,
        how=f"digest {card.short_digest.hex()}, {storage_codec}, effort {effort}, engine {engine}, "
        f"files of form {_form(storage_codec, effort)}" + ", self-ensemble" * averaged,
        families=("carcodec", f"carcodec-{storage_codec}"),
        whole=stored.whole,
        engine=engine,
        effort=effort,
        averaged=averaged,
    )


def _dialled(engine: str, effort: int) -> Codec:
    qualities = (0, 10, 20, 30, 40, dial.default_quality(), 60, 70, 80, 90, 100)
    settings = [dial.settle(quality=float(turned)) for turned in range(101)]
    digests = {s.model: zoo.find(s.model).short_digest.hex() for s in settings}
    text = repr([(digests[s.model], s.storage, s.quality) for s in settings])
    form = _form(settings[0].storage, effort)
    return _own(
        lambda quality, image: dial.suited(image, quality=quality),
        name=DIAL,
        title="carcodec, --quality",
        qualities=tuple(sorted({float(turned) for turned in qualities})),
        how=f"dial {hashlib.sha256(text.encode()).hexdigest()[:12]}, effort {effort}, "
        f"engine {engine}, files of form {form}, what needs it at full size",
        families=(DIAL,),
        engine=engine,
        effort=effort,
    )


def _own(
    setting: Callable[[float, Pixels], dial.Setting],
    *,
    engine: str,
    effort: int,
    averaged: bool = False,
    **about: Any,
) -> Codec:
    """carcodec itself, at what ``setting`` makes of a quality and a picture."""
    memory = threading.local()  # qualities of one photo follow each other: downscale it once

    def encode(image: Pixels, quality: float) -> bytes:
        chosen = setting(quality, image)
        if getattr(memory, "image", None) is not image or memory.model != chosen.model:
            memory.image, memory.model = image, chosen.model
            memory.prepared = core.prepare(image, model=chosen.model, engine=engine, threads=1)
        return core.store(memory.prepared, chosen.storage, chosen.quality, 1, effort).data

    def decode(data: bytes) -> Pixels:
        restored = core.decode_array(data, engine=engine, threads=1, self_ensemble=averaged)
        return np.asarray(restored)

    return Codec(
        encode=encode,
        decode=decode,
        version=_own_version,
        small=lambda data: np.asarray(core.thumbnail(data).convert("RGB")),
        **about,
    )


def _own_version() -> str:
    from carcodec import __version__

    return f"carcodec {__version__}"


def _pillow(kind: str, **options: Any) -> Callable[[Pixels, float], bytes]:
    def encode(image: Pixels, quality: float) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, quality=round(quality), **options)
        return buffer.getvalue()

    return encode


def _opened(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _pillow_version(feature: str, name: str) -> Callable[[], str]:
    def version() -> str:
        if not features.check(feature):
            raise CompareError(f"this Pillow has no {name}: pip install --upgrade pillow")
        library = features.version(
            "libjpeg_turbo" if feature == "jpg" and features.check("libjpeg_turbo") else feature
        )
        return f"{name} {library}, Pillow {PIL.__version__}"

    return version


def _imagecodecs_version(prefix: str, name: str, check: str) -> Callable[[], str]:
    def version() -> str:
        import imagecodecs

        listed = dict(part.rsplit("-", 1) for part in imagecodecs.version().split(", "))
        if not getattr(imagecodecs, check).available:
            raise CompareError(
                f"this imagecodecs has no {name}: pip install --upgrade imagecodecs, or leave it "
                "out of --against"
            )
        return f"{name} {listed.get(prefix, '')}, imagecodecs {imagecodecs.__version__}".replace(
            " ,", ","
        )

    return version


def _jpeg2000(image: Pixels, quality: float) -> bytes:
    # Not through imagecodecs, which cuts levels into precincts of 256 pixels: that costs 1 %.
    return storage.jpeg2000_stream(image, quality)


def _jpeg2000_back(data: bytes) -> Pixels:
    import imagecodecs

    return np.asarray(imagecodecs.jpeg2k_decode(data, numthreads=1))


def _avif(sampling: str) -> Callable[[Pixels, float], bytes]:
    def encode(image: Pixels, quality: float) -> bytes:
        import imagecodecs

        return bytes(
            imagecodecs.avif_encode(
                image, level=round(quality), speed=6, pixelformat=sampling, numthreads=2
            )
        )

    return encode


def _avif_back(data: bytes) -> Pixels:
    import imagecodecs

    return np.asarray(imagecodecs.avif_decode(data, numthreads=1))


def _jpegxl(image: Pixels, quality: float) -> bytes:
    import imagecodecs

    options: dict[str, Any] = {"level": quality, "lossless": False, "effort": 7}
    return bytes(imagecodecs.jpegxl_encode(image, usecontainer=False, numthreads=1, **options))


def _jpegxl_back(data: bytes) -> Pixels:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def _mozjpeg(image: Pixels, quality: float) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.mozjpeg_encode(image, level=round(quality), subsampling="420"))


def _jpegli(image: Pixels, quality: float) -> bytes:
    import pyjpegli

    height, width = image.shape[:2]
    data: bytes = pyjpegli.encode(
        np.ascontiguousarray(image), width, height, quality=round(quality)
    )
    return data


def _jpegli_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"jpegli, pyjpegli {version('pyjpegli')}"
    except PackageNotFoundError as error:
        raise CompareError(
            "jpegli needs its package: pip install pyjpegli, or leave it out of --against"
        ) from error


_JPEG = (1, 4, 8, 13, 20, 32, 50, 70, 85, 94)
# Close together where few bits are spent: between 20 and 22.5 dB lie 0.05 and 0.45 bpp of a picture
# of gravel (BSD100's 86016), and a curve through these alone is up to 0.4 dB above the codec's own.
_JPEG2000 = (18, 19, 20, 21, 22, 23, 24, 25, 26.5, 28, 30, 33, 36, 39, 42, 46)
_AVIF = (3, 12, 22, 32, 42, 52, 62, 72, 82, 92)

STANDARD: dict[str, Codec] = {
    c.name: c
    for c in (
        Codec(
            "jpeg", _pillow("JPEG", optimize=True, progressive=True, subsampling=2), _opened,
            _JPEG, "JPEG", "libjpeg-turbo, optimised, progressive, 4:2:0",
            _pillow_version("jpg", "libjpeg-turbo"), shown_as="image/jpeg",
        ),
        Codec(
            "jpeg-444", _pillow("JPEG", optimize=True, progressive=True, subsampling=0), _opened,
            _JPEG, "JPEG 4:4:4", "libjpeg-turbo, optimised, progressive, 4:4:4",
            _pillow_version("jpg", "libjpeg-turbo"), shown_as="image/jpeg",
        ),
        Codec(
            "mozjpeg", _mozjpeg, _opened, _JPEG, "MozJPEG", "mozjpeg, its own settings, 4:2:0",
            _imagecodecs_version("mozjpeg", "mozjpeg", "MOZJPEG"), shown_as="image/jpeg",
        ),
        Codec(
            "jpegli", _jpegli, _opened, _JPEG, "jpegli", "jpegli, its own settings",
            _jpegli_version, shown_as="image/jpeg",
        ),
        Codec(
            "jpeg2000", _jpeg2000, _jpeg2000_back, _JPEG2000, "JPEG 2000",
            "OpenJPEG's own settings, irreversible, colour transform, target PSNR in dB (rate "
            "allocation by MSE, the only one it has), bare codestream",
            _pillow_version("jpg_2000", "OpenJPEG"), whole=False,
        ),
        Codec(
            "webp", _pillow("WEBP", method=6), _opened, (0, 5, 12, 22, 35, 50, 66, 80, 90, 97),
            "WebP", "libwebp, method 6, 4:2:0", _pillow_version("webp", "libwebp"),
            shown_as="image/webp",
        ),
        Codec(
            "avif", _avif("420"), _avif_back, _AVIF, "AVIF",
            "libaom, speed 6, 4:2:0, libavif's default tuning (iq since 1.4, ssim before)",
            _imagecodecs_version("libavif", "libavif", "AVIF"), shown_as="image/avif",
        ),
        Codec(
            "avif-444", _avif("444"), _avif_back, _AVIF, "AVIF 4:4:4",
            "libaom, speed 6, 4:4:4, libavif's default tuning (iq since 1.4, ssim before)",
            _imagecodecs_version("libavif", "libavif", "AVIF"), shown_as="image/avif",
        ),
        Codec(
            "avif-tuned", storage.avif_file, _avif_back, _AVIF, "AVIF 4:4:4 tune=ssim",
            "libaom, speed 6, 4:4:4, tune=ssim: as carcodec stores the small image",
            _pillow_version("avif", "libavif"), shown_as="image/avif",
        ),
        Codec(
            "jpegxl", _jpegxl, _jpegxl_back, (3, 10, 22, 36, 50, 62, 74, 84, 91, 96),
            "JPEG XL", "libjxl, effort 7, bare codestream",
            _imagecodecs_version("libjxl", "libjxl", "JPEGXL"), whole=False,
        ),
    )
}  # fmt: skip
