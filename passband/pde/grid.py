"""What classical solvers on tensor grids share: sizes, faces, Newton, state. They differ in nodes,
derivative matrices and interpolation.

    class Mine(GridSolver):
        def nodes(self, problem, sizes): ...      # one increasing array per axis
        def derivatives(self, nodes): ...         # first and second, lists of matrices
        solution_on, solution
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import Field

from passband.bench.budget import Budget
from passband.bench.system import Config, Monitor
from passband.data.pde import Problem
from passband.errors import CheckpointError, ConfigError
from passband.parts.collocation import Collocation, outflow_faces
from passband.pde.tasks import Solver

Array = np.ndarray

LARGEST = 8_000_000  # unknowns; a dozen float64 copies of them are held at once


class GridConfig(Config):
    points: int | tuple[int, ...] | None = Field(
        None,
        description="grid points per axis, faces included (at least 5); one number for all axes "
        "or one per axis; None takes points_by_dimension",
    )
    points_by_dimension: tuple[int, int, int] = Field(
        (300, 200, 48), description="points per axis (at least 5) in 1, 2 and 3 dimensions"
    )
    tolerance: float = Field(
        1e-9, gt=0, lt=0.1, description="relative size of the last Newton correction, (0, 0.1)"
    )
    newton_limit: int = Field(30, ge=2, le=1000, description="the most Newton steps, 2 to 1000")
    krylov_limit: int = Field(
        200, ge=1, le=10_000, description="the most GMRES iterations of one step, 1 to 10000"
    )


class GridSolver(Solver):
    """A solver without learned parameters: nodes, derivative matrices, one solution."""

    Config = GridConfig

    @abstractmethod
    def nodes(self, problem: Problem, sizes: Sequence[int]) -> tuple[Array, ...]:
        """One increasing array per axis, ends of the box included."""

    @abstractmethod
    def derivatives(self, nodes: Sequence[Array]) -> tuple[list[Any], list[Any]]:
        """Matrices of the first and of the second derivative, one each per axis."""

    def _solve(self, problem: Problem, budget: Budget, monitor: Monitor) -> dict[str, Any]:
        return self._solve_with(self.sizes(problem), problem, budget, monitor)

    def sizes(self, problem: Problem) -> tuple[int, ...]:
        """Points per axis for a problem; arrays are taken at least at their own resolution."""
        points = self.config.points
        if points is None:
            usual = self.config.points_by_dimension[problem.dim - 1]
            own = [len(x) for x in problem.nodes or ()] if problem.has_arrays else []
            sizes = tuple(max(usual, n) for n in own) or (usual,) * problem.dim
        else:
            sizes = (points,) * problem.dim if isinstance(points, int) else tuple(points)
        if len(sizes) != problem.dim or min(sizes) < 5 or int(np.prod(sizes)) > LARGEST:
            raise ConfigError(
                f"points = {points} gives the grid {' x '.join(map(str, sizes))}",
                expected=f"{problem.dim} axes of at least 5 points, {LARGEST} points in all",
                mend="give points=N or one number per axis",
            )
        return sizes

    def _solve_with(
        self, sizes: tuple[int, ...], problem: Problem, budget: Budget, monitor: Monitor
    ) -> dict[str, Any]:
        meter = budget.start()
        given = problem.blind()
        discrete = given.on(self.nodes(given, sizes))
        left_out = outflow_faces(given.axes, discrete.terms, given.faces)
        if left_out:
            kept = {f: g for f, g in given.boundary.items() if f not in left_out}
            discrete = replace(given, boundary=kept).on(discrete.nodes)
        first, second = self.derivatives(discrete.nodes)
        equation = Collocation(
            given.axes, first, second, discrete.terms, discrete.source, discrete.known,
            discrete.values, given.nonlinear, krylov=self.config.krylov_limit,
        )

        def after_step(step: int, residual: float, correction: float) -> bool:
            meter.spend()
            monitor.log(step, meter.seconds, residual=residual, correction=correction)
            monitor.progress(step / self.config.newton_limit, f"Newton step {step}")
            return not meter.exhausted

        values, facts = equation.solve(
            tolerance=self.config.tolerance, steps=self.config.newton_limit, after_step=after_step
        )
        self.axes, self.values = discrete.nodes, values
        monitor.progress(1.0)
        monitor.test_error(self)
        return {
            "selected": "last", **facts, "points": list(sizes), "faces_left_out": list(left_out),
            "residual": facts["residuals"][-1],
        }

    # ---- state ---------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        if not self.axes:
            return {}
        return {**{f"axis_{j}": x for j, x in enumerate(self.axes)}, "values": self.values}

    def load_state(self, state: Mapping[str, Array], extra: Mapping[str, Any]) -> None:
        if not state:
            return
        axes = tuple(np.asarray(state[k]) for k in sorted(state) if k.startswith("axis_"))
        if "values" not in state or np.shape(state["values"]) != tuple(map(len, axes)):
            raise CheckpointError(
                f"the state has the arrays {sorted(state)}",
                expected="axis_0 ... and values on them",
            )
        self.axes, self.values = axes, np.asarray(state["values"])

    def parameter_count(self) -> int:
        """0: values on the grid are computed, not learned."""
        return 0

    def solved(self) -> tuple[tuple[Array, ...], Array]:
        """Axes and values, or the error that nothing has been solved yet."""
        if not self.axes:
            raise ConfigError(
                f"{self.id or type(self).__name__} holds no solution yet",
                expected="solve(problem) first",
            )
        return self.axes, self.values
