"""Packets of a JPEG 2000 codestream: read, written again, and shortened where bytes buy too little.

OpenJPEG cuts a code block's bytes where a coding pass ends, and leaves up to three more there than
it has seen to be needed; often the decoder, which goes on with ones, reads the same without them.
Others say so little that it costs more to store them. What a byte less changes in a block is seen
in the wavelet transform of what the decoder makes of it, for all blocks at once.

Only codestreams as :mod:`.j2k` describes them: one tile and layer, no precincts, code blocks of
64×64. Source: ISO/IEC 15444-1, annex B (B.5 bands, B.10 packet headers, B.10.2 tag trees) and F
(the 9-7 filter). Distortion against rate as in Taubman, High performance scalable image
compression with EBCOT (IEEE Trans. Image Processing 9(7), 2000).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from carcodec import j2k, metrics

__all__ = ["Band", "Block", "grids", "read", "shortened", "write"]

_SIDE = 64  # of a code block
_MOST = 4  # bytes that a block may lose
_SPARE = 0.6  # best of 0.05 to 1.3 on three photos at four qualities
_NEVER = 1 << 20  # more missing bit planes than there are
_PRECINCT = 1 << 15  # larger images have several packets where one is read here

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float32]
_Where = tuple[int, int, int]  # packet, band, block


@dataclass(frozen=True)
class Block:
    """What a packet holds of a code block: missing bit planes, coding passes, and their bytes."""

    missing: int
    passes: int
    data: bytes


@dataclass(frozen=True)
class Band:
    """A band of one component: its blocks in rows, ``None`` where all is zero."""

    columns: int
    rows: int
    blocks: list[Block | None]


class _Bits:
    """The bits of a packet header: after a byte of ones the next has seven (B.10.1)."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self.byte = self.left = 0

    def one(self) -> int:
        if not self.left:
            self.left = 7 if self.byte == 0xFF else 8
            self.byte = self.data[self.at]
            self.at += 1
        self.left -= 1
        return self.byte >> self.left & 1

    def number(self, bits: int) -> int:
        value = 0
        for _ in range(bits):
            value = 2 * value + self.one()
        return value

    def end(self) -> int:
        """Where the packet's body begins."""
        return self.at + (self.byte == 0xFF)


class _Tree:
    """A tag tree, read or written: numbers of a grid, of which each node knows its part's least."""

    def __init__(self, columns: int, rows: int, leaves: list[int] | None = None) -> None:
        self.widths, size = [columns], (columns, rows)
        self.nodes = [leaves or [0] * columns * rows]
        while size != (1, 1):
            (across, down), size = size, (-(-size[0] // 2), -(-size[1] // 2))
            above = [_NEVER] * (size[0] * size[1])
            for y in range(down):
                for x in range(across):
                    at = (y >> 1) * size[0] + (x >> 1)
                    above[at] = min(above[at], self.nodes[-1][y * across + x])
            self.widths.append(size[0])
            self.nodes.append(above)
        self.least = [[0] * len(nodes) for nodes in self.nodes]
        self.known = [[False] * len(nodes) for nodes in self.nodes]

    def below(self, x: int, y: int, limit: int, bit: Callable[[int], int]) -> bool:
        """Whether the number at ``x``, ``y`` is less than ``limit``.

        ``bit`` takes each bit of the answer to write it, or reads and returns it.
        """
        least = 0
        for level in range(len(self.nodes) - 1, -1, -1):
            at = (y >> level) * self.widths[level] + (x >> level)
            least = max(least, self.least[level][at])
            while least < limit and not self.known[level][at]:
                if bit(int(least >= self.nodes[level][at])):
                    self.known[level][at] = True
                else:
                    least += 1
            self.least[level][at] = least
        return least < limit


def read(packets: bytes, size: tuple[int, int], channels: int, levels: int) -> list[list[Band]]:
    """The bands of each packet: of each resolution from the lowest, the components' in turn.

    Args:
        packets: what stands between SOD and EOC.
        size: width and height of the image.
        levels: of the wavelet transform.

    Raises:
        ValueError, IndexError: they cannot be such packets.
    """
    at, found = 0, []
    for level in range(levels + 1):
        for _ in range(channels):
            bits, bands, lengths = _Bits(packets, at), [], []
            present = bits.one()
            for columns, rows in grids(size, levels, level):
                blocks: list[Block | None] = [None] * (columns * rows)
                bands.append(Band(columns, rows, blocks))
                if present and blocks:
                    lengths += _read_band(bits, bands[-1])
            at = bits.end()
            for band, index, length in lengths:
                block = band.blocks[index]
                assert block is not None
                band.blocks[index] = replace(block, data=packets[at : at + length])
                at += length
            found.append(bands)
    if at != len(packets):
        raise ValueError("packets of another kind")
    return found


def write(packets: list[list[Band]]) -> bytes:
    """The packets whose bands these are: what :func:`read` reads."""
    found = []
    for bands in packets:
        if not any(block for band in bands for block in band.blocks):
            found.append(b"\0")
            continue
        bits = [1]
        for band in bands:
            if band.blocks:
                _write_band(bits, band)
        found.append(_stuffed(bits))
        found += [block.data for band in bands for block in band.blocks if block]
    return b"".join(found)


def shortened(payload: bytes, image: Pixels, decode: Callable[[bytes], Pixels]) -> bytes:
    """A codestream without its headers, and without the bytes that are not worth their place.

    Where a doubled rate buys 3 dB, D falls as 1/R and the last bit has bought D/R. A byte goes if
    what it takes from the squared error costs more; with some to spare, as what blocks cost
    together is more than their sum.

    Args:
        image: what was encoded, ``(h, w)`` or ``(h, w, 3)``.
        decode: what such a payload decodes to.
    """
    levels, channels, width, height, at = j2k.described(payload)
    if max(width, height) > _PRECINCT:
        return payload
    packets = read(payload[at:], (width, height), channels, levels)
    where = [
        (p, b, i)
        for p, bands in enumerate(packets)
        for b, band in enumerate(bands)
        for i, block in enumerate(band.blocks)
        if block
    ]

    def less(cuts: dict[_Where, int]) -> bytes:
        cut = [[replace(band, blocks=band.blocks.copy()) for band in bands] for bands in packets]
        for (p, b, i), count in cuts.items():
            block = cut[p][b].blocks[i]
            assert block is not None
            cut[p][b].blocks[i] = replace(block, data=_cut(block.data, count))
        return payload[:at] + write(cut)

    whole = decode(payload)
    lost = image.astype(np.int16) - whole
    error = metrics.squared_error(image, whole)
    buys = _SPARE * error / (8 * len(payload))
    changes = [
        decode(less(dict.fromkeys(where, count))).astype(np.int16) - whole
        for count in range(1, _MOST + 1)
    ]
    costs: dict[_Where, list[float]] = {key: [0.0] for key in where}
    for channel in range(channels):
        weights = _weights(levels, channel, channels)
        lost_bands = _bands(_component(lost, channel), levels)
        for change in changes:
            changed = _bands(_component(change, channel), levels)
            for level, (found, before) in enumerate(zip(changed, lost_bands, strict=True)):
                p = level * channels + channel
                for b, weight in enumerate(weights[level]):
                    more = found[b] * (found[b] - 2 * before[b])
                    for i, block in enumerate(packets[p][b].blocks):
                        if block:
                            y, x = (_SIDE * n for n in divmod(i, packets[p][b].columns))
                            part = more[y : y + _SIDE, x : x + _SIDE]
                            costs[p, b, i].append(float(part.sum(dtype=np.float64)) * weight)
    best = {
        key: min(range(_MOST + 1), key=lambda n: cost[n] - 8 * n * buys)
        for key, cost in costs.items()
    }
    short = less(best)
    dearer = metrics.squared_error(image, decode(short)) - error
    return short if dearer < 8 * (len(payload) - len(short)) * buys else payload


def _cut(data: bytes, less: int) -> bytes:
    """At least a byte stays. Of ones at the end the decoder has as many as it wants."""
    data = data[: max(len(data) - less, 1)]
    return data.rstrip(b"\xff") or data[:1]


def grids(size: tuple[int, int], levels: int, level: int) -> list[tuple[int, int]]:
    """Columns and rows of code blocks of a resolution's bands (B-15)."""
    depth = levels - level + (level > 0)
    half = 1 << (depth - 1) if level else 0
    found = []
    for right, down in ((0, 0),) if not level else ((half, 0), (0, half), (half, half)):
        across, along = (
            -(-(side - begin) // (_SIDE << depth))
            for side, begin in zip(size, (right, down), strict=True)
        )
        found.append((across, along) if min(across, along) > 0 else (0, 0))
    return found


def _read_band(bits: _Bits, band: Band) -> list[tuple[Band, int, int]]:
    """Fills in the band's blocks, but for their bytes; says how many these are."""
    included, missing = _Tree(band.columns, band.rows), _Tree(band.columns, band.rows)
    found = []

    def bit(written: int) -> int:
        return bits.one()

    for i in range(len(band.blocks)):
        y, x = divmod(i, band.columns)
        if not included.below(x, y, 1, bit):
            continue
        planes = 0
        while not missing.below(x, y, planes + 1, bit):
            planes += 1
        passes = _read_passes(bits)
        length = 3 + passes.bit_length() - 1
        while bits.one():
            length += 1
        band.blocks[i] = Block(planes, passes, b"")
        found.append((band, i, bits.number(length)))
    return found


def _write_band(bits: list[int], band: Band) -> None:
    included = _Tree(band.columns, band.rows, [int(block is None) for block in band.blocks])
    planes = [block.missing if block else _NEVER for block in band.blocks]
    missing = _Tree(band.columns, band.rows, planes)

    def bit(written: int) -> int:
        bits.append(written)
        return written

    for i, block in enumerate(band.blocks):
        y, x = divmod(i, band.columns)
        included.below(x, y, 1, bit)
        if block:
            for limit in range(1, block.missing + 2):
                missing.below(x, y, limit, bit)
            bits += _passes(block.passes)
            several = block.passes.bit_length() - 1
            length = max(len(block.data).bit_length() - several, 3)
            bits += [*[1] * (length - 3), 0, *_number(len(block.data), length + several)]


def _read_passes(bits: _Bits) -> int:
    """Table B.4."""
    for first in (1, 2):
        if not bits.one():
            return first
    for first, width in ((3, 2), (6, 5)):
        if (value := bits.number(width)) < (1 << width) - 1:
            return first + value
    return 37 + bits.number(7)


def _passes(count: int) -> list[int]:
    if count < 3:
        return [0] if count == 1 else [1, 0]
    if count < 6:
        return [1, 1, *_number(count - 3, 2)]
    if count < 37:
        return [1] * 4 + _number(count - 6, 5)
    return [1] * 9 + _number(count - 37, 7)


def _number(value: int, bits: int) -> list[int]:
    return [value >> bit & 1 for bit in range(bits - 1, -1, -1)]


def _stuffed(bits: list[int]) -> bytes:
    found, at = bytearray(), 0
    while at < len(bits) or found[-1] == 0xFF:
        width = 7 if found and found[-1] == 0xFF else 8
        value = 0
        for bit in bits[at : at + width]:
            value = 2 * value + bit
        found.append(value << max(at + width - len(bits), 0))
        at += width
    return bytes(found)


# ---- the irreversible colour transform and the 9-7 filter, forwards

_COLOURS = np.array(  # G.3
    [[0.299, 0.587, 0.114], [-0.16875, -0.33126, 0.5], [0.5, -0.41869, -0.08131]], np.float32
)
_LIFTS = (-1.586134342, -0.052980118, 0.882911075, 0.443506852)  # table F.4
_GAIN = 1.230174105


def _component(image: NDArray[np.int16], channel: int) -> Plane:
    if image.ndim == 2:
        return image.astype(np.float32)
    found: Plane = image.astype(np.float32) @ _COLOURS[channel]
    return found


def _bands(plane: Plane, levels: int) -> list[tuple[Plane, ...]]:
    """LL of the last level, then HL, LH and HH of each, the coarsest first."""
    found: list[tuple[Plane, ...]] = []
    for _ in range(levels):
        low, high = _split(plane)
        (plane, right), (lower, corner) = ((a.T, b.T) for a, b in (_split(low.T), _split(high.T)))
        found.append((right, lower, corner))
    return [(plane,), *found[::-1]]


def _split(x: Plane) -> tuple[Plane, Plane]:
    """Even rows smooth, odd rows detail, mirrored at both ends (F.4.8)."""
    if len(x) == 1:
        return x, x[1:]
    low, high = x[::2].copy(), x[1::2].copy()
    for step, lift in enumerate(_LIFTS):
        if step % 2 == 0:
            after = low[1:] if len(low) > len(high) else np.concatenate((low[1:], low[-1:]))
            high += np.float32(lift) * (low[: len(high)] + after)
        else:
            before = np.concatenate((high[:1], high))[: len(low)]
            after = high if len(high) == len(low) else np.concatenate((high, high[-1:]))
            low += np.float32(lift) * (before + after)
    return low / np.float32(_GAIN), high * np.float32(_GAIN)


def _weights(levels: int, channel: int, channels: int) -> list[list[float]]:
    """What a unit of each band is in squared error of the image: OpenJPEG's steps make it equal."""
    back = np.linalg.inv(_COLOURS.astype(np.float64))
    colour = float(np.square(back[:, channel]).sum()) if channels == 3 else 1.0
    return [[colour / step**2 for step in steps] for steps in j2k.steps(levels)]
