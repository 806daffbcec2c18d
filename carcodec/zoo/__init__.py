"""Model cards and weights: what is installed, and looking a model up by name or digest."""

from carcodec.zoo.card import ModelCard, Quantised, Side, load_card
from carcodec.zoo.shelf import MODELS_VARIABLE, find, installed, search_path

__all__ = [
    "MODELS_VARIABLE",
    "ModelCard",
    "Quantised",
    "Side",
    "find",
    "installed",
    "load_card",
    "search_path",
]
