"""Vocos: all layers at the rate of frames, then one inverse STFT of full size (2306.00814).

    x_0     = LayerNorm( conv7(mel) )                                         [B, T, C]
    x_{i+1} = x_i + gamma_i W2 gelu( W1 LayerNorm( depthwise7(x_i) ) )        ConvNeXt, n layers
    m, p    = W LayerNorm(x_n)                                                [B, n_fft / 2 + 1, T]
    y       = iSTFT( min(e^m, 100) e^{jp} ),  Hann, (n_fft - hop) / 2 cut at both ends  [B, T hop]

>>> net = Vocos(n_mels=100, channels=512, hidden=1536, depth=8, n_fft=1024, hop=256)
>>> net(torch.randn(2, 100, 10)).shape
torch.Size([2, 2560])
>>> sum(p.numel() for p in net.parameters())
13531650

Source: Siuzdak, ICLR 2024. Parameters have the names of the published checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from passband.errors import ConfigError
from passband.parts.reach import Reach
from passband.parts.signal.stft import STFT

KERNEL = 7
EPS = 1e-6  # of the norms
SPREAD = 0.02  # of the first weights
LOUDEST = 1e2  # magnitudes are cut off here


class ConvNeXtBlock(nn.Module):
    """A convolution over time of each channel, then two matrices over channels; [B, C, T]."""

    def __init__(self, channels: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.pwconv1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).transpose(1, 2))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        found: Tensor = x + y.transpose(1, 2)
        return found


class Backbone(nn.Module):
    """[B, n_mels, T] -> [B, T, C]"""

    def __init__(self, n_mels: int, channels: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(n_mels, channels, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(channels, hidden, 1 / depth) for _ in range(depth)
        )
        self.final_layer_norm = nn.LayerNorm(channels, eps=EPS)
        self.apply(_narrow)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        found: Tensor = self.final_layer_norm(x.transpose(1, 2))
        return found


class Head(nn.Module):
    """The last matrix, and the inverse STFT that has no weights."""

    def __init__(self, channels: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.out = nn.Linear(channels, n_fft + 2)
        self.stft = STFT(n_fft, hop, center=False)
        self.margin = (n_fft - hop) // 2

    def forward(self, x: Tensor) -> Tensor:  # [B, T, C] -> [B, n_fft + 2, T]
        found: Tensor = self.out(x).transpose(1, 2)
        return found

    def wave(self, x: Tensor) -> Tensor:  # [B, n_fft + 2, T] -> [B, T hop]
        magnitude, phase = x.chunk(2, 1)
        # Cut off before the exponential, which overflows together with its gradient.
        spectrum = torch.polar(magnitude.clamp_max(math.log(LOUDEST)).exp(), phase)
        return self.stft.inverse(spectrum)[:, self.margin : -self.margin]


class Vocos(nn.Module):
    """
    n_mels      bands of the mel spectrogram
    channels    C of the layers
    hidden      channels inside of a layer
    depth       layers
    n_fft, hop  samples of the inverse STFT: its window, and from frame to frame

    Output is not limited to [-1, 1]. Raises `ConfigError` for a hop that n_fft does not fit.
    """

    def __init__(
        self, n_mels: int = 100, channels: int = 512, hidden: int = 1536, depth: int = 8,
        n_fft: int = 1024, hop: int = 256,
    ) -> None:
        super().__init__()
        check(n_fft, hop)
        self.backbone = Backbone(n_mels, channels, hidden, depth)
        self.head = Head(channels, n_fft, hop)
        self.n_fft, self.hop = n_fft, hop

    def forward(self, mel: Tensor) -> Tensor:  # [B, n_mels, T] -> [B, T hop]
        return self.finish(self.features(mel))

    def features(self, mel: Tensor) -> Tensor:
        """Logarithms of magnitudes, and phases: [B, n_mels, T] -> [B, n_fft + 2, T]."""
        found: Tensor = self.head(self.backbone(mel))
        return found

    def finish(self, hidden: Tensor) -> Tensor:
        """[B, n_fft + 2, T] -> [B, T hop]"""
        return self.head.wave(hidden)

    @property
    def around(self) -> tuple[int, int]:
        """Frames of mel before and after a piece that its samples depend on."""
        layers = [Reach.convolution(KERNEL, KERNEL // 2)] * (1 + len(self.backbone.convnext))
        frames = Reach.transposed(self.n_fft, self.hop, self.head.margin)
        return Reach.chain([*layers, frames]).context(self.hop)


def check(n_fft: int, hop: int) -> None:
    """Raise `ConfigError` for frames that don't overlap enough, or not evenly."""
    if n_fft < 2 * hop or (n_fft - hop) % 2 or n_fft % 2:
        raise ConfigError(
            f"an inverse STFT of {n_fft} samples with a hop of {hop}",
            expected="an even number of samples, at least twice the hop, and an even hop",
            mend=f"hop {n_fft // 4}",
        )


def _narrow(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=SPREAD)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
