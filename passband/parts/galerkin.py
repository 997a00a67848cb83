"""A linear or semilinear equation in a tensor basis, solved by projection.

    u = sum Z_ab.. phi_a(x) psi_b(y)..,   L u + N(u) = f inside,  u = g on whole faces
    per axis: values, first and second derivatives of r basis functions at M nodes, [M, r]
    Z = lift of g  +  N_1 (x) N_2 (x) .. Y         N_j: combinations that vanish on known faces
    W_j' (L u + N(u) - f) = 0                      W_j: orthonormal, the same functions inside

The nodes outnumber the functions, so what the basis can't represent is projected out instead of
being interpolated: on an oversampled uniform grid this keeps four more digits than collocation at
selected nodes. For -u'' the projected matrix is near symmetric definite, whatever was truncated.
Newton's method outside; corrections by one LU in 1-D, by fast diagonalisation for separable
operators, else by GMRES preconditioned with it.

>>> x = np.linspace(0, 1, 21)
>>> basis = AxisBasis(np.stack([x**0, x, x**2], 1), np.stack([0 * x, x**0, 2 * x], 1),
...                   np.stack([0 * x, 0 * x, 2 + 0 * x], 1), known=(0, -1))
>>> equation = Galerkin("x", [basis], {"xx": 1.0}, np.full(21, -2.0), np.zeros(21))
>>> bool(np.allclose(equation.solve()[0], [0, 1, -1]))          # u = x - x^2
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, gmres

from passband.errors import DataError, ProblemError
from passband.parts.collocation import Pointwise
from passband.parts.linalg import KroneckerSum, along

Array: TypeAlias = np.ndarray[Any, Any]

# Relative size of a Newton step up to which one that lowers nothing is rounding.
ROUNDING = 1e-5


class AxisBasis:
    """Basis functions of one axis at its nodes.

    value, first, second   [M, r] each
    known                  the ends with prescribed values: (), (0,), (-1,) or (0, -1)
    """

    def __init__(
        self, value: Array, first: Array, second: Array, known: tuple[int, ...]
    ) -> None:
        self.orders = (value, first, second)
        self.known = known
        self.nodes, self.size = value.shape
        self.inside = slice(int(0 in known), self.nodes - int(-1 in known))
        ends = value[list(known)]  # [b, r]
        self.lift = np.linalg.pinv(ends) if known else np.zeros((self.size, 0))
        self.null = linalg.null_space(ends) if known else np.eye(self.size)  # [r, r - b]
        if self.null.shape[1] < 1 or self.null.shape[1] > self.nodes - len(known):
            raise ProblemError(
                f"{self.size} basis functions for {len(known)} known ends and {self.nodes} nodes",
                expected="more functions than known ends, fewer than nodes", mend="more points",
            )
        self.trial = value[self.inside] @ self.null
        self.test, upper = np.linalg.qr(self.trial)  # [inside, r - b]
        self.mass = upper  # test' value null

    @cached_property
    def project(self) -> Array:
        """Least-squares coefficients of nodal values, [r, M]."""
        return np.linalg.pinv(self.orders[0], rcond=1e-12)

    @cached_property
    def unmass(self) -> Array:
        """Inverse of the mass, [r - b, r - b]."""
        return np.asarray(linalg.solve_triangular(self.mass, np.eye(len(self.mass))))

    def matrix(self, order: int, coefficient: float | Array = 1.0) -> Array:
        """The projected operator c(x) d^order, with the mass divided out on the right."""
        c = np.broadcast_to(np.asarray(coefficient, dtype=float), (self.nodes,))[self.inside]
        raw = self.test.T @ (c[:, None] * (self.orders[order][self.inside] @ self.null))
        return np.asarray(linalg.solve_triangular(self.mass, raw.T, trans="T").T)


class Galerkin:
    """One equation in one tensor basis.

    axes      one letter per axis, as in the keys of `terms`
    bases     one `AxisBasis` per axis
    terms     derivative -> coefficient: number or [M1, ..., Md]
    source    f at the nodes; values: prescribed u at nodes of known faces, anything elsewhere
    """

    def __init__(
        self, axes: str, bases: Sequence[AxisBasis], terms: Mapping[str, float | Array],
        source: Array, values: Array, nonlinear: Pointwise | None = None, *, krylov: int = 200,
    ) -> None:
        self.axes, self.bases, self.terms = axes, list(bases), dict(terms)
        self.source, self.values = source, values
        self.nonlinear, self.krylov = nonlinear, krylov
        self.inside = tuple(b.inside for b in self.bases)
        self.krylov_iterations = 0

    # ---- between coefficients and nodes --------------------------------------------------

    def on_nodes(self, z: Array, key: str = "") -> Array:
        """A derivative of u at the nodes: Z [r1, ..] -> [M1, ..]."""
        for j, basis in enumerate(self.bases):
            z = along(basis.orders[key.count(self.axes[j])], z, j)
        return z

    def apply(self, z: Array) -> Array:
        """L u at the nodes."""
        return np.asarray(sum(c * self.on_nodes(z, key) for key, c in self.terms.items()))

    def lift(self, gap: Array) -> Array:
        """Coefficients of a function with the given values on all known faces."""
        z = np.zeros(tuple(b.size for b in self.bases))
        for j, basis in enumerate(self.bases):
            if not basis.known:
                continue
            rest = (gap - self.on_nodes(z)).take(list(basis.known), axis=j)
            for i, other in enumerate(self.bases):
                rest = along(basis.lift if i == j else other.project, rest, i)
            z = z + rest
        return z

    def _embed(self, y: Array) -> Array:
        for j, basis in enumerate(self.bases):
            y = along(basis.null, y, j)
        return y

    def _test(self, nodal: Array) -> Array:
        inner = nodal[self.inside]
        for j, basis in enumerate(self.bases):
            inner = along(basis.test.T, inner, j)
        return inner

    # ---- the projected operator ----------------------------------------------------------

    @cached_property
    def _separable(self) -> tuple[bool, list[Array]]:
        """Matrices of the part that acts along single axes, and whether that is all of L."""
        whole = True
        matrices: list[Any] = [0.0 for _ in self.bases]
        shape = self.source.shape
        for key, c in self.terms.items():
            if len(set(key)) > 1:
                whole = False  # mixed derivatives are left to the iteration
                continue
            field = np.broadcast_to(np.asarray(c, dtype=float), shape)
            axis = self.axes.index(key[0]) if key else 0
            others = tuple(i for i in range(field.ndim) if i != axis)
            profile = field.mean(axis=others)
            spread = np.abs(field - np.expand_dims(profile, others)).max()
            whole = whole and bool(spread <= 1e-13 * np.abs(field).max())
            matrices[axis] = matrices[axis] + self.bases[axis].matrix(len(key), profile)
        return whole, matrices

    @cached_property
    def _fast(self) -> KroneckerSum:
        return KroneckerSum(self._separable[1])

    def _unmass(self, y: Array) -> Array:
        for j, basis in enumerate(self.bases):
            y = along(basis.unmass, y, j)
        return y

    def _correction(self, slope: Array | None, rhs: Array) -> Array:
        """Y with W' (L + N'(u)) (N Y) = rhs."""
        if len(self.bases) == 1:
            basis = self.bases[0]
            parts = [basis.matrix(len(key), c) for key, c in self.terms.items()]
            matrix: Array = np.sum(parts, axis=0)
            if slope is not None:
                matrix = matrix + basis.matrix(0, slope)
            return self._unmass(KroneckerSum([matrix]).solve(rhs))
        if slope is None and self._separable[0]:
            return self._unmass(self._fast.solve(rhs))
        shift = float(slope[self.inside].mean()) if slope is not None else 0.0

        def step(vector: Array) -> Array:
            z = self._embed(self._unmass(vector.reshape(rhs.shape)))
            nodal = self.apply(z)
            if slope is not None:
                nodal = nodal + slope * self.on_nodes(z)
            return self._fast.solve(self._test(nodal), shift).ravel()

        def count(_: float) -> None:
            self.krylov_iterations += 1

        start = self._fast.solve(rhs, shift).ravel()
        found, failed = gmres(
            LinearOperator((rhs.size, rhs.size), matvec=step, dtype=float), start, rtol=1e-9,
            restart=min(50, self.krylov), maxiter=max(1, self.krylov // 50), callback=count,
            callback_type="pr_norm",
        )
        if failed and np.linalg.norm(start - step(found)) > 0.1 * np.linalg.norm(start):
            raise ProblemError(
                f"GMRES stalled after {self.krylov_iterations} iterations",
                expected="an equation close to a separable one, with a unique solution",
                mend="raise krylov_limit, or check signs and faces",
            )
        return self._unmass(found.reshape(rhs.shape))

    # ---- Newton --------------------------------------------------------------------------

    def residual(self, z: Array) -> Array:
        """f - L u - N(u) at the nodes."""
        out = self.source - self.apply(z)
        return out - self.nonlinear[0](self.on_nodes(z)) if self.nonlinear else out

    def solve(
        self, start: Array | None = None, *, steps: int = 30, tolerance: float = 1e-11
    ) -> tuple[Array, int]:
        """Coefficients Z [r1, ..., rd] and the Newton steps taken.

        Linear equations take one step and one of iterative refinement. Raises `ProblemError` when
        the matrix is singular or Newton's method does not settle.
        """
        z = self.lift(self.values) if start is None else start
        z = z + self.lift(self.values - self.on_nodes(z))
        rhs = self._test(self.residual(z))
        first = float(np.linalg.norm(rhs))
        limit = steps if self.nonlinear else 2
        for step in range(1, limit + 1):
            slope = self.nonlinear[1](self.on_nodes(z)) if self.nonlinear else None
            slope = None if slope is None else np.broadcast_to(slope, self.source.shape)
            try:
                delta = self._embed(self._correction(slope, rhs))
            except ProblemError:
                raise
            except DataError as error:  # of the linear algebra, which knows no equations
                raise _singular(error.what) from None
            if not np.isfinite(delta).all():
                raise _singular("the matrix of the equation is singular")
            z, rhs, share = self._damped(z, delta, rhs)
            change = _norm(delta)
            if change <= tolerance * _norm(z):
                return z, step
            if share == 0.0:  # at rounding where the step was small, else stuck
                if not self.nonlinear or change <= ROUNDING * _norm(z):
                    return z, step
                break
        if self.nonlinear:
            raise ProblemError(
                f"no convergence in {step} Newton steps: {first:.2e} -> {_norm(rhs):.2e}",
                expected="a solution near that of the linear part",
                mend="check nonlinear and its derivative, or take more points",
            )
        return z, limit

    def _damped(self, z: Array, delta: Array, rhs: Array) -> tuple[Array, Array, float]:
        """The longest of the steps 1, 1/2, 1/4... that lowers the projected residual."""
        before, share = _norm(rhs), 1.0
        while share > 1e-3:
            trial = z + share * delta
            with np.errstate(all="ignore"):
                found = self._test(self.residual(trial))
            if _norm(found) <= before:
                return trial, found, share
            share /= 2
        return z, rhs, 0.0  # rounding: nothing lowers it any more


def _singular(what: str) -> ProblemError:
    return ProblemError(
        what, expected="an equation with one solution for these faces",
        mend="check signs in operator, and the faces of boundary",
    )


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values))
