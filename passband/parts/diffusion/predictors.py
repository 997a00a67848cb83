"""Predictors: one step of the reverse process from time t to t - dt.

>>> from passband.parts.diffusion import VE
>>> process, score = VE(0.01, 1.0), (lambda x, y, t: -x)           # of a unit Gaussian, roughly
>>> x, t, dt = torch.ones(2, 3), torch.ones(2), torch.tensor(0.1)
>>> new, mean = ReverseDiffusion()(process, score, x, None, t, dt, torch.zeros_like)
>>> bool((new == mean).all())                                      # the noise was zero
True
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from passband.parts.diffusion.sde import SDE, Score, over

Noise = Callable[[Tensor], Tensor]
"""Standard normal noise of the shape and dtype of its argument."""


class Predictor(ABC):
    """evaluations  of the score a step"""

    evaluations: int = 1

    def sizes(self, times: Tensor) -> Tensor:
        """Sizes of the steps [N] from each of the times [N]; the last one ends at 0."""
        return times - torch.cat([times[1:], times.new_zeros(1)])

    @abstractmethod
    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, dt: Tensor,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        """x [B, ...] at t [B] -> (x at t - dt, the same without its noise)."""


class ReverseDiffusion(Predictor):
    """The process's own discretisation, reversed: x - f + G^2 score + G z.

    >>> ReverseDiffusion().sizes(torch.tensor([1.0, 0.5, 0.1]))
    tensor([0.5000, 0.4000, 0.1000])
    """

    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, dt: Tensor,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        f, scale = sde.discretize(x, y, t, dt)
        scale = over(scale, x)
        mean = x - f + scale**2 * score(x, y, t)
        return mean + scale * noise(x), mean


class EulerMaruyama(Predictor):
    """Euler and Maruyama's step of the reverse equation, of the fixed size 1 / N.

    It therefore ends near t_eps - 1 / N and not at 0: with many steps a little of y is left over.

    >>> EulerMaruyama().sizes(torch.tensor([1.0, 0.5, 0.1]))
    tensor([0.3333, 0.3333, 0.3333])
    """

    def sizes(self, times: Tensor) -> Tensor:
        return torch.full_like(times, 1 / len(times))

    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, dt: Tensor,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        mean = x - sde.reverse_drift(x, y, t, score(x, y, t)) * dt
        return mean + over(sde.diffusion(t), x) * dt.sqrt() * noise(x), mean


class NoPredictor(Predictor):
    """Leaves the state alone: the corrector does all the work.

    >>> NoPredictor().evaluations
    0
    """

    evaluations = 0

    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, dt: Tensor,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        return x, x


PREDICTORS: dict[str, type[Predictor]] = {
    "reverse_diffusion": ReverseDiffusion, "euler_maruyama": EulerMaruyama, "none": NoPredictor,
}
