"""Training recipes: what is trained and how, as a small TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from carcodec.errors import RecipeError
from carcodec.networks import families

__all__ = ["NetworkRecipe", "Recipe", "Schedule", "load_recipe"]


@dataclass(frozen=True)
class NetworkRecipe:
    """One side's network: its family (:mod:`carcodec.networks.families`) and that one's options."""

    family: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Schedule:
    """How long and how: losses carry the paper's letters where it has them.

    ``loss`` between photo and restored photo is the paper's ``l1`` (eq. 8) or ``mse``,
    ``patch`` is in HR pixels, ``minutes`` is the wall-clock budget over which the learning rate
    follows a cosine to zero, ``downscaler_rate`` multiplies that rate for the downscaler,
    ``offset`` is lambda and ``tv`` gamma of eq. 11, ``guide`` weighs an L1 distance between LR
    and bicubic LR, ``soft_round`` is alpha of eq. 7.

    ``codec`` trains for that storage codec: LR passes through its proxy at a quality drawn between
    ``quality_low`` and ``quality_high`` for each sample, all alike or, with a ``quality_mode``,
    that one most often and those at both ends hardly (a triangular distribution), and the loss
    becomes distortion plus ``rate`` times bits (see :meth:`.loop._Trainer.loss`). With ``real`` the
    codec itself gives LR back, and the proxy only its gradient and the bits; with a
    ``downscaler_rate`` of 0 as well, the upscaler learns alone. ``whole`` is for such upscalers:
    the codec is given so many HR pixels a side, and patches are cut from what it gives back, as it
    shares bits out over a photo and not over a patch. ``stock`` holds so many of them and draws
    from them again, while processes, on all cores but one or two, code the next: for codecs that
    take longer than the networks. With a ``teacher`` the upscaler learns what that installed model
    restores of the same small images, and not the photos: nothing that no network can know of them
    is in its way (G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural
    network", 2015). ``told`` is what the upscaler is told, the codec's own
    ``quality`` or the ``step`` that it came to (:mod:`carcodec.coarseness`), for codecs whose
    quality is that of the whole image. ``bounds`` weighs an L1 distance of LR from [0, 1].
    ``lossless`` adds ``rate`` times the bits that lossless storage would take to the plain loss.
    ``tint`` weighs, without a lossy codec, squared errors of colour that remain over 8 x 8 pixels,
    1 as ``mse`` does: networks that hide detail in colour give it back as a tint in fine patterns.
    ``decimate`` is the share of patches that are every second pixel of a photo, aliases and all,
    where such patterns abound. ``ssim`` weighs log(1 - SSIM) of luma beside the logarithm of the
    MSE, where the upscaler learns alone with the real codec; it is the mean over ``ssim_scales``
    sizes, each half the one before. ``revive`` is after how many steps features that were never
    positive start again (:mod:`.revive`), through the first two thirds of the training; 0 is never.
    ``bf16`` computes in bfloat16 where the device does that in hardware, ``fp16`` in half precision
    with a scaled loss, for GPUs without bfloat16. ``compile`` has torch.compile fuse the networks,
    which takes a minute to begin with and pays on a GPU.
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
    quantise: float = 0.0
    colour: str = "rgb"
    codec: str = ""
    quality_low: float = 10.0
    quality_high: float = 90.0
    quality_mode: float = 0.0
    rate: float = 0.1155
    real: bool = False
    whole: int = 0
    stock: int = 0
    told: str = "quality"
    teacher: str = ""
    tint: float = 0.0
    decimate: float = 0.0
    ssim: float = 0.0
    ssim_scales: int = 2
    revive: int = 0
    bf16: bool = True
    fp16: bool = False
    compile: bool = False
    seed: int = 1


@dataclass(frozen=True)
class Recipe:
    """One model's recipe; ``name`` and ``version`` are those of the card it exports to."""

    name: str
    scale: int
    version: int = 1
    description: str = ""
    downscaler: NetworkRecipe = NetworkRecipe("car")
    upscaler: NetworkRecipe = NetworkRecipe("edsr")
    training: Schedule = field(default_factory=Schedule)


SSIM_WINDOW = 11  # pixels, SSIM's Gaussian window
CODECS = ("", "avif", "webp", "jpeg2000", "lossless")


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
    for part in ("downscaler", "upscaler"):
        if part in data:
            data[part] = _network(data[part], part, f"{path} [{part}]")
    if "training" in data:
        data["training"] = _build(Schedule, data["training"], f"{path} [training]")
    recipe: Recipe = _build(Recipe, data, str(path))
    if recipe.downscaler.family in ("none", "tad-grey"):
        if recipe.scale != 1:
            raise RecipeError(
                f"{path}: the scale of {recipe.downscaler.family!r} is 1, not {recipe.scale}"
            )
    elif not 2 <= recipe.scale <= 128:
        raise RecipeError(f"{path}: scale must be from 2 to 128, not {recipe.scale}")
    if recipe.training.patch % (2 * recipe.scale):
        raise RecipeError(f"{path} [training]: patch must be a multiple of {2 * recipe.scale}")
    if recipe.training.optimiser not in ("adam", "muon"):
        raise RecipeError(f"{path} [training]: optimiser must be 'adam' or 'muon'")
    if recipe.training.loss not in ("l1", "mse"):
        raise RecipeError(f"{path} [training]: loss must be 'l1' or 'mse'")
    if recipe.training.colour not in ("rgb", "y"):
        raise RecipeError(f"{path} [training]: colour must be 'rgb' or 'y'")
    if recipe.training.codec not in CODECS:
        raise RecipeError(
            f"{path} [training]: unknown codec {recipe.training.codec!r}; "
            f"known: {', '.join(CODECS[1:])}"
        )
    if recipe.training.real and recipe.training.codec in ("", "lossless"):
        raise RecipeError(f"{path} [training]: real needs a lossy codec")
    if recipe.training.tint and (
        recipe.training.colour != "rgb" or recipe.training.codec not in ("", "lossless")
    ):
        raise RecipeError(
            f"{path} [training]: tint is for colour = 'rgb' without a lossy codec, not for "
            f"colour = {recipe.training.colour!r} and codec = {recipe.training.codec!r}"
        )
    if recipe.training.tint and recipe.training.patch < 8:
        raise RecipeError(
            f"{path} [training]: tint is measured over 8 pixels a side, more than there are in "
            f"patch = {recipe.training.patch}"
        )
    if not 0 <= recipe.training.decimate <= 1:
        raise RecipeError(
            f"{path} [training]: decimate must be from 0 to 1, not {recipe.training.decimate}"
        )
    alone = recipe.downscaler.family == "none" or not recipe.training.downscaler_rate
    if recipe.training.ssim and not (recipe.training.real and alone):
        raise RecipeError(
            f"{path} [training]: ssim is for upscalers that learn alone: real = true, and "
            "downscaler_rate = 0 or scale 1"
        )
    if recipe.training.told not in ("quality", "step"):
        raise RecipeError(f"{path} [training]: told must be 'quality' or 'step'")
    if recipe.training.told == "step" and not recipe.training.whole:
        raise RecipeError(f"{path} [training]: told = 'step' wants whole: a patch has its own step")
    if recipe.training.whole:
        if not (recipe.training.real and alone):
            raise RecipeError(
                f"{path} [training]: whole is for upscalers that learn alone: real = true, and "
                "downscaler_rate = 0 or scale 1"
            )
        if recipe.training.whole < recipe.training.patch:
            raise RecipeError(f"{path} [training]: whole must be at least patch")
        if recipe.training.whole % (2 * recipe.scale):
            raise RecipeError(f"{path} [training]: whole must be a multiple of {2 * recipe.scale}")
    if recipe.training.stock and not recipe.training.whole:
        raise RecipeError(
            f"{path} [training]: stock wants whole: it holds what patches are cut from"
        )
    if recipe.training.teacher and not recipe.training.stock:
        raise RecipeError(
            f"{path} [training]: teacher wants stock: it holds what the teacher restored"
        )
    if recipe.training.stock < 0:
        raise RecipeError(
            f"{path} [training]: stock must be 0 or more, not {recipe.training.stock}"
        )
    if recipe.training.revive < 0:
        raise RecipeError(
            f"{path} [training]: revive must be 0 or more, not {recipe.training.revive}"
        )
    if recipe.training.ssim_scales < 1:
        raise RecipeError(f"{path} [training]: ssim_scales must be at least 1")
    smallest = recipe.training.patch >> (recipe.training.ssim_scales - 1)
    if recipe.training.ssim and smallest < SSIM_WINDOW:
        raise RecipeError(
            f"{path} [training]: ssim_scales must leave {SSIM_WINDOW} pixels of the patch at the "
            f"smallest size, not {smallest}"
        )
    if not 0 <= recipe.training.quality_low <= recipe.training.quality_high <= 100:
        raise RecipeError(f"{path} [training]: qualities must be ordered and from 0 to 100")
    mode = recipe.training.quality_mode
    if mode and not recipe.training.quality_low <= mode <= recipe.training.quality_high:
        raise RecipeError(
            f"{path} [training]: quality_mode must be between quality_low and quality_high, or 0"
        )
    for part in ("downscaler", "upscaler"):
        network = getattr(recipe, part)
        try:  # what the network itself has to say about its options
            with torch.device("meta"):
                families.build(part, network.family, recipe.scale, network.options)
        except RecipeError as error:
            raise RecipeError(f"{path} [{part}]: {error}") from error
        if recipe.training.colour == "y" and network.options.get("channels", 1) != 1:
            raise RecipeError(f"{path} [{part}]: colour = 'y' wants channels = 1")
        if recipe.training.colour == "y" and network.family in ("car", "edsr", "tad-grey"):
            raise RecipeError(f"{path} [{part}]: {network.family} takes colour, not luma alone")
    return recipe


def _network(values: Any, part: str, where: str) -> NetworkRecipe:
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: expected a table")
    options = dict(values)
    family = options.pop("family", "car" if part == "downscaler" else "edsr")
    try:
        return NetworkRecipe(family, families.complete(part, family, options))
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


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
