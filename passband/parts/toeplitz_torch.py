"""Toeplitz matrices of a stationary kernel as differentiable operations, in O(n^2) or one product.

    solve(c, B)      C^-1 B and log|C| for C = toeplitz(c)
    multiply(t, B)   T B for symmetric or antisymmetric T
Gradients reach the first column (the lags) without an n x n gradient where B is thin: the sums over
diagonals of x y' are a correlation, done by FFT. CPU, float64.

>>> c = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64, requires_grad=True)
>>> x, log_determinant = solve(c, torch.ones(3, 1, dtype=torch.float64))
>>> log_determinant.backward()
>>> c.grad.shape
torch.Size([3])
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import linalg
from scipy.fft import irfft, next_fast_len, rfft
from torch import Tensor

from passband.errors import DataError
from passband.parts.toeplitz import ToeplitzInverse, diagonal_sums

Array: TypeAlias = np.ndarray[Any, Any]

THIN = 16  # columns up to which FFTs beat matrix products


class _Inverse:
    """C^-1 for a symmetric positive definite column: Durbin for thin right sides, else Cholesky."""

    def __init__(self, column: Array, thin: bool) -> None:
        self.column = column
        if thin:
            self.fast: ToeplitzInverse | None = ToeplitzInverse.of(column)
            self.log_determinant = self.fast.log_determinant
        else:
            self.fast = None
            if not np.isfinite(column).all():  # some LAPACKs factor NaN without complaint
                raise np.linalg.LinAlgError("Toeplitz matrix is not positive definite")
            self.factor = linalg.cholesky(linalg.toeplitz(column), lower=True, check_finite=False)
            self.log_determinant = 2 * float(np.log(np.diag(self.factor)).sum())

    def solve(self, rhs: Array) -> Array:
        if self.fast is None:
            return np.asarray(linalg.cho_solve((self.factor, True), rhs, check_finite=False))
        x = self.fast.solve(rhs)
        # The residual by a plain product: FFTs round relative to the largest entry, and optimisers
        # such as Adam magnify the noise in the small ones.
        return np.asarray(x + self.fast.solve(rhs - _product(self.column, self.column, x)))

    def diagonal_sums(self) -> Array:
        if self.fast is not None:
            return self.fast.diagonal_sums()
        inverse, _ = linalg.lapack.dpotri(self.factor, lower=1)
        return diagonal_sums(inverse + np.tril(inverse, -1).T)


def correlate(left: Array, right: Array) -> tuple[Array, Array]:
    """sum_i left_{i+k} right_i and sum_i left_i right_{i+k}, over columns of [n, m] -> two [n]."""
    n = len(left)
    if left.shape[1] > THIN:
        return _both_diagonals(left @ right.T)
    size = next_fast_len(2 * n, real=True)
    product = (rfft(left, size, axis=0) * np.conj(rfft(right, size, axis=0))).sum(axis=1)
    full = irfft(product, size)
    upper = np.concatenate([full[:1], full[-1 : -n : -1]])
    return full[:n], upper


def _both_diagonals(matrix: Array) -> tuple[Array, Array]:
    """Sums of the k-th lower and the k-th upper diagonal of [n, n]."""
    n = len(matrix)
    wide = np.zeros((n, 2 * n))
    wide[:, :n] = matrix[:, ::-1]
    sums = wide.ravel()[: n * (2 * n - 1)].reshape(n, 2 * n - 1).sum(axis=0)
    return sums[n - 1 :], sums[n - 1 :: -1]


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, column: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
        b = rhs.detach().numpy()
        inverse = _Inverse(column.detach().numpy(), thin=b.shape[1] <= THIN)
        x = inverse.solve(b)
        ctx.inverse, ctx.x = inverse, x
        return torch.from_numpy(x), torch.tensor(inverse.log_determinant, dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_log: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = ctx.inverse.solve(grad_x.numpy())
        below, above = correlate(y, ctx.x)  # dC = -Y X', collapsed onto the lags
        column = -(below + above)
        column[0] *= 0.5
        if float(grad_log) != 0.0:
            column = column + float(grad_log) * ctx.inverse.diagonal_sums()
        return torch.from_numpy(column), torch.from_numpy(y)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lags: Tensor, rhs: Tensor, sign: float) -> Tensor:  # type: ignore[override]
        t, b = lags.detach().numpy(), rhs.detach().numpy()
        ctx.t, ctx.b, ctx.sign = t, b, sign
        return torch.from_numpy(_product(t, sign * t, b))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        g = grad.numpy()
        below, above = correlate(g, ctx.b)  # dT = G B'
        lags = below + ctx.sign * above
        lags[0] = below[0] if ctx.sign > 0 else 0.0
        return torch.from_numpy(lags), torch.from_numpy(_product(ctx.sign * ctx.t, ctx.t, g)), None


def _product(first_column: Array, first_row: Array, b: Array) -> Array:
    return np.asarray(linalg.toeplitz(first_column, first_row) @ b)


def _check_precision(*tensors: Tensor) -> None:
    wrong = {str(t.dtype) for t in tensors} - {"torch.float64"}
    if wrong:
        raise DataError(
            f"a tensor of {wrong.pop()}", expected="torch.float64: kernel matrices are conditioned "
            "like 1e8 and worse", mend="convert with .double()",
        )


def solve(column: Tensor, rhs: Tensor) -> tuple[Tensor, Tensor]:
    """C^-1 B [n, m] and log|C| for C = toeplitz(column [n]), symmetric positive definite.

    Raises `numpy.linalg.LinAlgError` when C is not positive definite, `DataError` for anything but
    float64.
    """
    _check_precision(column, rhs)
    x, log_determinant = _Solve.apply(column, rhs)  # type: ignore[no-untyped-call]
    return x, log_determinant


def multiply(lags: Tensor, rhs: Tensor, antisymmetric: bool = False) -> Tensor:
    """T B [n, m] for T_ij = lags[i - j], even or odd in i - j; lags [n] at i - j = 0 ... n - 1."""
    _check_precision(lags, rhs)
    out: Tensor = _Multiply.apply(lags, rhs, -1.0 if antisymmetric else 1.0)  # type: ignore[no-untyped-call]
    return out
