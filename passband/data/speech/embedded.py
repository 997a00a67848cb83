"""The embedded speech data sets: training, validation and test of one kind of work.

>>> parts = two_talkers(seed=0, size="smoke")
>>> len(parts.test), parts.test.sample_rate, parts.test[0].target.shape[0]
(3, 8000, 2)
>>> noisy_speech(seed=0, size="smoke", sample_rate=16000).train.sample_rate
16000

The three parts share neither voices, sentences, rooms nor noise. Whole examples last 2 to 3 s and
depend on seed, size and rate; another `sample_rate` here is made with its own full bandwidth, where
`pairs.at(rate)` only resamples what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from passband.data.speech.mixtures import Clean, Mixtures, Noisy, Reverberant
from passband.data.speech.noises import Noises
from passband.data.speech.pairs import Pairs
from passband.data.speech.rooms import Rooms, rooms
from passband.data.speech.voices import RATE, Size, Split, voices
from passband.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
# Whole examples in validation and test; training has as many as recordings.
COUNTS: dict[Size, dict[Split, int]] = {
    "smoke": {"valid": 2, "test": 3},
    "small": {"valid": 8, "test": 20},
    "full": {"valid": 20, "test": 50},
}
ROOMS: dict[Size, dict[Split, int]] = {
    "smoke": {"train": 3, "valid": 1, "test": 2},
    "small": {"train": 24, "valid": 4, "test": 12},
    "full": {"train": 80, "valid": 10, "test": 30},
}


class Parts(NamedTuple):
    """Pairs to learn from, to choose by and to be judged on."""

    train: Pairs
    valid: Pairs | None
    test: Pairs | None


def two_talkers(
    seed: int = 0, size: Size = "small", sample_rate: int = 8000, *, talkers: int = 2
) -> Parts:
    """Talkers who talk at once in a dead room, -5 to 5 dB apart, overlapping by 40 % or more."""
    return _parts(seed, size, lambda split, number, count: Mixtures(
        voices(split, size, sample_rate), seed=number, count=count, talkers=talkers,
    ))


def talkers_in_rooms(
    seed: int = 0, size: Size = "small", sample_rate: int = 8000, *, noisy: bool = True,
    t60: tuple[float, float] = (0.3, 0.7),
) -> Parts:
    """Two talkers in a room, with noise 5 to 20 dB below them; sources are the reverberant ones."""
    return _parts(seed, size, lambda split, number, count: Mixtures(
        voices(split, size, sample_rate), seed=number, count=count,
        rooms=_rooms(split, size, sample_rate, t60),
        noises=_noises(split, size, sample_rate) if noisy else None,
    ))


def noisy_speech(
    seed: int = 0, size: Size = "small", sample_rate: int = 8000, *,
    snr: tuple[float, float] = (-5.0, 15.0), kinds: Sequence[str] | None = None,
    test_kinds: Sequence[str] | None = None,
) -> Parts:
    """Speech in white, pink, humming, clicking noise and babble.

    snr         dB
    kinds       of noise, by name (see `noises`)
    test_kinds  of the test part, where they are others
    """
    return _parts(seed, size, lambda split, number, count: Noisy(
        voices(split, size, sample_rate),
        _noises(split, size, sample_rate, test_kinds if split == "test" and test_kinds else kinds),
        seed=number, count=count, snr=snr,
    ))


def unseen_noise(seed: int = 0, size: Size = "small", sample_rate: int = 8000) -> Parts:
    """Speech in white and pink noise to learn from, in hum and clicks to be judged on."""
    return noisy_speech(
        seed, size, sample_rate, kinds=("white", "pink"), test_kinds=("hum", "clicks")
    )


def reverberant_speech(
    seed: int = 0, size: Size = "small", sample_rate: int = 8000, *,
    t60: tuple[float, float] = (0.3, 1.0),
) -> Parts:
    """Speech in boxes of 5 to 15 m and 2.5 to 5 m in height; the target is the dry wave."""
    return _parts(seed, size, lambda split, number, count: Reverberant(
        voices(split, size, sample_rate), _rooms(split, size, sample_rate, t60),
        seed=number, count=count,
    ))


def clean_speech(seed: int = 0, size: Size = "small", sample_rate: int = RATE) -> Parts:
    """Sentences as they are, for vocoders; the same for every seed."""
    return _parts(seed, size, lambda split, number, count: Clean(
        voices(split, size, sample_rate), seed=number, count=count,
    ))


def _parts(seed: int, size: Size, make: Callable[[Split, int, int | None], Pairs]) -> Parts:
    if seed < 0:
        raise DataError(f"seed {seed}", expected="0 or above")
    train, valid, test = (
        make(split, len(SPLITS) * seed + k, COUNTS[size].get(split))
        for k, split in enumerate(SPLITS)
    )
    return Parts(train, valid, test)


def _rooms(split: Split, size: Size, sample_rate: int, t60: tuple[float, float]) -> Rooms:
    # Rooms are long to make: the same for every seed, which draws among them.
    return rooms(
        ROOMS[size][split], sample_rate, SPLITS.index(split), places=2, t60=t60
    )


def _noises(
    split: Split, size: Size, sample_rate: int, kinds: Sequence[str] | None = None
) -> Noises:
    return Noises(sample_rate, kinds, voices(split, size, sample_rate))
