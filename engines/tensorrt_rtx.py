"""TensorRT for RTX: smaller, builds plans without a GPU, takes no plugins."""

from __future__ import annotations

from carcodec.engines import plans, session
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = ["library", "load"]


def library() -> plans.Library:
    """TensorRT-RTX.

    Raises:
        EngineError: its libraries are missing or do not load.
    """
    try:
        import tensorrt_rtx_bindings
    except (ImportError, OSError) as error:
        raise EngineError(f"TensorRT-RTX cannot be loaded: {error}") from error
    return plans.Library("tensorrt-rtx", tensorrt_rtx_bindings, plugin=False, timing=False)


def load(
    card: ModelCard, side: str, threads: int = 0, options: tuple[str, ...] = ()
) -> session.Session | session.Levels:
    """See :class:`carcodec.engines.Engine`; ``threads`` means nothing to a GPU.

    ``fp16`` is for upscalers: downscalers stay in float32.
    """
    return session.load(library(), card, side, options)
