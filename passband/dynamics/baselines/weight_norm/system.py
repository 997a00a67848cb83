"""Cross-entropy on weight-normalised layers."""

from __future__ import annotations

from torch import nn

from passband.dynamics.baselines.weight_norm.model import normalised
from passband.dynamics.classifier import Classifier


class WeightNorm(Classifier):
    """
    >>> system = WeightNorm.from_preset("smoke")
    """

    def build(self) -> nn.Module:
        return normalised(super().build())
