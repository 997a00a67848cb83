"""Pairs and recordings that lie in files: checked by their headers at once, read when asked for.

>>> for name in ("noisy", "clean"):
...     _ = write(f"{name}.wav", np.sin(np.arange(8000) * 0.1), 8000)
>>> pairs = FilePairs([Item("a", Path("noisy.wav"), (Path("clean.wav"),))])
>>> pairs[0].target.shape, pairs.segments(100).draw(0, np.random.default_rng(0)).input.shape
(torch.Size([8000]), torch.Size([100]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from passband.data.audio import Info, info, write  # noqa: F401  `write` is the example's
from passband.data.audio import read as read_audio
from passband.data.speech.pairs import (
    TRIES,
    Example,
    Pairs,
    Segments,
    check_rate,
    check_samples,
    cut,
    sounding,
)
from passband.data.speech.recordings import Recordings, Wave
from passband.errors import DataError

KEPT = 50_000_000  # samples that recordings keep in memory once read: 200 MB


@dataclass(frozen=True)
class Item:
    """One pair: the file that goes in and what should come out, one file or one for each talker."""

    name: str
    input: Path
    targets: tuple[Path, ...]


class FilePairs(Pairs):
    """Pairs in files of equal length and rate, one channel each."""

    def __init__(self, items: Sequence[Item], checked: Mapping[Path, Info] | None = None) -> None:
        self.items = tuple(items)
        files = [path for item in items for path in (item.input, *item.targets)]
        self.headers = headers(files) if checked is None else dict(checked)
        if checked is None:
            for item in items:
                _equal_lengths(item, self.headers)
        self.sample_rate = self.headers[files[0]].sample_rate

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Example:
        return self.read(index)

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Example:
        """The samples from `start` to `stop` of one pair."""
        item = self.items[index]
        targets = [read_audio(path, start, stop)[0][0] for path in item.targets]
        target = torch.stack(targets) if len(targets) > 1 else targets[0]
        return Example(read_audio(item.input, start, stop)[0][0], target)

    def segments(self, samples: int) -> Segments:
        return _FileSegments(self, check_samples(samples))

    def names(self) -> list[str]:
        return [item.name for item in self.items]

    def split(self, parts: Sequence[Sequence[int]]) -> list[FilePairs]:
        return [FilePairs([self.items[i] for i in part], self.headers) for part in parts]


class _FileSegments(Segments):
    """Pieces read from the middle of files, without what is around them."""

    def __init__(self, pairs: FilePairs, samples: int) -> None:
        self.pairs, self.samples = pairs, samples

    def __len__(self) -> int:
        return len(self.pairs)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        length = self.pairs.headers[self.pairs.items[index].input].frames
        for _ in range(TRIES):
            start = int(rng.integers(0, max(length - self.samples, 0) + 1))
            found = self.pairs.read(index, start, min(start + self.samples, length))
            piece = cut(found, 0, self.samples)
            if sounding(piece):
                break
        return piece


class FileRecordings(Recordings):
    """Clean recordings in files, of one channel and one rate; they stay in memory up to `KEPT`.

    talkers  one for every file
    names    of the files, unique
    """

    def __init__(
        self, files: Sequence[Path], talkers: Sequence[str], names: Sequence[str],
        sample_rate: int | None = None, *, check: bool = True,
    ) -> None:
        self.files, self.talkers, self.names = tuple(files), tuple(talkers), tuple(names)
        own = next(iter(headers(files).values())).sample_rate if check else None
        rate = sample_rate or own
        assert rate is not None, "files that were not checked come with a rate"
        self.sample_rate = rate
        self._waves: dict[int, Wave] = {}
        self._room = KEPT

    def __getitem__(self, index: int) -> Wave:
        index = range(len(self))[index]
        kept = self._waves.get(index)
        if kept is not None:
            return kept
        samples, rate = read_audio(self.files[index])
        wave: Wave = samples[0].numpy()
        if rate != self.sample_rate:
            from passband.parts.signal.resample import resample

            wave = resample(wave, rate, self.sample_rate)
        if len(wave) <= self._room:
            self._room -= len(wave)
            self._waves[index] = wave
        return wave

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_waves": {}, "_room": KEPT}

    def at(self, sample_rate: int) -> FileRecordings:
        if check_rate(sample_rate) == self.sample_rate:
            return self
        return FileRecordings(self.files, self.talkers, self.names, sample_rate, check=False)

    def subset(self, indices: Sequence[int]) -> FileRecordings:
        return FileRecordings(
            [self.files[i] for i in indices], [self.talkers[i] for i in indices],
            [self.names[i] for i in indices], self.sample_rate, check=False,
        )

    def split(self, parts: Sequence[Sequence[int]]) -> list[FileRecordings]:
        return [self.subset(part) for part in parts]


def headers(files: Sequence[Path]) -> dict[Path, Info]:
    """The header of every file; raises `DataError` for what can't be learned from."""
    found: dict[Path, Info] = {}
    for path in files:
        if path in found:
            continue
        about = found[path] = info(path)
        if about.frames == 0:
            raise DataError(f"{path} has no samples", expected="at least one",
                            mend="leave the file out")
        if about.channels != 1:
            raise DataError(
                f"{path} has {about.channels} channels", expected="one channel",
                mend="mix it down, e.g. `ffmpeg -i FILE -ac 1 out.wav`",
            )
    rates: dict[int, Path] = {}
    for path, about in found.items():
        rates.setdefault(about.sample_rate, path)
    if len(rates) > 1:
        text = ", ".join(f"{path} at {rate} Hz" for rate, path in sorted(rates.items()))
        raise DataError(f"several sample rates: {text}", expected="one for all files",
                        mend="convert them, e.g. `ffmpeg -i FILE -ar 16000 out.wav`")
    return found


def _equal_lengths(item: Item, known: Mapping[Path, Info]) -> None:
    length = known[item.input].frames
    for path in item.targets:
        if known[path].frames != length:
            raise DataError(
                f"{item.input} has {length} samples and {path} has {known[path].frames}",
                expected="pairs of equal length",
                mend="check that they belong together, then cut both alike",
            )
