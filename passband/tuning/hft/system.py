"""HFT as a system: half of the model is drawn anew for each round of training."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.budget import Budget
from passband.bench.system import Config
from passband.parts.edits import Edit
from passband.tuning.adaptation import Adaptation
from passband.tuning.handle import Handle
from passband.tuning.hft.model import HFT
from passband.tuning.hft.selection import draw, find_units
from passband.tuning.tuner import Tuner, TunerConfig
from passband.tuning.whole import WholeTensors


class HFTConfig(TunerConfig):
    """Half fine-tuning and its training."""

    ratio: float = Field(0.5, gt=0, lt=1, description="trained share of each category")
    strategy: Literal["category", "layer", "model"] = Field(
        "category", description="how the half is drawn: category is the method, others ablations"
    )
    half: Literal["trained", "reset"] = Field(
        "trained", description="train a half; or train everything and put a half back afterwards"
    )
    freeze_embeddings: bool = Field(False, description="keep the token embeddings as well")
    freeze_head: bool = Field(False, description="keep the output projection as well")
    freeze_final_norm: bool = Field(False, description="keep the norm after the last block as well")
    pull: float | None = Field(
        None, ge=0, description="null: the method; a number: the soft form with this lambda"
    )


class HalfFineTuning(Tuner):
    """
    >>> system = HalfFineTuning.from_preset("small", strategy="layer")
    """

    Config: ClassVar[type[Config]] = HFTConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"architecture": "llama-2-7b", "lr": 2e-5},
        "paper-13b": {"architecture": "llama-2-13b", "lr": 2e-5},
        "small": {"lr": 1e-3},
        "smoke": {"steps": 20, "batch_size": 8, "lr": 3e-3},
    }

    def method(self, targets: tuple[str, ...]) -> HFT:
        c = self.config
        return HFT(
            c.ratio, c.strategy, c.freeze_embeddings, c.freeze_head, c.freeze_final_norm, c.pull
        )

    def attach(
        self, model: nn.Module, problem: Adaptation, budget: Budget, number: int = 0
    ) -> Handle:
        if self.config.half == "trained":
            return super().attach(model, problem, budget, number)
        return WholeTensors(
            model, [n for n, _ in model.named_parameters()], head=problem.head,
            steps=budget.steps, seed=self.seed,
        )

    def finish(self, handle: Handle, problem: Adaptation) -> Edit:
        edit, c = handle.edit(), self.config
        if c.half == "trained":
            return edit
        units = find_units(handle.model)
        back = draw(units, strategy=c.strategy, ratio=c.ratio, seed=self.seed)
        names = {p for u in back for p in u.parameters}
        left = {n: change for n, change in edit.changes.items() if n not in names}
        return Edit(left, edit.base, edit.about)

    def count(self, model: nn.Module) -> int:
        method, units = self.method(()), find_units(model)
        drawn = draw(units, strategy=method.strategy, ratio=method.ratio, seed=self.seed)
        known = dict(model.named_parameters())
        outside = method.outside(model, units)
        return sum(u.size for u in drawn) + sum(known[n].numel() for n in outside)
