"""HiFi-GAN's generator: transposed convolutions all the way to the sample rate (2010.05646).

    y = tanh( upsampler(mel) )       rates that multiply to hop        [B, M, T] -> [B, T hop]

>>> net = HiFiGAN(channels=64, rates=(8, 8, 2, 2))
>>> net(torch.randn(2, 80, 10)).shape
torch.Size([2, 2560])

Source: Kong, Kim, Bae, NeurIPS 2020. V1: 512 channels; V2: 128; V3: 256, rates (8, 8, 4), light
blocks. Parameters have the names of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from passband.errors import ConfigError
from passband.parts.mel_upsampler import LARGE, Blocks, Upsampler, usual_kernels


class HiFiGAN(Upsampler):
    """
    n_mels    bands of the input
    channels  of the first layer, halved at every stage
    rates     of the stages; their product is `hop`
    kernels   of the up-sampling layers; default: twice the rate
    hop       samples for a frame of mel

    Raises `ConfigError` when the rates don't multiply to hop.
    """

    def __init__(
        self, n_mels: int = 80, channels: int = 512, rates: Sequence[int] = (8, 8, 2, 2),
        kernels: Sequence[int] | None = None, *, hop: int = 256, blocks: Blocks = LARGE,
        initial: str = "default",
    ) -> None:
        check_product(rates, hop)
        super().__init__(
            n_mels, channels, rates, kernels or usual_kernels(rates), 1, blocks, initial=initial
        )
        self.hop = hop

    def finish(self, x: Tensor) -> Tensor:  # [B, 1, T hop] -> [B, T hop]
        return torch.tanh(x)[:, 0]

    @property
    def around(self) -> tuple[int, int]:
        """Frames of mel before and after a piece that its samples depend on."""
        return self.context(self.hop)


def check_product(rates: Sequence[int], hop: int) -> None:
    """Raise `ConfigError` for stages that don't end at the sample rate."""
    if math.prod(rates) != hop:
        raise ConfigError(
            f"rates {list(rates)} up-sample by {math.prod(rates)}, a frame has {hop} samples",
            expected=f"rates that multiply to {hop}",
        )
