"""The GPU path: the resampler against the memory's bandwidth, and networks and codec in MP/s.

    python benchmarks/gpu.py [--megapixels 24] [--models car-x2-avif car-x4-avif]
        [--engines tensorrt pytorch] [--repeat 20]

"of the floor" is the share of the time that reading weights, offsets and photo once and writing LR
once would take at the bandwidth of a device-to-device copy measured in the same run. "resident"
times the network alone on tiles that are on the GPU already, in each way that PyTorch has of
running it (docs/GPU.md; what is taken is marked), "encode" and "decode" downscaling and upscaling
one photo, from memory to memory; "photos" the whole way of decoding several at a time, LR codec
included, and "LR codec" that codec's part of it alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from speed import PHOTO, load

from carcodec import codec, container, engines, zoo
from carcodec.engines import pytorch
from carcodec.plugins import convolution
from carcodec.plugins.convolution import pytorch as tensor_cores
from carcodec.plugins.driver import DriverError
from carcodec.plugins.resampler import pytorch as fused

_IN_A_ROW = 5  # runs, so that each is launched while the one before is computed


def seconds(action: Callable[[], object], repeat: int) -> float:
    """Of one run on the GPU: the median of ``repeat`` rows of them, after three to warm up."""
    for _ in range(3):
        action()
    found = []
    for _ in range(repeat):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(_IN_A_ROW):
            action()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last) / 1000 / _IN_A_ROW)
    return float(np.median(found))


def bandwidth(repeat: int) -> float:
    """Bytes per second, read and written, of a copy of a gibibyte."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / seconds(lambda: target.copy_(source), repeat)


def resampler(console: Console, repeat: int) -> None:
    speed = bandwidth(repeat)
    title = f"resampler, {torch.cuda.get_device_name()}, copy {speed / 1e9:.0f} GB/s"
    table = Table(
        "scale", "storage", "forward, ms", "GB/s", "of the floor", "backward, ms", title=title
    )
    for scale in (2, 3, 4):
        side = 4608 // scale // 4 * 4  # large enough for a launch to last
        taps = (3 * scale) ** 2
        for dtype in (torch.float32, torch.float16):
            like = {"dtype": dtype, "device": "cuda"}
            image = torch.rand(1, 3, side * scale, side * scale, **like)  # type: ignore[call-overload]
            weights = torch.randn(1, taps, side, side, **like) * 0.1  # type: ignore[call-overload]
            offsets = torch.randn(1, 2 * taps, side, side, **like) * 0.3  # type: ignore[call-overload]
            given = (image, weights, offsets)
            size = sum(t.nbytes for t in given) + image.nbytes // scale**2
            took = seconds(lambda: fused.resample(*given, scale, quantise=True), repeat)  # noqa: B023
            back = "–"
            if dtype == torch.float32:
                leaves = [t.clone().requires_grad_() for t in given]
                small = fused.resample(*leaves, scale)  # type: ignore[misc]
                slope = torch.ones_like(small)
                run = lambda: torch.autograd.grad(small, leaves, slope, retain_graph=True)  # noqa: B023, E731
                back = f"{1000 * seconds(run, repeat):.2f}"
            table.add_row(
                f"×{scale}", str(dtype).removeprefix("torch."), f"{1000 * took:.3f}",
                f"{size / took / 1e9:.0f}", f"{100 * size / speed / took:.0f} %", back,
            )  # fmt: skip
    console.print(table)


def convolutions(console: Console, repeat: int) -> None:
    """A residual block's two convolutions, each with what goes along with it."""
    title = "3×3 convolutions in half precision, a megapixel of features"
    table = Table(
        "features", "by", "with ReLU, ms", "TFLOP/s", "with sum, ms", "TFLOP/s", title=title
    )
    for count in convolution.FEATURES:
        features, before = (
            torch.rand(1, count, 1024, 1024, dtype=torch.half, device="cuda").to(
                memory_format=torch.channels_last
            )
            for _ in range(2)
        )
        weights = torch.randn(count, count, 3, 3, dtype=torch.half, device="cuda") / 50
        weights = weights.to(memory_format=torch.channels_last)
        bias = torch.zeros(count, device="cuda")
        plain = torch.nn.functional.conv2d
        ways = {
            "cuDNN": (
                lambda: torch.cudnn_convolution_relu(
                    features, weights, bias.half(), (1, 1), (1, 1), (1, 1), 1  # noqa: B023
                ),
                lambda: plain(features, weights, None, 1, 1).add_(before),  # noqa: B023
            )
        }  # fmt: skip
        try:
            kernel = tensor_cores.kernel(count, torch.device("cuda", 0))
        except DriverError as error:
            console.print(str(error))
        else:
            ours = tensor_cores.arranged(weights)
            ways["carcodec"] = (
                lambda: kernel(features, ours, bias),  # noqa: B023
                lambda: kernel(features, ours, bias, before),  # noqa: B023
            )
        for name, both in ways.items():
            work = 2 * 9 * count**2 * 1024**2 / 1e12
            took = [seconds(one, repeat) for one in both]
            cells = [c for t in took for c in (f"{1000 * t:.3f}", f"{work / t:.0f}")]
            table.add_row(str(count), name, *cells)
    console.print(table)


def resident(card: zoo.ModelCard, repeat: int) -> str:
    """MP/s of the upscaler alone, in each of PyTorch's ways."""
    taken = pytorch.load(card, "upscaler")
    if not isinstance(taken, pytorch.Pipeline):
        return "–"
    module, device = pytorch.network(card, "upscaler"), torch.device("cuda", 0)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    make = partial(pytorch.Pipeline, module, device, "upscaler", 1)
    found = []
    ways = {kind.removeprefix(" with "): one for one, kind in pytorch.fused(make, module, device)}
    ways["autocast"] = make(torch.float16)
    kernel = getattr(taken.folded, "kernel", None)
    side = card.window("upscaler")
    tile = torch.rand(1, 3, side, side, device="cuda").to(memory_format=torch.channels_last)
    for kind, one in ways.items():
        took = seconds(lambda: one.computed(tile, 0.5), repeat)  # noqa: B023
        same = type(one.folded) is type(taken.folded)
        mark = "*" if same and getattr(one.folded, "kernel", None) is kernel else ""
        found.append(f"{kind}{mark} {(side * card.scale) ** 2 / 1e6 / took:.0f}")
    return "\n".join(found)


def networks(
    console: Console, names: list[str], wanted: list[str], megapixels: float, repeat: int
) -> None:
    photo = load(PHOTO, megapixels)
    area = photo.shape[0] * photo.shape[1] / 1e6
    size = (photo.shape[1], photo.shape[0])
    columns = ("model", "engine", "resident", "encode", "decode", "photos", "LR codec")
    table = Table(*columns, title=f"MP/s, photos of {area:.0f} MP")
    for name in names:
        card = zoo.find(name)
        file = codec.encode(photo, model=name, storage_codec="avif", quality=50.0).data
        for engine in wanted:
            small = codec.downscale(photo, card, engine)
            quality = 50 if card.storage else None
            alone = resident(card, repeat) if engine == "pytorch" else "–"
            times = []
            for action in (
                lambda: codec.downscale(photo, card, engine),  # noqa: B023
                lambda: codec.upscale(small, size, 8, card, engine, quality=quality),  # noqa: B023
            ):
                action()
                start = time.perf_counter()
                for _ in range(3):
                    action()
                times.append(3 * area / (time.perf_counter() - start))
            for decode in (
                lambda data: codec.decode_array(data, engine=engine),  # noqa: B023
                lambda data: codec.stored_image(container.read(data)),
            ):
                start = time.perf_counter()
                with ThreadPoolExecutor(engines.at_once(engine)) as pool:
                    list(pool.map(decode, [file] * 16))
                times.append(16 * area / (time.perf_counter() - start))
            table.add_row(name, engine, alone, *(f"{t:.0f}" for t in times))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=24)
    parser.add_argument(
        "--models", nargs="*", default=["car-x2-avif", "car-x2-avif-fast", "car-x4-avif"]
    )
    parser.add_argument("--engines", nargs="*")
    parser.add_argument("--repeat", type=int, default=20)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch can use")
    console = Console()
    resampler(console, arguments.repeat)
    convolutions(console, arguments.repeat)
    found = [e for e in engines.available() if e in (*engines.ON_GPU, "pytorch")]
    wanted = arguments.engines or found
    networks(console, arguments.models, wanted, arguments.megapixels, arguments.repeat)


if __name__ == "__main__":
    main()
