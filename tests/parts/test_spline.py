"""Splines on grids against SciPy's own one-dimensional and regular-grid splines."""

import numpy as np
import pytest
from scipy.interpolate import CubicSpline, RegularGridInterpolator
from scipy.sparse.linalg import spsolve

from passband.parts.spline import spline_at, spline_on

AXES = [np.linspace(0, 1, 9) ** 1.5, np.linspace(-1, 2, 9), np.linspace(0, 4, 11)]


def values(dim):
    return np.random.default_rng(dim).standard_normal([len(x) for x in AXES[:dim]])


def spots(dim):
    lower, upper = np.array([(x[0], x[-1]) for x in AXES[:dim]]).T
    return np.random.default_rng(7).uniform(lower, upper, (40, dim))


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_scattered_points_equal_the_regular_grid_interpolator(dim):
    # Its default solver is iterative and stops at 1e-5.
    expected = RegularGridInterpolator(AXES[:dim], values(dim), method="cubic", solver=spsolve)(
        spots(dim))
    np.testing.assert_allclose(spline_at(AXES[:dim], values(dim), spots(dim)), expected, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_grid_and_scattered_points_are_one_spline(dim):
    new = [np.linspace(x[0], x[-1], 5 + i) for i, x in enumerate(AXES[:dim])]
    on = spline_on(AXES[:dim], values(dim), new)
    mesh = np.stack(np.meshgrid(*new, indexing="ij"), axis=-1).reshape(-1, dim)
    np.testing.assert_allclose(spline_at(AXES[:dim], values(dim), mesh), on.ravel(), atol=1e-10)
    if dim == 1:
        np.testing.assert_allclose(on, CubicSpline(AXES[0], values(1))(new[0]), atol=1e-12)


@pytest.mark.parametrize("n", [2, 3])
def test_few_nodes_take_a_lower_degree(n):
    x = np.linspace(0, 1, n)
    np.testing.assert_allclose(spline_on([x], x ** (n - 1), [np.array([0.3])]), 0.3 ** (n - 1))
