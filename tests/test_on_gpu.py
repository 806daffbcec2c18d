"""On an NVIDIA GPU: ``pytest -m gpu``. Everything here skips where PyTorch finds none."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carcodec import codec, engines, metrics, zoo
from carcodec.engines import guard, pytorch
from carcodec.networks import car
from carcodec.plugins import convolution
from carcodec.plugins.convolution import pytorch as tensor_cores
from carcodec.plugins.resampler import pytorch as fused
from carcodec.training import loop
from carcodec.training.recipe import load_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use"),
]
ON_GPU = [name for name in (*engines.ON_GPU, "pytorch") if not engines.missing(name)]
SHAPES = [(2, 6, 64, 96), (3, 9, 33, 50), (4, 12, 40, 64), (2, 3, 21, 35), (1, 4, 16, 18)]


def heads(scale: int, kernel: int, h: int, w: int, spread: float) -> list[torch.Tensor]:
    torch.manual_seed(5)
    return [
        torch.rand(2, 3, h * scale, w * scale),
        torch.randn(2, kernel**2, h, w) * 0.1,
        torch.randn(2, 2 * kernel**2, h, w) * spread,
    ]


@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize("spread", [0.7, 50.0])
@pytest.mark.parametrize(("scale", "kernel", "h", "w"), SHAPES)
def test_the_kernel_is_the_reference(
    scale: int, kernel: int, h: int, w: int, spread: float, convex: bool
) -> None:
    image, weights, offsets = heads(scale, kernel, h, w, spread)
    exact = car.resampled(image.double(), (weights.double(), offsets.double()), scale, convex)
    there = [t.cuda() for t in (image, weights, offsets)]
    small = fused.resample(*there, scale, convex=convex)  # type: ignore[misc]
    assert (small.cpu() - exact).abs().max() < 5e-5 * max(1, float(exact.abs().max()))
    rounded = fused.resample(*there, scale, convex=convex, quantise=True)  # type: ignore[misc]
    assert (rounded.cpu() * 255 - exact.clamp(0, 1) * 255).abs().max() < 0.52
    if spread < 1:
        halves = [t.half() for t in there]
        half = fused.resample(*halves, scale, convex=convex)  # type: ignore[misc]
        exact = car.resampled(
            halves[0].cpu().double(), (halves[1].cpu().double(), halves[2].cpu().double()),
            scale, convex,
        )  # fmt: skip
        assert (half.cpu() - exact).abs().max() < 2e-3 * max(1, float(exact.abs().max()))


@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize(("scale", "kernel", "h", "w"), SHAPES)
def test_gradients_are_those_of_float64(
    scale: int, kernel: int, h: int, w: int, convex: bool
) -> None:
    made = heads(scale, kernel, h, w, 0.7)
    there = [t.cuda().requires_grad_() for t in made]
    here = [t.double().requires_grad_() for t in made]
    small = fused.resample(*there, scale, convex=convex)  # type: ignore[misc]
    exact = car.resampled(here[0], (here[1], here[2]), scale, convex)
    slope = torch.randn(exact.shape)
    small.backward(slope.cuda())
    exact.backward(slope.double())
    for ours, theirs in zip(there, here, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        worst = (ours.grad.cpu() - theirs.grad).abs().max()
        assert worst < 5e-4 * max(1, float(theirs.grad.abs().max()))


@pytest.mark.parametrize(("n", "h", "w"), [(1, 16, 16), (2, 37, 51), (1, 1, 1), (1, 1500, 1100)])
@pytest.mark.parametrize("count", convolution.FEATURES)
def test_the_convolution_is_its_definition(count: int, n: int, h: int, w: int) -> None:
    torch.manual_seed(6)
    features, before = (torch.randn(n, count, h, w).half() for _ in range(2))
    weights, bias = (torch.randn(count, count, 3, 3) / 20).half(), torch.randn(count)
    kernel = tensor_cores.kernel(count, torch.device("cuda", 0))
    there, was = (t.cuda().to(memory_format=torch.channels_last) for t in (features, before))
    given = there, tensor_cores.arranged(weights.cuda()), bias.cuda()
    wanted = torch.nn.functional.conv2d(features.double(), weights.double(), bias.double(), 1, 1)
    for _ in range(3):  # no run sees what another left
        assert (kernel(*given).cpu() - wanted.clamp(min=0)).abs().max() < 0.02
        assert (kernel(*given, was).cpu() - wanted - before).abs().max() < 0.02
    assert kernel(*given, was, was) is was and (was.cpu() - wanted - before).abs().max() < 0.02


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x1-avif-fast", "car-x4"])
def test_every_way_of_running_an_upscaler_is_right(name: str) -> None:
    card, device = zoo.find(name), torch.device("cuda", 0)
    module = pytorch.network(card, "upscaler")
    make = functools.partial(pytorch.Pipeline, module, device, "upscaler", 1)
    known = guard.reference(card, "upscaler")
    ways = pytorch.fused(make, module, device)
    reasons = {kind: guard.refusal(one, card, "upscaler", known) for one, kind in ways}
    assert reasons == {" with carcodec's own kernel": "", " with fused kernels": ""}


@pytest.mark.parametrize("engine", ON_GPU)
@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x4", "tad-x2", "rrnet-x3"])
def test_a_photo_goes_there_and_back(engine: str, name: str, taipei: Image.Image) -> None:
    card, photo = zoo.find(name), np.asarray(taipei.convert("RGB"))
    size, quality = (photo.shape[1], photo.shape[0]), 50 if card.storage else None
    small = codec.downscale(photo, card, engine)
    wanted = codec.downscale(photo, card, "onnxruntime")
    assert (np.abs(small.astype(int) - wanted) <= 1).mean() >= 0.999
    restored = codec.upscale(wanted, size, 8, card, engine, quality=quality)
    reference = codec.upscale(wanted, size, 8, card, "onnxruntime:fp32", quality=quality)
    assert metrics.psnr(reference, restored) > 48


def test_auto_takes_the_gpu(tiny: zoo.ModelCard) -> None:
    assert engines.resolve() in ON_GPU


def test_memory_is_bounded_by_the_tiles(tiny: zoo.ModelCard) -> None:
    most = []
    for side in (1500, 3000):  # whose tiles are of one size
        small = np.zeros((side, side, 3), np.uint8)
        torch.cuda.reset_peak_memory_stats()
        codec.upscale(small, (2 * side, 2 * side), 8, tiny, "pytorch")
        most.append(torch.cuda.max_memory_allocated())
    assert most[1] < 1.3 * most[0]


def test_training_uses_the_kernel(tmp_path: Path, taipei: Image.Image) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        taipei.crop((i * 128, 256, i * 128 + 192, 448)).save(photos / f"{i}.png")
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "own"\nscale = 2\n[downscaler]\nwidth = 16\nblocks = 1\nhead_width = 16\ncell = 1\n'
        "[upscaler]\nwidth = 16\nblocks = 2\n[training]\nbatch = 8\npatch = 64\n"
        'optimiser = "muon"\nlearning_rate = 4e-3\n'
    )
    trainer = loop._Trainer(load_recipe(path), photos, torch.device("cuda", 0))
    before = trainer.validate()
    for _ in range(60):
        trainer.update(100.0)
        trainer.minutes += 0.5
    assert fused.usable(0)
    assert trainer.validate() > before
