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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passband.data.pde import Problem
from passband.errors import DataError, PassbandWarning
from passband.parts.kernels import KERNELS, MixtureKernel, Theta

JITTER_LIMIT = 1e-3


def toeplitz(lags: Tensor, antisymmetric: bool = False) -> Tensor:
    """[M] values at lags 0, h, 2h... -> [M, M]; an antisymmetric one for first derivatives."""
    n = len(lags)
    mirrored = -lags[1:] if antisymmetric else lags[1:]
    both = torch.cat([mirrored.flip(0), lags])  # lag of row i, column j: i - j
    # Row i reads both[n - 1 + i - j]: windows of the reversed row, a strided view, no gather.
    return both.flip(0).unfold(0, n, 1).flip(0)


def along(matrix: Tensor, tensor: Tensor, axis: int) -> Tensor:
    """A matrix [m, n] applied along one axis of [..., n, ...]."""
    return torch.movedim(torch.tensordot(matrix, tensor, dims=([1], [axis])), 0, axis)


class Prior(nn.Module):
    """One Gaussian process on the grid: kernel parameters and the values U."""

    def __init__(self, kernel: MixtureKernel, thetas: Sequence[Theta], shape: Sequence[int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.u = nn.Parameter(torch.zeros(*shape, dtype=torch.float64))
        self.thetas = nn.ParameterList([nn.Parameter(torch.stack(list(t))) for t in thetas])

    def theta(self, axis: int) -> Theta:
        return Theta(*self.thetas[axis])


@dataclass
class Whitened:
    """What one evaluation needs of an axis: K, K', K'' and the Cholesky factor of C."""

    value: Tensor
    first: Tensor
    second: Tensor
    factor: Tensor

    def solve(self, tensor: Tensor, axis: int) -> Tensor:
        """C^-1 along one axis."""
        moved = torch.movedim(tensor, axis, 0)
        flat = torch.cholesky_solve(moved.reshape(len(moved), -1), self.factor)
        return torch.movedim(flat.reshape(moved.shape), 0, axis)


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
        self.boundary, self.linear_weights = boundary, linear_weights
        self.warnings: list[str] = []
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
        self.base = torch.zeros(discrete.shape, dtype=torch.float64)  # a frozen first GP's values
        self.base_field: Prior | None = None

    @property
    def u(self) -> nn.Parameter:
        return self.prior.u

    def theta(self, axis: int) -> Theta:
        """Parameters of an axis. With `linear_weights` w itself was learned: back to its log."""
        theta = self.prior.theta(axis)
        if self.linear_weights:
            theta = theta._replace(log_w=theta.log_w.clamp_min(1e-30).log())
        return theta

    def add_extra_gp(self) -> None:
        """Freeze what is learned and add a second GP with one Matern-5/2 component to it.

        The paper's way out of two hard cases: t1 is kept, t2 starts again at 1.
        """
        with torch.no_grad():
            self.base = self.base + self.prior.u
        self.base_field = self.prior
        self.linear_weights = False
        one = [Theta.linspace(1, 0.0) for _ in self.nodes]
        self.prior = Prior(KERNELS["matern"], one, self.base.shape)
        self.log_t = nn.Parameter(torch.stack([self.log_t.detach()[0], torch.zeros(()).double()]))

    # ---- the objective -------------------------------------------------------------------

    def log_joint(self) -> Tensor:
        """The log joint probability (without constants in 2 pi), a scalar to maximise."""
        axes = self._whiten(self.prior, self.theta)
        total = self.u.numel()
        log_det = sum(
            (total / len(a.factor)) * 2 * a.factor.diagonal().log().sum() for a in axes
        )
        alpha = self.u
        for j, a in enumerate(axes):
            alpha = a.solve(alpha, j)
        log_prior = -0.5 * log_det - 0.5 * (self.u * alpha).sum()
        count, gap = self.boundary_gap(axes, alpha)
        residual = self.residual(axes)[self.rows]
        t1, t2 = self.log_t[0], self.log_t[1]
        on_faces = 0.5 * count * t1 - 0.5 * t1.exp() * gap
        on_grid = 0.5 * residual.numel() * t2 - 0.5 * t2.exp() * residual.square().sum()
        return log_prior + self.boundary_weight * on_faces + on_grid

    def boundary_gap(self, axes: list[Whitened], alpha: Tensor) -> tuple[int, Tensor]:
        """Number of face values and the sum of their squared gaps."""
        u = self.u
        if self.boundary == "mean":
            u = alpha
            for j, a in enumerate(axes):
                u = along(a.value, u, j)
        u = u + self.base
        gaps = [u.select(axis, end) - g for axis, end, g in self.faces]
        return sum(g.numel() for g in gaps), torch.stack([g.square().sum() for g in gaps]).sum()

    def residual(self, axes: list[Whitened] | None = None) -> Tensor:
        """L u + N(u) - f at the grid points [M1, ..., Md]."""
        axes = axes or self._whiten(self.prior, self.theta)
        out = self._apply(axes, self.u) - self.source
        if self.base_field is not None:
            out = out + self._frozen_part()
        if self.problem.nonlinear:
            out = out + self.problem.nonlinear[0](self.u + self.base)  # type: ignore[operator]
        return out

    def best_log_t(self) -> Tensor:
        """log t1, log t2 that maximise the objective for everything else fixed: log(count / gap)."""
        axes = self._whiten(self.prior, self.theta)
        alpha: Tensor = self.u
        for j, a in enumerate(axes):
            alpha = a.solve(alpha, j)
        count, gap = self.boundary_gap(axes, alpha)
        residual = self.residual(axes)[self.rows]
        tiny = torch.finfo(torch.float64).tiny
        gaps = torch.stack([gap, residual.square().sum()]).clamp_min(tiny)
        return torch.log(torch.tensor([count, residual.numel()]).double() / gaps)

    def _frozen_part(self) -> Tensor:
        if not hasattr(self, "_frozen"):
            assert self.base_field is not None
            with torch.no_grad():
                axes = self._whiten(self.base_field, self.base_field.theta)
                self._frozen = self._apply(axes, self.base_field.u)
        return self._frozen

    def _apply(self, axes: list[Whitened], u: Tensor) -> Tensor:
        total = torch.zeros_like(u)
        solved: dict[int, Tensor] = {}
        for key, coefficient in self.terms.items():
            if len(key) == 2 and key[0] != key[1]:
                i, j = (self.problem.axes.index(c) for c in key)
                value = along(axes[i].first, axes[i].solve(u, i), i)
                value = along(axes[j].first, axes[j].solve(value, j), j)
            elif key:
                j = self.problem.axes.index(key[0])
                if j not in solved:
                    solved[j] = axes[j].solve(u, j)
                value = along(axes[j].second if len(key) == 2 else axes[j].first, solved[j], j)
            else:
                value = u
            total = total + coefficient * value
        return total

    def _whiten(self, prior: Prior, theta_of: Any) -> list[Whitened]:
        out = []
        for axis, lags in enumerate(self.lags):
            k, k1, k2 = prior.kernel.tables(lags, theta_of(axis))
            value = toeplitz(k)
            factor = self._cholesky(value)
            out.append(Whitened(value, toeplitz(k1, antisymmetric=True), toeplitz(k2), factor))
        return out

    def _cholesky(self, value: Tensor) -> Tensor:
        """Factor of K + jitter I; the jitter grows by 10 where rounding makes it indefinite."""
        identity = torch.eye(len(value), dtype=value.dtype)
        while True:
            factor, failed = torch.linalg.cholesky_ex(value + self.jitter * identity)
            if not failed:
                return factor
            if not torch.isfinite(value).all() or self.jitter * 10 > JITTER_LIMIT:
                raise DataError(
                    f"the kernel matrix is not positive definite at jitter {self.jitter:g}",
                    expected=f"a factor at a jitter of at most {JITTER_LIMIT:g}",
                    mend="lower the learning rate, or use mode='fast'",
                )
            self.jitter *= 10
            self.warn(f"Cholesky failed: the jitter was raised to {self.jitter:g}")

    def warn(self, text: str) -> None:
        import warnings

        self.warnings.append(text)
        warnings.warn(text, PassbandWarning, stacklevel=2)

    # ---- what comes out ------------------------------------------------------------------

    def fields(self) -> list[tuple[str, list[Theta], Tensor]]:
        """(kernel name, theta per axis, alpha = C^-1 U) of each GP; u is the sum of K alpha."""
        out = []
        for prior, theta_of in (
            (self.base_field, self.base_field.theta if self.base_field else None),
            (self.prior, self.theta),
        ):
            if prior is None:
                continue
            with torch.no_grad():
                axes = self._whiten(prior, theta_of)
                alpha = prior.u
                for j, a in enumerate(axes):
                    alpha = a.solve(alpha, j)
                name = next(n for n, k in KERNELS.items() if k is prior.kernel)
                thetas = [Theta(*(p.clone() for p in theta_of(j))) for j in range(len(axes))]
                out.append((name, thetas, alpha.clone()))
        return out
