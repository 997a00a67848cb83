"""Score-based speech enhancement (SGMSE+, arXiv 2208.05830): a diffusion that ends in noisy speech.

    x_0 clean, y noisy: compressed complex spectra [B, F, T]

    dx = theta (y - x) dt + g(t) dw           clean speech drifts towards the noisy one (OUVE)
    x_t = mean(x_0, y, t) + sigma(t) z        z ~ CN(0, 1)
    s(x_t, y, t) = -network([x_t, y], t)      the score of x_t given y
    loss = E 1/2 sum |sigma(t) s + z|^2       t ~ U(t_eps, 1)
    enhance: from y + sigma(1) z backwards to t = 0 (`passband.parts.diffusion`)

>>> network = NCSNpp(bins=64, width=16, multipliers=(1, 2, 2), blocks=1)
>>> model = ScoreModel(network, OUVE())
>>> clean, noisy = torch.randn(2, 2, 64, 32, dtype=torch.complex64)
>>> model.loss(clean, noisy, torch.tensor([0.1, 0.9]), torch.randn_like(clean)).shape
torch.Size([2])
>>> sampler = PredictorCorrector(model.process, steps=3)
>>> sampler(model, noisy, torch.Generator().manual_seed(0)).shape
torch.Size([2, 64, 32])

`ScaledScore` is the later network (`ncsnpp_v2`), whose input and output have factors of t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from passband.parts.diffusion import OUVE, SDE, PredictorCorrector
from passband.parts.diffusion.sde import over
from passband.parts.ncsnpp import NCSNpp

__all__ = ["OUVE", "NCSNpp", "PredictorCorrector", "ScaledScore", "Scalings", "ScoreModel"]

Inputs = Literal["1", "edm"]
Inner = Literal["1", "1/sigma", "1/t"]
Skip = Literal["0", "edm"]
Outer = Literal["1", "sigma", "1/sigma", "edm"]
Weighting = Literal["1", "sigma^2", "edm"]


def as_channels(*spectra: Tensor) -> Tensor:
    """Complex [B, F, T] each -> real [B, 2 n, F, T]: real, imaginary, real, ...

    >>> as_channels(torch.zeros(3, 4, 5, dtype=torch.complex64)).shape
    torch.Size([3, 2, 4, 5])
    """
    return torch.stack([part for x in spectra for part in (x.real, x.imag)], dim=1)


def as_spectrum(channels: Tensor) -> Tensor:
    """Real [B, 2, F, T] -> complex [B, F, T]."""
    return torch.complex(channels[:, 0], channels[:, 1])


class ScoreModel(nn.Module):
    """The score of a process, by a network of [x_t, y] and t.

    network  real [B, 4, F, T], t [B] -> real [B, 2, F, T]; or, with `takes_complex`, complex
             [B, 2, F, T], t [B] -> complex [B, 1, F, T]
    """

    def __init__(self, network: nn.Module, process: SDE, *, takes_complex: bool = False) -> None:
        super().__init__()
        self.network, self.process, self.takes_complex = network, process, takes_complex

    def raw(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """What the network gives, complex [B, F, T]."""
        if self.takes_complex:
            found: Tensor = self.network(torch.stack([x, y], dim=1), t)[:, 0]
            return found
        return as_spectrum(self.network(as_channels(x, y), t))

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Score at x_t [B, F, T] given y [B, F, T], at times t [B] above 0."""
        return -self.raw(x, y, t)

    def loss(self, clean: Tensor, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """[B], a sum over bins and frames (so the size of a network's update depends on Adam).

        clean, noisy  complex [B, F, T];  t [B];  noise of the shape of clean, E|z|^2 = 1
        """
        x = self.process.perturb(clean, noisy, t, noise)
        sigma = over(self.process.std(t), x)
        return half_sum(sigma * self(x, noisy, t) + noise)


@dataclass(frozen=True)
class Scalings:
    """Factors of t around a network; the defaults leave it alone.

    c_in    of x_t and y: "1" or "edm", 1 / sqrt(sigma^2 + sigma_data^2)
    inner   of what comes out: "1", "1/sigma" or "1/t"
    c_skip  of x_t in the result: "0" or "edm", sigma_data^2 / (sigma^2 + sigma_data^2)
    c_out   of the network in the result: "1", "sigma", "1/sigma" or "edm",
            sigma sigma_data / sqrt(sigma^2 + sigma_data^2)
    Source: Karras et al., arXiv 2206.00364; for speech Richter et al., arXiv 2409.10753.
    """

    c_in: Inputs = "1"
    inner: Inner = "1"
    c_skip: Skip = "0"
    c_out: Outer = "1"
    sigma_data: float = 0.1


class ScaledScore(ScoreModel):
    """The score by a network with factors of t, trained on the score or on the clean mean.

    >>> network = NCSNpp(bins=64, width=16, multipliers=(1, 2, 2), blocks=1, divide="never")
    >>> model = ScaledScore(network, OUVE(), Scalings(inner="1/sigma"))
    >>> x = torch.zeros(1, 64, 8, dtype=torch.complex64)
    >>> model(x, x, torch.ones(1)).shape
    torch.Size([1, 64, 8])

    aim        "score": what comes out is the score; "denoiser": it is D, an estimate of
               mean(x_0, y, t), and the score is (D - x_t) / sigma^2
    weighting  of |D - mean|^2: "1", "sigma^2" or "edm", (sigma^2 + sigma_data^2) /
               (sigma sigma_data)^2; the score's loss always has sigma^2
    """

    def __init__(
        self, network: nn.Module, process: SDE, scalings: Scalings = Scalings(),
        aim: Literal["score", "denoiser"] = "score", weighting: Weighting = "1",
    ) -> None:
        super().__init__(network, process)
        self.scalings, self.aim, self.weighting = scalings, aim, weighting

    def output(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """c_skip x_t + c_out network: the score, or D."""
        sigma, data, one = self.process.std(t), self.scalings.sigma_data, torch.ones_like(t)
        norm = torch.sqrt(sigma**2 + data**2)
        c_in, inner, c_skip, c_out = (
            over(value, x) for value in (
                {"1": one, "edm": 1 / norm}[self.scalings.c_in],
                {"1": one, "1/sigma": 1 / sigma, "1/t": 1 / t}[self.scalings.inner],
                {"0": 0 * one, "edm": (data / norm) ** 2}[self.scalings.c_skip],
                {"1": one, "sigma": sigma, "1/sigma": 1 / sigma, "edm": sigma * data / norm}[
                    self.scalings.c_out
                ],
            )
        )
        return c_skip * x + c_out * inner * self.raw(c_in * x, c_in * y, t)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        found = self.output(x, y, t)
        if self.aim == "score":
            return found
        return (found - x) / over(self.process.std(t) ** 2, x)

    def loss(self, clean: Tensor, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        if self.aim == "score":
            return super().loss(clean, noisy, t, noise)
        mean = self.process.mean(clean, noisy, t)
        x = self.process.perturb(clean, noisy, t, noise)
        sigma, data = self.process.std(t), self.scalings.sigma_data
        weight = {
            "1": torch.ones_like(t), "sigma^2": sigma**2,
            "edm": (sigma**2 + data**2) / (sigma * data) ** 2,
        }[self.weighting]
        return weight * half_sum(self.output(x, noisy, t) - mean)


def half_sum(error: Tensor) -> Tensor:
    """1/2 sum |e|^2 of each item: [B, ...] -> [B]."""
    return 0.5 * (error.real.square() + error.imag.square()).flatten(1).sum(1)
