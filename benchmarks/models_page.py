"""Write docs/MODELS.md from the cards.

    python benchmarks/models_page.py [--speed WHERE]

--speed measures the newest version of every model on the photo the repository ships, tiled to
four megapixels, with two threads, and writes the figures onto their cards; WHERE names the machine.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from PIL import Image

from carcodec import atomic, describe, engines, evaluate, zoo
from carcodec.zoo import shelf

ROOT = Path(__file__).parent.parent

TABLE = "(table)"
HEAD = f"""# Models

Written by `python benchmarks/models_page.py` from the cards, and what `carcodec models show NAME`
prints; figures are on the [paper protocol](PROTOCOL.md). "bicubic" is the same upscaler trained
the same time on bicubic LR; "paper" is the same pair as its paper prints it, whose networks may be
a hundred times as large (CAR's EDSR has 32 blocks of 256 channels), and "distance" what ours has
above it, in dB; a paper that trained in colour as well is compared in RGB. Where a paper's networks
see luma alone, colour networks have an advantage in Y: LR's three planes hold more of it than one.
"LR bpp" is lossless JPEG XL, bits per HR pixel; "JPEG bpp" is what a JPEG of the
same RGB PSNR takes.

## For LR that is stored exactly

Y PSNR in dB of each set, and bits per HR pixel on Kodak
(`python benchmarks/quality.py EVAL/Set5 EVAL/Set14 EVAL/BSD100 EVAL/Urban100 EVAL/Kodak`):

{TABLE}

The paper's CAR with EDSR, about a hundred times as large, has 38.94 (×2) and 33.88 (×4) on Set5.
tad-grey keeps the size and stores colour as one grey plane: LR is a grey photo, and colour comes
back. car-x2-bicubic and car-x4-bicubic are restored by bicubic enlargement, with no network: any
viewer's zoom of the thumbnail does it (the paper has 34.38 and 28.93).

## Trained through a storage codec

Models named after a storage codec are trained for it: both networks through the codec itself, the
upscaler told the stored quality. Their figures are means over photos at qualities of that codec,
whole files at the default effort, from `python benchmarks/results.py`.

The models for AVIF went on at version 2 for AVIF as it is written now (`tune=ssim`; version 1 knew
libavif's default tuning, whose qualities mean other steps). The version after that goes on from
there, the upscaler alone, on log(MSE) + log(1 - SSIM): 34 minutes at ×1 (version 3) and ×2, where
SSIM is the mean of full and half size, 38 at ×3 and ×4, where it is quarter size as well; the
models for JPEG 2000 had 28 and 25. From the same codestreams, bits against the version before, four
photos of Kodak:

| | AVIF ×1 | ×2 | ×3 | ×4 | JPEG 2000 ×1 | ×2 |
|---|---|---|---|---|---|---|
| PSNR, RGB | −0.0 % | −1.1 | −0.1 | −0.5 | −0.4 | −0.2 |
| SSIM, Y | −1.8 | −3.6 | −3.7 | −5.0 | −2.4 | −3.9 |
| MS-SSIM, Y | −1.1 | −2.1 | −2.1 | −2.9 | −1.7 | −2.3 |

A network for ×1 with four times the numbers at the same speed (96 channels on cells of 4×4 pixels)
was 0.2 dB behind the shipped one at the same learning rate after 35 minutes, and was given up.
A wider and deeper one (64 channels, 12 blocks, 1 M parameters) that began as version 3 took, after
2,054 steps in 110 minutes of one core, 0.9 % off its bits in PSNR, 1.2 in SSIM and 1.0 in MS-SSIM
(20 photos of Kodak, 0.1 to 0.5 bpp), for about three times the work: not shipped. What a GPU makes
of it is open (recipes car-x1-avif-hq and car-x2-avif-hq); after JPEG 2000 it makes much, see below.

## Features that died, and 8 bits

In most EDSR upscalers one or two of the seven blocks are dead: on six photos of Kodak none of their
48 ReLUs is ever positive, and they add constants (in car-x4-avif version 3 one has a single one
left). car-x2, car-x3, car-x3-avif version 2, rrnet-x2 and rrnet-x3 have next to nothing left in the
first three; car-x1-avif version 3 lacked the first and a third of the next three. `revive = 100` in
a recipe has training find such features and start them again.

car-x1-avif version 4 is the first that had it: version 3 with three blocks more, which 8 bits pay
for, trained on for 150 minutes of two cores. All of its 480 features are alive. From the same
codestreams it takes 2.7 % off version 3's bits in PSNR and 3.3 in SSIM (twelve photos of Kodak,
qualities 14 to 46; every photo gains, 1.0 to 3.9 % in PSNR). car-x2-avif version 4 is made
likewise: 474 features alive, 2.3 % off in PSNR (eight photos; 0.4 to 3.5 %) and 2.9 in SSIM. So is
car-x4-avif version 4, in 75 minutes of one core: 464 alive, 3.0 % off in PSNR (eight photos,
qualities 14 to 54; 1.5 to 4.4 %), 4.0 in SSIM, 2.5 in MS-SSIM and 1.3 in SSIMULACRA2; and
car-x3-avif version 3, in 42: 1.6 % off in PSNR (the same photos; 1.1 to 3.5 %), 1.6 in SSIM, 1.1 in
MS-SSIM and 0.6 in SSIMULACRA2. How much of that is depth, time or revived features has not been
told apart.
Those for ×1 and ×2 are about as good as their size allows: 55 minutes more of one core each, with
SSIM of three sizes (at ×2 also weighed 1.5 times), took 0.2 and 0.8 % off in PSNR, 0.4 in
SSIMULACRA2, and nothing in SSIM (six photos, qualities 14 to 70 and 14 to 54); not shipped.

Upscalers that lose at most 0.05 dB by it are there in 8 bits as well, by `carcodec quantise`, and
run like that on CPUs: activations in 8 bits, weights in 7, sums, first and last layers in float32.
Half of 24 photos (384×384 and larger) calibrated, the others measured; the cards have the losses.
So are the downscalers of CAR's models for lossy LR, all but the layers that make kernels and
offsets of features: at the same bits they lose 0.00 to 0.02 dB, beside what storing loses.
TAD's upscalers would lose 0.07 to 0.5 dB and rrnet-x2's 0.07; they stay in float32.

Longer training alone buys the models for JPEG 2000 little: 55 minutes for each upscaler, on photos
that JPEG 2000 had stored whole instead of patches, took 0.5 and 0.4 % off the bits in PSNR on the
same photos; version 2 goes on from there. What they lack is the step. JPEG 2000's quality is a PSNR
of the whole photo, and the same PSNR takes coarser steps where there is less detail: told a quality
12 lower than it was, car-x1-jpeg2000 version 2 restored 0.03 to 0.2 dB more of kodim20 and kodim23,
and 0.2 to 0.3 dB less of kodim05. Version 3 is told the step (`told = "step"`), learned from
patches of what was stored whole, and has three blocks more and all features revived: 90 minutes of
one core. Against JPEG 2000 itself on Kodak it takes 10.8 % fewer bits at 0.1 to 0.5 bpp where
version 2 took 8.2, and 12.6 for 9.3 at 0.05 to 0.25. car-x2-jpeg2000, made likewise for 40 minutes
of half a core, gained 0.02 dB (six photos), lost as much above 0.2 bpp, and was not shipped. Nor
was car-x1-jpeg2000 trained on for 80 minutes more (6,903 steps): 0.5 % off in PSNR, 0.9 in SSIM
(eight photos, qualities 4 to 34). What it lacks is not its place among the wavelets either: with a
bias, then a gain, for each feature and each of the 8×8 places that repeat every 16 pixels, ten
minutes of training brought nothing and the gains stayed at 1.00 ± 0.01.

It lacked training after all, and size. Coding took four fifths of that training: JPEG 2000 told its
step is two encodings of 384×384 pixels. Since parts of photos are held as they were stored and
drawn from again (`stock`), car-x1-jpeg2000 version 4 saw 34,510 patches of 144×144 in 42 minutes of
one core: 1.4 % off version 3's bits in PSNR and 1.8 in SSIM (eight photos, qualities 4 to 34; every
photo gains). car-x1-jpeg2000-hq, which began as version 3, has 96 channels and 16 blocks, six times
the numbers and the work (0.86 megapixels a second on two cores, where version 4 does 4.27); 6.4
minutes of one H200 were 7,854 steps of 48 patches of 192×192, 20 a second, coded by 15 cores beside
it. On Kodak at 0.1 to 0.5 bpp they take 12.2 and 16.6 % fewer bits than JPEG 2000 in PSNR, and 2.5
% more and 2.7 fewer than AVIF.

Its loss still fell when its time was up, and version 2 is version 1 trained on for 8 minutes of one
H200: 13,430 steps, 28 a second. SSIM's convolutions, of a single channel, had been a quarter of
each step and are products of matrices; the GPU does not wait any more for each loss to be looked
at; torch.compile fuses the network's kernels. Quality 16 was drawn most often and those around 60
hardly, and SSIM weighed half. Of the same bits version 2 restores 0.08 to 0.16 dB more than version
1 at qualities 8 to 35, 0.03 at 50, and 0.07 less at 64 (six photos of Kodak; the last is 3.7 bits
per pixel, where the small network is as good). On Kodak at 0.1 to 0.5 bpp it takes 19.0 % fewer
bits than JPEG 2000 in PSNR, and 5.4 fewer than AVIF; with car-x2-jpeg2000 20.7 % fewer than JPEG
2000 in SSIM. 8 bits take 0.02 to 0.06 dB of it up to quality 65 (eight photos; 0.13 at 80, where
nothing is left to restore).

## Small networks, for quick decoding

car-x1-avif-fast and car-x2-avif-fast restore what car-x1-avif and car-x2-avif store, with 32
channels and 4 blocks instead of 48 and 10: a sixth of the work. Each learned from photos for 18
minutes of one core and then for 55, of which a part went to a process beside it, from what the
model itself restores (`teacher`). Photos taught the one for ×1 little: what a network can know of
AVIF's loss is a fifteenth of it, and the rest is noise to it. In validation RGB PSNR, at quality
50 (×1) and 44 (×2):

| | nothing, or bicubic | photos, 15 minutes | teacher, 5 minutes more | 55 | the model itself |
|---|---|---|---|---|---|
| ×1 | 35.46 | 35.50 | 35.54 | 35.69 | 35.76 |
| ×2 | 29.05 | 30.84 | 30.88 | 30.93 | 31.04 |

The features stay at LR resolution (×2): at half of it, with 48 channels and 6 blocks, which is as
much work, a network from photos was 0.4 dB behind after nine minutes (30.40 and 30.81). 24 channels
and 5 blocks were no worse after five minutes, but processors and the CUDA kernel take channels by
16 or 32.

## Versions, and what they hide

car-x2-bicubic version 2 is version 1 trained on for 98 minutes of one core, after 22, and
car-x4-bicubic versions 2 and 3 for 108 (37 of them on half a core) and 25, after 12: next to
nothing is gained, and nothing more can be. Enlargement is linear, so least squares find the LR that
it restores best, photo by photo: 34.93 and 29.23 dB on Set5 (Y), and 31.76 and 27.60 on Kodak. The
models are 0.00 dB from it (`python benchmarks/bound.py EVAL/Set5 EVAL/Kodak`; rounding to 8 bits
can leave either ahead by as much).

car-x3 started from the features of car-x2. Version 2 is version 1 trained on for 48 minutes:
0.16 dB (Y, Set5 and Kodak) from the same bits.

srcnn-nearest-x3, -bilinear-x3 and -bicubic-x3 are RSRNet's table 1: an upscaler of 8,129
parameters for luma, trained on one interpolation each. `carcodec evaluate EVAL/Set5 --table
"RSRNet 1" --protocol matlab` gives each the others' LR too.

Where LR is stored exactly, TAD and RRNet, whose LR is the free result of convolutions, keep far
more than CAR, whose LR pixels are averages of the photo's: with as many parameters and half the
training tad-x2 version 1 is 3 dB above car-x2 on Set5 for 3 % more bits. Its guide term keeps LR
close to bicubic; RRNet has none, its LR shows coloured fringes at close sight, and costs more bits
for the same PSNR. Where a pattern repeats every two pixels or so, both can give colours back wrong:
from rrnet-x2 a patch of kodim19's fence comes back pink and green. rrnet-x3, rrnet-x4, tad-x2,
tad-x2-lossless and tad-x4 have been trained against it (below); rrnet-x2 and tad-recursive-x2 have
not. Through a lossy codec nothing of all this is left: a TAD trained through AVIF for ten minutes
was 3 to 7 % of the bits behind car-x2-avif. For the same reason they store a grey photo's LR in
three planes.

Version 2 of rrnet-x2, rrnet-x3, rrnet-x4, tad-recursive-x2 and tad-x4 is version 1 trained on, for
88, 75, 42, 108 and 27 minutes of one core. On Kodak, in Y, rrnet-x2 gains 1.5 dB and rrnet-x3 and
rrnet-x4 0.5 at the bits they had; tad-recursive-x2 gains 1.0 dB for 7 % more bits, where a JPEG
takes 18 % more, and tad-x4 0.3 dB for 5 %, as a JPEG would.

rrnet-x3 and rrnet-x4 version 3 and tad-x2 version 2 are the version before trained on for 52, 44
and 71 minutes against tints, as tad-x2-lossless is (below): where rrnet-x4 version 2 could turn red
birds olive, colours hold. The share of Kodak's pixels around which colour is off by more than 4
levels falls to 0.7 % (from 16.3 % on four photos), from 18.3 to 1.6 %, and to 0.2 % (from 3.7 % on
four photos). rrnet-x3 gives up 0.6 dB (Y) and 6 % of the bits for it, rrnet-x4 0.7 dB and 11 %, as
a JPEG would; tad-x2 gained 0.4 dB for 13 % more bits, where a JPEG takes 7 % more. tad-x4
version 3 had 84 minutes of it, at a lower weight (tint = 3): 1.6 % of the pixels instead of 11.2,
for 0.3 dB (Y) at the bits it had. rrnet-x4 version 4 has 14 minutes more, which changed next to
nothing: 0.04 dB less from 1 % fewer bits.

tad-x8, -x16, -x32, -x64 and -x128 are the recursive network applied 3 to 7 times to its own result,
nothing rounded on the way (section 3.2 of the paper), each trained on from the one before for 8 to
10 minutes. One step is stored, and tiled by itself, so that memory stays that of ×2. They are taken
only where they or their scales are asked for. Y PSNR on Kodak, and bicubic's:

| | ×8 | ×16 | ×32 | ×64 | ×128 |
|---|---|---|---|---|---|
| TAD | 27.14 | 24.95 | 22.94 | 20.87 | 18.26 |
| bicubic | 25.14 | 23.35 | 21.57 | 19.69 | 18.04 |

At ×128 nothing is gained any more: in RGB it is 0.1 dB below bicubic.

tad-x2-lossless is tad-x2 version 1 trained on for what a bit of LR buys: MSE and the bits that
lossless storage takes (`codec = "lossless"`). From a fifth fewer bits it restores 0.2 dB more on
Kodak, where a JPEG of the same PSNR has the same size. It is what `--lossless` takes at ×2. With
little more than half the weight on bits, 46 minutes on, it had 37.65 dB at 2.33 bpp, where a JPEG
has 2.24, and was not kept. Version 2 is version 1 trained on for 43 minutes against tints (`tint =
20.0`, and `decimate = 0.1`: a tenth of the patches are every second pixel of a photo). The share of
Kodak's pixels around which R − G or B − G, averaged over 8×8 pixels, is off by more than 4 levels
falls from 1.12 to 0.15 %, a photo's largest such error from 12 to 7 levels in the mean (`python
benchmarks/tints.py EVAL/Kodak --engine openvino:fp32`); that costs 0.1 dB (RGB) and 1 % of the
bits.

rsrnet-x3 is RSRNet as published, on luma; colour goes through it plane by plane. It has had an
hour of one core, and is 1.2 dB short of the paper on Set5 (`carcodec evaluate EVAL/Set5 --table
"RSRNet 3" --protocol matlab`: 33.10 dB, 0.9113; paper 34.29, 0.9300).

tad-grey works on cells of 2×2 pixels. With plain convolutions, as published, a flat surface has
nowhere to hide its colour, since they do the same everywhere: 21 dB after 15 minutes of training
(two tries), where cells reach 39 dB in five. Version 2 is version 1 trained on for 100 minutes of
one core: from 2 to 4 % fewer bits it gains 1.5 to 2.2 dB in Y and 0.1 to 0.7 in RGB.

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

SETS = ("Set5", "Set14", "BSD100", "Urban100", "Kodak")


def parameters(side: zoo.Side) -> str:
    return f"{(side.parameters or 0) / 1e6:.2f} M"


def summary(cards: list[zoo.ModelCard]) -> str:
    """The newest version of each model, each set's Y PSNR and the baseline's.

    Larger scales than the papers' tables have are left out.
    """
    heads = ["model", "downscaler + upscaler", *SETS, "Kodak bpp", "JPEG bpp"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    plain = [card for card in cards if not (card.storage or card.fixed)]
    plain = [card for card in plain if card.scale <= evaluate.LARGEST_SCALE]
    newest = {card.name: card for card in sorted(plain, key=lambda c: c.version)}
    for card in newest.values():
        sizes = f"{parameters(card.downscaler)} + {parameters(card.upscaler)}"
        rows = [(card.name, sizes, card.measured)]
        if baseline := card.measured.get("baseline"):
            rows.append((f"bicubic ×{card.scale}", parameters(card.upscaler), baseline))
        for name, size, figures in rows:
            cells = [name, size]
            cells += [f"{figures[s]['Y PSNR dB']:.2f}" if s in figures else "–" for s in SETS]
            kodak = figures.get("Kodak", {})
            cells += [f"{kodak[k]:.2f}" if k in kodak else "–" for k in ("LR bpp", "JPEG bpp")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(card: zoo.ModelCard, where: str) -> None:
    """Put megapixels per second onto a card."""
    with Image.open(ROOT / "tests" / "photos" / "taipei.png") as photo:
        part = np.asarray(photo.convert("RGB"))
    image = np.tile(part, (-(-2048 // part.shape[0]), -(-2048 // part.shape[1]), 1))
    image = np.ascontiguousarray(image[:2048, :2048])
    speeds = [round(s, 2) for s in evaluate.speeds(image, card, threads=2, repeat=3)]
    line = (
        f'"MP/s" = {{ "encode" = {speeds[0]}, "decode" = {speeds[1]}, '
        f'"on" = "{where}, two threads, {engines.resolve()}" }}\n'
    )
    path = card.folder / "card.toml"
    text = re.sub(r'^"MP/s" = .*\n', "", path.read_text("utf-8"), flags=re.MULTILINE)
    atomic.write(path, text.replace("[measured]\n", "[measured]\n" + line).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", metavar="WHERE", default="")
    arguments = parser.parse_args()
    folder = shelf.search_path()[-1]
    cards = [zoo.load_card(path) for path in sorted(folder.glob("*/card.toml"))]
    if arguments.speed:
        for card in {c.name: c for c in sorted(cards, key=lambda c: c.version)}.values():
            measure(card, arguments.speed)
    cards = [zoo.load_card(path) for path in sorted(folder.glob("*/card.toml"))]
    page = HEAD.replace(TABLE, summary(cards)) + "\n"
    page += "\n".join(describe.markdown(card) for card in cards)
    atomic.write(ROOT / "docs" / "MODELS.md", page.encode())


if __name__ == "__main__":
    main()
