"""The CUDA convolution on the CPU: its source, compiled by g++, against float64; in a network."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_on_host import HostKernels, library
from ptx_on_host import Memory, Program
from torch import Tensor
from torch.nn import functional

from carcodec import zoo
from carcodec.engines import folded, guard, pytorch
from carcodec.plugins import compiling, convolution
from carcodec.plugins.convolution import pytorch as fused
from carcodec.plugins.driver import DriverError

FEATURES = (16, 32, 48, 64)  # those that ship, and others: banks and pieces differ
ENTRY_POINTS = """
FEATURES(16, 3)
FEATURES(64, 1)
#define RUN(C) extern "C" void run_carcodec_convolve_##C(const int *grid, const int *block, \\
    const half_bits *features, const half_bits *weights, const float *bias, \\
    const half_bits *residual, int n, int h, int w, half_bits *result) { \\
    launch(carcodec_convolve_##C, grid, block, features, weights, bias, residual, n, h, w, \\
           result); }
RUN(16) RUN(32) RUN(48) RUN(64)
extern "C" int bank_conflicts() { return conflicts; }
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels as a library for the CPU."""
    return library(convolution.SOURCE, ENTRY_POINTS, tmp_path_factory.mktemp("host"))


def given_to(count: int, n: int, h: int, w: int, seed: int) -> list[Tensor]:
    """Features, weights, bias and what there was."""
    torch.manual_seed(seed)
    features, before = (
        torch.randn(n, count, h, w).half().to(memory_format=torch.channels_last) for _ in range(2)
    )
    weights = (torch.randn(count, count, 3, 3) / (3 * count**0.5)).half()
    return [features, weights, torch.randn(count), before]


def exact(features: Tensor, weights: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    found = functional.conv2d(features.double(), weights.double(), bias.double(), padding=1)
    return found.clamp(min=0) if residual is None else found + residual


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 36), w=st.integers(1, 36), n=st.integers(1, 2),
    count=st.sampled_from(FEATURES), processors=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_kernel_is_its_definition(
    host: ctypes.CDLL, h: int, w: int, n: int, count: int, processors: int, seed: int
) -> None:
    features, weights, bias, before = given_to(count, n, h, w, seed)
    kernel = fused.Kernel(count, HostKernels(host), processors)
    for residual in (None, before):
        found = kernel(features, fused.arranged(weights), bias, residual)
        wanted = exact(features, weights, bias, residual)
        # the sum is float's, the result half's nearest
        assert ((found - wanted).abs() <= wanted.abs() * 2**-11 + 2e-5).all()
    # in place of what there was
    assert kernel(features, fused.arranged(weights), bias, before, before) is before
    assert torch.equal(before, found)
    assert host.bank_conflicts() == 0


@pytest.mark.parametrize("count", convolution.FEATURES)
@pytest.mark.parametrize(("n", "h", "w", "blocks"), [(1, 16, 16, 1), (2, 17, 19, 3), (1, 1, 1, 2)])
def test_what_is_shipped_is_its_definition(count: int, n: int, h: int, w: int, blocks: int) -> None:
    """The PTX, whose inline assembly the kernel's source on the CPU has not."""
    features, weights, bias, before = given_to(count, n, h, w, 3)
    program = Program(compiling.shipped(convolution.SOURCE).decode(), convolution.entry(count))
    for residual in (None, before):
        memory = Memory()
        rows = [t.permute(0, 2, 3, 1).contiguous().numpy() for t in (features, before)]
        ours = fused.arranged(weights).numpy()
        given = [memory.put(data) for data in (rows[0], ours, bias.numpy())]
        was = 0 if residual is None else memory.put(rows[1])
        result = was or memory.put(np.zeros_like(rows[0]))  # in place of what there was
        shared = convolution.shared_bytes(count)
        arguments = [*given, was, n, h, w, result]
        program.run(memory, blocks, convolution.THREADS, shared, arguments)
        found = torch.from_numpy(memory.get(result, rows[0])).permute(0, 3, 1, 2)
        wanted = exact(features, weights, bias, residual)
        assert ((found - wanted).abs() <= wanted.abs() * 2**-11 + 2e-5).all()


@pytest.mark.parametrize("count", FEATURES)
def test_every_weight_has_its_place(count: int) -> None:
    places = convolution.places(count)
    assert np.array_equal(np.sort(places), np.arange(9 * count**2))


def test_what_does_not_fit_is_refused(host: ctypes.CDLL) -> None:
    features, weights, bias, before = given_to(16, 1, 4, 4, 1)
    kernel = fused.Kernel(16, HostKernels(host), 1)
    ours = fused.arranged(weights)
    for wrong in (features.float(), features[:, :8], features.contiguous()):
        with pytest.raises(ValueError, match="are not 16 in half precision, channels last"):
            kernel(wrong, ours, bias)
    with pytest.raises(ValueError, match="are not 16 in half precision"):
        kernel(features, ours, bias, before[:, :, :2])
    with pytest.raises(ValueError, match="weights are half and arranged"):
        kernel(features, ours, bias.half())
    with pytest.raises(ValueError, match="features are read when"):
        kernel(features, ours, bias, before, features)
    with pytest.raises(DriverError, match=r"^a block of carcodec_convolve_128 finds no room"):
        fused.Kernel(128, HostKernels(host), 1)
    with pytest.raises(DriverError, match=r"^there is no kernel for 96 features"):
        fused.kernel(96, torch.device("cpu"))


@pytest.mark.parametrize("name", ["car-x2-avif", "car-x1-avif", "car-x1-avif-fast"])
def test_a_network_of_it_is_the_network(host: ctypes.CDLL, name: str) -> None:
    """In half precision, for one quality after another, borders and tiles' edges included."""
    network: Any = pytorch.network(zoo.find(name), "upscaler")
    kernel = fused.Kernel(network.head.out_channels, HostKernels(host), 2)
    half = folded.Folded(network, torch.float16, kernel)
    side = 18 * network.stride
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))
    for quality in (0.3, 0.8, 0.3):
        with torch.inference_mode():
            wanted = network(image, torch.full((1,), quality))
        error = (half(image, quality).float() - wanted).square().mean()
        assert -10 * error.log10() > 65
    assert len(half._made) == 2


def test_a_gpu_takes_the_kernel_where_it_is_right_and_faster(
    host: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = fused.Kernel(48, HostKernels(host), 2)
    monkeypatch.setattr(pytorch, "_kernel", lambda features, device: kernel)
    small = np.ascontiguousarray(guard.photo()[:, :, 60:84, :24])
    monkeypatch.setattr(guard, "photo", lambda: small)
    card = zoo.find("car-x4")
    module = pytorch.network(zoo.find("tiny-x2"), "upscaler")
    one = pytorch.Pipeline(module, torch.device("cpu"), "upscaler", 1)
    assert 0 < pytorch._seconds(one, 16) < pytorch._seconds(one, 512)
    slow: list[Any] = []
    monkeypatch.setattr(pytorch, "_seconds", lambda half: float(half.folded.kernel in slow))

    def chosen() -> Any:
        network = pytorch.network(card, "upscaler")
        return pytorch._on_gpu(network, card, "upscaler", None, torch.device("cpu")).folded

    with caplog.at_level("INFO", "carcodec"):
        assert chosen().kernel is kernel
        slow[:] = [kernel]
        assert chosen().kernel is None
    assert [record.getMessage() for record in caplog.records] == [
        "float16 with carcodec's own kernel is taken for the upscaler of car-x4",
        "float16 with fused kernels is taken for the upscaler of car-x4",
    ]
    slow[:] = []
    caplog.clear()
    monkeypatch.setattr(fused, "places", lambda count: np.arange(9 * count**2))
    assert chosen().kernel is None
    (record,) = caplog.records
    assert record.getMessage().startswith("float16 with carcodec's own kernel is not taken for")
