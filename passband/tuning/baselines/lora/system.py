"""peft's adapters as systems."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.system import Config
from passband.parts.edits import Edit
from passband.tuning.adaptation import Adaptation
from passband.tuning.baselines.lora.model import PeftAdapter, inject
from passband.tuning.handle import Handle
from passband.tuning.tuner import Tuner, TunerConfig


class PeftConfig(TunerConfig):
    """One of peft's adapters and its training."""

    kind: Literal["lora", "pissa", "dora", "shira", "vera", "ia3"] = Field(
        "lora", description="which of peft's adapters"
    )
    rank: int = Field(8, gt=0, description="of the factors")
    alpha: float | None = Field(None, gt=0, description="update times rank; null: equal to rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the factors")
    rank_stabilised: bool = Field(False, description="alpha over the root of the rank")


class Peft(Tuner):
    """
    >>> system = Peft.from_preset("small", kind="dora", rank=4)
    """

    Config: ClassVar[type[Config]] = PeftConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"architecture": "llama-2-7b", "rank": 128, "lr": 2e-5},
        "small": {"lr": 3e-3},
        "smoke": {"steps": 20, "batch_size": 8, "rank": 2, "lr": 2e-2},
    }

    def method(self, targets: tuple[str, ...]) -> PeftAdapter:
        c = self.config
        return PeftAdapter(c.kind, c.rank, c.alpha, c.dropout, c.rank_stabilised, targets)

    def finish(self, handle: Handle, problem: Adaptation) -> Edit:
        # What peft would write, not the dense difference that kinds without factors become here.
        kept = (p.numel() * p.element_size() for p in handle.parameters())
        self.facts["adapter_bytes"] = float(sum(kept))
        return super().finish(handle, problem)

    def count(self, model: nn.Module) -> int:
        method = self.method(self.config.targets or ("all-linear",))
        inject(model, method.config(model))
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
