"""The resampler as a TensorRT plugin, for the node ``carcodec::AdaptiveResample``.

Ahead of time: the engine embeds PTX and launch geometry, and running it needs no Python. Just in
time, where that is not to be had. TensorRT 10.8 and later.
"""

# TensorRT reads annotations as objects: they must not be put off as strings here.

from typing import Any

from carcodec.plugins.compiling import shipped
from carcodec.plugins.resampler import SOURCE, entry, geometry

__all__ = ["NAME", "register"]

NAME = "carcodec::AdaptiveResample"
_BLOCK = geometry(1, 1, 1)[1]


def register(ptx: bytes = b"") -> None:
    """Tell TensorRT of the plugin; a second time is nothing.

    ``ptx`` stands for the shipped one.

    Raises:
        ImportError: TensorRT is not installed, or lacks Python plugins.
    """
    import tensorrt as trt
    import tensorrt.plugin as trtp

    if NAME in trtp._lib.QDP_REGISTRY:
        return
    code = (ptx or shipped(SOURCE)).decode()

    @trtp.register(NAME)  # type: ignore[untyped-decorator]
    def describe(
        image: trtp.TensorDesc, weights: trtp.TensorDesc, offsets: trtp.TensorDesc,
        scale: int, kernel: int, convex: int,
    ) -> trtp.TensorDesc:  # fmt: skip
        small = image.like()
        small.shape_expr[2] = weights.shape_expr[2]
        small.shape_expr[3] = weights.shape_expr[3]
        return small

    @trtp.autotune(NAME)  # type: ignore[untyped-decorator]
    def combinations(
        image: trtp.TensorDesc, weights: trtp.TensorDesc, offsets: trtp.TensorDesc,
        scale: int, kernel: int, convex: int, outputs: tuple[trtp.TensorDesc],
    ) -> list[trtp.AutoTuneCombination]:  # fmt: skip
        return [
            trtp.AutoTuneCombination(", ".join([kind] * 4), "LINEAR") for kind in ("FP32", "FP16")
        ]

    @trtp.aot_impl(NAME)  # type: ignore[untyped-decorator]
    def ahead_of_time(
        image: trtp.TensorDesc, weights: trtp.TensorDesc, offsets: trtp.TensorDesc,
        scale: int, kernel: int, convex: int, outputs: tuple[trtp.TensorDesc], tactic: int,
    ) -> tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]:  # fmt: skip
        dtype = "float16" if image.dtype == trt.float16 else "float32"
        name, block = entry(dtype, scale, kernel)
        count, height, width = (weights.shape_expr[axis] for axis in (0, 2, 3))
        launch = trtp.KernelLaunchParams()
        launch.grid_x, launch.grid_y = trtp.cdiv(width, block[0]), trtp.cdiv(height, block[1])
        launch.grid_z = count
        launch.block_x, launch.block_y, launch.block_z = *block, 1
        numbers = (height, width, scale, kernel, convex, 1)
        extra = trtp.SymIntExprs(len(numbers))
        for i, number in enumerate(numbers):
            extra[i] = trtp.SymInt32(number)
        return name, code, launch, extra

    loaded: list[Any] = []

    @trtp.impl(NAME)  # type: ignore[untyped-decorator]
    def just_in_time(
        image: trtp.Tensor, weights: trtp.Tensor, offsets: trtp.Tensor,
        scale: int, kernel: int, convex: int, outputs: tuple[trtp.Tensor], stream: int,
    ) -> None:  # fmt: skip
        from carcodec.plugins.driver import Kernels, Pointer

        if not loaded:
            loaded.append(Kernels(code.encode()))
        dtype = "float16" if image.dtype == trt.float16 else "float32"
        count, _, height, width = (int(side) for side in weights.shape)
        name, block = entry(dtype, scale, kernel)
        size = geometry(count, height, width, block)
        pointers = [Pointer(tensor.data_ptr) for tensor in (image, weights, offsets)]
        numbers = [height, width, scale, kernel, convex, 1]
        last = [Pointer(outputs[0].data_ptr)]
        loaded[0].launch(name, *size, stream, [*pointers, *numbers, *last])
