"""The model card: a described value that every engine, the tiler and the container read."""

from __future__ import annotations

import dataclasses
import hashlib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carcodec.errors import DigestMismatchError, ModelNotFoundError

__all__ = ["ModelCard", "Quantised", "Side", "as_toml", "load_card"]


@dataclass(frozen=True)
class Quantised:
    """A network in 8-bit integers, which engines for CPUs run instead: see :mod:`.quantise`.

    It is no other model: files do not name it, and where it is missing nothing else changes.

    Attributes:
        file: the ONNX file's name, beside the card.
        sha256: of that file, hexadecimal.
        loss: quality of the stored LR (``q35``, or ``lossless``) → what it loses against float32,
            in dB of RGB PSNR, mean over photos that it was not calibrated on; a downscaler at the
            same bits.
        command: what made and measured it.
    """

    file: str
    sha256: str
    loss: dict[str, float] = field(default_factory=dict)
    command: str = ""


@dataclass(frozen=True)
class Side:
    """One network of a model.

    Attributes:
        family: as :mod:`carcodec.networks.families` calls it.
        file: the ONNX file's name, beside the card.
        sha256: of that file, hexadecimal.
        halo: receptive-field radius in LR pixels: what lies further away cannot matter. Where the
            network recurs, that of one step, in pixels of its smaller side.
        options: the network's constructor arguments but for the scale.
        parameters: how many numbers it has learned.
        steps: how often it is applied, to its own result from the second time on, which is neither
            clamped nor rounded on the way. The file then holds one step.
        int8: the network in 8 bits, if that is worth it.
        file_sha256: of the file as it is, where that is not the one that names the model: packages
            hold upscalers with their weights in float16.
    """

    family: str
    file: str
    sha256: str
    halo: int
    options: dict[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    steps: int = 1
    int8: Quantised | None = None
    file_sha256: str = ""

    @property
    def stride(self) -> int:
        """LR pixels that one of the network's features stands for, a side."""
        return int(self.options.get("stride", 1))


@dataclass(frozen=True)
class ModelCard:
    """A trained downscaler and upscaler with one name and one scale.

    ``(name, version, digest)`` names one set of weights for ever. Images are float32
    ``(1, 3, H, W)``, RGB in [0, 1]; the downscaler takes sides that are multiples of ``2*scale``
    and at least ``4*scale``, and returns LR clamped and rounded to multiples of 1/255.

    Attributes:
        name, version, scale, description: what and which.
        downscaler, upscaler: the two networks.
        training: the recipe, data, minutes, steps and command, as recorded at export.
        measured: figure name → value, as recorded by the command named there.
        folder: where the card was read from.
    """

    name: str
    version: int
    scale: int
    description: str
    downscaler: Side
    upscaler: Side
    training: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def storage(self) -> str:
        """The storage codec whose loss it was trained for, or "" where LR was lossless."""
        codec = str(self.training.get("recipe", {}).get("codec", ""))
        return "" if codec == "lossless" else codec

    @property
    def told(self) -> str:
        """What of its storage the upscaler is told: the codec's ``quality``, or its ``step``."""
        return str(self.training.get("recipe", {}).get("told", "quality"))

    @property
    def grey(self) -> bool:
        """Whether LR of a colour photo is one grey plane."""
        return self.downscaler.family == "tad-grey"

    @property
    def mixes(self) -> bool:
        """Whether LR of a grey photo is in colour: its three planes hold more than one does."""
        return (
            self.downscaler.family in ("rrnet", "tad") and self.downscaler.options["channels"] == 3
        )

    @property
    def fixed(self) -> bool:
        """Whether its downscaler learned nothing: a paper's baseline, never chosen by itself."""
        return self.downscaler.family == "interpolation"

    @property
    def mirrors(self) -> bool:
        """Whether its small image of a mirrored photo is the mirrored small image."""
        kind = self.downscaler.options.get("kind", "bicubic")
        return self.downscaler.family == "none" or (self.fixed and kind != "nearest")

    @property
    def usual(self) -> str:
        """The name of what it is a form of: ``-hq`` is slower, ``-fast`` quicker, else its own."""
        return self.name.removesuffix("-hq").removesuffix("-fast")

    def step(self, side: str) -> ModelCard:
        """What an engine loads of a side: the card as it is, or one of a single step's scale."""
        steps = getattr(self, side).steps
        return dataclasses.replace(self, scale=round(self.scale ** (1 / steps)))

    def window(self, side: str) -> int:
        """Side in LR pixels of the tiles that a network usually gets, halo included.

        Large ones repeat less of their halo, and hold more; what CAR gathers grows with the scale.
        """
        if side == "downscaler":
            return max(312 if self.scale <= 2 else 208, 2 * self.downscaler.halo + 4)
        usual = 768 if self.upscaler.options.get("width", 64) <= 48 else 512
        return max(usual * self.upscaler.stride, 2 * self.upscaler.halo + 2)

    def lr_channels(self, channels: int) -> int:
        """How many LR has of a photo of 1 or 3, alpha left out."""
        return 1 if self.grey else 3 if self.mixes else channels

    @property
    def digest(self) -> str:
        """SHA-256 over the two files' SHA-256 digests, hexadecimal."""
        both = bytes.fromhex(self.downscaler.sha256) + bytes.fromhex(self.upscaler.sha256)
        return hashlib.sha256(both).hexdigest()

    @property
    def short_digest(self) -> bytes:
        """The first six bytes of :attr:`digest`, as the .carimg header stores them."""
        return bytes.fromhex(self.digest)[:6]

    def weights(self, side: Side | Quantised) -> bytes:
        """The ONNX file of one side, or of its form in 8 bits, checked against its digest.

        Raises:
            ModelNotFoundError: the file is missing or unreadable.
            DigestMismatchError: it is not the file the card describes.
        """
        path = self.folder / side.file
        try:
            data = path.read_bytes()
        except OSError as error:
            downscalers = (self.downscaler, self.downscaler.int8)
            if isinstance(error, FileNotFoundError) and side in downscalers:
                raise ModelNotFoundError(
                    f"{self.name} version {self.version} is there without its downscaler, as a "
                    "version that has a successor is: it decodes; encode with the newest"
                ) from error
            raise ModelNotFoundError(
                f"the weights of {self.name} version {self.version} cannot be read from {path}: "
                f"{error.strerror}"
            ) from error
        expected = side.file_sha256 if isinstance(side, Side) else ""
        if hashlib.sha256(data).hexdigest() != (expected or side.sha256):
            raise DigestMismatchError(
                f"{path} is not the file its model card describes: install the model again"
            )
        return data


def load_card(path: Path) -> ModelCard:
    """Read ``card.toml``.

    Raises:
        ModelNotFoundError: missing, not TOML, or without a required key.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
        data = {
            k: v for k, v in data.items() if k in {f.name for f in dataclasses.fields(ModelCard)}
        }
        for side in ("downscaler", "upscaler"):
            if "int8" in data[side]:
                data[side]["int8"] = Quantised(**data[side]["int8"])
                bytes.fromhex(data[side]["int8"].sha256)
            data[side] = Side(**data[side])
            bytes.fromhex(data[side].sha256 + data[side].file_sha256)
        return ModelCard(**data, folder=path.parent)
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ModelNotFoundError(f"the model card {path} cannot be read: {error}") from error


def as_toml(value: Any) -> str:
    """A value as a card states it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{as_toml(k)} = {as_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(as_toml(v) for v in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
