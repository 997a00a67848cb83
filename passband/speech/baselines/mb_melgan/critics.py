"""MelGAN's own multi-scale discriminator, lighter than the one HiFi-GAN made of it.

    x -> D1(x), D2(pool x), D3(pool pool x)      pool: mean of 4 samples, stride 2

>>> critic = MelGANScales(width=1 / 16)
>>> opinions = critic(torch.randn(2, 4096))
>>> [o.score.shape[1] for o in opinions], len(opinions[0].features)
([64, 32, 16], 6)

Source: Kumar et al., MelGAN (arXiv 1910.06711), with the three down-sampling layers of multi-band
MelGAN (arXiv 2005.05106).
"""

from __future__ import annotations

from math import gcd

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from passband.errors import DataError
from passband.parts.critics.opinion import Opinion, as_batch, scaled

SLOPE = 0.2
FIRST, STRIDE, LAST, POST = 15, 4, 5, 3  # kernels of the ends, stride of the layers between
CHANNELS = (16, 64, 256, 512)
TOP = 512
SHORTEST = 32  # samples: what the coarsest scale can still reflect


class MelGANScale(nn.Module):
    """The sub-discriminator of one scale.

    width  of its channels, 1 for the published 16 to 512
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        widths = [scaled(c, width) for c in CHANNELS]
        top = scaled(TOP, width)
        convs = [weight_norm(nn.Conv1d(1, widths[0], FIRST))]
        for i in range(len(CHANNELS) - 1):
            before, after = widths[i], widths[i + 1]
            convs.append(weight_norm(nn.Conv1d(
                before, after, 10 * STRIDE + 1, STRIDE, padding=5 * STRIDE,
                groups=gcd(max(1, CHANNELS[i] // 4), before, after),
            )))
        convs.append(weight_norm(nn.Conv1d(widths[-1], top, LAST, padding=LAST // 2)))
        self.convs = nn.ModuleList(convs)
        self.conv_post = weight_norm(nn.Conv1d(top, 1, POST, padding=POST // 2))

    def forward(self, x: Tensor) -> Opinion:  # [B, 1, L]
        x, features = F.pad(x, (FIRST // 2, FIRST // 2), "reflect"), []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
            features.append(x)
        x = self.conv_post(x)
        return Opinion(x.flatten(1), [*features, x])


class MelGANScales(nn.Module):
    """
    scales  how many, each at half the rate of the one before
    width   of the channels

    Raises `DataError` for waves of less than 32 samples.
    """

    def __init__(self, scales: int = 3, width: float = 1.0) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(MelGANScale(width) for _ in range(scales))

    def forward(self, wave: Tensor) -> list[Opinion]:  # [B, L] or [B, 1, L]
        x, opinions = as_batch(wave), []
        if x.shape[-1] < SHORTEST:
            raise DataError(
                f"waves of {x.shape[-1]} samples", expected=f"at least {SHORTEST}",
                mend="take longer segments",
            )
        for i, discriminator in enumerate(self.discriminators):
            x = F.avg_pool1d(x, 4, 2, padding=1, count_include_pad=False) if i else x
            opinions.append(discriminator(x))
        return opinions
