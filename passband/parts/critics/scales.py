"""The multi-scale discriminator (MelGAN, arXiv 1910.06711; with HiFi-GAN's layers, 2010.05646).

The same network looks at the wave, at its average over pairs of samples, and at that of fours:

    x -> D1(x), D2(pool x), D3(pool pool x)       pool: mean of 4 samples, stride 2

D1 is held by spectral norm, the others by weight norm.

>>> critic = MultiScale(width=1 / 16)
>>> opinions = critic(torch.randn(2, 4096))
>>> [o.score.shape[1] for o in opinions], len(opinions[0].features)
([64, 33, 17], 8)
>>> sum(p.numel() for p in MultiScale().parameters())
29618821
"""

from __future__ import annotations

from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from passband.errors import ConfigError
from passband.parts.critics.opinion import SLOPE, Opinion, as_batch, scaled

# Output channels, kernel, stride, groups.
LAYERS = (
    (128, 15, 1, 1), (128, 41, 2, 4), (256, 41, 2, 16), (512, 41, 4, 16), (1024, 41, 4, 16),
    (1024, 41, 1, 16), (1024, 5, 1, 1),
)


class Scale(nn.Module):
    """The sub-discriminator of one scale.

    width     of its channels, 1 for the published 128 to 1024; groups that a narrow layer can't
              be split into become their greatest common divisor with its channels
    spectral  spectral norm in place of weight norm
    """

    def __init__(self, width: float = 1.0, spectral: bool = False) -> None:
        super().__init__()
        norm = spectral_norm if spectral else weight_norm
        convs, before = [], 1
        for channels, kernel, stride, groups in LAYERS:
            after = scaled(channels, width)
            convs.append(norm(nn.Conv1d(
                before, after, kernel, stride, padding=kernel // 2,
                groups=gcd(groups, before, after),
            )))
            before = after
        self.convs = nn.ModuleList(convs)
        self.conv_post = norm(nn.Conv1d(before, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Opinion:  # [B, 1, L]
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return Opinion(x.flatten(1), [*features, x])


class MultiScale(nn.Module):
    """
    scales  how many, each at half the rate of the one before
    width   of the channels
    """

    def __init__(self, scales: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if scales < 1:
            raise ConfigError(f"{scales} scales", expected="at least one")
        self.discriminators = nn.ModuleList(Scale(width, spectral=i == 0) for i in range(scales))

    def forward(self, wave: Tensor) -> list[Opinion]:  # [B, L] or [B, 1, L]
        x, opinions = as_batch(wave), []
        for i, discriminator in enumerate(self.discriminators):
            x = F.avg_pool1d(x, 4, 2, padding=2) if i else x
            opinions.append(discriminator(x))
        return opinions
