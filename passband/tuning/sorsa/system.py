"""SORSA as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.system import Config
from passband.tuning.factors import count_factors
from passband.tuning.sorsa.model import SORSA
from passband.tuning.tuner import Tuner, TunerConfig


class SORSAConfig(TunerConfig):
    """SORSA and its training."""

    rank: int = Field(8, gt=0, description="singular triples of each layer that are trained")
    alpha: float | None = Field(None, gt=0, description="scale times rank; null: scale 1")
    gamma: float = Field(
        1e-3, ge=0, description="weight of orthonormality at the peak learning rate"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the trained part")
    norm: Literal["guarded", "exact", "squared"] = Field(
        "guarded", description="of the deviation from orthonormality"
    )
    legacy_div_accum: bool = Field(
        False, description="divide the regulariser by the micro-batches, as the released trainer"
    )


class SORSATuner(Tuner):
    """
    >>> system = SORSATuner.from_preset("small", rank=4)
    """

    Config: ClassVar[type[Config]] = SORSAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"architecture": "llama-2-7b", "rank": 128, "lr": 3e-5, "gamma": 4e-4,
                  "batch_size": 128, "accumulate": 64},
        "paper-mistral": {"architecture": "mistral-7b", "rank": 64, "lr": 3e-5, "gamma": 4e-4,
                          "batch_size": 128, "accumulate": 64},
        "paper-gemma": {"architecture": "gemma-7b", "rank": 64, "lr": 3e-5, "gamma": 4e-4,
                        "batch_size": 128, "accumulate": 64},
        "small": {},
        "smoke": {"steps": 20, "batch_size": 8, "rank": 4, "lr": 1e-2},
    }

    def method(self, targets: tuple[str, ...]) -> SORSA:
        c = self.config
        return SORSA(
            c.rank, c.alpha, c.gamma, c.lr, c.dropout, c.norm,
            c.accumulate if c.legacy_div_accum else 1, targets,
        )

    def count(self, model: nn.Module) -> int:
        targets = self.config.targets or ("all-linear",)
        return count_factors(model, targets, self.config.rank, per_rank=1)
