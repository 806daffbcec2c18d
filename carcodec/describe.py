"""A model card for people: what `carcodec models show` prints and docs/MODELS.md is made of."""

from __future__ import annotations

from carcodec import evaluate, zoo

__all__ = ["markdown"]

_PAPERS = {
    "car": "W. Sun and Z. Chen, CAR, IEEE TIP 2020",
    "rrnet": "B. Cai et al., RSRNet, 2018",
    "srnet": "B. Cai et al., RSRNet, 2018",
    "tad": "H. Kim et al., TAD, ECCV 2018",
    "tau": "H. Kim et al., TAD, ECCV 2018",
    "tad-grey": "H. Kim et al., TAD, ECCV 2018",
    "tau-colour": "H. Kim et al., TAD, ECCV 2018",
    "edsr": "B. Lim et al., EDSR, CVPR workshops 2017",
    "edsr-published": "B. Lim et al., EDSR, CVPR workshops 2017",
    "srcnn": "C. Dong et al., SRCNN, ECCV 2014",
    "vdsr": "J. Kim et al., VDSR, CVPR 2016",
    "cnnsr": "Y. Li et al., CNN-CR, IEEE TIP 2019",
    "srdensenet": "T. Tong et al., SRDenseNet, ICCV 2017",
    "ddbpn": "M. Haris et al., D-DBPN, CVPR 2018",
    "rdn": "Y. Zhang et al., RDN, CVPR 2018",
    "rcan": "Y. Zhang et al., RCAN, ECCV 2018",
}
# families → the pair whose published figures stand beside
_PAIRS = {
    ("car", "edsr"): ("CAR", "EDSR 32×256"),
    ("car", "edsr-published"): ("CAR", "EDSR 32×256"),
    ("car", "bicubic"): ("CAR", "bicubic"),
    ("rrnet", "edsr"): ("RRNet", "SRNet"),
    ("rrnet", "srnet"): ("RRNet", "SRNet"),
    ("tad", "tau"): ("TAD", "TAU"),
    ("tad-grey", "tau-colour"): ("TAD grey", "TAU"),
}


def markdown(card: zoo.ModelCard) -> str:
    """Everything a card knows, as Markdown; published figures beside, where a paper has them."""
    sides = {"downscaler": card.downscaler, "upscaler": card.upscaler}
    known = {_PAPERS[s.family]: None for s in sides.values() if s.family in _PAPERS}
    training = card.training
    lines = [
        f"## {card.name} version {card.version}",
        "",
        f"{card.description}. ×{card.scale}; {_stored(card)}.",
        "",
        "| | network | parameters | halo, LR pixels | options |",
        "|---|---|---|---|---|",
    ]
    for name, side in sides.items():
        options = ", ".join(f"{k} {_plain(v)}" for k, v in side.options.items())
        count = f"{side.parameters:,}" if side.parameters is not None else "–"
        halo = str(side.halo) if side.steps == 1 else f"{side.halo} in each of {side.steps} steps"
        lines.append(f"| {name} | {side.family} | {count} | {halo} | {options} |")
    lines += ["", f"- digest `{card.digest}`"]
    lines += [f"- paper: {paper}" for paper in known]
    speed = card.measured.get("MP/s")
    if isinstance(speed, dict):
        both = f"encodes {speed['encode']:.2f} and decodes {speed['decode']:.2f}"
        if card.downscaler.family == "none":  # nothing to time
            both = f"decodes {speed['decode']:.2f}"
        lines.append(f"- speed: {both} HR megapixels per second, networks alone ({speed['on']})")
    for name, side in (("upscaler", card.upscaler), ("downscaler", card.downscaler)):
        if eight := side.int8:
            least, most = min(eight.loss.values()), max(eight.loss.values())
            lines.append(
                f"- {name} in 8 bits, on CPUs: loses {least:.3f} to {most:.3f} dB (RGB PSNR): "
                f"`{eight.command}`"
            )
    if training:
        lines += [
            f"- data: {training['data']}",
            f"- trained: {training['minutes']} minutes, {training['steps']} steps: "
            f"`{training['command']}`",
            "- recipe: " + ", ".join(f"{k} {_plain(v)}" for k, v in training["recipe"].items()),
        ]
    lines.append("")
    figures = _rates(card) if card.storage else _fidelity(card)
    return "\n".join([*lines, *figures]) + "\n"


def _stored(card: zoo.ModelCard) -> str:
    if card.grey:
        return "colour stored as one grey plane"
    return (
        f"trained for LR stored as {card.storage}" if card.storage else "for LR stored losslessly"
    )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _fidelity(card: zoo.ModelCard) -> list[str]:
    rows = {
        name: row
        for name, row in card.measured.items()
        if isinstance(row, dict) and "Y PSNR dB" in row
    }
    if not rows:
        return []
    baseline = card.measured.get("baseline", {})
    pair = _PAIRS.get((card.downscaler.family, card.upscaler.family))
    sets = [evaluate.Row("", card.scale, name, 0, {}) for name in rows]
    # a paper that trained in colour as well is compared in colour
    colour = card.downscaler.options.get("channels", 3) == 3
    papers: dict[str, evaluate.Published] = {}
    for label in reversed(evaluate.tables()):
        for p in evaluate.published(sets, label):
            known = papers.get(p.pictures)
            if (p.downscaler, p.upscaler) == pair and not (
                colour and known and "psnr_rgb" in known.figures and "psnr_rgb" not in p.figures
            ):
                papers[p.pictures] = p
    lines = [
        "| set | Y PSNR | Y SSIM | RGB PSNR | LR bpp | JPEG bpp | bicubic Y PSNR | "
        "paper | distance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        other = baseline.get(name, {}).get("Y PSNR dB")
        paper, apart = "", ""
        if name in papers:
            figures = papers[name].figures
            in_colour = "psnr_rgb" in figures and (colour or "psnr_y" not in figures)
            key, own = ("psnr_rgb", "RGB PSNR dB") if in_colour else ("psnr_y", "Y PSNR dB")
            what = "" if key == "psnr_y" else " RGB"
            paper = f"{figures[key]:.2f}{what} ({papers[name].label})"
            apart = f"{row[own] - figures[key]:+.2f}"
        jpeg = f"{row['JPEG bpp']:.3f}" if "JPEG bpp" in row else ""
        lines.append(
            f"| {name} | {row['Y PSNR dB']:.2f} | {row['Y SSIM']:.4f} | {row['RGB PSNR dB']:.2f} | "
            f"{row['LR bpp']:.3f} | {jpeg} | {'' if other is None else f'{other:.2f}'} | "
            f"{paper} | {apart} |"
        )
    return lines


def _rates(card: zoo.ModelCard) -> list[str]:
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
