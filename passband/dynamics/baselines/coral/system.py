"""CORAL: means and covariances of the features are brought together."""

from __future__ import annotations

from typing import Any, ClassVar

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.parts.losses.domains import CORAL


class Coral(DomainClassifier):
    """
    >>> system = Coral.from_preset("smoke")
    """

    Config: ClassVar[type[Config]] = PenaltyConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = penalised()

    def penalty(self, domains: int, network: Any) -> CORAL:
        return CORAL(validate=False)
