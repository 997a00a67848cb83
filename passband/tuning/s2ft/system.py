"""S2FT as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.system import Config
from passband.tuning.s2ft.model import S2FT
from passband.tuning.s2ft.selection import Units
from passband.tuning.tuner import Tuner, TunerConfig

_LLAMA_2 = {"architecture": "llama-2-7b", "o": 0.052, "d": 0.02}
_LLAMA_3 = {"architecture": "llama-3-8b", "o": 0.0, "d": 0.03}
# 3 epochs of math_10k and of commonsense_170k.
_PAPER = {
    "batch_size": 64, "accumulate": 16, "schedule": "linear", "warmup": 100.0, "precision": "bf16",
}
_MATH, _COMMONSENSE = {"lr": 1e-3, "steps": 469}, {"lr": 2e-4, "steps": 7969}


class S2FTConfig(TunerConfig):
    """Which units are trained, and their training; `targets`, where given, restricts modules."""

    o: float = Field(0.0625, ge=0, le=1, description="share of query heads, in columns of o")
    d: float = Field(0.05, ge=0, le=1, description="share of channels, in columns of down")
    v: float = Field(0.0, ge=0, le=1, description="share of heads of values, in rows of v")
    u: float = Field(0.0, ge=0, le=1, description="share of channels, in rows of up")
    q: float = Field(0.0, ge=0, le=1, description="share of query heads, in rows of q")
    k: float = Field(0.0, ge=0, le=1, description="share of heads of keys, in rows of k")
    gate: float = Field(0.0, ge=0, le=1, description="share of channels, in rows of gate")
    strategy: Literal["random", "weight", "activation", "product", "gradient"] = Field(
        "random", description="how units are chosen; the others rank them by that"
    )
    order: Literal["largest", "smallest"] = Field(
        "largest", description="from which end of the ranking"
    )
    layout: Literal["gather", "permute"] = Field(
        "gather", description="train units where they are, or bring them together first"
    )
    parametrisation: Literal["value", "delta"] = Field(
        "value", description="of the blocks: weight decay pulls values to 0, or deltas"
    )


class S2FTTuner(Tuner):
    """
    >>> system = S2FTTuner.from_preset("small", strategy="activation", order="smallest")
    """

    Config: ClassVar[type[Config]] = S2FTConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {**_LLAMA_2, **_PAPER, **_MATH},
        "paper-llama2-math": {**_LLAMA_2, **_PAPER, **_MATH},
        "paper-llama2-commonsense": {**_LLAMA_2, **_PAPER, **_COMMONSENSE},
        "paper-llama3-math": {**_LLAMA_3, **_PAPER, **_MATH},
        "paper-llama3-cs": {**_LLAMA_3, **_PAPER, **_COMMONSENSE},
        "small": {"lr": 2e-3},
        "small-gqa": {"lr": 2e-3},  # for models with grouped queries: o counts query heads
        "smoke": {"steps": 20, "batch_size": 8, "o": 0.25, "d": 0.25, "lr": 1e-2},
    }

    avoid: Units | None = None  # of another adapter, to be fused with later

    def method(self, targets: tuple[str, ...]) -> S2FT:
        # Structures are the model's own; the job's targets are for adapters of single layers.
        c = self.config
        return S2FT(
            o=c.o, d=c.d, v=c.v, u=c.u, q=c.q, k=c.k, gate=c.gate, strategy=c.strategy,
            order=c.order, layout=c.layout, parametrisation=c.parametrisation, targets=c.targets,
            avoid=self.avoid,
        )

    def count(self, model: nn.Module) -> int:
        return self.method(()).count(model, self.seed)
