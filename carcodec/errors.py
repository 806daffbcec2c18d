"""Everything carcodec raises on bad input: one hierarchy, one clear sentence each."""

from __future__ import annotations

__all__ = [
    "CarcodecError",
    "CompareError",
    "ContainerError",
    "DataError",
    "DigestMismatchError",
    "EngineError",
    "ImageError",
    "LimitError",
    "MetricError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "NotACarimgError",
    "RecipeError",
    "StorageError",
    "TrainingError",
    "TruncatedError",
    "UnsupportedError",
]


class CarcodecError(Exception):
    """Base of all errors; its text is one sentence saying what, where and what to do."""


class ContainerError(CarcodecError):
    """A .carimg file breaks the rules of docs/FORMAT.md."""


class NotACarimgError(ContainerError):
    """The file does not begin with the .carimg signature."""


class TruncatedError(ContainerError):
    """The file ends before its end chunk."""


class DigestMismatchError(CarcodecError):
    """A checksum or weights digest differs from the recorded one."""


class UnsupportedError(ContainerError):
    """A valid file that needs a newer reader: version, critical chunk, codec or flag."""


class LimitError(CarcodecError):
    """An image is larger than the format or the caller's limits allow."""


class ImageError(CarcodecError):
    """An input picture cannot be read, or has a mode that cannot be encoded."""


class StorageError(CarcodecError):
    """A storage codec failed, lacks a setting, or decoded to something unexpected."""


class ModelNotFoundError(CarcodecError):
    """No installed model has this name, version and digest."""


class EngineError(CarcodecError):
    """An inference engine is unknown or failed."""


class MissingDependencyError(EngineError, StorageError):
    """An optional package is missing; the text names the pip command that brings it."""


class RecipeError(CarcodecError):
    """A training recipe cannot be read or says something unknown."""


class DataError(CarcodecError):
    """Training images are missing or unreadable."""


class TrainingError(CarcodecError):
    """Training cannot start, resume or go on."""


class MetricError(CarcodecError):
    """A quality metric is unknown, or what it needs is missing."""


class CompareError(CarcodecError):
    """A comparison cannot start or a codec under comparison failed."""
