"""The LR image's codecs: lossless is bit-exact, lossy gets better with quality."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from carcodec import storage
from carcodec.errors import StorageError
from carcodec.storage import STORAGES, StorageCodec

every = pytest.mark.parametrize("codec", STORAGES, ids=lambda c: c.name)
lossy = pytest.mark.parametrize("codec", [c for c in STORAGES if c.lossy], ids=lambda c: c.name)

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
images = shapes.flatmap(
    lambda s: st.sampled_from([s, (*s, 3)]).flatmap(lambda t: hnp.arrays(np.uint8, t))
)


def back(codec: StorageCodec, image: storage.Pixels, quality: int | None = None) -> storage.Pixels:
    data = codec.encode(image, quality)
    return codec.decode(data, (image.shape[1], image.shape[0]), 1 if image.ndim == 2 else 3)


@every
@settings(max_examples=30)
@given(image=images)
def test_lossless_is_bit_exact(codec: StorageCodec, image: storage.Pixels) -> None:
    assert np.array_equal(back(codec, image), image)


@every
def test_lossless_is_bit_exact_on_a_photo(codec: StorageCodec, taipei: Image.Image) -> None:
    image = np.asarray(taipei)
    assert np.array_equal(back(codec, image), image)
    assert np.array_equal(back(codec, image[..., 1]), image[..., 1])


@every
def test_the_number_of_threads_never_shows(codec: StorageCodec, taipei: Image.Image) -> None:
    image = np.asarray(taipei)
    for quality in (None, 60) if codec.lossy else (None,):
        one, three = (codec.encode(image, quality, threads) for threads in (1, 3))
        assert one == three
        size = (image.shape[1], image.shape[0])
        decoded = [codec.decode(one, size, 3, threads) for threads in (1, 3)]
        assert np.array_equal(*decoded)


@lossy
@pytest.mark.parametrize("grey", [False, True])
def test_quality_buys_fidelity_with_bytes(
    codec: StorageCodec, grey: bool, taipei: Image.Image
) -> None:
    image = np.asarray(taipei)[300:492, 200:456]
    image = image[..., 1] if grey else image
    sizes = [len(codec.encode(image, q)) for q in (10, 50, 90)]
    errors = [
        float(((back(codec, image, q) - image.astype(float)) ** 2).mean()) for q in (10, 50, 90)
    ]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert sizes[1] < len(codec.encode(image))
    assert errors[2] < 65  # 30 dB


@lossy
@pytest.mark.parametrize("shape", [(1, 1), (1, 9, 3), (9, 1, 3), (2, 3)])
@pytest.mark.parametrize("quality", [0, 50, 100])
def test_lossy_takes_any_size(codec: StorageCodec, shape: tuple[int, ...], quality: int) -> None:
    image = np.full(shape, 130, np.uint8)
    assert abs(back(codec, image, quality).astype(int) - 130).max() <= 12


def test_green_difference_shrinks_jpegls(taipei: Image.Image) -> None:
    image = np.asarray(taipei)
    ours = len(storage.by_name("jpegls").encode(image))
    # about 20 % on daylight photos; this night scene's colours are far from grey
    assert ours < 0.96 * len(imagecodecs.jpegls_encode(image))


@every
def test_a_codestream_of_another_size_is_refused(codec: StorageCodec) -> None:
    big = codec.encode(np.zeros((3000, 2000, 3), np.uint8))
    with pytest.raises(StorageError):
        codec.decode(big, (10, 10), 3)
    small = codec.encode(np.zeros((4, 6, 3), np.uint8))
    for size, channels in (((60000, 65000), 3), ((4, 6), 3), ((6, 5), 3), ((6, 3), 3)):
        with pytest.raises(StorageError):
            codec.decode(small, size, channels)


@every
def test_channels_must_match(codec: StorageCodec) -> None:
    if codec.name in ("webp", "avif"):  # may hold grey as RGB
        return
    with pytest.raises(StorageError):
        codec.decode(codec.encode(np.zeros((4, 6, 3), np.uint8)), (6, 4), 1)
    with pytest.raises(StorageError):
        codec.decode(codec.encode(np.zeros((4, 6), np.uint8)), (6, 4), 3)


@every
@given(data=st.data())
@settings(max_examples=25)
def test_damage_never_crashes(codec: StorageCodec, data: st.DataObject) -> None:
    """Any result or a StorageError; nothing else may come out."""
    sound = codec.encode(np.arange(14 * 12 * 3, dtype=np.uint8).reshape(14, 12, 3))
    cut = sound[: data.draw(st.integers(0, len(sound)))]
    for damaged in (cut, data.draw(st.binary(max_size=60))):
        try:
            image = codec.decode(damaged, (12, 14), 3)
        except StorageError:
            continue
        assert image.shape == (14, 12, 3)


def test_refusals_say_what_to_do() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    with pytest.raises(StorageError, match="choose one of png, jpegls"):
        storage.by_name("gif")
    with pytest.raises(StorageError, match="upgrade"):
        storage.by_number(99)
    with pytest.raises(StorageError, match="lossless only"):
        storage.by_name("png").encode(image, 50)
    with pytest.raises(StorageError, match="0 to 100"):
        storage.by_name("avif").encode(image, 101)
    with pytest.raises(StorageError, match="at most 16383"):
        storage.by_name("webp").encode(np.zeros((1, 20000, 3), np.uint8))


def test_numbers_are_those_of_the_format_page() -> None:
    assert [(c.number, c.name) for c in STORAGES] == [
        (1, "png"), (2, "jpegls"), (3, "jpeg2000"), (4, "jpegxl"), (5, "avif"), (6, "webp"),
    ]  # fmt: skip
