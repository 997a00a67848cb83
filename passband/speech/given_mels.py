"""Fine-tuning on mels that come from files, such as an acoustic model's teacher-forced ones.

The recording NAME.wav has its mel in NAME.npy, [n_mels, T] or [1, n_mels, T], natural logarithms,
frame t at the samples t hop to (t + 1) hop. Recordings keep their level, which the mel has too.

>>> from passband.data.audio import write
>>> from passband.data.speech.files import FileRecordings
>>> _ = write("ann.wav", np.sin(np.arange(2560)), 22_050)
>>> np.save("ann.npy", np.zeros((80, 10), np.float32))
>>> speech = FileRecordings([Path("ann.wav")], ["ann"], ["ann.wav"])
>>> read = lambda path: torch.from_numpy(np.load(path))
>>> segments = GivenMels(speech, ".", read, hop=256, frames=4)
>>> mel, wave = segments.draw(0, np.random.default_rng(0))
>>> mel.shape, wave.shape
(torch.Size([80, 4]), torch.Size([1024]))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from passband.data.speech.files import FileRecordings
from passband.data.speech.pairs import Example, Pairs, Resampled, Segments
from passband.errors import DataError

SLACK = 2  # frames by which a mel may miss the length of its recording
SILENCE = float(np.log(1e-5))


class GivenMels(Segments):
    """Aligned pieces: mel [n_mels, frames] as the input, wave [frames hop] as the target.

    recordings  in files, at the network's rate
    folder      of the mels, with the recordings' names and subfolders, or all in one place
    read        path -> [n_mels, T], checked

    All mels are read and compared with their recordings at once. Raises `DataError` naming the
    first that is missing or does not fit.
    """

    def __init__(
        self, recordings: FileRecordings, folder: str | Path, read: Callable[[Path], Tensor], *,
        hop: int, frames: int,
    ) -> None:
        self.recordings, self.read, self.hop, self.frames = recordings, read, hop, frames
        self.paths = [_mel_of(Path(name), Path(folder)) for name in recordings.names]
        for i in range(len(self.paths)):
            self._pair(i)

    def __len__(self) -> int:
        return len(self.paths)

    def _pair(self, index: int) -> tuple[Tensor, Tensor]:
        mel = self.read(self.paths[index])
        wave = torch.from_numpy(self.recordings[index])
        if abs(mel.shape[-1] - len(wave) / self.hop) > SLACK:
            raise DataError(
                f"{self.paths[index]} has {mel.shape[-1]} frames, its recording lasts "
                f"{len(wave) / self.hop:.1f}",
                expected=f"one frame for {self.hop} samples at {self.recordings.sample_rate} Hz",
                mend="make the mels with the sample rate and hop of this vocoder",
            )
        return mel, wave

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        mel, wave = self._pair(index)
        shared = min(mel.shape[-1], len(wave) // self.hop)
        start = int(rng.integers(0, max(0, shared - self.frames) + 1))
        end = min(start + self.frames, shared)
        short = self.frames - (end - start)
        # What is too short ends in silence, in both.
        return Example(
            F.pad(mel[:, start:end], (0, short), value=SILENCE),
            F.pad(wave[start * self.hop : end * self.hop], (0, short * self.hop)),
        )


def recordings_of(pairs: Pairs, sample_rate: int) -> FileRecordings:
    """The files behind pairs of a user's folder. Raises `DataError` for pairs of something else."""
    source = pairs.pairs if isinstance(pairs, Resampled) else pairs
    speech = getattr(source, "speech", None)
    if not isinstance(speech, FileRecordings):
        raise DataError(
            "mels are given for recordings that have no files", expected="recordings in a folder",
            mend="give --data DIR, the folder of NAME.wav for each NAME.npy",
        )
    return speech.at(sample_rate)


def _mel_of(name: Path, folder: Path) -> Path:
    places = [folder / name.with_suffix(".npy"), folder / f"{name.stem}.npy"]
    found = [place for place in places if place.is_file()]
    if not found:
        raise DataError(
            f"the recording {name} has no mel in {folder}", expected=f"{places[0]}",
        )
    return found[0]
