"""Mixup: batches of examples blended in pairs (Zhang et al., arXiv 1710.09412)."""

from __future__ import annotations

import torch
from torch import Tensor

from passband.errors import ConfigError


def mixed(
    x: Tensor, alpha: float, generator: torch.Generator | None = None, *, larger: bool = False
) -> tuple[Tensor, Tensor, float]:
    """(mixed examples, the permutation [B] of what was mixed in, share l of the first).

    larger  the first example has the larger share: l <- max(l, 1 - l)

    >>> x, other, share = mixed(torch.eye(3), alpha=1.0)
    >>> bool((x == share * torch.eye(3) + (1 - share) * torch.eye(3)[other]).all())
    True
    """
    if alpha <= 0:
        raise ConfigError(f"alpha = {alpha}", expected="above 0")
    # A pair of Gamma draws is a Beta draw, and takes a generator.
    first, second = torch._standard_gamma(
        torch.full((2,), float(alpha), dtype=torch.float64), generator=generator
    ).tolist()
    share = first / (first + second) if first + second > 0 else 0.5
    share = max(share, 1 - share) if larger else share
    other = torch.randperm(len(x), generator=generator).to(x.device)
    return share * x + (1 - share) * x[other], other, share
