"""BA-LoRA as a system: PiSSA with penalties on the output."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config
from passband.tuning.adaptation import Adaptation
from passband.tuning.ba_lora.model import BALoRA
from passband.tuning.factors import count_factors
from passband.tuning.handle import Handle
from passband.tuning.tuner import Tuner, TunerConfig


class BALoRAConfig(TunerConfig):
    """BA-LoRA and its training."""

    rank: int = Field(8, gt=0, description="of the factors")
    alpha: float | None = Field(None, gt=0, description="update times rank; null: equal to rank")
    l1: float = Field(0.025, ge=0, description="weight of consistency with the pretrained model")
    l2: float = Field(0.005, ge=0, description="weight of diversity")
    l3: float = Field(0.005, ge=0, description="weight of the spectrum")
    kind: Literal["auto", "understanding", "generation"] = Field(
        "auto", description="which penalties; auto: generation for language models"
    )
    variant: Literal["2026", "2024"] = Field("2026", description="which of the published forms")
    temperature: float = Field(2.0, gt=0, description="of the consistency term")
    top: int = Field(20, gt=1, description="logits of the entropy term")
    leading: int = Field(10, gt=0, description="singular values of the spectrum term")
    frobenius: bool = Field(True, description="divide the spectrum by the norm of the logits")
    l1_schedule: Literal["paper", "cosine", "adaptive", "constant"] = Field(
        "paper", description="of l1; paper: cosine for generation in variant 2026, else constant"
    )
    focus_schedule: Literal["paper", "two-phase", "linear", "quadratic", "constant"] = Field(
        "paper", description="of l2 and l3; paper: two-phase where l1 has its cosine, else constant"
    )
    hold: float = Field(
        0.2, ge=0, le=1, description="share of the run without l2 and l3, or of their warm-up"
    )
    ramp: float = Field(0.05, ge=0, le=1, description="share of the run in which they rise")
    lowest: float = Field(0.1, ge=0, le=1, description="share of l1 that is always there")
    start: Literal["pissa", "lora"] = Field("pissa", description="of the factors")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input; 0 with the start pissa")


# 100,000 examples once, in batches of 128.
_PAPER: dict[str, Any] = {
    "architecture": "llama-2-7b", "rank": 128, "lr": 2e-5, "batch_size": 128, "steps": 781,
    "kind": "generation", "precision": "bf16",
}
_UNDERSTANDING: dict[str, Any] = {"l1": 0.15, "l2": 0.03, "l3": 0.03, "leading": 5}


class BALoRATuner(Tuner):
    """
    >>> system = BALoRATuner.from_preset("small", l1=0.0)
    """

    Config: ClassVar[type[Config]] = BALoRAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "paper-mistral": {**_PAPER, "architecture": "mistral-7b"},
        "paper-gemma": {**_PAPER, "architecture": "gemma-7b"},
        "paper-nlu": {**_UNDERSTANDING, "architecture": "deberta-v3-base", "rank": 8, "lr": 3e-4,
                      "kind": "understanding"},
        "code-2024": {**_PAPER, "variant": "2024", "l1": 1e-4, "l2": 3e-4, "l3": 1e-4,
                      "leading": 3},
        "small": {},
        "small-nlu": {**_UNDERSTANDING, "rank": 4},
        "smoke": {"steps": 20, "batch_size": 8, "rank": 4, "lr": 2e-2, "leading": 3},
    }

    def method(self, targets: tuple[str, ...], kind: str = "generation") -> BALoRA:
        c = self.config
        return BALoRA(
            c.rank, c.alpha, c.l1, c.l2, c.l3, c.kind if c.kind != "auto" else kind, c.variant,
            c.temperature, c.top, c.leading, c.frobenius, c.l1_schedule, c.focus_schedule, c.hold,
            c.ramp, c.lowest, c.start, c.dropout, targets,
        )

    def attach(
        self, model: nn.Module, problem: Adaptation, budget: Budget, number: int = 0
    ) -> Handle:
        kind = "generation" if problem.kind in ("causal-lm", "masked-lm") else "understanding"
        method = self.method(self.config.targets or problem.targets, kind)
        return method.attach(
            model, problem.calibration, head=problem.head, steps=budget.steps,
            seed=self.seed + 10_007 * number,
        )

    def count(self, model: nn.Module) -> int:
        return count_factors(model, self.config.targets or ("all-linear",), self.config.rank)
