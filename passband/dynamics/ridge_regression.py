"""Kernel and random-feature ridge regression: one decomposition serves every ridge.

    n training points, T test points, C outputs, k features, R ridges
    kernel      K = U diag(s) U^T:  prediction = K_t U diag(1 / (s + delta)) U^T y
    features    F F^T / k has the spectrum of the smaller Gram matrix, F^T F / k where k < n

The ridge is added to the kernel matrix, undivided by n. Everything in float64: in float32 small
ridges fail silently, and the training error then grows with n.

>>> from passband.dynamics.random_features import KERNELS
>>> x = np.random.default_rng(0).standard_normal((60, 4))
>>> kernel, y = KERNELS["laplace"].gram(x, x), np.sin(x[:, :1])
>>> test, train = kernel_errors(kernel[:40, :40], y[:40], kernel[40:, :40], y[40:], [1e-3, 1.0])
>>> test.shape, bool(train[0] < train[1])
((2,), True)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def kernel_errors(
    kernel: np.ndarray, y: np.ndarray, cross: np.ndarray, y_test: np.ndarray,
    ridges: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Test and train errors [R]: squares summed over outputs, means over points.

    kernel  [n, n] of the training points, y [n, C];  cross [T, n], y_test [T, C]
    Ridge 0 is the pseudo-inverse: directions of rounding size are left out.
    """
    values, vectors = np.linalg.eigh(kernel)
    return _by_ridge(values, vectors.T @ y, cross @ vectors, vectors, values, y, y_test, ridges)


def feature_errors(
    features: np.ndarray, y: np.ndarray, features_test: np.ndarray, y_test: np.ndarray,
    ridges: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The same for the kernel F F^T / k of random features [n, k] and [T, k]."""
    n, k = features.shape
    if n <= k:
        scaled = features / k
        return kernel_errors(scaled @ features.T, y, features_test @ scaled.T, y_test, ridges)
    values, vectors = np.linalg.eigh(features.T @ features / k)
    right = vectors.T @ (features.T @ y) / k
    return _by_ridge(
        values, right, features_test @ vectors, features @ vectors, np.ones(k), y, y_test, ridges
    )


def _by_ridge(
    values: np.ndarray, right: np.ndarray, left_test: np.ndarray, left: np.ndarray,
    gain: np.ndarray, y: np.ndarray, y_test: np.ndarray, ridges: Sequence[float] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    keep = values > len(values) * np.finfo(float).eps * values[-1]
    test, train = [], []
    for ridge in ridges:
        scale = np.where(keep, 1 / np.where(keep, values + ridge, 1), 0)[:, None] * right
        test.append(np.square(left_test @ scale - y_test).sum(1).mean())
        train.append(np.square(left @ (gain[:, None] * scale) - y).sum(1).mean())
    return np.array(test), np.array(train)
