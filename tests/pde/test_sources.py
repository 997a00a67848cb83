"""The closed-form sources of all tasks, against derivatives of the exact solutions.

Differences of eighth order in 80-bit arithmetic leave a relative error near 1e-9, whatever the
formulas in `tasks.py` say.
"""

import numpy as np
import pytest

from passband.pde.tasks import TASKS

# Weights at -4h ... 4h, times h and h^2.
FIRST = np.array([3, -32, 168, -672, 0, 672, -168, 32, -3], dtype=np.longdouble) / 840
SECOND = np.array([-9, 128, -1008, 8064, -14350, 8064, -1008, 128, -9], dtype=np.longdouble) / 5040
STEP = np.longdouble(2e-4)


def derivative(u, points, axis, weights, order):
    shifted = [np.array(points) for _ in range(9)]
    for k, p in enumerate(shifted):
        p[axis] += (k - 4) * STEP
    return sum(w * u(*p) for w, p in zip(weights, shifted, strict=True)) / STEP**order


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="needs 80-bit long doubles")
@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("name", TASKS)
def test_source_is_the_operator_applied_to_the_exact_solution(name, seed):
    problem = TASKS[name].make(seed)
    assert problem.exact is not None
    rng = np.random.default_rng(seed)
    lower, upper = np.array(list(problem.box.values())).T
    points = rng.uniform(lower, upper, (300, problem.dim)).T.astype(np.longdouble)
    total = np.zeros(300, dtype=np.longdouble)
    for key, coefficient in problem.operator.items():
        axis = problem.axes.index(key[0])
        weights = SECOND if len(key) == 2 else FIRST
        assert key == problem.axes[axis] * len(key), "mixed derivatives are not checked here"
        total += coefficient * derivative(problem.exact, points, axis, weights, len(key))
    size = np.abs(total).max()
    if problem.nonlinear:
        total += problem.nonlinear[0](problem.exact(*points))
    if name == "advection":  # the terms cancel: compare with one of them
        size = 200.0
    source = problem.at(problem.source, points.T.astype(float))
    np.testing.assert_allclose(total.astype(float), source, atol=float(1e-8 * size), rtol=0)


@pytest.mark.parametrize("name", [n for n in TASKS if TASKS[n].make(0).nonlinear])
def test_slope_of_the_nonlinear_term(name):
    n, dn = TASKS[name].make(0).nonlinear
    u = np.linspace(-2, 2, 41)
    np.testing.assert_allclose(np.imag(n(u + 1e-30j)) / 1e-30, dn(u), rtol=1e-13, atol=1e-13)


def test_formulas_are_the_ones_in_the_summaries():
    x = np.linspace(0, 1, 11)
    stated = {
        "poisson1d-single": np.sin(100 * x),
        "poisson1d-sin-cos": np.sin(6 * x) * np.cos(100 * x),
        "poisson1d-x-sin": x * np.sin(200 * x),
        "poisson1d-mix": np.sin(x) + 0.1 * np.sin(20 * x) + 0.05 * np.sin(100 * x),
        "poisson1d-x2": np.sin(500 * x) - 2 * (x - 0.5) ** 2,
        "allencahn1d-single": np.sin(100 * x),
        "allencahn1d-sin-cos": np.sin(6 * x) * np.cos(100 * x),
    }
    for name, u in stated.items():
        np.testing.assert_allclose(TASKS[name].make(0).exact(x), u, atol=1e-12)
    y = x[::-1] ** 2
    p = {v: np.sin(v) + 0.1 * np.sin(20 * v) + np.cos(100 * v) for v in (0.3, 0.7)}
    square = {
        "poisson2d-sin-sin": np.sin(100 * x) * np.sin(100 * y),
        "poisson2d-sin-add-cos": np.sin(6 * x) * np.cos(20 * x) + np.sin(6 * y) * np.cos(20 * y),
        "advection": np.sin(x - 200 * y),
    }
    for name, u in square.items():
        np.testing.assert_allclose(TASKS[name].make(0).exact(x, y), u, atol=1e-12)
    mix = TASKS["allencahn2d-mix"].make(0).exact(np.array([0.3]), np.array([0.7]))
    np.testing.assert_allclose(mix, p[0.3] * p[0.7], atol=1e-12)


def test_random_tasks_follow_their_seed():
    for name in ("poisson1d-random", "poisson2d-random"):
        once, again, other = (TASKS[name].data(seed).test.values for seed in (3, 3, 4))
        np.testing.assert_array_equal(once, again)
        assert np.abs(once - other).max() > 1e-3
