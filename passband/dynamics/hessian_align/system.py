"""Hessian alignment as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from passband.bench.system import Config
from passband.dynamics.domains import DomainClassifier, PenaltyConfig, penalised
from passband.dynamics.hessian_align.model import HessianAlign

# Of photographs: `weights` names the ImageNet weights that the paper starts from.
DOMAINBED: dict[str, Any] = {
    "network": "resnet50", "frozen_norm": True, "shape": (3, 224, 224), "classes": 7,
    "full_batch": False, "steps": 5000, "lr": 5e-5, "alpha": 1e-4, "beta": 5e-3,
    "penalty_weight": 1.0, "penalty_start": 0.0, "anneal": 1500, "reset_optimizer": True,
    "augment": "crop-flip",
}


class HessianAlignConfig(PenaltyConfig):
    """The penalty; its weight and when it starts are common to all penalties."""

    alpha: float = Field(1.0, ge=0, description="of the curvature's distance")
    beta: float = Field(1.0, ge=0, description="of the gradient's distance")
    estimator: Literal["hgp", "diag_exact", "hutchinson"] = Field(
        "hgp", description="what stands for the Hessian: its product with the gradient, its "
        "diagonal, or that by random probes"
    )
    probes: int = Field(300, gt=0, description="of hutchinson")
    detach_mean: bool = Field(True, description="no gradients through the mean domain")
    reduction: Literal["mean", "sum"] = Field("mean", description="over domains")


class HessianAligned(DomainClassifier):
    """
    >>> system = HessianAligned.from_preset("smoke", estimator="diag_exact")
    """

    Config: ClassVar[type[Config]] = HessianAlignConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        **penalised(),
        "paper": {**penalised()["paper"], "reduction": "sum", "detach_mean": False},
        "paper-hutchinson": {
            **penalised()["paper"], "reduction": "sum", "detach_mean": False,
            "estimator": "hutchinson", "probes": 150,
        },
        "paper-domainbed": DOMAINBED,
        "paper-domainbed-hutchinson": {
            **DOMAINBED, "estimator": "hutchinson", "alpha": 1e-3, "beta": 5e-3,
        },
        "diagonal": {**penalised()["small"], "estimator": "diag_exact"},
    }

    def penalty(self, domains: int, network: Any) -> HessianAlign:
        c = self.config
        return HessianAlign(
            c.alpha, c.beta, c.estimator, c.probes, c.detach_mean, c.reduction, validate=False
        )
