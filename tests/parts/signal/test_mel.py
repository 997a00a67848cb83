"""Mel filters against librosa's, the log-mel spectrogram against a formulation in NumPy."""

import librosa
import numpy as np
import pytest
import torch

from passband.errors import ConfigError
from passband.parts.signal.mel import MELS, LogMel, hz_to_mel, mel_filters, mel_to_hz


@pytest.mark.parametrize("case", [
    (22_050, 1024, 80, 0.0, 8_000.0), (22_050, 1024, 80, 0.0, None),
    (16_000, 512, 40, 20.0, 7_600.0), (44_100, 2048, 60, 0.0, None),
    (48_000, 1024, 80, 0.0, 8_000.0), (15_625, 1024, 128, 20.0, None), (16_000, 32, 5, 0.0, None),
])
@pytest.mark.filterwarnings("ignore:Empty filters")
def test_filters_are_librosas(case):
    rate, n_fft, n_mels, fmin, fmax = case
    theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    ours = mel_filters(rate, n_fft, n_mels, fmin, fmax)
    assert ours.shape == theirs.shape
    assert np.allclose(ours, theirs, atol=1e-6)


def test_scale():
    hz = np.array([0.0, 200.0, 999.0, 1000.0, 6400.0, 20_000.0])
    assert np.allclose(hz_to_mel(hz), librosa.hz_to_mel(hz))
    assert np.allclose(mel_to_hz(hz_to_mel(hz)), hz)
    assert hz_to_mel(np.array(6400.0)) == pytest.approx(15 + 27)


def in_numpy(x, sample_rate, n_fft, hop_length, win_length, n_mels, fmin, fmax):
    left = (n_fft - hop_length) // 2
    x = np.pad(x, (left, n_fft - hop_length - left), mode="reflect")
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(win_length) / win_length))
    margin = (n_fft - win_length) // 2
    window = np.pad(window, (margin, n_fft - win_length - margin))
    frames = [x[n : n + n_fft] * window for n in range(0, len(x) - n_fft + 1, hop_length)]
    spectrum = np.fft.rfft(frames).T
    magnitude = np.sqrt(np.abs(spectrum) ** 2 + 1e-9)
    filters = librosa.filters.mel(
        sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, dtype=np.float64
    )
    return np.log(np.maximum(filters @ magnitude, 1e-5))


@pytest.mark.parametrize("preset", MELS)
def test_log_mel(preset):
    x = np.random.default_rng(0).normal(size=8192 + 100) * 0.1
    ours = LogMel(**MELS[preset])(torch.from_numpy(x))
    assert ours.shape == (MELS[preset]["n_mels"], 32)
    assert np.allclose(ours, in_numpy(x, **MELS[preset]), atol=1e-4)


@pytest.mark.parametrize("sizes", [(512, 128, 400), (512, 129, 512), (100, 100, 100)])
@pytest.mark.filterwarnings("ignore:Empty filters")
def test_other_sizes(sizes):
    n_fft, hop, win = sizes
    x = np.random.default_rng(0).normal(size=hop * 20)
    ours = LogMel(16_000, n_fft, hop, win, 10)(torch.from_numpy(x))
    assert ours.shape == (10, 20)
    assert np.allclose(ours, in_numpy(x, 16_000, n_fft, hop, win, 10, 0.0, None), atol=1e-4)


def test_lengths():
    mel = LogMel(**MELS["hifigan-22k"])
    for length in (1, 255, 256, 384, 385, 511, 512, 1024, 1025):
        frames = mel(torch.zeros(2, 3, length)).shape
        assert frames == (2, 3, 80, max(1, length // 256)) == (2, 3, 80, mel.frames(length))
    small_hop = LogMel(16_000, 1024, 64, 1024, 20)
    assert small_hop(torch.ones(300)).shape == (20, 4)


def test_silence_has_the_floor_and_a_finite_gradient():
    x = torch.zeros(2048, requires_grad=True)
    mel = LogMel(**MELS["hifigan-22k"])
    value = mel(x)
    assert value.min() >= np.log(1e-5) - 1e-6
    mel.mel(x).sum().backward()
    assert x.grad.isfinite().all()
    assert not mel.state_dict()


def test_what_is_refused():
    for bounds in ((0.0, 8_001.0), (-1.0, 100.0), (500.0, 500.0)):
        with pytest.raises(ConfigError, match="mel bands"):
            mel_filters(16_000, 512, 40, *bounds)
    with torch.device("meta"):
        assert LogMel(**MELS["hifigan-16k"]).filters.sum() > 0
