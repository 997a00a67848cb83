"""Evaluation mode for a while.

>>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
>>> with evaluating(model):
...     model[1].training
False
>>> model[1].training
True
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each submodule's own mode again outside."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
