"""High-frequency PDEs with Gaussian processes whose spectrum is learned (GP-HM, arXiv 2311.04465).

U [M1, ..., Md] are the unknown values on a uniform grid; axis j has a mixture kernel with
parameters theta_j = (log w, log a, mu), Q components (see `passband.parts.kernels`).

    C_j = K_j + jitter I,    vec(U) ~ N(0, C_1 (x) ... (x) C_d)
    D_j'  = K_j'  C_j^-1,    D_j'' = K_j'' C_j^-1          derivatives of the conditional mean
    log joint = - 1/2 log|C| - 1/2 vec(U)' C^-1 vec(U)
                + lam_b (Nb/2 log t1 - t1/2 |U_b - g|^2)   values on the given faces
                +        Nc/2 log t2 - t2/2 |L U + N(U) - f|^2   the equation, at all grid points

Everything is maximised jointly. No prior on log w is a Jeffreys prior on w: components that aren't
needed fade, the others move to the true frequencies. Cost O(sum M_j^3 + M sum M_j), M = prod M_j.
This file is the paper's objective and procedure; `fast.py` reaches the same solution in seconds.

>>> from passband.pde import Problem
>>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
>>> model = GridGP(problem, points=(20,), tops=(5.0,), kernel="stm")
>>> loss = -model.log_joint()                       # any optimiser may take it from here
>>> loss.backward()
>>> model.u.grad.shape
torch.Size([20])
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passband.data.pde import Problem
from passband.errors import DataError, PassbandWarning, ProblemError
from passband.parts.kernels import KERNELS, MixtureKernel, Theta
from passband.parts.toeplitz_torch import multiply, solve

RAISES = 1000.0  # how far the jitter may grow: from 1e-6 to 1e-3


class Prior(nn.Module):
    """One Gaussian process on the grid: kernel parameters and the values U."""

    def __init__(
        self, kernel: MixtureKernel, thetas: Sequence[Theta], shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.kernel = kernel
        self.u = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))
        self.thetas = nn.ParameterList([nn.Parameter(torch.stack(list(t))) for t in thetas])

    def theta(self, axis: int) -> Theta:
        return Theta(*self.thetas[axis])


class Field:
    """One evaluation of a prior on its grid: every operation is Toeplitz along one axis."""

    def __init__(
        self, prior: Prior, thetas: Sequence[Theta], lags: Sequence[Tensor], jitter: float
    ) -> None:
        self.u = prior.u
        self.tables = [
            prior.kernel.tables(z, theta) for z, theta in zip(lags, thetas, strict=True)
        ]
        self.columns = []  # of C_j = K_j + jitter I
        for k, _, _ in self.tables:
            corner = torch.zeros_like(k)
            corner[0] = jitter
            self.columns.append(k + corner)
        # C_j^-1 U along each axis by itself, and log|C_j|.
        solved = [self.solve(self.u, j) for j in range(len(self.columns))]
        self.solved = [x for x, _ in solved]
        self.log_dets = [log_det for _, log_det in solved]

    def solve(self, tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """C^-1 along one axis, and log|C|."""
        moved = torch.movedim(tensor, axis, 0)
        flat, log_det = solve(self.columns[axis], moved.reshape(len(moved), -1))
        return torch.movedim(flat.reshape(moved.shape), 0, axis), log_det

    def multiply(self, tensor: Tensor, axis: int, order: int) -> Tensor:
        """K, K' or K'' along one axis."""
        moved = torch.movedim(tensor, axis, 0)
        lags = self.tables[axis][order]
        flat = multiply(lags, moved.reshape(len(moved), -1), antisymmetric=order == 1)
        return torch.movedim(flat.reshape(moved.shape), 0, axis)

    @property
    def alpha(self) -> Tensor:
        """C^-1 U along all axes."""
        out = self.solved[0]
        for j in range(1, len(self.columns)):
            out, _ = self.solve(out, j)
        return out

    def log_prior(self) -> Tensor:
        """log N(U | 0, C_1 (x) ... (x) C_d) without the constant."""
        total = self.u.numel()
        log_det = sum(total / len(c) * d for c, d in zip(self.columns, self.log_dets, strict=True))
        # U' C^-1 U splits between the axes: <C_1^-1 U, C_2^-1 ... C_d^-1 U>.
        rest = self.u if len(self.columns) == 1 else self.solved[1]
        for j in range(2, len(self.columns)):
            rest, _ = self.solve(rest, j)
        return -0.5 * log_det - 0.5 * (self.solved[0] * rest).sum()

    def derivative(self, key: str, axes: str) -> Tensor:
        """A derivative of the conditional mean at the grid points."""
        if not key:
            return self.u
        i, j = axes.index(key[0]), axes.index(key[-1])
        if len(key) == 2 and i != j:
            inner = self.multiply(self.solved[i], i, 1)
            return self.multiply(self.solve(inner, j)[0], j, 1)
        return self.multiply(self.solved[i], i, len(key))


class GridGP(nn.Module):
    """The paper's model of one problem: U, log t1, log t2, theta per axis.

    problem    the PDE; its exact solution is never looked at
    points     M per axis; tops: the highest starting frequency per axis, cycles per unit length
    kernel     "stm", "gm", or the ablations "matern", "se"
    boundary   "literal": U itself meets g (the paper); "mean": the conditional mean does
    rows       "all" grid points carry the equation (the paper), or the "interior" ones
    """

    def __init__(
        self, problem: Problem, points: Sequence[int], tops: Sequence[float],
        kernel: str = "stm", *, components: int = 30, jitter: float = 1e-6,
        boundary_weight: float = 200.0, boundary: str = "literal", rows: str = "all",
        linear_weights: bool = False,
    ) -> None:
        super().__init__()
        self.problem, self.jitter, self.boundary_weight = problem, jitter, boundary_weight
        self.jitter_limit = RAISES * jitter
        self.boundary, self.linear_weights = boundary, linear_weights
        self.warnings: list[str] = []
        _check_uniform(problem)
        discrete = problem.on(problem.grid(points))
        self.nodes = discrete.nodes
        self.lags = [torch.from_numpy(x - x[0]) for x in discrete.nodes]
        self.source = torch.from_numpy(discrete.source)
        self.terms: dict[str, Any] = {
            key: torch.from_numpy(c) if isinstance(c, np.ndarray) else c
            for key, c in discrete.terms.items()
        }
        self.rows = torch.ones(discrete.shape, dtype=torch.bool)
        if rows == "interior":
            self.rows = torch.from_numpy(~discrete.known)
        # Each face by itself: nodes on two faces count twice, as in the paper.
        self.faces = []
        for face in problem.faces:
            axis, end = problem.axes.index(face[0]), 0 if face[1] == "-" else -1
            g = torch.as_tensor(discrete.values.take(end, axis=axis))
            self.faces.append((axis, end, g))
        thetas = [Theta.linspace(components, top) for top in tops]
        self.prior = Prior(KERNELS[kernel], thetas, discrete.shape)
        if linear_weights:
            with torch.no_grad():
                for theta in self.prior.thetas:
                    theta[0].exp_()
        self.log_t = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        # A first GP that was frozen: itself, its values, and L of its mean.
        self.frozen: list[tuple[str, list[Theta], Tensor]] = []
        self.base = torch.zeros(discrete.shape, dtype=torch.float64)
        self.base_faces = torch.zeros_like(self.base)
        self.base_part = torch.zeros_like(self.base)

    @property
    def u(self) -> nn.Parameter:
        return self.prior.u

    def theta(self, axis: int) -> Theta:
        """Parameters of an axis. With `linear_weights` w itself was learned: back to its log."""
        theta = self.prior.theta(axis)
        if self.linear_weights:
            # |w|: a step across zero must not end a component's gradient.
            theta = theta._replace(log_w=theta.log_w.abs().clamp_min(1e-30).log())
        return theta

    def add_extra_gp(self) -> None:
        """Freeze what is learned and add a second GP with one Matern-5/2 component to it.

        The paper's way out of two hard cases: t1 is kept, t2 starts again at 1.
        """
        with torch.no_grad():
            self.frozen.append(self._learned())
            field = self.evaluate()
            self.base_part = self.base_part + self._linear_part(field)
            self.base_faces = self.base_faces + self._for_faces(field)
            self.base = self.base + self.prior.u
        self.linear_weights = False
        one = [Theta.linspace(1, 0.0) for _ in self.nodes]
        self.prior = Prior(KERNELS["matern"], one, self.base.shape)
        self.log_t = nn.Parameter(self.log_t.detach() * torch.tensor([1.0, 0.0]).double())

    # ---- the objective -------------------------------------------------------------------

    def log_joint(self) -> Tensor:
        """The log joint probability (without constants in 2 pi), a scalar to maximise."""
        field = self.evaluate()
        count, gap = self.boundary_gap(field)
        residual = self.residual(field)[self.rows]
        t1, t2 = self.log_t[0], self.log_t[1]
        on_faces = 0.5 * count * t1 - 0.5 * t1.exp() * gap
        on_grid = 0.5 * residual.numel() * t2 - 0.5 * t2.exp() * residual.square().sum()
        return field.log_prior() + self.boundary_weight * on_faces + on_grid

    def evaluate(self) -> Field:
        """The field at the current parameters; the jitter grows by 10 where C is indefinite."""
        wrong = {str(p.dtype) for p in self.parameters()} - {"torch.float64"}
        if wrong:
            raise DataError(
                f"the model's parameters were moved to {wrong.pop()}",
                expected=f"torch.float64: at a jitter of {self.jitter:g} nothing else is left of "
                "the kernel matrix", mend="convert it back with model.double()",
            )
        thetas = [self.theta(j) for j in range(len(self.lags))]
        while True:
            try:
                return Field(self.prior, thetas, self.lags, self.jitter)
            except (np.linalg.LinAlgError, ValueError) as error:
                finite = all(bool(torch.isfinite(p).all()) for theta in thetas for p in theta)
                if not finite or self.jitter * 10 > 1.001 * self.jitter_limit:
                    raise DataError(
                        f"the kernel matrix is not positive definite at jitter {self.jitter:g}",
                        expected=f"a factor at a jitter of at most {self.jitter_limit:g}",
                        mend="lower the learning rate, or use mode='fast'",
                    ) from error
                self.jitter *= 10
                self.warn(f"Cholesky failed: the jitter was raised to {self.jitter:g}")

    def boundary_gap(self, field: Field) -> tuple[int, Tensor]:
        """Number of face values and the sum of their squared gaps."""
        u = self._for_faces(field) + self.base_faces
        gaps = [u.select(axis, end) - g for axis, end, g in self.faces]
        return sum(g.numel() for g in gaps), torch.stack([g.square().sum() for g in gaps]).sum()

    def _for_faces(self, field: Field) -> Tensor:
        """What meets the boundary values: U itself or the conditional mean, on the grid."""
        if self.boundary == "literal":
            return self.u
        u = field.alpha
        for j in range(len(self.lags)):
            u = field.multiply(u, j, 0)
        return u

    def residual(self, field: Field) -> Tensor:
        """L u + N(u) - f at the grid points [M1, ..., Md]."""
        out = self._linear_part(field) + self.base_part - self.source
        if self.problem.nonlinear:
            out = out + self.problem.nonlinear[0](self.u + self.base)  # type: ignore[operator]
        return out

    def _linear_part(self, field: Field) -> Tensor:
        parts = [c * field.derivative(k, self.problem.axes) for k, c in self.terms.items()]
        return torch.stack(parts).sum(0)

    def best_log_t(self) -> Tensor:
        """log t1, log t2 that maximise the objective, all else fixed: log(count / gap)."""
        field = self.evaluate()
        count, gap = self.boundary_gap(field)
        residual = self.residual(field)[self.rows]
        tiny = torch.finfo(torch.float64).tiny
        gaps = torch.stack([gap, residual.square().sum()]).clamp_min(tiny)
        return torch.log(torch.tensor([count, residual.numel()]).double() / gaps)

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        warnings.warn(text, PassbandWarning, stacklevel=2)

    # ---- what comes out ------------------------------------------------------------------

    def fields(self) -> list[tuple[str, list[Theta], Tensor]]:
        """(kernel name, theta per axis, alpha = C^-1 U) of each GP; u is the sum of K alpha."""
        return [*self.frozen, self._learned()]

    def _learned(self) -> tuple[str, list[Theta], Tensor]:
        with torch.no_grad():
            alpha = self.evaluate().alpha.clone()
            thetas = [Theta(*(p.clone() for p in self.theta(j))) for j in range(len(self.lags))]
        name = next(n for n, k in KERNELS.items() if k is self.prior.kernel)
        return name, thetas, alpha


def _check_uniform(problem: Problem) -> None:
    """Arrays on another grid would be interpolated, and u solved where nobody asked for it."""
    for axis, x in zip(problem.axes, problem.nodes or (), strict=False):
        steps = np.diff(x)
        if problem.has_arrays and not np.allclose(steps, steps[0], rtol=1e-6, atol=0):
            raise ProblemError(
                f"nodes of axis {axis!r} are not uniform: steps from {steps.min():.3g} to "
                f"{steps.max():.3g}", expected="a uniform grid in mode 'paper'",
                mend="take mode='fast', or give the data as callables",
            )
