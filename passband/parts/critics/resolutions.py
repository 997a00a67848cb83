"""The multi-resolution discriminator of complex spectrograms in bands (arXiv 2306.00814).

Each sub-discriminator sees the spectrogram of one window length, cut into five bands of frequency
with convolutions of their own:

    x <- 0.8 (x - mean x) / max |x - mean x|       level and offset tell nothing
    X = STFT(x), hop a quarter of the window        [B, 2, T, F], real and imaginary
    five convolutions in each band -> side by side again -> one convolution -> score

>>> critic = MultiResolution(width=1 / 4)
>>> opinions = critic(torch.randn(2, 8192))
>>> len(opinions), len(opinions[0].features)
(3, 21)
>>> sum(p.numel() for p in MultiResolution().parameters())
1413990

Source: Siuzdak, Vocos, after the one of the Descript Audio Codec (arXiv 2306.06546).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from passband.parts.critics.opinion import SLOPE, Opinion, as_batch, scaled
from passband.parts.signal.stft import STFT

WINDOWS = (2048, 1024, 512)
BANDS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)  # edges, as shares of the bins
CHANNELS = 32
PEAK = 0.8
# Kernel and stride over (frames, bins).
LAYERS = (((3, 9), 1), ((3, 9), 2), ((3, 9), 2), ((3, 9), 2), ((3, 3), 1))


class Resolution(nn.Module):
    """The sub-discriminator of one window length.

    width  of its channels, 1 for the published 32
    """

    def __init__(self, window: int, width: float = 1.0) -> None:
        super().__init__()
        channels = scaled(CHANNELS, width)
        self.stft = STFT(window, window // 4)
        edges = [int(share * self.stft.bins) for share in BANDS]
        self.bands = list(pairwise(edges))
        self.band_convs = nn.ModuleList(
            nn.ModuleList(
                _conv(channels if i else 2, channels, kernel, stride)
                for i, (kernel, stride) in enumerate(LAYERS)
            )
            for _ in self.bands
        )
        self.conv_post = _conv(channels, 1, (3, 3), 1)

    def forward(self, x: Tensor) -> Opinion:  # [B, 1, L]
        features, found = [], []
        whole = self.spectrogram(x)
        for (low, high), convs in zip(self.bands, self.band_convs, strict=True):
            band = whole[..., low:high]
            assert isinstance(convs, nn.ModuleList)
            for i, conv in enumerate(convs):
                band = F.leaky_relu(conv(band), SLOPE)
                if i:  # the first layer is not matched
                    features.append(band)
            found.append(band)
        score = self.conv_post(torch.cat(found, -1))
        return Opinion(score.flatten(1), [*features, score])

    def spectrogram(self, x: Tensor) -> Tensor:  # [B, 1, L] -> [B, 2, T, F]
        x = x[:, 0] - x[:, 0].mean(-1, keepdim=True)
        x = PEAK * x / (x.abs().amax(-1, keepdim=True) + 1e-9)
        return torch.view_as_real(self.stft(x)).permute(0, 3, 2, 1)


class MultiResolution(nn.Module):
    """
    windows  samples of each sub-discriminator's window
    width    of the channels
    """

    def __init__(self, windows: Sequence[int] = WINDOWS, width: float = 1.0) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(Resolution(n, width) for n in windows)

    def forward(self, wave: Tensor) -> list[Opinion]:  # [B, L] or [B, 1, L]
        x = as_batch(wave)
        return [discriminator(x) for discriminator in self.discriminators]


def _conv(before: int, after: int, kernel: tuple[int, int], stride: int) -> nn.Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    conv = nn.Conv2d(before, after, kernel, (1, stride), padding)
    weight_norm(conv)
    return conv
