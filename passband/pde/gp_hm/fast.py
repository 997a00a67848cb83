"""The fast way to GP-HM: seconds instead of 1e5 to 1e6 Adam steps.

Alternates two closed steps until the residual between the grid points stops falling:

    solve   u for fixed kernels: the limit t1, t2 -> infinity of the paper's objective, as a
            projection in the leading eigenvectors of each axis's kernel matrix
                K_j = V_j Lambda_j V_j',  basis phi = K_j(., grid) V_j Lambda_j^-1
    learn   theta for fixed u: log p(U | theta) of the Kronecker GP, L-BFGS-B in
            (log w, log a, mu) inside bounds; Durbin's recursion makes a step O(M^2)

The iterate returned is the one whose conditional mean has the smallest residual at the midpoints
of the grid. No truth is involved. Differences from the paper's procedure: u is not learned by
gradient steps, truncation of eigenvalues stands in for the jitter when solving (the jitter stays
in the likelihood), and equations hold in the least-squares sense inside, not at face nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import linalg, optimize

from passband.data.pde import Problem
from passband.errors import ProblemError
from passband.parts.collocation import outflow_faces
from passband.parts.galerkin import AxisBasis, Galerkin
from passband.parts.kernels import KERNELS, MixtureKernel, Theta
from passband.parts.linalg import along
from passband.parts.toeplitz import ToeplitzInverse, autocorrelation, eigenbasis
from passband.pde.gp_hm.residual import Residual

Array = np.ndarray

LOG_W = (-25.0, 5.0)  # bounds of log w; U is scaled to unit mean square
FLATTEST = 0.005  # the narrowest component: bandwidth in units of 1 / length


@dataclass(frozen=True)
class Axis:
    """One axis: its uniform grid, its kernel, and the eigenbasis of the kernel matrix."""

    nodes: Array
    kernel: MixtureKernel
    theta: Theta
    weights: Array  # [M, r]: phi_i(x) = sum_m k(x, x_m) weights[m, i]
    eigenvalues: Array  # [r]
    basis: AxisBasis

    @classmethod
    def of(
        cls, nodes: Array, kernel: MixtureKernel, theta: Theta, known: tuple[int, ...],
        tolerance: float,
    ) -> Axis:
        uniform = _uniform(nodes)
        if uniform:  # to the last bit: the functions must be those of the Toeplitz matrix
            nodes = np.linspace(nodes[0], nodes[-1], len(nodes))
        with torch.no_grad():
            tables = kernel.tables(torch.from_numpy(nodes - nodes[0]), theta)
            k, k1, k2 = (t.numpy() for t in tables)
        if uniform:
            values, vectors = eigenbasis(k, tolerance)
            matrices = (linalg.toeplitz(k), linalg.toeplitz(k1, -k1), linalg.toeplitz(k2))
        else:
            matrices = evaluate(kernel, theta, nodes, nodes)
            values, vectors = np.linalg.eigh(matrices[0])
            kept = values > tolerance * values[-1]
            values, vectors = values[kept], vectors[:, kept]
        weights = vectors / values
        basis = AxisBasis(*(m @ weights for m in matrices), known)  # type: ignore[arg-type]
        return cls(nodes, kernel, theta, weights, values, basis)

    def at(self, x: Array, orders: Sequence[int] = (0,)) -> list[Array]:
        """Basis functions (or derivatives) at points [N] -> [N, r] for each order."""
        tables = evaluate(self.kernel, self.theta, x, self.nodes)
        return [tables[order] @ self.weights for order in orders]


def evaluate(
    kernel: MixtureKernel, theta: Theta, x: Array, nodes: Array, chunk: int = 500_000
) -> tuple[Array, ...]:
    """k, k', k'' between points [N] and nodes [M] -> three [N, M], in bounded memory."""
    with torch.no_grad():
        if _same_spacing(x, nodes):
            # x_i - x_m depends on i - m only: N + M values instead of N M.
            step = (nodes[-1] - nodes[0]) / (len(nodes) - 1)
            lags = x[0] - nodes[0] + step * np.arange(1 - len(nodes), len(x))
            tables = kernel.tables(torch.from_numpy(lags), theta)
            zero = len(nodes) - 1  # where the lag of x_0 and the first node stands
            return tuple(
                linalg.toeplitz(t.numpy()[zero:], t.numpy()[zero::-1]) for t in tables
            )
        rows = max(1, chunk // (len(nodes) * len(theta.log_w)))
        parts = [
            kernel.tables(torch.from_numpy(np.subtract.outer(x[i : i + rows], nodes)), theta)
            for i in range(0, len(x), rows)
        ]
    return tuple(torch.cat(p).numpy() for p in zip(*parts, strict=True))


def _same_spacing(x: Array, nodes: Array) -> bool:
    return (
        len(x) > 1 and _uniform(x) and _uniform(nodes)
        and bool(np.isclose(np.ptp(x) / (len(x) - 1), np.ptp(nodes) / (len(nodes) - 1), rtol=1e-9))
    )


@dataclass(frozen=True)
class Iterate:
    """One solution: kernels, coefficients, and how well the equation holds between the nodes."""

    axes: list[Axis]
    coefficients: Array  # Z [r1, ..., rd]
    residual: float
    newton_steps: int

    @property
    def values(self) -> Array:
        """u on the grid."""
        return on_grid([a.basis.orders[0] for a in self.axes], self.coefficients)


def on_grid(matrices: Sequence[Array], tensor: Array) -> Array:
    for j, matrix in enumerate(matrices):
        tensor = along(matrix, tensor, j)
    return tensor


class FastSolver:
    """Solve and learn on one grid.

    tops        highest frequency of the kernels per axis; may not exceed the grid's Nyquist
    tolerance   eigenvalues below this share of the largest are truncated
    """

    def __init__(
        self, problem: Problem, nodes: Sequence[Array], tops: Sequence[float], kernel: str, *,
        components: int = 30, jitter: float = 1e-6, tolerance: float = 1e-14,
        krylov: int = 200, newton: int = 30, linear_weights: bool = False,
    ) -> None:
        self.kernel, self.jitter, self.tolerance = KERNELS[kernel], jitter, tolerance
        self.krylov, self.newton, self.linear_weights = krylov, newton, linear_weights
        discrete = problem.on(nodes)
        outflow = outflow_faces(problem.axes, discrete.terms, problem.faces)
        if outflow:
            kept = {f: g for f, g in problem.boundary.items() if f not in outflow}  # type: ignore[union-attr]
            problem = replace(problem, boundary=kept)
            discrete = problem.on(nodes)
        self.problem, self.discrete, self.outflow = problem, discrete, outflow
        self.known = [
            tuple(e for s, e in (("-", 0), ("+", -1)) if a + s in problem.faces)
            for a in problem.axes
        ]
        self.tops = list(tops)
        self.start = [
            start_theta(self.kernel, components, top, x[-1] - x[0])
            for top, x in zip(self.tops, discrete.nodes, strict=True)
        ]
        self.residual = Residual(problem, discrete.nodes)

    # ---- solve ---------------------------------------------------------------------------

    def solve(self, thetas: Sequence[Theta], warm: Array | None = None) -> Iterate:
        """u for fixed kernels. `warm`: values on the grid from which Newton's method starts."""
        d = self.discrete
        axes = [
            Axis.of(x, self.kernel, theta, known, self.tolerance)
            for x, theta, known in zip(d.nodes, thetas, self.known, strict=True)
        ]
        equation = Galerkin(
            self.problem.axes, [a.basis for a in axes], d.terms, d.source, d.values,
            self.problem.nonlinear, krylov=self.krylov,
        )
        start = None
        if warm is not None and self.problem.nonlinear:
            start = on_grid([a.basis.project for a in axes], warm)
        z, steps = equation.solve(start, steps=self.newton)
        return Iterate(axes, z, self._measure(axes, z), steps)

    def _measure(self, axes: Sequence[Axis], z: Array) -> float:
        """The relative residual between the nodes."""
        tables = [a.at(x, (0, 1, 2)) for a, x in zip(axes, self.residual.middle, strict=True)]

        def derivative(key: str) -> Array:
            orders = [key.count(letter) for letter in self.problem.axes]
            return on_grid([t[order] for t, order in zip(tables, orders, strict=True)], z)

        return self.residual.relative(derivative, on_grid([a.basis.orders[0] for a in axes], z))

    # ---- learn ---------------------------------------------------------------------------

    def learn(self, iterate: Iterate, steps: int) -> list[Theta]:
        """theta per axis from log p(U | theta), each given the others' present kernels."""
        z = iterate.coefficients
        scale = float(np.sqrt(np.mean(iterate.values**2)))
        if scale == 0.0:
            return [a.theta for a in iterate.axes]
        thetas = []
        for j, axis in enumerate(iterate.axes):
            rows = axis.basis.orders[0] @ self._whitened(iterate.axes, z / scale, j)  # [M, m]
            others = int(np.prod([len(a.nodes) for a in iterate.axes])) // len(axis.nodes)
            thetas.append(self._learn_axis(axis, rows, others, self.tops[j], steps))
        return balanced(thetas)

    def _whitened(self, axes: Sequence[Axis], z: Array, j: int) -> Array:
        """Z with every axis but j whitened by its C^-1/2, unfolded: [r_j, few columns]."""
        for i, other in enumerate(axes):
            if i != j:
                # On the eigenbasis C has the eigenvalues lambda + jitter.
                z = np.moveaxis(
                    np.moveaxis(z, i, -1) / np.sqrt(other.eigenvalues + self.jitter), -1, i
                )
        flat = np.moveaxis(z, j, 0).reshape(z.shape[j], -1)
        left, sizes, _ = np.linalg.svd(flat, full_matrices=False)
        kept = sizes > 1e-9 * sizes[0]
        return np.asarray(left[:, kept] * sizes[kept])

    def _learn_axis(
        self, axis: Axis, rows: Array, others: int, top: float, steps: int
    ) -> Theta:
        x = axis.nodes
        code = Coordinates(self.kernel, top, x[-1] - x[0], self.linear_weights)
        uniform = _uniform(x)
        likelihood = negative_log_likelihood if uniform else dense_negative_log_likelihood
        gaps = torch.from_numpy(x - x[0] if uniform else np.subtract.outer(x, x))

        def objective(flat: Array) -> tuple[float, Array]:
            p = torch.tensor(flat, requires_grad=True)
            table = self.kernel.value(gaps, code.decode(p))
            try:
                value, slope = likelihood(table.detach().numpy(), rows, others, self.jitter)
            except np.linalg.LinAlgError:
                return 1e12, np.zeros_like(flat)
            # A scalar, as an explicit output gradient makes torch import its symbolic shapes.
            (gradient,) = torch.autograd.grad((table * torch.from_numpy(slope)).sum(), p)
            return value, gradient.numpy()

        bounds = code.bounds(len(axis.theta.mu))
        start = np.clip(code.encode(axis.theta), *np.array(bounds).T)
        with one_thread():
            found = optimize.minimize(
                objective, start, jac=True, method="L-BFGS-B", bounds=bounds,
                options={"maxiter": steps, "maxcor": 20},
            )
        return code.decode(torch.from_numpy(found.x))

    # ---- both ----------------------------------------------------------------------------

    def run(
        self, rounds: int, steps: int, patience: int = 2, enough: float = 1e-10,
        after_round: Callable[[int, Iterate, Iterate], bool] | None = None,
        first: Iterate | None = None,
    ) -> tuple[Iterate, list[float]]:
        """Solve, then learn and solve up to `rounds` times; the iterate of smallest residual.

        Stops when the residual is below `enough`, or has not improved by 10 % for `patience`
        rounds. after_round(round, latest, best) may end it by False.
        """
        latest = best = first or self.solve(self.start)
        residuals, stale = [best.residual], 0
        go_on = after_round is None or after_round(0, latest, best)
        for number in range(1, rounds + 1):
            if not go_on or stale >= patience or best.residual <= enough:
                break
            try:
                latest = self.solve(self.learn(latest, steps), latest.values)
            except ProblemError:
                break  # a kernel too poor to solve with: the best so far stands
            residuals.append(latest.residual)
            stale = 0 if latest.residual < 0.9 * best.residual else stale + 1
            if latest.residual < best.residual:
                best = latest
            go_on = after_round is None or after_round(number, latest, best)
        return best, residuals


@dataclass(frozen=True)
class Coordinates:
    """Theta as the vector that an optimiser moves, with its bounds.

    (log w or w, log a, mu x length): frequencies in units of 1 / length have a curvature like the
    logarithms'.
    """

    kernel: MixtureKernel
    top: float
    length: float
    linear_weights: bool

    def encode(self, theta: Theta) -> Array:
        w = theta.log_w.exp() if self.linear_weights else theta.log_w
        return np.asarray(torch.cat([w, theta.log_a, theta.mu.abs() * self.length]))

    def decode(self, p: torch.Tensor) -> Theta:
        w, log_a, mu = p.chunk(3)
        return Theta(w.log() if self.linear_weights else w, log_a, mu / self.length)

    def bounds(self, components: int) -> list[tuple[float, float]]:
        low, high = np.exp(LOG_W) if self.linear_weights else LOG_W
        flat, steep = FLATTEST / self.length, max(self.top, 4 / self.length)
        scales = (self.kernel.scale(flat), self.kernel.scale(steep))
        each = [(low, high), scales, (0.0, self.top * self.length)]
        return [pair for pair in each for _ in range(components)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Tables of some ten thousand numbers: handing them to threads costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _uniform(x: Array) -> bool:
    return bool(np.allclose(np.diff(x), x[1] - x[0], rtol=1e-6, atol=0))


def start_theta(kernel: MixtureKernel, components: int, top: float, length: float) -> Theta:
    """Equal weights; frequencies linspace(0, top), each component reaching half way to the next.

    The paper's log a = 0 leaves gaps in the spectrum wherever the spacing top / (Q - 1) is wide
    against the envelope. Kernels without frequencies get scales spread geometrically instead.
    """
    theta = Theta.linspace(components, top)
    if kernel.cosine:
        spread = max(0.5 * top / max(components - 1, 1), 0.5 / length)
        return theta._replace(log_a=torch.full_like(theta.mu, kernel.scale(spread)))
    bands = np.geomspace(0.5 / length, max(top, 1 / length), components)
    return theta._replace(log_a=torch.tensor([kernel.scale(b) for b in bands]).double())


def balanced(thetas: Sequence[Theta]) -> list[Theta]:
    """Only the product of the axes' variances means anything: share it out equally."""
    sizes = [float(torch.logsumexp(t.log_w, 0)) for t in thetas]
    mean = sum(sizes) / len(sizes)
    return [
        t._replace(log_w=t.log_w + (mean - size)) for t, size in zip(thetas, sizes, strict=True)
    ]


def negative_log_likelihood(
    column: Array, rows: Array, others: int, jitter: float
) -> tuple[float, Array]:
    """1/2 log|C| + 1/(2 others) sum_b b' C^-1 b and its gradient for the kernel's first column.

    column [M] of K; rows [M, m]: the data, whitened along the other axes; C = K + jitter I
    """
    c = column.copy()
    c[0] += jitter
    inverse = ToeplitzInverse.of(c)
    alpha = inverse.solve(rows)
    # One step of refinement: the inverse is good to 1e-5 where C is conditioned like 1e10.
    alpha += inverse.solve(rows - linalg.matmul_toeplitz(c, alpha))
    value = 0.5 * inverse.log_determinant + 0.5 * float((rows * alpha).sum()) / others
    outer = autocorrelation(alpha.T)
    outer[1:] *= 2
    return value, 0.5 * inverse.diagonal_sums() - 0.5 * outer / others


def dense_negative_log_likelihood(
    matrix: Array, rows: Array, others: int, jitter: float
) -> tuple[float, Array]:
    """The same from the full matrix K [M, M], for grids that are not uniform."""
    c = matrix + jitter * np.eye(len(matrix))
    factor = linalg.cho_factor(c, lower=True)
    alpha = linalg.cho_solve(factor, rows)
    log_det = 2 * float(np.log(np.diag(factor[0])).sum())
    value = 0.5 * log_det + 0.5 * float((rows * alpha).sum()) / others
    return value, 0.5 * linalg.cho_solve(factor, np.eye(len(c))) - 0.5 * alpha @ alpha.T / others
