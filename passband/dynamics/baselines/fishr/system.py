"""Fishr: the variance of the examples' gradients in the head is brought together."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.parts.losses.domains import Fishr as FishrPenalty


class FishrConfig(PenaltyConfig):
    """And the average over steps."""

    variance_ema: float = Field(
        0.95, ge=0, lt=1, description="decay of the variances' average over steps of small "
        "batches; batches of all examples take none"
    )


class Fishr(DomainClassifier):
    """
    >>> system = Fishr.from_preset("smoke")
    """

    Config: ClassVar[type[Config]] = FishrConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = penalised()

    def penalty(self, domains: int, network: Any) -> FishrPenalty:
        decay = 0.0 if self.config.full_batch else self.config.variance_ema
        size = sum(p.numel() for p in network.head.parameters())
        return FishrPenalty(decay, (domains, size), validate=False)
