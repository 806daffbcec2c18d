"""What an upscaler is told of JPEG 2000: the step that a whole image's quality came to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from carcodec import coarseness, codec, storage

J2K = storage.by_name("jpeg2000")


def step(image: np.ndarray, quality: float) -> int:
    return coarseness.told("step", J2K, image, quality)


@pytest.fixture(scope="module")
def hill(taipei: Image.Image) -> np.ndarray:
    return np.asarray(taipei.crop((0, 150, 256, 310)))


@pytest.fixture(scope="module")
def town(taipei: Image.Image) -> np.ndarray:
    return np.asarray(taipei.crop((256, 400, 512, 560)))


def test_the_codecs_own_quality_is_told_as_it_is(town: np.ndarray) -> None:
    assert coarseness.told("quality", J2K, town, 27.6) == 28


def test_the_same_quality_is_a_coarser_step_in_a_smooth_photo(
    hill: np.ndarray, town: np.ndarray
) -> None:
    for quality in (15, 30, 45):
        assert step(hill, quality) < step(town, quality) - 5


def test_more_quality_is_a_finer_step(hill: np.ndarray, town: np.ndarray) -> None:
    for image in (hill, town):
        found = [step(image, quality) for quality in (1, 10, 20, 30, 40, 50, 60)]
        assert found == sorted(found) and found[0] < found[-1] - 30


def test_where_quantisation_is_fine_the_step_is_that_of_the_noise(town: np.ndarray) -> None:
    grey = np.ascontiguousarray(town[..., 1])
    for quality in (50, 60, 70):
        data = J2K.encode(grey, quality)
        noise = np.square(J2K.decode(data, grey.shape[::-1], 1).astype(float) - grey).mean()
        told = coarseness.told("step", J2K, grey, quality, data)
        assert abs(told - coarseness.told_of_step(math.sqrt(12 * noise))) <= 3  # 1.5 dB


def test_grey_is_told_what_colour_without_colour_is(town: np.ndarray) -> None:
    grey = np.ascontiguousarray(town[..., 1])
    colour = np.repeat(grey[..., None], 3, 2)
    assert abs(step(grey, 25) - step(colour, 25)) <= 2


def test_where_a_step_of_quality_changes_nothing_a_wider_one_is_taken(taipei: Image.Image) -> None:
    sky = np.asarray(taipei.crop((0, 0, 256, 160)))
    assert J2K.encode(sky, 45) == J2K.encode(sky, 42.5)
    assert step(sky, 45) < step(sky, 60) < 60


@pytest.mark.parametrize("side", [1, 3, 16])
@pytest.mark.parametrize("quality", [0, 50, 100])
def test_tiny_and_flat_images(side: int, quality: float) -> None:
    flat = np.full((side, side, 3), 90, np.uint8)
    assert 0 <= step(flat, quality) <= 100


@given(st.floats(0.01, 4000), st.floats(0.01, 4000))
def test_a_coarser_step_is_never_told_as_a_finer_one(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= coarseness.told_of_step(high) <= coarseness.told_of_step(low) <= 100


def test_effort_is_not_told(hill: np.ndarray) -> None:
    """It saves bytes that say little: the step stays what it was."""
    usual, short = (
        codec.encode(
            hill, model="car-x1-jpeg2000", storage_codec="jpeg2000", quality=25, effort=effort
        )
        for effort in (3, 4)
    )
    assert len(short.data) < len(usual.data)
    assert short.header.quality == usual.header.quality
