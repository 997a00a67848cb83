"""Least-squares adversarial losses and feature matching, summed over sub-discriminators.

    L_D  = sum_k mean (1 - D_k(y))^2 + mean D_k(G)^2
    L_G  = sum_k mean (1 - D_k(G))^2
    L_FM = 2 sum_k sum_l mean |f_kl(y) - f_kl(G)|

>>> from passband.parts.critics import MultiPeriod
>>> critic = MultiPeriod(width=1 / 32)
>>> real, fake = critic(torch.randn(1, 512)), critic(torch.randn(1, 512))
>>> float(feature_matching(real, real))
0.0
>>> bool(critic_loss(real, fake) > 0)
True

Source: LSGAN (arXiv 1611.04076) as HiFi-GAN (arXiv 2010.05646) uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.parts.critics.opinion import Opinion


def critic_loss(real: Sequence[Opinion], fake: Sequence[Opinion]) -> Tensor:
    """What a discriminator lowers: recordings towards 1, generated waves towards 0."""
    return torch.stack([
        (1 - a.score).square().mean() + b.score.square().mean()
        for a, b in zip(real, fake, strict=True)
    ]).sum()


def generator_loss(fake: Sequence[Opinion]) -> Tensor:
    """What a generator lowers: its waves towards 1."""
    return torch.stack([(1 - opinion.score).square().mean() for opinion in fake]).sum()


def feature_matching(
    real: Sequence[Opinion], fake: Sequence[Opinion], weight: float = 2.0
) -> Tensor:
    """Distance of what the layers see; of the recordings no gradient is asked."""
    return weight * torch.stack([
        F.l1_loss(b, a.detach())
        for one, other in zip(real, fake, strict=True)
        for a, b in zip(one.features, other.features, strict=True)
    ]).sum()
