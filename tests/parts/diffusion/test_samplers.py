"""Samplers on Gaussians, where the score is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from passband.errors import ConfigError, PassbandError
from passband.parts.diffusion import (
    OUVE,
    SDE,
    VE,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    NoCorrector,
    NoPredictor,
    PredictorCorrector,
    ProbabilityFlow,
)
from passband.parts.diffusion.correctors import corrector
from passband.parts.diffusion.sde import over


@dataclass
class Gaussian:
    """x_0 ~ CN(m, s^2) under a process: its score at any time, without any network."""

    sde: SDE
    m: complex
    s: float
    calls: int = 0

    def moments(self, x: Tensor, y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        mean = self.sde.mean(torch.full_like(x, self.m), y, t)
        # How much of x_0 is left in the mean, whatever the process.
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        kept = self.sde.mean(one, zero, t)
        return mean, (kept * self.s) ** 2 + self.sde.std(t) ** 2

    def score(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        mean, variance = self.moments(x, y, t)
        return -(x - mean) / over(variance, x)


Y, M, S, BINS = 1.0 - 0.5j, 0.3 + 0.2j, 0.1, 20_000


def errors(steps: int, seed: int = 0, **settings) -> tuple[float, float]:
    """Of the mean, absolute, and of the spread, relative, over 20,000 independent bins."""
    sde = OUVE()
    y = torch.full((1, BINS), Y, dtype=torch.complex128)
    sampler = PredictorCorrector(sde, steps=steps, **settings)
    x = sampler(Gaussian(sde, M, S).score, y, torch.Generator().manual_seed(seed))
    spread = (x - x.mean()).abs().square().mean().sqrt()
    return abs(complex(x.mean()) - M), abs(float(spread) / S - 1)


def test_thirty_steps_are_exact_to_two_hundredths():
    mean, spread = errors(30)
    assert mean < 0.02
    assert spread < 0.1


def test_the_error_falls_with_the_number_of_steps():
    means = [errors(n)[0] for n in (10, 20, 50, 100)]
    assert means == sorted(means, reverse=True)
    assert means[-1] < means[0] / 5


@pytest.mark.parametrize("settings", [
    {"corrector": NoCorrector()},
    {"corrector": Langevin(r=0.3)},
    {"corrector": AnnealedLangevin(r=0.3, steps=2)},
    {"predictor": EulerMaruyama()},
])
def test_the_other_settings_are_near_it_too(settings):
    mean, spread = errors(50, **settings)
    assert mean < 0.03
    assert spread < 0.1


def test_a_corrector_alone_keeps_a_density():
    """Langevin's steps at one time: a sample of p_t stays one."""
    sde, t = OUVE(), torch.full((1,), 0.5, dtype=torch.float64)
    data = Gaussian(sde, M, S)
    y = torch.full((1, BINS), Y, dtype=torch.complex128)
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    mean, variance = data.moments(y, y, t)
    x = mean + variance.sqrt() * noise(y)
    for _ in range(20):
        x = AnnealedLangevin(r=0.2)(sde, data.score, x, y, t, noise)
    assert abs(complex(x.mean() - mean[0, 0])) < 0.005
    assert float((x - mean).abs().square().mean() / variance) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("sde", [OUVE(), VE(0.05, 2.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_flow_of_a_gaussian_is_a_straight_map(sde, dtype):
    """x(t) = mean(t) + sqrt(var(t) / var(1)) (x(1) - mean(1))."""
    m, y = (M, Y) if dtype.is_complex else (0.3, 1.0)
    data = Gaussian(sde, m, S)
    given = torch.full((3, 50), y, dtype=dtype)
    start = torch.randn(given.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    found = ProbabilityFlow(sde, denoise=False)(data.score, given, lambda like: start)
    first, begin = data.moments(given, given, torch.ones(()))
    last, end = data.moments(given, given, torch.full((), 0.03))
    expected = last + (end / begin).sqrt() * (sde.prior(given, start) - first)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_flow_ends_with_a_step_to_zero():
    """x - theta (y - x) dt + g^2 dt score, from t_eps with dt = t_eps."""
    sde, dt = OUVE(), torch.tensor(0.03, dtype=torch.float64)
    y = torch.full((1, 50), Y, dtype=torch.complex128)
    start = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    score = Gaussian(sde, M, S).score
    x = ProbabilityFlow(sde, denoise=False)(score, y, lambda like: start)
    expected = x - 1.5 * (y - x) * dt + sde.diffusion(dt) ** 2 * dt * score(x, y, dt)
    found = ProbabilityFlow(sde)(score, y, lambda like: start)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_items_of_a_batch_do_not_see_each_other():
    y = torch.tensor([[1.0], [3.0], [-2.0]]).expand(3, 40)
    score = Gaussian(OUVE(), 0.3, S).score
    noise = torch.randn(1000, 3, 40, generator=torch.Generator().manual_seed(0))
    for sampler in (
        PredictorCorrector(OUVE(), corrector=Langevin(r=0.3), steps=5), ProbabilityFlow(OUVE())
    ):
        def field(items: list[int]):
            draws = iter(noise)
            return lambda like: next(draws)[items]

        whole = sampler(score, y, field([0, 1, 2]))
        apart = torch.cat([sampler(score, y[i : i + 1], field([i])) for i in range(3)])
        torch.testing.assert_close(whole, apart, rtol=1e-5, atol=1e-5)


def test_evaluations_are_counted():
    for settings in (
        {}, {"corrector": NoCorrector()}, {"predictor": NoPredictor()},
        {"corrector": AnnealedLangevin(steps=3)},
    ):
        data = Gaussian(OUVE(), 0.3, S)
        sampler = PredictorCorrector(OUVE(), steps=7, **settings)
        sampler(data.score, torch.zeros(1, 4), torch.Generator().manual_seed(0))
        assert data.calls == sampler.evaluations
    assert PredictorCorrector(OUVE()).evaluations == 60


def test_one_step_from_the_start_to_the_end():
    """N = 1: from t = 1 to 0 at once, x_mean = x - f + g^2 score."""
    sampler = PredictorCorrector(OUVE(), corrector=NoCorrector(), steps=1)
    y = torch.ones(1, 3)
    found = sampler(lambda x, y, t: torch.zeros_like(x), y, torch.ones_like)
    one = torch.ones(())
    x = y + OUVE().std(one)
    expected = x - 1.5 * (y - x)
    # The grid of one point is [1], its step 1.
    torch.testing.assert_close(found, expected)


def test_seeds():
    score = Gaussian(OUVE(), 0.3, S).score
    sampler = PredictorCorrector(OUVE(), steps=3)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 0, 1)]
    first, again, other = (sampler(score, torch.ones(2, 5), g) for g in seeds)
    assert first.equal(again)
    assert not first.equal(other)


@pytest.mark.parametrize(("build", "name"), [
    (lambda: PredictorCorrector(OUVE(), steps=0), "N = 0"),
    (lambda: PredictorCorrector(OUVE(), t_eps=0.0), "t_eps = 0"),
    (lambda: PredictorCorrector(OUVE(), t_eps=1.0), "t_eps = 1"),
    (lambda: ProbabilityFlow(OUVE(), t_eps=-0.1), "t_eps = -0.1"),
    (lambda: ProbabilityFlow(OUVE(), rtol=0.0), "rtol = 0"),
    (lambda: AnnealedLangevin(r=0.0), "r = 0"),
    (lambda: Langevin(r=float("nan")), "r = nan"),
    (lambda: AnnealedLangevin(steps=0), "0 steps"),
])
def test_settings_out_of_range(build, name):
    with pytest.raises(ConfigError, match=name):
        build()


def test_a_flow_that_blows_up_says_so():
    def broken(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, float("nan"))

    with pytest.raises(PassbandError, match="not finite at t = 1"):
        ProbabilityFlow(OUVE())(broken, torch.ones(1, 2), torch.Generator().manual_seed(0))


def test_correctors_by_name():
    assert corrector("none") == corrector("langevin", steps=0) == NoCorrector()
    assert corrector("annealed_langevin", r=0.33) == AnnealedLangevin(0.33)
