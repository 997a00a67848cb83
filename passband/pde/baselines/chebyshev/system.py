"""Chebyshev collocation as a baseline, with grids that grow until the series of u has decayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from passband.bench.budget import Budget
from passband.bench.system import Monitor
from passband.data.pde import Problem
from passband.pde.baselines.chebyshev.model import (
    derivative_matrices,
    interpolate_at,
    interpolate_on,
    nodes,
    tails,
)
from passband.pde.grid import GridConfig, GridSolver

Array = np.ndarray


class ChebyshevConfig(GridConfig):
    refine: bool = Field(
        True,
        description="enlarge the axes whose Chebyshev series has not decayed, where points is None",
    )
    resolved: float = Field(
        1e-8, gt=0, lt=1,
        description="an axis is resolved when its last coefficients are this small, relative",
    )
    largest_by_dimension: tuple[int, int, int] = Field(
        (3000, 800, 100), description="refinement stops at this many points per axis, in 1, 2, 3-D"
    )


class Chebyshev(GridSolver):
    """
    >>> import numpy as np
    >>> from passband.data.pde import Problem
    >>> problem = Problem({"x": (0, 1)}, {"xx": 1.0}, source=lambda x: np.exp(x), exact=np.exp)
    >>> u = Chebyshev.from_preset("smoke").solve(problem)
    >>> bool(abs(u(np.array([0.5]))[0] - np.exp(0.5)) < 1e-11)
    True
    """

    Config = ChebyshevConfig
    presets: ClassVar = {
        # The paper compares at one number of points for all methods.
        "paper": {"points_by_dimension": (400, 400, 64), "refine": False},
        "small": {},
        "smoke": {"points_by_dimension": (60, 40, 16), "refine": False},
    }

    def _solve(self, problem: Problem, budget: Budget, monitor: Monitor) -> dict[str, Any]:
        """Solve, then enlarge unresolved axes by half and solve again, within the limits."""
        sizes = self.sizes(problem)
        largest = self.config.largest_by_dimension[problem.dim - 1]
        grows = self.config.refine and self.config.points is None
        meter, steps = budget.start(), 0
        while True:
            report = self._solve_with(sizes, problem, budget, monitor)
            steps += report["steps"]
            tail = tails(self.values)
            # An unresolved axis spoils the series along the others too: the worst go first.
            worst = max((t for n, t in zip(sizes, tail, strict=True) if n < largest), default=0.0)
            limit = max(self.config.resolved, 0.01 * worst)
            wanted = tuple(
                min(n + n // 2, max(n, largest)) if t > limit else n
                for n, t in zip(sizes, tail, strict=True)
            )
            meter.spend(report["steps"])
            if not grows or wanted == sizes or meter.exhausted:
                return {
                    **report, "steps": steps, "tails": tail,
                    "resolved": max(tail) <= self.config.resolved,
                }
            sizes = wanted

    def nodes(self, problem: Problem, sizes: Sequence[int]) -> tuple[Array, ...]:
        return tuple(nodes(n, *ends) for n, ends in zip(sizes, problem.box.values(), strict=True))

    def derivatives(self, nodes: Sequence[Array]) -> tuple[list[Any], list[Any]]:
        pairs = [derivative_matrices(len(x), x[-1] - x[0]) for x in nodes]
        return [first for first, _ in pairs], [second for _, second in pairs]

    def solution_on(self, axes: tuple[Array, ...]) -> Array:
        return interpolate_on(*self.solved(), axes)

    def solution(self, points: Array) -> Array:
        return interpolate_at(*self.solved(), points)
