"""Fast diagonalisation: linear systems with a sum of matrices, one along each axis of a tensor.

    A_1 x_1 U + A_2 x_2 U + ... = F         A_j [n_j, n_j],  U, F [n_1, ..., n_d],  d = 1, 2, 3
    A_j = Q_j T_j Q_j^H  (Schur; T_j is diagonal where A_j is symmetric)
    T_1 V + V T_2^T = Q_1^H F conj(Q_2)     triangular Sylvester equation, O(n^3), any number of F

Poisson, Helmholtz, heat and advection on boxes have this form for finite differences, Chebyshev
collocation and Gaussian processes alike. Method: Bartels and Stewart, Comm. ACM 15 (1972); the
recursion over blocks: Jonsson and Kagstrom, ACM Trans. Math. Softw. 28 (2002).

>>> import numpy as np
>>> laplacian = np.diag([2.0, 2.0, 2.0]) - np.diag([1.0, 1.0], 1) - np.diag([1.0, 1.0], -1)
>>> u = KroneckerSum([laplacian, laplacian]).solve(np.ones((3, 3)))
>>> bool(np.allclose(laplacian @ u + u @ laplacian.T, 1.0))
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg

from passband.errors import DataError

Array: TypeAlias = np.ndarray[Any, Any]

BLOCK = 96  # below this a Sylvester equation goes to LAPACK whole, above it splits into products
SINGULAR = 64 * np.finfo(float).eps  # rounding of the Schur form moves eigenvalues by a few eps


def along(matrix: Any, tensor: Array, axis: int) -> Array:
    """Apply a matrix [m, n] (dense or sparse) along one axis of a tensor [..., n, ...].

    >>> along(np.ones((1, 3)), np.ones((2, 3, 4)), axis=1).shape
    (2, 1, 4)
    """
    moved = np.moveaxis(tensor, axis, 0)
    out: Array = matrix @ moved.reshape(moved.shape[0], -1)
    return np.moveaxis(out.reshape(-1, *moved.shape[1:]), 0, axis)


@dataclass(frozen=True)
class Schur:
    """A = Q T Q^H with T upper triangular up to 2 x 2 blocks, diagonal where A is symmetric."""

    vectors: Array  # Q [n, n]
    upper: Array  # T [n, n]
    diagonal: bool

    @classmethod
    def of(cls, matrix: Array) -> Schur:
        if np.array_equal(matrix, matrix.T):
            values, vectors = linalg.eigh(matrix)
            return cls(vectors, np.diag(values), True)
        upper, vectors = linalg.schur(matrix, output="real")
        return cls(vectors, upper, False)

    @cached_property
    def eigenvalues(self) -> Array:
        values = np.diag(self.upper).astype(complex)
        # LAPACK leaves 2 x 2 blocks as [[a, b], [c, a]], b c < 0: a +- i sqrt(-b c).
        below, above = np.diag(self.upper, -1), np.diag(self.upper, 1)
        start = np.flatnonzero(below)
        size = np.sqrt(np.abs(below[start] * above[start]))
        values[start] += 1j * size
        values[start + 1] -= 1j * size
        return values

    @property
    def triangular(self) -> bool:
        """Whether T has no 2 x 2 block, which is to say that all eigenvalues are real."""
        return not np.diag(self.upper, -1).any()

    def complex(self) -> Schur:
        if self.triangular:
            return self
        upper, vectors = linalg.rsf2csf(self.upper, self.vectors)
        return Schur(vectors, upper, False)


class KroneckerSum:
    """Factors of sum_j (A_j along axis j), made once; each `solve` is then O(n^(d+1)).

    matrices   A_1 ... A_d, real, square, d = 1, 2 or 3; equal matrices are factored once
    Raises `DataError` for shapes that don't fit, NaN, and from `solve` for a singular sum.

    >>> KroneckerSum([np.eye(4), 2 * np.eye(5)]).solve(np.ones((4, 5)))[0, 0]  # 1 / (1 + 2)
    np.float64(0.3333333333333333)
    """

    def __init__(self, matrices: Sequence[Array]) -> None:
        self.matrices = [np.asarray(a, dtype=float) for a in matrices]
        if not 1 <= len(self.matrices) <= 3:
            raise DataError(f"{len(self.matrices)} matrices", expected="1 to 3, one per axis")
        for axis, a in enumerate(self.matrices):
            if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
                raise DataError(f"matrix {axis} has shape {a.shape}", expected="square, not empty")
            if not np.isfinite(a).all():
                raise DataError(f"matrix {axis} has NaN or infinite entries", expected="numbers")
        self.shape = tuple(len(a) for a in self.matrices)
        # What depends on the shift is kept for the shift last asked for.
        self._separation: tuple[float, float] | None = None
        self._line: tuple[float, tuple[Array, Array], float] | None = None

    @cached_property
    def factors(self) -> list[Schur]:
        found: list[Schur] = []
        for axis, a in enumerate(self.matrices):
            twins = (found[i] for i in range(axis) if np.array_equal(self.matrices[i], a))
            found.append(next(twins, None) or Schur.of(a))
        return found

    @cached_property
    def _plan(self) -> tuple[list[int], list[Schur]]:
        """In 3-D one axis is solved entry by entry; it goes first, and must be triangular."""
        order = list(range(len(self.factors)))
        if len(order) < 3:
            return order, self.factors
        # A diagonal axis has no coupling at all; a real triangular one keeps arithmetic real.
        order.sort(key=lambda j: (not self.factors[j].diagonal, not self.factors[j].triangular))
        factors = [self.factors[j] for j in order]
        return order, factors if factors[0].triangular else [f.complex() for f in factors]

    def separation(self, shift: float = 0.0) -> float:
        """How far from singular: smallest over largest |eigenvalue| of the sum (plus shift I)."""
        total: Array = np.asarray(shift, dtype=complex)
        for factor in self.factors:
            total = np.add.outer(total, factor.eigenvalues)
        sizes = np.abs(total)
        return float(sizes.min() / max(sizes.max(), np.finfo(float).tiny))

    def apply(self, tensor: Array) -> Array:
        """sum_j (A_j along axis j) of a tensor [n_1, ..., n_d]."""
        return np.asarray(sum(along(a, tensor, j) for j, a in enumerate(self.matrices)))

    def solve(self, rhs: Array, shift: float = 0.0) -> Array:
        """U [n_1, ..., n_d] with sum_j (A_j along axis j) U + shift U = rhs.

        The factors serve every right side and every shift. Raises `DataError` when the sum is
        singular to rounding.
        """
        rhs = np.asarray(rhs, dtype=float)
        if rhs.shape != self.shape:
            raise DataError(f"right side of shape {rhs.shape}", expected=f"{self.shape}")
        if len(self.shape) == 1:
            return self._solve_line(rhs, shift)
        if self._separation is None or self._separation[0] != shift:
            self._separation = (shift, self.separation(shift))
        if self._separation[1] <= SINGULAR:
            raise _singular(self._separation[1])
        order, factors = self._plan
        v = rhs.transpose(order)
        for axis, factor in enumerate(factors):
            v = along(factor.vectors.conj().T, v, axis)
        v = _triangular([f.upper for f in factors], [f.diagonal for f in factors], v, shift)
        for axis, factor in enumerate(factors):
            v = along(factor.vectors, v, axis)
        return np.ascontiguousarray(v.real.transpose(np.argsort(order)))

    def _solve_line(self, rhs: Array, shift: float) -> Array:
        if self._line is None or self._line[0] != shift:
            matrix = self.matrices[0] + shift * np.eye(len(rhs))
            lu, pivots, _ = linalg.lapack.dgetrf(matrix)
            rcond, _ = linalg.lapack.dgecon(lu, np.abs(matrix).sum(axis=0).max())
            self._line = (shift, (lu, pivots), float(rcond))
        _, factors, rcond = self._line
        if rcond <= np.finfo(float).eps:
            raise _singular(rcond)
        return np.asarray(linalg.lu_solve(factors, rhs))


def _singular(size: float) -> DataError:
    return DataError(
        f"the sum of matrices is singular to rounding (relative smallest eigenvalue {size:.1e})",
        expected="an equation with exactly one solution for these known values",
        mend="an eigenvalue of the operator was hit: change its coefficient, the box or the faces",
    )


def _triangular(uppers: list[Array], diagonal: list[bool], rhs: Array, shift: complex) -> Array:
    """Solve sum_j (T_j along axis j) V + shift V = rhs for triangular T_j."""
    if all(diagonal):
        total: Array = np.asarray(shift)
        for upper in uppers:
            total = np.add.outer(total, np.diag(upper))
        return np.asarray(rhs / total)
    if len(uppers) == 2:
        left = uppers[0] + shift * np.eye(len(uppers[0]))
        dtype = np.result_type(left, uppers[1], rhs)
        out = np.array(rhs, dtype=dtype, order="F")
        _sylvester(left.astype(dtype), uppers[1].astype(dtype), out)
        return out
    first = uppers[0]
    v = np.empty(rhs.shape, dtype=np.result_type(rhs, *uppers))
    for k in range(len(first) - 1, -1, -1):
        g = rhs[k]
        if not diagonal[0]:
            g = g - np.tensordot(first[k, k + 1 :], v[k + 1 :], axes=1)
        v[k] = _triangular(uppers[1:], diagonal[1:], g, shift + first[k, k])
    return v


def _sylvester(a: Array, b: Array, c: Array) -> None:
    """Overwrite c [n, m] with X, where a X + X b^T = c, a and b upper triangular up to blocks.

    Halving the longer side leaves almost all work to matrix products.
    """
    n, m = c.shape
    if max(n, m) <= BLOCK:
        # LAPACK conjugates when it transposes a complex b.
        solver = linalg.get_lapack_funcs("trsyl", (a, b))
        x, scale, _ = solver(a, b.conj(), c, tranb="C" if np.iscomplexobj(b) else "T")
        c[...] = x / scale
    elif n >= m:
        k = _middle(a)
        _sylvester(a[k:, k:], b, c[k:])
        c[:k] -= a[:k, k:] @ c[k:]
        _sylvester(a[:k, :k], b, c[:k])
    else:
        k = _middle(b)
        _sylvester(a, b[k:, k:], c[:, k:])
        c[:, :k] -= c[:, k:] @ b[:k, k:].T
        _sylvester(a, b[:k, :k], c[:, :k])


def _middle(upper: Array) -> int:
    """An index near the middle that cuts through no 2 x 2 block."""
    k = len(upper) // 2
    return k + 1 if upper[k, k - 1] != 0 else k
