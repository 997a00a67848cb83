"""SORSA as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.system import Config
from passband.tuning.factors import count_factors
from passband.tuning.measures import weights_of
from passband.tuning.sorsa.analysis import Drift, report
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


# The paper's run: 100,000 examples once, in batches of 2 x 64.
_PAPER: dict[str, Any] = {
    "rank": 64, "lr": 3e-5, "gamma": 4e-4, "batch_size": 128, "accumulate": 64, "steps": 781,
    "precision": "bf16",
}
_RWKV = tuple(
    f"{block}.{layer}" for block, layers in (
        ("attention", ("receptance", "key", "value", "gate", "output")),
        ("feed_forward", ("key", "receptance", "value")),
    ) for layer in layers
)


class SORSATuner(Tuner):
    """
    >>> system = SORSATuner.from_preset("small", rank=4)
    """

    Config: ClassVar[type[Config]] = SORSAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {**_PAPER, "architecture": "llama-2-7b", "rank": 128},
        "paper-mistral": {**_PAPER, "architecture": "mistral-7b"},
        "paper-gemma": {**_PAPER, "architecture": "gemma-7b"},
        "paper-rwkv6": {**_PAPER, "targets": _RWKV},
        "small": {},
        "smoke": {"steps": 20, "batch_size": 8, "rank": 4, "lr": 1e-2},
    }

    def method(self, targets: tuple[str, ...]) -> SORSA:
        c = self.config
        return SORSA(
            c.rank, c.alpha, c.gamma, None, c.dropout, c.norm,
            c.accumulate if c.legacy_div_accum else 1, targets,
        )

    def report(self, model: nn.Module) -> dict[str, Drift]:
        """How the spectra of `model`, the pretrained one, have moved, by parameter."""
        return report(self.fitted(), weights_of(model))

    def count(self, model: nn.Module) -> int:
        targets = self.config.targets or ("all-linear",)
        return count_factors(model, targets, self.config.rank, per_rank=1)
