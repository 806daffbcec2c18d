"""Pillow's image plugin: ``Image.open("photo.carimg")`` and ``image.save("photo.carimg")``."""

from __future__ import annotations

import math
from typing import IO, Any

from PIL import Image, ImageFile

from carcodec import codec, container, storage
from carcodec.errors import CarcodecError, UnsupportedError

__all__ = ["DECODE_MODEL", "CarimgImageFile", "register", "save"]

FORMAT = "CARIMG"
DECODE_MODEL = ""  # the file's own; "fast" or "newest": see :func:`carcodec.codec.restorer`
_PILLOW_MODES = {"RGB;16": "RGB", "RGBA;16": "RGBA"}


class CarimgImageFile(ImageFile.ImageFile):
    """A .carimg file as Pillow sees it.

    ``mode``, ``size`` and ``info`` (``model``, ``model_version``, ``scale``, ``storage``,
    ``quality``, which the upscaler is told, and ``exif``, ``icc_profile``, ``xmp`` where present)
    come without decoding anything. ``load()`` decodes, by :data:`DECODE_MODEL`; after ``draft()``
    asked for a size no larger than the stored small image (``thumbnail()`` does), that image is
    loaded and no network runs.
    """

    format = FORMAT
    format_description = "carcodec downscaled image"

    def _open(self) -> None:
        assert self.fp is not None  # Pillow sets it before it calls _open
        try:
            self._file = container.read(self.fp.read())
        except UnsupportedError as error:
            raise OSError(str(error)) from error
        except CarcodecError as error:
            raise SyntaxError(str(error)) from error
        header = self._file.header
        self._size = (header.width, header.height)
        self._mode = _PILLOW_MODES.get(header.mode_name, header.mode_name)
        self._small: tuple[int, int] | None = None
        self._decoded = False
        self.info.update(
            model=header.model,
            model_version=header.model_version,
            scale=header.scale,
            storage=next(
                (c.name for c in storage.STORAGES if c.number == header.storage), header.storage
            ),
            quality=None if header.lossless_lr else header.quality,
        )
        for key, value in (
            ("exif", self._file.exif),
            ("icc_profile", self._file.icc),
            ("xmp", self._file.xmp),
        ):
            if value:
                self.info[key] = value

    def draft(
        self, mode: str | None, size: tuple[int, int] | None
    ) -> tuple[str, tuple[int, int, float, float]] | None:
        """Switch to the stored small image if it is at least ``size``; see Pillow's ``draft``."""
        if self._decoded or size is None:
            return None
        header, preview = self._file.header, self._file.preview
        stored = [header.lr_size]
        if preview is not None:
            stored.insert(0, (preview.width, preview.height))
        for small in stored:
            if small[0] >= size[0] and small[1] >= size[1]:
                self._size = self._small = small
                if header.mode_name in ("1", "I;16"):
                    self._mode = "L"
                return self.mode, (0, 0, *small)
        return None

    def thumbnail(
        self,
        size: tuple[float, float],
        resample: Image.Resampling = Image.Resampling.BICUBIC,
        reducing_gap: float | None = 1.0,
    ) -> None:
        """Pillow's ``thumbnail``, from the stored small image wherever that is large enough.

        Pillow's own default asks :meth:`draft` for twice the box, which would run the network for
        thumbnails that the small image, being antialiased, serves as well.
        """
        width, height = self.size
        share = min(1.0, size[0] / width, size[1] / height) * (reducing_gap or 1.0)
        self.draft(None, (math.ceil(width * share), math.ceil(height * share)))
        super().thumbnail(size, resample, None)

    def load(self) -> Any:
        """Decode: with the model's upscaler, or only the small image after :meth:`draft`."""
        if not self._decoded:
            try:
                if self._small:
                    image = codec.thumbnail(self._file, self._small)
                else:
                    image = codec.decode(self._file, model=DECODE_MODEL)
            except CarcodecError as error:
                raise OSError(str(error)) from error
            if image.mode != self.mode:
                image = image.convert(self.mode)
            self.im = image.im
            self._decoded = True
            if self.fp and self._exclusive_fp:
                self.fp.close()
        return super(ImageFile.ImageFile, self).load()

    def verify(self) -> None:
        """Check every chunk and decode the stored image, without running a network."""
        try:
            codec.thumbnail(self._file)
        except CarcodecError as error:
            raise OSError(str(error)) from error


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.SIGNATURE)


def save(image: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    """Pillow's save handler: ``quality``, ``model``, ``scale``, ``storage``, ``effort``,
    ``alpha_quality``, ``engine`` and ``threads`` as :func:`carcodec.rate.encode` takes them;
    ``lossless=True`` is ``quality=None``.
    """
    options = dict(image.encoderinfo)
    photo = image.copy()
    for key, name in (("exif", "exif"), ("icc_profile", "icc_profile"), ("xmp", "xmp")):
        value = options.pop(key, None)
        if value is not None:
            photo.info[name] = value.tobytes() if hasattr(value, "tobytes") else value
            if key == "exif":
                photo.getexif().load(photo.info[name])
    known = {"quality", "model", "scale", "effort", "alpha_quality", "engine", "threads"}
    arguments = {k: v for k, v in options.items() if k in known}
    if "storage" in options:
        arguments["storage_codec"] = options["storage"]
    if options.get("lossless"):
        arguments["quality"] = None
    from carcodec import rate

    try:
        file.write(rate.encode(photo, **arguments).data)
    except CarcodecError as error:
        raise OSError(str(error)) from error


def register() -> None:
    """Tell Pillow about the format; ``import carcodec`` does it."""
    Image.register_open(FORMAT, CarimgImageFile, _accept)
    Image.register_save(FORMAT, save)
    Image.register_extension(FORMAT, ".carimg")
    Image.register_mime(FORMAT, "image/x-carimg")
