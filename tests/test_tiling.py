"""The tile size never shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from carcodec import codec, engines, tiling, zoo


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(0, 40))
def test_spans_cover_exactly_with_halo_on_both_sides(length: int, window: int, halo: int) -> None:
    assume(window > 2 * halo)
    found = tiling.spans(length, window, halo)
    kept = [i for _, _, first, last in found for i in range(first, last)]
    assert kept == list(range(length))
    sides = {stop - start for start, stop, _, _ in found}
    assert len(sides) == 1 and max(sides) <= min(length, window)
    # no fewer would do, and of what is read little is neither kept nor halo
    fewest = 1 if length <= window else -(-(length - 2 * halo) // (window - 2 * halo))
    assert len(found) == fewest
    assert fewest * max(sides) <= length + (2 * halo + 16) * fewest
    for start, stop, first, last in found:
        assert 0 <= start <= first < last <= stop <= length
        assert first == 0 or first - start >= halo
        assert last == length or stop - last >= halo


@given(st.integers(2, 600), st.integers(5, 60), st.integers(0, 10))
def test_even_spans_stay_even(half: int, window: int, halo: int) -> None:
    assume(window > 2 * halo)
    for span in tiling.spans(2 * half, 2 * window, 2 * halo):
        assert all(edge % 2 == 0 for edge in span)


def test_too_small_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        tiling.spans(100, 20, 10)


@pytest.mark.parametrize("engine", engines.available())
def test_tiles_equal_one_pass(engine: str, tiny: zoo.ModelCard, taipei: Image.Image) -> None:
    colour = np.asarray(taipei.crop((200, 300, 439, 477)))  # odd sides
    whole = codec.downscale(colour, tiny, engine, 2, tile=4096)
    for tile in (22, 36, 64):
        tiled = codec.downscale(colour, tiny, engine, 2, tile=tile)
        difference = np.abs(tiled.astype(int) - whole)
        # GridSample's coordinates are shares of a tile, and so are rounded otherwise in each
        assert difference.max() <= (engine == "openvino")
        assert (difference > 0).mean() <= 5e-4
    size = (colour.shape[1], colour.shape[0])
    restored = codec.upscale(whole, size, 8, tiny, engine, 2, tile=4096).astype(int)
    for tile in (13, 40, 64):
        tiled = codec.upscale(whole, size, 8, tiny, engine, 2, tile=tile)
        difference = np.abs(tiled - restored)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 1e-4


def test_progress_rises_to_one(tiny: zoo.ModelCard, photo: Image.Image) -> None:
    heard: list[float] = []
    codec.downscale(np.asarray(photo), tiny, tile=24, progress=heard.append)
    assert len(heard) > 2
    assert heard == sorted(heard)
    assert heard[-1] == 1
