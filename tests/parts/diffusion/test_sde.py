"""Processes against their sheet's figures, against a simulation, and against each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from passband.errors import ConfigError
from passband.parts.diffusion import OUVE, VE

TIMES = torch.tensor([0.03, 0.1, 0.5, 1.0], dtype=torch.float64)


def test_the_published_figures():
    process = OUVE(theta=1.5, sigma_min=0.05, sigma_max=0.5)
    kept = process.mean(torch.ones(4), torch.zeros(4), TIMES)
    for found, expected in (
        (process.std(TIMES), [0.018830, 0.035746, 0.121657, 0.388983]),
        (kept, [0.955997, 0.860708, 0.472367, 0.223130]),
        (process.diffusion(TIMES), [0.114972, 0.135081, 0.339307, 1.072983]),
    ):
        assert found.tolist() == pytest.approx(expected, abs=1e-6)


@given(
    theta=st.floats(0.0, 5.0), low=st.floats(0.01, 0.2), ratio=st.floats(1.5, 50.0),
    t=st.floats(1e-3, 1.0),
)
def test_the_spread_is_the_integral_of_the_diffusion(theta, low, ratio, t):
    """std^2 = int_0^t e^{-2 theta (t - s)} g(s)^2 ds, by quadrature."""
    process = OUVE(theta, low, low * ratio)

    def slope(s: float) -> float:
        g = float(process.diffusion(torch.tensor(s, dtype=torch.float64)))
        return math.exp(-2 * theta * (t - s)) * g**2

    found = float(process.std(torch.tensor(t, dtype=torch.float64)))
    assert found**2 == pytest.approx(quad(slope, 0, t, epsrel=1e-10)[0], rel=1e-6)


def test_single_precision_is_enough_at_small_times():
    t = torch.logspace(-6, 0, 20, dtype=torch.float64)
    torch.testing.assert_close(
        OUVE().std(t.float()).double(), OUVE().std(t), rtol=1e-5, atol=0.0
    )


@pytest.mark.parametrize("process", [OUVE(), OUVE(theta=0.0), VE(), OUVE(2.0, 0.1, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_simulation_has_the_marginals(process, dtype):
    """Euler-Maruyama forwards, 400 steps: mean and spread at the end of the formulas."""
    generator = torch.Generator().manual_seed(0)
    x0, y = torch.full((20_000,), 0.4, dtype=dtype), torch.full((20_000,), -0.6, dtype=dtype)
    x, steps, end = x0, 400, 0.8
    dt = torch.tensor(end / steps, dtype=torch.float64)
    for i in range(steps):
        f, scale = process.discretize(x, y, i * dt, dt)
        x = x + f + scale * torch.randn(x.shape, dtype=dtype, generator=generator)
    t = torch.tensor(end, dtype=torch.float64)
    spread = (x - x.mean()).abs().square().mean().sqrt()
    assert float(spread) == pytest.approx(float(process.std(t)), rel=0.02)
    assert abs(complex(x.mean() - process.mean(x0, y, t)[0])) < 0.01


def test_without_drift_it_is_the_variance_exploding_process():
    x, y, t = torch.randn(4, 3, 5), torch.randn(4, 3, 5), torch.rand(4)
    ou, ve = OUVE(theta=0.0), VE()
    torch.testing.assert_close(ou.std(t), ve.std(t))
    torch.testing.assert_close(ou.mean(x, y, t), ve.mean(x, None, t))
    torch.testing.assert_close(ou.drift(x, y, t), ve.drift(x, None, t))
    # sigma_min^2 ((sigma_max / sigma_min)^{2t} - 1), written out
    torch.testing.assert_close(ve.std(t), torch.sqrt(0.05**2 * (10 ** (2 * t) - 1)))
    # They differ in where sampling starts.
    assert ou.prior(y, torch.zeros_like(y)).equal(y)
    assert not ve.prior(y, torch.zeros_like(y)).any()


def test_one_time_an_item():
    x, y, z = torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    t = torch.tensor([0.1, 0.5, 0.9])
    together = OUVE().perturb(x, y, t, z)
    for i in range(3):
        torch.testing.assert_close(together[i], OUVE().perturb(x[i], y[i], t[i], z[i]))


@pytest.mark.parametrize("values", [
    {"theta": -1.0}, {"theta": math.nan}, {"sigma_min": 0.0}, {"sigma_min": 0.5},
    {"sigma_max": math.inf},
])
def test_settings_out_of_range(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        OUVE(**values)


def test_a_process_towards_nothing():
    with pytest.raises(ConfigError, match="got no y"):
        OUVE().drift(torch.ones(2), None, torch.tensor(0.5))
