"""CorDA as a system: calibrate, decompose, train."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.system import Config
from passband.tuning.corda.model import CorDA
from passband.tuning.factors import count_factors
from passband.tuning.tuner import Tuner, TunerConfig


class CorDAConfig(TunerConfig):
    """CorDA and its training."""

    rank: int = Field(8, gt=0, description="of the factors")
    alpha: float | None = Field(None, gt=0, description="update times rank; null: equal to rank")
    mode: Literal["knowledge", "instruction"] = Field(
        "knowledge", description="train what calibration text needs least, or what the task needs"
    )
    context: Literal["covariance", "none"] = Field(
        "covariance", description="none: the plain singular value decomposition, for comparison"
    )
    damping: float = Field(0.01, ge=0, description="of the covariance, in its mean diagonal")
    balance: Literal["none", "global", "exact"] = Field(
        "global", description="of the two factors' sizes: one number for the whole model, the "
        "symmetric split of each product, or none (the paper's)"
    )
    scaled: bool = Field(True, description="divide each calibration sample by its signed maximum")
    samples: int | None = Field(None, gt=0, description="for calibration at most; null: all")
    on_missing: Literal["svd", "error"] = Field(
        "svd", description="what to do with a layer that calibration never reaches"
    )
    train_bias: bool = Field(False, description="train the biases of the target layers too")
    cache: bool = Field(
        False, description="keep covariances in the cache folder, for other ranks and modes"
    )


_PAPER: dict[str, Any] = {
    "architecture": "llama-2-7b", "rank": 128, "lr": 2e-5, "batch_size": 128, "samples": 256,
    "balance": "none",
}


class CorDATuner(Tuner):
    """
    >>> system = CorDATuner.from_preset("small", mode="instruction")
    """

    Config: ClassVar[type[Config]] = CorDAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "paper-ipa": {**_PAPER, "mode": "instruction"},
        "paper-ipa-32": {**_PAPER, "mode": "instruction", "rank": 32},
        "paper-glue": {**_PAPER, "mode": "instruction", "architecture": "roberta-base"},
        "small": {},
        "smoke": {"steps": 20, "batch_size": 8, "rank": 4, "lr": 2e-2, "mode": "instruction"},
    }

    def method(self, targets: tuple[str, ...]) -> CorDA:
        c = self.config
        return CorDA(
            c.rank, c.alpha, c.mode, c.context, c.damping, c.balance, c.scaled, c.samples,
            c.on_missing, c.train_bias, c.cache, targets,
        )

    def count(self, model: nn.Module) -> int:
        return count_factors(model, self.config.targets or ("all-linear",), self.config.rank)
