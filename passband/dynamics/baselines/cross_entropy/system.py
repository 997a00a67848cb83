"""The plain classifier as a system."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from passband.bench.system import Config
from passband.dynamics.baselines.cross_entropy.model import cross_entropy
from passband.dynamics.classifier import Classifier, ClassifierConfig
from passband.parts.indexed import Item


class CrossEntropyConfig(ClassifierConfig):
    """The common fields; `dropout`, `weight_decay` and `augment` are among them."""

    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of a label that all classes divide among them"
    )
    mixup: float = Field(
        0.0, ge=0, description="alpha of mixup's Beta distribution; 0 mixes nothing"
    )


class CrossEntropy(Classifier):
    """
    >>> system = CrossEntropy.from_preset("smoke", mixup=1.0, dropout=0.2)
    """

    Config: ClassVar[type[Config]] = CrossEntropyConfig

    def objective(self, module: Any, batch: Item) -> Tensor:
        c = self.config
        return cross_entropy(
            module, batch.x, batch.y, mixup=c.mixup, smoothing=c.label_smoothing
        )
