"""SpIEL as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config
from passband.parts.nf4 import pack, quantise
from passband.parts.targets import find_targets
from passband.tuning.adaptation import Adaptation
from passband.tuning.handle import Handle
from passband.tuning.spiel.model import SpIEL
from passband.tuning.tuner import Tuner, TunerConfig


class SpIELConfig(TunerConfig):
    """How many deltas, where they move, and on what."""

    algorithm: Literal["ag", "ma"] = Field(
        "ag", description="grow by accumulated gradients, or by the momentum of SM3"
    )
    density: float | None = Field(
        0.02, gt=0, le=1, description="deltas over all parameters of the model, (0, 1]"
    )
    deltas: int | None = Field(None, gt=0, description="their number, in place of density")
    match_rank: int | None = Field(
        None, gt=0, description="as many as a LoRA of this rank has, in place of density"
    )
    growth: Literal["select", "none"] = Field(
        "select", description="none: random positions stay as they are, to compare with"
    )
    reselection_steps: int = Field(20, gt=1, description="steps from one reselection to the next")
    accumulation_steps: int = Field(
        5, gt=0, description="steps of a selection phase; fewer than reselection_steps"
    )
    reselection_rate: float = Field(
        0.2, ge=0, le=1, description="share of the deltas that is replaced, at first"
    )
    policy: Literal["linear", "cosine"] = Field(
        "linear", description="how that share falls; linear: the first reselection replaces all"
    )
    drop_criterion: Literal["magnitude", "change"] = Field(
        "magnitude", description="of a delta, or its change since the last reselection"
    )
    reference_timing: bool = Field(
        False, description="selection phases of one step more, as in the released code"
    )
    row_cover_only: bool = Field(False, description="SM3 keeps accumulators of outputs alone")
    momentum: float = Field(0.0, ge=0, lt=1, description="of SM3")
    quantise: Literal["none", "nf4"] = Field(
        "none", description="nf4: the base's target layers in 4 bits, in training and afterwards"
    )
    eps: float | None = Field(
        None, gt=0, description="in the optimiser's denominator; null: 1e-6 (ag), 1e-8 (ma)"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled, of the deltas")


_PAPER = {
    "architecture": "llama-2-7b", "match_rank": 64, "lr": 3e-5, "weight_decay": 10.0, "steps": 781,
    "batch_size": 128, "accumulate": 128, "schedule": "linear", "precision": "bf16",
}


class Spiel(Tuner):
    """
    >>> system = Spiel.from_preset("small", density=0.01)
    """

    Config: ClassVar[type[Config]] = SpIELConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "paper-13b": {**_PAPER, "architecture": "llama-2-13b"},
        "paper-ma": {**_PAPER, "algorithm": "ma", "lr": 7e-4},
        "small": {"lr": 3e-3, "steps": 200},
        "small-ma": {"algorithm": "ma", "lr": 5e-2, "steps": 200},
        "smoke": {"density": 0.05, "lr": 1e-2, "steps": 20, "batch_size": 8},
    }

    def method(self, targets: tuple[str, ...]) -> SpIEL:
        c = self.config
        return SpIEL(
            algorithm=c.algorithm, density=c.density, budget=c.deltas, match_rank=c.match_rank,
            growth=c.growth, reselection_steps=c.reselection_steps,
            accumulation_steps=c.accumulation_steps, reselection_rate=c.reselection_rate,
            policy=c.policy, drop_criterion=c.drop_criterion, reference_timing=c.reference_timing,
            row_cover_only=c.row_cover_only, momentum=c.momentum, targets=targets,
        )

    def attach(
        self, model: nn.Module, problem: Adaptation, budget: Budget, number: int = 0
    ) -> Handle:
        if self.config.quantise == "nf4":
            pack(model, self.config.targets or problem.targets)
        return super().attach(model, problem, budget, number)

    def adapt(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """As of every system; with `quantise`, the target weights are rounded to 4 bits first."""
        if self.config.quantise == "nf4":
            round_to_nf4(model, [n.removesuffix(".weight") for n in self._rounded()])
        return super().adapt(model, scale)

    def _rounded(self) -> list[str]:
        """Weights that the edit was trained on top of in 4 bits: all of its sparse changes."""
        return [n for n, change in self.fitted().changes.items() if change.kind == "sparse"]

    def count(self, model: nn.Module) -> int:
        method = self.method(self.config.targets or ("all-linear",))
        return sum(method.counts(model).values())


def round_to_nf4(model: nn.Module, layers: list[str]) -> nn.Module:
    """Weights of these layers as 4 bits would give them, in place and dense."""
    for layer in find_targets(model, layers).values():
        layer.weight.data.copy_(quantise(layer.weight).dequantise())
    return model
