"""Adversarial losses and feature matching, summed over sub-discriminators.

    L_D  = sum_k w_k ( mean r(D_k(y)) + mean f(D_k(G)) )
    L_G  = sum_k w_k mean r(D_k(G))
    L_FM = 2 sum_k w_k sum_l mean |f_kl(y) - f_kl(G)|

    LEAST_SQUARES   r(s) = (1 - s)^2,         f(s) = s^2
    HINGE           r(s) = max(0, 1 - s),     f(s) = max(0, 1 + s)

>>> from passband.parts.critics import MultiPeriod
>>> critic = MultiPeriod(width=1 / 32)
>>> real, fake = critic(torch.randn(1, 512)), critic(torch.randn(1, 512))
>>> float(feature_matching(real, real))
0.0
>>> bool(critic_loss(real, fake) > 0)
True

Sources: LSGAN (arXiv 1611.04076) as HiFi-GAN (arXiv 2010.05646) uses it; the hinge as Vocos
(arXiv 2306.00814) does, in the generator's turn too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.parts.critics.opinion import Opinion


class Penalty(NamedTuple):
    """What scores cost, element by element.

    real  where a recording is wanted: of recordings to a discriminator, of waves to a generator
    fake  where a generated wave is wanted: of generated waves to a discriminator
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]


LEAST_SQUARES = Penalty(lambda s: (1 - s).square(), lambda s: s.square())
HINGE = Penalty(lambda s: F.relu(1 - s), lambda s: F.relu(1 + s))

Weights = Sequence[float] | None  # of the sub-discriminators; None: 1 each


def critic_loss(
    real: Sequence[Opinion], fake: Sequence[Opinion], penalty: Penalty = LEAST_SQUARES,
    weights: Weights = None,
) -> Tensor:
    """What a discriminator lowers: recordings towards 1, generated waves to the other side."""
    return _total([
        penalty.real(a.score).mean() + penalty.fake(b.score).mean()
        for a, b in zip(real, fake, strict=True)
    ], weights)


def generator_loss(
    fake: Sequence[Opinion], penalty: Penalty = LEAST_SQUARES, weights: Weights = None
) -> Tensor:
    """What a generator lowers: its waves towards 1."""
    return _total([penalty.real(opinion.score).mean() for opinion in fake], weights)


def feature_matching(
    real: Sequence[Opinion], fake: Sequence[Opinion], weight: float = 2.0, weights: Weights = None
) -> Tensor:
    """Distance of what the layers see; of the recordings no gradient is asked."""
    pairs = list(zip(real, fake, strict=True))
    each = [
        F.l1_loss(b, a.detach())
        for one, other in pairs for a, b in zip(one.features, other.features, strict=True)
    ]
    if weights is not None:
        weights = [
            w for w, (one, _) in zip(weights, pairs, strict=True) for _ in one.features
        ]
    return weight * _total(each, weights)


def _total(terms: Sequence[Tensor], weights: Weights) -> Tensor:
    if weights is None:
        return torch.stack(list(terms)).sum()
    return torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum()
