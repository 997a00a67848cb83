"""IGA: a penalty on the variance of the domains' gradients."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.parts.losses.domains import IGA


class IgaConfig(PenaltyConfig):
    """And whose gradients."""

    gradients: Literal["all", "head"] = Field(
        "all", description="of all parameters, by a graph of gradients; or of the head, in closed "
        "form"
    )


class Iga(DomainClassifier):
    """
    >>> system = Iga.from_preset("smoke", gradients="head")
    """

    Config: ClassVar[type[Config]] = IgaConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = penalised()

    def penalty(self, domains: int, network: Any) -> IGA:
        whole = self.config.gradients == "all"
        return IGA(network.parameters() if whole else None, validate=False)
