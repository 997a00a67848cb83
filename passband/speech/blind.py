"""Separators that don't know which talker is which: trained by the best permutation.

    class Mine(BlindSeparator):
        Config = MineConfig                       # a SeparatorConfig
        def build(self): return Network(self.config.talkers)     # x [B, L] -> y [B, K, L]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.losses.separation import separation_loss
from passband.speech.separator import Separator

if TYPE_CHECKING:
    from passband.data.speech.pairs import Example, Pairs


class BlindSeparator(Separator):
    """Base of separators whose network gives [B, K, L] for [B, L].

    Training lowers the negative SNR of the best permutation, validation gives the SI-SDR in dB.
    """

    any_order = True  # False: output k is always source k

    def process(self, mixtures: Tensor) -> Tensor:
        found: Tensor = self.network(mixtures)
        return found

    def objective(self, module: Any, batch: Example) -> Tensor:
        self._check(batch.target.shape[-2])
        return separation_loss(module(batch.input), batch.target, self.any_order)

    def validate(self, module: Any, pairs: Pairs) -> Mapping[str, float]:
        """{"si_sdr": dB}, the mean over whole recordings."""
        total = 0.0
        for i in range(len(pairs)):
            mixture, targets = pairs[i]
            with torch.no_grad():
                found = module(mixture[None])
            total -= float(
                separation_loss(found, targets[None], self.any_order, scale_counts=False)
            )
        return {"si_sdr": total / len(pairs)}

    def _check(self, references: int) -> None:
        if references != self.config.talkers:
            raise DataError(
                f"{references} references for a separator of {self.config.talkers} talkers",
                expected="as many references as talkers",
                mend=f"create(..., talkers={references})",
            )
