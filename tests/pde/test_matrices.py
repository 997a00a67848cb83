"""Derivative matrices and interpolation of the classical baselines on functions known exactly."""

import numpy as np
import pytest

from passband.errors import DataError
from passband.pde.baselines.chebyshev import model as chebyshev
from passband.pde.baselines.finite_differences.model import difference_matrices


def test_differences_are_exact_for_parabolas_up_to_the_ends():
    x = np.linspace(-1, 3, 12)
    first, second = difference_matrices(x)
    np.testing.assert_allclose(first @ (3 * x**2 - x), 6 * x - 1, atol=1e-11)
    np.testing.assert_allclose(second @ (3 * x**2 - x), 6, atol=1e-10)
    # One-sided second differences are of second order: exact for cubics, as central ones are.
    np.testing.assert_allclose(second @ x**3, 6 * x, atol=1e-10)


@pytest.mark.parametrize("x", [np.linspace(0, 1, 3), np.linspace(0, 1, 9) ** 2])
def test_grids_that_differences_cannot_take(x):
    with pytest.raises(DataError, match="nodes"):
        difference_matrices(x)


@pytest.mark.parametrize("n", [5, 8, 33])
def test_chebyshev_matrices_are_exact_for_polynomials(n):
    x = chebyshev.nodes(n, -0.5, 2.5)
    assert (x[0], x[-1]) == (-0.5, 2.5) and (np.diff(x) > 0).all()
    first, second = chebyshev.derivative_matrices(n, 3.0)
    p = np.polynomial.Polynomial([1, -2, 0.5, 3, -1])
    np.testing.assert_allclose(first @ p(x), p.deriv()(x), atol=1e-10)
    np.testing.assert_allclose(second @ p(x), p.deriv(2)(x), atol=1e-7)
    new = np.linspace(-0.5, 2.5, 20)
    np.testing.assert_allclose(chebyshev.interpolation(x, new) @ p(x), p(new), atol=1e-12)


def test_chebyshev_nodes_are_the_extrema_of_the_polynomial():
    x = chebyshev.nodes(9, -1, 1)
    t8 = np.polynomial.Chebyshev.basis(8)
    np.testing.assert_allclose(np.abs(t8(x)), 1.0, atol=1e-14)


def test_many_points_are_interpolated_in_chunks(monkeypatch):
    axes = [chebyshev.nodes(n, 0, 1) for n in (6, 7, 8)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    points = np.random.default_rng(0).random((50, 3))
    monkeypatch.setattr(chebyshev, "CHUNK", 300)
    got = chebyshev.interpolate_at(axes, x**2 * y - z**3, points)
    a, b, c = points.T
    np.testing.assert_allclose(got, a**2 * b - c**3, atol=1e-13)
    at_nodes = np.column_stack([a.ravel() for a in (x, y, z)])
    np.testing.assert_allclose(
        chebyshev.interpolate_at(axes, x + y * z, at_nodes), (x + y * z).ravel(), atol=1e-13
    )


def test_tails_see_the_axis_that_is_not_resolved():
    axes = [chebyshev.nodes(20, 0, 1), chebyshev.nodes(20, 0, 1)]
    x, y = np.meshgrid(*axes, indexing="ij")
    coarse, fine = chebyshev.tails(np.sin(60 * x) * np.exp(y))
    assert coarse > 1e-2 and fine < 1e-13
