"""Risk extrapolation: a penalty on the variance of the domains' risks."""

from __future__ import annotations

from typing import Any, ClassVar

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.parts.losses.domains import VREx


class Vrex(DomainClassifier):
    """
    >>> system = Vrex.from_preset("smoke")
    """

    Config: ClassVar[type[Config]] = PenaltyConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = penalised()

    def penalty(self, domains: int, network: Any) -> VREx:
        return VREx(validate=False)
