"""A linear or semilinear equation on a tensor grid, given the derivative matrices of its axes.

    L u + N(u) = f at the free nodes,  u = g at the known ones     u [n_1, ..., n_d], d = 1, 2, 3
    L = sum_k c_k D_k           c_k a number or [n_1, ..., n_d];  D_"xy" = D_x along x, D_y along y
    (L + N'(u)) delta = f - L u - N(u)          damped Newton; a linear equation takes one step
                                                and one of iterative refinement
Each correction is solved by the cheapest way that holds: one LU in 1-D; fast diagonalisation where
every coefficient depends on its own axis only; else GMRES with fast diagonalisation of the averaged
coefficients as preconditioner, and LU of the whole matrix where GMRES stalls.

>>> import numpy as np
>>> x = np.linspace(0, 1, 3)
>>> second = 4 * np.array([[1.0, -2, 1], [1, -2, 1], [1, -2, 1]])
>>> equation = Collocation("x", [np.eye(3)], [second], {"xx": 1.0}, source=np.full(3, -2.0),
...                        known=np.array([True, False, True]), values=np.zeros(3))
>>> equation.solve()[0]                                # x (1 - x)
array([0.  , 0.25, 0.  ])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, gmres, splu

from passband.errors import DataError, ProblemError
from passband.parts.linalg import KroneckerSum, along

Array: TypeAlias = np.ndarray[Any, Any]
Pointwise: TypeAlias = tuple[Callable[[Array], Array], Callable[[Array], Array]]

# The largest systems that are given to LU as a whole: fill-in grows with the dimension.
SPARSE_LIMIT = {1: 10_000_000, 2: 400_000, 3: 30_000}
DENSE_LIMIT = 6_000


def outflow_faces(
    axes: str, terms: Mapping[str, float | Array], faces: Sequence[str]
) -> tuple[str, ...]:
    """Faces whose values a first-order axis can't take: its other face already determines u.

    Along an axis with first derivatives only, information runs one way; with values on both faces
    the one downstream is left to the equation. Where the direction changes inside, none is.

    >>> outflow_faces("xt", {"xx": -0.1, "t": 1.0}, ("x-", "x+", "t-", "t+"))
    ('t+',)
    """
    second = [np.mean(c) for key, c in terms.items() if len(key) == 2 and key[0] == key[1]]
    # u_t = k u_xx is well posed forward in time for k > 0 and backward for k < 0.
    direction = -np.sign(sum(second)) or 1.0
    out = []
    for axis in axes:
        if any(key.count(axis) == 2 for key in terms) or not {axis + "-", axis + "+"} <= {*faces}:
            continue
        speed = direction * np.asarray(terms.get(axis, 0.0))
        if np.all(speed >= 0):
            out.append(axis + "+")
        elif np.all(speed <= 0):
            out.append(axis + "-")
    return tuple(out)


class Collocation:
    """One equation on one grid.

    axes      one letter per axis, as in the keys of `terms`
    first     d/dx_j at the nodes, a dense or sparse matrix [n_j, n_j] per axis
    second    d2/dx_j2 likewise
    terms     derivative -> coefficient: number or [n_1, ..., n_d]
    source    f [n_1, ..., n_d]
    known     True where u is prescribed: whole faces; values: u there
    nonlinear (N, dN), pointwise
    krylov    the most GMRES iterations of one correction
    """

    def __init__(
        self, axes: str, first: Sequence[Any], second: Sequence[Any],
        terms: Mapping[str, float | Array], source: Array, known: Array, values: Array,
        nonlinear: Pointwise | None = None, *, krylov: int = 200,
    ) -> None:
        self.axes, self.terms = axes, dict(terms)
        self.first, self.second = list(first), list(second)
        self.source, self.known, self.values = source, known, values
        self.nonlinear, self.krylov = nonlinear, krylov
        self.shape: tuple[int, ...] = source.shape
        self.free = self._free_box()
        self.free_shape = source[self.free].shape
        self.separable, self._fast = self._fast_part()
        self.facts: dict[str, Any] = {"solver": [], "krylov_iterations": 0}
        self._factors: Callable[[Array], Array] | None = None  # LU, while the matrix stays

    # ---- the discrete equation -----------------------------------------------------------

    def apply(self, u: Array) -> Array:
        """L u on the whole grid."""
        total = np.zeros(self.shape)
        for key, coefficient in self.terms.items():
            total += coefficient * self._derivative(key, u)
        return total

    def residual(self, u: Array) -> Array:
        """f - L u - N(u) at the free nodes."""
        total = self.source - self.apply(u)
        if self.nonlinear:
            total -= self.nonlinear[0](u)
        return total[self.free]

    def _derivative(self, key: str, u: Array) -> Array:
        if len(key) == 2 and key[0] == key[1]:
            axis = self.axes.index(key[0])
            return along(self.second[axis], u, axis)
        for letter in key:
            axis = self.axes.index(letter)
            u = along(self.first[axis], u, axis)
        return u

    def _free_box(self) -> tuple[slice, ...]:
        """Known nodes are whole faces, so the free ones are a box: a slice per axis."""
        box = []
        for axis in range(self.known.ndim):
            lower, upper = (self.known.take(i, axis).all() for i in (0, -1))
            box.append(slice(int(lower), self.shape[axis] - int(upper)))
        free = tuple(box)
        if self.known[free].any() or self.known.sum() + self.known[free].size != self.known.size:
            raise DataError("known nodes are not whole faces", expected="a union of faces")
        if self.known[free].size == 0:
            raise DataError("no free node is left", expected="at least 3 nodes per axis")
        return free

    def _fast_part(self) -> tuple[bool, KroneckerSum | None]:
        """Matrices of the separable part at the free nodes, and whether that is all of L."""
        if len(self.axes) == 1:
            return False, None
        whole = True
        matrices = [np.zeros((n, n)) for n in self.free_shape]
        for key, coefficient in self.terms.items():
            if len(set(key)) > 1:
                whole = False  # mixed derivatives are left to the iteration
                continue
            inside = np.broadcast_to(np.asarray(coefficient, dtype=float), self.shape)[self.free]
            axis = self.axes.index(key[0]) if key else _steepest(inside)
            others = tuple(i for i in range(inside.ndim) if i != axis)
            profile = inside.mean(axis=others)
            spread = np.abs(inside - np.expand_dims(profile, others)).max()
            whole = whole and bool(spread <= 1e-13 * np.abs(inside).max())
            matrix = np.eye(len(profile))
            if key:
                matrix = {1: self.first, 2: self.second}[len(key)][axis]
                matrix = matrix[self.free[axis], self.free[axis]]
                matrix = matrix.toarray() if sparse.issparse(matrix) else matrix
            matrices[axis] += profile[:, None] * matrix
        return whole, KroneckerSum(matrices)

    # ---- corrections ---------------------------------------------------------------------

    def _correction(self, u: Array, residual: Array) -> Array:
        """delta [free] with (L + N'(u)) delta = residual."""
        slope = np.zeros(self.free_shape)
        if self.nonlinear:
            slope = np.broadcast_to(self.nonlinear[1](u), self.shape)[self.free].astype(float)
            self._factors = None
        if self._factors is not None:
            return self._factors(residual.ravel()).reshape(self.free_shape)
        if self._fast is not None and self.separable and not self.nonlinear:
            self._record("fast diagonalisation")
            try:
                return self._fast.solve(residual)
            except DataError as error:
                raise _no_solution(error.what) from None
        if self._fast is not None:
            found = self._iterate(self._fast, slope, residual, _norm(u))
            if found is not None:
                self._record("GMRES, fast diagonalisation")
                return found
        self._factors = self._factor(slope)
        return self._factors(residual.ravel()).reshape(self.free_shape)

    def _iterate(
        self, fast: KroneckerSum, slope: Array, residual: Array, size_of_u: float
    ) -> Array | None:
        """GMRES on the preconditioned system, whose residual is of the size of the error.

        None where the preconditioner is singular or the iteration stalls.
        """
        shift, size = float(slope.mean()), residual.size
        embedded = np.zeros(self.shape)

        def step(vector: Array) -> Array:
            v = vector.reshape(self.free_shape)
            embedded[self.free] = v
            return fast.solve(self.apply(embedded)[self.free] + slope * v, shift).ravel()

        def count(_: float) -> None:
            self.facts["krylov_iterations"] += 1

        try:
            start = fast.solve(residual, shift).ravel()
        except DataError:
            return None
        found, _ = gmres(
            LinearOperator((size, size), matvec=step, dtype=float), start,
            rtol=1e-10, atol=1e-12 * size_of_u,
            restart=min(50, self.krylov), maxiter=max(1, self.krylov // 50), callback=count,
            callback_type="pr_norm",
        )
        # A rough correction is enough: the Newton steps that follow refine it.
        good = _norm(start - step(found)) <= max(1e-2 * _norm(start), 1e-11 * size_of_u)
        return found.reshape(self.free_shape) if good else None

    def _factor(self, slope: Array) -> Callable[[Array], Array]:
        """LU of L + diag(slope), sparse where the derivative matrices are."""
        size, dim = slope.size, len(self.axes)
        thin = all(sparse.issparse(m) for m in (*self.first, *self.second))
        limit = SPARSE_LIMIT[dim] if thin else DENSE_LIMIT
        if size > limit:
            raise ProblemError(
                f"GMRES stalled on {size} unknowns, {self.facts['krylov_iterations']} iterations",
                expected=f"convergence, or at most {limit} unknowns for a direct solution",
                mend="take fewer points, a higher krylov_limit, or check that it is well posed",
            )
        self._record("sparse LU" if thin else "dense LU")
        matrix = self._assemble() + sparse.diags_array(slope.ravel())
        solve: Callable[[Array], Array]
        if thin:
            try:
                solve = splu(matrix.tocsc()).solve
            except RuntimeError:
                raise _no_solution("the matrix of the equation is singular") from None
        else:
            lu, pivots, _ = linalg.lapack.dgetrf(matrix.toarray())

            def solve(b: Array) -> Array:
                return np.asarray(linalg.lapack.dgetrs(lu, pivots, b)[0])

        # Inverse iteration finds the smallest eigenvalue if it is next to zero.
        probe = np.random.default_rng(0).standard_normal(size)
        with np.errstate(all="ignore"):
            for _ in range(2):
                probe, before = solve(probe), _norm(probe)
                probe, growth = probe / _norm(probe), _norm(probe) / before
        if not growth * (self._size + np.abs(slope).max()) < 1 / (4 * np.finfo(float).eps):
            raise _no_solution("the matrix of the equation is singular to rounding")
        return solve

    def _assemble(self) -> Any:
        total: Any = 0
        for key, coefficient in self.terms.items():
            product: Any = sparse.eye_array(1)
            for axis, letter in enumerate(self.axes):
                matrix = (sparse.eye_array(self.shape[axis], format="csr"), self.first[axis],
                          self.second[axis])[key.count(letter)]
                rows = sparse.csr_array(matrix)[self.free[axis], self.free[axis]]
                product = sparse.kron(product, rows, format="csr")
            inside = np.broadcast_to(np.asarray(coefficient, dtype=float), self.shape)[self.free]
            total = total + sparse.diags_array(inside.ravel()) @ product
        return total

    def _record(self, solver: str) -> None:
        if solver not in self.facts["solver"]:
            self.facts["solver"].append(solver)

    # ---- Newton --------------------------------------------------------------------------

    def solve(
        self, *, tolerance: float = 1e-9, steps: int = 30,
        after_step: Callable[[int, float, float], bool] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """u on the whole grid, and a report.

        tolerance   relative size of the last correction
        steps       the most Newton steps
        after_step  called with (step, residual, relative correction); False stops early

        The report: `steps`, `residuals` (root mean square, before each step and at the end),
        `corrections`, `converged`, `solver`, `krylov_iterations`.
        Raises `ProblemError` when Newton's method or a linear solver fails.
        """
        start = float(self.values[self.known].mean())  # N may be undefined far from the data
        u = np.where(self.known, self.values, start)
        residual = self.residual(u)
        if not np.isfinite(residual).all():
            raise _no_solution(f"N(u) is not finite at u = {start:.3g}, the mean of known values")
        residuals, corrections, converged = [_rms(residual)], [], False
        for step in range(1, steps + 1):
            delta = self._correction(u, residual)
            if not np.isfinite(delta).all():
                raise _no_solution("the matrix of the equation is singular")
            u, residual, share = self._damped(u, delta, residual, tolerance)
            if share == 0.0 and step == 1:
                raise _no_solution("the matrix of the equation is singular to rounding")
            change = share * _rms(delta) / max(_rms(u), np.finfo(float).tiny)
            residuals.append(_rms(residual))
            corrections.append(change)
            # Rounding may keep corrections above a tolerance that is set too low.
            settled = step > 1 and change > 0.5 * corrections[-2] and (
                residuals[-1] <= self._rounding(u)
            )
            converged = settled or (change <= tolerance and share in (0.0, 1.0))
            go_on = after_step is None or after_step(step, residuals[-1], change)
            if converged or not go_on:
                break
        else:
            raise _no_solution(
                f"no convergence in {steps} Newton steps: residual {residuals[0]:.2e} -> "
                f"{residuals[-1]:.2e}, last relative correction {corrections[-1]:.1e}"
            )
        return u, {
            "steps": len(corrections), "residuals": residuals, "corrections": corrections,
            "converged": converged, **self.facts,
        }

    def _damped(
        self, u: Array, delta: Array, residual: Array, tolerance: float
    ) -> tuple[Array, Array, float]:
        """The longest of the steps 1, 1/2, 1/4... that lowers the residual; and its length."""
        before, share = _rms(residual), 1.0
        while share > 1e-4:
            trial = u.copy()
            trial[self.free] += share * delta
            with np.errstate(all="ignore"):
                found = self.residual(trial)
                after = _rms(found)
            # Below the rounding of L u, or for a negligible step, residuals say nothing any more.
            if after <= max((1 - 1e-4 * share) * before, self._rounding(trial)) or (
                self.nonlinear and share == 1.0 and _rms(delta) <= tolerance * _rms(u)
            ):
                return trial, found, share
            if not self.nonlinear:
                return u, residual, 0.0  # refinement has reached rounding
            share /= 2
        raise _no_solution(
            f"Newton's method is stuck at the residual {before:.2e}: no step lowers it"
        )

    def _rounding(self, u: Array) -> float:
        """Size of the rounding errors in L u."""
        return float(np.finfo(float).eps * self._size * np.abs(u).max())

    @cached_property
    def _size(self) -> float:
        """Bound of |L|: the largest row sums of the derivative matrices."""
        total = 0.0
        for key, coefficient in self.terms.items():
            size = float(np.abs(coefficient).max())
            for letter in set(key):
                matrix = (self.first, self.second)[key.count(letter) - 1][self.axes.index(letter)]
                size *= float(abs(matrix).sum(axis=1).max())
            total += size
        return total


def _steepest(inside: Array) -> int:
    """The axis along which a coefficient of u varies most."""
    return int(np.argmax([np.ptp(inside, axis=axis).max() for axis in range(inside.ndim)]))


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values))


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _no_solution(what: str) -> ProblemError:
    return ProblemError(
        what, expected="an equation with one solution near the known values",
        mend="check the signs in operator and nonlinear, the faces of boundary, and dN; or take "
        "more points",
    )
