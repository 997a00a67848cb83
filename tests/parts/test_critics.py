"""Discriminators against plain formulations: explicit columns, explicit scales, sums by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.critics import (
    HINGE,
    MultiPeriod,
    MultiResolution,
    MultiScale,
    Opinion,
    critic_loss,
    feature_matching,
    generator_loss,
)
from passband.parts.critics.periods import PERIODS, Period


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_published_sizes():
    with torch.device("meta"):
        assert count(MultiPeriod()) == 41_105_770
        assert count(MultiScale()) == 29_618_821
        assert [count(d) for d in MultiPeriod().discriminators] == [41_105_770 // 5] * 5


@pytest.mark.parametrize("period", PERIODS)
def test_a_period_sees_each_column_by_itself(period):
    """Folding is the same as convolving every p-th sample, column by column."""
    torch.manual_seed(period)
    critic = Period(period, width=1 / 32)
    length = 40 * period + 3  # not a multiple
    x = torch.randn(2, 1, length)
    opinion = critic(x)

    padded = x
    while padded.shape[-1] % period:  # reflection by hand, a sample at a time
        at = 2 * (length - 1) - padded.shape[-1]
        padded = torch.cat([padded, x[..., at : at + 1]], -1)
    columns = []
    for c in range(period):
        y = padded[..., c::period]
        for conv in critic.convs:
            weight = conv.weight[..., 0]
            y = F.leaky_relu(F.conv1d(y, weight, conv.bias, conv.stride[0], padding=2), 0.1)
        post = critic.conv_post
        columns.append(F.conv1d(y, post.weight[..., 0], post.bias, padding=1))
    plain = torch.stack(columns, -1).flatten(1)
    torch.testing.assert_close(opinion.score, plain, rtol=1e-5, atol=1e-6)
    assert len(opinion.features) == 6
    assert opinion.features[-1].numel() == opinion.score.numel()


def test_scales_see_means_of_pairs_and_fours():
    torch.manual_seed(0)
    critic = MultiScale(width=1 / 16).eval()
    x = torch.randn(1, 512)
    padded = F.pad(x, (2, 2))
    half = torch.stack([padded[:, 2 * i : 2 * i + 4].mean(-1) for i in range(257)], -1)
    found = critic(x)
    plain = critic.discriminators[1](half[:, None])
    torch.testing.assert_close(found[1].score, plain.score)
    assert len(found) == 3
    assert len(found[0].features) == 8


def test_the_first_scale_is_held_by_spectral_norm_the_others_by_weight_norm():
    critic = MultiScale(width=1 / 16)
    for _ in range(50):  # the power iteration needs a few passes
        critic(torch.zeros(1, 256))
    for conv in critic.discriminators[0].convs:
        largest = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)
        assert float(largest) == pytest.approx(1, abs=0.05)
    conv = critic.discriminators[1].convs[3]
    norm = conv.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norm, conv.parametrizations.weight.original0.flatten())


def test_losses_by_hand():
    def opinion(*scores):
        features = [torch.tensor([[1.0, scores[0]]]), torch.tensor([[2.0], [4.0]]) * scores[-1]]
        return Opinion(torch.tensor([scores]), features)

    real, fake = [opinion(1.0, 0.5), opinion(0.0, 1.0)], [opinion(0.5, 0.5), opinion(2.0, 1.0)]
    # (1 - 1)^2, (1 - 0.5)^2 and 0.5^2, 0.5^2; then 1, 0 and 4, 1.
    assert critic_loss(real, fake).item() == pytest.approx(0.125 + 0.25 + 0.5 + 2.5)
    assert generator_loss(fake).item() == pytest.approx(0.25 + 0.5)
    # Means over a layer, summed over layers and judges, twice: first layers 0.25 and 1, second 0.
    assert feature_matching(real, fake).item() == pytest.approx(2 * (0.25 + 1.0))
    assert feature_matching(real, fake, weight=1).item() == pytest.approx(1.25)


def test_feature_matching_reaches_the_generated_wave_alone():
    critic = MultiPeriod(width=1 / 32)
    real = torch.randn(1, 300, requires_grad=True)
    fake = torch.randn(1, 300, requires_grad=True)
    feature_matching(critic(real), critic(fake)).backward()
    assert real.grad is None
    assert fake.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [MultiPeriod, MultiScale])
def test_waves_may_come_with_a_channel_or_without(make):
    critic = make(width=1 / 32).eval()
    x = torch.randn(3, 700)
    for a, b in zip(critic(x), critic(x[:, None]), strict=True):
        torch.testing.assert_close(a.score, b.score)


def test_wrong_waves_and_sizes_are_named():
    critic = MultiPeriod(width=1 / 32)
    with pytest.raises(DataError, match=r"\(2, 2, 300\)"):
        critic(torch.zeros(2, 2, 300))
    with pytest.raises(DataError, match="at least 11"):
        critic(torch.zeros(1, 10))
    with pytest.raises(ConfigError, match="0 scales"):
        MultiScale(scales=0)


def test_narrow_layers_keep_their_groups_divisible():
    for width in (1 / 64, 1 / 16, 0.3, 1 / 2):
        for conv in MultiScale(width=width).discriminators[1].convs:
            assert conv.in_channels % conv.groups == conv.out_channels % conv.groups == 0
    full = [conv.groups for conv in MultiScale().discriminators[1].convs]
    assert full == [1, 4, 16, 16, 16, 16, 1]
    assert math.isclose(count(MultiPeriod(width=1 / 16)), 41_105_770 / 256, rel_tol=0.05)


# ---- spectrograms, hinges, weights ---------------------------------------------------------------


def test_multi_resolution_sees_bands_of_the_levelled_spectrogram() -> None:
    critic = MultiResolution(width=1 / 8)
    assert sum(p.numel() for p in MultiResolution().parameters()) == 1_413_990  # the authors'
    wave = 0.1 * torch.randn(2, 3000)
    opinions = critic(wave)
    for a, b in zip(opinions, critic(7 * wave + 0.3), strict=True):  # level and offset tell nothing
        torch.testing.assert_close(a.score, b.score, rtol=1e-3, atol=1e-5)
    part = critic.discriminators[2]  # windows of 512 samples: 257 bins
    assert part.bands == [(0, 25), (25, 64), (64, 128), (128, 192), (192, 257)]
    level = wave - wave.mean(-1, keepdim=True)
    level = 0.8 * level / level.abs().amax(-1, keepdim=True)
    spectrum = torch.stft(
        level, 512, 128, window=torch.hann_window(512), return_complex=True
    ).transpose(1, 2)
    expected = torch.stack([spectrum.real, spectrum.imag], 1)
    torch.testing.assert_close(part.spectrogram(wave[:, None]), expected, rtol=1e-4, atol=1e-4)
    frames, bins = expected.shape[-2], [4, 5, 8, 8, 9]  # a band after three strides of 2
    assert opinions[2].features[3].shape == (2, 4, frames, bins[0])
    assert opinions[2].score.shape == (2, frames * sum(bins))


def test_hinges_and_weights_by_hand() -> None:
    def said(*scores: float) -> list[Opinion]:
        return [Opinion(torch.tensor([[s]]), [torch.tensor([s])]) for s in scores]

    real, fake = said(2.0, 0.5), said(-3.0, 0.25)
    assert float(critic_loss(real, fake, HINGE)) == pytest.approx(0 + 0 + 0.5 + 1.25)
    assert float(generator_loss(fake, HINGE)) == pytest.approx(4 + 0.75)
    weights = [0.5, 0.1]
    assert float(generator_loss(fake, HINGE, weights)) == pytest.approx(2 + 0.075)
    assert float(critic_loss(real, fake, weights=weights)) == pytest.approx(
        0.5 * (1 + 9) + 0.1 * (0.25 + 0.0625)
    )
    assert float(feature_matching(real, fake, 1.0, weights)) == pytest.approx(2.5 + 0.025)


def test_features_may_begin_after_the_first_layer() -> None:
    critic, wave = MultiPeriod(width=1 / 32), torch.randn(1, 300)
    whole = critic(wave)
    critic.first = 1
    for a, b in zip(whole, critic(wave), strict=True):
        assert torch.equal(a.score, b.score) and len(b.features) == len(a.features) - 1
        assert torch.equal(a.features[1], b.features[0])
