"""Regressions by one decomposition against direct solves and scikit-learn; theory against both."""

import numpy as np
import pytest

from passband.dynamics.random_features import KERNELS, kernel, median_distance
from passband.dynamics.rf_eigen.experiments import gaussian_errors, growing
from passband.dynamics.rf_eigen.exponents import distinct, fit_exponents
from passband.dynamics.rf_eigen.model import pool_corrected, predict_risk
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.dynamics.ridge_regression import feature_errors, kernel_errors
from passband.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((90, 5)), RNG.standard_normal((90, 3))
K = KERNELS["laplace"].gram(X, X)
NEAR, FAR = slice(0, 60), slice(60, 90)


def test_kernel_regression_is_scikit_learn_s():
    from sklearn.kernel_ridge import KernelRidge

    ridges = [1e-3, 0.1, 10.0]
    test, train = kernel_errors(K[NEAR, NEAR], Y[NEAR], K[FAR, NEAR], Y[FAR], ridges)
    for i, ridge in enumerate(ridges):
        model = KernelRidge(alpha=ridge, kernel="precomputed").fit(K[NEAR, NEAR], Y[NEAR])
        for part, found in ((FAR, test), (NEAR, train)):
            wanted = np.square(model.predict(K[part, NEAR]) - Y[part]).sum(1).mean()
            assert found[i] == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("k", [20, 60, 150])
def test_features_are_the_kernel_that_they_make(k):
    features = KERNELS["arc-cosine"].features(X, k, np.random.default_rng(1))
    gram, ridges = features @ features.T / k, [1e-2, 1.0]
    found = feature_errors(features[NEAR], Y[NEAR], features[FAR], Y[FAR], ridges)
    for i, ridge in enumerate(ridges):
        weights = np.linalg.solve(gram[NEAR, NEAR] + ridge * np.eye(60), Y[NEAR])
        for part, errors in ((FAR, found[0]), (NEAR, found[1])):
            wanted = np.square(gram[part, NEAR] @ weights - Y[part]).sum(1).mean()
            assert errors[i] == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("k", [20, 150])
def test_ridge_zero_is_least_squares_of_least_norm(k):
    features = RNG.standard_normal((90, k))
    test, train = feature_errors(features[NEAR], Y[NEAR], features[FAR], Y[FAR], [0.0])
    weights = np.linalg.pinv(features[NEAR]) @ Y[NEAR]
    assert test[0] == pytest.approx(np.square(features[FAR] @ weights - Y[FAR]).sum(1).mean())
    wanted = np.square(features[NEAR] @ weights - Y[NEAR]).sum(1).mean()
    assert train[0] == pytest.approx(wanted, abs=1e-12)


def test_one_factor_gives_every_size():
    sizes, ridge = [7, 30, 60], 0.05
    found = growing(K[NEAR, NEAR], Y[NEAR], K[FAR, NEAR], Y[FAR], ridge, sizes)
    for i, n in enumerate(sizes):
        block = K[:n, :n]
        wanted = kernel_errors(block, Y[:n], K[FAR, :n], Y[FAR], [ridge])[0][0]
        assert found.test[i] == pytest.approx(wanted, rel=1e-9)
        trace = np.trace(np.linalg.inv(block + ridge * np.eye(n)))
        assert found.kappa[i] == pytest.approx(1 / trace, rel=1e-9)


@pytest.mark.parametrize("name", ["arc-cosine", "gaussian", "laplace", "linear"])
def test_kernels_are_means_of_their_features(name):
    one = kernel(name, length=2.0)
    gram = one.gram(X[:6], X[:6])
    features = one.features(X[:6], 100_000, np.random.default_rng(3))
    products = features[:, None] * features
    error = products.std(-1) / np.sqrt(products.shape[-1])
    assert (np.abs(products.mean(-1) - gram) < 5 * error + 1e-12).all()
    np.testing.assert_allclose(one.gram(X[:6], X[:4]), gram[:, :4], atol=1e-12)


def test_relu_ntk_is_the_gradient_product_of_a_wide_network():
    import torch

    x, width = torch.from_numpy(X[:4]), 1500
    torch.manual_seed(0)
    weights = [torch.randn(a, b, dtype=torch.float64, requires_grad=True)
               for a, b in ((5, width), (width, width), (width, 1))]
    gradients = []
    for row in x:
        h = row / 5**0.5
        for i, w in enumerate(weights):
            h = h @ w
            if i < 2:
                h = torch.relu(h) * (2 / width) ** 0.5
        grads = torch.autograd.grad(h.sum(), weights)
        gradients.append(torch.cat([g.flatten() for g in grads]))
    wide = torch.stack(gradients)
    ours = kernel("relu-ntk", depth=2).gram(X[:4], X[:4])
    np.testing.assert_allclose(ours, (wide @ wide.T).numpy(), atol=0.15 * ours.max())


def test_unknown_kernel():
    with pytest.raises(ConfigError, match="matern"):
        kernel("matern")
    assert median_distance(np.zeros((5, 2))) == 1.0


# ---- theory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(64, 128), (128, 32), (48, np.inf)])
def test_theory_predicts_gaussian_designs(n, k):
    spectrum = Spectrum.powerlaw(1.5, 1.5, 400, 0.5)
    ridges = [1e-2, 1.0]
    test, train = gaussian_errors(
        spectrum.eigenvalues, spectrum.power, 0.5, n, k, ridges, trials=30, seed=5, tests=300
    )
    risk = predict_risk(spectrum, n, k, ridges)
    for found, predicted in ((test, risk.test), (train, risk.train)):
        error = found.std(0, ddof=1) / np.sqrt(30)
        assert (np.abs(found.mean(0) - predicted) < 3.5 * error + 0.05 * predicted).all()


def test_theory_predicts_random_features_of_digits():
    from passband.dynamics.rf_eigen.claims import _even_odd

    x, y = _even_odd()
    one, n, ridges = KERNELS["arc-cosine"], 256, [1e-2, 1.0]
    risk = predict_risk(Spectrum.of(one.gram(x, x), y), n, 512, ridges)
    found = []
    for trial in range(5):
        rng = np.random.default_rng([77, trial])
        order, features = rng.permutation(len(x)), one.features(x, 512, rng)
        a, b = order[:n], order[n:]
        found.append(feature_errors(features[a], y[a], features[b], y[b], ridges)[0])
    np.testing.assert_allclose(pool_corrected(risk, len(x)), np.mean(found, 0), rtol=0.15)


# ---- exponents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta"), [(1.3, 1.6), (1.7, 1.25)])
def test_exponents_of_powerlaw_kernels(alpha, beta):
    from passband.dynamics.rf_eigen.claims import powerlaw_task

    kernel, y = powerlaw_task(alpha, beta, 700, 6000, np.random.default_rng(11))
    found = fit_exponents(kernel, y, trials=3)
    assert found.alpha == pytest.approx(alpha, abs=0.05)
    assert found.beta == pytest.approx(beta, abs=0.05)
    assert found.alpha_error < 0.02 and found.points == 700


def test_duplicates_are_left_out():
    again = np.r_[np.arange(60), 3, 7, 3]
    kernel = K[:60, :60][np.ix_(again, again)]
    assert distinct(kernel).tolist() == list(range(60))
    found = fit_exponents(kernel, np.sin(X[again, 0]), trials=2)
    assert (found.points, found.duplicates) == (60, 3)
    assert np.isfinite(found.alpha)


def test_too_few_points():
    with pytest.raises(DataError, match="30 distinct"):
        fit_exponents(K[:30, :30], X[:30, 0])
