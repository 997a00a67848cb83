"""The example files: short, right (by computer algebra), and solved without touching a setting."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from passband.catalog import get
from passband.pde import read_problem

sympy = pytest.importorskip("sympy")
FOLDER = Path(__file__).parents[2] / "examples" / "pde"
x, y, t = sympy.symbols("x y t")
cos, exp, sin, pi = sympy.cos, sympy.exp, sympy.sin, sympy.pi


def poisson(u):
    return u.diff(x, 2) + u.diff(y, 2)


# The solution as the file's first line states it, and the left side of its equation.
EQUATIONS = {
    "helmholtz": (sin(45 * x) * cos(30 * y), lambda u: poisson(u) + 60.2**2 * u),
    "rectangle": (sin(70 * x) * cos(11 * y), poisson),
    "heat": (sin(3 * pi * x) * exp(-t) + sin(60 * x) * cos(50 * t) / 5,
             lambda u: u.diff(t) - u.diff(x, 2) / 10),
    "nonlinear": (sin(30 * x) * cos(20 * y), lambda u: poisson(u) + exp(u)),
    "variable": (cos(40 * x + 25 * y), lambda u: (1 + sin(5 * x) / 2) * u.diff(x, 2)
                 + (2 + x * y) * u.diff(y, 2) + 3 * u.diff(x, y) / 10 + 10 * u.diff(x)),
}


def at(expression, problem, points):
    letters = [sympy.Symbol(a) for a in problem.axes]
    return sympy.lambdify(letters, expression, "numpy")(*points.T)


@pytest.mark.parametrize("name", EQUATIONS)
def test_example_states_a_true_equation(name):
    problem = read_problem(FOLDER / f"{name}.py")
    u, left = EQUATIONS[name]
    lower, upper = np.array(list(problem.box.values())).T
    points = np.random.default_rng(0).uniform(lower, upper, (200, problem.dim))
    source = at(left(u), problem, points)
    np.testing.assert_allclose(problem.truth(points), at(u, problem, points), atol=1e-12)
    np.testing.assert_allclose(
        problem.at(problem.source, points), source, atol=1e-11 * np.abs(source).max()
    )
    # The stated operator is the equation's: applied to a polynomial, term by term.
    letters = [sympy.Symbol(a) for a in problem.axes]
    test = sum(c * v + v**2 for c, v in zip((2, 3, 5), letters, strict=False))
    test += 7 * sympy.prod(letters)
    stated = sum(
        problem.at(c, points) * at(test.diff(*map(sympy.Symbol, k)) if k else test, problem, points)
        for k, c in problem.operator.items()
    )
    if problem.nonlinear:
        stated = stated + problem.nonlinear[0](at(test, problem, points))
    np.testing.assert_allclose(stated, at(left(test), problem, points), rtol=1e-12)


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("solver, error", [("chebyshev", 1e-9), ("finite-differences", 0.2)])
def test_example_is_solved_as_it_stands(solver, error, name):
    problem = read_problem(FOLDER / f"{name}.py")
    lower, upper = np.array(list(problem.box.values())).T
    points = np.random.default_rng(1).uniform(lower, upper, (500, problem.dim))
    u = get(solver).create().solve(problem)
    exact = problem.truth(points)
    assert np.linalg.norm(u(points) - exact) < error * np.linalg.norm(exact)


@pytest.mark.parametrize("solver", ["chebyshev", "finite-differences"])
def test_npz_example(solver, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "npz_writer.py"))
    u = get(solver).create().solve(read_problem(tmp_path / "plate.npz"))
    points = np.random.default_rng(2).random((300, 2)) * [1, 2]
    exact = np.sin(12 * points[:, 0]) * np.exp(-points[:, 1])
    assert np.abs(u(points) - exact).max() < 5e-4


def test_examples_are_short():
    files = sorted(FOLDER.glob("*.py"))
    assert {f.stem for f in files} == {*EQUATIONS, "npz_writer"}
    for file in files:
        assert len(file.read_text().splitlines()) <= 10, file.name
