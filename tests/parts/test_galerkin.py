"""Projection in a tensor basis: polynomial solutions come out exactly, in one to three axes."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.polynomial import Polynomial, chebyshev

from passband.errors import ProblemError
from passband.parts.galerkin import AxisBasis, Galerkin


def table(derivatives, x):
    """Polynomials (as NumPy objects) at nodes -> [M, r]."""
    return np.stack([p(x) for p in derivatives], axis=1)


def chebyshev_basis(x, degree, known=(0, -1)):
    domain = [x[0], x[-1]]
    functions = [chebyshev.Chebyshev.basis(i, domain=domain) for i in range(degree + 1)]
    orders = [functions, [f.deriv() for f in functions], [f.deriv(2) for f in functions]]
    return AxisBasis(*(table(order, x) for order in orders), known)


class Truth:
    """A random polynomial in several variables, with its derivatives on a tensor grid."""

    def __init__(self, axes, nodes, degree, seed=0):
        self.axes, self.nodes = axes, nodes
        self.c = np.random.default_rng(seed).normal(size=(degree + 1,) * len(axes))

    def __call__(self, key=""):
        out = self.c
        for j, (letter, x) in enumerate(zip(self.axes, self.nodes, strict=True)):
            order = key.count(letter)
            powers = [Polynomial.basis(i) for i in range(len(self.c))]
            powers = [p.deriv(order) if order else p for p in powers]
            out = np.moveaxis(np.tensordot(table(powers, x), out, axes=(1, j)), 0, j)
        return out


NODES = {1: [31], 2: [17, 22], 3: [11, 13, 12]}
BOX = {"x": (-1.0, 2.0), "y": (3.0, 4.5), "z": (0.0, 0.7)}


def setting(dim, degree=4, known=None, seed=0):
    axes = "xyz"[:dim]
    nodes = [np.linspace(*BOX[a], m) for a, m in zip(axes, NODES[dim], strict=True)]
    known = known or [(0, -1)] * dim
    bases = [chebyshev_basis(x, degree + 2, k) for x, k in zip(nodes, known, strict=True)]
    mesh = np.meshgrid(*nodes, indexing="ij")
    return axes, bases, Truth(axes, nodes, degree, seed), mesh


def solution_of(axes, bases, truth, terms, nonlinear=None, **options):
    """u at the nodes for the source that belongs to `truth`; known values only where known."""
    u = truth()
    source = sum(c * truth(key) for key, c in terms.items())
    if nonlinear:
        source = source + nonlinear[0](u)
    # Off the known faces the values are rubbish: they must play no part.
    values = np.full(u.shape, 1e3)
    for j, basis in enumerate(bases):
        for end in basis.known:
            at = [slice(None)] * u.ndim
            at[j] = end
            values[tuple(at)] = u[tuple(at)]
    equation = Galerkin(axes, bases, terms, source, values, nonlinear)
    z, steps = equation.solve(**options)
    return equation.on_nodes(z), u, steps


def close(got, expected, tolerance=1e-9):
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()


# ---- linear ----------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [
    {"xx": 1.0}, {"xx": -2.5}, {"xx": 1.0, "": -3.0}, {"xx": 0.3, "x": -2.0, "": 1.0},
])
def test_one_axis(terms):
    axes, bases, truth, _ = setting(1)
    got, u, steps = solution_of(axes, bases, truth, terms)
    close(got, u)
    assert steps <= 2


@pytest.mark.parametrize("terms", [
    {"xx": 1.0, "yy": 1.0},
    {"xx": 1.0, "yy": 4.0, "": -7.0},
    {"xx": 1.0, "yy": 1.0, "x": 3.0, "y": -2.0},
    {"xx": 1.0, "xy": 0.5, "yy": 1.0},
    {"xx": -1.0, "yy": -1.0, "xy": -0.9, "x": 1.0, "": 2.0},
])
def test_two_axes(terms):
    axes, bases, truth, _ = setting(2)
    got, u, _ = solution_of(axes, bases, truth, terms)
    close(got, u)


@pytest.mark.parametrize("terms", [
    {"xx": 1.0, "yy": 1.0, "zz": 1.0},
    {"xx": 1.0, "yy": 2.0, "zz": 0.5, "xz": 0.3, "y": 1.0, "": -1.0},
])
def test_three_axes(terms):
    axes, bases, truth, _ = setting(3, degree=3)
    got, u, _ = solution_of(axes, bases, truth, terms)
    close(got, u)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_variable_coefficients(dim):
    axes, bases, truth, mesh = setting(dim, degree=3)
    x = mesh[0]
    terms = {"xx": 2 + np.sin(x), "x": x, "": -1 - x**2}
    if dim > 1:
        y = mesh[1]
        terms.update({"yy": 1.5 + np.cos(x * y), "xy": 0.3 * np.sin(y)})
    if dim > 2:
        terms.update({"zz": 1 + 0.5 * mesh[2], "z": y * mesh[2]})
    got, u, _ = solution_of(axes, bases, truth, terms)
    close(got, u)


def test_coefficients_along_one_axis_stay_separable():
    """xx with c(x) and yy with c(y) need no iteration; xx with c(y) does."""
    axes, bases, truth, (x, y) = setting(2)
    for terms, direct in [
        ({"xx": 1 + x**2, "yy": np.exp(-y)}, True), ({"xx": y, "yy": 1.0}, False),
    ]:
        source = sum(c * truth(k) for k, c in terms.items())
        equation = Galerkin(axes, bases, terms, source, truth())
        z, _ = equation.solve()
        close(equation.on_nodes(z), truth())
        assert (equation.krylov_iterations == 0) is direct


@pytest.mark.parametrize("known, terms", [
    ([(0,)], {"x": 1.0, "": 2.0}),
    ([(-1,)], {"x": 1.0, "": -2.0}),
    ([(0, -1), (0,)], {"xx": -0.2, "y": 1.0}),
    ([(0, -1), (-1,)], {"xx": 0.2, "y": 1.0}),
    ([(0,), (0,)], {"x": 2.0, "y": 1.0}),
    ([(-1,), (0,)], {"x": -2.0, "y": 1.0, "": 0.5}),
    ([(0, -1), (0, -1), (0,)], {"xx": -0.2, "yy": -0.1, "z": 1.0}),
])
def test_one_sided_faces(known, terms):
    axes, bases, truth, _ = setting(len(known), degree=3, known=known)
    got, u, _ = solution_of(axes, bases, truth, terms)
    close(got, u)


def test_what_the_basis_lacks_is_projected_out():
    """u = e^x: errors fall geometrically with the degree, on 41 uniform nodes."""
    x = np.linspace(-1, 1, 41)
    errors = []
    for degree in (4, 6, 8, 10, 12):
        equation = Galerkin("x", [chebyshev_basis(x, degree)], {"xx": 1.0}, np.exp(x), np.exp(x))
        errors.append(np.abs(equation.on_nodes(equation.solve()[0]) - np.exp(x)).max())
    assert errors[-1] < 1e-11
    assert all(b < 0.05 * a for a, b in pairwise(errors)), errors


# ---- pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [(), (0,), (-1,), (0, -1)])
def test_axis_basis(known):
    x = np.linspace(0, 1, 12)
    basis = chebyshev_basis(x, 5, known)
    value = basis.orders[0]
    ends = list(known)
    assert np.allclose(value[ends] @ basis.null, 0, atol=1e-13)
    assert np.allclose(value[ends] @ basis.lift, np.eye(len(ends)), atol=1e-13)
    assert basis.null.shape == (6, 6 - len(ends))
    assert np.allclose(basis.test.T @ basis.test, np.eye(6 - len(ends)), atol=1e-13)
    assert np.allclose(basis.matrix(0), np.eye(6 - len(ends)), atol=1e-12)
    assert np.allclose(value @ basis.project @ value, value, atol=1e-12)


def test_projected_second_derivative_is_near_symmetric_definite():
    x = np.linspace(0, 1, 200)
    matrix = chebyshev_basis(x, 8).matrix(2)
    assert np.linalg.eigvals(matrix).real.max() < 0


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_lift_meets_all_known_faces(dim):
    axes, bases, truth, _ = setting(dim, degree=3)
    equation = Galerkin(axes, bases, {"xx": 1.0}, np.zeros(truth().shape), truth())
    gap = equation.on_nodes(equation.lift(truth())) - truth()
    for j in range(dim):
        assert np.abs(gap.take([0, -1], axis=j)).max() < 1e-11 * np.abs(truth()).max()


@pytest.mark.parametrize("degree, nodes, known", [(1, 9, (0, -1)), (0, 9, (0,)), (9, 9, (0, -1))])
def test_too_few_functions_or_too_few_nodes(degree, nodes, known):
    """(9, 9): ten functions, two of them spent on the ends, eight left for seven nodes."""
    with pytest.raises(ProblemError, match="basis functions") as caught:
        chebyshev_basis(np.linspace(0, 1, nodes), degree, known)
    assert caught.value.mend


# ---- Newton ----------------------------------------------------------------------------------


CUBIC = (lambda u: -(u**3), lambda u: -3 * u**2)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_cubic(dim):
    """-u^3 keeps the operator definite: Newton's method settles in a few steps."""
    axes, bases, truth, _ = setting(dim, degree=2)
    truth.c *= 0.1
    terms = dict.fromkeys([2 * a for a in axes], 1.0)
    got, u, steps = solution_of(axes, bases, truth, terms, CUBIC)
    # u^3 leaves the basis: what is projected out of it comes from u itself, so u stays exact.
    close(got, u, 1e-8)
    assert 1 < steps < 12


def test_newton_is_quadratic():
    axes, bases, truth, _ = setting(1, degree=3)
    truth.c *= 0.2
    steps = [
        solution_of(axes, bases, truth, {"xx": 1.0}, CUBIC, tolerance=t)[2]
        for t in (1e-3, 1e-6, 1e-12)
    ]
    assert steps[1] <= steps[0] + 1
    assert steps[2] <= steps[0] + 3


def test_newton_starts_from_a_given_solution():
    axes, bases, truth, _ = setting(1, degree=3)
    truth.c *= 0.2
    u = truth()
    source = truth("xx") + CUBIC[0](u)
    equation = Galerkin(axes, bases, {"xx": 1.0}, source, u, CUBIC)
    z, steps = equation.solve()
    _, again = equation.solve(z)
    assert again < steps
    close(equation.on_nodes(equation.solve(z)[0]), u)


def test_a_damped_step_where_full_ones_overshoot():
    """u'' - 40 sinh u from zero: full Newton steps would overflow the exponential."""
    x = np.linspace(0, 1, 121)
    basis = chebyshev_basis(x, 24)
    nonlinear = (lambda u: -40 * np.sinh(u), lambda u: -40 * np.cosh(u))
    exact = 6 * x**2
    source = 12.0 - 40 * np.sinh(exact)
    equation = Galerkin("x", [basis], {"xx": 1.0}, source, exact, nonlinear)
    z, _ = equation.solve()
    close(equation.on_nodes(z), exact, 1e-7)


def test_a_bare_number_as_slope():
    axes, bases, truth, _ = setting(2, degree=2)
    linear = (lambda u: -3 * u, lambda u: -3.0)
    got, u, _ = solution_of(axes, bases, truth, {"xx": 1.0, "yy": 1.0}, linear)
    close(got, u)


# ---- what can't be solved --------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_an_eigenvalue_is_no_solution(dim):
    """u'' + pi^2 u = f with u = 0 at both ends has none or infinitely many solutions."""
    axes = "xyz"[:dim]
    nodes = [np.linspace(0, 1, 30)] * dim
    bases = [chebyshev_basis(x, 18) for x in nodes]
    terms = {2 * a: 1.0 for a in axes} | {"": dim * np.pi**2}
    source = np.ones((30,) * dim)
    with pytest.raises(ProblemError, match="singular"):
        Galerkin(axes, bases, terms, source, np.zeros(source.shape)).solve()


def test_no_operator_at_all_along_the_axis():
    x = np.linspace(0, 1, 20)
    with pytest.raises(ProblemError, match="singular"):
        Galerkin("x", [chebyshev_basis(x, 6)], {"xx": 0.0}, np.ones(20), np.zeros(20)).solve()


def test_newton_without_a_solution():
    """u'' + 10 e^u = 0 with u = 0 at the ends has no solution (Bratu: none above 3.51)."""
    x = np.linspace(0, 1, 40)
    nonlinear = (lambda u: 10 * np.exp(u), lambda u: 10 * np.exp(u))
    equation = Galerkin(
        "x", [chebyshev_basis(x, 12)], {"xx": 1.0}, np.zeros(40), np.zeros(40), nonlinear
    )
    with pytest.raises(ProblemError, match=r"Newton|converge"):
        equation.solve()


def test_zero_is_solved_by_zero():
    for dim in (1, 2):
        axes, bases, truth, _ = setting(dim)
        truth.c *= 0
        terms = {2 * a: 1.0 for a in axes}
        zero = np.zeros(truth().shape)
        z, _ = Galerkin(axes, bases, terms, zero, zero).solve()
        assert not z.any()
        z, _ = Galerkin(axes, bases, terms, zero, zero, CUBIC).solve()
        assert not z.any()
