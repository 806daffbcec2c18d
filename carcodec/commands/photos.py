"""Photos to .carimg and back: encode, decode, thumbnail, info, verify."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich.table import Table

from carcodec import codec, container, dial, files, metrics, pixels, rate, storage, zoo
from carcodec.commands.terminal import (
    Engine,
    Inputs,
    Output,
    Overwrite,
    Quiet,
    Skip,
    Threads,
    Verbose,
    complain,
    each,
    named,
    parts,
    printed,
    screen,
)
from carcodec.errors import CarcodecError

__all__ = ["decode", "encode", "info", "pillow_autoload", "thumbnail", "verify"]

_STORAGES = ", ".join(c.name for c in storage.STORAGES)


def encode(
    inputs: Inputs,
    output: Output = None,
    model: Annotated[str, typer.Option(help="auto, or one of `carcodec models list`.")] = "auto",
    scale: Annotated[str, typer.Option(help="auto, or how much smaller: 1, 2, …")] = "auto",
    storage_codec: Annotated[
        str, typer.Option("--storage", help=f"Codec of the small image: auto, {_STORAGES}.")
    ] = "auto",
    quality: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=100,
            help="0…100, a dial over all scales; the storage codec's own where "
            "the model or scale is given.",
            show_default="the highest that stores a half-size image",
        ),
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Store the small image losslessly.")
    ] = False,
    max_bytes: Annotated[
        int | None, typer.Option(min=1, help="Best quality in at most so many bytes.")
    ] = None,
    target_bpp: Annotated[
        float | None, typer.Option(min=0, help="Best quality in so many bits per pixel.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(min=0, help="Smallest file of this PSNR (RGB, dB).")
    ] = None,
    target_ssim: Annotated[
        float | None, typer.Option(min=0, max=1, help="Smallest file of this SSIM (RGB).")
    ] = None,
    alpha_quality: Annotated[
        int | None,
        typer.Option(min=0, max=100, help="Store alpha lossily.", show_default="lossless"),
    ] = None,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave EXIF and XMP out; the colour profile stays.")
    ] = False,
    strip_maker_note: Annotated[
        bool,
        typer.Option("--strip-maker-note", help="Leave EXIF's maker note out: 15 kB of a Sony's."),
    ] = False,
    effort: Annotated[
        int,
        typer.Option(
            min=0, max=9, help="Time for bytes: from 6 other scales are tried, from 7 refined."
        ),
    ] = storage.DEFAULT_EFFORT,
    engine: Engine = "auto",
    threads: Threads = 0,
    check: Annotated[bool, typer.Option("--check", help="Decode again, report PSNR/SSIM.")] = False,
    overwrite: Overwrite = False,
    skip_existing: Skip = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode photos to .carimg."""
    dials = {
        "--lossless": lossless or None,
        "--quality": quality,
        "--max-bytes": max_bytes,
        "--target-bpp": target_bpp,
        "--target-psnr": target_psnr,
        "--target-ssim": target_ssim,
    }
    given = [dial for dial, value in dials.items() if value is not None]
    if len(given) > 1:
        raise typer.BadParameter(f"{' and '.join(given)} exclude each other")
    wanted = _scale(model, scale)
    if storage_codec != "auto" and given and given != ["--lossless"]:
        chosen = storage.by_name(storage_codec)
        if not chosen.lossy:
            raise typer.BadParameter(f"{chosen.title} is lossless only: leave {given[0]} out")

    def one(source: str, target: str, report: Callable[[float], None]) -> str:
        start = time.perf_counter()
        photo = files.read_photo(source)
        if strip:
            photo = dataclasses.replace(photo, exif=None, xmp=None)
        if strip_maker_note:
            photo = named(source, lambda: pixels.without_maker_note(photo))
        options: dict[str, Any] = {
            "model": model,
            "scale": wanted,
            "storage_codec": storage_codec,
            "alpha_quality": alpha_quality,
            "effort": effort,
            "engine": engine,
            "threads": threads,
            "progress": report,
        }
        area = photo.colour.shape[0] * photo.colour.shape[1]
        goals: list[rate.Target] = []
        if max_bytes is not None:
            goals.append(rate.Target("bytes", max_bytes))
        if target_bpp is not None:
            goals.append(rate.Target("bytes", target_bpp * area / 8))
        if target_psnr is not None:
            goals.append(rate.Target("psnr", target_psnr))
        if target_ssim is not None:
            goals.append(rate.Target("ssim", target_ssim))
        if goals:
            encoded = rate.meet(photo, goals[0], **options).encoded
        else:
            asked: dial.Quality = None if lossless else "auto" if quality is None else quality
            encoded = rate.encode(photo, quality=asked, **options)
        seconds = time.perf_counter() - start
        scores = _check(photo, encoded.data, engine, threads) if check else ""
        files.write_bytes(target, encoded.data, overwrite)
        header = encoded.header
        stored = storage.by_number(header.storage).name
        stored += " lossless" if header.lossless_lr else f" quality {encoded.quality:g}"
        left = f" (1 of {photo.count} pictures in it)" if photo.count > 1 else ""
        return (
            f"{header.width}×{header.height} {header.mode_name}{left}, {header.model}, "
            f"{stored}: {len(encoded.data):,} bytes, {encoded.bpp:.3f} bpp, "
            f"{seconds:.1f} s{scores}"
        )

    each(
        inputs, files.PICTURES, output, ".carimg", overwrite, skip_existing, quiet, "Encoding", one,
        engine,
    )  # fmt: skip


def decode(
    inputs: Inputs,
    output: Output = None,
    format: Annotated[
        str, typer.Option(help="Extension where -o names no file: png, jpg, webp, tif, …")
    ] = "png",
    region: Annotated[
        str,
        typer.Option(
            metavar="LEFT,TOP,RIGHT,BOTTOM",
            help="Only this part, in pixels of the photo; the network runs only there.",
            show_default="all of it",
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(
            help="Restore with another model that has the same downscaler: newest is its newest "
            "version that has, fast a small network where there is one.",
            show_default="the file's own",
        ),
    ] = "",
    self_ensemble: Annotated[
        bool,
        typer.Option(
            "--self-ensemble",
            help="The mean of eight restorations, mirrored and turned: nearer to the photo, eight "
            "times as slow. For scale 1.",
        ),
    ] = False,
    engine: Engine = "auto",
    threads: Threads = 0,
    overwrite: Overwrite = False,
    skip_existing: Skip = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Restore full-size photos, in the format that the output's extension says."""
    suffix = "." + format.lower().removeprefix(".")
    wanted = _region(region)

    def one(source: str, target: str, report: Callable[[float], None]) -> str:
        start = time.perf_counter()
        data = files.read_bytes(source)
        photo = named(
            source,
            lambda: codec.restore(data, engine, threads, 0, report, wanted, model, self_ensemble),
        )
        written = files.image_bytes(photo, suffix if target == "-" else Path(target).suffix)
        files.write_bytes(target, written, overwrite)
        height, width = photo.colour.shape[:2]
        return f"{width}×{height} {photo.mode}, {time.perf_counter() - start:.1f} s"

    each(
        inputs, {".carimg"}, output, suffix, overwrite, skip_existing, quiet, "Decoding", one,
        engine,
    )  # fmt: skip


def _region(text: str) -> codec.Region | None:
    if not text:
        return None
    try:
        left, top, right, bottom = map(int, parts(text))
    except ValueError:
        raise typer.BadParameter(
            f"--region takes four whole numbers, left,top,right,bottom, not {text!r}"
        ) from None
    return left, top, right, bottom


def thumbnail(
    inputs: Inputs,
    output: Output = None,
    size: Annotated[int, typer.Option(min=0, help="Longest side in pixels; 0 as stored.")] = 0,
    overwrite: Overwrite = False,
    skip_existing: Skip = False,
    quiet: Quiet = False,
) -> None:
    """Write the stored small image; no model is needed and no network runs.

    As stored, where that is what the output's extension asks for: an .avif of a file with AVIF
    inside has nothing coded again.
    """

    def one(source: str, target: str, report: Callable[[float], None]) -> str:
        data = files.read_bytes(source)
        file = named(source, lambda: container.read(data))
        width, height = file.header.lr_size
        stored = named(source, lambda: storage.by_number(file.header.storage))
        plain = not (size or file.alpha or file.icc or file.header.colour_lr)
        if plain and stored.extension and Path(target).suffix.lower() == stored.extension:
            named(source, lambda: codec.stored_image(file))  # it is sound
            files.write_bytes(target, stored.in_file(file.lr), overwrite)
            return f"{width}×{height}, as stored"
        share = min(1.0, size / max(width, height)) if size else 1.0
        wanted = (max(1, round(width * share)), max(1, round(height * share)))
        image = named(source, lambda: codec.thumbnail(file, wanted))
        if image.size != wanted:
            image = image.resize(wanted, Image.Resampling.LANCZOS)
        suffix = ".png" if target == "-" else Path(target).suffix
        written = files.image_bytes(pixels.from_image(image), suffix)
        files.write_bytes(target, written, overwrite)
        return f"{image.width}×{image.height}"

    each(inputs, {".carimg"}, output, ".thumb.png", overwrite, skip_existing, quiet, "Reading", one)


def info(
    inputs: Inputs,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one list.")] = False,
) -> None:
    """Say what .carimg files hold, from their headers."""
    found: list[dict[str, Any]] = []
    failed = False
    for source, _ in files.inputs(inputs, {".carimg"}):
        try:
            found.append(_describe(source))
        except CarcodecError as error:
            complain(error)
            failed = True
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for entry in found:
            printed.print(entry["file"], soft_wrap=True)  # whole, to be copied
            table = Table(show_header=False)
            for key, value in entry.items():
                if key != "file" and value is not None:
                    shown = ("no", "yes")[value] if isinstance(value, bool) else str(value)
                    table.add_row(key.replace("_", " "), shown)
            printed.print(table)
    if failed:
        raise typer.Exit(1)


def verify(inputs: Inputs, quiet: Quiet = False) -> None:
    """Check every byte of .carimg files and decode their stored images, without a network."""
    failed = False
    for source, _ in files.inputs(inputs, {".carimg"}):
        try:
            data = files.read_bytes(source)
            file = named(source, lambda data=data: container.read(data))  # type: ignore[misc]
            named(source, lambda file=file: codec.thumbnail(file))  # type: ignore[misc]
        except CarcodecError as error:
            complain(error)
            failed = True
            continue
        header = file.header
        try:
            zoo.find(header.model, header.model_version, header.model_digest)
            note = "sound"
        except CarcodecError as error:
            note = f"sound, but cannot be decoded here: {error}"
        if not quiet:
            screen.print(f"{source}: {note}")
    if failed:
        raise typer.Exit(1)


def pillow_autoload(
    state: Annotated[str, typer.Argument(help="on, off or status.")] = "status",
) -> None:
    """Let every Python program here open .carimg with Pillow, without importing carcodec."""
    from carcodec.plugins import autoload

    if state not in ("on", "off", "status"):
        raise typer.BadParameter("say on, off or status")
    typer.echo(autoload.switch(state))


def _scale(model: str, scale: str) -> int:
    """The scale asked for, 0 for auto, checked against what is installed."""
    if scale == "auto":
        return 0
    if model != "auto":
        raise typer.BadParameter("--model and --scale exclude each other")
    have = sorted({c.scale for c in zoo.installed()})
    if not scale.isdecimal() or int(scale) not in have:
        raise typer.BadParameter(
            f"no installed model has scale {scale}; there are auto, {', '.join(map(str, have))}"
        )
    return int(scale)


def _check(photo: pixels.Photo, data: bytes, engine: str, threads: int) -> str:
    restored = codec.restore(data, engine, threads)
    psnr = metrics.psnr(photo.colour, restored.colour)
    ssim = metrics.ssim(photo.colour, restored.colour)
    return f", PSNR {psnr:.2f} dB, SSIM {ssim:.4f}"


# what the header's quality says, by what the model is told
_QUALITIES = {"quality": "storage codec", "step": "quantiser's step"}


def _describe(source: str) -> dict[str, Any]:
    data = files.read_bytes(source)
    file: container.Carimg = named(source, lambda: container.read(data))
    header = file.header
    names = {number: c.name for c in storage.STORAGES for number in (c.number, *c.older)}
    try:
        card = zoo.find(header.model, header.model_version, header.model_digest)
    except CarcodecError:
        card = None
    return {
        "file": source,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 4),
        "width": header.width,
        "height": header.height,
        "mode": header.mode_name,
        "scale": header.scale,
        "small_width": header.lr_size[0],
        "small_height": header.lr_size[1],
        "model": header.model,
        "model_version": header.model_version,
        "model_digest": header.model_digest.hex(),
        "model_installed": card is not None,
        "storage": names.get(header.storage, header.storage),
        "quality": "lossless" if header.lossless_lr else header.quality,
        "quality_of": _QUALITIES[card.told] if card and not header.lossless_lr else None,
        "lr_bytes": len(file.lr),
        "alpha_bytes": len(file.alpha or b""),
        "metadata_bytes": container.metadata_bytes(data),  # of the next three, as stored
        "icc_bytes": len(file.icc or b""),
        "exif_bytes": len(file.exif or b""),
        "xmp_bytes": len(file.xmp or b""),
    }
