"""A teacher that follows its student: an average of weights whose memory grows.

    e <- a_t e + (1 - a_t) w,    a_t = alpha exp(-5 (1 - min(t + 1, ramp) / ramp)^2)
    without a ramp                a_t = min(1 - 1 / (t + 1), alpha)

>>> model = nn.Linear(3, 2)
>>> teacher = WeightEMA(model, alpha=0.997, ramp=40000)
>>> round(teacher.decay(0), 5)                        # at first the teacher is almost the student
0.00672
>>> teacher.update(model)
>>> teacher(torch.randn(4, 3)).requires_grad
False
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import ConfigError


class WeightEMA(nn.Module):
    """
    model    is copied
    alpha    memory in the end, in [0, 1)
    ramp     updates until then; 0 for none
    buffers  False: parameters alone are averaged, and the copy runs in training mode, so that batch
             normalisation takes the statistics of the batch at hand (and keeps its own running
             ones). True: buffers are averaged too and the copy runs in evaluation mode
    """

    updates: Tensor

    def __init__(
        self, model: nn.Module, alpha: float = 0.997, ramp: float = 40000, *, buffers: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise ConfigError(f"alpha = {alpha}", expected="from 0 to below 1")
        if ramp < 0:
            raise ConfigError(f"ramp = {ramp}", expected="0 or more updates")
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.alpha, self.ramp, self.buffers_too = alpha, ramp, buffers
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def decay(self, step: int) -> float:
        """a_t of the update number `step`, from 0."""
        if not self.ramp:
            return min(1 - 1 / (step + 1), self.alpha)
        return self.alpha * ramped((step + 1) / self.ramp)

    @torch.no_grad()
    def update(self, model: nn.Module, decay: float | None = None) -> None:
        """One step after the student; `decay` in place of the ramp's."""
        decay = self.decay(int(self.updates)) if decay is None else decay
        own, other = list(self.module.parameters()), list(model.parameters())
        if self.buffers_too:
            for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
                if mine.is_floating_point():
                    own.append(mine)
                    other.append(theirs)
                else:
                    mine.copy_(theirs)
        torch._foreach_lerp_(own, [t.detach() for t in other], 1 - decay)
        self.updates += 1

    def forward(self, x: Any) -> Any:
        self.module.train(not self.buffers_too)
        with torch.no_grad():
            return self.module(x)


def ramped(progress: float) -> float:
    """exp(-5 (1 - progress)^2) up to 1.

    >>> ramped(0.5), ramped(2.0)
    (0.2865..., 1.0)
    """
    return math.exp(-5 * (1 - min(progress, 1.0)) ** 2)
