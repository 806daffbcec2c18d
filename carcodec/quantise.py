"""An upscaler in 8-bit integers: calibrated on photos, held against float32 on others.

Post-training quantisation as in B. Jacob et al., CVPR 2018, by ONNX Runtime's quantiser: a tensor's
activations in 8 bits, an output channel's weights in 7 (CPUs without VNNI add two products in 16
bits, which weights of 8 bits would overflow). The first layer, which sees LR itself, and the last,
whose error nothing corrects, stay in float32, and so do the sums that skip the layers between them.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carcodec import atomic, codec, files, metrics, storage, zoo
from carcodec.errors import DataError, EngineError, ImageError, MissingDependencyError

__all__ = ["MOST", "QUALITIES", "quantise"]

MOST = 0.05  # dB
QUALITIES = (10, 20, 35, 50, 65, 80)  # of the stored LR, where the model is trained for a loss
FILE = "upscaler.int8.onnx"
_SIDE = 512  # of the part of a photo that is looked at
_FEWEST = 16  # channels that a layer in 8 bits takes: before that, it is not what takes time

_DRAWN = 8192  # values of a tensor and an LR image, whose ranges are to be found

Feed = dict[str, NDArray[np.float32]]
Seen = tuple[NDArray[np.uint8], NDArray[np.uint8], int | None]  # HR, LR, and LR's quality


def quantise(
    card: zoo.ModelCard,
    photos: Sequence[Path],
    out: Path,
    *,
    command: str = "",
    most: float = MOST,
    progress: Callable[[float], None] = lambda share: None,
) -> Path:
    """Write ``out/NAME-vVERSION/`` with ``upscaler.int8.onnx`` beside all that the model has.

    Every other photo calibrates: it sets the range of each activation, at all of
    :data:`QUALITIES`. The rest measures the loss, which goes onto the card.

    Args:
        photos: two or more; of each, up to 512×512 pixels from the middle.
        command: for the card.
        most: dB of RGB PSNR, mean over the photos, that no quality may lose.

    Returns:
        The card's path.

    Raises:
        EngineError: there is no network to quantise, or it loses more.
        DataError: fewer than two photos.
        ImageError: a photo cannot be read.
        MissingDependencyError: onnx is not installed.
    """
    if card.upscaler.family == "bicubic" or card.upscaler.steps > 1:
        why = "is no network" if card.upscaler.family == "bicubic" else "recurs"
        raise EngineError(f"the upscaler of {card.name} {why}: there is nothing to quantise")
    if len(photos) < 2:
        raise DataError(
            f"{len(photos)} photos are too few: one at least calibrates, another measures"
        )
    seen: list[list[Seen]] = []
    for i, path in enumerate(photos):
        seen.append(_stored(card, path))
        progress(0.4 * (i + 1) / len(photos))
    payload = _quantised(card, [each for photo in seen[::2] for each in photo])
    progress(0.7)
    names = sorted({part.file for part in (card.downscaler, card.upscaler)})
    kept = {name: (card.folder / name) for name in names}
    parts = {name: path.read_bytes() for name, path in kept.items() if path.exists()}
    text = (card.folder / "card.toml").read_text("utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, data in (parts | {FILE: payload}).items():
            (folder / name).write_bytes(data)
        (folder / "card.toml").write_text(_with(text, payload, {}, command), "utf-8")
        losses = _losses(zoo.load_card(folder / "card.toml"), seen[1::2])
    progress(1.0)
    loss = {name: round(max(0.0, value), 3) for name, value in losses.items()}
    worst = max(loss, key=lambda name: loss[name])
    if loss[worst] > most:
        raise EngineError(
            f"in 8 bits the upscaler of {card.name} loses {loss[worst]:.3f} dB at {worst}, more "
            f"than {most:g}: it stays as it is"
        )
    target = out / f"{card.name}-v{card.version}"
    target.mkdir(parents=True, exist_ok=True)
    for name, data in (parts | {FILE: payload}).items():
        atomic.write(target / name, data)
    atomic.write(target / "card.toml", _with(text, payload, loss, command).encode())
    return target / "card.toml"


def _stored(card: zoo.ModelCard, path: Path) -> list[Seen]:
    """A photo's middle, and its LR as it is stored at each quality."""
    colour = files.read_photo(str(path)).colour
    top, left = (max(0, side - _SIDE) // 2 for side in colour.shape[:2])
    colour = colour[top : top + _SIDE, left : left + _SIDE]
    if colour.ndim != 3 or colour.dtype != np.uint8:
        raise ImageError(f"{path} is not a photo in colour of 8 bits a sample")
    exact = codec.downscale(colour, card, "onnxruntime")
    size, channels = exact.shape[1::-1], exact.size // (exact.shape[0] * exact.shape[1])
    stored = storage.by_name(card.storage or "png")
    found: list[Seen] = []
    for quality in QUALITIES if card.storage else [None]:
        small = stored.decode(stored.encode(exact, quality), size, channels)
        found.append((colour.astype(np.uint8, copy=False), small, quality))
    return found


def _quantised(card: zoo.ModelCard, seen: list[Seen]) -> bytes:
    try:
        import onnx
        from onnxruntime import quantization as quantising
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"quantising needs {error.name}: pip install onnx") from error

    network = onnx.load_model_from_string(card.weights(card.upscaler))
    chosen = _layers(network)
    if not chosen:
        raise EngineError(f"the upscaler of {card.name} has no layer that is worth quantising")
    feeds = [_feed(network, small, quality) for _, small, quality in seen]
    rounded = dict.fromkeys(
        name
        for node in network.graph.node
        if node.name in chosen
        for name in (node.input[0], node.output[0])
    )
    ranges = _ranges(network, list(rounded), feeds)

    class Once:  # the quantiser wants to see something, whatever it is told
        def __init__(self) -> None:
            self.left = feeds[:1]

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return self.left.pop() if self.left else None

    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / FILE
        root = logging.getLogger()
        root.addFilter(_silent)  # it advises to optimise the network first
        try:
            quantising.quantize_static(
                network,
                str(target),
                Once(),
                quant_format=quantising.QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=chosen,
                per_channel=True,
                reduce_range=True,
                activation_type=quantising.QuantType.QUInt8,
                weight_type=quantising.QuantType.QInt8,
                extra_options={
                    "TensorQuantOverrides": {
                        name: [{"rmin": low, "rmax": high}] for name, (low, high) in ranges.items()
                    }
                },
            )
        finally:
            root.removeFilter(_silent)
        return target.read_bytes()


def _feed(network: Any, small: NDArray[np.uint8], quality: int | None) -> Feed:
    levels = small if small.ndim == 3 else np.repeat(small[..., None], 3, 2)
    image = np.ascontiguousarray(levels.transpose(2, 0, 1)[None], np.float32) / np.float32(255)
    told = np.array([1.0 if quality is None else quality / 100], np.float32)
    names = [source.name for source in network.graph.input]
    return dict(zip(names, (image, told), strict=False))


def _ranges(
    network: Any, names: list[str], feeds: list[Feed]
) -> dict[str, tuple[np.float32, np.float32]]:
    """For each tensor the range, around 0, that rounds what is in it with the least square error.

    What lies outside is clipped. Section 3.1 of M. Nagel et al., "A white paper on neural network
    quantization" (2021). The whole range loses two to four times as many dB.
    """
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(network)
    for name in names:
        watched.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    drawn: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    ends = dict.fromkeys(names, (0.0, 0.001))  # of a tensor that is 0 everywhere, too
    for feed in feeds:
        for name, found in zip(names, session.run(names, feed), strict=True):
            low, high = ends[name]
            ends[name] = (min(low, float(found.min())), max(high, float(found.max())))
            values = found.ravel()
            drawn[name].append(values[random.integers(0, values.size, _DRAWN)])
    best = {}
    for name, (low, high) in ends.items():
        values = np.concatenate(drawn[name])

        def error(share: float, low: float = low, high: float = high, x: Any = values) -> float:
            step = share * (high - low) / 255
            levels = np.clip(np.round(x / step), round(share * low / step), share * high / step)
            return float(np.mean(np.square(levels * step - x)))

        share = min(np.arange(0.2, 1.01, 0.05), key=error)
        best[name] = (np.float32(share * low), np.float32(share * high))
    return best


def _silent(record: logging.LogRecord) -> bool:
    return False


def _layers(network: Any) -> list[str]:
    """Names, given where there are none, of the convolutions that are to be in 8 bits."""
    channels = {w.name: w.dims[1] for w in network.graph.initializer if len(w.dims) == 4}
    deeper = set()  # what a convolution is still to come after
    chosen = []
    for i, node in reversed(list(enumerate(network.graph.node))):
        node.name = node.name or f"{node.op_type}_{i}"
        convolves = node.op_type == "Conv"
        follows = any(output in deeper for output in node.output)
        if convolves and follows and channels.get(node.input[1], 0) >= _FEWEST:
            chosen.append(node.name)
        if convolves or follows:
            deeper.update(node.input)
    return chosen[::-1]


def _losses(card: zoo.ModelCard, seen: list[list[Seen]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for photo in seen:
        for colour, small, quality in photo:
            height, width = colour.shape[:2]
            exact, rounded = (
                metrics.psnr(
                    colour,
                    codec.upscale(small, (width, height), 8, card, engine, quality=quality),
                )
                for engine in ("onnxruntime:fp32", "onnxruntime")
            )
            name = "lossless" if quality is None else f"q{quality}"
            found.setdefault(name, []).append(exact - rounded)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _with(card: str, payload: bytes, loss: dict[str, float], command: str) -> str:
    """A card's text with the table ``upscaler.int8`` of this."""
    without = re.sub(r"\n\[upscaler\.int8\]\n(?:[^\[\n].*\n)*", "", card)
    figures = ", ".join(f"{name} = {value}" for name, value in loss.items())
    lines = [
        "",
        "[upscaler.int8]",
        f'file = "{FILE}"',
        f'sha256 = "{hashlib.sha256(payload).hexdigest()}"',
        f"loss = {{ {figures} }}  # dB of RGB PSNR",
        f"command = {_string(command)}",
        "",
    ]
    head, separator, tail = without.partition("\n[training]\n")
    text = head + "\n".join(lines) + separator + tail
    tomllib.loads(text)
    return text


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
