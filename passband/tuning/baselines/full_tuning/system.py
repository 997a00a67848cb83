"""Full fine-tuning as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from passband.bench.system import Config
from passband.tuning.baselines.full_tuning.model import FullFineTuning
from passband.tuning.tuner import Tuner, TunerConfig


class FullConfig(TunerConfig):
    """Whole tensors and their training."""

    parameters: Literal["all", "vectors", "matrices"] = Field(
        "all", description="all of them, biases and norms, or the target matrices alone"
    )


class Full(Tuner):
    """
    >>> system = Full.from_preset("small", parameters="matrices")
    """

    Config: ClassVar[type[Config]] = FullConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"architecture": "llama-2-7b", "lr": 2e-5},
        "small": {"lr": 1e-3},
        "smoke": {"steps": 20, "batch_size": 8, "lr": 3e-3},
    }

    def method(self, targets: tuple[str, ...]) -> FullFineTuning:
        return FullFineTuning(self.config.parameters, targets)

    def count(self, model: nn.Module) -> int:
        known = dict(model.named_parameters())
        method = self.method(self.config.targets or ("all-linear",))
        return sum(known[name].numel() for name in method.names(model))
