"""Embedded speech: three dozen synthetic voices that say short sentences (eSpeak NG).

>>> train = voices("train", size="smoke", sample_rate=8000)
>>> train.sample_rate, len(train.by_talker)
(8000, 8)
>>> set(train.talkers) & set(voices("test", size="smoke", sample_rate=8000).talkers)
set()

Training, validation and test share neither voices nor sentences. The engine does not give the same
samples twice, so they are made once and kept in the cache; `digest` tells whether two machines have
the same. The voices have energy up to 11 kHz at 22,050 Hz, 29 dB below the whole from 8 kHz on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from passband.data.cache import stored_tensors
from passband.data.speech import espeak
from passband.data.speech.pairs import check_rate
from passband.data.speech.recordings import Waves
from passband.data.speech.sentences import sentences
from passband.errors import DataError, MissingExtraError

Size = Literal["full", "small", "smoke"]
Split = Literal["train", "valid", "test"]

RATE = espeak.RATE
VERSION = 1  # raised when the same sizes would get other voices or sentences
PATIENCE = 600.0  # seconds; a thousand sentences take a few
_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-us-nyc", "en-gb-scotland", "en-029", "en-gb-x-gbclan")
_VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": (
        "f1", "m1", "f2", "m2", "f3", "m3", "Alicia", "m4", "Andrea", "m5", "anika", "Alex",
        "steph2", "Andy", "aunty", "Diogo", "shelby", "Gene", "grandma", "Henrique", "klatt4",
        "Jacky", "iven", "Lee",
    ),
    "valid": ("f4", "m6", "linda", "Michael"),
    "test": ("f5", "m7", "Annie", "m8", "belinda", "antonio", "steph", "david"),
}
# Of each split: voices, and sentences that each of them says.
_SIZES: dict[Size, dict[Split, tuple[int, int]]] = {
    "smoke": {"train": (8, 4), "valid": (2, 2), "test": (4, 3)},
    "small": {"train": (24, 16), "valid": (4, 6), "test": (8, 8)},
    "full": {"train": (24, 48), "valid": (4, 12), "test": (8, 16)},
}


@dataclass(frozen=True)
class Voice:
    """One talker: accent and timbre by name, words a minute, pitch and its range (0 to 100)."""

    name: str
    rate: int
    pitch: int
    range: int


def all_voices(split: Split) -> tuple[Voice, ...]:
    """The talkers of a split; no timbre is in two splits."""
    accents = cycle(_ACCENTS)
    return tuple(
        Voice(f"{next(accents)}+{variant}", 150 + 7 * (i % 7), 35 + 11 * i % 37, 40 + 13 * i % 31)
        for i, variant in enumerate(_VARIANTS[split])
    )


@cache
def voices(split: Split, size: Size = "small", sample_rate: int = RATE) -> Waves:
    """Recordings of one split, made on first use and then read from the cache.

    Raises `MissingExtraError` without the extra `speech`, `DataError` when the engine fails.
    """
    whole = _spoken(size)
    if check_rate(sample_rate) != RATE:
        whole = _resampled(whole, size, sample_rate)
    names = {voice.name for voice in all_voices(split)}
    return whole.subset([i for i, talker in enumerate(whole.talkers) if talker in names])


def plan(size: Size) -> tuple[tuple[Voice, tuple[str, ...]], ...]:
    """Every voice of a size with what it says. No sentence is said twice."""
    counts = _SIZES[size]
    said = iter(sentences(sum(n * each for n, each in counts.values())))
    return tuple(
        (voice, tuple(next(said) for _ in range(each)))
        for split, (n, each) in counts.items() for voice in all_voices(split)[:n]
    )


@cache
def _spoken(size: Size) -> Waves:
    lines = plan(size)
    jobs = [
        {"voice": v.name, "rate": v.rate, "pitch": v.pitch, "range": v.range, "texts": texts}
        for v, texts in lines
    ]
    made = stored_tensors("voices", {"version": VERSION, "jobs": jobs}, lambda: _pack(speak(jobs)))
    talkers = [voice.name for voice, texts in lines for _ in texts]
    return Waves(made["samples"].numpy(), made["ends"].tolist(), talkers, RATE)


def _resampled(whole: Waves, size: Size, sample_rate: int) -> Waves:
    def make() -> dict[str, Any]:
        other = whole.at(sample_rate)
        return _tensors(other.samples, other.ends)

    key = {"version": VERSION, "size": size, "digest": whole.digest, "rate": sample_rate}
    made = stored_tensors("voices", key, make)
    return Waves(made["samples"].numpy(), made["ends"].tolist(), whole.talkers, sample_rate)


def speak(jobs: Sequence[dict[str, Any]]) -> list[NDArray[np.int16]]:
    """The samples of every text of every job (see `espeak`), in order, at 22,050 Hz."""
    if find_spec("espeakng_loader") is None:
        raise MissingExtraError("espeakng_loader", "speech")
    with TemporaryDirectory(prefix="passband-voices-") as folder:
        out = Path(folder) / "samples"
        # -P: the program's folder, with modules of ours, doesn't come before the standard library.
        command = [sys.executable, "-P", str(Path(espeak.__file__)), str(out)]
        try:
            done = subprocess.run(
                command, input=json.dumps(list(jobs)), capture_output=True, text=True,
                timeout=PATIENCE, check=False,
            )
        except subprocess.TimeoutExpired:
            raise DataError(
                f"eSpeak NG was not done after {PATIENCE:.0f} s", expected="a few seconds",
                mend="try again on a machine that is less busy",
            ) from None
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            raise DataError(
                f"eSpeak NG could not speak: {last[0]}", expected="the package espeakng-loader in "
                "working order",
                mend="pip install --force-reinstall espeakng-loader, in a folder whose path has "
                "fewer than 140 characters",
            )
        lengths = json.loads(done.stdout)
        samples = np.fromfile(out, np.int16)
    if sum(lengths) != len(samples):
        raise DataError(f"eSpeak NG wrote {len(samples)} samples", expected=f"{sum(lengths)}")
    return np.split(samples, np.cumsum(lengths)[:-1])


def _pack(waves: Sequence[NDArray[np.int16]]) -> dict[str, Any]:
    whole = [trimmed(wave) for wave in waves]
    return _tensors(np.concatenate(whole), np.cumsum([len(wave) for wave in whole]))


def _tensors(samples: NDArray[np.int16], ends: Any) -> dict[str, Any]:
    import torch

    return {"samples": torch.from_numpy(samples), "ends": torch.tensor(np.asarray(ends))}


def trimmed(wave: NDArray[np.int16], sample_rate: int = RATE) -> NDArray[np.int16]:
    """Without the silence before and after (45 dB below the peak); 20 ms of it stay."""
    loud = np.flatnonzero(np.abs(wave.astype(np.int32)) > np.abs(wave.astype(np.int32)).max() / 178)
    if not len(loud):
        return wave
    margin = sample_rate // 50
    return wave[max(loud[0] - margin, 0):loud[-1] + margin]
