"""An upscaler in 8-bit integers: calibrated on photos, held against float32 on others.

Post-training quantisation as in B. Jacob et al., CVPR 2018: a tensor's activations in 8 bits, an
output channel's weights in 7 (CPUs without VNNI add two products in 16 bits, which weights of 8
bits would overflow). The first layer, which sees LR itself, and the last, whose error nothing
corrects, stay in float32, and so do the sums that skip the layers between them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from carcodec import atomic, coarseness, codec, files, metrics, storage, zoo
from carcodec.errors import DataError, EngineError, ImageError, MissingDependencyError
from carcodec.zoo.card import as_toml

__all__ = ["CONTRAST", "MOST", "QUALITIES", "quantise"]

MOST = 0.05  # dB
# Lights at night, drawings and text go further than most photos, and would be clipped.
CONTRAST = 3
QUALITIES = (10, 20, 35, 50, 65, 80)  # of the stored LR, where the model is trained for a loss
FILE = "upscaler.int8.onnx"
_SIDE = 512  # of the part of a photo that is looked at
_WEIGHT_LEVELS = 63  # either side of 0: 7 bits
_FEWEST = 16  # channels that a layer in 8 bits takes: before that, it is not what takes time

_DRAWN = 8192  # values of a tensor and an LR image, whose ranges are to be found

Feed = dict[str, NDArray[np.float32]]


class Seen(NamedTuple):
    """A photo, its LR as stored at the codec's ``quality``, and what the upscaler is told of it."""

    colour: NDArray[np.uint8]
    small: NDArray[np.uint8]
    quality: int | None
    told: int | None


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
    :data:`QUALITIES`, as it is and with :data:`CONTRAST` times its contrast. The rest measures the
    loss, which goes onto the card.

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
            f"two photos are needed, one to calibrate on and one to measure on, not {len(photos)}"
        )
    network, layers = _network(card)  # first: the photos take minutes
    seen: list[Seen] = []
    held_out: list[Seen] = []
    for i, path in enumerate(photos):
        colour = _middle(path)
        if i % 2:
            held_out += _stored(card, colour)
        else:
            seen += _stored(card, colour)
            strong = (colour.astype(np.int32) - 128) * CONTRAST + 128
            seen += _stored(card, strong.clip(0, 255).astype(np.uint8))
        progress(0.4 * (i + 1) / len(photos))
    payload = _quantised(network, layers, seen)
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
        losses = _losses(zoo.load_card(folder / "card.toml"), held_out)
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


def _middle(path: Path) -> NDArray[np.uint8]:
    colour = files.read_photo(str(path)).colour
    top, left = (max(0, side - _SIDE) // 2 for side in colour.shape[:2])
    colour = colour[top : top + _SIDE, left : left + _SIDE]
    if colour.ndim != 3 or colour.dtype != np.uint8:
        raise ImageError(f"{path} is not a photo in colour of 8 bits a sample")
    return colour.astype(np.uint8, copy=False)


def _stored(card: zoo.ModelCard, colour: NDArray[np.uint8]) -> list[Seen]:
    """A photo, and its LR as it is stored at each quality."""
    exact = codec.downscale(colour, card, "onnxruntime")
    size, channels = exact.shape[1::-1], exact.size // (exact.shape[0] * exact.shape[1])
    stored = storage.by_name(card.storage or "png")
    found: list[Seen] = []
    for quality in QUALITIES if card.storage else [None]:
        data = stored.encode(exact, quality)
        small = stored.decode(data, size, channels)
        told = None
        if quality is not None:
            told = coarseness.told(card.told, stored, exact, quality, data)
        found.append(Seen(colour, small, quality, told))
    return found


def _network(card: zoo.ModelCard) -> tuple[Any, list[str]]:
    """The upscaler, and which of its layers are to be in 8 bits."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingDependencyError("quantising needs onnx: pip install onnx") from error

    network = onnx.load_model_from_string(card.weights(card.upscaler))
    layers = _layers(network)
    if not layers:
        raise EngineError(f"the upscaler of {card.name} has no layer that is worth quantising")
    return network, layers


def _quantised(network: Any, layers: list[str], seen: list[Seen]) -> bytes:
    """The network with its larger convolutions between QuantizeLinear and DequantizeLinear.

    Sums and what is added to them stay as they are. ONNX Runtime computes in integers only what is
    rounded before and after; a ReLU is done with the rounding that follows it.
    """
    import onnx

    graph, numpy = network.graph, onnx.numpy_helper
    before_relu = {node.input[0] for node in graph.node if node.op_type == "Relu"}
    inputs = {node.input[0] for node in graph.node if node.name in layers}
    results = {node.output[0] for node in graph.node if node.name in layers} - before_relu
    feeds = [_feed(network, one.small, one.told) for one in seen]
    ranges = _ranges(network, sorted(inputs | results), feeds)
    weights = {weight.name: numpy.to_array(weight) for weight in graph.initializer}
    nodes: list[Any] = []

    def rounded(name: str) -> str:
        return f"{name}.rounded"

    def restored(name: str, levels: str, step: Any, zero: Any, **axis: Any) -> None:
        """What is ``step * (levels - zero)`` of a tensor's levels."""
        for part, value in (("step", np.asarray(step, np.float32)), ("zero", zero)):
            graph.initializer.append(numpy.from_array(value, f"{name}.{part}"))
        given = [levels, f"{name}.step", f"{name}.zero"]
        if not axis:
            nodes.append(onnx.helper.make_node("QuantizeLinear", [name, *given[1:]], [levels]))
        nodes.append(onnx.helper.make_node("DequantizeLinear", given, [rounded(name)], **axis))

    def in_integers(layer: Any) -> None:
        image, weight, bias = layer.input
        step = (ranges[image][1] - ranges[image][0]) / 255
        size = np.abs(weights[weight]).max((1, 2, 3))
        steps = np.where(size > 0, size, 1) / _WEIGHT_LEVELS
        kernels = np.rint(weights[weight] / steps[:, None, None, None]).astype(np.int8)
        sums = np.rint(weights[bias] / (step * steps)).astype(np.int32)
        own, own_bias = f"{layer.name}.weight", f"{layer.name}.bias"  # layers may share theirs
        for name, levels, each in ((own, kernels, steps), (own_bias, sums, step * steps)):
            graph.initializer.append(numpy.from_array(levels, f"{name}.levels"))
            zero = np.zeros(len(levels), levels.dtype)
            restored(name, f"{name}.levels", each, zero, axis=0)
        layer.input[:] = [rounded(name) for name in (image, own, own_bias)]

    for node in list(graph.node):
        if node.name in layers:
            in_integers(node)
        elif results.intersection(node.input):
            node.input[:] = [rounded(n) if n in results else n for n in node.input]
        nodes.append(node)
        for name in ranges.keys() & set(node.output):
            low, high = ranges[name]
            step = (high - low) / 255
            restored(name, f"{name}.levels", step, np.asarray(round(-low / step), np.uint8))
    read = {name for node in nodes for name in node.input}
    kept = [weight for weight in graph.initializer if weight.name in read]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        copies = [type(value)() for value in values]
        for copy, value in zip(copies, values, strict=True):
            copy.CopyFrom(value)
        del field[:]
        field.extend(copies)
    onnx.checker.check_model(network)
    return bytes(network.SerializeToString())


def _feed(network: Any, small: NDArray[np.uint8], told: int | None) -> Feed:
    image = codec.network_input(small, np.float32(255))
    share = np.array([1.0 if told is None else told / 100], np.float32)
    names = [source.name for source in network.graph.input]
    return dict(zip(names, (image, share), strict=False))


def _ranges(network: Any, names: list[str], feeds: list[Feed]) -> dict[str, tuple[float, float]]:
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
        best[name] = (float(share * low), float(share * high))
    return best


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


def _losses(card: zoo.ModelCard, seen: list[Seen]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for one in seen:
        size = (one.colour.shape[1], one.colour.shape[0])
        exact, rounded = (
            metrics.psnr(
                one.colour,
                codec.upscale(one.small, size, 8, card, engine, quality=one.told, channels=3),
            )
            for engine in ("onnxruntime:fp32", "onnxruntime")
        )
        name = "lossless" if one.quality is None else f"q{one.quality}"
        found.setdefault(name, []).append(exact - rounded)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _with(card: str, payload: bytes, loss: dict[str, float], command: str) -> str:
    """A card's text with the table ``upscaler.int8`` of this."""
    without = re.sub(r"\n\[upscaler\.int8\]\n(?:[^\[\n].*\n)*", "", card)
    lines = [
        "",
        "[upscaler.int8]",
        f'file = "{FILE}"',
        f'sha256 = "{hashlib.sha256(payload).hexdigest()}"',
        f"loss = {as_toml(loss)}  # dB of RGB PSNR",
        f"command = {as_toml(command)}",
        "",
    ]
    head, separator, tail = without.partition("\n[training]\n")
    text = head + "\n".join(lines) + separator + tail
    tomllib.loads(text)
    return text
