"""Spectral losses against SciPy and librosa, and at known distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal

from passband.errors import ConfigError, DataError
from passband.parts.losses.spectral import RESOLUTIONS, LogMelL1, MultiResolutionSTFT

librosa = pytest.importorskip("librosa")


def waves(seed=0, length=6000):
    rng = np.random.default_rng(seed)
    t = np.arange(length) / 16_000
    clean = 0.5 * np.sin(2 * np.pi * 440 * t) + 0.05 * rng.standard_normal(length)
    return clean, clean + 0.2 * rng.standard_normal(length)


def magnitude(x, n_fft, hop, window):
    w = np.pad(signal.get_window("hann", window), ((n_fft - window) // 2,) * 2)
    x = np.pad(x, n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(x, n_fft)[::hop]
    return np.sqrt(np.maximum(np.abs(np.fft.rfft(frames * w)) ** 2, 1e-7))


def test_multi_resolution_against_numpy():
    target, estimate = waves()
    convergence, distance = [], []
    for n_fft, hop, window in RESOLUTIONS:
        x, y = magnitude(estimate, n_fft, hop, window), magnitude(target, n_fft, hop, window)
        convergence.append(np.linalg.norm(y - x) / np.linalg.norm(y))
        distance.append(np.abs(np.log(y) - np.log(x)).mean())
    found = MultiResolutionSTFT().parts(torch.tensor(estimate)[None], torch.tensor(target)[None])
    assert float(found[0]) == pytest.approx(np.mean(convergence), rel=1e-6)
    assert float(found[1]) == pytest.approx(np.mean(distance), rel=1e-6)


def test_a_gain_has_the_distance_of_its_logarithm():
    x = torch.randn(2, 5000, dtype=torch.float64)
    convergence, distance = MultiResolutionSTFT().parts(3 * x, x)
    assert float(convergence) == pytest.approx(2, abs=1e-6)
    assert float(distance) == pytest.approx(np.log(3), abs=1e-6)


def test_each_wave_of_a_batch_counts_alike():
    loss = MultiResolutionSTFT()
    x, y = torch.randn(2, 3, 4000, dtype=torch.float64)
    y[0] *= 100  # loud or not
    single = torch.stack([loss(a[None], b[None]) for a, b in zip(x, y, strict=True)]).mean()
    torch.testing.assert_close(loss(x, y), single)


def test_log_mel_against_librosa():
    target, estimate = waves(1, 8192)
    filters = librosa.filters.mel(sr=22_050, n_fft=1024, n_mels=80, fmin=0, fmax=11_025)

    def mel(x):
        frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, 384, mode="reflect"), 1024)
        spectrum = np.fft.rfft(frames[::256] * signal.get_window("hann", 1024)).T
        return np.log(np.maximum(filters @ np.sqrt(np.abs(spectrum) ** 2 + 1e-9), 1e-5))

    expected = np.abs(mel(target) - mel(estimate)).mean()
    found = LogMelL1(22_050)(torch.tensor(estimate)[None], torch.tensor(target)[None])
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_silence_has_finite_gradients():
    x = torch.zeros(1, 4096, requires_grad=True)
    y = torch.randn(1, 4096)
    (MultiResolutionSTFT()(x, y) + LogMelL1(16_000)(x, y)).backward()
    assert torch.isfinite(x.grad).all()


def test_other_shapes_are_refused():
    with pytest.raises(DataError, match=r"\(2, 100\)"):
        MultiResolutionSTFT()(torch.zeros(2, 100), torch.zeros(1, 100))
    with pytest.raises(ConfigError):
        MultiResolutionSTFT([])
