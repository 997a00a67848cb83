"""Spectral distances against formulations in NumPy and SciPy, and closed forms."""

import librosa
import numpy as np
import pytest
import torch

from passband.errors import DataError
from passband.parts.losses.spectral import RESOLUTIONS
from passband.parts.metrics.lsd import log_spectral_distance
from passband.parts.metrics.spectral import mel_distance, multi_resolution_stft
from passband.parts.signal.mel import MELS, LogMel

RANDOM = np.random.default_rng(0)
TARGET = RANDOM.normal(size=(2, 9000))
ESTIMATE = TARGET + 0.3 * RANDOM.normal(size=TARGET.shape)


def spectrogram(x, n_fft, hop, win):
    return librosa.stft(x, n_fft=n_fft, hop_length=hop, win_length=win, pad_mode="reflect")


@pytest.mark.parametrize(("low", "high"), [(0, None), (100, None), (0, 300)])
def test_lsd_by_hand(low, high):
    power = [
        np.abs(spectrogram(x, 2048, 512, 2048)[:, low:high]) ** 2 for x in (ESTIMATE, TARGET)
    ]
    difference = np.log10(power[0]) - np.log10(power[1])
    expected = np.sqrt((difference**2).mean(1)).mean(1)
    found = log_spectral_distance(ESTIMATE, TARGET, low=low, high=high)
    assert np.allclose(found, expected, atol=1e-4)
    assert found.shape == (2,)


def test_lsd_of_a_gain_and_of_silence():
    assert np.allclose(log_spectral_distance(TARGET * 100, TARGET), 4)
    assert log_spectral_distance(np.zeros(9000), np.zeros(9000)) == 0
    assert np.isfinite(log_spectral_distance(np.zeros(9000), TARGET[0]))


def test_multi_resolution_by_hand():
    values = []
    for n_fft, hop, win in RESOLUTIONS:
        e, s = (np.abs(spectrogram(x, n_fft, hop, win)) for x in (ESTIMATE, TARGET))
        convergence = np.sqrt(((s - e) ** 2).sum((1, 2)) / (s**2).sum((1, 2)))
        values.append(convergence + np.abs(np.log(s) - np.log(e)).mean((1, 2)))
    assert np.allclose(multi_resolution_stft(ESTIMATE, TARGET), np.mean(values, 0), atol=1e-4)
    batch = multi_resolution_stft(torch.from_numpy(ESTIMATE), torch.from_numpy(TARGET))
    one = multi_resolution_stft(torch.from_numpy(ESTIMATE[1]), torch.from_numpy(TARGET[1]))
    assert torch.isclose(batch[1], one)


def test_mel_distance_of_a_gain():
    mel = LogMel(**MELS["hifigan-22k"])
    assert np.allclose(mel_distance(TARGET * np.e, TARGET, mel), 1, atol=1e-3)
    assert mel_distance(TARGET, TARGET, mel).tolist() == [0, 0]


def test_what_is_refused():
    mel = LogMel(**MELS["hifigan-22k"])
    for measure in (
        log_spectral_distance, multi_resolution_stft, lambda e, t: mel_distance(e, t, mel)
    ):
        with pytest.raises(DataError, match="equal shapes"):
            measure(ESTIMATE, TARGET[:1])
