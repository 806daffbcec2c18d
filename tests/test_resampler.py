"""The adaptive resampler: PyTorch and the ONNX function against a float64 NumPy reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image
from torch import nn

from carcodec.engines import sampling
from carcodec.networks import blocks, car
from carcodec.training.graph import DOMAIN, OPSET, resample_function


def reference(
    image: NDArray[Any], weights: NDArray[Any], offsets: NDArray[Any], s: int
) -> NDArray[np.float64]:
    """Eq. 1-3 in float64; image (3, H, W), weights (k*k, h, w), offsets (2*k*k, h, w)."""
    taps, h, w = weights.shape
    k = round(taps**0.5)
    pad = 4 * s
    padded = np.pad(image.astype(np.float64), ((0, 0), (pad, pad), (pad, pad)), "reflect")
    v, u = ((np.arange(n) + 0.5) * s - 0.5 for n in (h, w))
    small = np.zeros((3, h, w))
    for t in range(taps):
        y = v[:, None] + t // k - (k - 1) / 2 + offsets[taps + t].astype(np.float64)
        x = u[None, :] + t % k - (k - 1) / 2 + offsets[t].astype(np.float64)
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        b, a = y - top, x - left
        read = sum(
            share * padded[:, top + dy + pad, left + dx + pad]
            for dy, dx, share in (
                (0, 0, (1 - b) * (1 - a)), (0, 1, (1 - b) * a), (1, 0, b * (1 - a)), (1, 1, b * a),
            )
        )  # fmt: skip
        small += weights[t] * read
    return small


def sample(scale: int, taipei: Image.Image, seed: int = 0) -> tuple[NDArray[Any], ...]:
    """A photo crop and random heads of the sizes that go with it."""
    random = np.random.default_rng(seed)
    h, w, k = 8, 12, 3 * scale
    left = 270 + 7 * seed
    crop = taipei.crop((left, 380, left + w * scale, 380 + h * scale))
    image = np.asarray(crop).transpose(2, 0, 1).astype(np.float32) / 255
    weights = random.normal(0, 0.1, (k * k, h, w)).astype(np.float32)
    offsets = random.normal(0, 0.8, (2 * k * k, h, w)).astype(np.float32)
    return image, weights, offsets


scales = pytest.mark.parametrize("scale", [2, 3, 4])
kinds = pytest.mark.parametrize("convex", [False, True])


@scales
@kinds
def test_pytorch_agrees_with_float64(scale: int, convex: bool, taipei: Image.Image) -> None:
    image, raw_weights, raw_offsets = sample(scale, taipei)
    weights = car.normalised_weights(torch.from_numpy(raw_weights)[None], convex)
    offsets = car.bounded_offsets(torch.from_numpy(raw_offsets)[None], scale)
    found = car.adaptive_resample(torch.from_numpy(image)[None], weights, offsets, scale)[0]
    expected = reference(image, weights[0].numpy(), offsets[0].numpy(), scale)
    assert np.abs(found.numpy() - expected).max() < 2e-5


def function_model(scale: int, convex: bool) -> onnx.ModelProto:
    function = resample_function(scale, 3 * scale, convex)
    names = ("image", "weights", "offsets")
    node = helper.make_node(
        "AdaptiveResample", names, ["lr"], domain=DOMAIN,
        scale=scale, kernel=3 * scale, convex=int(convex),
    )  # fmt: skip
    k2 = 9 * scale * scale
    shapes = ([1, 3, None, None], [1, k2, None, None], [1, 2 * k2, None, None])
    graph = helper.make_graph(
        [node],
        "resample",
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
            for n, s in zip(names, shapes, strict=True)
        ],
        [helper.make_tensor_value_info("lr", TensorProto.FLOAT, [1, 3, None, None])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)


@scales
@kinds
def test_onnx_function_agrees_with_float64(scale: int, convex: bool, taipei: Image.Image) -> None:
    session = onnxruntime.InferenceSession(
        function_model(scale, convex).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for seed in range(3):
        image, raw_weights, raw_offsets = sample(scale, taipei, seed)
        feeds = {"image": image, "weights": raw_weights, "offsets": raw_offsets}
        found = session.run(None, {k: v[None] for k, v in feeds.items()})[0][0]
        weights = car.normalised_weights(torch.from_numpy(raw_weights).double()[None], convex)
        offsets = car.bounded_offsets(torch.from_numpy(raw_offsets).double()[None], scale)
        expected = reference(image, weights[0].numpy(), offsets[0].numpy(), scale)
        levels = np.clip(expected * 255, 0, 255)
        assert np.abs(found * 255 - levels).max() < 0.5 + 1e-3  # rounding, and nothing else
        assert np.abs(found * 255 - np.rint(found * 255)).max() < 1e-3


@scales
@kinds
def test_openvinos_operators_agree_with_float64(
    scale: int, convex: bool, taipei: Image.Image
) -> None:
    """Heads are made of features here: a few, by a last layer of each."""
    core, random = openvino.Core(), np.random.default_rng(5)
    k2, few = 9 * scale * scale, 5
    layers = [
        (random.normal(0, 0.1 * size, (n, few)), random.normal(0, 0.4 * size, n))
        for n, size in ((k2, 0.3), (2 * k2, 1.0))
    ]
    layers = [(w.astype(np.float32), b.astype(np.float32)) for w, b in layers]
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = sampling.resampler(scale, 3 * scale, convex, *layers)
    network = core.compile_model(graph, "CPU", exact)
    for seed in range(3):
        image = sample(scale, taipei, seed)[0]
        h, w = (side // scale for side in image.shape[1:])
        features = [random.normal(0, 2, (1, h, w, few)).astype(np.float32) for _ in layers]
        found = network([image[None], *features])[0][0]
        raw_weights, raw_offsets = (
            torch.from_numpy(x[0].astype(np.float64) @ weight.T.astype(np.float64) + bias)
            for x, (weight, bias) in zip(features, layers, strict=True)
        )
        weights = car.normalised_weights(raw_weights.permute(2, 0, 1)[None], convex)
        offsets = car.bounded_offsets(raw_offsets.permute(2, 0, 1)[None], scale)
        expected = reference(image, weights[0].numpy(), offsets[0].numpy(), scale)
        levels = np.clip(expected * 255, 0, 255)
        assert np.abs(found * 255 - levels).max() < 0.5 + 1e-2  # rounding, and nothing else
        assert np.abs(found * 255 - np.rint(found * 255)).max() < 1e-3


def test_kernels_start_as_bicubic(taipei: Image.Image) -> None:
    network = car.ResamplerNet(2, 8, 1, 8)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weights, offsets = network.kernels(image)
    assert weights.shape == (1, 36, 16, 16)
    assert torch.allclose(weights.sum(1), torch.ones(1, 16, 16), atol=1e-5)
    bicubic = blocks.bicubic_kernel(2, 6).flatten()
    assert (weights.mean((0, 2, 3)) - bicubic).abs().max() < 0.03
    assert offsets.abs().max() < 0.2


@kinds
def test_weights_sum_to_one_and_convex_ones_are_positive(convex: bool) -> None:
    heads = torch.randn(2, 36, 5, 5, generator=torch.Generator().manual_seed(1))
    weights = car.normalised_weights(heads, convex)
    assert torch.allclose(weights.sum(1), torch.ones(2, 5, 5), atol=1e-5)
    assert bool((weights >= 0).all()) == convex


def test_offsets_stay_within_one_lr_pixel() -> None:
    assert car.bounded_offsets(torch.tensor([-1e9, 0, 1e9]), 4).tolist() == [-4, 0, 4]


def test_soft_round_rounds_and_passes_eq_7_gradients() -> None:
    x = torch.tensor([0.2, 1.0, 1.5, 2.75], dtype=torch.float64, requires_grad=True)
    y = car.soft_round(x, 0.5)
    assert torch.equal(y, torch.round(x))
    y.sum().backward()
    inside = x.detach().clone().requires_grad_()
    (inside - 0.5 * torch.sin(2 * torch.pi * inside) / (2 * torch.pi)).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, inside.grad)


def test_gradients_reach_image_weights_and_offsets() -> None:
    g = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64, generator=g, requires_grad=True)
    weights = torch.rand(1, 36, 4, 4, dtype=torch.float64, generator=g, requires_grad=True)
    offsets = torch.rand(1, 72, 4, 4, dtype=torch.float64, generator=g) * 0.8 + 0.1
    offsets.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, w, o: car.adaptive_resample(i, w, o, 2), (image, weights, offsets)
    )


def test_offset_distance_loss_is_eq_9() -> None:
    scale, k = 2, 6
    random = np.random.default_rng(3)
    offsets = random.normal(0, 1, (1, 2 * k * k, 2, 3))
    total = 0.0
    for i in range(k):
        for j in range(k):
            centre = (k - 1) / 2
            w = np.hypot(i - centre, j - centre) / np.sqrt(k**2 / 2 + k**2 / 2)
            dx, dy = offsets[0, i * k + j] / scale, offsets[0, k * k + i * k + j] / scale
            total += float((1 + np.hypot(dx, dy) * w).sum())
    found = car.offset_distance_loss(torch.from_numpy(offsets), scale)
    assert float(found) == pytest.approx(total / (k * k * 2 * 3))


def test_partial_tv_loss_is_eq_10() -> None:
    """Vertical offsets are compared along a row, horizontal ones along a column."""
    weights = torch.full((1, 36, 3, 3), 1 / 36)
    offsets = torch.zeros(1, 72, 3, 3)
    offsets[:, :36] = torch.arange(3.0)[None, :]  # horizontal, varying along a row: free
    offsets[:, 36:] = torch.arange(3.0)[:, None]  # vertical, varying along a column: free
    assert float(car.partial_tv_loss(weights, offsets, 2)) == 0
    free = offsets.clone()
    offsets[:, :36], offsets[:, 36:] = free[:, 36:], free[:, :36]
    # each neighbour differs by one HR pixel, half an LR pixel, in both directions
    assert float(car.partial_tv_loss(weights, offsets, 2)) == pytest.approx(1.0)


def test_the_papers_size_is_a_configuration() -> None:
    downscaler = car.ResamplerNet(4)
    upscaler = car.EDSR(4, residual_scale=0.1)
    count = [sum(p.numel() for p in n.parameters()) / 1e6 for n in (downscaler, upscaler)]
    assert [len(downscaler.body), downscaler.kernel, len(upscaler.body)] == [5, 12, 32]
    assert count[1] == pytest.approx(37.9, abs=0.5)  # 32 blocks of 256 channels
    assert 2 < count[0] < 12


def test_upscaler_starts_as_bicubic(photo: Image.Image) -> None:
    network = car.EDSR(2, 8, 1)
    with torch.no_grad():
        network.tail.weight.zero_()
    image = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)[None] / 255
    found = network(image)[..., 8:-8, 8:-8]
    expected = nn.functional.interpolate(image, scale_factor=2, mode="bicubic", antialias=True)
    assert (found - expected[..., 8:-8, 8:-8]).abs().max() < 1e-4
