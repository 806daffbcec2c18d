"""Training recipes: what is trained and how, as a small TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from carcodec.errors import RecipeError

__all__ = ["DownscalerRecipe", "Recipe", "Schedule", "UpscalerRecipe", "load_recipe"]


@dataclass(frozen=True)
class DownscalerRecipe:
    """``family`` is ``car``, ``bicubic`` (fixed, for baselines) or ``none`` (scale 1).

    The rest is ResamplerNet's.
    """

    family: str = "car"
    width: int = 128
    blocks: int = 5
    head_width: int = 256
    convex: bool = True
    cell: int = 2
    context: int = 0
    context_width: int = 64


@dataclass(frozen=True)
class UpscalerRecipe:
    """EDSR's options: see :class:`carcodec.networks.car.EDSR`."""

    family: str = "edsr"
    width: int = 256
    blocks: int = 32
    residual_scale: float = 1.0
    conditioned: bool = False
    stride: int = 1


@dataclass(frozen=True)
class Schedule:
    """How long and how: losses carry the paper's letters where it has them.

    ``loss`` between photo and restored photo is the paper's ``l1`` (eq. 8) or ``mse``,
    ``patch`` is in HR pixels, ``minutes`` is the wall-clock budget over which the learning rate
    follows a cosine to zero, ``downscaler_rate`` multiplies that rate for the downscaler,
    ``offset`` is lambda and ``tv`` gamma of eq. 11, ``guide`` weighs an L1 distance between LR
    and bicubic LR, ``soft_round`` is alpha of eq. 7.

    ``codec`` trains for that storage codec: LR passes through its proxy at a quality drawn between
    ``quality_low`` and ``quality_high`` for each sample, and the loss becomes distortion plus
    ``rate`` times bits (see :meth:`.loop._Trainer.loss`). With ``real`` the codec itself gives LR
    back, and the proxy only its gradient and the bits; with a ``downscaler_rate`` of 0 as well, the
    upscaler learns alone. ``bounds`` weighs an L1 distance of LR from [0, 1]. ``lossless`` adds
    ``rate`` times the bits that lossless storage would take to the plain loss. ``bf16`` computes in
    bfloat16 where the device does that in hardware.
    """

    batch: int = 16
    patch: int = 96
    loss: str = "l1"
    minutes: float = 60.0
    optimiser: str = "adam"
    learning_rate: float = 1e-4
    downscaler_rate: float = 1.0
    warmup: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    offset: float = 0.0
    tv: float = 0.0
    guide: float = 0.0
    bounds: float = 0.0
    soft_round: float = 0.5
    codec: str = ""
    quality_low: float = 10.0
    quality_high: float = 90.0
    rate: float = 0.1155
    real: bool = False
    bf16: bool = True
    seed: int = 1


@dataclass(frozen=True)
class Recipe:
    """One model's recipe; ``name`` and ``version`` are those of the card it exports to."""

    name: str
    scale: int
    version: int = 1
    description: str = ""
    downscaler: DownscalerRecipe = field(default_factory=DownscalerRecipe)
    upscaler: UpscalerRecipe = field(default_factory=UpscalerRecipe)
    training: Schedule = field(default_factory=Schedule)


_PARTS = {"downscaler": DownscalerRecipe, "upscaler": UpscalerRecipe, "training": Schedule}
CODECS = ("", "avif", "webp", "jpeg2000", "lossless")
_FAMILIES = {"downscaler": ("car", "bicubic", "none"), "upscaler": ("edsr",)}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe file.

    Raises:
        RecipeError: the file cannot be read, is not TOML, or names an unknown key or family.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a TOML file: {error}") from error
    for part, kind in _PARTS.items():
        if part in data:
            data[part] = _build(kind, data[part], f"{path} [{part}]")
    recipe: Recipe = _build(Recipe, data, str(path))
    for part, families in _FAMILIES.items():
        family = getattr(recipe, part).family
        if family not in families:
            raise RecipeError(
                f"{path} [{part}]: unknown family {family!r}; known: {', '.join(families)}"
            )
    if recipe.downscaler.family == "none":
        if recipe.scale != 1:
            raise RecipeError(f"{path}: without a downscaler the scale is 1, not {recipe.scale}")
    elif not 2 <= recipe.scale <= 8:
        raise RecipeError(f"{path}: scale must be from 2 to 8, not {recipe.scale}")
    if recipe.training.patch % (2 * recipe.scale):
        raise RecipeError(f"{path} [training]: patch must be a multiple of {2 * recipe.scale}")
    if recipe.training.optimiser not in ("adam", "muon"):
        raise RecipeError(f"{path} [training]: optimiser must be 'adam' or 'muon'")
    if recipe.training.loss not in ("l1", "mse"):
        raise RecipeError(f"{path} [training]: loss must be 'l1' or 'mse'")
    if recipe.training.codec not in CODECS:
        raise RecipeError(
            f"{path} [training]: unknown codec {recipe.training.codec!r}; "
            f"known: {', '.join(CODECS[1:])}"
        )
    if recipe.training.real and recipe.training.codec in ("", "lossless"):
        raise RecipeError(f"{path} [training]: real needs a lossy codec")
    if not 0 <= recipe.training.quality_low <= recipe.training.quality_high <= 100:
        raise RecipeError(f"{path} [training]: qualities must be ordered and from 0 to 100")
    if recipe.upscaler.stride not in (1, 2):
        raise RecipeError(f"{path} [upscaler]: stride must be 1 or 2")
    if recipe.downscaler.cell not in (1, 2):
        raise RecipeError(f"{path} [downscaler]: cell must be 1 or 2")
    if recipe.downscaler.context and recipe.downscaler.cell != 1:
        raise RecipeError(f"{path} [downscaler]: context wants cell = 1")
    return recipe


def _build(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: expected a table")
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in values.items():
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        wanted = known[key].type
        fits = {
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, (int, float)) and not isinstance(value, bool),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }
        if not fits.get(str(wanted), True):
            raise RecipeError(f"{where}: {key} must be {wanted}, not {value!r}")
    missing = [
        name
        for name, f in known.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise RecipeError(f"{where}: missing {', '.join(missing)}")
    return kind(**values)
