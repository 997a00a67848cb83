"""Stationary mixture kernels in closed form, with their first and second derivatives.

    k(z)  = sum_q w_q E_q(z) cos(2 pi mu_q z)          z = x - x', one dimension; Q components
    k'    = sum_q w_q (E' cos - om E sin)              derivative in the first argument
    k''   = sum_q w_q (E'' cos - 2 om E' sin - om^2 E cos),  om = 2 pi mu
    Gaussian envelope    E = exp(-a z^2)                               spectrum: Gaussian mixture
    Matern-5/2 envelope  E = (1 + s r + s^2 r^2 / 3) exp(-s r),        spectrum: Student-t mixture
                         s = sqrt(5) a, r = |z|

Weights and scales live in the log domain (log w, log a); mu is in cycles per unit length. The
closed forms matter: automatic differentiation of |z| gives a wrong second derivative at 0.
Source: Wilson and Adams 2013 (spectral mixture); Fang et al. 2024, arXiv 2311.04465.

>>> theta = Theta.linspace(components=3, top=2.0)
>>> k, first, second = KERNELS["gm"].tables(torch.tensor([0.0, 0.1], dtype=torch.float64), theta)
>>> k.shape, bool(first[0] == 0), bool(second[0] < 0)
(torch.Size([2]), True, True)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Envelope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def gaussian(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E, E', E'' of exp(-a z^2); a is an inverse squared length."""
    value = torch.exp(-a * z * z)
    return value, -2 * a * z * value, (4 * a * a * z * z - 2 * a) * value


def matern52(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """E, E', E'' of the Matern-5/2 function; a is an inverse length."""
    s = math.sqrt(5.0) * a
    r = z.abs()
    decay = torch.exp(-s * r)
    third = s * s / 3
    return (
        (1 + s * r + third * r * r) * decay,
        -third * z * (1 + s * r) * decay,
        -third * (1 + s * r - s * s * r * r) * decay,
    )


class Theta(NamedTuple):
    """Parameters of one axis's kernel, each [Q], float64: log weights, log scales, frequencies."""

    log_w: Tensor
    log_a: Tensor
    mu: Tensor

    @classmethod
    def linspace(cls, components: int, top: float) -> Theta:
        """The paper's start: equal weights 1/Q, scales 1, frequencies linspace(0, top)."""
        zeros = torch.zeros(components, dtype=torch.float64)
        mu = torch.linspace(0, top, components, dtype=torch.float64)
        return cls(zeros - math.log(components), zeros.clone(), mu)


@dataclass(frozen=True)
class MixtureKernel:
    """One kernel family. `cosine=False` drops the frequencies (mu is then unused)."""

    title: str
    envelope: Envelope
    cosine: bool
    scale_per_bandwidth: tuple[float, int]  # a = (c x bandwidth)^power for a spectral deviation

    def tables(self, z: Tensor, theta: Theta) -> tuple[Tensor, Tensor, Tensor]:
        """k, k', k'' at differences z [...] -> three [...]; differentiable in theta."""
        w, a = theta.log_w.exp(), theta.log_a.exp()
        e, e1, e2 = self.envelope(z[..., None], a)  # [..., Q]
        if not self.cosine:
            return e @ w, e1 @ w, e2 @ w
        omega = 2 * math.pi * theta.mu
        phase = omega * z[..., None]
        cos, sin = torch.cos(phase), torch.sin(phase)
        return (
            (e * cos) @ w,
            (e1 * cos - omega * e * sin) @ w,
            (e2 * cos - 2 * omega * e1 * sin - omega * omega * e * cos) @ w,
        )

    def value(self, z: Tensor, theta: Theta) -> Tensor:
        """k alone, for likelihoods: [...] -> [...]."""
        e = self.envelope(z[..., None], theta.log_a.exp())[0]
        if self.cosine:
            e = e * torch.cos(2 * math.pi * theta.mu * z[..., None])
        return e @ theta.log_w.exp()

    def bandwidth(self, theta: Theta) -> Tensor:
        """Spread of each component's spectrum around its frequency, cycles per unit length [Q]."""
        factor, power = self.scale_per_bandwidth
        return torch.exp(theta.log_a / power) / factor

    def scale(self, bandwidth: float) -> float:
        """log a of a component with that spectral spread."""
        factor, power = self.scale_per_bandwidth
        return power * math.log(factor * bandwidth)


# Gaussian: spectral deviation sqrt(2 a) / (2 pi). Student-t: sqrt(5) a / (2 pi) as its width.
_GAUSS = (2 * math.pi / math.sqrt(2.0), 2)
_STUDENT = (2 * math.pi / math.sqrt(5.0), 1)

KERNELS = {
    "stm": MixtureKernel("GP-HM-StM (Student-t mixture spectrum)", matern52, True, _STUDENT),
    "gm": MixtureKernel("GP-HM-GM (Gaussian mixture spectrum)", gaussian, True, _GAUSS),
    "matern": MixtureKernel("GP-Matern (no frequencies)", matern52, False, _STUDENT),
    "se": MixtureKernel("GP-SE (no frequencies)", gaussian, False, _GAUSS),
}
