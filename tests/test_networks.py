"""The papers' networks: sizes as published, what they see, learning, and every one as ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from carcodec import resize
from carcodec.errors import RecipeError
from carcodec.networks import blocks, car, families, rsrnet, superres, tad
from carcodec.training.graph import written
from carcodec.training.optimiser import build_optimisers

# small ones, and the scales that each family has
SMALL: dict[tuple[str, str], tuple[dict[str, Any], tuple[int, ...]]] = {
    ("downscaler", "rrnet"): ({"width": 8}, (2, 3, 4)),
    ("downscaler", "tad"): ({"width": 8, "blocks": 1}, (2, 4)),
    ("downscaler", "tad-grey"): ({"width": 8, "blocks": 1}, (1,)),
    ("upscaler", "tau-colour"): ({"width": 8, "blocks": 1}, (1,)),
    ("upscaler", "srnet"): ({"width": 8, "units": 2}, (2, 3, 4)),
    ("upscaler", "tau"): ({"width": 8, "blocks": 1}, (2, 4)),
    ("upscaler", "edsr-published"): ({"width": 8, "blocks": 2}, (2, 3, 4)),
    ("downscaler", "interpolation"): ({"kind": "bilinear"}, (2, 3, 4)),
    ("upscaler", "srcnn"): ({"width": 8, "inner": 4}, (2, 3, 4)),
    ("upscaler", "vdsr"): ({"width": 8, "layers": 4}, (2, 3, 4)),
    ("upscaler", "cnnsr"): ({"width": 8, "layers": 3}, (2, 3, 4)),
    ("upscaler", "srdensenet"): (
        {"growth": 4, "blocks": 2, "layers": 2, "width": 8},
        (2, 3, 4),
    ),
    ("upscaler", "ddbpn"): ({"width": 6, "first": 8, "stages": 3}, (2, 3, 4)),
    ("upscaler", "rdn"): ({"width": 8, "growth": 4, "blocks": 2, "layers": 2}, (2, 3, 4)),
    ("upscaler", "rcan"): ({"width": 8, "groups": 2, "blocks": 1, "reduction": 2}, (2, 3, 4)),
}
CASES = [
    (side, family, scale, channels)
    for (side, family), (_, scales) in SMALL.items()
    for scale in scales
    for channels in ((3,) if scale == 1 else (1, 3))
]


def built(side: str, family: str, scale: int, channels: int = 3) -> Any:
    torch.manual_seed(1)
    options = SMALL[side, family][0] | ({"channels": channels} if scale > 1 else {})
    return families.build(side, family, scale, options).eval()


@pytest.mark.parametrize(("side", "family", "scale", "channels"), CASES)
def test_the_exported_graph_does_what_pytorch_does(
    side: str, family: str, scale: int, channels: int
) -> None:
    network = built(side, family, scale, channels)
    session = onnxruntime.InferenceSession(written(network, side).SerializeToString())
    for height, width in ((12, 16), (18, 14)):
        from_scale, to_scale = (scale, 1) if side == "downscaler" else (1, scale)
        image = torch.rand(1, 3, height * from_scale, width * from_scale)
        with torch.no_grad():
            wanted = network(image)
        assert wanted.shape == (1, 3, height * to_scale, width * to_scale)
        if side == "downscaler":
            wanted = wanted.clamp(0, 1).mul(255).round().div(255)
        found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
        assert np.abs(found - wanted.numpy()).max() < 1e-5


@pytest.mark.parametrize(
    ("side", "family", "scale"),
    [(side, family, scale) for side, family, scale, c in CASES if c == 3 and family != "rcan"],
)
def test_nothing_beyond_the_halo_matters(side: str, family: str, scale: int) -> None:
    network = built(side, family, scale).double()
    for p in network.parameters():  # nothing cancels, nothing is switched off
        nn.init.uniform_(p, 0.01, 0.1)
    halo = network.halo
    count = 2 * halo + 6
    middle = halo + 2
    from_scale = scale if side == "downscaler" else 1
    side_length = count * from_scale
    image = torch.rand(1, 3, side_length, side_length, dtype=torch.double, requires_grad=True)
    result = network.core(image)
    own = slice(middle, middle + 1)
    if side == "upscaler":
        own = slice(middle * scale, (middle + 1) * scale)
    if family == "rrnet":  # its steps have a gradient inside (0, 1) only
        result = network.down(network.trunk(image)) + network.average(image)
    result[..., own, own].sum().backward()
    assert image.grad is not None
    seen = image.grad.abs().sum((0, 1)).nonzero()
    reach = max(middle * from_scale - int(seen.min()), int(seen.max()) - middle * from_scale)
    assert reach < (halo + 1) * from_scale
    assert reach > 0


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("network", "published"),
    [
        # Y, with a bias for each channel: 64·(20−2)+64+1 more than the 664,704 weights
        (lambda: superres.VDSR(2, 1), 664_704 + 19 * 64 + 1),
        (lambda: superres.EDSR(2), 40_729_603),
        (lambda: superres.EDSR(4), 43_089_923),
        (lambda: superres.EDSR(2, width=64, blocks=16, residual_scale=1), 1_369_859),
        (lambda: superres.RDN(2), 22_123_395),
        (lambda: superres.RDN(3), 22_308_035),
        (lambda: superres.RDN(4), 22_271_107),
        # 9-1-5 with 64 and 32 channels: 8,032 weights, and a bias for each channel
        (lambda: superres.SRCNN(3, 1), 8_032 + 64 + 32 + 1),
        # without the 24 frozen numbers of the mean colour's subtraction
        (lambda: superres.RCAN(2), 15_444_667 - 24),
        (lambda: superres.RCAN(4), 15_592_379 - 24),
        (lambda: superres.DDBPN(4), 10_426_358),
        # table 2: three 3×3, one d×d; a 3×3, three pairs of 1×1 and 3×3, one 1×1
        (lambda: rsrnet.RRNet(3, 1), 640 + 2 * 36_928 + 577),
        (lambda: rsrnet.SRNet(3, 1), 640 + (4160 + 8256 + 12352) + 3 * 36_928 + 257 * 9),
    ],
)
def test_networks_have_the_published_size(network: Any, published: int) -> None:
    with torch.device("meta"):
        assert count(network()) == published


def test_srdensenet_has_about_the_published_size() -> None:
    with torch.device("meta"):
        assert count(superres.SRDenseNet(4, 1)) == pytest.approx(2.015e6, rel=0.07)


def test_tad_and_tau_have_ten_convolutions_each() -> None:
    for network in (tad.TAD(2), tad.TAU(2)):
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == 10
        assert max(c.out_channels for c in convolutions[:-1]) in (64, 256)


def test_recursion_has_the_weights_of_one_step() -> None:
    once, twice = tad.TAD(2, guided=False).eval(), tad.TAD(4, guided=False).eval()
    assert count(once) == count(twice)
    twice.load_state_dict(once.state_dict())
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(twice(image), once(once(image)))


def test_q_brelu_is_equation_2_forwards_and_3_backwards() -> None:
    x = torch.tensor([-0.3, 0.0, 0.1, 0.49, 0.51, 0.99, 1.0, 1.4], requires_grad=True)
    y = rsrnet.QBReLU(levels=4)(x)
    assert y.tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1])
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def test_rrnet_starts_as_the_mean_of_super_pixels() -> None:
    image = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        small = rsrnet.RRNet(3)(image)
    assert torch.allclose(small, nn.functional.avg_pool2d(image, 3), atol=0.05)
    assert torch.allclose(small * 255, (small * 255).round(), atol=1e-4)


def test_fixed_scaling_is_matlabs_inside_the_image() -> None:
    image = np.random.default_rng(3).random((48, 40, 3))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    small = blocks.Reduction(2, 3)(planes)[0].permute(1, 2, 0).numpy()
    wanted = resize.imresize(image, (20, 24))
    assert np.abs(small - wanted)[2:-2, 2:-2].max() < 1e-5
    for scale in (2, 3, 4):
        large = blocks.Shortcut(scale, 3)(planes)[0].permute(1, 2, 0).numpy()
        wanted = resize.imresize(image, (40 * scale, 48 * scale))
        edge = 3 * scale
        assert np.abs(large - wanted)[edge:-edge, edge:-edge].max() < 1e-5


@pytest.mark.parametrize(("side", "family"), [key for key, (_, s) in SMALL.items() if 2 in s])
def test_every_network_learns(side: str, family: str, taipei: Any) -> None:
    """A few steps on one crop, beside a fixed other half."""
    patch = torch.from_numpy(np.asarray(taipei)[320:384, 160:224].copy())
    image = patch.permute(2, 0, 1)[None].float() / 255
    torch.manual_seed(2)
    network: nn.Module = built(side, family, 2)
    fixed: nn.Module = car.EDSR(2, 8, 1) if side == "downscaler" else car.ResamplerNet(2, 8, 1, 8)
    down, up = (network, fixed) if side == "downscaler" else (fixed, network)
    optimisers = build_optimisers(down, up, "adam", 1.0)
    losses = []
    for _ in range(40):
        loss = (up(down(image)) - image).abs().mean()
        losses.append(loss.item())
        for optimiser in optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * group["ratio"]
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    assert losses[-1] < 0.95 * losses[0]


def test_the_last_layers_of_rsrnet_learn_ten_times_slower() -> None:
    down, up = rsrnet.RRNet(2), rsrnet.SRNet(2)
    groups = build_optimisers(down, up, "adam", 1.0)[0].param_groups
    slow = {id(p) for g in groups if g["ratio"] == pytest.approx(0.1) for p in g["params"]}
    assert slow == {id(p) for p in (*down.down.parameters(), *up.last.parameters())}


@pytest.mark.parametrize(
    ("side", "family", "scale", "options", "words"),
    [
        ("upscaler", "fsrcnn", 2, {}, "unknown upscaler family 'fsrcnn'; known: edsr, edsr-pub"),
        ("upscaler", "rdn", 2, {"depth": 3}, "rdn: unknown key 'depth'; known: channels, width"),
        ("upscaler", "rdn", 2, {"width": 3.5}, "rdn: width must be int, not 3.5"),
        ("upscaler", "rdn", 5, {}, "3 or a power of 2, not 5"),
        ("upscaler", "ddbpn", 5, {}, "2, 3, 4 or 8, not 5"),
        ("upscaler", "tau", 3, {}, "power of 2, not 3"),
        ("downscaler", "tad", 2, {"width": 30}, "multiple of 4, not 30"),
        ("downscaler", "rrnet", 2, {"channels": 2}, "1 or 3, not 2"),
    ],
)
def test_networks_that_cannot_be(
    side: str, family: str, scale: int, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        families.build(side, family, scale, options)


@pytest.mark.parametrize(("scale", "stride", "conditioned"), [(1, 2, True), (3, 1, False)])
def test_a_grown_upscaler_begins_where_the_smaller_one_is(
    scale: int, stride: int, conditioned: bool
) -> None:
    torch.manual_seed(1)
    small, large, other = (
        car.EDSR(scale, width, blocks, conditioned=conditioned, stride=stride)
        for width, blocks in ((8, 2), (12, 3), (6, 2))
    )
    for value in small.parameters():
        torch.nn.init.normal_(value, std=0.1)
    assert other.grown(small.state_dict()) is None
    assert car.EDSR(2, 12, 3).grown(small.state_dict()) is None
    grown = large.grown(small.state_dict())
    assert grown is not None
    large.load_state_dict(grown)
    image, quality = torch.rand(2, 3, 16, 20), torch.tensor([0.1, 0.7])
    expected = small(image, quality)
    assert torch.allclose(large(image, quality), expected, atol=1e-5)
    # and everything that is new can learn, or can once what reads it has
    for _ in range(2):
        loss = (large(image, quality) - 1).square().mean()
        gradients = torch.autograd.grad(loss, list(large.parameters()))
        with torch.no_grad():
            for value, gradient in zip(large.parameters(), gradients, strict=True):
                value -= 0.1 * gradient
    assert all((g != 0).any() for g in gradients)
    assert (large.body[2].second.weight != 0).all()  # type: ignore[index, union-attr]
