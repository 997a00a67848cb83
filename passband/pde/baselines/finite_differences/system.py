"""Finite differences as a baseline: grid, matrices and splines for the shared Newton solver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from passband.data.pde import Problem
from passband.parts.spline import spline_at, spline_on
from passband.pde.baselines.finite_differences.model import difference_matrices
from passband.pde.grid import GridSolver

Array = np.ndarray


class FiniteDifferences(GridSolver):
    """
    >>> import numpy as np
    >>> from passband.data.pde import Problem
    >>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
    >>> u = FiniteDifferences.from_preset("smoke").solve(problem)
    >>> round(float(u(np.array([0.5]))[0]), 9)
    0.25
    """

    presets: ClassVar = {
        "paper": {"points_by_dimension": (400, 400, 64)},
        "small": {},
        "smoke": {"points_by_dimension": (60, 40, 16)},
    }

    def nodes(self, problem: Problem, sizes: Sequence[int]) -> tuple[Array, ...]:
        return problem.grid(sizes)

    def derivatives(self, nodes: Sequence[Array]) -> tuple[list[Any], list[Any]]:
        first, second = zip(*map(difference_matrices, nodes), strict=True)
        return list(first), list(second)

    def solution_on(self, axes: tuple[Array, ...]) -> Array:
        return spline_on(*self.solved(), axes)

    def solution(self, points: Array) -> Array:
        return spline_at(*self.solved(), points)
