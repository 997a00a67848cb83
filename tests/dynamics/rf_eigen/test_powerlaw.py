"""The closed forms against the framework they are the limit of."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from passband.dynamics.rf_eigen.model import optimal_ridge, predict_risk
from passband.dynamics.rf_eigen.powerlaw import fitting_ratio, powerlaw_risk
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError

TASKS = [(1.5, 1.3, 0.0), (1.5, 1.3, 1.0), (1.5, 1.3, 5.0), (1.17, 1.14, 0.0), (1.2, 1.5, 0.0),
         (1.5, 2.5, 0.0), (1.5, 3.2, 1.0)]


@pytest.mark.parametrize(("alpha", "beta", "noise"), TASKS)
def test_best_ratio_of_the_framework(alpha, beta, noise):
    spectrum = Spectrum.powerlaw(alpha, beta, 10**14).collapsed(0.02)
    base = float(predict_risk(spectrum, 2000).test)
    noisy = spectrum.with_noise(noise * base)
    best, formula = optimal_ridge(noisy, 2000), fitting_ratio(alpha, beta, noise)
    assert float(best.fitting_ratio) == pytest.approx(formula.ratio, abs=4e-3)
    cost = float(predict_risk(noisy, 2000).test / best.test)
    assert cost == pytest.approx(formula.interpolation_cost, rel=5e-3)


@pytest.mark.parametrize(("alpha", "beta", "noise"), TASKS)
def test_level_of_the_framework(alpha, beta, noise):
    spectrum = Spectrum.powerlaw(alpha, beta, 10**14).collapsed(0.02)
    base = float(predict_risk(spectrum, 3000).test)
    risk = predict_risk(spectrum.with_noise(noise * base), 3000, np.inf, [0.0, 0.1, 2.0])
    formula = powerlaw_risk(3000, alpha, beta, risk.fitting_ratio, noise)
    # The sum over modes as an integral: exact to its first mode, which counts most for large beta.
    np.testing.assert_allclose(formula, risk.test, rtol=0.03 if beta < 2 else 0.1)


@pytest.mark.parametrize(("alpha", "beta", "noise"), TASKS[:4])
def test_the_condition_is_the_minimum(alpha, beta, noise):
    found = minimize_scalar(
        lambda r: float(powerlaw_risk(1, alpha, beta, r * r, noise)), bounds=(0, 0.999),
        method="bounded", options={"xatol": 1e-10},
    )
    assert fitting_ratio(alpha, beta, noise).ratio == pytest.approx(found.x**2, abs=1e-5)


def test_published_ratios():
    assert fitting_ratio(1.5, 1.3).ratio == pytest.approx(0.095, abs=5e-4)
    assert fitting_ratio(1.5, 1.3, 1).ratio == pytest.approx(0.394, abs=5e-4)
    assert fitting_ratio(1.5, 1.3, 5).ratio == pytest.approx(0.706, abs=5e-4)
    assert fitting_ratio(1.17, 1.14).ratio == pytest.approx(0.024, abs=5e-4)
    assert fitting_ratio(1.22, 1.20).ratio < fitting_ratio(1.17, 1.14).ratio
    assert fitting_ratio(1.12, 1.36).interpolate


def test_interpolation_is_best_from_where_the_paper_says():
    alpha, noise = 1.4, 0.5
    edge = alpha + alpha * (alpha - 1) * noise
    assert fitting_ratio(alpha, edge + 1e-6, noise).interpolate
    assert not fitting_ratio(alpha, edge - 1e-6, noise).interpolate


def test_powers_at_the_removable_pole():
    near = [float(powerlaw_risk(100, 1.5, b, 0.1)) for b in (2.5 - 1e-6, 2.5, 2.5 + 1e-6)]
    assert near[0] == pytest.approx(near[1], rel=1e-4)
    assert near[2] == pytest.approx(near[1], rel=1e-4)


@pytest.mark.parametrize(("alpha", "beta", "noise"), [(1.0, 1.5, 0), (1.5, 1.0, 0), (1.5, 4.0, 0),
                                                      (1.5, 1.5, -1), (np.nan, 2, 0)])
def test_out_of_range(alpha, beta, noise):
    with pytest.raises(DataError, match="alpha"):
        fitting_ratio(alpha, beta, noise)


def test_ratio_out_of_range():
    with pytest.raises(DataError, match="ratio"):
        powerlaw_risk(10, 1.5, 1.5, 1.0)
