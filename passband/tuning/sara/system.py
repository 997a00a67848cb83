"""SaRA as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.bench.task import Data
from passband.parts.edits import Edit
from passband.tuning.adaptation import Adaptation
from passband.tuning.handle import Handle
from passband.tuning.sara.model import SaRA, SaRAHandle, learning_rate
from passband.tuning.tuner import Tuner, TunerConfig


class SaRAConfig(TunerConfig):
    """Which entries are trained and how; targets, where given, are the only weights looked at."""

    threshold: float = Field(
        2e-3, gt=0, description="entries of smaller absolute value are trained"
    )
    fraction: float | None = Field(
        None, gt=0, lt=1,
        description="share of all entries that the threshold is chosen for; null: as given",
    )
    order: Literal["smallest", "largest", "random"] = Field(
        "smallest", description="which entries; largest and random are there to compare with"
    )
    lambda_rank: float = Field(5e-3, ge=0, description="weight of the nuclear norm")
    rank_sampling: int | str = Field(
        "one", description="matrices whose nuclear norm is taken at a step: one, all or a number"
    )
    min_dim: int = Field(64, ge=1, description="penalised matrices have a larger smaller side")
    adjustment: Literal["keep", "reset", "off"] = Field(
        "keep", description="at adjust_at only entries that are still below the threshold go on, "
        "with or without their moments; off: all of them do"
    )
    adjust_at: float = Field(0.5, gt=0, lt=1, description="share of the run")
    exclude: tuple[str, ...] = Field(
        (), description="patterns of parameter names that are left out, such as *.zero_conv.*"
    )
    lr: float | None = Field(
        None, gt=0, description="peak learning rate; null: 1e-3 exp(-350 threshold)"
    )
    weight_decay: float = Field(1e-2, ge=0, description="decoupled, of the trained entries")

    @field_validator("rank_sampling")
    @classmethod
    def _draws(cls, draws: int | str) -> int | str:
        if draws not in ("one", "all") and not (isinstance(draws, int) and draws > 0):
            raise ValueError("one, all, or a number above 0")
        return draws


class Sara(Tuner):
    """
    >>> system = Sara.from_preset("small", fraction=0.05, adjustment="off")
    """

    Config: ClassVar[type[Config]] = SaRAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"threshold": 2e-3, "steps": 5000, "batch_size": 4, "warmup": 0.0},
        "paper-20m": {"threshold": 8e-4, "steps": 5000, "batch_size": 4, "warmup": 0.0},
        "paper-5m": {"threshold": 2e-4, "steps": 5000, "batch_size": 4, "warmup": 0.0},
        "small": {"fraction": 0.1, "min_dim": 16, "lr": 1e-3, "steps": 200},
        "small-lm": {
            "fraction": 0.1, "targets": ("all-linear",), "lr": 1e-3, "steps": 200,
        },
        "smoke": {"fraction": 0.2, "min_dim": 8, "lr": 1e-2, "steps": 20, "batch_size": 8},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        self._found: dict[str, Any] = {}

    def method(self, targets: tuple[str, ...]) -> SaRA:
        # Every parameter takes part: the job's targets are for adapters.
        c = self.config
        return SaRA(
            threshold=c.threshold, fraction=c.fraction, order=c.order, lambda_rank=c.lambda_rank,
            rank_sampling=c.rank_sampling, min_dim=c.min_dim, adjustment=c.adjustment,
            adjust_at=c.adjust_at, exclude=c.exclude, targets=c.targets,
        )

    def fit(
        self, data: Data[Adaptation], budget: Budget = Budget(), monitor: Monitor | None = None
    ) -> dict[str, Any]:
        return super().fit(data, budget, monitor) | self._found

    def learning_rate(self, handle: Handle) -> float:
        assert isinstance(handle, SaRAHandle)
        rate: float | None = self.config.lr
        return learning_rate(handle.selection.threshold) if rate is None else rate

    def finish(self, handle: Handle, problem: Adaptation) -> Edit:
        assert isinstance(handle, SaRAHandle)
        self._found = handle.report().facts()
        # Measured at the end, when fewer entries are left: what counts is the first half.
        trained = self._found["entries"] + sum(p.numel() for p in handle.head.values())
        self.facts["trainable"] = float(trained)
        self.facts["optimizer_bytes"] = max(self.facts["optimizer_bytes"], 8.0 * trained)
        return super().finish(handle, problem)

    def count(self, model: nn.Module) -> int:
        return self.method(()).select(model).count
