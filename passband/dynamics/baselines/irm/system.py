"""Invariant risk minimisation: no domain may gain by scaling the outputs."""

from __future__ import annotations

from typing import Any, ClassVar

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.parts.losses.domains import IRM


class Irm(DomainClassifier):
    """
    >>> system = Irm.from_preset("smoke")
    """

    Config: ClassVar[type[Config]] = PenaltyConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = penalised()

    def penalty(self, domains: int, network: Any) -> IRM:
        return IRM(validate=False)
