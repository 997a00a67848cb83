"""Noises against their spectra in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from passband.data.speech.noises import KINDS, Noises, pink, stretch, white
from passband.data.speech.recordings import Waves
from passband.errors import ConfigError, DataError, UnknownNameError

RATE = 8000


def tones(count: int = 8) -> Waves:
    """Every talker is a tone of a frequency of its own."""
    t = np.arange(RATE) / RATE
    waves = [0.5 * np.sin(2 * np.pi * 100 * (k + 1) * t).astype(np.float32) for k in range(count)]
    return Waves.of(waves, [f"t{k}" for k in range(count)], RATE)


def slope(wave: np.ndarray) -> float:
    """Of the power spectrum, in dB an octave."""
    power = np.abs(np.fft.rfft(wave)) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / RATE)
    edges = 62.5 * 2.0 ** np.arange(6)  # octaves from 62.5 Hz to 2 kHz
    means = [power[(frequency >= a) & (frequency < 2 * a)].mean() for a in edges]
    return float(np.polyfit(np.arange(6), 10 * np.log10(means), 1)[0])


def test_slopes_of_white_and_pink() -> None:
    rng = np.random.default_rng(0)
    assert slope(white(1 << 17, RATE, rng)) == pytest.approx(0.0, abs=0.15)
    assert slope(pink(1 << 17, RATE, rng)) == pytest.approx(-10 * np.log10(2), abs=0.15)


@pytest.mark.parametrize("kind", [*KINDS, "babble"])
@pytest.mark.parametrize("samples", [1, 100, 8001])
def test_every_kind_has_power_one_and_its_length(kind: str, samples: int) -> None:
    wave = Noises(RATE, [kind], tones()).draw(samples, np.random.default_rng(1))
    assert wave.shape == (samples,)
    assert wave.dtype == np.float32
    # One sample may happen to be nothing.
    assert np.mean(wave.astype(float) ** 2) == pytest.approx(1.0, rel=1e-4) or samples == 1


def test_a_seed_is_a_noise() -> None:
    noises = Noises(RATE, speech=tones())
    draws = [noises.draw(1000, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_hum_is_a_fundamental_with_harmonics() -> None:
    """Nine tenths of the power lie within 5 Hz of the multiples of the loudest low line."""
    wave = KINDS["hum"](RATE, RATE, np.random.default_rng(5))
    power = np.abs(np.fft.rfft(wave * np.hanning(RATE))) ** 2
    best = max(
        np.mean([power[round(f * k) - 5:round(f * k) + 6].sum() for k in range(1, 8)])
        / (11 * power[: round(f * 8)].mean()) for f in np.arange(45, 400, 0.5)
    )
    assert best > 3


def test_babble_leaves_the_talker_out() -> None:
    noises = Noises(RATE, ["babble"], tones(8))
    heard = np.zeros(8)
    for seed in range(20):
        power = np.abs(np.fft.rfft(noises.draw(RATE, np.random.default_rng(seed), ["t2"]))) ** 2
        heard += power[100:900:100] > 0.01 * power.max()
    assert heard[2] == 0
    assert all(np.delete(heard, 2) > 5)


def test_recorded_noise_is_taken_as_it_is() -> None:
    recorded = Waves.of([np.full(100, 0.25, np.float32)], ["fan"], RATE)
    wave = Noises(RATE, recorded=recorded).draw(1000, np.random.default_rng(0))
    np.testing.assert_allclose(wave, 1.0, atol=1e-6)


def test_a_stretch_is_a_piece_of_what_there_is() -> None:
    ramp = Waves.of([np.arange(1000, dtype=np.float32) / 1000], ["a"], RATE)
    found = stretch(ramp, 300, np.random.default_rng(0))
    np.testing.assert_allclose(np.diff(found), 1e-3, atol=1e-4)


def test_wrong_requests() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'pink'"):
        Noises(RATE, ["pnik"])
    with pytest.raises(ConfigError, match="babble"):
        Noises(RATE, ["babble"])
    with pytest.raises(DataError, match="one rate"):
        Noises(16_000, speech=tones())
