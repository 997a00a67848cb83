"""BSRNN: recurrent networks over the frames of each band and over the bands of each frame.

    X = STFT x,  Z = split X [B, n, T, N]          n bands, the uneven plan
    Z <- Z + W BLSTM_t(gLN(Z))                      along the frames of each band
    Z <- Z + W BLSTM_f(gLN(Z))                      along the bands of each frame;  R times both
    S_k = X M_k(Z),  sum_k M_k = 1

>>> network = BSRNN(channels=8, hidden=8, layers=1)
>>> mixture = torch.randn(1, 8000)
>>> talkers = network(mixture)
>>> talkers.shape, bool(torch.allclose(talkers.sum(1), mixture, atol=1e-5))
(torch.Size([1, 2, 8000]), True)

Source: Luo and Yu, Music Source Separation with Band-Split RNN, IEEE/ACM TASLP 31 (2023),
arXiv 2209.15174; for talkers as in arXiv 2410.01469.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.parts.global_norm import GlobalNorm
from passband.parts.signal.stft import STFT
from passband.speech.bands import BandMasks, BandSplit, band_widths


class BSRNN(nn.Module):
    """x [B, L] -> y [B, K, L], the y_k summing to x.

    >>> BSRNN(3, channels=6, hidden=4, layers=1, sample_rate=8000, n_fft=256, hop_length=64)(
    ...     torch.randn(2, 4000)).shape
    torch.Size([2, 3, 4000])

    sources   K
    channels  N, a multiple of K
    hidden    of each direction of the BLSTM
    layers    R pairs of paths
    sample_rate, n_fft, hop_length, plan   see `TIGER`
    """

    def __init__(
        self, sources: int = 2, channels: int = 128, hidden: int = 256, layers: int = 12, *,
        sample_rate: int = 16_000, n_fft: int = 640, hop_length: int = 160, plan: str = "speech",
    ) -> None:
        super().__init__()
        self.sources = sources
        self.widths = band_widths(plan, sample_rate, n_fft)
        self.stft = STFT(n_fft, hop_length, window="hann", center=True)
        self.split = BandSplit(self.widths, channels)
        self.over_frames = nn.ModuleList(RecurrentPath(channels, hidden) for _ in range(layers))
        self.over_bands = nn.ModuleList(RecurrentPath(channels, hidden) for _ in range(layers))
        self.masks = BandMasks(self.widths, channels, sources)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise DataError(f"mixtures of shape {tuple(x.shape)}", expected="[batch, samples]")
        spectrum = self.stft(x)
        z = self.split(spectrum)  # [B, n, T, N]
        for over_frames, over_bands in zip(self.over_frames, self.over_bands, strict=True):
            z = over_frames(z)
            z = over_bands(z.transpose(1, 2)).transpose(1, 2)
        return self.stft.inverse(self.masks(z, spectrum), length=x.shape[-1])


class RecurrentPath(nn.Module):
    """z + W BLSTM(gLN(z)) along the third axis: [B, A, S, N] -> [B, A, S, N].

    >>> RecurrentPath(8, 4)(torch.randn(2, 3, 10, 8)).shape
    torch.Size([2, 3, 10, 8])
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = GlobalNorm(channels, eps=torch.finfo(torch.float32).eps)
        self.rnn = nn.LSTM(channels, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, channels)

    def forward(self, z: Tensor) -> Tensor:
        found, _ = self.rnn(self.norm(z).flatten(0, 1))
        return z + self.out(found).view(z.shape)
