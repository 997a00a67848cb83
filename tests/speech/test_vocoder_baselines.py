"""Multi-band MelGAN and Vocos: their networks by other formulas, training, pieces, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passband.bench.budget import Budget
from passband.bench.system import NullMonitor
from passband.bench.task import Data
from passband.data.speech.pairs import Example, Fixed
from passband.errors import ConfigError, DataError
from passband.parts.losses.spectral import MultiResolutionSTFT
from passband.parts.mel_upsampler import fused
from passband.parts.signal.pqmf import PQMF
from passband.speech.baselines.mb_melgan.critics import MelGANScales
from passband.speech.baselines.mb_melgan.system import (
    BAND_RESOLUTIONS,
    MultiBandMelGANVocoder,
)
from passband.speech.baselines.vocos.model import ConvNeXtBlock, Vocos
from passband.speech.baselines.vocos.system import VocosVocoder
from passband.speech.frame_stream import FrameStream, in_pieces
from passband.speech.mb_melgan import MultiBandMelGAN, Residual

BOTH = [MultiBandMelGANVocoder, VocosVocoder]


class Rows(NullMonitor):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def log(self, step: int, seconds: float, **values: float) -> None:
        self.rows.append({"step": step, **values})


def data() -> Data[Any]:
    generator = torch.Generator().manual_seed(0)
    t = torch.arange(6000) / 22_050
    pitch = 100 + 200 * torch.rand(4, 1, generator=generator)
    waves = 0.2 * sum(torch.sin(2 * torch.pi * k * pitch * t) / k for k in range(1, 12))
    waves = waves + 0.003 * torch.randn(4, 6000, generator=generator)
    pairs = Fixed([Example(x, x) for x in waves], 22_050)
    return Data(train=pairs, valid=pairs)


def scattered(net: nn.Module) -> nn.Module:
    """Weights large enough that every layer matters."""
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net.eval()


# ---- multi-band MelGAN ---------------------------------------------------------------------------


def test_a_residual_layer_is_its_formula() -> None:
    layer = scattered(Residual(4, dilation=3))
    x = torch.randn(2, 4, 30)

    def matrix(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("oi,bit->bot", conv.weight[..., 0], x) + conv.bias[:, None]

    h = F.leaky_relu(x, 0.2)
    reflected = torch.cat([h[..., [3, 2, 1]], h, h[..., [-2, -3, -4]]], -1)
    taps = layer.dilated.conv.weight
    y = sum(
        torch.einsum("oi,bit->bot", taps[..., k], reflected[..., 3 * k : 3 * k + 30])
        for k in range(3)
    )
    y = y + layer.dilated.conv.bias[:, None]
    expected = matrix(layer.last, F.leaky_relu(y, 0.2)) + matrix(layer.skip, x)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("rates", "hop"), [((8, 4, 2), 256), ((2, 5, 5), 200), ((5, 5, 3), 300)])
def test_any_number_of_frames_makes_hop_samples_each(rates: tuple[int, ...], hop: int) -> None:
    net = scattered(MultiBandMelGAN(80, 32, rates, hop=hop))
    with torch.no_grad():
        for frames in (1, 2, 3, 13, 20):
            mel = torch.randn(2, 80, frames)
            wave = net(mel)
            assert wave.shape == (2, frames * hop)
            torch.testing.assert_close(fused(net)(mel), wave)
        bands = net.features(mel)
        assert bands.shape == (2, 4, 20 * hop // 4) and bands.abs().max() <= 1


@pytest.mark.parametrize("net", [
    MultiBandMelGAN(80, 32), MultiBandMelGAN(80, 32, (2, 5, 5), hop=200),
    Vocos(80, 16, 32, 3), Vocos(80, 16, 32, 2, n_fft=800, hop=200),
], ids=["256", "200", "vocos", "vocos-200"])
def test_pieces_are_the_whole_and_their_context_is_no_longer_than_needed(net: Any) -> None:
    scattered(net)
    mel = torch.randn(1, 80, 90)
    with torch.no_grad():
        whole = net(mel)
        before, after = net.around
        found = in_pieces(FrameStream(net, net.hop, before, after), mel, 16)
        torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))
        # What a frame reaches, by changing it: samples from (45 - after) to (45 + before) hops.
        other = mel.clone()
        other[..., 45] += 1
        moved = (net(other) - whole)[0].abs() > 1e-6 * whole.abs().max()
    first, last = (int(moved.nonzero()[i]) // net.hop for i in (0, -1))
    assert 45 - after <= first and last <= 45 + before


def test_the_loss_is_half_of_waves_and_half_of_bands() -> None:
    system = MultiBandMelGANVocoder.from_preset("smoke")
    seen: dict[str, Any] = {}

    class Seen(MultiBandMelGANVocoder):
        def distance(self, wave: Any, made: Any, hidden: Any) -> Any:
            total, values = super().distance(wave, made, hidden)
            seen.update(wave=wave, made=made, hidden=hidden, total=total)
            return total, values

    Seen(system.config).fit(data(), Budget(steps=1))
    wave, made, hidden = (seen[n].detach() for n in ("wave", "made", "hidden"))
    torch.testing.assert_close(PQMF().join(hidden), made)
    bands, parts = PQMF().split(wave), []
    assert bands.shape == hidden.shape == (2, 4, 512)

    def magnitude(x: torch.Tensor, n_fft: int, hop: int, window: int) -> torch.Tensor:
        found = torch.stft(
            x, n_fft, hop, window, torch.hann_window(window), return_complex=True
        )
        return found.abs().square().clamp_min(1e-7).sqrt()

    for n_fft, hop, window in BAND_RESOLUTIONS:
        a, b = (
            magnitude(x.reshape(8, 512), n_fft, hop, window).reshape(2, -1)
            for x in (hidden, bands)
        )
        convergence = ((b - a).norm(dim=1) / b.norm(dim=1)).mean()
        parts.append(convergence + (a.log() - b.log()).abs().mean())
    expected = 0.5 * MultiResolutionSTFT()(made, wave) + 0.5 * sum(parts) / 3
    torch.testing.assert_close(seen["total"].detach(), expected, rtol=1e-4, atol=1e-5)


def test_discriminators_join_when_they_are_asked_to() -> None:
    rows = Rows()
    config = MultiBandMelGANVocoder.configure("smoke", critic_start=3)
    system = MultiBandMelGANVocoder(config)
    system.fit(data(), Budget(steps=5), rows)
    critics = [row["critic"] for row in rows.rows]
    assert critics[:3] == [0, 0, 0] and min(critics[3:]) > 0
    alone = MultiBandMelGANVocoder(config)
    alone.fit(data(), Budget(steps=3))
    fresh = alone._new_critics().state_dict()
    assert all(torch.equal(t, fresh[n]) for n, t in alone._critics.state_dict().items())


def test_scales_of_melgan() -> None:
    critic = MelGANScales()
    assert sum(p.numel() for p in critic.parameters()) == 4_354_998  # ParallelWaveGAN's
    assert [o.score.shape for o in critic(torch.randn(2, 32))] == [(2, 1)] * 3
    with pytest.raises(DataError, match="31 samples"):
        critic(torch.randn(2, 31))


# ---- Vocos ---------------------------------------------------------------------------------------


def test_a_block_is_its_formula() -> None:
    block = scattered(ConvNeXtBlock(6, 10, 0.5))
    x = torch.randn(2, 6, 12)
    padded = F.pad(x, (3, 3))
    y = torch.stack([
        sum(block.dwconv.weight[c, 0, k] * padded[:, c, k : k + 12] for k in range(7))
        + block.dwconv.bias[c]
        for c in range(6)
    ], -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    y = block.norm.weight * y + block.norm.bias
    y = y @ block.pwconv1.weight.T + block.pwconv1.bias
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5))
    y = block.gamma * (y @ block.pwconv2.weight.T + block.pwconv2.bias)
    torch.testing.assert_close(block(x), x + y.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_the_head_gives_back_the_wave_of_a_true_spectrum() -> None:
    """Analysis with the margins of its own frames, then its inverse."""
    net = Vocos(80, 8, 8, 1)
    wave = torch.randn(2, 20 * 256, generator=torch.Generator().manual_seed(0))
    spectrum = torch.stft(
        F.pad(wave, (384, 384)), 1024, 256, window=torch.hann_window(1024), center=False,
        return_complex=True,
    )
    assert spectrum.shape[-1] == 20
    hidden = torch.cat([spectrum.abs().log(), spectrum.angle()], 1)
    made = net.finish(hidden)
    torch.testing.assert_close(made[:, 128:-128], wave[:, 128:-128], rtol=1e-3, atol=1e-3)


def test_huge_magnitudes_are_cut_off_with_a_finite_gradient() -> None:
    hidden = torch.full((1, 1026, 4), 200.0, requires_grad=True)
    wave = Vocos(80, 8, 8, 1).finish(hidden)
    wave.square().mean().backward()
    assert torch.isfinite(wave).all() and torch.isfinite(hidden.grad).all()
    same = torch.full((1, 1026, 4), 200.0)
    same[:, :513] = np.log(100.0)
    torch.testing.assert_close(wave.detach(), Vocos(80, 8, 8, 1).finish(same))


def test_weights_of_the_discriminators() -> None:
    weights = VocosVocoder.from_preset("smoke").critic_weights()
    assert weights == pytest.approx([0.2] * 5 + [0.1 / 3] * 3)


# ---- both ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
def test_a_resumed_run_has_the_weights_of_the_whole(cls: Any, tmp_path: Any) -> None:
    class Kill(NullMonitor):
        def log(self, step: int, seconds: float, **values: float) -> None:
            if step == 2:
                raise KeyboardInterrupt

    def system(seed: int = 0) -> Any:
        made = cls(cls.configure("smoke", keep_critics=True, critic_start=1), seed=seed)
        made.checkpoints = tmp_path
        return made

    whole = system()
    whole.checkpoints = None
    whole.fit(data(), Budget(steps=4))
    first = system()
    with pytest.raises(KeyboardInterrupt):
        first.fit(data(), Budget(steps=4), Kill())
    second = system()
    second.resume = True
    second.fit(data(), Budget(steps=4))
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


@pytest.mark.parametrize(("cls", "options", "words"), [
    (MultiBandMelGANVocoder, {"rates": (8, 4, 4)}, "multiply to 64"),
    (MultiBandMelGANVocoder, {"rates": ()}, "rates"),
    (MultiBandMelGANVocoder, {"channels": 20}, "multiple of 8"),
    (VocosVocoder, {"hop_length": 600}, "twice the hop"),
    (VocosVocoder, {"hop_length": 255}, "even hop"),
])
def test_what_does_not_fit_is_refused(cls: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        cls.configure("small", **options)
