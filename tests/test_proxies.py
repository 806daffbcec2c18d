"""The storage codecs' training stand-ins rank photos and qualities as the real codecs do."""

from __future__ import annotations

from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

from carcodec import storage
from carcodec.training import proxies

SIDE = 192
Photos = list[np.ndarray]


@pytest.fixture(scope="module")
def photos(taipei: Image.Image) -> Photos:
    """Sky, hills, streets and houses, and the same at half the size: nine squares."""
    full = np.asarray(taipei.convert("RGB"))
    half = np.asarray(taipei.convert("RGB").resize((384, 320), Image.Resampling.BICUBIC))
    corners = [(full, 0, 0), (full, 200, 0), (full, 200, 300), (full, 200, 560)]
    corners += [
        (full, 400, 100),
        (full, 400, 450),
        (half, 0, 100),
        (half, 120, 0),
        (half, 120, 190),
    ]
    return [image[y : y + SIDE, x : x + SIDE] for image, y, x in corners]


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a.astype(float) - b) ** 2).mean())


def proxied(coded: proxies.Coded, image: np.ndarray) -> tuple[float, float]:
    restored = coded.image[0].permute(1, 2, 0).numpy() * 255
    return float(coded.bits), mse(restored, image)


def real(name: str, image: np.ndarray, quality: int) -> tuple[float, float]:
    """Bits a pixel beyond those of a flat picture (headers), and MSE."""

    def encode(picture: np.ndarray) -> bytes:
        if name == "jpeg":
            return bytes(imagecodecs.jpeg8_encode(picture, level=quality, subsampling="444"))
        return storage.by_name(name).encode(picture, quality)

    data = encode(image)
    if name == "jpeg":
        restored = imagecodecs.jpeg8_decode(data)
    else:
        restored = storage.by_name(name).decode(data, (SIDE, SIDE), 3)
    return 8 * (len(data) - len(encode(np.full_like(image, 128)))) / SIDE**2, mse(restored, image)


def ranks_agree(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> None:
    for i, what in enumerate(("rate", "distortion")):
        rank = spearmanr([row[i] for row in ours], [row[i] for row in theirs]).statistic
        assert rank > 0.95, f"{what}: {rank:.3f}"


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_dct_proxy_ranks_as_the_codec(name: str, photos: Photos) -> None:
    ours, theirs = [], []
    for quality in (20, 40, 60, 80):
        step = torch.tensor([proxies.dct_step(name, quality)])
        for photo in photos:
            coded = proxies.dct_codec(tensor(photo), step, **proxies.SHAPES[name])
            ours.append(proxied(coded, photo))
            theirs.append(real(name, photo, quality))
    ranks_agree(ours, theirs)


def test_wavelet_proxy_ranks_as_jpeg_2000(photos: Photos) -> None:
    """JPEG 2000's quality is a PSNR: it is asked for the one that the proxy's step gave."""
    ours, theirs = [], []
    for step in (4.0, 8.0, 16.0, 32.0, 64.0):
        for photo in photos:
            ours.append(proxied(proxies.wavelet_codec(tensor(photo), torch.tensor([step])), photo))
            psnr = 10 * np.log10(255**2 / ours[-1][1])
            theirs.append(real("jpeg2000", photo, int(np.clip(round((psnr - 20) / 0.4), 0, 100))))
    ranks_agree(ours, theirs)


@pytest.mark.parametrize("name", ["png", "jpegls", "jpegxl"])
def test_lossless_proxy_ranks_as_the_codec(name: str, photos: Photos) -> None:
    codec = storage.by_name(name)
    ours, theirs = [], []
    for scale in (1, 2, 3, 4):
        side = SIDE // scale
        for photo in photos:
            small = np.asarray(
                Image.fromarray(photo).resize((side, side), Image.Resampling.BICUBIC)
            )
            ours.append(float(proxies.lossless_bits(tensor(small))))
            theirs.append(8 * len(codec.encode(small)) / side**2)
    assert spearmanr(ours, theirs).statistic > 0.95


CODECS = [proxies.dct_codec, proxies.wavelet_codec]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (8, 8), (13, 22), (64, 48)])
def test_a_fine_step_gives_the_image_back(
    codec: Callable[..., proxies.Coded], size: tuple[int, int]
) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    coded = codec(image, torch.tensor([1e-3, 1e-3]))
    assert coded.image.shape == image.shape
    assert torch.allclose(coded.image, image, atol=1e-4)


@pytest.mark.parametrize("codec", CODECS)
def test_the_step_is_in_levels_of_an_orthonormal_transform(
    codec: Callable[..., proxies.Coded],
) -> None:
    """Grey noise quantised finely has an error of step²/12 (a dead zone and its doubled first
    bin add a little)."""
    noise = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(2))
    image = noise.expand(1, 3, 128, 128)
    error = (codec(image, torch.tensor([6.0])).image - image).square().mean() * 255**2
    assert float(error) == pytest.approx(6**2 / 12, rel=0.3)


@pytest.mark.parametrize("codec", CODECS)
def test_gradients_pass_and_samples_do_not_mix(codec: Callable[..., proxies.Coded]) -> None:
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    image.requires_grad_()
    coded = codec(image, torch.tensor([4.0, 40.0]))
    assert coded.bits[0] > coded.bits[1]
    (coded.image[0].sum() + coded.bits[0]).backward()
    assert image.grad is not None
    assert bool((image.grad[0] != 0).any())
    assert not bool(image.grad[1].any())
    # straight through: the image's gradient is that of doing nothing
    plain = torch.rand(1, 3, 16, 24, requires_grad=True)
    (codec(plain, torch.tensor([20.0])).image * image.detach()[:1]).sum().backward()
    assert plain.grad is not None
    assert torch.allclose(plain.grad, image.detach()[:1], atol=1e-4)
