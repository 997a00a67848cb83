"""Correctors: steps of Langevin dynamics that stay at one time and pull the state to its density.

    x <- x + eps score + sqrt(2 eps) z

>>> from passband.parts.diffusion import OUVE
>>> corrector = AnnealedLangevin(r=0.5, steps=1)
>>> score = lambda x, y, t: -x
>>> corrector(OUVE(), score, torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2), torch.zeros_like)
tensor([[0.9243, 0.9243, 0.9243],
        [0.9243, 0.9243, 0.9243]])
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from passband.errors import ConfigError
from passband.parts.diffusion.predictors import Noise
from passband.parts.diffusion.sde import SDE, Score, over


class Corrector(ABC):
    """evaluations  of the score a call"""

    @property
    @abstractmethod
    def evaluations(self) -> int: ...

    @abstractmethod
    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, noise: Noise
    ) -> Tensor:
        """x [B, ...] at t [B] -> x at the same time."""


@dataclass(frozen=True)
class _Stepping(Corrector):
    """
    r      signal-to-noise ratio of a step, > 0
    steps  a call, >= 1
    """

    r: float = 0.5
    steps: int = 1

    def __post_init__(self) -> None:
        if not (self.r > 0 and math.isfinite(self.r)):
            raise ConfigError(f"a corrector's r = {self.r}", expected="a number above 0")
        if self.steps < 1:
            raise ConfigError(
                f"a corrector of {self.steps} steps", expected="at least 1",
                mend="take NoCorrector",
            )

    @property
    def evaluations(self) -> int:
        return self.steps

    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, noise: Noise
    ) -> Tensor:
        for _ in range(self.steps):
            gradient, z = score(x, y, t), noise(x)
            size = over(self.size(sde, t, gradient, z), x)
            x = x + size * gradient + (2 * size).sqrt() * z
        return x

    @abstractmethod
    def size(self, sde: SDE, t: Tensor, gradient: Tensor, z: Tensor) -> Tensor:
        """eps of a step [B]."""


class AnnealedLangevin(_Stepping):
    """Steps of a size that the process's own spread gives: eps = 2 (r std(t))^2.

    >>> AnnealedLangevin(r=0.33, steps=2).evaluations
    2
    """

    def size(self, sde: SDE, t: Tensor, gradient: Tensor, z: Tensor) -> Tensor:
        return 2 * (self.r * sde.std(t)) ** 2


class Langevin(_Stepping):
    """Steps of a size that the norms give: eps = 2 (r |z| / |score|)^2, for each item by itself.

    >>> from passband.parts.diffusion import VE
    >>> score = lambda x, y, t: -x
    >>> Langevin(r=0.1)(VE(), score, torch.ones(1, 2), None, torch.ones(1), torch.ones_like)
    tensor([[1.1800, 1.1800]])
    """

    def size(self, sde: SDE, t: Tensor, gradient: Tensor, z: Tensor) -> Tensor:
        norms = [v.abs().flatten(1).square().sum(1) for v in (z, gradient)]
        return 2 * self.r**2 * norms[0] / norms[1].clamp_min(1e-20)


@dataclass(frozen=True)
class NoCorrector(Corrector):
    """Leaves the state alone: half of the evaluations of a sampler are saved.

    >>> NoCorrector().evaluations
    0
    """

    @property
    def evaluations(self) -> int:
        return 0

    def __call__(
        self, sde: SDE, score: Score, x: Tensor, y: Tensor | None, t: Tensor, noise: Noise
    ) -> Tensor:
        return x


CORRECTORS: dict[str, type[_Stepping]] = {
    "annealed_langevin": AnnealedLangevin, "langevin": Langevin,
}


def corrector(name: str, r: float = 0.5, steps: int = 1) -> Corrector:
    """By name; "none" or zero steps give none.

    >>> corrector("langevin", r=0.2)
    Langevin(r=0.2, steps=1)
    """
    return NoCorrector() if name == "none" or steps == 0 else CORRECTORS[name](r, steps)
