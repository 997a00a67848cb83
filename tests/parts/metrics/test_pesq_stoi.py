"""PESQ and STOI: the packages' own values, batches, and what is not defined."""

import numpy as np
import pesq as pesq_package
import pystoi
import pytest
import torch

from passband.errors import ConfigError, DataError
from passband.parts.metrics.pesq import pesq
from passband.parts.metrics.stoi import stoi

RANDOM = np.random.default_rng(0)
# Noise with the rhythm of syllables: speech, as far as these measures can tell.
TIME = np.arange(16_000) / 8_000
SPEECH = RANDOM.normal(size=(2, 16_000)) * np.sin(2 * np.pi * 2 * TIME).clip(0.01)
NOISY = SPEECH + 0.2 * RANDOM.normal(size=SPEECH.shape)


@pytest.mark.parametrize(("rate", "mode"), [(8_000, None), (16_000, None), (16_000, "nb")])
def test_pesq_is_the_packages(rate, mode):
    band = mode or {8_000: "nb", 16_000: "wb"}[rate]
    expected = [pesq_package.pesq(rate, s, n, band) for s, n in zip(SPEECH, NOISY, strict=True)]
    assert np.allclose(pesq(SPEECH, NOISY, rate, mode), expected)
    batch = torch.from_numpy(np.stack([NOISY, SPEECH]))
    found = pesq(torch.from_numpy(SPEECH).expand(2, 2, -1), batch, rate, mode)
    assert found.shape == (2, 2)
    assert torch.allclose(found[0], torch.tensor(expected, dtype=torch.float64))
    assert (found[1] > 4.5).all()


@pytest.mark.parametrize("extended", [False, True])
def test_stoi_is_the_packages(extended):
    expected = [
        pystoi.stoi(s, n, 8_000, extended=extended) for s, n in zip(SPEECH, NOISY, strict=True)
    ]
    assert np.allclose(stoi(SPEECH, NOISY, 8_000, extended), expected)
    assert 0 < expected[0] < 1
    assert stoi(SPEECH[0], SPEECH[0], 8_000, extended) == pytest.approx(1, abs=1e-6)


def test_what_is_not_defined_is_nan():
    silence = np.zeros(16_000)
    assert np.isnan(pesq(silence, NOISY[0], 16_000))
    assert np.isnan(pesq(SPEECH[0], silence, 16_000))
    assert np.isnan(pesq(SPEECH[:, :100], NOISY[:, :100], 16_000)).all()
    for length in (10, 1000, 3000):
        assert np.isnan(stoi(SPEECH[0, :length], NOISY[0, :length], 8_000))
    assert np.isnan(stoi(silence, NOISY[0], 8_000))
    assert stoi(SPEECH[0], silence, 8_000) == pytest.approx(0, abs=0.01)
    assert np.isnan(pesq(np.stack([silence, SPEECH[0]]), NOISY, 16_000)).tolist() == [True, False]


def test_what_is_refused():
    with pytest.raises(ConfigError, match="resample both"):
        pesq(SPEECH, NOISY, 44_100)
    with pytest.raises(ConfigError, match="'wb' at 8000"):
        pesq(SPEECH, NOISY, 8_000, "wb")
    for measure in (pesq, stoi):
        with pytest.raises(DataError, match="equal shapes"):
            measure(SPEECH, NOISY[:1], 16_000)
        with pytest.raises(DataError, match="not finite"):
            measure(SPEECH, NOISY * np.nan, 16_000)
