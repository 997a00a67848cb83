"""Multi-band MelGAN's generator: four bands at a quarter of the rate, joined by a filter bank.

    h_0     = conv7(mel)                                                     [B, c0, T]
    h_{i+1} = stack( up_i( lrelu(h_i) ) )      up_i: rate u_i, channels halved
    stack   x <- W x + V lrelu( conv_{3, dilation d}( lrelu(x) ) )           d = 1, 3, 9, 27
    bands   = tanh( conv7( lrelu(h_n) ) )                                    [B, 4, T prod u_i]
    y       = PQMF synthesis of the bands                                    [B, T hop]

lrelu has the slope 0.2; convolutions reflect at the ends. hop = 4 prod u_i.

>>> net = MultiBandMelGAN(channels=384, rates=(8, 4, 2), hop=256)
>>> net(torch.randn(2, 80, 10)).shape
torch.Size([2, 2560])

Source: Yang et al., SLT 2021 (arXiv 2005.05106). Layers stand in the order of those of
kan-bayashi/ParallelWaveGAN, with which the outputs were compared. Lies beside the rooms since
iSTFTNet's is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from passband.errors import ConfigError
from passband.parts.reach import Reach
from passband.parts.signal.pqmf import PQMF

BANDS = 4  # what the filter bank's prototype is made for
SLOPE = 0.2
EDGE = 7  # kernel of the first and the last convolution
KERNEL = 3  # of the dilated ones; dilations are its powers


class Reflected(nn.Module):
    """A convolution of odd kernel whose input is reflected at the ends; keeps the length."""

    def __init__(self, before: int, after: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.margin = dilation * (kernel - 1) // 2
        self.conv = weight_norm(nn.Conv1d(before, after, kernel, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(F.pad(x, (self.margin, self.margin), "reflect"))
        return found

    def reach(self) -> Reach:
        return Reach.convolution(self.conv.kernel_size[0], self.margin, self.conv.dilation[0])


class Residual(nn.Module):
    """One dilated convolution and a matrix, beside a matrix; [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.dilated = Reflected(channels, channels, KERNEL, dilation)
        self.last = weight_norm(nn.Conv1d(channels, channels, 1))
        self.skip = weight_norm(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.dilated(F.leaky_relu(x, SLOPE))
        found: Tensor = self.last(F.leaky_relu(y, SLOPE)) + self.skip(x)
        return found


class MultiBandMelGAN(nn.Module):
    """
    n_mels    bands of the mel spectrogram
    channels  c0 of the first layer, halved at every stage
    rates     of the stages; four times their product is `hop`
    stacks    dilated layers after each stage
    hop       samples for a frame of mel

    Mels that are too short to be reflected are continued by their last frame.
    Raises `ConfigError` when rates and hop or channels don't fit.
    """

    def __init__(
        self, n_mels: int = 80, channels: int = 384, rates: Sequence[int] = (8, 4, 2),
        stacks: int = 4, hop: int = 256,
    ) -> None:
        super().__init__()
        check(channels, rates, hop)
        self.hop = hop
        # Frames below which one of the convolutions would reflect more than there is.
        self.least = max(EDGE // 2 + 1, KERNEL ** (stacks - 1) // rates[0] + 1)
        self.first = Reflected(n_mels, channels, EDGE)
        widths = [channels >> i for i in range(len(rates) + 1)]
        self.ups = nn.ModuleList(
            _up(a, b, rate) for a, b, rate in zip(widths[:-1], widths[1:], rates, strict=True)
        )
        self.stacks = nn.ModuleList(
            nn.Sequential(*(Residual(width, KERNEL**j) for j in range(stacks)))
            for width in widths[1:]
        )
        self.last = Reflected(widths[-1], BANDS, EDGE)
        self.bank = PQMF(BANDS)

    def forward(self, mel: Tensor) -> Tensor:  # [B, n_mels, T] -> [B, T hop]
        return self.finish(self.features(mel))

    def features(self, mel: Tensor) -> Tensor:
        """The bands, [B, n_mels, T] -> [B, 4, T hop / 4]."""
        frames = mel.shape[-1]
        x = self.first(F.pad(mel, (0, max(0, self.least - frames)), "replicate"))
        for up, stack in zip(self.ups, self.stacks, strict=True):
            x = stack(up(F.leaky_relu(x, SLOPE)))
        bands = torch.tanh(self.last(F.leaky_relu(x, SLOPE)))
        return bands[..., : frames * self.hop // BANDS]

    def finish(self, bands: Tensor) -> Tensor:
        """[B, 4, T hop / 4] -> [B, T hop]"""
        return self.bank.join(bands)

    @property
    def around(self) -> tuple[int, int]:
        """Frames of mel before and after a piece that its samples depend on."""
        layers = [self.first.reach()]
        for up, stack in zip(self.ups, self.stacks, strict=True):
            layers.append(Reach.transposed(up.kernel_size[0], up.stride[0], up.padding[0]))
            layers += [residual.dilated.reach() for residual in stack]
        return Reach.chain([*layers, self.last.reach(), self.bank.reach]).context(self.hop)


def check(channels: int, rates: Sequence[int], hop: int) -> None:
    """Raise `ConfigError` for stages that can't be built."""
    if BANDS * math.prod(rates) != hop:
        raise ConfigError(
            f"rates {list(rates)} in {BANDS} bands make {BANDS * math.prod(rates)} samples of a "
            f"frame, which has {hop}",
            expected=f"rates that multiply to {hop / BANDS:g}",
        )
    if channels % 2 ** len(rates):
        raise ConfigError(
            f"{channels} channels to be halved {len(rates)} times",
            expected=f"a multiple of {2 ** len(rates)}",
        )


def _up(before: int, after: int, rate: int) -> nn.ConvTranspose1d:
    """Twice the rate for a kernel; an odd rate gives one sample more at the end."""
    conv = nn.ConvTranspose1d(
        before, after, 2 * rate, rate, padding=rate // 2 + rate % 2, output_padding=rate % 2
    )
    weight_norm(conv)
    return conv
