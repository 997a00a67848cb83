"""iSTFTNet and HiFi-GAN as networks: sizes, the inverse STFT, lengths, pieces, export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passband.errors import ConfigError, DataError
from passband.parts.mel_upsampler import fused
from passband.speech.baselines.hifi_gan.model import HiFiGAN
from passband.speech.baselines.hifi_gan.system import HiFiGANVocoder
from passband.speech.frame_stream import FrameStream, in_pieces
from passband.speech.istftnet.artefacts import lines
from passband.speech.istftnet.export import exported
from passband.speech.istftnet.inverse import InverseSTFT
from passband.speech.istftnet.model import ISTFTNet, products, shrunk
from passband.speech.istftnet.system import ISTFTNetVocoder

# With weight norm, and with plain weights: the published table.
SIZES = {
    (ISTFTNetVocoder, "v1-c8c8c2i"): (13_801_940, 13_792_458),
    (ISTFTNetVocoder, "v1-c8c8i"): (13_262_244, 13_254_034),
    (ISTFTNetVocoder, "v1-c8c1i"): (12_936_836, 12_928_514),
    (ISTFTNetVocoder, "v1-c8i"): (10_885_636, 10_879_874),
    (ISTFTNetVocoder, "v2-c8c8c2i"): (920_708, 918_330),
    (ISTFTNetVocoder, "v2-c8c8i"): (888_708, 886_642),
    (ISTFTNetVocoder, "v2-c8c1i"): (887_396, 885_218),
    (ISTFTNetVocoder, "v2-c8i"): (780_100, 778_562),
    (ISTFTNetVocoder, "v3-c8c8i"): (1_424_612, 1_422_802),
    (ISTFTNetVocoder, "v3-c8c1i"): (1_368_516, 1_366_594),
    (ISTFTNetVocoder, "v3-c8i"): (1_278_340, 1_276_930),
    (ISTFTNetVocoder, "paper"): (13_262_244, 13_254_034),
    (ISTFTNetVocoder, "hifigan"): (13_262_244, 13_254_034),
    (HiFiGANVocoder, "v1"): (13_936_130, 13_926_017),
    (HiFiGANVocoder, "v2"): (928_514, 925_985),
    (HiFiGANVocoder, "v3"): (1_464_322, 1_462_273),
}
STFTS = [(16, 4), (8, 2), (128, 32), (20, 5), (32, 8)]


@pytest.mark.parametrize(("entry", "sizes"), SIZES.items(), ids=lambda x: str(x[-1]))
def test_sizes_of_the_published_variants(entry, sizes):
    cls, preset = entry
    system = cls.from_preset(preset)
    assert system.parameter_count() == sizes[0]
    with torch.device("meta"):
        plain = fused(system.build())
    assert sum(p.numel() for p in plain.parameters()) == sizes[1]


def test_the_small_one():
    assert ISTFTNetVocoder.from_preset("small").parameter_count() == 242_132


# ---- the inverse STFT ----------------------------------------------------------------------------


@pytest.mark.parametrize("as_convolution", [False, True])
@pytest.mark.parametrize(("n_fft", "hop"), STFTS)
def test_inverse_equals_torch(n_fft, hop, as_convolution):
    inverse = InverseSTFT(n_fft, hop, as_convolution)
    generator = torch.Generator().manual_seed(n_fft)
    for frames in (2, 3, 4, 5, 9, 40, 333):
        magnitude = torch.rand(2, n_fft // 2 + 1, frames, generator=generator)
        phase = 4 * torch.randn(2, n_fft // 2 + 1, frames, generator=generator)
        found = inverse(magnitude, phase)
        assert found.shape == (2, (frames - 1) * hop)
        if frames * hop <= n_fft // 2:
            continue  # too short for torch.istft
        window = torch.hann_window(n_fft, dtype=torch.float64)
        spectrum = torch.polar(magnitude.double(), phase.double())
        expected = torch.istft(spectrum, n_fft, hop, window=window)
        assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("as_convolution", [False, True])
def test_inverse_of_one_frame_by_hand(as_convolution):
    """The first samples: two windowed frames over the sum of two squared windows."""
    n_fft, hop = 8, 2
    magnitude, phase = torch.rand(1, 5, 2), torch.randn(1, 5, 2)
    spectrum = torch.polar(magnitude, phase)[0].numpy()
    frames = np.fft.irfft(spectrum.T, n_fft)
    w = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    expected = [
        (w[n] * frames[0, n] + w[n - 2] * frames[1, n - 2]) / (w[n] ** 2 + w[n - 2] ** 2)
        for n in (4, 5)
    ]
    found = InverseSTFT(n_fft, hop, as_convolution)(magnitude, phase)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_true_spectrum_through_the_head_gives_the_wave():
    """P3: the geometry is that of a centred STFT of 16 samples, hop 4."""
    net = ISTFTNet(channels=32)
    wave = torch.randn(2, 256 * 12, generator=torch.Generator().manual_seed(0))
    spectrum = torch.stft(wave, 16, 4, window=torch.hann_window(16), return_complex=True)
    assert spectrum.shape[-1] == 64 * 12 + 1  # what the network gives for 12 frames
    found = net.inverse(spectrum.abs(), spectrum.angle())
    assert (found - wave).abs().max() < 1e-5


def test_inverse_refuses_what_can_not_be_inverted():
    for n_fft, hop in ((16, 5), (16, 8)):
        with pytest.raises(ConfigError, match=f"{n_fft} samples with a hop of {hop}"):
            InverseSTFT(n_fft, hop)


# ---- the networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("rates", [(8, 8), (8, 8, 2), (8, 1), (8,)], ids=str)
def test_as_many_samples_as_frames_say(rates):
    net = fused(ISTFTNet(channels=16, rates=rates))
    with torch.no_grad():
        for frames in range(1, 41):
            out = net(torch.full((1, 80, frames), -5.0))
            assert out.shape == (1, frames * 256)
            assert torch.isfinite(out).all()


@pytest.mark.parametrize("rates", [(8, 8), (8, 1), (8, 8, 2)], ids=str)
def test_forward_is_exp_and_sin_through_torch_istft(rates):
    torch.manual_seed(1)
    net = ISTFTNet(channels=16, rates=rates)
    mel = torch.randn(2, 80, 6)
    f, h = shrunk(rates, 1024, 256)
    features = net.features(mel)
    assert features.shape == (2, f + 2, 6 * 256 // h + 1)
    spectrum = torch.polar(
        features[:, : f // 2 + 1].exp(), torch.sin(features[:, f // 2 + 1 :])
    )
    expected = torch.istft(spectrum, f, h, window=torch.hann_window(f))
    torch.testing.assert_close(net(mel), expected, rtol=1e-5, atol=1e-6)


def test_ablations_change_what_they_say():
    mel, nets = torch.randn(1, 80, 4), {}
    for options in ({}, {"phase": "identity"}, {"magnitude": "softplus"}):
        torch.manual_seed(0)
        nets[tuple(options)] = ISTFTNet(channels=16, **options)
    features = nets[()].features(mel)[:, :9], nets[()].features(mel)[:, 9:]
    magnitude, phase = nets[("phase",)].spectrum(mel)
    torch.testing.assert_close(phase, features[1])
    torch.testing.assert_close(magnitude, features[0].exp())
    magnitude, phase = nets[("magnitude",)].spectrum(mel)
    torch.testing.assert_close(magnitude, torch.log1p(features[0].exp()))
    torch.testing.assert_close(phase, features[1].sin())


def test_hifi_gan_is_the_hyperbolic_tangent_of_its_features():
    net = HiFiGAN(channels=32)
    mel = torch.randn(2, 80, 3)
    torch.testing.assert_close(net(mel), torch.tanh(net.features(mel)[:, 0]))
    assert net(mel).shape == (2, 768)


@pytest.mark.parametrize(("rates", "n_fft", "hop", "text"), [
    ((8, 3), 1024, 256, "up-sample by 24.*"), ((512,), 1024, 256, "1, 2, 4, 8, 16, 32, 64, 128"),
    ((8, 8), 1200, 300, "up-sample by 64"),
])
def test_products_that_do_not_fit_are_answered_by_those_that_do(rates, n_fft, hop, text):
    with pytest.raises(ConfigError, match=text):
        ISTFTNet(channels=64, rates=rates, n_fft=n_fft, hop=hop)


def test_products():
    assert products(1024, 256) == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert 60 in products(1200, 300)
    assert 64 not in products(1200, 300)
    assert shrunk((10, 6), 1200, 300) == (20, 5)
    assert shrunk((8, 8), 2048, 512) == (32, 8)


def test_hifi_gan_names_its_product():
    with pytest.raises(ConfigError, match="multiply to 256"):
        HiFiGAN(channels=32, rates=(8, 8, 2))


# ---- in pieces ---------------------------------------------------------------------------------

NETS = [
    lambda: ISTFTNet(channels=16), lambda: ISTFTNet(channels=16, rates=(8,)),
    lambda: HiFiGAN(channels=16), lambda: ISTFTNet(channels=16, rates=(8, 1)),
]


@pytest.mark.parametrize("make", NETS)
def test_in_pieces_it_is_the_same(make):
    torch.manual_seed(2)
    net = fused(make())
    mel = 3 * torch.randn(2, 80, 90)
    with torch.no_grad():
        whole = net(mel)
        stream = FrameStream(net, 256, *net.around)
        for size in (1, 20, 64, 90, 200):
            assert (in_pieces(stream, mel, size) - whole).abs().max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_as_a_stream_it_is_the_same(sizes):
    torch.manual_seed(3)
    net = fused(ISTFTNet(channels=16))
    mel = 3 * torch.randn(1, 80, sum(sizes))
    stream = FrameStream(net, 256, *net.around)
    with torch.no_grad():
        state, out = stream.start(1), []
        for piece in mel.split(sizes, -1):
            samples, state = stream.push(piece, state)
            out.append(samples)
            assert state.frames.shape[-1] <= stream.before + stream.after + 30
        found = torch.cat([*out, stream.finish(state)], -1)
        assert found.shape == (1, 256 * sum(sizes))
        if sum(sizes):
            assert (found - net(mel)).abs().max() < 1e-5


@pytest.mark.parametrize("make", NETS)
def test_the_frames_around_a_piece_are_those_that_gradients_reach(make):
    torch.manual_seed(4)
    net = fused(make().double())
    mel = torch.randn(1, 80, 51, dtype=torch.float64, requires_grad=True)
    piece = net(mel)[:, 25 * 256 : 26 * 256]
    (gradient,) = torch.autograd.grad((piece * torch.rand_like(piece)).sum(), mel)
    frames = gradient.abs().sum((0, 1)).nonzero().flatten()
    assert (25 - int(frames[0]), int(frames[-1]) - 25) == net.around


def test_a_stream_refuses_another_batch():
    stream = FrameStream(lambda x: x[:, 0], 1, 0, 0)
    with pytest.raises(DataError, match=r"\[2, M, n\]"):
        stream.push(torch.zeros(1, 80, 3), stream.start(2))


# ---- export and artefacts ----------------------------------------------------------------------


def test_the_exported_graph_is_real_and_gives_the_same():
    torch.manual_seed(5)
    net = ISTFTNet(channels=16)
    program = exported(net, 80)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("stft" in name or "fft" in name for name in names)
    module = program.module()
    with torch.no_grad():
        for batch, frames in ((1, 1), (1, 23), (3, 8)):
            mel = torch.randn(batch, 80, frames)
            torch.testing.assert_close(module(mel), net(mel), rtol=1e-5, atol=1e-6)


def test_lines_are_measured_where_they_are():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 80_000, generator=generator)
    t = torch.arange(80_000)
    assert abs(lines(noise, 16)) < 0.7
    # A line of 20 dB over the noise at one of seven bins, and one between the bins.
    line = torch.sin(2 * torch.pi * 5 / 16 * t)
    between = torch.sin(2 * torch.pi * 5.5 / 16 * t)
    assert lines(noise + line, 16) > lines(noise, 16) + 2
    assert lines(noise + between, 16) < lines(noise, 16) + 0.2
    with pytest.raises(DataError, match="at least 4096"):
        lines(noise[:, :100], 16)
    with pytest.raises(DataError, match="at most 256"):
        lines(noise, 512)
    third = torch.sin(2 * torch.pi * 3 / 20 * t)  # a frame that does not divide 2048
    assert lines(noise + third, 20) > lines(noise, 20) + 1.5
