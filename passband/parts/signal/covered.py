"""A transform without edges: frames that are not centred, and begin before the first sample.

Every sample is under as many windows as any other, so that the ends of a recording are no worse
than its middle, and frame t needs no sample after t hop + hop: what streams want.

>>> frames = CoveredSTFT(640, 320)
>>> x = torch.randn(3, 16_001)
>>> spectrum = frames(x)
>>> spectrum.shape, bool(torch.allclose(frames.inverse(spectrum, 16_001), x, atol=1e-5))
(torch.Size([3, 321, 52]), True)
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.signal.stft import STFT

Count = TypeVar("Count", int, Tensor)


class CoveredSTFT(nn.Module):
    """Square-root Hann windows, T = ceil((L + win_length - hop_length) / hop_length) frames.

    n_fft       samples of one transform
    hop_length  samples from frame to frame, at most half of the window
    win_length  samples under a window, zero padded to n_fft on both sides; default n_fft
    Raises `ConfigError` for sizes.
    """

    def __init__(self, n_fft: int, hop_length: int, win_length: int | None = None) -> None:
        super().__init__()
        self.stft = STFT(n_fft, hop_length, "sqrt_hann", win_length, center=False)
        self.n_fft, self.hop_length = n_fft, hop_length
        self.win_length = n_fft if win_length is None else win_length
        if 2 * hop_length > self.win_length:
            raise ConfigError(
                f"hop_length {hop_length} with windows of {self.win_length}",
                expected="hop_length <= half of the window", mend="frames have to overlap by half",
            )
        # Zeros of the transform before the window, and signal before the first sample.
        self.left = (n_fft - self.win_length) // 2
        self.margin = self.win_length - hop_length

    def count(self, length: Count) -> Count:
        """Frames T of a signal of `length` samples, a number or a tensor of them."""
        return (length + self.margin + self.hop_length - 1) // self.hop_length

    def forward(self, x: Tensor) -> Tensor:
        """[..., L] -> complex [..., F, T]."""
        length = x.shape[-1]
        whole = (self.count(length) - 1) * self.hop_length + self.n_fft
        before = self.left + self.margin
        spectrum: Tensor = self.stft(F.pad(x, (before, whole - before - length)))
        return spectrum

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """Complex [..., F, T] -> [..., length]."""
        before = self.left + self.margin
        return self.stft.inverse(spectrum)[..., before : before + length]
