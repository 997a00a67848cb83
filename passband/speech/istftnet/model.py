"""iSTFTNet: a HiFi-GAN whose last up-sampling stages are one small inverse STFT (2203.02395).

    mel [B, M, T]  ->  wave [B, T hop]

Up-sampled by s, a mel of analysis (n_fft, hop) has shrunk to an STFT of n_fft / s and hop / s; the
network predicts magnitude and phase of that one:

    h   = upsampler(mel), one frame reflected on the left                [B, f + 2, s T + 1]
    M   = exp(h[:f / 2 + 1]),   P = sin(h[f / 2 + 1:])                   f = n_fft / s
    y   = iSTFT(M e^{jP})  with f, hop / s, Hann, centred                [B, T hop]

C8C8I: two stages of rate 8, f = 16, hop 4. C1 is a stage that does not up-sample. Replacing too
many stages (C8I) leaves a spectrum of 65 bins, which convolutions over time predict badly.

>>> net = ISTFTNet(channels=64, rates=(8, 8))
>>> net(torch.randn(2, 80, 10)).shape
torch.Size([2, 2560])
>>> sum(p.numel() for p in net.parameters())
242132

Source: Kaneko, Tanaka, Kameoka, Seki, ICASSP 2022. Parameters have the names of HiFi-GAN's
checkpoints, which `passband.speech.gan_vocoder.published` reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.mel_upsampler import LARGE, Blocks, Upsampler, usual_kernels
from passband.speech.istftnet.inverse import InverseSTFT

# The method takes exp and sin; the others are ablations.
MAGNITUDES: dict[str, Callable[[Tensor], Tensor]] = {"exp": torch.exp, "softplus": F.softplus}
PHASES: dict[str, Callable[[Tensor], Tensor]] = {"sin": torch.sin, "identity": lambda x: x}


class ISTFTNet(Upsampler):
    """
    n_mels       bands of the input
    channels     of the first layer, halved at every stage
    rates        of the stages; their product s divides n_fft and hop
    kernels      of the up-sampling layers; default: twice the rate, 3 for the rate 1
    n_fft, hop   samples of the mel's analysis: its window, and from frame to frame
    blocks       residual blocks: `LARGE` (V1, V2) or `LIGHT` (V3)
    magnitude    "exp", or "softplus" as an ablation
    phase        "sin", or "identity" as an ablation

    Output is not limited to [-1, 1]. Raises `ConfigError` naming the products that fit.
    """

    def __init__(
        self, n_mels: int = 80, channels: int = 512, rates: Sequence[int] = (8, 8),
        kernels: Sequence[int] | None = None, *, n_fft: int = 1024, hop: int = 256,
        blocks: Blocks = LARGE, magnitude: str = "exp", phase: str = "sin",
        initial: str = "default",
    ) -> None:
        small_fft, small_hop = shrunk(rates, n_fft, hop)
        super().__init__(
            n_mels, channels, rates, kernels or usual_kernels(rates), small_fft + 2, blocks,
            lead=1, initial=initial,
        )
        self.magnitude, self.phase = MAGNITUDES[magnitude], PHASES[phase]
        self.hop, self.inverse = hop, InverseSTFT(small_fft, small_hop)

    def spectrum(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude and phase in radians of the small STFT, [B, f / 2 + 1, s T + 1] each."""
        return self.split(self.features(mel))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Magnitude and phase from the last convolution's output."""
        magnitude, phase = x.chunk(2, 1)
        return self.magnitude(magnitude), self.phase(phase)

    def finish(self, x: Tensor) -> Tensor:  # [B, f + 2, s T + 1] -> [B, T hop]
        return self.inverse(*self.split(x))

    @property
    def around(self) -> tuple[int, int]:
        """Frames of mel before and after a piece that its samples depend on."""
        return self.context(self.hop, self.inverse.reach)


def products(n_fft: int, hop: int) -> list[int]:
    """What the rates may multiply to: common divisors that leave an even frame.

    >>> products(1024, 256)
    [1, 2, 4, 8, 16, 32, 64, 128, 256]
    """
    common = math.gcd(n_fft, hop)
    return [s for s in range(1, common + 1) if common % s == 0 and (n_fft // s) % 2 == 0]


def shrunk(rates: Sequence[int], n_fft: int, hop: int) -> tuple[int, int]:
    """Size and hop of the STFT that is left after up-sampling.

    >>> shrunk((8, 8), 1024, 256)
    (16, 4)
    """
    s, fitting = math.prod(rates), products(n_fft, hop)
    if s not in fitting:
        raise ConfigError(
            f"rates {list(rates)} up-sample by {s}, which does not divide n_fft {n_fft} and hop "
            f"{hop} into an even frame",
            expected=f"rates whose product is one of {', '.join(map(str, fitting))}",
        )
    return n_fft // s, hop // s
