"""The networks by name, as recipes and model cards call them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from carcodec.errors import RecipeError
from carcodec.networks import car, plain, rsrnet, superres, tad

__all__ = ["FAMILIES", "build", "complete"]

FAMILIES: dict[str, dict[str, type[nn.Module]]] = {
    "downscaler": {
        "car": car.ResamplerNet,
        "rrnet": rsrnet.RRNet,
        "tad": tad.TAD,
        "tad-grey": tad.TADGrey,
        "bicubic": plain.BicubicDownscaler,
        "interpolation": plain.Interpolation,
        "none": plain.Unscaled,
    },
    "upscaler": {
        "edsr": car.EDSR,
        "edsr-published": superres.EDSR,
        "srnet": rsrnet.SRNet,
        "tau": tad.TAU,
        "tau-colour": tad.TAUColour,
        "srcnn": superres.SRCNN,
        "vdsr": superres.VDSR,
        "cnnsr": superres.CNNSR,
        "srdensenet": superres.SRDenseNet,
        "ddbpn": superres.DDBPN,
        "rdn": superres.RDN,
        "rcan": superres.RCAN,
        "bicubic": plain.BicubicUpscaler,
    },
}


def build(side: str, family: str, scale: int, options: dict[str, Any]) -> nn.Module:
    """A fresh ``downscaler`` or ``upscaler``.

    Raises:
        RecipeError: no such family or option, an option of the wrong type, or values that do not go
            together.
    """
    options = complete(side, family, options)
    try:
        return FAMILIES[side][family](scale, **options)
    except ValueError as error:
        raise RecipeError(f"{family}: {error}") from error


def complete(side: str, family: str, options: dict[str, Any]) -> dict[str, Any]:
    """All of a family's options: those given, checked, and the defaults of the others.

    Raises:
        RecipeError: no such family or option, or an option of the wrong type.
    """
    families = FAMILIES[side]
    if family not in families:
        raise RecipeError(f"unknown {side} family {family!r}; known: {', '.join(families)}")
    known = dict(list(inspect.signature(families[family]).parameters.items())[1:])
    for key, value in options.items():
        if key not in known:
            raise RecipeError(f"{family}: unknown key {key!r}; known: {', '.join(known) or 'none'}")
        wanted = str(known[key].annotation).partition(" | ")[0]
        fits = {
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, (int, float)) and not isinstance(value, bool),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
        }
        if not fits[wanted]:
            raise RecipeError(f"{family}: {key} must be {wanted}, not {value!r}")
    defaults = {k: p.default for k, p in known.items() if p.default is not None}
    return defaults | options
