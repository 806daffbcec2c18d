"""TensorRT, with our CUDA plugin for the resampler."""

from __future__ import annotations

from carcodec.engines import plans, session
from carcodec.errors import EngineError
from carcodec.zoo import ModelCard

__all__ = ["library", "load"]


def library() -> plans.Library:
    """TensorRT, knowing the plugin.

    Raises:
        EngineError: its libraries are missing or do not load.
    """
    try:
        import tensorrt

        from carcodec.plugins.resampler import tensorrt as plugin

        plugin.register()
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise EngineError(f"TensorRT cannot be loaded: {error}") from error
    return plans.Library("tensorrt", tensorrt, plugin=True, timing=True)


def load(
    card: ModelCard, side: str, threads: int = 0, options: tuple[str, ...] = ()
) -> session.Session | session.Levels:
    """See :class:`carcodec.engines.Engine`; ``threads`` means nothing to a GPU.

    ``fp16`` is for upscalers: downscalers stay in float32.
    """
    return session.load(library(), card, side, options)
