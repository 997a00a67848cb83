"""Systems with the verb `vocode`: a log-mel spectrogram in, its waveform out.

>>> system = create("istftnet", preset="smoke")
>>> wave = np.random.default_rng(0).normal(0, 0.1, 11_025).astype(np.float32)
>>> mel = system.analyse(wave, sample_rate=22_050)
>>> mel.shape, system.vocode(mel).shape
((80, 43), (11008,))
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from passband.bench.system import Config, Monitor, now
from passband.data import audio
from passband.errors import DataError
from passband.parts.signal.mel import LogMel
from passband.speech.trained import SpeechConfig, Trained
from passband.speech.waveforms import Wave

LOUDEST = 4.0  # of a natural log-mel of waves within [-1, 1]; more points to another logarithm


class VocoderConfig(SpeechConfig):
    """The spectrogram that a vocoder takes."""

    sample_rate: int = Field(22_050, ge=4_000, le=192_000, description="of the network, in Hz")
    n_fft: int = Field(1024, gt=0, description="samples of the analysis frame and window")
    hop_length: int = Field(256, gt=0, description="samples from frame to frame")
    n_mels: int = Field(80, gt=0, description="mel bands")
    fmin: float = Field(0.0, ge=0, description="lowest frequency, in Hz")
    fmax: float = Field(8_000.0, gt=0, description="highest frequency, in Hz")


class Vocoder(Trained):
    """Base of the vocoders. A subclass gives `process`."""

    Config: ClassVar[type[Config]] = VocoderConfig
    verbs: ClassVar[tuple[str, ...]] = ("vocode",)

    @abstractmethod
    def process(self, mel: Tensor) -> Tensor:
        """[B, n_mels, T] -> [B, T hop_length]; long ones in pieces at constant memory."""

    def log_mel(self) -> LogMel:
        """The analysis that the network is conditioned on."""
        c = self.config
        return LogMel(c.sample_rate, c.n_fft, c.hop_length, c.n_fft, c.n_mels, c.fmin, c.fmax)

    def analyse(self, wave: Any, sample_rate: int | None = None) -> Any:
        """[L] -> [n_mels, T], or [C, L] -> [C, n_mels, T], T = L // hop_length at its rate."""
        given = Wave.of(wave, sample_rate, self.config.sample_rate)
        mel = self.log_mel()(given.samples)
        mel = mel[0] if given.single else mel
        return mel.numpy() if given.array else mel

    def vocode(self, mel: Any) -> Any:
        """[n_mels, T] -> [T hop_length], or [B, n_mels, T] -> [B, T hop_length].

        Raises `DataError` for another number of bands, transposed or empty input, NaN, and values
        that no natural logarithm of such a spectrogram reaches.
        """
        found = torch.as_tensor(np.asarray(mel) if not isinstance(mel, Tensor) else mel).float()
        self._check(found)
        single = found.ndim == 2
        out = self.compute(self.process, found[None] if single else found)
        out = out[0] if single else out
        return out if isinstance(mel, Tensor) else out.numpy()

    def _check(self, mel: Tensor) -> None:
        bands, expected = self.config.n_mels, f"[{self.config.n_mels}, T], T frames"
        if mel.ndim not in (2, 3) or mel.shape[-1] == 0:
            raise DataError(f"a mel spectrogram of shape {tuple(mel.shape)}", expected=expected)
        if mel.shape[-2] != bands:
            transposed = mel.shape[-1] == bands
            raise DataError(
                f"a mel spectrogram of shape {tuple(mel.shape)}", expected=expected,
                mend="give mel.T" if transposed else "analyse(wave) makes one that fits",
            )
        if not bool(torch.isfinite(mel).all()):
            where = tuple(int(i) for i in (~torch.isfinite(mel)).nonzero()[0])
            raise DataError(f"the mel spectrogram is not finite at {where}", expected="numbers")
        if float(mel.max()) > LOUDEST:
            raise DataError(
                f"the mel spectrogram reaches {float(mel.max()):.1f}",
                expected=f"natural logarithms of magnitudes, below {LOUDEST:g}",
                mend="decibels: divide by 8.686; base 10: multiply by 2.303",
            )

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Write NAME.wav from NAME.npy, or from a recording by way of its own spectrogram."""
        if path.suffix == ".npy":
            mel = read_mel(path)
        else:
            samples, rate = audio.read(path)
            mel = self.analyse(samples, sample_rate=rate)
        began = now()
        wave = self.vocode(mel)
        spent, seconds = now() - began, wave.shape[-1] / self.config.sample_rate
        target = out / f"{path.stem}.wav"
        audio.write(target, wave, self.config.sample_rate)
        if monitor is not None:
            monitor.log(0, spent, real_time_factor=spent / seconds)
        return [target]


def read_mel(path: Path) -> np.ndarray:
    try:
        mel = np.load(path, allow_pickle=False).astype(np.float32)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} can't be read: {error}", expected="an array [n_mels, T] saved by numpy.save"
        ) from None
    return mel[0] if mel.ndim == 3 and len(mel) == 1 else mel
