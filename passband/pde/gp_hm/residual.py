"""How well a solution meets its problem where it was not asked to: no truth is involved.

    |L u + N(u) - f| at the midpoints of the grid, relative to the size of the terms
    |u - g| at the grid's face nodes, relative to the size of u

The root of the sum of both squares selects iterates and is what `report["residual"]` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from passband.data.pde import Problem

Array = np.ndarray
TINY = float(np.finfo(float).tiny)


class Residual:
    """The problem's data at the midpoints and faces of one grid, evaluated once."""

    def __init__(self, problem: Problem, nodes: Sequence[Array]) -> None:
        self.problem = problem
        self.middle = tuple(0.5 * (x[1:] + x[:-1]) for x in nodes)
        # Faces play no part between the nodes.
        inside = replace(problem, boundary=dict.fromkeys(problem.faces, 0.0)).on(self.middle)
        self.source, self.terms = inside.source, inside.terms
        there = problem.on(nodes)
        self.known, self.values = there.known, there.values

    def relative(self, derivative: Callable[[str], Array], on_nodes: Array) -> float:
        """derivative: key -> that derivative of u at the midpoints; on_nodes: u on the grid."""
        scale = float(np.mean(np.square(on_nodes)))
        total, size = -self.source, float(np.mean(np.square(self.source)))
        for key, c in self.terms.items():
            part = c * derivative(key)
            total = total + part
            # A constant has no derivative to compare with: the box's length gives the scale.
            lengths = (hi - lo for axis in key for lo, hi in (self.problem.box[axis],))
            floor = np.mean(np.square(c)) * scale / np.prod([*lengths]) ** 2
            size += float(np.mean(np.square(part)) + floor)
        if self.problem.nonlinear:
            part = self.problem.nonlinear[0](derivative(""))
            total, size = total + part, size + float(np.mean(np.square(part)))
        gap, given = (on_nodes - self.values)[self.known], self.values[self.known]
        faces = np.mean(np.square(gap)) / max(np.mean(np.square(given)), scale, TINY)
        found = float(np.sqrt(np.mean(np.square(total)) / max(size, TINY) + faces))
        return found if np.isfinite(found) else float("inf")

    def boundary_gap(self, on_nodes: Array) -> float:
        """Largest |u - g| over the given faces' nodes."""
        return float(np.abs(on_nodes - self.values)[self.known].max())
