"""Where models lie: shipped in the package, in ``$CARCODEC_MODELS``, in the user's data folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from carcodec.errors import ModelNotFoundError
from carcodec.zoo.card import ModelCard, load_card

__all__ = ["MODELS_VARIABLE", "find", "installed", "search_path"]

MODELS_VARIABLE = "CARCODEC_MODELS"
_SHIPPED = Path(__file__).parent / "models"


def search_path() -> list[Path]:
    """Folders that hold model folders, first match wins."""
    named = os.environ.get(MODELS_VARIABLE, "")
    import platformdirs  # here, so that importing carcodec stays quick

    folders = [Path(part) for part in named.split(os.pathsep) if part]
    return [*folders, Path(platformdirs.user_data_dir("carcodec", False)) / "models", _SHIPPED]


def installed() -> list[ModelCard]:
    """Every model found on :func:`search_path`, by name, newest version first."""
    return list(_scan(tuple(search_path())))


@functools.lru_cache(maxsize=8)
def _scan(folders: tuple[Path, ...]) -> tuple[ModelCard, ...]:
    cards: dict[tuple[str, int, str], ModelCard] = {}
    for folder in folders:
        for path in sorted(folder.glob("*/card.toml")):
            card = load_card(path)
            cards.setdefault((card.name, card.version, card.digest), card)
    return tuple(sorted(cards.values(), key=lambda c: (c.name, -c.version)))


def find(name: str, version: int | None = None, digest: bytes | None = None) -> ModelCard:
    """The model called ``name``; the newest version unless one is asked for.

    ``digest`` is the short digest of a .carimg header: a model of the same name and version but
    other weights is not it.

    Raises:
        ModelNotFoundError: not installed; says what is.
    """
    named = [card for card in installed() if card.name == name]
    for card in named:
        if version in (None, card.version) and digest in (None, card.short_digest):
            return card
    wanted = name if version is None else f"{name} version {version}"
    if digest is not None:
        wanted += f" (digest {digest.hex()})"
    if named:
        have = "installed of that name: " + ", ".join(
            f"version {c.version} (digest {c.short_digest.hex()})" for c in named
        )
    else:
        have = f"installed: {', '.join(sorted({c.name for c in installed()})) or 'none'}"
    raise ModelNotFoundError(
        f"model {wanted} is not installed; {have}. Upgrade carcodec, or put the model's folder "
        f"into {search_path()[-2]} or a folder named by ${MODELS_VARIABLE}"
    )
