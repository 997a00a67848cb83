"""Cross-entropy with weight clipping."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from passband.bench.loop import Outcome
from passband.bench.optim import build_optimizer
from passband.bench.system import Config
from passband.dynamics.baselines.weight_clipping.model import WeightClipping
from passband.dynamics.classifier import Classifier, ClassifierConfig, Run


class WeightClippingConfig(ClassifierConfig):
    """The common fields and the bound."""

    bound: float = Field(
        math.pi / 2, gt=0, description="largest weight, in units of three standard deviations of "
        "a layer's first weights; pi / 2 is the bound of an arctan compander of bound 1"
    )


class WeightClippingClassifier(Classifier):
    """
    >>> system = WeightClippingClassifier.from_preset("smoke", bound=0.5)
    """

    Config: ClassVar[type[Config]] = WeightClippingConfig

    def learn(self, network: nn.Module, labelled: Any, run: Run) -> Outcome:
        config = self.loop_config(len(labelled))
        optimizer = build_optimizer(network.parameters(), config)
        # Bounds are those of the first weights: a run that is resumed draws the same ones.
        WeightClipping.of(network, self.config.bound).after(optimizer)
        return run.train(network, self.objective, labelled, config, optimizer=optimizer)
