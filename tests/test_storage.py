"""The LR image's codecs: lossless is bit-exact, lossy gets better with quality."""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from carcodec import av1, j2k, metrics, packets, storage
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
def test_noise_may_take_more_than_it_is(codec: StorageCodec) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(back(codec, noise), noise)
    assert np.array_equal(back(codec, noise[..., 0]), noise[..., 0])


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


def avif_of(image: storage.Pixels, quality: int = 40, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "AVIF", quality=quality, **options)
    return buffer.getvalue()


def test_avif_is_kept_without_its_container(taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 349, 393)))
    codec = storage.by_name("avif")
    for picture in (image, np.ascontiguousarray(image[..., 1])):
        for quality in (3, 60, None):
            data = codec.encode(picture, quality)
            file = av1.in_avif(data)
            assert data[4:8] != b"ftyp" and len(data) < len(file) - 250
            assert av1.bare(file) == data and av1.in_avif(file) == file
            header = av1.sequence_header(data)
            assert (header.width, header.height) == (149, 93)
            # any decoder takes it, and sees what it saw in the encoder's own file
            with Image.open(io.BytesIO(file)) as opened:
                found = np.asarray(opened.convert("RGB"))
            decoded = codec.decode(data, (149, 93), 1 if picture.ndim == 2 else 3)
            assert np.array_equal(found if decoded.ndim == 3 else found[..., 1], decoded)
    # as it was written before, a whole file
    old = storage.by_number(5)
    assert old.name == "avif" and storage.by_number(7) == old
    whole = avif_of(image)
    with Image.open(io.BytesIO(whole)) as opened:
        assert np.array_equal(old.decode(whole, (149, 93), 3), np.asarray(opened))


@pytest.mark.parametrize("sampling", ["4:2:0", "4:2:2", "4:4:4", "4:0:0"])
@pytest.mark.parametrize("full", [False, True])
def test_every_kind_of_av1_comes_back(sampling: str, full: bool, taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 300, 380)))
    kind = {"subsampling": sampling, "range": "full" if full else "limited"}
    file = avif_of(image, **kind)
    bare = av1.bare(file)
    again = av1.in_avif(bare)
    assert len(bare) < len(file) - 250
    pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in (file, again)]
    assert np.array_equal(*pictures)
    header = av1.sequence_header(bare)
    assert header.full == full and header.mono == (sampling == "4:0:0")
    expected = {"4:2:2": (1, 0), "4:4:4": (0, 0)}.get(sampling, (1, 1))
    assert header.subsampling == expected
    deep = imagecodecs.avif_encode(image.astype(np.uint16) << 2, level=60, bitspersample=10)
    assert av1.sequence_header(av1.bare(deep)).high
    back_again = imagecodecs.avif_decode(av1.in_avif(av1.bare(deep)))
    assert np.array_equal(back_again, imagecodecs.avif_decode(deep))


def test_a_container_that_says_more_is_kept(taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 264, 348)))
    alpha = np.dstack((image, image[..., 0]))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a hill"
    whole = [avif_of(image, exif=exif), avif_of(alpha), avif_of(image, icc_profile=profile)]
    for file in whole:
        assert av1.bare(file) == file
    sound = avif_of(image)
    for end in (0, 3, 40, 200, len(sound) - 1):
        assert av1.bare(sound[:end]) == sound[:end]


@given(data=st.binary(max_size=80))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    assert av1.bare(data) == data or av1.bare(av1.in_avif(av1.bare(data)))
    try:
        header = av1.sequence_header(data)
    except ValueError:
        return
    assert header.width > 0 and av1.in_avif(data)


def test_jpeg2000_carries_no_comment(taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 264, 348)))
    codec = storage.by_name("jpeg2000")
    data = codec.encode(image)
    plain = imagecodecs.jpeg2k_encode(
        image, level=0, reversible=True, codecformat="j2k", resolutions=6
    )
    assert len(plain) - 60 < len(data) < len(plain) - 30
    assert b"OpenJPEG" in plain
    assert np.array_equal(imagecodecs.jpeg2k_decode(plain), codec.decode(data, (64, 48), 3))
    assert b"OpenJPEG" not in data + codec.encode(image, 30)


def test_jpeg2000_meets_its_quality_in_fewer_bytes(taipei: Image.Image) -> None:
    codec = storage.by_name("jpeg2000")
    for image in (np.asarray(taipei), np.asarray(taipei.convert("L"))):
        for quality in (5, 20.5, 40):
            level = 20 + 0.4 * quality
            data = codec.encode(image, quality)
            plain = imagecodecs.jpeg2k_encode(
                image, level=level, reversible=False, codecformat="j2k", resolutions=6
            )
            decoded = [imagecodecs.jpeg2k_decode(d) for d in (codec.in_file(data), plain)]
            errors = [metrics.psnr(image, np.asarray(d)) for d in decoded]
            assert errors[0] > level - 0.5 and errors[0] > errors[1] - 0.1
            assert len(data) < len(plain)


@settings(max_examples=60)
@given(
    image=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 150), st.integers(1, 150)).flatmap(
            lambda s: st.sampled_from((s, (*s, 3)))
        ),
        elements=st.integers(0, 255),
    ),
    quality=st.floats(0, 100),
)
def test_jpeg2000_is_kept_without_its_headers(image: Any, quality: float) -> None:
    codec = storage.by_name("jpeg2000")
    data = codec.encode(image, quality)
    size = image.shape[1], image.shape[0]
    whole = codec.in_file(data)
    assert j2k.bare(whole) == data and j2k.codestream(whole) == whole
    assert len(whole) - len(data) > 70 and j2k.size(data) == j2k.size(whole) == size
    decoded = codec.decode(data, size, 3 if image.ndim == 3 else 1)
    # any decoder takes it; two builds of OpenJPEG may round a sample in a million differently
    with Image.open(io.BytesIO(whole)) as opened:
        other = np.abs(np.asarray(opened).astype(int) - decoded)
        assert other.max() <= 1 and (other > 0).sum() <= 3
    # as it was written before, a whole codestream
    old = storage.by_number(3)
    assert old is storage.by_number(8) is codec
    assert np.array_equal(old.decode(whole, size, 3 if image.ndim == 3 else 1), decoded)


def test_other_jpeg2000_headers_are_kept(taipei: Image.Image) -> None:
    image = np.asarray(taipei.crop((200, 300, 364, 448)))
    whole = [imagecodecs.jpeg2k_encode(image, level=level, codecformat="j2k") for level in (0, 30)]
    for options in ({}, {"irreversible": True, "mct": 1, "tile_size": (64, 64)}):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG2000", no_jp2=True, **options)
        whole.append(buffer.getvalue())
    for stream in whole:
        assert j2k.bare(stream) == stream == j2k.codestream(stream)
        assert j2k.size(stream) == (164, 148)
    sound = j2k.codestream(storage.by_name("jpeg2000").encode(image, 30))
    assert j2k.bare(sound) != sound
    for end in (0, 3, 41, 100, len(sound) - 1):
        assert j2k.bare(sound[:end]) == sound[:end]


@given(data=st.binary(max_size=30))
def test_no_bytes_crash_the_jpeg2000_parser(data: bytes) -> None:
    assert j2k.bare(data) == data
    with contextlib.suppress(ValueError, struct.error):
        assert min(j2k.size(data)) > 0 and j2k.codestream(data)[:2] == b"\xff\x4f"
    with contextlib.suppress(StorageError):
        storage.by_name("jpeg2000").decode(data, (3, 2), 1)


grids = st.tuples(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1, 3]))
blocks = st.builds(
    packets.Block, st.integers(0, 30), st.integers(1, 164), st.binary(min_size=1, max_size=300)
)


@settings(max_examples=60)
@given(shape=grids, levels=st.integers(0, 6), data=st.data())
def test_packets_are_read_as_they_were_written(
    shape: tuple[int, int, int], levels: int, data: st.DataObject
) -> None:
    """Any blocks in any bands, bytes of ones in their headers included."""
    width, height, channels = shape
    size = (width, height)
    empty = [
        [packets.Band(*grid, [None] * grid[0] * grid[1]) for grid in packets.grids(size, levels, n)]
        for n in range(levels + 1)
        for _ in range(channels)
    ]
    some = data.draw(st.lists(blocks, min_size=1, max_size=6))
    random = data.draw(st.randoms(use_true_random=False))
    for bands in empty:
        for band in bands:
            for i in range(len(band.blocks)):
                band.blocks[i] = random.choice([None, *some])
    written = packets.write(empty)
    assert packets.read(written, size, channels, levels) == empty
    with pytest.raises((ValueError, IndexError)):
        packets.read(written + b"\0", size, channels, levels)


@pytest.mark.parametrize("size", [(500, 381), (201, 67), (64, 64), (1, 90), (3, 1)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_openjpeg_reads_packets_that_were_written_again(
    size: tuple[int, int], mode: str, taipei: Image.Image
) -> None:
    codec = storage.by_name("jpeg2000")
    image = np.asarray(taipei.convert(mode).crop((0, 200, size[0], 200 + size[1])))
    for quality in (0, 20, 60):
        data = codec.encode(image, quality)
        levels, channels, *described, at = j2k.described(data)
        assert tuple(described) == size
        read = packets.read(data[at:], size, channels, levels)
        again = data[:at] + packets.write(read)
        decoded = [codec.decode(one, size, channels) for one in (data, again)]
        assert len(again) == len(data) and np.array_equal(*decoded)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("quality", [4, 12, 25, 40])
def test_jpeg2000_takes_effort(mode: str, quality: int, taipei: Image.Image) -> None:
    """Fewer bytes, and nearer to the image than as many bytes are without the effort."""
    codec = storage.by_name("jpeg2000")
    image = np.asarray(taipei.convert(mode))
    size, channels = (image.shape[1], image.shape[0]), len(mode)
    usual = codec.encode(image, quality)
    assert codec.encode(image, quality, effort=0) == usual
    short = codec.encode(image, quality, effort=4)
    assert codec.encode(image, quality, threads=1, effort=9) == short
    at_least = 0.01 if quality < 20 else 0.001
    assert len(short) < len(usual) * (1 - at_least)
    rival, coarser = usual, float(quality)
    while len(rival) > len(short):
        coarser -= 0.05
        rival = codec.encode(image, max(coarser, 0))
        if coarser < 0:  # no file is as small
            return
    better, worse = (
        metrics.psnr(image, codec.decode(one, size, channels)) for one in (short, rival)
    )
    assert better > worse
    with Image.open(io.BytesIO(codec.in_file(short))) as opened:  # any decoder takes it
        far = np.asarray(opened, int) - codec.decode(short, size, channels)
    assert np.abs(far).max() <= 1  # two builds round alike but for a few samples
    assert codec.encode(image, effort=9) == codec.encode(image)  # lossless


@settings(max_examples=40)
@given(image=images, quality=st.floats(0, 100))
def test_effort_takes_any_image(image: storage.Pixels, quality: float) -> None:
    codec = storage.by_name("jpeg2000")
    size, channels = (image.shape[1], image.shape[0]), 1 if image.ndim == 2 else 3
    usual, short = (codec.encode(image, quality, effort=effort) for effort in (3, 4))
    assert len(short) <= len(usual)
    decoded = [codec.decode(one, size, channels).astype(int) for one in (usual, short)]
    lost = [np.square(image - one).sum() for one in decoded]
    assert lost[1] <= lost[0] * (1 + (len(usual) - len(short)) / len(usual))


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
        (1, "png"), (2, "jpegls"), (8, "jpeg2000"), (4, "jpegxl"), (7, "avif"), (6, "webp"),
    ]  # fmt: skip
