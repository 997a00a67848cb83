"""Talkers who talk at once, noisy speech and speech in rooms, made from clean recordings.

>>> from passband.data.speech.voices import voices
>>> pairs = Mixtures(voices("test", "smoke", 8000), seed=0, count=3)
>>> mixture, sources = pairs[0]
>>> sources.shape[0], bool(torch.allclose(sources.sum(0), mixture, atol=1e-6))
(2, True)
>>> pairs.segments(4000).draw(0, np.random.default_rng(1)).input.shape
torch.Size([4000])

Whole examples depend on (seed, index) alone. Segments are made anew from the recordings each time,
with other partners, levels and noise: there is no epoch in which the same mixture comes back.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from passband.data.speech.noises import Noises, unit
from passband.data.speech.pairs import Example, Pairs, Segments, check_samples
from passband.data.speech.recordings import Recordings, Wave
from passband.data.speech.rooms import Rooms
from passband.errors import ConfigError, DataError

Rng = np.random.Generator
Range = tuple[float, float]
LEVEL: Range = (-28.0, -20.0)  # dB relative to full scale, of the speech
PEAK = 0.95  # nothing exceeds it: input and target are scaled down together
CONTEXT = 0.5  # seconds of speech before a piece, whose reverberation it still hears


class Made(Pairs):
    """Base of pairs that are made from recordings.

    speech   clean recordings
    seed     of the whole examples
    count    of whole examples; default: as many as recordings
    seconds  length of whole examples
    """

    def __init__(
        self, speech: Recordings, *, seed: int, count: int | None = None,
        seconds: Range = (2.0, 3.0),
    ) -> None:
        if len(speech) == 0:
            raise DataError("no recordings of speech", expected="at least one")
        self.speech, self.sample_rate, self.seed = speech, speech.sample_rate, seed
        self.count, self.seconds = count or len(speech), _ordered("seconds", seconds)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        index = range(self.count)[index]
        rng = np.random.default_rng([self.seed, index])
        samples = int(rng.uniform(*self.seconds) * self.sample_rate)
        return self.make(int(rng.integers(len(self.speech))), samples, rng)

    def segments(self, samples: int) -> Segments:
        return _MadeSegments(self, check_samples(samples))

    @abstractmethod
    def make(self, index: int, samples: int, rng: Rng) -> Example:
        """One example with recording number `index` in it."""

    def talk(self, samples: int, rng: Rng, talker: str, first: int | None = None) -> Wave:
        """Speech of one talker of power 1, recordings joined by short pauses -> [samples]."""
        return unit(talking(self.speech, samples, rng, talker, first))


class _MadeSegments(Segments):
    def __init__(self, pairs: Made, samples: int) -> None:
        self.pairs, self.samples = pairs, samples

    def __len__(self) -> int:
        return len(self.pairs.speech)

    def draw(self, index: int, rng: Rng) -> Example:
        return self.pairs.make(index, self.samples, rng)


class Mixtures(Made):
    """Several talkers at once.

    talkers  how many
    level    difference of two talkers in dB: each is moved by half of a draw
    overlap  share of the time in which the first and the last one both talk
    rooms    places of the talkers; the sources are then the reverberant ones
    noises   added on top, `snr` dB below the speech; it belongs to no source
    """

    def __init__(
        self, speech: Recordings, *, seed: int, count: int | None = None,
        seconds: Range = (2.0, 3.0), talkers: int = 2, level: Range = (-5.0, 5.0),
        overlap: Range = (0.4, 1.0), rooms: Rooms | None = None, noises: Noises | None = None,
        snr: Range = (5.0, 20.0),
    ) -> None:
        super().__init__(speech, seed=seed, count=count, seconds=seconds)
        if not 2 <= talkers <= len(speech.by_talker):
            raise DataError(
                f"{talkers} talkers out of {len(speech.by_talker)}",
                expected="two or more, and recordings of as many different talkers",
                mend="put the recordings of each talker into a folder of their own",
            )
        _same_rate(self, rooms, noises)
        self.talkers, self.level, self.overlap = talkers, _ordered("level", level), overlap
        if not 0 < overlap[0] <= overlap[1] <= 1:
            raise ConfigError(f"overlap {overlap}", expected="shares above 0, at most 1")
        self.rooms, self.noises, self.snr = rooms, noises, _ordered("snr", snr)

    def make(self, index: int, samples: int, rng: Rng) -> Example:
        names, context = self.partners(index, rng), self.context
        total = samples + context
        span = max(1, round(0.5 * (1 + rng.uniform(*self.overlap)) * total))
        sources = np.zeros((self.talkers, total))
        order = rng.permutation(self.talkers)
        for k, name in enumerate(names):
            start = round(int(order[k]) / (self.talkers - 1) * (total - span))
            first = index if k == 0 else None
            gain = 10 ** (0.5 * rng.uniform(*self.level) / 20)
            sources[k, start:start + span] = gain * self.talk(span, rng, name, first)
        if self.rooms is not None:
            responses = self.rooms.draw(rng, self.talkers)
            sources = np.stack([reverberant(x, h) for x, h in zip(sources, responses, strict=True)])
        sources = sources[:, context:]
        mixture = sources.sum(0)
        if self.noises is not None:
            mixture = mixture + noise_for(mixture, self.noises, self.snr, rng, names)
        return _scaled(mixture, sources, mixture, rng)

    @property
    def context(self) -> int:
        return int(CONTEXT * self.sample_rate) if self.rooms is not None else 0

    def partners(self, index: int, rng: Rng) -> list[str]:
        """The talker of a recording, and others."""
        first = self.speech.talkers[index]
        others = [name for name in self.speech.by_talker if name != first]
        chosen = rng.choice(len(others), self.talkers - 1, replace=False)
        return [first, *(others[int(i)] for i in chosen)]


class Noisy(Made):
    """Speech in noise: (noisy, clean).

    snr  dB, of the whole piece
    """

    def __init__(
        self, speech: Recordings, noises: Noises, *, seed: int, count: int | None = None,
        seconds: Range = (2.0, 3.0), snr: Range = (-5.0, 15.0),
    ) -> None:
        super().__init__(speech, seed=seed, count=count, seconds=seconds)
        _same_rate(self, noises)
        self.noises, self.snr = noises, _ordered("snr", snr)

    def make(self, index: int, samples: int, rng: Rng) -> Example:
        talker = self.speech.talkers[index]
        clean = self.talk(samples, rng, talker, index)
        noise = noise_for(clean, self.noises, self.snr, rng, [talker])
        return _scaled(clean + noise, clean, clean, rng)


class Reverberant(Made):
    """Speech in a room: (reverberant, dry); the direct sound is in time with the dry wave."""

    def __init__(
        self, speech: Recordings, rooms: Rooms, *, seed: int, count: int | None = None,
        seconds: Range = (2.0, 3.0),
    ) -> None:
        super().__init__(speech, seed=seed, count=count, seconds=seconds)
        _same_rate(self, rooms)
        self.rooms = rooms

    def make(self, index: int, samples: int, rng: Rng) -> Example:
        context = int(CONTEXT * self.sample_rate)
        dry = self.talk(samples + context, rng, self.speech.talkers[index], index)
        wet = reverberant(dry, self.rooms.draw(rng)[0])
        return _scaled(wet[context:], dry[context:], dry[context:], rng)


class Clean(Made):
    """Recordings as they are, each with its peak at 0.95: (wave, wave), for vocoders."""

    def __init__(self, speech: Recordings, *, seed: int = 0, count: int | None = None) -> None:
        super().__init__(speech, seed=seed, count=count)
        self.count = min(self.count, len(speech))
        # A few of many recordings: spread evenly, so that all talkers are heard.
        self.chosen = np.linspace(0, len(speech), self.count, endpoint=False).astype(int)

    def __getitem__(self, index: int) -> Example:
        return _twice(self.speech[int(self.chosen[index])])

    def make(self, index: int, samples: int, rng: Rng) -> Example:
        wave = self.speech[index]
        start = int(rng.integers(0, max(len(wave) - samples, 0) + 1))
        wave = wave * (PEAK / max(float(np.abs(wave).max()), 1e-4))
        piece = np.zeros(samples, np.float32)
        found = wave[start:start + samples]
        piece[:len(found)] = found
        wave_tensor = torch.from_numpy(piece)
        return Example(wave_tensor, wave_tensor)


def _twice(wave: Wave) -> Example:
    tensor = torch.from_numpy(wave * np.float32(PEAK / max(float(np.abs(wave).max()), 1e-4)))
    return Example(tensor, tensor)


def talking(
    speech: Recordings, samples: int, rng: Rng, talker: str, first: int | None = None
) -> Wave:
    """One talker's recordings, joined by pauses of 0.1 to 0.4 s, from a random moment on."""
    own = speech.by_talker[talker]
    piece = speech[own[int(rng.integers(len(own)))] if first is None else first]
    if len(piece) >= samples:
        start = int(rng.integers(0, len(piece) - samples + 1))
        return piece[start:start + samples]
    out, at = np.zeros(samples, np.float32), 0
    while at < samples:
        found = piece[:samples - at]
        out[at:at + len(found)] = found
        at += len(found) + int(rng.uniform(0.1, 0.4) * speech.sample_rate)
        piece = speech[own[int(rng.integers(len(own)))]]
    return out


def reverberant(dry: NDArray[Any], response: NDArray[Any]) -> NDArray[Any]:
    """What is heard of a wave in a room, of the same length."""
    from scipy.signal import fftconvolve

    return np.asarray(fftconvolve(dry, response)[:len(dry)])


def noise_for(
    speech: NDArray[Any], noises: Noises, snr: Range, rng: Rng, without: Any = ()
) -> NDArray[Any]:
    """Noise at a random signal-to-noise ratio below the speech."""
    level = np.sqrt(np.mean(np.square(speech))) * 10 ** (-rng.uniform(*snr) / 20)
    return np.asarray(level * noises.draw(len(speech), rng, without))


def _scaled(
    heard: NDArray[Any], target: NDArray[Any], speech: NDArray[Any], rng: Rng
) -> Example:
    """Input and target by one factor, to a random level of the speech without clipping."""
    level = float(np.sqrt(np.mean(np.square(speech))))
    gain = 10 ** (rng.uniform(*LEVEL) / 20) / max(level, 1e-9)
    peak = max(float(np.abs(heard).max()), float(np.abs(target).max()))
    gain = min(gain, PEAK / max(peak, 1e-9))
    return Example(
        torch.from_numpy((gain * heard).astype(np.float32)),
        torch.from_numpy((gain * target).astype(np.float32)),
    )


def _ordered(name: str, bounds: Range) -> Range:
    if not bounds[0] <= bounds[1]:
        raise ConfigError(f"{name} {bounds}", expected="the lower bound first")
    return bounds


def _same_rate(pairs: Made, *others: Rooms | Noises | None) -> None:
    for other in others:
        if other is not None and other.sample_rate != pairs.sample_rate:
            raise DataError(
                f"speech at {pairs.sample_rate} Hz and {type(other).__name__} at "
                f"{other.sample_rate} Hz", expected="one rate",
            )
