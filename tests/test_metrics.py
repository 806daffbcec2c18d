"""PSNR and SSIM against scikit-image on real pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from carcodec import metrics


@pytest.fixture(scope="module")
def pair(taipei: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    small = taipei.resize((384, 320), Image.Resampling.BICUBIC)
    return np.asarray(taipei), np.asarray(small.resize(taipei.size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize("grey", [False, True])
def test_ssim_is_scikit_images(pair: tuple[np.ndarray, np.ndarray], grey: bool) -> None:
    a, b = (image[..., 1] if grey else image for image in pair)
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
        channel_axis=None if grey else -1,
    )  # fmt: skip
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_psnr_is_scikit_images(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert metrics.psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255))
    inner = peak_signal_noise_ratio(a[4:-4, 4:-4], b[4:-4, 4:-4], data_range=255)
    assert metrics.psnr(a, b, border=4) == pytest.approx(inner)
    deep = [image.astype(np.uint16) * np.uint16(257) for image in pair]
    assert metrics.psnr(*deep) == pytest.approx(metrics.psnr(a, b))
    assert metrics.ssim(*deep) == pytest.approx(metrics.ssim(a, b))


def test_luma_spans_16_to_235() -> None:
    corners = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0]]], np.uint8)
    assert metrics.luma(corners)[0].tolist() == pytest.approx([16, 234.999, 81.481], abs=0.01)
    grey = np.array([[0, 255]], np.uint8)
    assert metrics.luma(grey)[0].tolist() == pytest.approx([16, 234.975], abs=0.03)


def test_edges() -> None:
    flat = np.zeros((4, 4), np.uint8)
    assert metrics.psnr(flat, flat) == math.inf
    assert math.isnan(metrics.ssim(flat, flat))
    with pytest.raises(ValueError, match="cannot compare"):
        metrics.psnr(flat, flat[:2])
    with pytest.raises(ValueError, match="cannot compare"):
        metrics.ssim(flat, flat.astype(np.uint16))
