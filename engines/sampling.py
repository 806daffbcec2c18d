"""The adaptive resampler in OpenVINO's own operators: twice as fast as the model's function body.

What the body does by index, OpenVINO's GridSample does in one pass. Everything else is laid out so
that nothing has to be moved in memory: features come with their channels last, where the last
layers are matrix products, and the taps of an LR pixel, and the two coordinates of a tap, follow
one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import Model
from openvino import opset13 as op

__all__ = ["channels_last", "resampler"]

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]  # (outputs, inputs) and (outputs,)


def channels_last(model: Any) -> Any:
    """The model with its results ``(1, c, h, w)`` as ``(1, h, w, c)``."""
    order = np.array([0, 2, 3, 1])
    results = [op.transpose(result.input_value(0), order) for result in model.get_results()]
    return Model(results, model.get_parameters())


def resampler(scale: int, kernel: int, convex: bool, weights: Layer, offsets: Layer) -> Any:
    """From the photo ``(1, 3, H, W)`` and two features ``(1, h, w, c)`` to LR ``(1, 3, h, w)``.

    ``weights`` and ``offsets`` are the last layers, 1×1 convolutions; the rest is
    ``AdaptiveResample`` as the model's function defines it (eq. 1-3 of the CAR paper).
    """
    taps = kernel**2
    photo = op.parameter([1, 3, -1, -1], np.float32)
    features = [
        op.parameter([1, -1, -1, len(layer[0][0])], np.float32) for layer in (weights, offsets)
    ]
    kernels = _layer(features[0], *weights)
    if convex:
        kernels = op.maximum(kernels, np.float32(1e-6))
        kernels = op.divide(kernels, op.reduce_sum(kernels, np.array([-1]), keep_dims=True))
    else:
        mean = op.reduce_mean(kernels, np.array([-1]), keep_dims=True)
        kernels = op.add(kernels, op.subtract(np.float32(1 / taps), mean))
    # planes of x, then of y: made to alternate, as GridSample takes them
    pairs = np.arange(2 * taps).reshape(2, taps).T.ravel()
    moved = op.tanh(_layer(features[1], offsets[0][pairs], offsets[1][pairs]))

    # GridSample's coordinates run from -1 to 1
    horizontal = np.tile(np.array([1, 0], np.float32), taps)
    vertical = 1 - horizontal
    at = np.arange(kernel, dtype=np.float32) - (kernel - 1) / 2
    tap = np.stack([np.tile(at, kernel), np.repeat(at, kernel)], 1).ravel().astype(np.float32)
    last = [op.subtract(_length(photo, axis), np.float32(1)) for axis in (3, 2)]
    step_x, step_y = (op.divide(np.float32(2), at_most) for at_most in last)
    step = op.add(op.multiply(step_x, horizontal), op.multiply(step_y, vertical))
    x = op.multiply(_centres(features[0], 2, [1, 1, -1, 1], scale), horizontal)
    y = op.multiply(_centres(features[0], 1, [1, -1, 1, 1], scale), vertical)
    x = op.subtract(op.multiply(op.add(x, tap), step), np.float32(1))
    y = op.multiply(y, step)
    grid = op.add(op.add(op.multiply(moved, op.multiply(step, np.float32(scale))), x), y)
    grid = op.reshape(grid, np.array([1, -1, taps, 2]), False)
    settings = {"align_corners": True, "mode": "bilinear", "padding_mode": "reflection"}
    read = op.grid_sample(photo, grid, settings)  # (1, 3, h*w, taps)

    kernels = op.reshape(kernels, np.array([1, 1, -1, taps]), False)
    small = op.reduce_sum(op.multiply(read, kernels), np.array([-1]))
    sides = op.gather(op.shape_of(features[0]), np.array([1, 2]), np.int64(0))
    small = op.reshape(small, op.concat([np.array([1, 3]), sides], 0), False)
    levels = op.clamp(op.multiply(small, np.float32(255)), 0.0, 255.0)
    levels = op.round(levels, "half_to_even")
    return Model([op.multiply(levels, np.float32(1 / 255))], [photo, *features])


def _layer(x: Any, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Any:
    return op.add(op.matmul(x, np.ascontiguousarray(weight.T), False, False), bias)


def _length(x: Any, axis: int) -> Any:
    return op.convert(op.gather(op.shape_of(x), np.int64(axis), np.int64(0)), np.float32)


def _centres(feature: Any, axis: int, shape: list[int], scale: int) -> Any:
    """Of LR pixels along an axis, in HR pixels."""
    run = op.range(np.float32(0), _length(feature, axis), np.float32(1), "f32")
    centres = op.add(op.multiply(run, np.float32(scale)), np.float32((scale - 1) / 2))
    return op.reshape(centres, np.array(shape), False)
