"""Algebra of symmetric positive definite Toeplitz matrices, T_ij = t_|i-j|.

    T_n x = e_1 tells everything:  T^-1 = (L L' - M M') / x_0     (Gohberg and Semencul, 1972)
        L = lower Toeplitz (x_0, x_1, ...),  M = lower Toeplitz (0, x_{n-1}, ..., x_1)
    log|T| = sum of log prediction errors of Durbin's recursion, O(n^2)
    sum of the k-th diagonal of T^-1 = sum_i (n - k - 2 i) x_i x_{i+k} / x_0

A stationary kernel on a uniform grid is such a matrix, so a Gaussian process's likelihood and its
gradient cost O(n^2) instead of O(n^3). Golub and Van Loan, Matrix Computations, section 4.7.

>>> import numpy as np
>>> from scipy.linalg import toeplitz
>>> t = np.array([2.0, 1.0, 0.5, 0.1])
>>> inverse = ToeplitzInverse.of(t)
>>> bool(np.isclose(inverse.log_determinant, np.linalg.slogdet(toeplitz(t))[1]))
True
>>> bool(np.allclose(inverse.solve(np.eye(4)), np.linalg.inv(toeplitz(t))))
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg
from scipy.fft import irfft, next_fast_len, rfft

Array: TypeAlias = np.ndarray[Any, Any]


def diagonal_sums(matrix: Array) -> Array:
    """Sums over both k-th diagonals of [n, n] -> [n]: the adjoint of t -> toeplitz(t).

    The gradient of any function of a symmetric Toeplitz matrix with respect to its first column.
    """
    n = len(matrix)
    # With the columns flipped and n zeros appended to each row, a diagonal becomes a column of
    # the same memory read with rows of 2n - 1: no scatter.
    wide = np.zeros((n, 2 * n))
    wide[:, :n] = matrix[:, ::-1]
    sums = wide.ravel()[: n * (2 * n - 1)].reshape(n, 2 * n - 1).sum(axis=0)
    out: Array = sums[n - 1 :: -1].copy()
    out[1:] += sums[n : 2 * n - 1]
    return out


def autocorrelation(rows: Array) -> Array:
    """sum_i b_i b_{i+k} over all rows of [m, n] -> [n]: diagonal sums (one side) of sum b b'."""
    n = rows.shape[-1]
    size = next_fast_len(2 * n, real=True)
    spectrum = np.abs(rfft(rows, size, axis=-1)) ** 2
    return np.asarray(irfft(spectrum.reshape(-1, spectrum.shape[-1]).sum(axis=0), size)[:n])


def eigenbasis(column: Array, tolerance: float) -> tuple[Array, Array]:
    """Eigenvalues above tolerance x the largest, decreasing [r], and eigenvectors [n, r].

    A symmetric Toeplitz matrix maps even vectors to even ones and odd to odd: two problems of
    half the size, a quarter of the work.
    """
    n, half = len(column), len(column) // 2
    matrix = linalg.toeplitz(column)
    left = matrix[:half, :half]
    cross = matrix[:half, n - half :][:, ::-1]
    even, odd = left + cross, left - cross
    if n % 2:
        middle = np.sqrt(2.0) * matrix[:half, half]
        even = np.block([[even, middle[:, None]], [middle[None, :], matrix[half : half + 1, half]]])
    pairs = [np.linalg.eigh(block) for block in (even, odd) if len(block)]
    least = tolerance * max(lam.max() for lam, _ in pairs)
    values, vectors = [], []
    for (lam, q), sign in zip(pairs, (1.0, -1.0), strict=False):
        kept = lam > least  # before the copies: often one function in fifty is left
        part = q[:, kept]
        full = np.zeros((n, part.shape[1]))
        full[:half] = part[:half] / np.sqrt(2.0)
        full[n - half :] = sign * full[:half][::-1]
        if n % 2 and sign > 0:
            full[half] = part[half]
        values.append(lam[kept])
        vectors.append(full)
    lam, q = np.concatenate(values), np.concatenate(vectors, axis=1)
    order = np.argsort(-lam)
    return lam[order], np.ascontiguousarray(q[:, order])


@dataclass(frozen=True)
class ToeplitzInverse:
    """The inverse of a symmetric positive definite Toeplitz matrix, held in n numbers."""

    first: Array  # x = T^-1 e_1 [n]
    log_determinant: float

    @classmethod
    def of(cls, column: Array) -> ToeplitzInverse:
        """Durbin's recursion. Raises `numpy.linalg.LinAlgError` when T is not positive definite."""
        n = len(column)
        if not (column[0] > 0.0 and np.isfinite(column).all()):
            raise np.linalg.LinAlgError("Toeplitz matrix is not positive definite")
        r = column / column[0]
        y = np.zeros(n)  # predictor: T_k y_k = -(r_1 ... r_k)
        error, log_error = 1.0, 0.0
        for k in range(n - 1):
            alpha = -(r[k + 1] + r[1 : k + 1] @ y[:k][::-1]) / error
            y[:k] += alpha * y[:k][::-1]
            y[k] = alpha
            error *= 1.0 - alpha * alpha
            if not error > 0.0:
                raise np.linalg.LinAlgError("Toeplitz matrix is not positive definite")
            log_error += np.log(error)
        x = np.concatenate([[1.0], y[: n - 1]]) / (error * column[0])
        return cls(x, float(n * np.log(column[0]) + log_error))

    def diagonal_sums(self) -> Array:
        """Sums over both k-th diagonals of T^-1 [n]: the gradient of log|T| for its column."""
        x, n = self.first / self.first[0], len(self.first)
        size = next_fast_len(2 * n, real=True)
        weighted = np.arange(n) * x
        fx, fw = rfft(x, size), rfft(weighted, size)
        plain = irfft(np.conj(fx) * fx, size)[:n]  # sum_i x_i x_{i+k}
        moment = irfft(np.conj(fw) * fx, size)[:n]  # sum_i i x_i x_{i+k}
        sums = ((n - np.arange(n)) * plain - 2 * moment) * self.first[0]
        sums[1:] *= 2
        return np.asarray(sums)

    def solve(self, rhs: Array) -> Array:
        """T^-1 B for B [n] or [n, m], by six FFTs of length 2 n for each column."""
        x, n = self.first / self.first[0], len(self.first)  # no square of x may underflow
        size = next_fast_len(2 * n, real=True)
        b = rhs.reshape(n, -1).T
        lower = rfft(x, size)
        upper = rfft(np.concatenate([[0.0], x[:0:-1]]), size)

        def half(spectrum: Array) -> Array:
            """G G' b for the lower Toeplitz G of that spectrum."""
            inner = irfft(np.conj(spectrum) * rfft(b, size, axis=1), size, axis=1)[:, :n]
            return np.asarray(irfft(spectrum * rfft(inner, size, axis=1), size, axis=1)[:, :n])

        return np.asarray((self.first[0] * (half(lower) - half(upper))).T.reshape(rhs.shape))
