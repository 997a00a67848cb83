"""Fish: the gradients of any two domains are to point the same way."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.parts.losses.domains import Fish as FishPenalty


class FishConfig(PenaltyConfig):
    """And whose gradients."""

    gradients: Literal["all", "head"] = Field(
        "all", description="of all parameters, by a graph of gradients; or of the head, in closed "
        "form"
    )


class Fish(DomainClassifier):
    """
    >>> system = Fish.from_preset("smoke", gradients="head")
    """

    Config: ClassVar[type[Config]] = FishConfig
    # An inner product has no least value: at the others' weights gradients would be made to grow.
    presets: ClassVar[dict[str, dict[str, Any]]] = penalised(
        penalty_weight=0.1, penalty_start=0.1
    )

    def penalty(self, domains: int, network: Any) -> FishPenalty:
        whole = self.config.gradients == "all"
        return FishPenalty(network.parameters() if whole else None, validate=False)
