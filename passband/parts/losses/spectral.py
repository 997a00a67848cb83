"""Distances of waveforms by their spectra.

    MultiResolutionSTFT   mean over resolutions of  |  |Y| - |X|  |_F / | Y |_F  and
                          mean | ln |Y| - ln |X| |
    LogMelL1              mean | mel(y) - mel(x) |, natural logarithms

>>> loss = MultiResolutionSTFT()
>>> x, y = torch.randn(2, 8000), torch.randn(2, 8000)
>>> convergence, magnitude = loss.parts(x, y)
>>> bool(torch.isclose(loss(x, y), convergence + magnitude))
True
>>> float(LogMelL1(16_000)(y, y))
0.0

Sources: Yamamoto, Song, Kim 2020 (Parallel WaveGAN, arXiv 1910.11480); Kong, Kim, Bae 2020
(HiFi-GAN, arXiv 2010.05646).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.signal.mel import LogMel
from passband.parts.signal.stft import STFT

RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop, window
POWER_FLOOR = 1e-7  # of |X|^2: keeps logarithm and gradient finite in silence


class MultiResolutionSTFT(nn.Module):
    """Spectral convergence plus log magnitude, averaged over resolutions.

    resolutions  (n_fft, hop_length, win_length) each, in samples; periodic Hann, centred frames

    bands        signals are [..., K, L] with one norm for all K of an item: a band that is silent
                 would have nothing to divide by

    forward(estimate, target), [..., L] both, -> a scalar. Raises `DataError` for other shapes.
    """

    def __init__(
        self, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS, bands: bool = False
    ) -> None:
        super().__init__()
        self.axes = (-3, -2, -1) if bands else (-2, -1)
        if not resolutions:
            raise ConfigError("no resolutions", expected="at least one (n_fft, hop, window)")
        self.stfts = nn.ModuleList(
            STFT(n_fft, hop, win_length=window) for n_fft, hop, window in resolutions
        )

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        convergence, magnitude = self.parts(estimate, target)
        return convergence + magnitude

    def parts(self, estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Spectral convergence and log-magnitude distance, a scalar each."""
        check_alike(estimate, target)
        convergence, magnitude = [], []
        for stft in self.stfts:
            x, y = _magnitude(stft(estimate)), _magnitude(stft(target))
            gap = torch.linalg.vector_norm(y - x, dim=self.axes)
            convergence.append((gap / torch.linalg.vector_norm(y, dim=self.axes)).mean())
            magnitude.append(F.l1_loss(x.log(), y.log()))
        return torch.stack(convergence).mean(), torch.stack(magnitude).mean()


class LogMelL1(nn.Module):
    """L1 distance of log-mel spectrograms.

    fmax  highest band edge in Hz; None: half the sample rate, which a loss should see even where
          the spectrogram that a vocoder is given ends at 8 kHz

    forward(estimate, target), [..., L] both, -> a scalar. Raises `DataError` for other shapes.
    """

    def __init__(
        self, sample_rate: int, n_fft: int = 1024, hop_length: int = 256,
        win_length: int | None = None, n_mels: int = 80, fmin: float = 0.0,
        fmax: float | None = None,
    ) -> None:
        super().__init__()
        self.mel = LogMel(sample_rate, n_fft, hop_length, win_length or n_fft, n_mels, fmin, fmax)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        check_alike(estimate, target)
        return F.l1_loss(self.mel(estimate), self.mel(target))


def check_alike(estimate: Tensor, target: Tensor) -> None:
    """Refuse what broadcasting would turn into another number."""
    if estimate.shape != target.shape:
        raise DataError(
            f"an estimate of shape {tuple(estimate.shape)} and a target of "
            f"{tuple(target.shape)}", expected="the same shape",
        )


def _magnitude(spectrum: Tensor) -> Tensor:
    power = spectrum.real.square() + spectrum.imag.square()
    return power.clamp_min(POWER_FLOOR).sqrt()
