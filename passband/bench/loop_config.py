"""How to train: the configuration of the loop.

>>> LoopConfig(lr=3e-4, schedule="cosine", warmup=0.05, ema=0.999)
>>> LoopConfig(select="highest si_sdr")        # weights of the best validation, not the last ones
>>> LoopConfig(select="lowest loss", schedule="plateau", drop=0.5, patience=5, stop_after=10)
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from passband.bench.optim import OPTIMIZERS
from passband.bench.schedule import SCHEDULES, factor
from passband.bench.system import Config


def _field(default: Any, description: str, **limits: Any) -> Any:
    return Field(default=default, description=description, **limits)


class LoopConfig(Config):
    """How to train. Systems build it from their own configuration."""

    steps: int = _field(1000, "steps when the budget sets no limit", gt=0)
    batch_size: int = _field(32, "examples a step, over all processes", gt=0)
    accumulate: int = _field(1, "micro-batches a step: less memory, same numbers", gt=0)
    shuffle: bool = _field(True, "a new order of the examples each epoch")
    workers: int = _field(0, "processes that read data ahead", ge=0)

    optimizer: str = _field("adamw", f"one of {', '.join(OPTIMIZERS)}")
    lr: float = _field(1e-3, "peak learning rate", gt=0)
    betas: tuple[float, float] = _field((0.9, 0.999), "Adam's decay rates, in [0, 1)")
    eps: float = _field(1e-8, "Adam's term in the denominator", gt=0)
    weight_decay: float = _field(0.0, "decoupled for adamw, L2 for the others", ge=0)
    momentum: float = _field(0.0, "of sgd", ge=0, lt=1)
    lbfgs_iterations: int = _field(10, "L-BFGS iterations between two looks", gt=0)
    lbfgs_history: int = _field(50, "curvature pairs that L-BFGS keeps", gt=0)
    clip: float | None = _field(None, "largest norm of the gradient", gt=0)

    schedule: str = _field("constant", f"one of {', '.join(SCHEDULES)}")
    warmup: float = _field(0.0, "below 1: share of the budget, else steps", ge=0)
    final: float = _field(0.0, "lr at the end of cosine, linear / peak lr", ge=0, le=1)
    drop_every: float = _field(0.5, "step: share of the budget (< 1) or steps", gt=0)
    drop_at: tuple[float, ...] = _field(
        (), "step: these places instead of every drop_every, shares of the budget (< 1) or steps"
    )
    periods: int = _field(1, "cosine, linear: runs from the peak to final (warm restarts)", gt=0)
    drop: float = _field(0.1, "step, plateau: lr is multiplied by this each time", gt=0, le=1)
    patience: int = _field(5, "plateau: validations without a better one until lr drops", gt=0)
    reload: bool = _field(False, "plateau: go on from the best weights each time")
    stop_after: int | None = _field(
        None, "validations without a better one until the run ends; None: the budget ends it", gt=0
    )

    ema: float | None = _field(None, "decay of the average of the weights", gt=0, lt=1)
    ema_warmup: bool = _field(True, "decay starts low: min(ema, (1 + n) / (10 + n))")
    precision: Literal["no", "bf16", "fp16"] = _field("no", "of autocast")

    select: str = _field("last", "last, or lowest NAME / highest NAME of validation")
    validate_every: int | None = _field(None, "steps; None: 20 times a run", gt=0)
    log_every: int | None = _field(None, "steps between rows of curves; None: 200 a run", gt=0)
    checkpoint_steps: int | None = _field(None, "steps between checkpoints", gt=0)
    checkpoint_seconds: float = _field(300.0, "most seconds between checkpoints", gt=0)
    looks: int = _field(20, "points of the error-against-time curve", gt=0)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        if name not in OPTIMIZERS:
            raise ValueError(f"one of {', '.join(OPTIMIZERS)}")
        return name

    @field_validator("schedule")
    @classmethod
    def _known_schedule(cls, name: str) -> str:
        if name not in SCHEDULES:
            raise ValueError(f"one of {', '.join(SCHEDULES)}")
        return name

    @field_validator("drop_at")
    @classmethod
    def _positive_places(cls, places: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < place < float("inf") for place in places):
            raise ValueError("places above 0: shares of the budget (below 1) or steps")
        return places

    @field_validator("select")
    @classmethod
    def _known_rule(cls, rule: str) -> str:
        words = rule.split()
        if rule != "last" and not (len(words) == 2 and words[0] in ("lowest", "highest")):
            raise ValueError("'last', 'lowest NAME' or 'highest NAME', NAME a validation metric")
        return rule

    def factor(self, steps: int, fraction: float) -> float:
        """What the learning rate is multiplied with; `Plateau.scale` comes on top."""
        return factor(
            self.schedule, steps=steps, fraction=fraction, warmup=self.warmup, final=self.final,
            drop_every=self.drop_every, drop=self.drop, drop_at=self.drop_at,
            periods=self.periods,
        )
