"""CAR: content adaptive resampler and the EDSR upscaler it is trained with.

Source: W. Sun and Z. Chen, "Learned Image Downscaling for Upscaling Using Content
Adaptive Resampler", IEEE TIP 2020. Equation numbers are the paper's. Written from the
paper's text; the authors' GPL implementation was not used.

Images are float tensors ``(N, 3, H, W)``, RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from carcodec.networks.blocks import ResidualBlock, bicubic_kernel, bicubic_phases, edges

__all__ = [
    "EDSR",
    "ResamplerNet",
    "adaptive_resample",
    "bounded_offsets",
    "normalised_weights",
    "offset_distance_loss",
    "partial_tv_loss",
    "resampled",
    "soft_round",
]


class _SoftRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.alpha = alpha
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * (1 - ctx.alpha * torch.cos(2 * torch.pi * x)), None


def soft_round(x: Tensor, alpha: float = 0.5) -> Tensor:
    """Round to the nearest integer, with the gradient of ``x - alpha sin(2 pi x)/(2 pi)`` (eq. 7).

    ``x`` is in integer levels (0…255), any shape; ``alpha`` in [0, 1] scales how much the
    gradient shrinks around integers.
    """
    rounded: Tensor = _SoftRound.apply(x, alpha)  # type: ignore[no-untyped-call]
    return rounded


def normalised_weights(heads: Tensor, convex: bool) -> Tensor:
    """Turn the kernel head ``(N, k*k, h, w)`` into weights that sum to 1 over dim 1.

    ``convex``: negative entries become 1e-6, then each kernel is divided by its sum (no
    negative lobes, as published). Otherwise the missing mass is spread evenly over the taps, which
    leaves negative lobes free and lets LR carry more detail.
    """
    if convex:
        positive = heads.clamp_min(1e-6)
        return positive / positive.sum(1, keepdim=True)
    return heads + (1 / heads.shape[1] - heads.mean(1, keepdim=True))


def bounded_offsets(heads: Tensor, scale: int) -> Tensor:
    """Turn the offset head ``(N, 2*k*k, h, w)`` into displacements of at most one LR pixel.

    Result in HR pixels, in (-scale, scale); the first k*k planes are horizontal (the paper's
    Delta Y, whose x counts rows), the rest vertical (its Delta X), taps in row-major order.
    """
    return scale * torch.tanh(heads)


def adaptive_resample(image: Tensor, weights: Tensor, offsets: Tensor, scale: int) -> Tensor:
    """Apply one kernel per LR pixel to the HR image (eq. 1-3), differentiable in all three.

    Args:
        image: ``(N, 3, H, W)`` float, with H and W multiples of ``scale``.
        weights: ``(N, k*k, H/scale, W/scale)``, summing to 1 over dim 1.
        offsets: ``(N, 2*k*k, H/scale, W/scale)`` HR pixels, horizontal then vertical.
        scale: HR pixels per LR pixel.

    Returns:
        ``(N, 3, H/scale, W/scale)``, not clamped. Reads outside the image reflect about the
        centre of its border pixels.
    """
    n, taps, h, w = weights.shape
    height, width = image.shape[-2:]
    k = round(taps**0.5)
    like: dict[str, Any] = {"dtype": offsets.dtype, "device": offsets.device}
    tap = torch.arange(k, **like) - (k - 1) / 2
    x = (torch.arange(w, **like) + 0.5) * scale - 0.5 + tap.repeat(k).view(-1, 1, 1)
    y = ((torch.arange(h, **like) + 0.5) * scale - 0.5)[:, None] + tap.repeat_interleave(k).view(
        -1, 1, 1
    )
    dx, dy = offsets.chunk(2, 1)
    x = torch.add(x * (2 / (width - 1)) - 1, dx, alpha=2 / (width - 1))
    y = torch.add(y * (2 / (height - 1)) - 1, dy, alpha=2 / (height - 1))
    grid = torch.stack((x, y), -1).view(n, taps * h, w, 2)
    read = functional.grid_sample(
        image, grid, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    planes = read.view(n, image.shape[1], taps, h, w).unbind(1)
    return torch.stack([(plane * weights).sum(1) for plane in planes], 1)


def resampled(
    image: Tensor, heads: tuple[Tensor, Tensor], scale: int, convex: bool, quantise: bool = False
) -> Tensor:
    """:func:`adaptive_resample` from raw heads, float32; on a GPU all in one CUDA kernel.

    ``quantise`` clamps and rounds LR to 8 bits, without a gradient.
    """
    if image.is_cuda:
        from carcodec.plugins.resampler import pytorch as fused

        if fused.usable(image.device.index):
            return fused.resample(image, *heads, scale, convex=convex, quantise=quantise)
    weights, offsets = normalised_weights(heads[0], convex), bounded_offsets(heads[1], scale)
    small = adaptive_resample(image, weights, offsets, scale)
    return small.clamp(0, 1).mul(255).round().div(255) if quantise else small


class ResamplerNet(nn.Module):
    """Estimate each LR pixel's kernel and offsets from the HR image (section III-A).

    A strided convolution whose kernel covers 3×3 cells of ``cell``×``cell`` LR pixels maps the
    image to ``width`` channels a cell, ``blocks`` residual blocks follow, and two branches of
    ``head_width`` channels bring the features up to LR resolution by sub-pixel convolution.
    The paper's size is ``width=128, blocks=5, head_width=256, cell=2``. With ``cell=1`` features
    live at LR resolution and the branches need no sub-pixel step: in a small network that learns
    far more of the kernels (docs/MODELS.md). ``context`` moves most of the work to half of that
    resolution, a quarter of the price, and keeps the features themselves where they are; ours.

    Args:
        scale: HR pixels per LR pixel.
        cell: LR pixels a feature stands for, 1 or 2.
        context: residual blocks of ``context_width`` channels at half the features' resolution,
            whose result is added to them before ``blocks``; 0 leaves the path out.
        kernel: k, taps a side on the HR grid; the paper's 3×3 LR pixels are ``3*scale``.
        convex: see :func:`normalised_weights`.
        offsets: without them every tap stays where it is (the ablation of table III).
    """

    def __init__(
        self,
        scale: int,
        width: int = 128,
        blocks: int = 5,
        head_width: int = 256,
        kernel: int | None = None,
        convex: bool = False,
        cell: int = 2,
        context: int = 0,
        context_width: int = 64,
        offsets: bool = True,
    ) -> None:
        super().__init__()
        if cell not in (1, 2):
            raise ValueError(f"cell must be 1 or 2, not {cell}")
        if context and cell != 1:
            raise ValueError("context wants features at LR resolution: cell = 1")
        self.scale = scale
        self.cell = cell
        self.kernel = kernel or 3 * scale
        self.convex = convex
        taps = self.kernel**2
        stride = cell * scale
        self.head = nn.Conv2d(3, width, 3 * stride, stride=stride, padding=stride)
        self.context: nn.Sequential | None = None
        if context:
            self.context = nn.Sequential(
                nn.Conv2d(width, context_width, 2, stride=2),
                nn.LeakyReLU(0.2),
                *(ResidualBlock(context_width, nn.LeakyReLU(0.2)) for _ in range(context)),
                nn.Conv2d(context_width, 4 * width, 1),
                nn.PixelShuffle(2),
            )
        self.body = nn.Sequential(*(ResidualBlock(width, nn.LeakyReLU(0.2)) for _ in range(blocks)))
        self.weights = self._branch(width, head_width, taps, cell)
        self.offsets = self._branch(width, head_width, 2 * taps, cell) if offsets else None
        with torch.no_grad():  # start as bicubic downscaling, undisplaced
            last: Any = self.weights[-1]
            last.weight *= 0.05
            last.bias.copy_(bicubic_kernel(scale, self.kernel).flatten())
            if self.offsets is not None:
                last = self.offsets[-1]
                last.weight *= 0.05
                last.bias.zero_()

    @staticmethod
    def _branch(width: int, head_width: int, outputs: int, cell: int) -> nn.Sequential:
        layers: list[nn.Module] = [nn.Conv2d(width, head_width, 3, padding=1), nn.LeakyReLU(0.2)]
        if cell > 1:
            layers += [
                nn.Conv2d(head_width, cell**2 * head_width, 1),
                nn.PixelShuffle(cell),
                nn.LeakyReLU(0.2),
            ]
        return nn.Sequential(*layers, nn.Conv2d(head_width, outputs, 1))

    @staticmethod
    def _last(branch: nn.Sequential, x: Tensor) -> Tensor:
        """A branch whose last layer stays in float32: bfloat16 would round kernels to 1/256."""
        x = branch[:-1](x)
        with torch.autocast(x.device.type, enabled=False):
            head: Tensor = branch[-1](x.float())
        return head

    @property
    def halo(self) -> int:
        """Receptive-field radius of the kernels in LR pixels (the taps themselves reach 3)."""
        # a cell of the half resolution ends up to one LR pixel further out than it is reached
        context = 0 if self.context is None else 4 * (len(self.context) - 4) + 1
        return self.cell * (2 + 2 * len(self.body)) + context

    def heads(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Raw kernel and offset heads, ``(N, k*k, h, w)`` and ``(N, 2*k*k, h, w)``."""
        x = functional.leaky_relu(self.head(image - 0.5), 0.2)
        if self.context is not None:
            x = x + self.context(x)
        x = self.body(x)
        weights = self._last(self.weights, x)
        if self.offsets is None:
            return weights, torch.zeros_like(weights).repeat(1, 2, 1, 1)
        return weights, self._last(self.offsets, x)

    def resampled(
        self, image: Tensor, heads: tuple[Tensor, Tensor], quantise: bool = False
    ) -> Tensor:
        """LR from :meth:`heads`, by :func:`resampled`."""
        floats = (heads[0].float(), heads[1].float())
        return resampled(image, floats, self.scale, self.convex, quantise)

    def kernels(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised weights and bounded offsets, as :func:`adaptive_resample` takes them."""
        weights, offsets = self.heads(image)
        return (
            normalised_weights(weights.float(), self.convex),
            bounded_offsets(offsets.float(), self.scale),
        )

    def forward(self, image: Tensor) -> Tensor:
        """HR ``(N, 3, H, W)`` in [0, 1] to LR ``(N, 3, H/s, W/s)``, neither clamped nor rounded."""
        return self.resampled(image, self.heads(image))


class EDSR(nn.Module):
    """EDSR-style upscaler (section III-C): residual blocks, global skip, sub-pixel output.

    A 5×5 convolution initialised to bicubic interpolation carries the image around the
    network, so that training starts from bicubic upscaling rather than from noise.
    The paper's size is ``width=256, blocks=32, residual_scale=0.1``.

    Args:
        scale: HR pixels per LR pixel; 1 restores without enlarging.
        conditioned: the network is told the quality at which LR was stored, and a small
            perceptron turns it into a gain for every feature of every block's residual: one
            network then serves all qualities. Ours, not the paper's.
        stride: LR pixels a feature stands for a side; with 2, LR's sides must be even. At scale 1
            it makes the network as fast as at scale 2.
    """

    def __init__(
        self,
        scale: int,
        width: int = 256,
        blocks: int = 32,
        residual_scale: float = 1.0,
        conditioned: bool = False,
        stride: int = 1,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, not {stride}")
        self.scale = scale
        self.stride = stride
        self.head = nn.Conv2d(3, width, stride + 2, stride=stride, padding=1)
        self.body = nn.Sequential(
            *(ResidualBlock(width, nn.ReLU(), residual_scale) for _ in range(blocks)),
        )
        self.tail = nn.Conv2d(width, 3 * (scale * stride) ** 2, 3, padding=1)
        self.skip = nn.Conv2d(3, 3 * scale**2, 5)
        self.condition: nn.Sequential | None = None
        if conditioned:
            self.condition = nn.Sequential(
                nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, blocks * width)
            )
        with torch.no_grad():
            # At scale 1 training starts from the image as it is: what it adds would be noise.
            self.tail.weight *= 0.1 if scale > 1 else 0.0
            self.tail.bias.zero_()  # type: ignore[union-attr]
            self.skip.weight.copy_(bicubic_phases(scale))
            self.skip.bias.zero_()  # type: ignore[union-attr]
            if self.condition is not None:  # start with gains of 1
                last: Any = self.condition[-1]
                last.weight.zero_()
                last.bias.fill_(1)

    @property
    def halo(self) -> int:
        """Receptive-field radius in LR pixels."""
        return self.stride * (2 + 2 * len(self.body))

    def grown(self, smaller: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Weights with which this network computes exactly what a smaller one does, and can learn.

        ``smaller`` is the state of one of the same scale, stride and conditioning, with fewer
        features or blocks; ``None`` if it is not. New features are computed from the old ones and
        read by new ones alone, new blocks add nothing. After Chen, Goodfellow and Shlens,
        "Net2Net: accelerating learning via knowledge transfer" (2016).
        """
        own = {name: value.clone() for name, value in self.state_dict().items()}
        numbers = {int(name.split(".")[1]) for name in smaller if name.startswith("body.")}
        same = ("tail.bias", "skip.weight", "condition.0.weight")
        if (
            not numbers
            or not set(smaller) <= set(own)
            or any((name in own) != (name in smaller) for name in same)
            or any(name in own and own[name].shape != smaller[name].shape for name in same)
            or smaller["head.weight"].shape[1:] != own["head.weight"].shape[1:]
            or len(smaller["head.weight"]) > len(own["head.weight"])
        ):
            return None
        blocks, width = max(numbers) + 1, len(smaller["head.weight"])
        for name, value in own.items():
            if name not in smaller:  # of a new block
                if ".second." in name:
                    value.zero_()
                continue
            given = smaller[name]
            if name.startswith("condition.2."):  # gains, block by block
                rows = value.view(len(self.body), -1, *value.shape[1:])
                rows[:blocks, :width] = given.view(blocks, width, *given.shape[1:])
            elif value.ndim == 4:
                value[: len(given), given.shape[1] :] = 0
                value[: len(given), : given.shape[1]] = given
            else:
                value[: len(given)] = given
        return own

    def forward(self, image: Tensor, quality: Tensor | None = None) -> Tensor:
        """LR ``(N, 3, h, w)`` in [0, 1] to HR ``(N, 3, s*h, s*w)``, not clamped.

        ``quality`` ``(N,)`` in [0, 1], 1 for lossless; a network without condition ignores it,
        one with takes lossless where it is not given.
        """
        x = self.head(image - 0.5)
        if self.condition is None:
            y = self.body(x)
        else:
            if quality is None:
                quality = image.new_ones(len(image))
            gains = self.condition(quality[:, None])[..., None, None].chunk(len(self.body), 1)
            y = x
            for block, gain in zip(self.body, gains, strict=True):
                y = y + gain * block.residual(y)  # type: ignore[operator]
        x = self.tail(x + y)
        around = self.skip(edges(image, 2))
        if self.stride == 1:
            return functional.pixel_shuffle(x + around, self.scale)
        x = functional.pixel_shuffle(x, self.scale * self.stride)
        return x + functional.pixel_shuffle(around, self.scale)


def offset_distance_loss(offsets: Tensor, scale: int, eta: float = 1.0) -> Tensor:
    """Mean over kernels of eq. 9, offsets taken in units of one LR pixel.

    Taps far from the centre pay more for moving; ``eta`` is the paper's constant (its gradient
    is zero, it only shifts the value). The sum over taps is divided by their number.
    """
    n, planes, h, w = offsets.shape
    k = round((planes // 2) ** 0.5)
    at = torch.arange(k, dtype=offsets.dtype, device=offsets.device) - (k - 1) / 2
    distance = torch.sqrt(at[:, None] ** 2 + at[None] ** 2) / k
    dx, dy = offsets.view(n, 2, k, k, h, w).unbind(1)
    moved: Tensor = torch.sqrt(dx**2 + dy**2 + 1e-12) / scale
    loss: Tensor = (eta + moved * distance[..., None, None]).mean()
    return loss


def partial_tv_loss(weights: Tensor, offsets: Tensor, scale: int) -> Tensor:
    """Partial total variation of the offsets, weighted by the kernels (eq. 10), per LR pixel.

    Vertical displacement is smoothed in the horizontal direction and the other way round, in
    units of one LR pixel. Weights enter by magnitude, which matters for kernels with lobes.
    """
    dx, dy = (offsets / scale).chunk(2, 1)
    mass = weights.abs()
    vertical = (dy[..., :, 1:] - dy[..., :, :-1]).abs() * mass[..., :, :-1]
    horizontal = (dx[..., 1:, :] - dx[..., :-1, :]).abs() * mass[..., :-1, :]
    return vertical.sum(1).mean() + horizontal.sum(1).mean()
