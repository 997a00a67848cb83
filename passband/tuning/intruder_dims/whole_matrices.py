"""Full fine-tuning of the same matrices that LoRA adapts: what LoRA is compared with.

Embeddings, norms and biases stay as they are, so that both change the same tensors.

>>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
>>> sorted(WholeMatrices().attach(model).trained())
['0.weight']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from passband.parts.targets import find_targets
from passband.tuning.handle import Calibration
from passband.tuning.whole import WholeTensors


@dataclass(frozen=True)
class WholeMatrices:
    """targets: endings of module names, as LoRA's."""

    targets: tuple[str, ...] = ("all-linear",)

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> WholeTensors:
        names = [
            f"{path}.weight" if path else "weight"
            for path in find_targets(model, self.targets, head=head)
        ]
        return WholeTensors(
            model, names, method=self, head=head, steps=steps, seed=seed, name=name
        )
