"""PyTorch: the reference engine. Weights come from the ONNX initialisers."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from carcodec.engines import Network
from carcodec.errors import EngineError, RecipeError
from carcodec.networks import car, families, plain
from carcodec.zoo import ModelCard

__all__ = ["load", "network"]


def network(card: ModelCard, side: str) -> torch.nn.Module:
    """The PyTorch network of one side with its trained weights, in evaluation mode.

    Raises:
        EngineError: the file's parameters are not those of the card's architecture.
    """
    described = getattr(card, side)
    try:
        module: torch.nn.Module = families.build(
            side, described.family, card.scale, described.options
        )
        model = onnx.load_model_from_string(card.weights(described))
        weights = {
            i.name: torch.from_numpy(numpy_helper.to_array(i).copy())
            for i in model.graph.initializer
        }
        module.load_state_dict(weights)
    except (RecipeError, RuntimeError) as error:
        raise EngineError(f"PyTorch cannot build the {side} of {card.name}: {error}") from error
    return module.eval()


def load(card: ModelCard, side: str, threads: int = 0) -> Network:
    """See :class:`carcodec.engines.Engine`. The number of threads is PyTorch's, process-wide."""
    module = network(card, side)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if threads:
        torch.set_num_threads(threads)

    @torch.inference_mode()
    def run(image: NDArray[np.float32], quality: float = 1.0) -> NDArray[np.float32]:
        source = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)
        if isinstance(module, plain.Unscaled):
            return np.asarray(np.rint(image * 255) / 255, np.float32)
        if side == "upscaler":
            return np.ascontiguousarray(module(source, torch.tensor([quality])).numpy())
        if not isinstance(module, car.ResamplerNet):
            small = module(source).clamp(0, 1).mul(255).round().div(255)
            return np.ascontiguousarray(small.numpy())
        # grid_sample takes positions relative to the whole input: float32 would let the
        # place of a tile show in the last bits.
        weights, offsets = (part.double() for part in module.kernels(source))
        result = car.adaptive_resample(source.double(), weights, offsets, card.scale)
        return np.ascontiguousarray(result.clamp(0, 1).mul(255).round().div(255).float().numpy())

    return run
