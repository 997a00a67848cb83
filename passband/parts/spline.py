"""Splines on tensor grids: values at the nodes to values anywhere in the box, O(h^(degree + 1)).

>>> import numpy as np
>>> x = np.linspace(0, 1, 9)
>>> cube = spline_on([x], x**3, [np.array([0.3])])      # cubics are reproduced
>>> float(np.round(cube[0], 12))
0.027
>>> float(np.round(spline_at([x, x], np.outer(x, x**2), np.array([[0.5, 0.3]]))[0], 12))
0.045
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.interpolate import NdBSpline, make_interp_spline

Array: TypeAlias = np.ndarray[Any, Any]


def _along(nodes: Array, values: Array, axis: int, degree: int) -> Any:
    """The spline along one axis; of lower degree where there are too few nodes."""
    return make_interp_spline(nodes, values, k=min(degree, len(nodes) - 1), axis=axis)


def spline_on(
    nodes: Sequence[Array], values: Array, new: Sequence[Array], degree: int = 3
) -> Array:
    """Values [n_1, ..., n_d] at increasing nodes -> on another tensor grid [m_1, ..., m_d]."""
    for axis, (old, x) in enumerate(zip(nodes, new, strict=True)):
        values = _along(old, values, axis, degree)(x)
    return values


def spline_at(nodes: Sequence[Array], values: Array, points: Array, degree: int = 3) -> Array:
    """Values [n_1, ..., n_d] at increasing nodes -> at scattered points [N, d], [N]."""
    knots, degrees = [], []
    for axis, old in enumerate(nodes):
        spline = _along(old, values, axis, degree)
        knots.append(spline.t)
        degrees.append(spline.k)
        values = np.moveaxis(spline.c, 0, axis)  # the coefficients come with this axis in front
    out: Array = NdBSpline(tuple(knots), np.ascontiguousarray(values), k=tuple(degrees))(points)
    return out
