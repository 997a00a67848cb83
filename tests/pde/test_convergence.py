"""Every solver's error falls with its grid as theory says: one test over solvers and equations.

A solver joins with one line in `EXPECTED`, under its name or "name/variant".
"""

from dataclasses import dataclass, field

import numpy as np
import pytest

from passband.catalog import cards, get
from passband.data.pde import Problem


@dataclass(frozen=True)
class Algebraic:
    """error = C h^order: the slope of log error over log h."""

    order: float
    within: float
    grids: dict  # points per axis, by dimension
    settings: dict = field(default_factory=dict)

    def check(self, points, errors):
        slope = -np.polyfit(np.log(np.array(points) - 1.0), np.log(errors), 1)[0]
        assert slope == pytest.approx(self.order, abs=self.within), f"{slope:.2f} from {errors}"


@dataclass(frozen=True)
class Geometric:
    """error = C r^n down to rounding: the slope of log10 error over n, and the floor."""

    slope: float
    floor: float
    grids: dict
    settings: dict = field(default_factory=dict)

    def check(self, points, errors):
        assert errors[-1] < self.floor, errors
        falling = np.array(errors) > 10 * self.floor
        assert falling.sum() >= 3, f"the grids start too fine to see the decay: {errors}"
        slope = np.polyfit(np.array(points)[falling], np.log10(np.array(errors)[falling]), 1)[0]
        assert slope < self.slope, f"{slope:.2f} digits a point from {errors}"


FINE = {1: (40, 80, 160), 2: (30, 60, 120), 3: (12, 20, 32)}
COARSE = {1: (8, 13, 18, 23, 60), 2: (6, 8, 10, 12, 24), 3: (5, 6, 7, 8, 20)}
SOME = {1: (10, 12, 14, 16, 60), 2: (10, 12, 14, 16, 40), 3: (8, 11, 14, 28)}
# Kernels as they start: learning them is a matter of problems, not of grids.
START = {"rounds": 0, "max_frequency": 1.0, "components": 8}
EXPECTED = {
    "finite-differences": Algebraic(2.0, 0.2, FINE),
    "chebyshev": Geometric(-0.3, 1e-10, COARSE),
    "gp-hm/gm": Geometric(-0.2, 1e-6, SOME, {**START, "kernel": "gm"}),
    "gp-hm/stm": Algebraic(3.1, 0.6, {**FINE, 3: (10, 14, 20)}, {**START, "kernel": "stm"}),
}


def wave(x, y):
    return np.sin(3 * x + 1) * np.cos(2 * y)


def bell(x):
    return np.exp(np.sin(2 * x))


def bell_2(x):
    return bell(x) * (4 * np.cos(2 * x) ** 2 - 4 * np.sin(2 * x))


def front(x, y, z):
    return np.sin(2 * x) * np.cos(y) * np.exp(0.5 * z)


PROBLEMS = {
    "poisson 1-D": Problem({"x": (0, 2)}, {"xx": 1}, bell_2, exact=bell),
    "variable coefficients 1-D": Problem(
        {"x": (0, 2)}, {"xx": lambda x: 1 + x, "x": -2, "": lambda x: -np.exp(x)},
        lambda x: (1 + x) * bell_2(x) - (4 * np.cos(2 * x) + np.exp(x)) * bell(x), exact=bell,
    ),
    "initial value 1-D": Problem(
        {"t": (0, 2)}, {"t": 1, "": 1}, lambda t: bell(t) * (1 + 2 * np.cos(2 * t)),
        boundary={"t-": 1.0}, exact=bell,
    ),
    "cubic 1-D": Problem(
        {"x": (0, 2)}, {"xx": 1}, lambda x: bell_2(x) - bell(x) ** 3, exact=bell,
        nonlinear=(lambda u: -(u**3), lambda u: -3 * u**2),
    ),
    "poisson 2-D": Problem(
        {"x": (0, 1), "y": (-1, 1)}, {"xx": 1, "yy": 1}, lambda x, y: -13 * wave(x, y), exact=wave
    ),
    "mixed, variable, first order 2-D": Problem(
        {"x": (0, 1), "y": (-1, 1)},
        {"xx": lambda x, y: 2 + x * y, "xy": 0.5, "yy": 1, "x": lambda x, y: y, "": -1},
        lambda x, y: -(9 * (2 + x * y) + 4 + 1) * wave(x, y)
        - 3 * np.cos(3 * x + 1) * np.sin(2 * y) + 3 * y * np.cos(3 * x + 1) * np.cos(2 * y),
        exact=wave,
    ),
    "cubic 2-D": Problem(
        {"x": (0, 1), "y": (-1, 1)}, {"xx": 1, "yy": 1},
        lambda x, y: -13 * wave(x, y) - wave(x, y) ** 3,
        exact=wave, nonlinear=(lambda u: -(u**3), lambda u: -3 * u**2),
    ),
    "heat": Problem(
        {"x": (0, 1), "t": (0, 1)}, {"t": 1, "xx": -0.1}, 0.0,
        boundary={"x": 0.0, "t-": lambda x, t: np.sin(np.pi * x) + 0.5 * np.sin(2 * np.pi * x)},
        exact=lambda x, t: np.sin(np.pi * x) * np.exp(-0.1 * np.pi**2 * t)
        + 0.5 * np.sin(2 * np.pi * x) * np.exp(-0.4 * np.pi**2 * t),
    ),
    "heat backward": Problem(
        {"x": (0, 1), "t": (0, 1)}, {"t": 1, "xx": 0.1}, 0.0,
        boundary={"x": 0.0, "t+": lambda x, t: np.sin(np.pi * x)},
        exact=lambda x, t: np.sin(np.pi * x) * np.exp(0.1 * np.pi**2 * (t - 1)),
    ),
    "advection, all faces": Problem(
        {"x": (0, 1), "t": (0, 1)}, {"x": -3, "t": 1}, 0.0, exact=lambda x, t: np.sin(x + 3 * t)
    ),
    "poisson 3-D": Problem(
        {"x": (0, 1), "y": (0, 1), "z": (0, 2)}, {"xx": 1, "yy": 1, "zz": 1},
        lambda x, y, z: -4.75 * front(x, y, z), exact=front,
    ),
    "cubic 3-D, mixed": Problem(
        {"x": (0, 1), "y": (0, 1), "z": (0, 2)}, {"xx": lambda x, y, z: 1 + y * z, "yy": 1, "zz": 1,
                                                  "xz": 0.2},
        lambda x, y, z: (-4 * (1 + y * z) - 0.75) * front(x, y, z) - front(x, y, z) ** 3
        + 0.2 * np.cos(2 * x) * np.cos(y) * np.exp(0.5 * z), exact=front,
        nonlinear=(lambda u: -(u**3), lambda u: -3 * u**2),
    ),
}


@pytest.mark.filterwarnings("ignore::passband.errors.PassbandWarning")  # of grids too coarse
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", EXPECTED)
def test_error_falls_with_the_grid_as_theory_says(solver, name):
    problem, rule = PROBLEMS[name], EXPECTED[solver]
    lower, upper = np.array(list(problem.box.values())).T
    scattered = np.random.default_rng(0).uniform(lower, upper, (400, problem.dim))
    points = rule.grids[problem.dim]
    errors = []
    for n in points:
        u = get(solver.split("/")[0]).create("small", points=n, **rule.settings).solve(problem)
        errors.append(np.sqrt(np.mean((u(scattered) - problem.truth(scattered)) ** 2)))
    rule.check(points, errors)


def test_expected_orders_are_of_solvers():
    assert all("solve" in cards()[name.split("/")[0]].verbs for name in EXPECTED)


# ---- independent solutions -------------------------------------------------------------------


@pytest.mark.parametrize("solver, error", [("finite-differences", 1e-4), ("chebyshev", 1e-8)])
def test_forced_pendulum_against_solve_bvp(solver, error):
    from scipy.integrate import solve_bvp

    reference = solve_bvp(
        lambda x, y: np.array([y[1], 10 * np.cos(25 * x) - 2 * np.sin(y[0])]),
        lambda a, b: np.array([a[0] - 1, b[0] - 0.5]),
        np.linspace(0, 2, 2001), np.ones((2, 2001)), tol=1e-6, max_nodes=100_000,
    )
    assert reference.success
    problem = Problem(
        {"x": (0, 2)}, {"xx": 1}, lambda x: 10 * np.cos(25 * x), {"x-": 1.0, "x+": 0.5},
        nonlinear=(lambda u: 2 * np.sin(u), lambda u: 2 * np.cos(u)),
    )
    u = get(solver).create("small", points=400).solve(problem)
    x = np.linspace(0, 2, 777)
    assert np.abs(u(x) - reference.sol(x)[0]).max() < error


@pytest.mark.parametrize("solver, error", [("finite-differences", 1e-6), ("chebyshev", 1e-12)])
def test_bratu_against_its_closed_form(solver, error):
    """u'' + e^u = 0: u = -2 ln(cosh(theta (x - 1/2) / 2) / cosh(theta / 4))."""
    from scipy.optimize import brentq

    theta = brentq(lambda s: s - np.sqrt(2) * np.cosh(s / 4), 0, 4, xtol=1e-15)
    problem = Problem({"x": (0, 1)}, {"xx": 1}, 0.0, 0.0, nonlinear=(np.exp, np.exp))
    x = np.linspace(0, 1, 301)
    exact = -2 * np.log(np.cosh(theta * (x - 0.5) / 2) / np.cosh(theta / 4))
    u = get(solver).create("small", points=200).solve(problem)
    assert np.abs(u(x) - exact).max() < error
