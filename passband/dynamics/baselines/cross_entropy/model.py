"""Cross-entropy on mixed examples and smoothed labels: the common controls, each off at 0.

    mixup       x~ = l x + (1 - l) x[pi],  l ~ Beta(alpha, alpha),  the loss mixed alike
    smoothing   label e_y becomes (1 - s) e_y + s / C

Sources: Zhang et al., mixup, arXiv 1710.09412; Szegedy et al., label smoothing, arXiv 1512.00567.

>>> model = nn.Linear(4, 3)
>>> loss = cross_entropy(model, torch.randn(8, 4), torch.randint(3, (8,)), mixup=1.0, smoothing=0.1)
>>> loss.shape
torch.Size([])
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.dynamics.mixup import mixed
from passband.errors import ConfigError


def cross_entropy(
    model: Any, x: Tensor, y: Tensor, *, mixup: float = 0.0, smoothing: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean loss of examples x [B, ...] with classes y [B].

    mixup      alpha of the Beta distribution, 0 mixes nothing
    smoothing  share of the label that all classes divide among them
    """
    if not 0 <= smoothing < 1:
        raise ConfigError(f"smoothing = {smoothing}", expected="from 0 to below 1")
    if not mixup:
        return F.cross_entropy(model(x), y, label_smoothing=smoothing)
    x, other, share = mixed(x, mixup, generator)
    logits = model(x)
    first = F.cross_entropy(logits, y, label_smoothing=smoothing)
    second = F.cross_entropy(logits, y[other], label_smoothing=smoothing)
    return share * first + (1 - share) * second
