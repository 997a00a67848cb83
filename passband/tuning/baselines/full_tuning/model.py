"""Training whole tensors of a pretrained model: what every cheaper method is compared with.

    all       every parameter
    vectors   biases and the gains of norms (BitFit; models without biases have the gains alone)
    matrices  the weights of the target modules, nothing else: the same set that adapters change

Source of the second: Ben Zaken, Goldberg, Ravfogel, BitFit, ACL 2022, arXiv 2106.10199.

>>> model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
>>> handle = FullFineTuning("vectors").attach(model)
>>> list(handle.trained())
['0.bias', '1.weight', '1.bias']
>>> optimizer = handle.optimizer(lr=1e-3)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from passband.parts.targets import find_targets
from passband.tuning.handle import Calibration
from passband.tuning.whole import WholeTensors

Parameters = Literal["all", "vectors", "matrices"]


@dataclass(frozen=True)
class FullFineTuning:
    """
    parameters  which of them to train
    targets     endings of module names; for "matrices" only
    """

    parameters: Parameters = "all"
    targets: tuple[str, ...] = ("all-linear",)

    def names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that are trained."""
        return _NAMES[self.parameters](model, self.targets)

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> WholeTensors:
        return WholeTensors(
            model, self.names(model), method=self, head=head, steps=steps, seed=seed, name=name
        )


_NAMES: dict[str, Callable[[nn.Module, Any], list[str]]] = {
    "all": lambda model, _: [n for n, _ in model.named_parameters()],
    "vectors": lambda model, _: [n for n, p in model.named_parameters() if p.ndim == 1],
    "matrices": lambda model, targets: [f"{n}.weight" for n in find_targets(model, targets)],
}
