"""Mel filters and the log-mel spectrogram that neural vocoders agree on.

    mel(f)  = 3 f / 200                      f < 1000 Hz      (Slaney: linear, then logarithmic)
            = 15 + 27 ln(f / 1000) / ln 6.4  above
    filter m: triangle over edges e_m, e_{m+1}, e_{m+2}, evenly spaced in mel, of area 1 over Hz
    LogMel:   ln max(FB sqrt(|X|^2 + 1e-9), 1e-5)        x [..., L] -> [..., n_mels, T]

>>> mel = LogMel(**MELS["hifigan-22k"])
>>> mel(torch.randn(2, 8192)).shape
torch.Size([2, 80, 32])

Sources: Slaney, Auditory Toolbox (1998), as in librosa; Kong et al. 2020 (HiFi-GAN),
arXiv 2010.05646.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.signal.stft import STFT

Array: TypeAlias = np.ndarray[Any, Any]

BREAK_HZ, BREAK_MEL = 1000.0, 15.0  # where the scale turns from linear to logarithmic
LOG_STEP = math.log(6.4) / 27
POWER_FLOOR = 1e-9  # keeps the gradient of the magnitude finite in silence


class MelConfig(TypedDict):
    """The arguments of `LogMel`, in Hz and samples."""

    sample_rate: int
    n_fft: int
    hop_length: int
    win_length: int
    n_mels: int
    fmin: float
    fmax: float | None


def _hifigan(sample_rate: int, n_mels: int, fmax: float | None) -> MelConfig:
    return MelConfig(
        sample_rate=sample_rate, n_fft=1024, hop_length=256, win_length=1024, n_mels=n_mels,
        fmin=0.0, fmax=fmax,
    )


# The input of published vocoders; `-loss` is the one they are trained on where it differs.
MELS: dict[str, MelConfig] = {
    "hifigan-16k": _hifigan(16_000, 80, None),
    "hifigan-22k": _hifigan(22_050, 80, 8_000.0),
    "hifigan-22k-loss": _hifigan(22_050, 80, None),
    "bigvgan-24k": _hifigan(24_000, 100, None),
    "hifi-sr-48k": _hifigan(48_000, 80, 8_000.0),
}


def hz_to_mel(frequency: Array) -> Array:
    """Slaney's scale. 1000 Hz is 15 mel."""
    above = BREAK_MEL + np.log(np.maximum(frequency, BREAK_HZ) / BREAK_HZ) / LOG_STEP
    return np.where(frequency < BREAK_HZ, frequency * (BREAK_MEL / BREAK_HZ), above)


def mel_to_hz(mel: Array) -> Array:
    """The inverse of `hz_to_mel`."""
    above = BREAK_HZ * np.exp((np.maximum(mel, BREAK_MEL) - BREAK_MEL) * LOG_STEP)
    return np.where(mel < BREAK_MEL, mel * (BREAK_HZ / BREAK_MEL), above)


def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> Tensor:
    """Triangular filters of area 1 Hz over the bins of an n_fft transform: [n_mels, F].

    >>> filters = mel_filters(16_000, 512, 40)
    >>> filters.shape, filters.dtype
    (torch.Size([40, 257]), torch.float32)
    >>> bool(torch.allclose(filters[30:].sum(1) * 16_000 / 512, torch.ones(10), atol=0.05))
    True

    fmin, fmax  Hz; fmax None: half the sample rate

    Filters narrower than a bin can be all zero: many bands at a small n_fft. Raises `ConfigError`
    for bounds outside of 0 <= fmin < fmax <= sample_rate / 2.
    """
    fmax = sample_rate / 2 if fmax is None else fmax
    if not 0 <= fmin < fmax <= sample_rate / 2:
        raise ConfigError(
            f"mel bands from {fmin:g} to {fmax:g} Hz at {sample_rate} Hz",
            expected=f"0 <= fmin < fmax <= {sample_rate / 2:g}",
        )
    if n_mels < 1:
        raise ConfigError(f"{n_mels} mel bands", expected="at least 1")
    # NumPy, so that the filters are real numbers on torch's meta device as well.
    low_mel, high_mel = hz_to_mel(np.array([fmin, fmax]))
    edges = mel_to_hz(np.linspace(low_mel, high_mel, n_mels + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    triangles = np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre))
    filters = np.maximum(triangles, 0) * (2 / (high - low))
    return torch.from_numpy(filters.astype(np.float32))


class LogMel(nn.Module):
    """The log-mel spectrogram of HiFi-GAN and its followers.

    >>> mel = LogMel(16_000, n_fft=1024, hop_length=256, win_length=1024, n_mels=80)
    >>> mel(torch.zeros(1000)).shape
    torch.Size([80, 3])

    sample_rate  Hz;  fmin, fmax  Hz, fmax None: half the sample rate
    n_fft, hop_length, win_length  samples, periodic Hann
    floor        of the linear mel spectrum; ln 1e-5 = -11.5 is silence

    Frames are not centred: the signal is reflected by (n_fft - hop) / 2 at both ends, so that
    T = L // hop, at least 1. A signal too short to be reflected is zero padded first. Filters are
    a buffer that is not saved. Differentiable, silence included.
    """

    filters: Tensor

    def __init__(
        self, sample_rate: int, n_fft: int, hop_length: int, win_length: int, n_mels: int,
        fmin: float = 0.0, fmax: float | None = None, floor: float = 1e-5,
    ) -> None:
        super().__init__()
        self.sample_rate, self.n_mels, self.floor = sample_rate, n_mels, floor
        self.hop_length = hop_length
        self.stft = STFT(n_fft, hop_length, win_length=win_length, center=False)
        self.left = (n_fft - hop_length) // 2
        self.right = n_fft - hop_length - self.left
        filters = mel_filters(sample_rate, n_fft, n_mels, fmin, fmax)
        self.register_buffer("filters", filters, persistent=False)

    def frames(self, length: int) -> int:
        """T of a signal of `length` samples."""
        return max(1, length // self.hop_length)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., L] -> natural logarithm of the mel spectrum [..., n_mels, T]."""
        return self.mel(x).clamp_min(self.floor).log()

    def mel(self, x: Tensor) -> Tensor:
        """x [..., L] -> linear mel spectrum of magnitudes [..., n_mels, T]."""
        if x.dim() == 0 or x.shape[-1] == 0:
            raise DataError(
                f"an empty signal of shape {tuple(x.shape)}",
                expected="[..., L] with at least one sample",
            )
        length = x.shape[-1]
        x = F.pad(x, (0, max(0, self.right + 1 - length)))
        flat = F.pad(x.reshape(-1, 1, x.shape[-1]), (self.left, self.right), mode="reflect")
        spectrum = self.stft(flat.reshape(*x.shape[:-1], -1))[..., : self.frames(length)]
        power = spectrum.real.square() + spectrum.imag.square()
        mel: Tensor = self.filters.to(power.dtype) @ (power + POWER_FLOOR).sqrt()
        return mel
