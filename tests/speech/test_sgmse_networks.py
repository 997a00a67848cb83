"""The score models around their networks, the complex U-Net, and published names of weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from passband.parts.diffusion import OUVE
from passband.parts.ncsnpp import NCSNpp
from passband.speech.sgmse.dcunet import ARCHITECTURES, DCUNet
from passband.speech.sgmse.model import ScaledScore, Scalings, ScoreModel, as_channels, as_spectrum
from passband.speech.sgmse.published import from_published

CLEAN, NOISY, Z = torch.randn(
    3, 2, 8, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0)
)
T = torch.tensor([0.1, 0.7], dtype=torch.float64)


class Given(nn.Module):
    """A network that answers with a function of (x, y, t)."""

    multiple = 1

    def __init__(self, answer) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, channels: Tensor, t: Tensor) -> Tensor:
        x, y = as_spectrum(channels[:, :2]), as_spectrum(channels[:, 2:])
        return as_channels(self.answer(x, y, t))


def sigma(t: Tensor = T) -> Tensor:
    return OUVE().std(t)[:, None, None]


def test_parts_of_spectra():
    channels = as_channels(CLEAN, NOISY)
    assert channels.shape == (2, 4, 8, 6)
    torch.testing.assert_close(channels[:, 1], CLEAN.imag)
    torch.testing.assert_close(as_spectrum(channels[:, 2:]), NOISY)


def test_the_loss_of_a_network_that_knows_the_noise_is_zero():
    model = ScoreModel(Given(lambda x, y, t: Z / sigma(t)), OUVE())
    torch.testing.assert_close(
        model.loss(CLEAN, NOISY, T, Z), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-20
    )


def test_the_loss_is_half_the_sum_over_bins():
    model = ScoreModel(Given(lambda x, y, t: 0 * x), OUVE())
    expected = [0.5 * sum(abs(complex(v)) ** 2 for v in item.flatten()) for item in Z]
    assert model.loss(CLEAN, NOISY, T, Z).tolist() == pytest.approx(expected)


def test_the_network_sees_the_perturbed_and_the_noisy_spectrum():
    seen = []

    def look(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        seen.extend([x, y, t])
        return x

    ScoreModel(Given(look), OUVE()).loss(CLEAN, NOISY, T, Z)
    kept = torch.exp(-1.5 * T)[:, None, None]
    torch.testing.assert_close(seen[0], kept * CLEAN + (1 - kept) * NOISY + sigma() * Z)
    torch.testing.assert_close(seen[1], NOISY)
    torch.testing.assert_close(seen[2], T)


def test_a_denoiser_that_knows_the_mean():
    """D = mean(x_0, y, t): no loss, and the score is -z / sigma."""
    process = OUVE()
    mean = process.mean(CLEAN, NOISY, T)
    model = ScaledScore(Given(lambda x, y, t: mean), process, aim="denoiser")
    assert float(model.loss(CLEAN, NOISY, T, Z).max()) < 1e-20
    x = process.perturb(CLEAN, NOISY, T, Z)
    torch.testing.assert_close(model(x, NOISY, T), -Z / sigma())


@pytest.mark.parametrize(("weighting", "weight"), [
    ("1", lambda s: 1.0), ("sigma^2", lambda s: s**2),
    ("edm", lambda s: (s**2 + 0.01) / (s * 0.1) ** 2),
])
def test_weights_of_the_denoiser(weighting, weight):
    process = OUVE()
    model = ScaledScore(
        Given(lambda x, y, t: 0 * x), process, aim="denoiser", weighting=weighting
    )
    mean = process.mean(CLEAN, NOISY, T)
    expected = [
        0.5 * weight(float(s)) * float(m.abs().square().sum())
        for s, m in zip(process.std(T), mean, strict=True)
    ]
    assert model.loss(CLEAN, NOISY, T, Z).tolist() == pytest.approx(expected)


def test_factors_around_the_network():
    """c_skip x + c_out f(c_in x, c_in y) / sigma, with those of EDM."""
    scalings = Scalings(c_in="edm", inner="1/sigma", c_skip="edm", c_out="edm", sigma_data=0.2)
    model = ScaledScore(Given(lambda x, y, t: x + 2 * y), OUVE(), scalings)
    s = sigma()
    norm = (s**2 + 0.04).sqrt()
    inner = (CLEAN + 2 * NOISY) / norm / s
    expected = 0.04 / norm**2 * CLEAN + s * 0.2 / norm * inner
    torch.testing.assert_close(model(CLEAN, NOISY, T), expected)
    by_time = ScaledScore(Given(lambda x, y, t: x), OUVE(), Scalings(inner="1/t", c_out="sigma"))
    torch.testing.assert_close(by_time(CLEAN, NOISY, T), CLEAN / T[:, None, None] * s)


def test_training_learns_a_fixed_batch():
    """30 steps on fixed times and noise: more than a fifth less."""
    torch.manual_seed(0)
    model = ScoreModel(NCSNpp(bins=64, width=16, multipliers=(1, 2, 2), blocks=1), OUVE())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    clean, noisy, z = 0.3 * torch.randn(3, 2, 64, 16, dtype=torch.complex64)
    t, losses = torch.tensor([0.2, 0.8]), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(clean, noisy, t, z / 0.3).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# ---- the complex U-Net -----------------------------------------------------------------------


def whitened(z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Complex batch normalisation by an eigendecomposition of each channel's covariance."""
    out = torch.empty_like(z)
    for c in range(z.shape[1]):
        parts = torch.stack([z[:, c].real.flatten(), z[:, c].imag.flatten()])
        parts = parts - parts.mean(1, keepdim=True)
        v = parts @ parts.T / parts.shape[1] + 1e-5 * torch.eye(2, dtype=parts.dtype)
        values, vectors = torch.linalg.eigh(v)
        root = vectors @ torch.diag(values**-0.5) @ vectors.T
        mixing = torch.stack([gain[[0, 2], c], gain[[2, 1], c]])
        found = mixing @ root @ parts + bias[:, c, None]
        out[:, c] = torch.complex(*found).reshape(z[:, c].shape)
    return out


def on_parts(function, z: Tensor) -> Tensor:
    return torch.complex(function(z.real), function(z.imag))


def plain_dcunet(network: DCUNet, layers, x: Tensor, t: Tensor) -> Tensor:
    """The same with torch's own complex numbers throughout."""
    state = network.state_dict()

    def weight(name: str, kind: str = "weight") -> Tensor:
        a, b = state[f"{name}.real.{kind}"], state[f"{name}.imaginary.{kind}"]
        return torch.complex(a, b) if kind == "weight" else torch.complex(a - b, a + b)

    def linear(name: str, z: Tensor) -> Tensor:
        return on_parts(F.silu, z @ weight(name).T + weight(name, "bias"))

    angle = 2 * math.pi * t[:, None] * state["time.frequencies"]
    time = torch.cat([angle.sin(), angle.cos()], 1).to(x.dtype)
    time = linear("time.layers.0", time)

    def finish(name: str, z: Tensor) -> Tensor:
        z = z + linear(f"{name}.time", time)[..., None, None]
        z = whitened(z, state[f"{name}.norm.gain"], state[f"{name}.norm.bias"])
        return on_parts(lambda v: torch.where(v > 0, v, 0.01 * v), z)

    def up(name: str, z: Tensor, layer, size) -> Tensor:
        pad = [k // 2 for k in layer.kernel]
        extra = [
            size[i] - ((z.shape[2 + i] - 1) * layer.stride[i] - 2 * pad[i]
                       + layer.dilation[i] * (layer.kernel[i] - 1) + 1) for i in (0, 1)
        ]
        return F.conv_transpose2d(
            z, weight(f"{name}.conv"), None, layer.stride, pad, extra, 1, layer.dilation
        )

    z, skips = x, []
    for i, layer in enumerate(layers):
        pad = [k // 2 for k in layer.kernel]
        z = F.conv2d(z, weight(f"encoder.{i}.layer.conv"), None, layer.stride, pad, layer.dilation)
        z = finish(f"encoder.{i}", z)
        skips.append(z)
    skips.pop()
    for i, layer in enumerate(reversed(layers[1:])):
        skip = skips.pop()
        z = up(f"decoder.{i}.layer", z, layer, skip.shape[2:])
        z = torch.cat([finish(f"decoder.{i}", z), skip], 1)
    out = up("output", z, layers[0], x.shape[2:])
    return out + weight("output.conv", "bias")[:, None, None]


@pytest.mark.parametrize(("name", "bins", "frames"), [
    ("dcunet-10", 33, 17), ("dilated", 257, 13), ("dcunet-16", 257, 17),
])
def test_the_complex_network_against_complex_numbers(name, bins, frames):
    torch.manual_seed(0)
    network = DCUNet(name, scale=0.1).double().train()
    x = torch.randn(2, 2, bins, frames, dtype=torch.complex128)
    t = torch.tensor([0.1, 0.9], dtype=torch.float64)
    layers = [la._replace(channels=round(0.1 * la.channels)) for la in ARCHITECTURES[name]]
    with torch.no_grad():
        found, expected = network(x, t), plain_dcunet(network, layers, x, t)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "norm", "count"), [
    ("dcunet-10", "parts", 1_589_314), ("dcunet-10", "complex", 1_589_826),
    ("dcunet-16", "parts", 2_625_474), ("dcunet-20", "parts", 3_848_798),
    ("dilated", "parts", 3_531_970),
])
def test_the_published_counts(name, norm, count):
    with torch.device("meta"):
        network = DCUNet(name, norm=norm)
    assert sum(p.numel() for p in network.parameters()) == count


def test_the_complex_network_takes_any_number_of_frames():
    network = DCUNet("dcunet-10", scale=0.1).eval()
    for frames in (1, 2, 17, 30):
        x = torch.randn(1, 2, 65, frames, dtype=torch.complex64)
        assert network(x, torch.ones(1)).shape == (1, 1, 65, frames)


def test_what_the_complex_network_refuses():
    with pytest.raises(UnknownNameError, match="dcunet-11"):
        DCUNet("dcunet-11")
    with pytest.raises(ConfigError, match="scale = 0"):
        DCUNet(scale=0)
    network = DCUNet("dcunet-10", scale=0.1)
    with pytest.raises(DataError, match="F - 1 divisible by 32"):
        network(torch.zeros(1, 2, 64, 9, dtype=torch.complex64), torch.ones(1))
    with pytest.raises(DataError, match="large enough"):  # no bins are left at the bottom
        DCUNet("dilated", scale=0.1)(torch.zeros(1, 2, 41, 9, dtype=torch.complex64), torch.ones(1))
    with pytest.raises(DataError, match="times of shape"):
        network(torch.zeros(1, 2, 65, 9, dtype=torch.complex64), torch.ones(3))


# ---- published weights -----------------------------------------------------------------------


def theirs() -> dict[str, Tensor]:
    """A net of two levels, width 8, as the published code names it: every module by its number."""
    names: dict[str, tuple[int, ...]] = {"output_layer.weight": (2, 4, 1, 1),
                                         "output_layer.bias": (2,), "all_modules.0.W": (8,)}

    def layer(name: str, *shape: int) -> None:
        names[f"{name}.weight"], names[f"{name}.bias"] = shape, shape[:1]

    def block(i: int, a: int, b: int, shortcut: bool) -> None:
        layer(f"all_modules.{i}.GroupNorm_0", a)
        layer(f"all_modules.{i}.Conv_0", b, a, 3, 3)
        layer(f"all_modules.{i}.Dense_0", b, 32)
        layer(f"all_modules.{i}.GroupNorm_1", b)
        layer(f"all_modules.{i}.Conv_1", b, b, 3, 3)
        if shortcut:
            layer(f"all_modules.{i}.Conv_2", b, a, 1, 1)

    def attention(i: int) -> None:
        layer(f"all_modules.{i}.GroupNorm_0", 8)
        for n in range(4):
            names[f"all_modules.{i}.NIN_{n}.W"] = (8, 8)
            names[f"all_modules.{i}.NIN_{n}.b"] = (8,)

    layer("all_modules.1", 32, 16)
    layer("all_modules.2", 32, 32)
    layer("all_modules.3", 8, 4, 3, 3)
    block(4, 8, 8, False)                       # upper level, down
    block(5, 8, 8, True)                        # to half the size
    layer("all_modules.6.Conv_0", 8, 4, 1, 1)   # input pyramid
    block(7, 8, 8, False)                       # lower level
    attention(8)
    block(9, 8, 8, False)                       # bottleneck
    attention(10)
    block(11, 8, 8, False)
    block(12, 16, 8, True)                      # lower level, up
    block(13, 16, 8, True)
    attention(14)
    layer("all_modules.15", 8)                  # output pyramid
    layer("all_modules.16", 4, 8, 3, 3)
    block(17, 8, 8, True)                       # to twice the size
    block(18, 16, 8, True)
    block(19, 16, 8, True)
    layer("all_modules.20", 8)
    layer("all_modules.21", 4, 8, 3, 3)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in names.items()}


def network_of_theirs() -> NCSNpp:
    return NCSNpp(bins=16, width=8, multipliers=(1, 1), blocks=1, attention=(8,))


def test_published_names():
    weights, network = theirs(), network_of_theirs()
    network.load_state_dict(from_published(weights, network))
    state = network.state_dict()
    for mine, name in (
        ("first.weight", "all_modules.3.weight"),
        ("down.0.merge.bias", "all_modules.6.Conv_0.bias"),
        ("down.0.resample.shortcut.weight", "all_modules.5.Conv_2.weight"),
        ("middle.0.norm2.weight", "all_modules.9.GroupNorm_1.weight"),
        ("up.0.blocks.1.conv1.weight", "all_modules.13.Conv_0.weight"),
        ("up.0.head.conv.weight", "all_modules.16.weight"),
        ("up.1.head.norm.bias", "all_modules.20.bias"),
        ("time.inner.weight", "all_modules.1.weight"),
    ):
        torch.testing.assert_close(state[mine], weights[name])
    qkv = state["down.1.attend.0.qkv.weight"]
    torch.testing.assert_close(qkv[8:16], weights["all_modules.8.NIN_1.W"].T)
    torch.testing.assert_close(state["shifts.bias"][8:16], weights["all_modules.5.Dense_0.bias"])


def test_published_weights_that_do_not_fit():
    network = network_of_theirs()
    with pytest.raises(CheckpointError, match=r"lack 'all_modules\.9"):
        from_published({n: w for n, w in theirs().items() if ".9." not in n}, network)
    with pytest.raises(CheckpointError, match=r"left over, such as 'all_modules\.22"):
        from_published({**theirs(), "all_modules.22.bias": torch.zeros(1)}, network)
    with pytest.raises(CheckpointError, match=r"the shape \(3,\)"):
        from_published({**theirs(), "all_modules.3.bias": torch.zeros(3)}, network)
