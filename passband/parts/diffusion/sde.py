"""Diffusion processes with closed-form marginals (score-based models, arXiv 2011.13456).

    dx = f(x, y, t) dt + g(t) dw,   0 <= t <= 1       y: what the process is conditioned on, or None
    x_t | x_0, y  ~  N( mean(x_0, y, t), std(t)^2 )

Shapes: x, y [B, ...] of any rank, real or complex; t [B], one time an item, or a 0-d tensor. Noise
of a complex state is circular, E|z|^2 = 1, as `torch.randn` draws it.

>>> process = OUVE(theta=1.5, sigma_min=0.05, sigma_max=0.5)
>>> t = torch.tensor([0.03, 1.0])
>>> [round(v, 4) for v in process.std(t).tolist()]
[0.0188, 0.389]
>>> clean, noisy = torch.zeros(2, 4, 8), torch.ones(2, 4, 8)
>>> process.mean(clean, noisy, t)[1, 0, 0].item()       # has drifted most of the way: 1 - e^-1.5
0.776...
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from passband.errors import ConfigError

Score = Callable[[Tensor, "Tensor | None", Tensor], Tensor]
"""(x [B, ...], y, t [B]) -> score of the shape of x: -(x - mean) / variance of a Gaussian.

For complex x the variance is that of both parts together.
"""


def over(t: Tensor, x: Tensor) -> Tensor:
    """Times or factors [B] (or 0-d) against a state [B, ...].

    >>> over(torch.ones(2), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


class SDE(ABC):
    """A process with t in [0, 1]. Subclasses give drift, diffusion and the marginal."""

    @abstractmethod
    def drift(self, x: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        """f(x, y, t), of the shape of x."""

    @abstractmethod
    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), of the shape of t."""

    @abstractmethod
    def mean(self, x0: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        """E[x_t | x_0, y]."""

    @abstractmethod
    def std(self, t: Tensor) -> Tensor:
        """Standard deviation of x_t given x_0, of the shape of t."""

    @abstractmethod
    def prior_mean(self, y: Tensor) -> Tensor:
        """Centre of the distribution at t = 1, where sampling starts."""

    def perturb(self, x0: Tensor, y: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = mean + std * noise.

        >>> process = VE(sigma_min=0.01, sigma_max=1.0)
        >>> x0 = torch.zeros(3, 8, 8)
        >>> process.perturb(x0, None, torch.full((3,), 0.5), torch.ones_like(x0)).amax().item()
        0.099...
        """
        return self.mean(x0, y, t) + over(self.std(t), x0) * noise

    def prior(self, y: Tensor, noise: Tensor) -> Tensor:
        """A state at t = 1: the centre plus std(1) * noise."""
        return self.prior_mean(y) + self.std(torch.ones((), device=y.device)) * noise

    def discretize(
        self, x: Tensor, y: Tensor | None, t: Tensor, dt: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One forward step x + f + G z of size dt: (f, G), by Euler and Maruyama by default."""
        return self.drift(x, y, t) * dt, self.diffusion(t) * dt.sqrt()

    def reverse_drift(self, x: Tensor, y: Tensor | None, t: Tensor, score: Tensor) -> Tensor:
        """Drift of the reverse-time process with the same marginals: f - g^2 score."""
        return self.drift(x, y, t) - over(self.diffusion(t), x) ** 2 * score

    def flow(self, x: Tensor, y: Tensor | None, t: Tensor, score: Tensor) -> Tensor:
        """dx/dt of the ODE with the same marginals: f - g^2 score / 2."""
        return self.drift(x, y, t) - 0.5 * over(self.diffusion(t), x) ** 2 * score


@dataclass(frozen=True)
class OUVE(SDE):
    """Ornstein-Uhlenbeck process that drifts towards y while its variance explodes.

    >>> OUVE().prior(torch.ones(1, 4), torch.zeros(1, 4))
    tensor([[1., 1., 1., 1.]])

        f = theta (y - x),    g = sigma_min (sigma_max / sigma_min)^t sqrt(2 L),
        mean = e^(-theta t) x_0 + (1 - e^(-theta t)) y,
        std^2 = sigma_min^2 L [(sigma_max / sigma_min)^(2t) - e^(-2 theta t)] / (theta + L),
        L = ln(sigma_max / sigma_min)

    theta                 stiffness, 1 / unit of time, >= 0; with 0 the mean stays at x_0
    sigma_min, sigma_max  0 < sigma_min < sigma_max, in the unit of x
    Source: Richter et al., arXiv 2208.05830, section III.
    """

    theta: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    def __post_init__(self) -> None:
        if not (self.theta >= 0 and math.isfinite(self.theta)):
            raise ConfigError(f"theta = {self.theta}", expected="a stiffness >= 0")
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ConfigError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}",
                expected="0 < sigma_min < sigma_max",
            )

    @property
    def log_ratio(self) -> float:
        """L."""
        return math.log(self.sigma_max / self.sigma_min)

    def drift(self, x: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        return self.theta * (self._needed(y) - x)

    def diffusion(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self.log_ratio * t) * math.sqrt(2 * self.log_ratio)

    def mean(self, x0: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        kept = over(torch.exp(-self.theta * t), x0)
        return kept * x0 + (1 - kept) * self._needed(y)

    def std(self, t: Tensor) -> Tensor:
        # The difference of the two exponentials is an expm1: no cancellation at small t.
        rate = self.theta + self.log_ratio
        grown = torch.exp(-2 * self.theta * t) * torch.expm1(2 * rate * t)
        return self.sigma_min * torch.sqrt(self.log_ratio / rate * grown)

    def prior_mean(self, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def _needed(y: Tensor | None) -> Tensor:
        if y is None:
            raise ConfigError("a process that drifts towards y got no y", expected="a tensor y")
        return y


@dataclass(frozen=True)
class VE(SDE):
    """Variance-exploding process without drift; sampling starts from pure noise.

    >>> VE(0.05, 0.5).prior(torch.ones(1, 2), torch.zeros(1, 2))      # y gives only the shape
    tensor([[0., 0.]])

        f = 0,   g as `OUVE`,   mean = x_0,   std^2 = sigma_min^2 [(sigma_max / sigma_min)^(2t) - 1]

    It is `OUVE` with theta = 0 but for its start. A score model may still look at y.
    sigma_min, sigma_max  0 < sigma_min < sigma_max; the latter well above the spread of the data
    Source: Song et al., arXiv 2011.13456, appendix C.
    """

    sigma_min: float = 0.05
    sigma_max: float = 0.5

    def __post_init__(self) -> None:
        OUVE(0.0, self.sigma_min, self.sigma_max)  # checks the two

    def drift(self, x: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        return torch.zeros_like(x)

    def diffusion(self, t: Tensor) -> Tensor:
        return OUVE(0.0, self.sigma_min, self.sigma_max).diffusion(t)

    def mean(self, x0: Tensor, y: Tensor | None, t: Tensor) -> Tensor:
        return x0

    def std(self, t: Tensor) -> Tensor:
        return OUVE(0.0, self.sigma_min, self.sigma_max).std(t)

    def prior_mean(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)
