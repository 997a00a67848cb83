"""Answers to input that is wrong, before any long work."""

from __future__ import annotations

from typing import Any

import numpy as np

from passband.errors import DataError

SYMMETRY = 1e-6  # largest |K - K^T| as a share of the largest entry


def check_kernel(kernel: Any) -> np.ndarray:
    """[N, N] float64, made exactly symmetric; raises `DataError` for what is no kernel matrix."""
    array = numbers(kernel, "the kernel matrix")
    if array.ndim != 2 or array.shape[0] != array.shape[1] or len(array) < 2:
        raise DataError(
            f"a kernel matrix {array.shape}", expected="[N, N] between N points, N at least 2",
            mend="inputs [N, d] go where x is asked for",
        )
    apart = np.abs(array - array.T).max()
    if apart > SYMMETRY * np.abs(array).max():
        raise DataError(
            f"the kernel matrix is not symmetric: entries differ by up to {apart:.3g}",
            expected="K = K^T", mend="rows and columns are the same points in the same order",
        )
    if array.diagonal().min() <= 0:
        raise DataError(
            f"{(array.diagonal() <= 0).sum()} entries of the kernel's diagonal are 0 or less",
            expected="K(x, x) above 0", mend="is it a kernel, and not a distance?",
        )
    return (array + array.T) / 2


def check_targets(targets: Any, n: int) -> np.ndarray:
    """[N, C] float64; raises `DataError` for integers, which would be regressed on as numbers."""
    array = np.asarray(targets)
    if array.dtype.kind in "iub":
        raise DataError(
            f"targets of type {array.dtype}", expected="real numbers: one-hot rows, +-1 or values",
            mend="one_hot(labels) for classes; y.astype(float) where 3 really is thrice 1",
        )
    array = numbers(array, "the targets")
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != n:
        raise DataError(
            f"targets {array.shape} for {n} points", expected=f"[{n}] or [{n}, C]",
            mend="give one row for each point",
        )
    return array


def numbers(values: Any, what: str) -> np.ndarray:
    """As finite float64, or a `DataError` that names them."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise DataError(
            f"{what} can't be read as numbers", expected="an array of numbers"
        ) from None
    bad = (~np.isfinite(array)).sum()
    if bad:
        raise DataError(f"{what}: {bad} of {array.size} numbers are NaN or infinite",
                        expected="finite numbers", mend="leave those rows out")
    return array


def one_hot(labels: Any) -> np.ndarray:
    """[N] integer labels -> [N, C] rows of 0 and 1, classes in ascending order.

    >>> one_hot([3, 5, 3])
    array([[1., 0.],
           [0., 1.],
           [1., 0.]])
    """
    classes, index = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"one class only ({classes[0]})", expected="two or more")
    return np.eye(len(classes))[index]
