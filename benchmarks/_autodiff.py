"""The objective of GP-HM as one would write it first: automatic differentiation of everything.

The kernel is a function of two numbers; its derivatives come from differentiating it, for each of
the M x M pairs and Q components of an axis; the parameters' gradients from differentiating that
again. It is what the benchmarks measure the closed forms on Toeplitz lags against, and what the
tests compare them with: nothing of `passband.parts` is used.

>>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
>>> model = AutodiffGP(problem, points=20, top=5.0, kernel="stm")
>>> (-model.log_joint()).backward()
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from passband.data.pde import Problem


def student(x: Tensor, y: Tensor, log_w: Tensor, log_a: Tensor, mu: Tensor) -> Tensor:
    """Matern-5/2 envelope times cosine: one pair of points, one component."""
    z = x - y
    r = torch.where(z >= 0, z, -z)  # |z| has derivative 0 at 0, and k'' would be 0 there
    s = math.sqrt(5.0) * log_a.exp()
    envelope = (1 + s * r + s**2 * r**2 / 3) * torch.exp(-s * r)
    return log_w.exp() * envelope * torch.cos(2 * math.pi * mu * z)


def gauss(x: Tensor, y: Tensor, log_w: Tensor, log_a: Tensor, mu: Tensor) -> Tensor:
    """Gaussian envelope times cosine: one pair of points, one component."""
    z = x - y
    return log_w.exp() * torch.exp(-log_a.exp() * z**2) * torch.cos(2 * math.pi * mu * z)


PAIRS = {"stm": student, "gm": gauss}


def matrix(function: Callable[..., Tensor], nodes: Tensor, theta: Tensor) -> Tensor:
    """A function of two points and a component, over all pairs, summed over components [M, M]."""
    components = vmap(function, (None, None, 0, 0, 0))
    table = vmap(vmap(components, (None, 0, None, None, None)), (0, None, None, None, None))
    return table(nodes, nodes, *theta).sum(-1)


class AutodiffGP(nn.Module):
    """The paper's model of u_xx (+ u_yy) = f with values on all faces; M points on each axis."""

    def __init__(
        self, problem: Problem, points: int, top: float, kernel: str, *, components: int = 30,
        jitter: float = 1e-6, boundary_weight: float = 200.0,
    ) -> None:
        super().__init__()
        self.k, self.jitter, self.boundary_weight = PAIRS[kernel], jitter, boundary_weight
        self.second = grad(grad(self.k))
        grid = problem.on(problem.grid(points))
        self.nodes = [torch.from_numpy(x) for x in grid.nodes]
        self.source, values = torch.from_numpy(grid.source), torch.from_numpy(grid.values)
        self.ends = [(axis, end) for axis in range(problem.dim) for end in (0, -1)]
        self.faces = torch.cat([values.select(*face).reshape(-1) for face in self.ends])
        self.u = nn.Parameter(torch.zeros_like(self.source))
        start = torch.zeros(3, components, dtype=torch.float64)
        start[0] = -math.log(components)
        start[2] = torch.linspace(0, top, components, dtype=torch.float64)
        self.thetas = nn.ParameterList([nn.Parameter(start.clone()) for _ in self.nodes])
        self.log_t = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def log_joint(self) -> Tensor:
        u, total = self.u, self.u.numel()
        laplacian, alpha = torch.zeros_like(u), u
        log_det = torch.zeros((), dtype=torch.float64)
        for axis, (x, theta) in enumerate(zip(self.nodes, self.thetas, strict=True)):
            c = matrix(self.k, x, theta) + self.jitter * torch.eye(len(x), dtype=torch.float64)
            factor = torch.linalg.cholesky(c)
            log_det = log_det + 2 * factor.diagonal().log().sum() * total / len(x)
            laplacian = laplacian + along(
                matrix(self.second, x, theta), along(factor, u, axis, solve=True), axis
            )
            alpha = along(factor, alpha, axis, solve=True)
        gap = torch.cat([u.select(*face).reshape(-1) for face in self.ends]) - self.faces
        residual = laplacian - self.source
        t1, t2 = self.log_t
        prior = -0.5 * log_det - 0.5 * (u * alpha).sum()
        on_faces = 0.5 * gap.numel() * t1 - 0.5 * t1.exp() * gap.square().sum()
        on_grid = 0.5 * total * t2 - 0.5 * t2.exp() * residual.square().sum()
        return prior + self.boundary_weight * on_faces + on_grid


def along(matrix: Tensor, tensor: Tensor, axis: int, solve: bool = False) -> Tensor:
    """A product with a matrix along an axis; or with the inverse of L L', given L."""
    moved = tensor.movedim(axis, 0)
    flat = moved.reshape(len(moved), -1)
    out = torch.cholesky_solve(flat, matrix) if solve else matrix @ flat
    return out.reshape(moved.shape).movedim(0, axis)
