"""PSNR, SSIM and MS-SSIM against reference implementations on real pictures."""

from __future__ import annotations

import math
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_msssim import ms_ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from carcodec import metrics
from carcodec.errors import MetricError


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


def test_large_pictures_are_measured_in_strips(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (np.tile(image, (4, 2, 1)) for image in pair)
    expected = structural_similarity(
        a[..., 1], b[..., 1], gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=255,
    )  # fmt: skip
    assert metrics.ssim(a[..., 1], b[..., 1]) == pytest.approx(expected, abs=1e-6)
    assert metrics.psnr(a, b) == pytest.approx(metrics.psnr(*pair))
    tracemalloc.start()
    metrics.ssim(a, b)
    metrics.psnr(a, b)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 * 8 * 3 * 2**18  # a dozen arrays of a strip, and some


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


@pytest.mark.parametrize("grey", [False, True])
def test_ms_ssim_is_pytorch_msssims(pair: tuple[np.ndarray, np.ndarray], grey: bool) -> None:
    a, b = (metrics.luma(image) if grey else image.astype(np.float64) for image in pair)
    tensors = [torch.from_numpy(np.atleast_3d(image)).movedim(-1, 0)[None] for image in (a, b)]
    expected = float(ms_ssim(*tensors, data_range=255))
    assert metrics.ms_ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_at_odd_sizes_and_edges(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    whole, odd = metrics.ms_ssim(a, b), metrics.ms_ssim(a[:-1, :-3], b[:-1, :-3])
    assert odd == pytest.approx(whole, abs=0.002)
    assert metrics.ms_ssim(a, a) == pytest.approx(1)
    assert math.isnan(metrics.ms_ssim(a[:175], b[:175]))
    assert 0 <= metrics.ms_ssim(a, 255 - a) < whole  # a negative structure counts as none


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda m: m.name)
def test_every_metric_prefers_the_better_picture(
    metric: metrics.Metric, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    if metric.name == "butteraugli" and not shutil.which("butteraugli_main"):
        with pytest.raises(MetricError, match="install libjxl-devtools"):
            metrics.by_name("butteraugli")
        return
    a, b = (image[200:440, 200:440].copy() for image in pair)
    between = ((a.astype(np.uint16) + b) // 2).astype(np.uint8)
    compute = metrics.by_name(metric.name).compare
    worse, better = metric.scale(compute(a, b)), metric.scale(compute(a, between))
    assert worse < better
    assert metric.title.split(",")[0] in metric.axis


def test_ssimulacra2_of_equal_pictures_is_100(pair: tuple[np.ndarray, np.ndarray]) -> None:
    part = pair[0][:200, :200].copy()
    assert metrics.by_name("ssimulacra2").compare(part, part) == pytest.approx(100)
