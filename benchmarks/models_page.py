"""Write docs/MODELS.md and README's table from the cards: python benchmarks/models_page.py"""

from __future__ import annotations

import math
import re
from pathlib import Path

import onnx

from carcodec import zoo
from carcodec.zoo import shelf

ROOT = Path(__file__).parent.parent

HEAD = """# Models

Written by `python benchmarks/models_page.py` from the cards; figures are on the
[paper protocol](PROTOCOL.md). "bicubic" is the same upscaler trained the same time on bicubic
LR; "paper" is CAR with EDSR 32×256 (IEEE TIP 2020, Table I), about a hundred times as large.
"LR bpp" is lossless JPEG XL; "JPEG bpp" is what a JPEG of the same RGB PSNR takes.

Models named after a storage codec are trained for it: both networks through the codec itself, the
upscaler told the stored quality. Their figures are means over photos at qualities of that codec,
whole files at the default effort, from `python benchmarks/results.py`.

The models for AVIF are at version 2, which goes on from version 1 for AVIF as it is written now
(`tune=ssim`; version 1 knew libavif's default tuning, whose qualities mean other steps).

car-x2 version 3 moves most of the downscaler's work to half of LR resolution (`context`): it
encodes a quarter faster than version 2 and gives up 0.2 dB.

Why version 2 keeps the downscaler's features at LR resolution (`cell = 1`; the paper's ResamplerNet
has them at half of it) and trains on MSE: with the ×2 upscaler of version 1 frozen, a downscaler
trained for three minutes of one core from bicubic kernels reached, in validation RGB PSNR,

| features | loss | dB |
|---|---|---|
| half LR resolution, 64 channels, 3 blocks | L1 | 34.52 |
| LR resolution, 48 channels, 3 blocks | L1 | 34.78 |
| LR resolution, 48 channels, 3 blocks | MSE | 34.91 |
| LR resolution, 48 channels, 2 blocks | MSE | 34.91 |

At half the resolution the kernels stopped changing after the first minute. A static kernel, trained
instead of bicubic's, gains nothing (34.33 against 34.33 after four minutes with the upscaler).
"""

# CAR paper, Table I, Y PSNR in dB
PAPER = {
    2: {"Set5": 38.94, "Set14": 35.61, "BSD100": 33.83, "Urban100": 35.24},
    4: {"Set5": 33.88, "Set14": 30.31, "BSD100": 29.15, "Urban100": 29.28},
}


def section(card: zoo.ModelCard) -> str:
    training = card.training
    lines = [f"## {card.name} version {card.version}", "", f"{card.description}.", ""]
    lines += [
        f"- digest `{card.digest}`",
        f"- downscaler {card.downscaler.family} {card.downscaler.options}, halo "
        f"{card.downscaler.halo} LR pixels, "
        f"{(card.folder / card.downscaler.file).stat().st_size / 2**20:.2f} MiB",
        f"- upscaler {card.upscaler.family} {card.upscaler.options}, halo "
        f"{card.upscaler.halo} LR pixels, "
        f"{(card.folder / card.upscaler.file).stat().st_size / 2**20:.2f} MiB",
        f"- data: {training['data']}",
        f"- trained: {training['minutes']} minutes, {training['steps']} steps: "
        f"`{training['command']}`",
        f"- recipe: {training['recipe']}",
        "",
    ]
    if card.storage:
        return "\n".join([*lines, *rate_distortion(card)]) + "\n"
    lines += [
        "| set | Y PSNR | Y SSIM | bicubic Y PSNR | paper Y PSNR | RGB PSNR | LR bpp | JPEG bpp |",
        "|---|---|---|---|---|---|---|---|",
    ]
    baseline = card.measured.get("baseline", {})
    for name, row in card.measured.items():
        if not isinstance(row, dict) or "Y PSNR dB" not in row:
            continue
        other = baseline.get(name, {}).get("Y PSNR dB", "–")
        paper = PAPER.get(card.scale, {}).get(name, "–")
        lines.append(
            f"| {name} | {row['Y PSNR dB']:.2f} | {row['Y SSIM']:.4f} | {other} | {paper} | "
            f"{row['RGB PSNR dB']:.2f} | {row['LR bpp']:.3f} | {row['JPEG bpp']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def rate_distortion(card: zoo.ModelCard) -> list[str]:
    """A codec-aware model's means over each set of photos, by the storage codec's quality."""
    lines: list[str] = []
    for name, row in card.measured.items():
        points = {k: v for k, v in row.items() if isinstance(v, list)}
        if not points:
            continue
        lines += [
            f"| {name}, {card.storage} | bpp | RGB PSNR | Y PSNR |",
            "|---|---|---|---|",
            *(f"| {k} | {v[0]:.3f} | {v[1]:.2f} | {v[2]:.2f} |" for k, v in points.items()),
            "",
            *(f"- {k}: {v:+.1f}" for k, v in row.items() if not isinstance(v, list)),
        ]
    return lines


SETS = ("Set5", "Set14", "BSD100", "Urban100", "Kodak")


def parameters(card: zoo.ModelCard, side: zoo.Side) -> str:
    weights = onnx.load_model_from_string(card.weights(side)).graph.initializer
    return f"{sum(math.prod(w.dims) for w in weights) / 1e6:.2f} M"


def summary(cards: list[zoo.ModelCard]) -> str:
    """README's table: the newest version of each model, each set's Y PSNR and the baseline's."""
    heads = ["model", "downscaler + upscaler", *SETS, "Kodak bpp", "JPEG bpp"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    plain = [card for card in cards if not card.storage]
    newest = {card.name: card for card in sorted(plain, key=lambda c: c.version)}
    for card in newest.values():
        sizes = f"{parameters(card, card.downscaler)} + {parameters(card, card.upscaler)}"
        rows = [(card.name, sizes, card.measured)]
        if baseline := card.measured.get("baseline"):
            rows.append((f"bicubic ×{card.scale}", parameters(card, card.upscaler), baseline))
        for name, size, figures in rows:
            cells = [name, size]
            cells += [f"{figures[s]['Y PSNR dB']:.2f}" if s in figures else "–" for s in SETS]
            kodak = figures.get("Kodak", {})
            cells += [f"{kodak[k]:.2f}" if k in kodak else "–" for k in ("LR bpp", "JPEG bpp")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    folder = shelf.search_path()[-1]
    cards = [zoo.load_card(path) for path in sorted(folder.glob("*/card.toml"))]
    page = HEAD + "\n" + "\n".join(section(card) for card in cards)
    (ROOT / "docs" / "MODELS.md").write_text(page, "utf-8")
    readme = ROOT / "README.md"
    marks = ("<!-- models: benchmarks/models_page.py -->\n", "\n<!-- /models -->")
    text = readme.read_text("utf-8")
    pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
    table = marks[0] + summary(cards) + marks[1]
    readme.write_text(re.sub(pattern, lambda _: table, text, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
