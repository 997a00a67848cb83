"""Chebyshev collocation on Gauss-Lobatto nodes (Trefethen, Spectral Methods in MATLAB, SIAM 2000).

    x_i  = -cos(pi i / (n - 1)),  w_i = (-1)^i, halved at both ends
    D_ij = (w_j / w_i) / (x_i - x_j),    D_ii = -sum_j D_ij                  first derivative
    S_ij = 2 D_ij (D_ii - 1 / (x_i - x_j)),    S_ii = -sum_j S_ij            second derivative
    u(x) = sum_j w_j u_j / (x - x_j)  /  sum_j w_j / (x - x_j)               anywhere else

For smooth u the error falls faster than any power of n, down to rounding. Diagonals as negative
sums (Baltensperger and Trummer, SIAM J. Sci. Comput. 24, 2003) and differences of nodes as
products of sines keep that rounding small. The matrices go into
`passband.parts.collocation.Collocation`.

>>> x = nodes(8, 0.0, 2.0)
>>> first, second = derivative_matrices(8, 2.0)
>>> bool(np.allclose(first @ x**3, 3 * x**2)), bool(np.allclose(second @ x**3, 6 * x))
(True, True)
>>> bool(np.allclose(interpolation(x, np.array([0.3])) @ x**3, 0.027))
True
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.fft import dct

from passband.parts.linalg import along

Array = np.ndarray

CHUNK = 4_000_000  # numbers held at once while interpolating at scattered points


def nodes(n: int, lower: float, upper: float) -> Array:
    """n increasing Gauss-Lobatto nodes on [lower, upper], ends included exactly."""
    # The sine keeps the nodes symmetric to the last digit.
    x = np.sin(np.pi * (2 * np.arange(n) - (n - 1)) / (2 * (n - 1)))
    out = 0.5 * (lower + upper) + 0.5 * (upper - lower) * x
    out[0], out[-1] = lower, upper
    return out


def weights(n: int) -> Array:
    """Barycentric weights of the nodes."""
    w = (-1.0) ** np.arange(n)
    w[[0, -1]] *= 0.5
    return w


def derivative_matrices(n: int, length: float) -> tuple[Array, Array]:
    """First and second derivative at the n nodes of an interval of that length, two [n, n]."""
    angle = np.pi * np.arange(n) / (2 * (n - 1))
    gap = 2 * np.sin(np.add.outer(angle, angle)) * np.sin(np.subtract.outer(angle, angle))
    np.fill_diagonal(gap, 1.0)
    w = weights(n)
    first = np.outer(1 / w, w) / gap
    np.fill_diagonal(first, 0.0)
    np.fill_diagonal(first, -first.sum(axis=1))
    second = 2 * first * (np.diag(first)[:, None] - 1 / gap)
    np.fill_diagonal(second, 0.0)
    np.fill_diagonal(second, -second.sum(axis=1))
    scale = 2 / length
    return first * scale, second * scale**2


def interpolation(x: Array, points: Array) -> Array:
    """Matrix [len(points), n] from values at the nodes x to values at points of the interval."""
    gap = np.subtract.outer(np.asarray(points, dtype=float), x)
    row, column = np.nonzero(gap == 0)
    gap[row, column] = 1.0
    ratio = weights(len(x)) / gap
    ratio /= ratio.sum(axis=1, keepdims=True)
    ratio[row] = 0.0
    ratio[row, column] = 1.0
    return ratio


def interpolate_on(axes: Sequence[Array], values: Array, new: Sequence[Array]) -> Array:
    """Values [n_1, ..., n_d] at the nodes -> on another tensor grid [m_1, ..., m_d]."""
    for axis, (x, points) in enumerate(zip(axes, new, strict=True)):
        values = along(interpolation(x, points), values, axis)
    return values


def interpolate_at(axes: Sequence[Array], values: Array, points: Array) -> Array:
    """The same at scattered points [N, d] -> [N]."""
    out = np.empty(len(points))
    step = max(1, CHUNK // max(values.size // len(axes[0]), len(axes[0])))
    for start in range(0, len(points), step):
        part = points[start : start + step]
        u = np.tensordot(interpolation(axes[0], part[:, 0]), values, axes=1)  # [N, n_2, ...]
        for axis in range(1, len(axes)):
            u = np.einsum("pj,pj...->p...", interpolation(axes[axis], part[:, axis]), u)
        out[start : start + step] = u
    return out


def tails(values: Array) -> list[float]:
    """Per axis: largest of the last tenth of the Chebyshev coefficients over the largest of all.

    Near rounding where the axis has nodes enough, near 1 where it has far too few.
    """
    out = []
    for axis, n in enumerate(values.shape):
        series = np.abs(dct(values, type=1, axis=axis) / (n - 1))
        size = series.max(axis=tuple(i for i in range(values.ndim) if i != axis))
        out.append(float(size[-max(2, n // 10) :].max() / max(size.max(), np.finfo(float).tiny)))
    return out
