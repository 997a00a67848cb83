"""Real regressions to hold the theory against: for every n at once, and on Gaussian designs.

K + ridge I = L L^T has the factor of each leading block within L, L^-1 its inverse: one Cholesky
factor gives the predictions from the first n points, and Tr K_n^-1, for every n. The growing traces
(kappa = 1 / Tr K_n^-1) are of Simon et al., ICLR 2024, arXiv 2311.14646; the single factor is ours.

>>> x = np.random.default_rng(0).standard_normal((60, 4))
>>> kernel, y = np.exp(-np.square(x[:, None] - x).sum(-1)), np.sin(x[:, :1])
>>> found = growing(kernel[:40, :40], y[:40], kernel[40:, :40], y[40:], 1e-3, sizes=[20, 40])
>>> part = kernel[:20, :20] + 1e-3 * np.eye(20)
>>> bool(np.isclose(1 / found.kappa[0], np.trace(np.linalg.inv(part))))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from passband.dynamics.ridge_regression import feature_errors, kernel_errors

FLOOR = 1e-12  # smallest ridge of a factorisation, as a share of the mean of K's diagonal


@dataclass(frozen=True, eq=False)
class Growing:
    """One ridge, sizes n_1 < n_2 ...: each field [len(sizes)].

    kappa  1 / Tr (K_n + ridge I)^-1
    test   error on the test points of the regression on the first n training points
    """

    sizes: np.ndarray
    kappa: np.ndarray
    test: np.ndarray


def growing(
    kernel: np.ndarray, y: np.ndarray, cross: np.ndarray, y_test: np.ndarray, ridge: float,
    sizes: Sequence[int] | np.ndarray,
) -> Growing:
    """Regressions on the first n points for every n of `sizes`, from one Cholesky factor.

    A ridge below `FLOOR` times the mean of the diagonal is raised to it: kernels of close points
    are singular to rounding.
    """
    n = len(kernel)
    ridge = max(ridge, FLOOR * float(np.trace(kernel)) / n)
    factor = linalg.cholesky(kernel + ridge * np.eye(n), lower=True, check_finite=False)
    inverse, _ = linalg.lapack.dtrtri(factor, lower=1)
    traces = np.cumsum(np.square(np.tril(inverse)).sum(1))
    solved = inverse @ y
    steps = linalg.solve_triangular(factor, cross.T, lower=True, check_finite=False)
    prediction, start, errors = np.zeros_like(y_test), 0, []
    for stop in sizes:
        prediction = prediction + steps[start:stop].T @ solved[start:stop]
        errors.append(np.square(prediction - y_test).sum(1).mean())
        start = int(stop)
    return Growing(np.asarray(sizes), 1 / traces[np.asarray(sizes) - 1], np.array(errors))


# ---- Gaussian designs ----------------------------------------------------------------------------


def gaussian_errors(
    eigenvalues: np.ndarray, power: np.ndarray, noise: float, n: int, k: float,
    ridges: Sequence[float] | np.ndarray, trials: int, seed: int = 0, tests: int = 500,
) -> tuple[np.ndarray, np.ndarray]:
    """Errors [trials, R] of regressions on modes that are independent normal numbers.

    Inputs x ~ N(0, I_M), targets sum v_i x_i + noise, features W sqrt(Lam) x with W ~ N(0, 1): the
    setting in which the theory is derived. k = inf: the kernel x^T Lam x'.
    """
    test, train = [], []
    for trial in range(trials):
        rng = np.random.default_rng([seed, trial])
        x = rng.standard_normal((n + tests, len(eigenvalues)))
        y = (x @ np.sqrt(power) + np.sqrt(noise) * rng.standard_normal(n + tests))[:, None]
        x *= np.sqrt(eigenvalues)
        if np.isinf(k):
            found = kernel_errors(x[:n] @ x[:n].T, y[:n], x[n:] @ x[:n].T, y[n:], ridges)
        else:
            features = x @ rng.standard_normal((len(eigenvalues), int(k)))
            found = feature_errors(features[:n], y[:n], features[n:], y[n:], ridges)
        test.append(found[0])
        train.append(found[1])
    return np.array(test), np.array(train)
