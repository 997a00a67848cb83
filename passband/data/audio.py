"""Audio files: WAV, FLAC, OGG and what else libsndfile reads.

>>> file = write("tone.wav", np.sin(np.arange(8000) * 0.1), 8000)
>>> samples, rate = read(file)
>>> samples.shape, samples.dtype, rate, info(file).seconds
(torch.Size([1, 8000]), torch.float32, 8000, 1.0)
>>> sum(block.shape[1] for block in blocks(file, 3000))
8000

Samples are float32 [C, L] with full scale at 1. Files appear whole or not at all.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError, DataError, MissingExtraError, PassbandWarning

Encoding = Literal["float", "pcm16"]
_SUBTYPES = {"float": "FLOAT", "pcm16": "PCM_16"}
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".w64")
_FULL = {torch.int16: 32768.0, torch.int32: 2147483648.0}


@dataclass(frozen=True)
class Info:
    """What a file's header says: samples of each channel, Hz, channels."""

    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def info(path: str | Path) -> Info:
    """Length, rate and channels of a file, read from its header alone."""
    sf = _soundfile()
    try:
        found = sf.info(str(_file(path)))
    except sf.LibsndfileError as error:
        raise _unreadable(path, error) from None
    return Info(int(found.frames), int(found.samplerate), int(found.channels))


def read(path: str | Path, start: int = 0, stop: int | None = None) -> tuple[Tensor, int]:
    """Samples from `start` to `stop` as float32 [C, L], and the sample rate in Hz.

    Raises `DataError` for files that are missing, damaged, empty or have NaN or Inf in them,
    `MissingExtraError` without the extra `speech`.
    """
    sf = _soundfile()
    try:
        values, rate = sf.read(
            str(_file(path)), start=start, stop=stop, dtype="float32", always_2d=True
        )
    except sf.LibsndfileError as error:
        raise _unreadable(path, error) from None
    return checked(np.ascontiguousarray(values.T), str(path)), int(rate)


def blocks(path: str | Path, size: int) -> Iterator[Tensor]:
    """The file piece by piece, float32 [C, n] with n = `size` but for the last one."""
    if size < 1:
        raise ConfigError(f"blocks of {size} samples", expected="at least one")
    sf = _soundfile()
    try:
        with sf.SoundFile(str(_file(path))) as file:
            at = 0
            while True:
                values = file.read(size, dtype="float32", always_2d=True)
                if len(values) == 0:
                    break
                yield checked(np.ascontiguousarray(values.T), f"{path} from sample {at} on")
                at += len(values)
    except sf.LibsndfileError as error:
        raise _unreadable(path, error) from None
    if at == 0:
        raise DataError(f"{path} has no samples", expected="at least one")


class Writer:
    """Writes a file block by block; it gets its name when all is written.

    >>> with Writer("long.wav", 16000, channels=2) as file:
    ...     for _ in range(3):
    ...         file.write(torch.zeros(2, 1000))
    >>> info("long.wav").frames
    3000

    encoding  "float" (32 bit, WAV only, keeps what exceeds 1) or "pcm16"; default: what the format
              can. What exceeds full scale is limited in 16 bit, with a `PassbandWarning`.
    """

    def __init__(
        self, path: str | Path, sample_rate: int, channels: int = 1,
        encoding: Encoding | None = None,
    ) -> None:
        self.path, self.sample_rate, self.channels = Path(path), sample_rate, channels
        suffix = self.path.suffix.lower()
        float_able = suffix in (".wav", ".w64", ".aiff", ".aif", ".au")
        if encoding == "float" and not float_able:
            raise ConfigError(f"32-bit float in a {suffix} file", expected="a .wav file",
                              mend="leave the encoding out")
        self.limited = encoding == "pcm16" or not float_able
        self._peak = 1.0
        sf = _soundfile()
        kind = suffix.lstrip(".").upper().replace("OGA", "OGG").replace("OPUS", "OGG")
        kind = kind.replace("AIF", "AIFF") if kind == "AIF" else kind
        if kind not in sf.available_formats():
            raise ConfigError(
                f"{self.path.name}: no format of audio files ends in {suffix or 'nothing'!r}",
                expected=f"one of {', '.join(SUFFIXES)}",
            )
        compressed = kind in ("OGG", "MP3")
        subtype = sf.default_subtype(kind) if compressed else _SUBTYPES[
            encoding or ("float" if float_able else "pcm16")]
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sf.SoundFile(
                str(self._temporary), "w", sample_rate, channels, subtype=subtype, format=kind
            )
        except (sf.LibsndfileError, OSError) as error:
            raise DataError(
                f"{self.path} can't be written: {error}", expected="a writable folder",
            ) from None

    def write(self, samples: Any) -> None:
        """Append [C, n], or [n] for one channel; tensors or arrays."""
        values = np.asarray(torch.as_tensor(samples).detach().cpu().float())
        values = np.atleast_2d(values)
        if len(values) != self.channels:
            raise DataError(
                f"{len(values)} channels for {self.path.name}", expected=f"{self.channels}",
            )
        if self.limited and values.size:
            self._peak = max(self._peak, float(np.abs(values).max()))
            values = np.clip(values, -1.0, 32767 / 32768)
        self._file.write(values.T)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        self._temporary.replace(self.path)
        if self._peak > 1.0:
            warnings.warn(
                f"{self.path.name} was limited: its largest sample is {self._peak:.2f}, full scale "
                "is 1; a .wav file of 32-bit floats keeps it", PassbandWarning, stacklevel=2,
            )


def write(
    path: str | Path, samples: Any, sample_rate: int, encoding: Encoding | None = None
) -> Path:
    """Write samples [L] or [C, L]; see `Writer` for formats. Returns the path."""
    values = checked(samples, str(path))
    channels = 1 if values.ndim == 1 else len(values)
    with Writer(path, sample_rate, channels, encoding) as file:
        file.write(values)
    return Path(path)


def checked(x: Any, what: str = "input") -> Tensor:
    """A wave as a float32 tensor of the same shape, [L] or [C, L], on its device.

    >>> checked(np.array([0, 16384], np.int16)).tolist()
    [0.0, 0.5]
    >>> checked(np.array([0.0, np.nan]), "voice.wav")
    Traceback (most recent call last):
    ...
    passband.errors.DataError: voice.wav has nan at sample 1
      expected: finite numbers
      to mend:  mend or leave out that part of the recording

    Arrays of 16- or 32-bit integers are divided by their full scale. Raises `DataError` for other
    types, for no samples and for NaN or Inf.
    """
    try:
        wave = x if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    except (TypeError, ValueError):
        raise DataError(
            f"{what} is a {type(x).__name__}", expected="a wave: an array or a tensor of numbers",
        ) from None
    if wave.dtype in _FULL:
        wave = wave.to(torch.float32) / _FULL[wave.dtype]
    if not wave.is_floating_point():
        raise DataError(
            f"{what} has samples of type {str(wave.dtype).removeprefix('torch.')}",
            expected="floats with full scale at 1, or 16- or 32-bit integers",
        )
    if wave.ndim not in (1, 2) or wave.numel() == 0:
        raise DataError(
            f"{what} has shape {list(wave.shape)}", expected="[L] or [C, L], one sample or more",
        )
    if wave.ndim == 2 and wave.shape[0] > 64 and wave.shape[0] > wave.shape[1]:
        raise DataError(
            f"{what} has {wave.shape[0]} channels of {wave.shape[1]} samples",
            expected="[C, L]: channels first", mend="transpose it",
        )
    wave = wave.float()
    bad = ~torch.isfinite(wave)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        value = float(wave[tuple(where)])
        channel = f" of channel {where[0]}" if wave.ndim == 2 and len(wave) > 1 else ""
        raise DataError(
            f"{what} has {value} at sample {where[-1]}{channel}", expected="finite numbers",
            mend="mend or leave out that part of the recording",
        )
    return wave


def _soundfile() -> ModuleType:
    try:
        import soundfile
    except ImportError:
        raise MissingExtraError("soundfile", "speech") from None
    found: ModuleType = soundfile
    return found


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise DataError(f"{path} {what}", expected="an audio file")
    return path


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(
        f"{path} can't be read: {error}", expected="an audio file that libsndfile reads "
        "(WAV, FLAC, OGG, MP3, AIFF)", mend="convert it, e.g. `ffmpeg -i FILE out.wav`",
    )
