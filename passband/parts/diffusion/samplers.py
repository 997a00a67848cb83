"""Samplers: from noise at t = 1 to data at t = 0, given a score.

>>> from passband.parts.diffusion.sde import OUVE, over
>>> process = OUVE()
>>> def score(x, y, t):                   # of data that are all zero: the marginal's own
...     gap = x - process.mean(torch.zeros_like(x), y, t)
...     return -gap / over(process.std(t) ** 2, x)
>>> sampler = PredictorCorrector(process, steps=30)
>>> sample = sampler(score, torch.ones(4, 16, 8), torch.Generator().manual_seed(0))
>>> sample.shape, bool(sample.abs().mean() < 0.1), sampler.evaluations
(torch.Size([4, 16, 8]), True, 60)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from passband.errors import ConfigError, PassbandError
from passband.parts.diffusion.correctors import AnnealedLangevin, Corrector
from passband.parts.diffusion.predictors import Noise, Predictor, ReverseDiffusion
from passband.parts.diffusion.sde import SDE, Score


class Sampler(Protocol):
    """(score, y [B, ...], noise) -> x_0 of the shape of y."""

    def __call__(
        self, score: Score, y: Tensor, noise: Noise | torch.Generator | None = None
    ) -> Tensor: ...


def drawn_from(noise: Noise | torch.Generator | None) -> Noise:
    """A source of noise: a function of a tensor as it is, or draws of a generator.

    >>> draw = drawn_from(torch.Generator().manual_seed(0))
    >>> draw(torch.zeros(2, 3, dtype=torch.complex64)).dtype
    torch.complex64
    """
    if callable(noise):
        return noise

    def draw(like: Tensor) -> Tensor:
        device = noise.device if noise is not None else like.device
        return torch.randn(
            like.shape, dtype=like.dtype, device=device, generator=noise
        ).to(like.device)

    return draw


@dataclass(frozen=True)
class PredictorCorrector:
    """N steps of a corrector and a predictor each, from t = 1 over t_eps to 0.

    >>> from passband.parts.diffusion import VE
    >>> PredictorCorrector(VE(), steps=4, t_eps=0.1).times()
    tensor([1.0000, 0.7000, 0.4000, 0.1000])

    steps    N >= 1, times evenly from 1 to t_eps
    t_eps    the last time at which the score is asked for, in (0, 1)
    denoise  return the last step without its noise
    Raises `ConfigError` for settings out of range.
    Source: Song et al., arXiv 2011.13456, algorithm 1; the corrector comes first.
    """

    sde: SDE
    predictor: Predictor = field(default_factory=ReverseDiffusion)
    corrector: Corrector = field(default_factory=AnnealedLangevin)
    steps: int = 30
    t_eps: float = 0.03
    denoise: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"a sampler of N = {self.steps} steps", expected="at least 1")
        _check_start(self.t_eps)

    @property
    def evaluations(self) -> int:
        """Of the score a sample."""
        return self.steps * (self.predictor.evaluations + self.corrector.evaluations)

    def times(self) -> Tensor:
        """[N]; a single step goes from t = 1 to 0 at once."""
        return torch.linspace(1.0, self.t_eps, self.steps)

    def __call__(
        self, score: Score, y: Tensor, noise: Noise | torch.Generator | None = None
    ) -> Tensor:
        """
        score  (x, y, t [B]) -> [B, ...]
        y      [B, ...], real or complex
        noise  a generator, or a function of a tensor; None: torch's own generator. The first draw
               is that of the start, then one a corrector step and one a predictor, in turns
        """
        draw = drawn_from(noise)
        with torch.no_grad():
            x = mean = self.sde.prior(y, draw(y))
            times = self.times().to(y.device)
            for t, dt in zip(times, self.predictor.sizes(times), strict=True):
                at = t.expand(y.shape[0])
                x = self.corrector(self.sde, score, x, y, at, draw)
                x, mean = self.predictor(self.sde, score, x, y, at, dt, draw)
        return mean if self.denoise else x


@dataclass(frozen=True)
class ProbabilityFlow:
    """The deterministic ODE with the process's marginals, by Runge and Kutta's pair of order 5(4).

    >>> from passband.parts.diffusion import VE
    >>> score = lambda x, y, t: -x / (1 + VE().std(t).reshape(-1, 1) ** 2)   # of unit Gaussians
    >>> sample = ProbabilityFlow(VE())(score, torch.zeros(2, 500), torch.Generator().manual_seed(0))
    >>> sample.shape
    torch.Size([2, 500])

    t_eps    where the integration ends, in (0, 1)
    denoise  a last step without noise from t_eps to 0
    The step sizes of each item are its own, so a batch changes nothing; items are integrated one
    after the other in double precision.
    Raises `PassbandError` when the tolerances can't be met or the score is not finite.
    """

    sde: SDE
    t_eps: float = 0.03
    rtol: float = 1e-5
    atol: float = 1e-5
    method: str = "RK45"
    denoise: bool = True

    def __post_init__(self) -> None:
        _check_start(self.t_eps)
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}", expected="within (0, 1)")

    def __call__(
        self, score: Score, y: Tensor, noise: Noise | torch.Generator | None = None
    ) -> Tensor:
        """As `PredictorCorrector`; the only noise is that of the start."""
        with torch.no_grad():
            start = self.sde.prior(y, drawn_from(noise)(y))
            items = [self._solve(score, s[None], c[None]) for s, c in zip(start, y, strict=True)]
        return torch.cat(items)

    def _solve(self, score: Score, start: Tensor, y: Tensor) -> Tensor:
        def state(flat: np.ndarray) -> Tensor:
            x = torch.from_numpy(np.ascontiguousarray(flat)).reshape(start.shape)
            return x.to(dtype=start.dtype, device=start.device)

        def slope(t: float, flat: np.ndarray) -> np.ndarray:
            x, at = state(flat), y.real.new_full((1,), t)
            found: np.ndarray = self.sde.flow(x, y, at, score(x, y, at)).cpu().numpy()
            if not np.isfinite(found).all():  # the solver would look for a step size for ever
                raise PassbandError(
                    f"the score is not finite at t = {t:.3g}", expected="a trained, finite score"
                )
            return found.ravel()

        solved = solve_ivp(
            slope, (1.0, self.t_eps), start.cpu().numpy().ravel(),
            rtol=self.rtol, atol=self.atol, method=self.method,
        )
        if not solved.success:
            raise PassbandError(
                f"the probability flow could not be integrated: {solved.message}",
                mend="raise rtol and atol, or take the predictor-corrector sampler",
            )
        x = state(solved.y[:, -1])
        if not self.denoise:
            return x
        end = x.real.new_tensor(self.t_eps)
        return ReverseDiffusion()(self.sde, score, x, y, end.expand(1), end, torch.zeros_like)[1]


def _check_start(t_eps: float) -> None:
    if not 0 < t_eps < 1:
        raise ConfigError(
            f"t_eps = {t_eps}", expected="a time in (0, 1): the score is singular at 0",
            mend="0.03 is usual",
        )
