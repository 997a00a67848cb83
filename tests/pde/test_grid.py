"""Classical solvers on grids: what they report, refuse, keep and leave out."""

import numpy as np
import pytest

from passband.bench.budget import Budget
from passband.catalog import get
from passband.data.pde import Problem
from passband.errors import ConfigError, ProblemError
from passband.parts.collocation import outflow_faces

SOLVERS = ("finite-differences", "chebyshev")
PARABOLA = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)


@pytest.fixture(params=SOLVERS)
def card(request):
    return get(request.param)


def test_parabola_is_exact(card):
    u = card.create("smoke").solve(PARABOLA)
    x = np.linspace(0, 1, 77)
    np.testing.assert_allclose(u(x), x * (1 - x), atol=1e-12)
    np.testing.assert_allclose(u.solver.solution_on((x,)), u(x), atol=1e-14)
    assert u.report["converged"] and u.report["residual"] < 1e-6 < u.report["residuals"][0]


def test_no_convergence_is_an_error(card):
    """u'' + 5 e^u = 0 has no solution: 5 is above Bratu's limit of 3.51."""
    problem = Problem({"x": (0, 1)}, {"xx": 1}, 0.0, 0.0, nonlinear=(
        lambda u: 5 * np.exp(u), lambda u: 5 * np.exp(u)))
    with pytest.raises(ProblemError, match="Newton"):
        card.create("smoke").solve(problem)


def test_damping_rescues_a_step_that_overshoots(card):
    """arctan(50 u) from a start far away: full Newton steps grow without bound."""
    problem = Problem(
        {"x": (0, 1)}, {"xx": -1e-3}, lambda x: np.arctan(50 * np.sin(2 * np.pi * x))
        + 4e-3 * np.pi**2 * np.sin(2 * np.pi * x), 0.0, exact=lambda x: np.sin(2 * np.pi * x),
        nonlinear=(lambda u: np.arctan(50 * u), lambda u: 50 / (1 + (50 * u) ** 2)),
    )
    u = card.create("smoke", points=200, newton_limit=200).solve(problem)
    x = np.linspace(0, 1, 99)
    np.testing.assert_allclose(u(x), problem.exact(x), atol=2e-3)


def test_nonlinear_term_undefined_at_zero(card):
    """ln u with positive boundary values: the start is taken from them."""
    problem = Problem({"x": (0, 1)}, {"xx": 1}, lambda x: np.exp(x) + x, boundary=np.exp,
                      exact=np.exp, nonlinear=(np.log, lambda u: 1 / u))
    x = np.linspace(0, 1, 50)
    np.testing.assert_allclose(card.create("smoke").solve(problem)(x), np.exp(x), atol=1e-4)


# The lowest eigenvalue of -u'' on [0, 1]: of the difference matrix, and of the equation itself.
LOWEST = {"finite-differences": (2 - 2 * np.cos(np.pi / 16)) * 16**2, "chebyshev": np.pi**2}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("solver", SOLVERS)
def test_resonance_is_reported(solver, dim):
    """k^2 at an eigenvalue: no solution, and the error says so."""
    n, axes, lowest = 17, "xyz"[:dim], dim * LOWEST[solver]
    operator = {**{a * 2: 1.0 for a in axes}, "": lowest}
    problem = Problem(dict.fromkeys(axes, (0, 1)), operator, 1.0, 0.0)
    with pytest.raises(ProblemError, match="singular"):
        get(solver).create(points=n).solve(problem)


def test_outflow_faces_follow_the_characteristics():
    faces = ("x-", "x+", "t-", "t+")
    assert outflow_faces("xt", {"x": 200.0, "t": 1.0}, faces) == ("x+", "t+")
    assert outflow_faces("xt", {"x": -200.0, "t": 1.0}, faces) == ("x-", "t+")
    assert outflow_faces("xt", {"xx": -0.1, "t": 1.0}, faces) == ("t+",)
    assert outflow_faces("xt", {"xx": 0.1, "t": 1.0}, faces) == ("t-",)
    assert outflow_faces("xt", {"xx": -0.1, "x": 5.0, "t": 1.0}, faces) == ("t+",)
    assert outflow_faces("xt", {"xx": -0.1, "t": 1.0}, faces[:3]) == ()
    assert outflow_faces("xy", {"xx": 1.0, "yy": 1.0}, ("x-", "x+", "y-", "y+")) == ()
    turning = np.array([[-1.0, 1.0]])
    assert outflow_faces("xt", {"x": turning, "t": 1.0}, faces) == ("t+",)


def test_different_points_per_axis(card):
    problem = Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1}, 0.0,
                      exact=lambda x, y: np.exp(x) * np.sin(y))
    u = card.create(points=(9, 14)).solve(problem)
    assert u.values.shape == (9, 14) == tuple(map(len, u.axes))
    spots = np.random.default_rng(1).random((20, 2))
    np.testing.assert_allclose(u(spots), problem.truth(spots), atol=2e-3)


@pytest.mark.parametrize("points", [4, (20, 20), (3000, 3000, 10)])
def test_grids_that_cannot_be_are_refused(card, points):
    with pytest.raises(ConfigError, match="points"):
        card.create(points=points).solve(PARABOLA)


def test_data_on_a_grid_is_taken_at_its_own_resolution():
    x = np.linspace(0, 1, 501)
    problem = Problem({"x": (0, 1)}, {"xx": 1}, np.sin(90 * x), 0.0, nodes=[x])
    u = get("finite-differences").create("smoke").solve(problem)
    assert u.report["points"] == [501]


def test_chebyshev_enlarges_what_is_not_resolved():
    k = 150.0
    problem = Problem({"x": (0, 2), "y": (0, 1)}, {"xx": 1, "yy": 1},
                      lambda x, y: -(k * k + 1) * np.sin(k * x) * np.sin(y),
                      exact=lambda x, y: np.sin(k * x) * np.sin(y))
    start = {"points_by_dimension": (300, 100, 30)}
    u = get("chebyshev").create("small", **start).solve(problem)
    assert u.report["points"][0] > 150 and u.report["points"][1] == 100
    spots = np.random.default_rng(2).random((100, 2)) * [2, 1]
    np.testing.assert_allclose(u(spots), problem.truth(spots), atol=1e-9)
    fixed = get("chebyshev").create("small", **start, refine=False).solve(problem)
    assert fixed.report["points"] == [100, 100]
    assert u.report["resolved"] and not fixed.report["resolved"]
    assert np.abs(fixed(spots) - problem.truth(spots)).max() > 1e-3


def test_saved_solution_is_the_same(card, tmp_path):
    solver = card.create("smoke")
    problem = Problem({"x": (0, 1), "y": (0, 3)}, {"xx": 1, "yy": 1}, 0.0,
                      exact=lambda x, y: np.exp(x) * np.sin(y))
    before = solver.solve(problem)(np.array([[0.2, 2.1], [0.9, 0.4]]))
    again = type(solver).load(solver.save(tmp_path / "kept"))
    np.testing.assert_array_equal(again.solution(np.array([[0.2, 2.1], [0.9, 0.4]])), before)
    assert again.parameter_count() == 0
    unsolved = type(solver).load(card.create("smoke").save(tmp_path / "unsolved"))
    with pytest.raises(ConfigError, match="no solution yet"):
        unsolved.solution(np.zeros((1, 2)))


def test_a_budget_of_one_step_ends_after_one(card):
    problem = Problem({"x": (0, 1)}, {"xx": 1}, 0.0, 0.0, nonlinear=(np.exp, np.exp))
    report = card.create("smoke").solve(problem, Budget(steps=1)).report
    assert report["steps"] == 1 and not report["converged"]


def test_linear_solvers_by_kind(card):
    """Separable coefficients need no iteration; the answer does not depend on the way taken."""
    def exact(x, y):
        return np.exp(x) * np.sin(y)

    separable = Problem({"x": (0, 1), "y": (0, 1)}, {"xx": lambda x, y: 1 + x, "yy": 1},
                        lambda x, y: x * exact(x, y), exact=exact)
    mixed = Problem({"x": (0, 1), "y": (0, 1)}, {"xx": lambda x, y: 1 + x, "yy": 1, "xy": 0.2},
                    lambda x, y: x * exact(x, y) + 0.2 * np.exp(x) * np.cos(y), exact=exact)
    whole = {"krylov_limit": 1}  # too few iterations: LU of the whole matrix
    solve = lambda problem, **change: card.create(points=24, **change).solve(problem)  # noqa: E731
    direct, iterated, lu = solve(separable), solve(mixed), solve(mixed, **whole)
    assert direct.report["solver"] == ["fast diagonalisation"]
    assert iterated.report["solver"] == ["GMRES, fast diagonalisation"]
    assert lu.report["solver"][-1].endswith("LU")
    np.testing.assert_allclose(iterated.values, lu.values, atol=1e-9)
    spots = np.random.default_rng(3).random((30, 2))
    for u in (direct, lu):
        np.testing.assert_allclose(u(spots), exact(*spots.T), atol=3e-4)
