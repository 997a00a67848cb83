"""Noises made on the spot: white, pink, hum, clicks, and babble of other talkers.

>>> noises = Noises(sample_rate=8000, kinds=("white", "pink", "hum", "clicks"))
>>> wave = noises.draw(8000, np.random.default_rng(0))
>>> wave.shape, wave.dtype, bool(abs(np.sqrt(np.mean(wave**2)) - 1) < 1e-4)
((8000,), dtype('float32'), True)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from passband.data.speech.recordings import Recordings, Wave
from passband.errors import ConfigError, DataError, UnknownNameError

Rng = np.random.Generator
Float = NDArray[np.float64]
VOICES = 6  # that babble is made of


def white(samples: int, sample_rate: int, rng: Rng) -> Float:
    """Equal power at every frequency."""
    return rng.standard_normal(samples)


def pink(samples: int, sample_rate: int, rng: Rng) -> Float:
    """Power falls as 1 / f, 3 dB an octave, from 20 Hz on."""
    length = 1 << (samples - 1).bit_length() if samples > 1 else 2
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.fft.rfftfreq(length, 1 / sample_rate)
    spectrum /= np.sqrt(np.maximum(frequency, 20.0))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, length)[:samples]


def hum(samples: int, sample_rate: int, rng: Rng) -> Float:
    """A machine: a tone of 45 to 400 Hz with harmonics, slowly breathing, and a little hiss."""
    t = np.arange(samples) / sample_rate
    base = np.exp(rng.uniform(np.log(45.0), np.log(400.0)))
    count = max(1, min(30, int(0.45 * sample_rate / base)))
    order = np.arange(1, count + 1)
    amplitude = order ** -rng.uniform(0.3, 1.5) * rng.uniform(0.2, 1.0, count)
    phase = rng.uniform(0, 2 * np.pi, count)
    wave = amplitude @ np.sin(2 * np.pi * base * order[:, None] * t + phase[:, None])
    depth, pace = rng.uniform(0, 0.5), rng.uniform(0.2, 3.0)
    wave *= 1 + depth * np.sin(2 * np.pi * pace * t + rng.uniform(0, 2 * np.pi))
    level = np.sqrt(np.mean(wave**2)) if samples else 0.0
    return np.asarray(wave + 0.05 * level * rng.standard_normal(samples))


def clicks(samples: int, sample_rate: int, rng: Rng) -> Float:
    """Short ringing impulses, 3 to 20 a second, at random moments."""
    count = max(1, int(rng.poisson(rng.uniform(3.0, 20.0) * samples / sample_rate)))
    wave = np.zeros(samples)
    length = min(samples, max(8, int(0.01 * sample_rate)))
    t = np.arange(length) / sample_rate
    for start in rng.integers(0, samples, count):
        decay, tone = rng.uniform(2e-4, 2e-3), rng.uniform(200.0, 0.45 * sample_rate)
        ring = np.exp(-t / decay) * np.cos(2 * np.pi * tone * t + rng.uniform(0, 2 * np.pi))
        stop = min(start + length, samples)
        wave[start:stop] += rng.lognormal(0.0, 0.7) * ring[:stop - start]
    return wave


KINDS: dict[str, Callable[[int, int, Rng], Float]] = {
    "white": white, "pink": pink, "hum": hum, "clicks": clicks,
}
BABBLE = "babble"


class Noises:
    """Draws noise of unit power, its kind at random.

    sample_rate  Hz
    kinds        of KINDS, and "babble" with `speech` to make it from
    speech       recordings of talkers who are not the ones to be heard, at the same rate
    recorded     recordings of noise in place of the kinds, at the same rate
    """

    def __init__(
        self, sample_rate: int, kinds: Sequence[str] | None = None,
        speech: Recordings | None = None, recorded: Recordings | None = None,
    ) -> None:
        known = (*KINDS, BABBLE)
        if kinds is None:
            kinds = [kind for kind in known if speech is not None or kind != BABBLE]
        for kind in kinds:
            if kind not in known:
                raise UnknownNameError("noise", kind, known)
        if not kinds or (BABBLE in kinds and speech is None):
            raise ConfigError(
                f"noises of kinds {list(kinds)} without recordings of speech",
                expected="one kind or more, and speech to make babble from",
            )
        for source in (speech, recorded):
            if source is not None and source.sample_rate != sample_rate:
                raise DataError(
                    f"recordings at {source.sample_rate} Hz for noise at {sample_rate} Hz",
                    expected="one rate", mend=f"recordings.at({sample_rate})",
                )
        self.sample_rate, self.kinds = sample_rate, tuple(kinds)
        self.speech, self.recorded = speech, recorded

    def draw(self, samples: int, rng: Rng, without: Any = ()) -> Wave:
        """float32 [samples] of power 1; babble leaves out the talkers in `without`."""
        if self.recorded is not None:
            return unit(stretch(self.recorded, samples, rng))
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        if kind == BABBLE:
            return unit(self._babble(samples, rng, without))
        return unit(KINDS[kind](samples, self.sample_rate, rng))

    def _babble(self, samples: int, rng: Rng, without: Any) -> Float:
        assert self.speech is not None
        others = [talker for talker in self.speech.by_talker if talker not in without]
        others = others or list(self.speech.by_talker)
        total = np.zeros(samples)
        for talker in rng.choice(len(others), VOICES, replace=len(others) < VOICES):
            chosen = self.speech.by_talker[others[int(talker)]]
            total += unit(stretch(self.speech, samples, rng, chosen))
        return total


def stretch(
    recordings: Recordings, samples: int, rng: Rng, among: Sequence[int] | None = None
) -> Wave:
    """A random stretch of recordings laid end to end."""
    among = range(len(recordings)) if among is None else among
    pieces, total = [], 0
    first = recordings[among[int(rng.integers(len(among)))]]
    start = int(rng.integers(0, max(len(first) - samples, len(first) // 2) + 1))
    pieces.append(first[start:])
    total = len(pieces[0])
    while total < samples:
        pieces.append(recordings[among[int(rng.integers(len(among)))]])
        total += len(pieces[-1])
    return np.concatenate(pieces)[:samples]


def unit(wave: NDArray[Any]) -> Wave:
    """The same at power 1; silence stays silence."""
    level = float(np.sqrt(np.mean(np.square(wave, dtype=np.float64)))) if len(wave) else 0.0
    return (wave / level if level > 0 else wave).astype(np.float32)
