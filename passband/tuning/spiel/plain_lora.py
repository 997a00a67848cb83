"""LoRA beside SpIEL on bases that no task gives, such as one rounded to 4 bits.

>>> system = PlainLoRA.from_preset("small", rank=4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from passband.bench.system import Config
from passband.parts.low_rank import LowRankFactors
from passband.tuning.factors import FactorHandle, start_factors
from passband.tuning.handle import Calibration
from passband.tuning.tuner import Tuner, TunerConfig


class PlainLoRAConfig(TunerConfig):
    """Its size."""

    rank: int = Field(4, gt=0, description="of the factors")


@dataclass(frozen=True)
class _LoRA:
    rank: int
    targets: tuple[str, ...]

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> FactorHandle:
        generator = torch.Generator().manual_seed(seed)

        def start(_: str, weight: Tensor) -> LowRankFactors:
            # As in peft: A uniform in +-1/sqrt(n), B zero.
            m, n = weight.shape
            a = (2 * torch.rand(self.rank, n, generator=generator) - 1) / n**0.5
            return LowRankFactors(a, torch.zeros(m, self.rank))

        factors = start_factors(model, self.targets, self.rank, start, head=tuple(head))
        return FactorHandle(model, factors, head=head, steps=steps, seed=seed, name=name)


class PlainLoRA(Tuner):
    """W + B A."""

    Config: ClassVar[type[Config]] = PlainLoRAConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {}, "smoke": {"steps": 20, "batch_size": 8, "rank": 2, "lr": 2e-2},
    }

    def method(self, targets: tuple[str, ...]) -> _LoRA:
        return _LoRA(self.config.rank, targets)
