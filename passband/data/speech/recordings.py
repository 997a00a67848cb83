"""Clean recordings of one talker each: what mixtures and noisy speech are made from.

>>> waves = [np.ones(300, np.float32), np.zeros(200, np.float32)]
>>> speech = Waves.of(waves, talkers=("ann", "bob"), sample_rate=8000)
>>> len(speech), speech.talkers, speech[0].shape, speech.by_talker["bob"]
(2, ('ann', 'bob'), (300,), (1,))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from passband.data.cache import digest
from passband.data.speech.pairs import check_rate
from passband.errors import DataError

Wave = NDArray[np.float32]
FULL = 32768.0  # int16 at full scale


class Recordings(ABC):
    """Mono waves in [-1, 1] at one rate, with the talker of each."""

    sample_rate: int
    talkers: tuple[str, ...]  # one for every recording

    def __len__(self) -> int:
        return len(self.talkers)

    @abstractmethod
    def __getitem__(self, index: int) -> Wave:
        """float32 [L]"""

    @abstractmethod
    def at(self, sample_rate: int) -> Recordings:
        """The same at another rate, in Hz."""

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Recordings:
        """Some of them."""

    @cached_property
    def by_talker(self) -> dict[str, tuple[int, ...]]:
        """Talker -> indices of the recordings, in order."""
        found: dict[str, list[int]] = {}
        for i, talker in enumerate(self.talkers):
            found.setdefault(talker, []).append(i)
        return {talker: tuple(indices) for talker, indices in found.items()}


class Waves(Recordings):
    """Recordings in memory, as int16.

    samples  [N] all of them, one after the other
    ends     where each one ends
    """

    def __init__(
        self, samples: NDArray[np.int16], ends: Sequence[int], talkers: Sequence[str],
        sample_rate: int,
    ) -> None:
        if len(ends) != len(talkers):
            raise DataError(
                f"{len(ends)} recordings and {len(talkers)} names of talkers",
                expected="a talker for every recording",
            )
        self.samples, self.ends, self.talkers = samples, tuple(ends), tuple(talkers)
        self.sample_rate = check_rate(sample_rate)

    @classmethod
    def of(cls, waves: Iterable[Wave], talkers: Sequence[str], sample_rate: int) -> Waves:
        """From float waves in [-1, 1]; what is beyond is limited."""
        whole = [as_int16(wave) for wave in waves]
        ends = np.cumsum([len(wave) for wave in whole], dtype=int).tolist()
        samples = np.concatenate(whole) if whole else np.zeros(0, np.int16)
        return cls(samples, ends, talkers, sample_rate)

    def __getitem__(self, index: int) -> Wave:
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return self.samples[start:self.ends[index]].astype(np.float32) / np.float32(FULL)

    def at(self, sample_rate: int) -> Waves:
        from passband.parts.signal.resample import resample

        if check_rate(sample_rate) == self.sample_rate:
            return self
        waves = (resample(wave, self.sample_rate, sample_rate) for wave in map(self.__getitem__,
                                                                              range(len(self))))
        return Waves.of(waves, self.talkers, sample_rate)

    def subset(self, indices: Sequence[int]) -> Waves:
        waves = [self.samples[self.ends[i - 1] if i else 0:self.ends[i]] for i in indices]
        ends = np.cumsum([len(wave) for wave in waves], dtype=int).tolist()
        joined = np.concatenate(waves) if waves else np.zeros(0, np.int16)
        return Waves(joined, ends, [self.talkers[i] for i in indices], self.sample_rate)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that tell whether the samples are the same."""
        return digest([self.samples.tobytes(), repr(self.ends), repr(self.sample_rate)])


def as_int16(wave: Wave) -> NDArray[np.int16]:
    whole: NDArray[np.int16] = np.clip(np.rint(wave * FULL), -FULL, FULL - 1).astype(np.int16)
    return whole
