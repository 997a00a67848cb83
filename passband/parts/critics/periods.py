"""The multi-period discriminator (HiFi-GAN, arXiv 2010.05646).

Each sub-discriminator looks at samples that lie one period apart: the wave is folded into rows of
p samples and convolved along the columns alone.

    x [B, 1, L] -> [B, 1, ceil(L / p), p] -> five convolutions (5, 1), stride (3, 1) -> score

>>> critic = MultiPeriod(width=1 / 16)
>>> opinions = critic(torch.randn(2, 4096))
>>> len(opinions), len(opinions[0].features)
(5, 6)
>>> sum(p.numel() for p in MultiPeriod().parameters())
41105770
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from passband.errors import DataError
from passband.parts.critics.opinion import SLOPE, Opinion, as_batch, scaled

PERIODS = (2, 3, 5, 7, 11)  # primes overlap least
CHANNELS = (32, 128, 512, 1024, 1024)


class Period(nn.Module):
    """The sub-discriminator of one period.

    width  of its channels, 1 for the published 32 to 1024
    """

    def __init__(self, period: int, width: float = 1.0) -> None:
        super().__init__()
        self.period = period
        channels = [1, *(scaled(c, width) for c in CHANNELS)]
        strides = [3, 3, 3, 3, 1]
        self.convs = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), padding=(2, 0)))
            for a, b, stride in zip(channels[:-1], channels[1:], strides, strict=True)
        )
        self.conv_post = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> Opinion:  # [B, 1, L]
        missing = -x.shape[-1] % self.period
        if missing:
            x = F.pad(x, (0, missing), "reflect")
        x = x.reshape(*x.shape[:2], -1, self.period)  # [B, 1, rows, period]
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return Opinion(x.flatten(1), [*features, x])


class MultiPeriod(nn.Module):
    """
    periods  samples that lie under each other, one sub-discriminator each
    width    of the channels; 1 / 16 judges small generators at a hundredth of the cost
    first    layer from which on outputs are features: 0 in HiFi-GAN, 1 in Vocos
    Raises `DataError` for waves shorter than the longest period.
    """

    def __init__(
        self, periods: Sequence[int] = PERIODS, width: float = 1.0, first: int = 0
    ) -> None:
        super().__init__()
        self.first = first
        self.discriminators = nn.ModuleList(Period(p, width) for p in periods)
        self.least = max(periods)

    def forward(self, wave: Tensor) -> list[Opinion]:  # [B, L] or [B, 1, L]
        x = as_batch(wave)
        if x.shape[-1] < self.least:
            raise DataError(
                f"waves of {x.shape[-1]} samples for the period {self.least}",
                expected=f"at least {self.least}", mend="take longer segments",
            )
        opinions = [discriminator(x) for discriminator in self.discriminators]
        return [Opinion(score, features[self.first :]) for score, features in opinions]
