"""Spectra: binned and collapsed ones give the risks of full ones; wrong ones are refused."""

import numpy as np
import pytest

from passband.dynamics.rf_eigen.model import predict_risk
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError, PassbandWarning


@pytest.mark.parametrize(("alpha", "beta"), [(1.1, 1.05), (1.5, 2.0), (2.5, 1.0)])
def test_binned_powerlaws(alpha, beta):
    i = np.arange(1.0, 200_001)
    full = Spectrum(i**-alpha, i**-beta, 0.1)
    binned = Spectrum.powerlaw(alpha, beta, 200_000, 0.1)
    assert len(binned) < 8000 and binned.modes == 200_000
    grid = ([50, 3000, 50_000], [np.inf, 2000, 200], [0.0, 1e-3, 0.1])
    for name in ("test", "train"):
        np.testing.assert_allclose(
            getattr(predict_risk(binned, *grid), name), getattr(predict_risk(full, *grid), name),
            rtol=1e-7, atol=1e-14,
        )


def test_collapsed_spectra():
    i = np.arange(1.0, 100_001)
    full = Spectrum(i**-1.5, i**-1.5, 0.5)
    short = full.collapsed()
    assert len(short) < 2000 and short.modes == 1e5
    assert short.variance == pytest.approx(full.variance)
    assert short.trace == pytest.approx(full.trace)
    for grid in ((300, 1000, 1e-3), (3000, np.inf, 0.0), (50, 20, 1.0)):
        ours, exact = predict_risk(short, *grid), predict_risk(full, *grid)
        assert float(ours.test) == pytest.approx(float(exact.test), rel=1e-6)
        assert float(ours.train) == pytest.approx(float(exact.train), rel=1e-6)


def test_the_tail_is_the_power_beyond_the_last_mode():
    whole = Spectrum.powerlaw(1.5, 1.5, 10**15)
    cut = Spectrum.powerlaw(1.5, 1.5, 100_000, tail=True)
    assert cut.noise == pytest.approx(whole.variance - (cut.variance - cut.noise), rel=1e-4)


def test_spectrum_of_a_kernel():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 6)), rng.standard_normal((40, 2))
    spectrum = Spectrum.of(x @ x.T, y)
    np.testing.assert_allclose(
        spectrum.eigenvalues[:6], np.sort(np.linalg.eigvalsh(x.T @ x / 40))[::-1]
    )
    np.testing.assert_allclose(spectrum.eigenvalues[6:], 0, atol=1e-12)
    assert spectrum.power.sum() == pytest.approx(np.square(y).sum(1).mean())
    # The part that the six modes represent is the projection on x.
    fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    assert spectrum.power[:6].sum() == pytest.approx(np.square(fitted).sum(1).mean())


def test_unsorted_eigenvalues_are_sorted_with_their_power():
    with pytest.warns(PassbandWarning, match="not sorted"):
        spectrum = Spectrum([0.1, 0.5], [1.0, 2.0])
    assert spectrum.eigenvalues.tolist() == [0.5, 0.1] and spectrum.power.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("eigenvalues", "power", "noise", "says"),
    [([1, -0.1], [1, 1], 0, "least eigenvalue"), ([1, np.nan], [1, 1], 0, "not finite"),
     ([0, 0], [1, 1], 0, "largest 0"), ([1, 0.5], [1], 0, "one length"),
     ([1.0], [-1.0], 0, "power"), ([1.0], [1.0], -1, "noise"), ([], [], 0, "one length")],
)
def test_bad_spectra(eigenvalues, power, noise, says):
    with pytest.raises(DataError, match=says):
        Spectrum(eigenvalues, power, noise)


def test_rounding_below_zero_is_cut():
    assert Spectrum([1.0, -1e-13], [1, 1]).eigenvalues.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("kernel", "targets", "says"),
    [(np.eye(3)[:2], np.ones(2), r"\(2, 3\)"),
     (np.eye(3) + np.eye(3, k=1), np.ones(3), "symmetric"),
     (np.eye(3), np.ones(4), "3 points"), (np.eye(3), np.array([0, 1, 2]), "int64"),
     (np.eye(3) * np.nan, np.ones(3), "NaN"), (1 - np.eye(3), np.ones(3), "diagonal"),
     (np.array([[1.0, 2.0], [2.0, 1.0]]), np.ones(2), "semi-definite")],
)
def test_bad_kernels(kernel, targets, says):
    with pytest.raises(DataError, match=says):
        Spectrum.of(kernel, targets)
