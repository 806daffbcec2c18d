"""The training loop: joint training of a downscaler and an upscaler within a time budget."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from carcodec import atomic, zoo
from carcodec.errors import MissingDependencyError, TrainingError
from carcodec.networks import car, families, tad
from carcodec.training import losses, precision, proxies
from carcodec.training.data import Patches, load_images, split
from carcodec.training.optimiser import build_optimisers
from carcodec.training.recipe import Recipe
from carcodec.training.revive import Reviver
from carcodec.training.sheet import sheet
from carcodec.training.stock import Stock, cut, lost, rooms
from carcodec.training.world import World, join
from carcodec.zoo import halves

__all__ = ["Progress", "build_networks", "load_checkpoint", "train"]

_WATCHED = 10  # steps before each search for dead features: watching takes time
_OFTEN = 4  # qualities that LR of a part of a photo is stored at, where a network makes it
_CUTS = 2  # patches of each part of a photo that the storage codec is given whole


@dataclass(frozen=True)
class Progress:
    """What a running training reports: losses are means since the last report."""

    step: int
    minutes: float
    budget: float
    loss: float
    learning_rate: float
    validation_psnr: float | None = None


def build_networks(recipe: Recipe) -> tuple[nn.Module, nn.Module]:
    """The recipe's downscaler and upscaler, freshly initialised."""
    down, up = recipe.downscaler, recipe.upscaler
    return (
        families.build("downscaler", down.family, recipe.scale, down.options),
        families.build("upscaler", up.family, recipe.scale, up.options),
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint written by :func:`train`.

    Raises:
        TrainingError: missing or damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"there is no checkpoint at {path}") from error
    except Exception as error:
        raise TrainingError(f"the checkpoint {path} is damaged: {error}") from error
    return state


def _given_weights(start: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint file, of a model's folder, or of an installed model's name."""
    if start.suffix or start.is_file():
        weights: dict[str, Tensor] = load_checkpoint(start)["average"]
        return weights
    from onnx import numpy_helper

    card = zoo.load_card(start / "card.toml") if start.is_dir() else zoo.find(str(start))
    return {
        f"{side}.{value.name}": torch.from_numpy(numpy_helper.to_array(value).copy())
        for side in ("downscaler", "upscaler")
        for value in halves.network(card, getattr(card, side)).graph.initializer
    }


def _cpu_has_bfloat16() -> bool:
    """Whether bfloat16 is quick here: emulated, it takes ten times as long as float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _check_teacher(recipe: Recipe) -> None:
    schedule = recipe.training
    if not schedule.teacher:
        return
    card, wanted = zoo.find(schedule.teacher), (schedule.codec, schedule.told)
    if (card.scale, card.storage, card.told) != (recipe.scale, *wanted):
        raise TrainingError(
            f"the teacher {card.name} is for scale {card.scale}, {card.storage or 'lossless'} "
            f"storage and its {card.told}, the recipe for scale {recipe.scale}, {schedule.codec} "
            f"and its {schedule.told}"
        )


class _Trainer:
    def __init__(
        self, recipe: Recipe, folder: Path, device: torch.device, world: World | None = None
    ) -> None:
        schedule = recipe.training
        _check_teacher(recipe)  # first: photos take a while to load
        torch.manual_seed(schedule.seed)
        if device.type == "cuda":  # all batches are of one shape
            torch.backends.cudnn.benchmark = True
        self.recipe, self.schedule, self.device = recipe, schedule, device
        self.world = world or World()
        networks = build_networks(recipe)
        self.networks = [n.to(device) for n in networks]
        for network in self.networks:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            precision.exact_images(network)
        self.downscaler, self.upscaler = self.networks
        train_files, held_out = split(folder)
        self.patches = Patches(
            load_images(train_files, schedule.whole or schedule.patch),
            schedule.whole or schedule.patch,
            schedule.seed + 1000 * self.world.rank,
            schedule.decimate,
        )
        self.held_out = [self._centre(i) for i in load_images(held_out, 2 * recipe.scale)]
        self.optimisers = build_optimisers(*networks, schedule.optimiser, schedule.downscaler_rate)
        self.average = {k: v.clone() for k, v in self._weights().items()}
        self.precision: torch.dtype | None = None
        if schedule.bf16 and (device.type != "cpu" or _cpu_has_bfloat16()):
            self.precision = torch.bfloat16
        if schedule.fp16:
            self.precision = torch.float16
        # gradients of half precision underflow unless the loss is scaled up
        self.scaler = torch.amp.GradScaler(device.type, enabled=schedule.fp16)
        both = {"downscaler": self.downscaler, "upscaler": self.upscaler}
        self.reviver = Reviver(both) if schedule.revive else None
        if schedule.compile:
            self.upscaler.compile()
            if isinstance(self.downscaler, car.ResamplerNet):  # training asks it for more than LR
                self.downscaler.heads = torch.compile(self.downscaler.heads)  # type: ignore[method-assign]
            else:
                self.downscaler.compile()
        self.stock: Stock | None = None
        if schedule.stock:
            self.stock = Stock(
                schedule.stock, self._wholes, self._shrunk, self._drawn, schedule.codec,
                schedule.told, self.patches.random, device,
                often=1 if recipe.downscaler.family == "none" else _OFTEN,
                teacher=schedule.teacher,
            )  # fmt: skip
        self.step = 0
        self.revived = 0  # features, so far
        self.minutes = 0.0
        self.spent = 0.0  # share of the budget
        self.unseen: tuple[int, Tensor] | None = None  # the last step's loss, not looked at yet
        self.shown: list[tuple[Any, Any, Any]] = []  # of the last validation, for the sheet

    def close(self) -> None:
        if self.stock is not None:
            self.stock.close()

    def _weights(self) -> dict[str, Tensor]:
        return {
            f"{side}.{name}": value.detach()
            for side, network in zip(("downscaler", "upscaler"), self.networks, strict=True)
            for name, value in network.state_dict().items()
        }

    def _centre(self, image: Any, limit: int = 384) -> Tensor:
        multiple = 2 * self.recipe.scale
        height, width = (min(side, limit) // multiple * multiple for side in image.shape[:2])
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = torch.from_numpy(image[top : top + height, left : left + width].copy())
        return self._coloured(crop.permute(2, 0, 1)[None].float().div(255))

    def _coloured(self, image: Tensor) -> Tensor:
        """RGB as it is, or its luma ``(N, 1, H, W)``, which MATLAB's rgb2ycbcr rounds too."""
        if self.schedule.colour == "rgb":
            return image
        weights = image.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
        return ((image * weights).sum(1, keepdim=True) + 16).round().div(255)

    def _autocast(self) -> torch.autocast:
        dtype = self.precision or torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision is not None)

    def loss(self, image: Tensor) -> Tensor:
        """Eq. 11 on one batch, plus the optional guide term.

        With a storage codec, per sample, (MSE + rate * step² * bits per LR pixel) / (step² / 12)
        stands for eq. 8: 0.1155 step² is what a bit is worth where a fine quantiser of that step
        is best. Where the real codec trains the upscaler alone it is log(MSE + step² / 24), so that
        every quality counts in dB, and flat patches do not outweigh the rest; where it was given
        more than the patch, half the MSE of plain bicubic upscaling of all that it was given stands
        in for the step.
        """
        schedule, scale = self.schedule, self.recipe.scale
        alone = schedule.real and not self._downscaler_learns
        total = image.new_zeros(())
        if isinstance(self.downscaler, car.ResamplerNet):
            with self._autocast(), torch.set_grad_enabled(not alone):
                heads = self.downscaler.heads(image)
            small = self.downscaler.resampled(image, heads)
            offsets = car.bounded_offsets(heads[1].float(), scale)
            moving = self.downscaler.offsets is not None
            if schedule.offset and moving:
                total = total + schedule.offset * car.offset_distance_loss(offsets, scale)
            if schedule.tv and moving:
                weights = car.normalised_weights(heads[0].float(), self.downscaler.convex)
                total = total + schedule.tv * car.partial_tv_loss(weights, offsets, scale)
            if schedule.bounds:
                total = total + schedule.bounds * (small - small.detach().clamp(0, 1)).abs().mean()
        else:
            with self._autocast():
                small = self.downscaler(image)
            small = small.float()
        if schedule.guide:
            if isinstance(self.downscaler, tad.TADGrey):
                guide = self.downscaler.guide(image)
            else:
                guide = functional.interpolate(
                    image, scale_factor=1 / scale, mode="bicubic", antialias=True
                )
            total = total + schedule.guide * (small - guide).abs().mean()
        quality, plain_small = None, small.detach()
        if alone:
            small, quality = self._stored(small)
            missed = None
            if schedule.whole:
                image, small, quality, missed = self._cut(image, small, quality)
            return total + self._far(image, small, quality, missed)
        if schedule.codec in ("", "lossless"):
            if self.spent >= schedule.quantise:
                small = self._rounded(small)
            if schedule.codec:
                total = total + schedule.rate * proxies.lossless_bits(small).mean()
        else:
            coded, step, quality = self._proxied(small)
            small = self._rounded(coded.image)
            if schedule.real:  # the codec's own result, with the proxy's gradient
                stored, quality = losses.through(
                    schedule.codec, plain_small, (quality * 100).round()
                )
                small = small + (stored - small).detach()
            total = total + 12 * schedule.rate * coded.bits.mean()
        with self._autocast():
            restored = self.upscaler(small, quality)
        error = restored.float() - image
        if quality is not None:
            far = (12 * (error * 255 / step.view(-1, 1, 1, 1)).square()).mean()
        elif schedule.loss == "mse":
            # MSE weighs what PSNR counts; 20 brings it to L1's size where training ends
            far = 20 * error.square().mean()
        else:
            far = error.abs().mean()  # eq. 8
        if schedule.tint:
            far = far + 20 * schedule.tint * losses.tint(error)
        loss: Tensor = total + far
        return loss

    def _far(self, image: Tensor, small: Tensor, quality: Tensor, missed: Tensor | None) -> Tensor:
        """How far from the photos they are restored, where the upscaler learns alone."""
        schedule = self.schedule
        with self._autocast():
            restored = self.upscaler(small, quality).float()
        floor = (self._steps(quality * 100) / 255) ** 2 / 24 if missed is None else missed / 2
        far: Tensor = ((restored - image).square().mean((1, 2, 3)) + floor).log().mean()
        if schedule.ssim:
            unlike = losses.structure(restored, image, schedule.ssim_scales).mean()
            far = far + schedule.ssim * unlike
        return far

    def _wholes(self, count: int) -> Tensor:
        image = self._coloured(self.patches.batch(count, self.device))
        return image.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _shrunk(self, image: Tensor) -> Tensor:
        with self._autocast():
            small: Tensor = self.downscaler(image)
        return small.float()

    @property
    def _downscaler_learns(self) -> bool:
        """A rate of 0 freezes it, and at scale 1 there is nothing to learn."""
        return self.schedule.downscaler_rate > 0 and isinstance(self.downscaler, car.ResamplerNet)

    def _rounded(self, small: Tensor) -> Tensor:
        """LR as 8 bits hold it; gradients by eq. 7."""
        return car.soft_round(small.clamp(0, 1) * 255, self.schedule.soft_round) / 255

    def _drawn(self, count: int) -> Tensor:
        low, high = self.schedule.quality_low, self.schedule.quality_high
        random, mode = self.patches.random, self.schedule.quality_mode
        drawn = (
            random.triangular(low, mode, high, count) if mode else random.uniform(low, high, count)
        )
        return torch.from_numpy(drawn).float().to(self.device)

    def _proxied(self, small: Tensor) -> tuple[proxies.Coded, Tensor, Tensor]:
        """LR through the codec's proxy, its steps in levels, and its qualities in [0, 1]."""
        codec, quality = self.schedule.codec, self._drawn(len(small))
        step = self._steps(quality)
        if codec != "jpeg2000":
            return proxies.dct_codec(small, step, **proxies.SHAPES[codec]), step, quality / 100
        # take the quality that the step gave
        coded = proxies.wavelet_codec(small, step)
        error = (coded.image - small).detach().square().mean((1, 2, 3))
        quality = (-10 * torch.log10(error + 1e-10) - 20) / 40
        return coded, step, quality.clamp(0, 1)

    def _steps(self, quality: Tensor) -> Tensor:
        """About the storage codec's steps in levels at qualities ``(N,)`` in 0…100."""
        codec = self.schedule.codec
        if codec == "jpeg2000":  # its quality is a PSNR: 20 dB and 0.4 dB a step
            return 12**0.5 * 255 / 10 ** ((20 + 0.4 * quality) / 20)
        return quality.new_tensor([proxies.dct_step(codec, float(q)) for q in quality])

    @torch.no_grad()
    def _stored(self, small: Tensor) -> tuple[Tensor, Tensor]:
        """LR through the storage codec itself, and in [0, 1] what the upscaler is told of it."""
        quality = self._drawn(len(small)).round()
        return losses.through(self.schedule.codec, small, quality, self.schedule.told)

    @torch.no_grad()
    def _cut(
        self, image: Tensor, small: Tensor, quality: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches of HR and of the stored LR, their qualities, and the MSE of what they are of."""
        side = self.schedule.patch // self.recipe.scale
        pick = np.tile(np.arange(len(image)), _CUTS)
        corners = self.patches.random.integers(rooms(small, side), size=(len(pick), 2))
        drawn = np.stack((pick, *corners.T))[:, : self.schedule.batch]
        places = torch.from_numpy(drawn).to(self.device)
        images, smalls = cut(image, small, places, side)
        return images, smalls, quality[places[0]], lost(image, small)[places[0]]

    def update(self, budget: float) -> tuple[Tensor, float]:
        """One optimiser step; the learning rate follows the share of the budget already spent."""
        spent = self.spent = min(self.minutes / budget, 1.0)
        ramp = min(1.0, (self.step + 1) / 200, max(spent, 1e-3) / max(self.schedule.warmup, 1e-3))
        rate = self.schedule.learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * spent))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["ratio"]
        revive = self.schedule.revive if self.reviver and spent < 2 / 3 else 0
        with self._watching(bool(revive) and -(self.step + 1) % revive < _WATCHED):
            loss = self._loss_of_a_batch()
        shared = loss.detach().clone()
        self.world.mean([shared])  # not finite on one, not finite on all
        self.confirm()
        self.unseen = self.step, shared
        if self._downscaler_learns:  # grid_sample's gradient writes out of bounds at NaN positions
            self.confirm()
        for optimiser in self.optimisers:
            optimiser.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        for optimiser in self.optimisers:
            self.scaler.unscale_(optimiser)
        learning = [p for n in self.networks for p in n.parameters() if p.grad is not None]
        self.world.mean([p.grad for p in learning if p.grad is not None])
        nn.utils.clip_grad_norm_(learning, self.schedule.clip)
        for optimiser in self.optimisers:
            self.scaler.step(optimiser)
        self.scaler.update()
        self.step += 1
        decay = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            current = self._weights()
            torch._foreach_lerp_(
                [self.average[k] for k in current], list(current.values()), 1 - decay
            )
        if self.reviver and revive and self.step % revive == 0:
            seed = self.schedule.seed + self.step
            self.revived += self.reviver.revive(self.average, self.optimisers, seed, self.world)
        return shared, rate

    def confirm(self) -> None:
        """Look at the last step's loss, which waits for a GPU: best while it does the next.

        Raises:
            TrainingError: it is not finite, and what has been learned since is not either.
        """
        if self.unseen is None:
            return
        (step, loss), self.unseen = self.unseen, None
        if not math.isfinite(float(loss)):
            raise TrainingError(
                f"training diverged at step {step}: lower learning_rate and go on from the "
                "last checkpoint with --resume"
            )

    def _loss_of_a_batch(self) -> Tensor:
        count = self.schedule.batch
        if self.stock is not None:
            return self._far(*self.stock.draw(count, self.schedule.patch // self.recipe.scale))
        return self.loss(self._wholes(-(-count // _CUTS) if self.schedule.whole else count))

    @contextmanager
    def _watching(self, wanted: bool) -> Iterator[None]:
        if self.reviver is None or not wanted:
            yield
        else:
            with self._uncompiled(), self.reviver.watching():
                yield

    def _uncompiled(self) -> AbstractContextManager[Any]:
        """Without torch.compile's kernels, which are for one size and call no hooks."""
        if not self.schedule.compile:
            return nullcontext()
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eager

    def validate(self) -> float:
        """Mean RGB PSNR (dB) of the averaged weights over the held-out crops, LR rounded.

        A recipe for a lossy storage codec has LR stored by it, at the middle of its qualities.
        """
        codec = self.schedule.codec if self.schedule.codec != "lossless" else ""
        middle = (self.schedule.quality_low + self.schedule.quality_high) / 2
        kept = {k: v.clone() for k, v in self._weights().items()}
        self._put(self.average)
        total = 0.0
        self.shown = []
        with torch.no_grad(), self._autocast(), self._uncompiled():
            for image in self.held_out:
                big = image.to(self.device, memory_format=torch.channels_last)
                small = self.downscaler(big).float().clamp(0, 1).mul(255).round().div(255)
                quality = None
                if codec:
                    asked = torch.full((1,), middle, device=self.device).round()
                    small, quality = losses.through(codec, small, asked, self.schedule.told)
                restored = self.upscaler(small, quality).float().clamp(0, 1).mul(255).round() / 255
                total -= 10 * math.log10(max(float(((restored - big) ** 2).mean()), 1e-10))
                if len(self.shown) < 4:
                    self.shown.append((_picture(big), _picture(small), _picture(restored)))
        self._put(kept)
        return total / len(self.held_out)

    def _put(self, weights: dict[str, Tensor]) -> None:
        for side, network in zip(("downscaler", "upscaler"), self.networks, strict=True):
            own = {k.removeprefix(f"{side}."): v for k, v in weights.items() if k.startswith(side)}
            network.load_state_dict(own)

    def save(self, path: Path) -> None:
        self.confirm()
        state = {
            "recipe": asdict(self.recipe),
            "weights": self._weights(),
            "average": self.average,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "minutes": self.minutes,
            "random": self.patches.random.bit_generator.state,
            "most": self.reviver.most if self.reviver else {},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic.write(path, buffer.getvalue())

    def start_from(self, path: Path) -> None:
        """Take another run's averaged weights, or a model's, as far as they fit.

        What that run lacks or has in another size starts afresh: a conditioned upscaler may start
        from one that is not (its gains are then 1), another scale from the features of this one,
        a downscaler of any size from bicubic. An EDSR that is wider or deeper begins by computing
        what the smaller one does (:meth:`.car.EDSR.grown`). A downscaler that fits and does not
        learn is enough: for it another upscaler is trained.

        Raises:
            TrainingError: fewer than half of the upscaler's weights fit, nor does that downscaler.
        """
        own, other = self._weights(), _given_weights(path)
        if isinstance(self.upscaler, car.EDSR):
            part = "upscaler."
            smaller = {k.removeprefix(part): v for k, v in other.items() if k.startswith(part)}
            other |= {part + k: v for k, v in (self.upscaler.grown(smaller) or {}).items()}
        fits = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
        side = "upscaler" if any(True for _ in self.upscaler.parameters()) else "downscaler"
        taken = sum(v.numel() for k, v in fits.items() if k.startswith(side))
        frozen = self.schedule.downscaler_rate == 0  # whatever its family
        kept = {k for k in own if k.startswith("downscaler") and frozen}
        enough = kept and kept <= set(fits)
        if not enough and taken < sum(v.numel() for k, v in own.items() if k.startswith(side)) / 2:
            raise TrainingError(f"{path} holds {side} weights of another size than the recipe's")
        self._put(own | fits)
        self.average = {k: v.clone() for k, v in self._weights().items()}

    def restore(self, path: Path) -> None:
        state = load_checkpoint(path)
        for part in ("name", "scale", "downscaler", "upscaler"):
            if state["recipe"][part] != asdict(self.recipe)[part]:
                raise TrainingError(
                    f"{path} was made by another recipe: its {part} differs; "
                    "train into another folder or leave out --resume"
                )
        self._put(state["weights"])
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.minutes = state["step"], state["minutes"]
        if self.reviver:
            saved_most = state.get("most", {})
            self.reviver.most |= {k: v.to(self.device) for k, v in saved_most.items()}
        self.scaler.load_state_dict(state.get("scaler", {}) or self.scaler.state_dict())
        if self.world.first:
            self.patches.random.bit_generator.state = state["random"]
        else:  # patches that no process has seen
            self.patches.random = np.random.default_rng([self.world.rank, self.step])


def _picture(image: Tensor) -> Any:
    """``(1, 1 or 3, H, W)`` to ``(H, W, 3)``."""
    return image[0].expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()


def train(
    recipe: Recipe,
    data: Path,
    out: Path,
    *,
    minutes: float | None = None,
    resume: bool = False,
    init: Path | None = None,
    device: str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
    report_every: float = 5.0,
    checkpoint_every: float = 120.0,
    validate_every: float = 300.0,
    tensorboard: bool = False,
) -> float:
    """Train ``recipe`` on the images under ``data``, leaving ``out/checkpoint.pt`` and a log.

    Under torchrun several processes train together, each on patches of its own: a batch is then
    the recipe's times their number, and the first one writes. ``sheet.png`` shows some held-out
    photos as the last validation saw them. The learning rate follows a cosine over ``minutes`` of
    training time (the recipe's own budget by default); time spent before a resume counts. The
    seconds given last space reports, checkpoints and validations. A new run starts from ``init``: a
    checkpoint's averaged weights, or the weights of a model, given by its folder or its name.
    ``tensorboard`` writes what goes into the log, and the sheet, as TensorBoard's events, too.

    Returns:
        The final validation RGB PSNR in dB; NaN on any but the first of several processes.

    Raises:
        TrainingError: a run is in the way and ``resume`` is not set, or the loss diverged.
        DataError: ``data`` holds no usable images.
        ModelNotFoundError: ``init`` names a model that is not installed.
        MissingDependencyError: ``tensorboard`` is not installed.
    """
    if tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError(
            "TensorBoard's events need its package: pip install tensorboard"
        )
    budget = minutes or recipe.training.minutes
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise TrainingError(f"{checkpoint} exists: continue it with --resume or choose another -o")
    world, own = join(device)
    trainer: _Trainer | None = None
    try:
        trainer = _Trainer(recipe, data, own, world)
        if checkpoint.exists():
            trainer.restore(checkpoint)
        elif init is not None:
            trainer.start_from(init)
        out.mkdir(parents=True, exist_ok=True)
        psnr: float | None = None
        now = last = time.monotonic()
        reported = saved = validated = now
        recent: list[Tensor] = []
        while trainer.minutes < budget:
            loss, rate = trainer.update(budget)
            recent.append(loss)
            now = time.monotonic()
            trainer.minutes = world.same(trainer.minutes + (now - last) / 60, own)
            last = now
            if not world.first:
                recent.clear()
                continue
            finished = trainer.minutes >= budget
            if now - reported >= report_every or finished:
                mean = float(torch.stack(recent).mean())
                psnr = None
                if now - validated >= validate_every or finished:
                    psnr, validated = trainer.validate(), now
                    _log(out / "log.csv", trainer, mean, rate, psnr)
                    shown = sheet(trainer.shown, recipe.scale)
                    atomic.write(out / "sheet.png", shown)
                    if tensorboard:
                        _events(out, trainer.step, shown, mean, rate, psnr)
                report(Progress(trainer.step, trainer.minutes, budget, mean, rate, psnr))
                reported, recent = now, []
            if now - saved >= checkpoint_every or finished:
                trainer.save(checkpoint)
                saved = now
        if not world.first:
            return math.nan
        return trainer.validate() if psnr is None else psnr
    finally:
        if trainer is not None:
            trainer.close()
        world.leave()


def _events(out: Path, step: int, shown: bytes, loss: float, rate: float, psnr: float) -> None:
    from torch.utils.tensorboard import SummaryWriter

    # a writer for each: nothing is lost where the run is killed
    writer: Any = SummaryWriter(out)
    values = {"loss": loss, "learning_rate": rate, "validation_psnr": psnr}
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    with Image.open(io.BytesIO(shown)) as picture:
        writer.add_image("sheet", np.asarray(picture), step, dataformats="HWC")
    writer.close()


def _log(path: Path, trainer: _Trainer, loss: float, rate: float, psnr: float) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", "minutes", "loss", "learning_rate", "validation_psnr"])
        writer.writerow(
            [trainer.step, f"{trainer.minutes:.2f}", f"{loss:.6f}", f"{rate:.3e}", f"{psnr:.3f}"]
        )
