"""The eigenframework against the sheet of published figures, a second formulation, and limits."""

import numpy as np
import pytest
from scipy import optimize

from passband.dynamics.rf_eigen.model import (
    optimal_ridge,
    pool_corrected,
    predict_risk,
    risk_surface,
    sensitivities,
)
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError, PassbandWarning

SPECTRUM = Spectrum.powerlaw(1.5, 1.5, 1000, 0.5)


def as_published(spectrum, n, k, ridge):
    """The paper's two equations in (kappa, gamma), solved by a general solver, and its E_test."""
    lam, v2 = spectrum.eigenvalues, spectrum.power

    def equations(logs):
        kappa, gamma = np.exp(logs)
        z = (lam / (lam + gamma)).sum()
        return [z + ridge / kappa - n, z + k * kappa / gamma - k]

    for start in np.linspace(-12, 2, 15):
        found = optimize.root(equations, [start, start + 0.1], method="hybr", tol=1e-13)
        if found.success and np.abs(found.fun).max() < 1e-6:
            break
    kappa, gamma = np.exp(found.x)
    L = lam / (lam + gamma)
    z, q = L.sum(), (L**2).sum()
    bias = ((1 - L - kappa * lam / (lam + gamma) ** 2 * k / (k - q)) * v2).sum()
    test = (bias + spectrum.noise) / (1 - (q * (k - 2 * z) + z**2) / (n * (k - q)))
    return kappa, gamma, test, (ridge / (n * kappa)) ** 2 * test


@pytest.mark.parametrize(
    ("n", "k", "ridge", "test", "train"),
    [(64, 128, 0.1, 1.3653, 0.09485), (64, 128, 1e-3, 2.0223, 5.85e-5),
     (256, 64, 1.0, 1.0087, 0.7191)],
)
def test_figures_of_the_table(n, k, ridge, test, train):
    risk = predict_risk(SPECTRUM, n, k, ridge)
    assert risk.test == pytest.approx(test, abs=6e-5)
    assert risk.train == pytest.approx(train, rel=1e-3)


@pytest.mark.parametrize(
    ("n", "k", "ridge"), [(64, 128, 0.1), (128, 64, 0.3), (40, 40, 0.05), (9, 500, 2)]
)
def test_the_paper_s_own_equations(n, k, ridge):
    risk = predict_risk(SPECTRUM, n, k, ridge)
    expected = as_published(SPECTRUM, n, k, ridge)
    for value, wanted in zip((risk.kappa, risk.gamma, risk.test, risk.train), expected,
                             strict=True):
        assert float(value) == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("ridge", [1e-12, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("k", [5, 100, 101, 1e6, np.inf])
def test_the_equations_hold_at_all_scales(k, ridge):
    risk = predict_risk(SPECTRUM, [5, 100, 900], k, ridge)
    lam = SPECTRUM.eigenvalues
    for n, gamma, kappa in zip(risk.n, risk.gamma, risk.kappa, strict=True):
        z = (lam / (lam + gamma)).sum()
        assert z + ridge / kappa == pytest.approx(n, rel=1e-8)
        if np.isfinite(k):
            assert z + k * kappa / gamma == pytest.approx(k, rel=1e-8)


def test_kernel_regression_is_the_limit_of_many_features():
    many = predict_risk(SPECTRUM, 64, 1e12, 0.01)
    kernel = predict_risk(SPECTRUM, 64, np.inf, 0.01)
    assert float(many.test) == pytest.approx(float(kernel.test), rel=1e-8)
    L = SPECTRUM.eigenvalues / (SPECTRUM.eigenvalues + kernel.gamma)
    known = (((1 - L) ** 2 * SPECTRUM.power).sum() + 0.5) / (1 - (L**2).sum() / 64)
    assert float(kernel.test) == pytest.approx(known, rel=1e-10)


@pytest.mark.parametrize(("n", "k"), [(64, 128), (128, 64), (64, np.inf)])
def test_ridge_zero_is_the_limit_of_small_ridges(n, k):
    zero, small = predict_risk(SPECTRUM, n, k, 0.0), predict_risk(SPECTRUM, n, k, 1e-11)
    assert float(zero.test) == pytest.approx(float(small.test), rel=1e-6)
    assert float(zero.train) == pytest.approx(float(small.train), rel=1e-6, abs=1e-12)
    if n > k:
        assert float(zero.train / zero.test) == pytest.approx(((n - k) / n) ** 2)


def test_plain_linear_regression():
    """More samples than modes, ridge to 0: noise n / (n - M) on new points, known since Gauss."""
    few = Spectrum(np.ones(20), np.ones(20), 0.3)
    risk = predict_risk(few, 100, np.inf, 1e-12)
    assert float(risk.test) == pytest.approx(0.3 * 100 / 80, rel=1e-6)
    assert float(risk.train) == pytest.approx(0.3 * 80 / 100, rel=1e-6)


def test_equal_numbers_of_samples_and_features_without_ridge_diverge():
    with pytest.warns(PassbandWarning, match="n = k = 64"):
        risk = predict_risk(SPECTRUM, [64, 65], 64)
    assert np.isinf(risk.test[0]) and np.isfinite(risk.test[1])
    assert risk.fitting_ratio[0] == 0


def test_tuned_errors_of_the_table():
    widths = [16, 32, 64, 128, 512, np.inf]
    found = risk_surface(SPECTRUM, [32, 64, 128], widths).test
    table = [[1.657, 1.490, 1.381, 1.315, 1.257, 1.235], [1.522, 1.336, 1.214, 1.138, 1.068, 1.042],
             [1.431, 1.227, 1.091, 1.006, 0.927, 0.896]]
    # The table's ridges are of a grid: a little above the least error, never below it.
    assert (found <= np.array(table) + 6e-4).all()
    np.testing.assert_allclose(found, table, atol=2.5e-3)
    assert (np.diff(found, axis=0) < 0).all() and (np.diff(found, axis=1) < 0).all()


@pytest.mark.parametrize(("n", "k"), [(64, np.inf), (64, 32), (100, 100)])
def test_the_best_ridge_is_best(n, k):
    best = optimal_ridge(SPECTRUM, n, k)
    direct = optimize.minimize_scalar(
        lambda t: float(predict_risk(SPECTRUM, n, k, np.exp(t)).test), bounds=(-10, 6),
        method="bounded", options={"xatol": 1e-8},
    )
    assert float(best.test) == pytest.approx(direct.fun, rel=1e-10)
    again = predict_risk(SPECTRUM, n, k, best.ridge)
    assert float(again.test) == pytest.approx(float(best.test), rel=1e-10)


def test_interpolation_can_be_best():
    best = optimal_ridge(Spectrum.powerlaw(1.2, 1.5, 10**10), 300)
    assert best.ridge == 0 and best.train == 0


def test_errors_are_linear_in_powers_and_noise():
    rng = np.random.default_rng(0)
    power, noise = sensitivities(SPECTRUM, [30, 300], [np.inf, 50], 0.1)
    other = Spectrum(SPECTRUM.eigenvalues, rng.exponential(size=1000), 2.0)
    np.testing.assert_allclose(
        power @ other.power + 2 * noise, predict_risk(other, [30, 300], [np.inf, 50], 0.1).test
    )


def test_pool_correction_is_the_definition():
    risk = predict_risk(SPECTRUM, 100, np.inf, 0.1)
    outside = pool_corrected(risk, 400)
    assert float(0.75 * outside + 0.25 * risk.train) == pytest.approx(float(risk.test))
    with pytest.raises(DataError, match="pool of 100"):
        pool_corrected(risk, 100)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((0,), "n = 0"), ((10, -1), "k = -1"), ((10, 5, -0.1), "ridge = -0.1"),
     ((np.nan,), "n = nan"), ((np.inf,), "n = inf"), (([1, 2], [1, 2, 3]), "fit together"),
     ((1000,), "1000 modes"), ((5000, 3000), "3000 modes"), ((10, 5, np.inf), "ridge = inf")],
)
def test_bad_numbers(arguments, says):
    with pytest.raises(DataError, match=says):
        predict_risk(SPECTRUM, *arguments)


def test_grids_keep_their_shape():
    assert predict_risk(SPECTRUM, [[10], [20]], [5, 6, np.inf], 0.1).test.shape == (2, 3)
    assert risk_surface(SPECTRUM, [10, 20], [5], [0.1, 1, 10]).test.shape == (2, 1, 3)
    assert predict_risk(SPECTRUM, [], 5, 1.0).test.shape == (0,)
