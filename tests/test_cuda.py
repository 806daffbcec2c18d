"""The CUDA resampler on the CPU: its source, compiled by g++, against float64; and by nvcc."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_on_host import HostKernels, library
from numpy.typing import NDArray
from PIL import Image

from carcodec.networks import car
from carcodec.plugins import compiling, convolution, driver, resampler

Array = NDArray[Any]
ENTRY_POINTS = """
#define FORWARD(NAME, T) extern "C" void run_##NAME(const int *grid, const int *block, \\
    const T *image, const T *weights, const T *offsets, int h, int w, int scale, int kernel, \\
    int convex, int quantise, T *small) { \\
    launch(NAME, grid, block, image, weights, offsets, h, w, scale, kernel, convex, quantise, \\
           small); }
FORWARD(carcodec_resample_f32, float)
FORWARD(carcodec_resample_f32_x2, float)
FORWARD(carcodec_resample_f32_x3, float)
FORWARD(carcodec_resample_f32_x4, float)
FORWARD(carcodec_resample_f16, half_bits)
FORWARD(carcodec_resample_f16_x2, half_bits)
FORWARD(carcodec_resample_f16_x3, half_bits)
FORWARD(carcodec_resample_f16_x4, half_bits)
extern "C" void run_carcodec_resample_backward_f32(const int *grid, const int *block,
    const float *image, const float *weights, const float *offsets, const float *d_small, int h,
    int w, int scale, int kernel, int convex, float *a, float *b, float *c) {
    launch(carcodec_resample_backward_f32, grid, block, image, weights, offsets, d_small, h, w,
           scale, kernel, convex, a, b, c); }
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as a library for the CPU."""
    return library(resampler.SOURCE, ENTRY_POINTS, tmp_path_factory.mktemp("host"))


def run(
    host: ctypes.CDLL, image: Array, weights: Array, offsets: Array, scale: int, convex: bool,
    quantise: bool = False, fast: bool = False,
) -> Array:  # fmt: skip
    """LR of ``(n, 3, H, W)``, the launch as on a device."""
    n, taps, h, w = weights.shape
    kernel = round(taps**0.5)
    name, block = resampler.entry(str(image.dtype), scale if fast else 0, kernel)
    assert fast == name.endswith(f"_x{scale}")
    small = np.empty((n, 3, h, w), image.dtype)
    grid, threads = resampler.geometry(n, h, w, block)
    given = [np.ascontiguousarray(a) for a in (image, weights, offsets)]
    getattr(host, f"run_{name}")(
        (ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*threads),
        *(a.ctypes.data_as(ctypes.c_void_p) for a in given),
        h, w, scale, kernel, int(convex), int(quantise), small.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    return small


def exact(image: Array, weights: Array, offsets: Array, scale: int, convex: bool) -> Array:
    """Eq. 1-3 in float64 for any kernel and scale; reads reflect."""
    n, taps, h, w = weights.shape
    k = round(taps**0.5)
    heads = weights.astype(np.float64)
    if convex:
        share = np.maximum(heads, 1e-6)
        share /= share.sum(1, keepdims=True)
    else:
        share = heads + 1 / taps - heads.mean(1, keepdims=True)
    moved = scale * np.tanh(offsets.astype(np.float64))
    photo = image.astype(np.float64)

    def mirrored(i: Array, length: int) -> Array:
        period = max(2 * length - 2, 1)
        i = np.abs(i) % period
        return np.where(i < length, i, period - i)

    small = np.zeros((n, 3, h, w))
    batch = np.arange(n)[:, None, None]
    for t in range(taps):
        y = (np.arange(h) + 0.5)[:, None] * scale - 0.5 + t // k - (k - 1) / 2 + moved[:, taps + t]
        x = (np.arange(w) + 0.5)[None, :] * scale - 0.5 + t % k - (k - 1) / 2 + moved[:, t]
        top, left = np.floor(y).astype(int), np.floor(x).astype(int)
        b, a = (y - top)[:, None], (x - left)[:, None]
        read = 0.0
        for dy in (0, 1):
            for dx in (0, 1):
                rows = mirrored(top + dy, photo.shape[2])
                columns = mirrored(left + dx, photo.shape[3])
                corner = np.moveaxis(photo[batch, :, rows, columns], -1, 1)
                read = read + (b if dy else 1 - b) * (a if dx else 1 - a) * corner
        small += share[:, t][:, None] * read
    return small


def heads(
    seed: int, n: int, h: int, w: int, scale: int, kernel: int, spread: float
) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    # of 16 bits, which is what the fast kernels hold of a photo
    levels = random.integers(0, 65536, (n, 3, h * scale, w * scale))
    image = (levels / 65535).astype(np.float32)
    weights = random.normal(0, 0.1, (n, kernel**2, h, w)).astype(np.float32)
    offsets = random.normal(0, spread, (n, 2 * kernel**2, h, w)).astype(np.float32)
    return image, weights, offsets


@settings(max_examples=60, deadline=None)
@given(
    h=st.integers(1, 9), w=st.integers(1, 9), n=st.integers(1, 2), scale=st.integers(1, 5),
    kernel=st.integers(1, 13), convex=st.booleans(), spread=st.sampled_from([0.0, 0.7, 50.0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_kernel_is_its_definition(
    host: ctypes.CDLL, h: int, w: int, n: int, scale: int, kernel: int, convex: bool,
    spread: float, seed: int,
) -> None:  # fmt: skip
    given = heads(seed, n, h, w, scale, kernel, spread)
    found, wanted = run(host, *given, scale, convex), exact(*given, scale, convex)
    assert np.abs(found - wanted).max() < 2e-5 * max(1, np.abs(wanted).max())
    # rounded, it is the same in levels
    levels = run(host, *given, scale, convex, quantise=True) * 255
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    assert np.abs(levels - np.clip(wanted * 255, 0, 255)).max() < 0.51


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 12), w=st.integers(1, 80), scale=st.sampled_from([2, 3, 4]),
    convex=st.booleans(), spread=st.sampled_from([0.7, 50.0]), half=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_the_fast_kernels_are_the_simple_one(
    host: ctypes.CDLL, h: int, w: int, scale: int, convex: bool, spread: float, half: bool,
    seed: int,
) -> None:  # fmt: skip
    given = heads(seed, 1, h, w, scale, 3 * scale, spread)
    if half:
        given = tuple(a.astype(np.float16) for a in given)  # type: ignore[assignment]
    for quantise in (False, True):
        simple = run(host, *given, scale, convex, quantise)
        fast = run(host, *given, scale, convex, quantise, fast=True)
        off = np.abs(simple.astype(float) - fast)
        most = 1e-3 if half else 3e-6
        if quantise:  # another level where a half is near
            assert off.max() < 1.01 / 255 and (off > 2 * most).mean() < 0.01
        else:
            assert off.max() < most * max(1, np.abs(simple.astype(float)).max())


def test_half_storage_is_as_exact_as_half_is(host: ctypes.CDLL) -> None:
    given = tuple(a.astype(np.float16) for a in heads(3, 2, 12, 14, 2, 6, 0.7))
    wanted = exact(*given, 2, False)  # type: ignore[arg-type]
    found = run(host, *given, 2, False)  # type: ignore[arg-type]
    assert found.dtype == np.float16
    assert np.abs(found - wanted).max() < 2 * np.finfo(np.float16).eps


def test_the_kernel_agrees_with_pytorch_on_a_photo(host: ctypes.CDLL, taipei: Image.Image) -> None:
    photo = np.asarray(taipei.crop((270, 380, 366, 444))).transpose(2, 0, 1)[None] / np.float32(255)
    for scale in (2, 4):
        _, raw, moves = heads(5, 1, 64 // scale, 96 // scale, scale, 3 * scale, 0.7)
        weights = car.normalised_weights(torch.from_numpy(raw), False)
        offsets = car.bounded_offsets(torch.from_numpy(moves), scale)
        wanted = car.adaptive_resample(torch.from_numpy(photo), weights, offsets, scale).numpy()
        found = run(host, photo, raw, moves, scale, False, fast=True)
        assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize(("scale", "kernel"), [(2, 6), (3, 9), (2, 3), (1, 4)])
def test_gradients_are_those_of_float64_autograd(
    host: ctypes.CDLL, convex: bool, scale: int, kernel: int
) -> None:
    h, w = 4, 6
    given = heads(7, 2, h, w, scale, kernel, 0.7)
    d_small = np.random.default_rng(8).normal(size=(2, 3, h, w)).astype(np.float32)
    found = [np.zeros_like(a) for a in given]
    name, threads = resampler.backward_entry()
    grid, block = resampler.geometry(2, h, w, threads)
    getattr(host, f"run_{name}")(
        (ctypes.c_int * 3)(*grid), (ctypes.c_int * 3)(*block),
        *(a.ctypes.data_as(ctypes.c_void_p) for a in (*given, d_small)),
        h, w, scale, kernel, int(convex), *(a.ctypes.data_as(ctypes.c_void_p) for a in found),
    )  # fmt: skip
    image, raw, moves = (torch.from_numpy(a).double().requires_grad_() for a in given)
    small = car.adaptive_resample(
        image, car.normalised_weights(raw, convex), car.bounded_offsets(moves, scale), scale
    )
    small.backward(torch.from_numpy(d_small).double())  # type: ignore[no-untyped-call]
    for ours, theirs in zip(found, (image.grad, raw.grad, moves.grad), strict=True):
        assert theirs is not None
        assert np.abs(ours - theirs.numpy()).max() < 2e-4 * max(1, float(theirs.abs().max()))


@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize(("scale", "kernel", "w"), [(2, 6, 10), (3, 9, 6), (4, 12, 7), (2, 3, 5)])
def test_under_pytorch_it_is_the_reference_with_its_gradients(
    host: ctypes.CDLL, convex: bool, scale: int, kernel: int, w: int
) -> None:
    from carcodec.plugins.resampler import pytorch as fused

    kernels = HostKernels(host)
    made = [torch.from_numpy(a) for a in heads(11, 2, 6, w, scale, kernel, 0.7)]
    made[1] = made[1].to(memory_format=torch.channels_last)  # as convolutions leave it
    ours, theirs = ([t.clone().requires_grad_() for t in made] for _ in range(2))
    small = fused.resample(*ours, scale, convex=convex, kernels=kernels)  # type: ignore[misc]
    wanted = car.resampled(theirs[0], (theirs[1], theirs[2]), scale, convex)
    assert torch.allclose(small, wanted, atol=2e-5)
    for found in (small, wanted):
        (found * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()  # type: ignore[no-untyped-call]
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is not None and b.grad is not None
        assert (a.grad - b.grad).abs().max() < 2e-4 * max(1, float(b.grad.abs().max()))
    fast = "" if kernel == 3 else f"_x{scale}"
    assert kernels.started == [f"carcodec_resample_f32{fast}", "carcodec_resample_backward_f32"]


def test_under_pytorch_it_rounds_and_takes_half(host: ctypes.CDLL) -> None:
    from carcodec.plugins.resampler import pytorch as fused

    kernels = HostKernels(host)
    image, weights, offsets = (torch.from_numpy(a) for a in heads(12, 1, 5, 8, 2, 6, 0.7))
    small = fused.resample(image, weights, offsets, 2, quantise=True, kernels=kernels)
    wanted = car.resampled(image, (weights, offsets), 2, False, quantise=True)
    assert ((small - wanted).abs() * 255).max() < 1.01
    levels = small * 255
    assert (levels - levels.round()).abs().max() < 1e-4 and not small.requires_grad
    half = fused.resample(image.half(), weights.half(), offsets.half(), 2, kernels=kernels)
    assert half.dtype == torch.float16
    assert (half.float() - car.resampled(image, (weights, offsets), 2, False)).abs().max() < 0.02
    assert kernels.started[-1] == "carcodec_resample_f16_x2"


def test_under_pytorch_what_does_not_fit_is_refused(host: ctypes.CDLL) -> None:
    from carcodec.plugins.resampler import pytorch as fused

    kernels = HostKernels(host)
    image, weights, offsets = (torch.from_numpy(a) for a in heads(13, 1, 4, 4, 2, 6, 0.7))
    with pytest.raises(ValueError, match="do not belong together at scale 3"):
        fused.resample(image, weights, offsets, 3, kernels=kernels)
    with pytest.raises(ValueError, match="one dtype"):
        fused.resample(image.half(), weights, offsets, 2, kernels=kernels)
    with pytest.raises(ValueError, match="not float64"):
        fused.resample(image.double(), weights.double(), offsets.double(), 2, kernels=kernels)
    assert not kernels.started


@settings(max_examples=100)
@given(st.integers(1, 5), st.integers(1, 5000), st.integers(1, 5000), st.sampled_from(range(1, 6)))
def test_the_launch_covers_every_pixel_once(n: int, h: int, w: int, scale: int) -> None:
    threads = resampler.entry("float32", scale, 3 * scale).block
    grid, block = resampler.geometry(n, h, w, threads)
    across, down = grid[0] * block[0], grid[1] * block[1]
    assert across >= w and down >= h and grid[2] == n
    assert across - w < block[0] and down - h < block[1]  # no block is idle
    assert block[0] * block[1] * block[2] <= 1024 and 32 % block[0] == 0


def test_entries() -> None:
    assert resampler.entry("float32", 2, 6) == ("carcodec_resample_f32_x2", (32, 8))
    assert resampler.entry("float16", 4, 6) == ("carcodec_resample_f16", (32, 4))
    assert resampler.entry("float32", 5, 15) == ("carcodec_resample_f32", (32, 4))
    with pytest.raises(ValueError, match="float32 and float16, not int8"):
        resampler.entry("int8", 2, 6)
    kinds = ("float32", "float16")
    names = {resampler.entry(d, s, 3 * s).name for d in kinds for s in (2, 3, 4, 5)}
    source = resampler.SOURCE.read_text("utf-8")
    assert all(f"({name}, " in source for name in names)
    assert f" {resampler.backward_entry()[0]}(" in source


ENTRIES = [
    *(f"carcodec_resample_{t}{k}" for t in ("f32", "f16") for k in ("", "_x2", "_x3", "_x4")),
    "carcodec_resample_backward_f32",
]


KERNELS = {
    resampler: (ENTRIES, "sm_75", ["sm_75", "sm_86", "sm_90", "sm_120"]),
    convolution: (
        [convolution.entry(count) for count in convolution.FEATURES],
        "sm_80",
        ["sm_80", "sm_90", "sm_120"],
    ),
}


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_shipped_ptx_is_that_of_the_source(kernels: Any) -> None:
    entries, target, _ = KERNELS[kernels]
    text = compiling.shipped(kernels.SOURCE).decode()
    assert all(f".entry {name}(" in text for name in entries)
    assert f".target {target}" in text
    version = next(line for line in text.splitlines() if line.startswith(".version"))
    assert float(version.split()[1]) <= 9.0  # what CUDA 13.0's drivers read


def test_ptx_of_another_source_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "resampler.cu"
    source.write_text(resampler.SOURCE.read_text("utf-8") + "\n")
    source.with_suffix(".ptx").write_bytes(resampler.SOURCE.with_suffix(".ptx").read_bytes())
    with pytest.raises(compiling.CompilingError, match=r"^resampler.ptx is not made from res"):
        compiling.shipped(source)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("architecture", ["own", "compute_90", "compute_120"])
def test_nvrtc_compiles_without_a_gpu(kernels: Any, architecture: str) -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    architecture = architecture.replace("own", kernels.ARCHITECTURE)
    text = compiling.compiled(kernels.SOURCE, architecture).decode()
    assert all(f".entry {name}(" in text for name in KERNELS[kernels][0])
    assert f".target {architecture.replace('compute', 'sm')}" in text


def test_nvrtcs_refusal_is_one_sentence() -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    with pytest.raises(compiling.CompilingError, match=r"^NVRTC failed: .*gpu-architecture"):
        compiling.compiled(resampler.SOURCE, "compute_10")


@pytest.mark.parametrize(
    ("kernels", "architecture"), [(k, a) for k, found in KERNELS.items() for a in found[2]]
)
def test_nvcc_compiles_for_every_card(kernels: Any, architecture: str, tmp_path: Path) -> None:
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("no nvcc")
    target = tmp_path / "kernels.cubin"
    command = [nvcc, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", str(kernels.SOURCE)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Compiling entry function") == len(KERNELS[kernels][0])
    assert "spill" not in done.stderr.replace("0 bytes spill", "")


def test_a_missing_driver_is_one_sentence() -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU")
    with pytest.raises(driver.DriverError, match=r"^there is no NVIDIA driver here"):
        driver.Kernels(compiling.shipped(resampler.SOURCE))


def test_shared_memory_is_asked_for_and_given(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    from cuda.bindings import driver as installed

    done = installed.CUresult.CUDA_SUCCESS
    calls: list[tuple[Any, ...]] = []
    for name, result in (
        ("cuInit", (done,)),
        ("cuModuleLoadData", (done, "module")),
        ("cuModuleGetFunction", (done, "function")),
        ("cuFuncSetAttribute", (done,)),
        ("cuOccupancyMaxActiveBlocksPerMultiprocessor", (done, 3)),
        ("cuLaunchKernel", (done,)),
    ):

        def call(*given: Any, name: str = name, result: Any = result) -> Any:
            calls.append((name, *given))
            return result

        monkeypatch.setattr(installed, name, call)
    kernels = driver.Kernels(b"ptx")
    assert kernels.resident("one", 128, 72_576) == 3
    kernels.launch("one", (7, 1, 1), (128, 1, 1), 5, [driver.Pointer(4096), 2], 72_576)
    kernels.launch("two", (1, 1, 1), (32, 1, 1), 5, [2])
    asked = [call for call in calls if call[0] == "cuFuncSetAttribute"]
    assert [call[-1] for call in asked] == [72_576, 100]  # once, of the first alone
    large, small = (call for call in calls if call[0] == "cuLaunchKernel")
    assert large[2:10] == (7, 1, 1, 128, 1, 1, 72_576, 5) and small[8] == 0
    assert large[10] == ((4096, 2), (ctypes.c_void_p, ctypes.c_int))


LEAN = """
import sys, warnings
warnings.simplefilter("ignore")
import tensorrt_lean_bindings as trt
for name in ("TensorFormat", "ITensor"):  # which its runtime lacks and its plugin module names
    if not hasattr(trt, name):
        setattr(trt, name, type(name, (), {}))
sys.modules["tensorrt"] = trt
import tensorrt_lean_bindings.plugin as plugin
sys.modules["tensorrt.plugin"] = trt.plugin = plugin
from carcodec.plugins.resampler import tensorrt
tensorrt.register()
tensorrt.register()
found = plugin._lib.QDP_REGISTRY[tensorrt.NAME]
assert found.input_tensor_names == ["image", "weights", "offsets"]
assert found.input_attrs == {"scale": int, "kernel": int, "convex": int}
creator = trt.get_plugin_registry().get_creator("AdaptiveResample", "1", "carcodec")
fields = [
    trt.PluginField(name, numpy.array([value], numpy.int64), trt.PluginFieldType.INT64)
    for name, value in (("scale", 2), ("kernel", 6), ("convex", 0))
]
made = creator.create_plugin(
    "AdaptiveResample", "carcodec", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD,
    trt.QuickPluginCreationRequest.PREFER_AOT,
)
print(type(made).__name__)
"""


def test_tensorrt_takes_the_plugin() -> None:
    """Under the lean runtime, which registers and makes plugins without a GPU."""
    if importlib.util.find_spec("tensorrt_lean_bindings") is None:
        pytest.skip("TensorRT's lean runtime is not installed")
    done = subprocess.run(
        [sys.executable, "-c", "import numpy\n" + LEAN], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "_TemplateAOTPlugin"
