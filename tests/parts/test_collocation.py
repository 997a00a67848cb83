"""The discrete equation against the whole matrix written out by Kronecker products."""

import numpy as np
import pytest
from scipy import sparse

from passband.errors import DataError, ProblemError
from passband.parts.collocation import Collocation

SIZES = (7, 6, 5)


def make(dim, *, thin, nonlinear=None, known=None, seed=0, krylov=200):
    """Random matrices and coefficients with every kind of term."""
    rng = np.random.default_rng(seed)
    shape = SIZES[:dim]
    axes = "xyz"[:dim]
    first = [rng.standard_normal((n, n)) for n in shape]
    second = [rng.standard_normal((n, n)) - 9 * np.eye(n) for n in shape]
    keys = ["", *axes, *(a * 2 for a in axes), *(["xy"] if dim > 1 else [])]
    terms = {k: 0.1 * rng.standard_normal(shape) for k in keys}
    terms.update({a * 2: 1 + 0.1 * rng.standard_normal(shape) for a in axes})
    if known is None:
        known = np.zeros(shape, dtype=bool)
        known[0] = known[-1] = True
        if dim > 1:
            known[:, 0] = True
    values = np.where(known, rng.standard_normal(shape), 0.0)
    kind = sparse.csr_array if thin else np.asarray
    return Collocation(
        axes, [kind(a) for a in first], [kind(a) for a in second], terms,
        rng.standard_normal(shape), known, values, nonlinear, krylov=krylov,
    ), first, second


def whole(equation, first, second):
    total = 0
    for key, coefficient in equation.terms.items():
        product = np.eye(1)
        for axis, letter in enumerate(equation.axes):
            n = equation.shape[axis]
            product = np.kron(product, (np.eye(n), first[axis], second[axis])[key.count(letter)])
        total = total + coefficient.ravel()[:, None] * product
    return total


@pytest.mark.parametrize("thin", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("krylov", [200, 1], ids=["iteration", "LU"])
def test_solution_is_that_of_the_whole_matrix(dim, thin, krylov):
    equation, first, second = make(dim, thin=thin, krylov=krylov)
    matrix, known = whole(equation, first, second), equation.known.ravel()
    u = equation.values.ravel().copy()
    right = equation.source.ravel() - matrix @ u
    u[~known] = np.linalg.solve(matrix[np.ix_(~known, ~known)], right[~known])
    found, report = equation.solve(tolerance=1e-12)
    np.testing.assert_allclose(found.ravel(), u, atol=1e-9)
    np.testing.assert_allclose(equation.apply(found).ravel(), matrix @ found.ravel(), atol=1e-9)
    assert report["residuals"][-1] < 1e-9 * report["residuals"][0] and report["converged"]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_newton_meets_the_nonlinear_equation(dim):
    equation, first, second = make(
        dim, thin=False, nonlinear=(lambda u: -(u**3), lambda u: -3 * u**2), seed=1)
    u, report = equation.solve()
    left = (whole(equation, first, second) @ u.ravel()).reshape(u.shape) - u**3
    np.testing.assert_allclose(left[equation.free], equation.source[equation.free], atol=1e-8)
    # Quadratic convergence: the last corrections fall like squares.
    last = report["corrections"]
    assert last[-1] < 1e-9 and report["steps"] <= 10


def test_singular_matrix_is_named():
    first = [np.zeros((5, 5))]
    known = np.array([True, False, False, False, True])
    for kind in (np.asarray, sparse.csr_array):
        equation = Collocation("x", [kind(first[0])], [kind(first[0])], {"xx": 1.0}, np.ones(5),
                               known, np.zeros(5))
        with pytest.raises(ProblemError, match="singular"):
            equation.solve()


@pytest.mark.parametrize("index", [(2, 2), (slice(1, 3), 0)])
def test_known_nodes_are_whole_faces(index):
    known = np.zeros(SIZES[:2], dtype=bool)
    known[0] = True
    known[index] = True
    with pytest.raises(DataError, match="whole faces"):
        make(2, thin=False, known=known)


def test_a_wrong_slope_is_found_out():
    equation, _, _ = make(1, thin=False, nonlinear=(lambda u: 40 * u**3, lambda u: -900 * u**2))
    with pytest.raises(ProblemError, match="Newton"):
        equation.solve()
