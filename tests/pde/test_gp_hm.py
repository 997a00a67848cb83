"""Fast mode: likelihoods against dense matrices, solutions against closed forms, the report."""

from functools import reduce

import numpy as np
import pytest
import torch
from scipy import linalg

from passband.api import load
from passband.catalog import get
from passband.data.pde import Problem
from passband.parts.kernels import KERNELS, Theta
from passband.parts.linalg import along
from passband.pde.gp_hm import fast
from passband.pde.gp_hm.fast import Axis, FastSolver, evaluate

JITTER = 1e-6


def some_theta(kernel, seed=0, components=3):
    rng = np.random.default_rng(seed)
    return Theta(
        torch.from_numpy(rng.normal(-1, 1, components)),
        torch.tensor([KERNELS[kernel].scale(b) for b in rng.uniform(0.5, 3, components)]).double(),
        torch.from_numpy(rng.uniform(0, 6, components)),
    )


def matrix(kernel, theta, x):
    return evaluate(KERNELS[kernel], theta, x, x)[0]


def create(**settings):
    return get("gp-hm").create("small", **settings)


def solve(problem, budget=None, **settings):
    system = create(**settings)
    return system, system.solve(problem, budget)


def error(u, problem, count=500, seed=0):
    """Relative error at scattered points."""
    lower, upper = np.array(list(problem.box.values())).T
    points = np.random.default_rng(seed).uniform(lower, upper, (count, problem.dim))
    truth = problem.truth(points)
    return np.linalg.norm(u(points) - truth) / np.linalg.norm(truth)


# ---- the likelihood --------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_negative_log_likelihood_is_that_of_dense_matrices(kernel):
    n, others = 60, 7
    x = np.linspace(0, 2, n)
    theta = some_theta(kernel)
    rows = np.random.default_rng(1).normal(size=(n, 4))
    column = KERNELS[kernel].value(torch.from_numpy(x - x[0]), theta).numpy()
    value, gradient = fast.negative_log_likelihood(column, rows, others, JITTER)

    def dense(column):
        c = linalg.toeplitz(column) + JITTER * np.eye(n)
        return 0.5 * np.linalg.slogdet(c)[1] + 0.5 * (
            rows * np.linalg.solve(c, rows)
        ).sum() / others

    c = linalg.toeplitz(column) + JITTER * np.eye(n)
    alpha = np.linalg.solve(c, rows)
    outer = 0.5 * np.linalg.inv(c) - 0.5 * alpha @ alpha.T / others
    expected = np.array([np.trace(outer)] + [2 * np.trace(outer, k) for k in range(1, n)])
    assert value == pytest.approx(dense(column), rel=1e-7)
    assert np.abs(gradient - expected).max() < 1e-6 * np.abs(expected).max()


def test_its_gradient_by_differences():
    """On a well conditioned matrix, where differences are good to many digits."""
    n, others = 25, 3
    column = np.exp(-3.0 * np.arange(n) / 5)
    rows = np.random.default_rng(1).normal(size=(n, 2))
    _, gradient = fast.negative_log_likelihood(column, rows, others, 1e-2)
    for k in (0, 1, 7, n - 1):
        step = np.zeros(n)
        step[k] = 1e-5
        up, down = (
            fast.negative_log_likelihood(column + s * step, rows, others, 1e-2)[0] for s in (1, -1)
        )
        assert gradient[k] == pytest.approx((up - down) / 2e-5, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_dense_path_for_other_grids_is_the_same(kernel):
    n, others = 40, 5
    x = np.linspace(0, 2, n)
    theta = some_theta(kernel, seed=2)
    rows = np.random.default_rng(1).normal(size=(n, 3))
    k = matrix(kernel, theta, x)
    toeplitz = fast.negative_log_likelihood(k[:, 0], rows, others, 1e-4)
    dense = fast.dense_negative_log_likelihood(k, rows, others, 1e-4)
    assert toeplitz[0] == pytest.approx(dense[0], rel=1e-8)
    collapsed = [np.trace(dense[1])] + [2 * np.trace(dense[1], i) for i in range(1, n)]
    assert np.allclose(toeplitz[1], collapsed, rtol=0, atol=1e-7 * np.abs(collapsed).max())


@pytest.mark.parametrize("shape", [(24,), (14, 17), (7, 8, 9)])
def test_whitened_data_stand_for_the_whole_kronecker_product(shape):
    """1/2 log|C| + 1/2 u' C^-1 u of the full matrix, for each axis's one-dimensional form."""
    kernel = KERNELS["stm"]
    nodes = [np.linspace(0, 1, m) for m in shape]
    thetas = [some_theta("stm", seed=j) for j in range(len(shape))]
    axes = [
        Axis.of(x, kernel, t, (0, -1), 1e-13) for x, t in zip(nodes, thetas, strict=True)
    ]
    solver = FastSolver.__new__(FastSolver)
    solver.jitter = 1e-3
    z = np.random.default_rng(0).normal(size=[len(a.eigenvalues) for a in axes])
    u = fast.on_grid([a.basis.orders[0] for a in axes], z).ravel()
    c = [matrix("stm", t, x) + solver.jitter * np.eye(len(x))
         for t, x in zip(thetas, nodes, strict=True)]
    full = reduce(np.kron, c)
    quadratic = 0.5 * u @ np.linalg.solve(full, u)
    for j, (axis, m) in enumerate(zip(axes, shape, strict=True)):
        others = u.size // m
        rows = axis.basis.orders[0] @ solver._whitened(axes, z, j)
        column = matrix("stm", thetas[j], nodes[j])[:, 0]
        value, _ = fast.negative_log_likelihood(column, rows, others, solver.jitter)
        # What is left over of log|C| depends on the other axes' kernels only.
        rest = sum(0.5 * np.linalg.slogdet(ci)[1] / len(ci) * u.size
                   for i, ci in enumerate(c) if i != j)
        expected = 0.5 * np.linalg.slogdet(full)[1] + quadratic
        assert others * value + rest == pytest.approx(expected, rel=1e-7)


def likelihood(solver, iterate, thetas):
    """log p(U | theta) by dense matrices, U at unit mean square."""
    values = iterate.values / np.sqrt(np.mean(iterate.values**2))
    alpha, log_det = values, 0.0
    for j, (theta, x) in enumerate(zip(thetas, solver.discrete.nodes, strict=True)):
        c = evaluate(solver.kernel, theta, x, x)[0] + solver.jitter * np.eye(len(x))
        alpha = along(np.linalg.inv(c), alpha, j)
        log_det += values.size / len(x) * np.linalg.slogdet(c)[1]
    return -0.5 * log_det - 0.5 * (values * alpha).sum()


def tone_problem(frequency=11.3, length=2.0):
    om = 2 * np.pi * frequency
    return Problem(
        {"x": (0, length)}, {"xx": 1.0}, lambda x: -(om**2) * np.sin(om * x + 0.3),
        exact=lambda x: np.sin(om * x + 0.3),
    )


def plane_problem():
    return Problem(
        {"x": (0, 1), "y": (0, 1)}, {"xx": 1.0, "yy": 1.0},
        lambda x, y: -(20**2 + 31**2) * np.sin(20 * x) * np.cos(31 * y),
        exact=lambda x, y: np.sin(20 * x) * np.cos(31 * y),
    )


@pytest.mark.parametrize("kernel", ["gm", "stm"])
@pytest.mark.parametrize("problem, points, top", [
    (tone_problem(), [101], [16.0]), (plane_problem(), [41, 47], [7.0, 9.0]),
])
def test_the_likelihood_never_falls_in_a_learning_step(
    problem, points, top, kernel, monkeypatch
):
    solver = FastSolver(problem, problem.grid(points), top, kernel, components=12)
    iterate = solver.solve(solver.start)
    old = [a.theta for a in iterate.axes]
    # The share of each axis is learned against the others as they were.
    monkeypatch.setattr(fast, "balanced", list)
    for j in range(problem.dim):
        before = likelihood(solver, iterate, old)
        for steps in (1, 3, 10):
            learned = solver.learn(iterate, steps)
            after = likelihood(solver, iterate, [*old[:j], learned[j], *old[j + 1 :]])
            assert after >= before - 1e-6 * abs(before)
            before = after
    for theta, t in zip(learned, top, strict=True):
        assert (theta.mu >= 0).all()
        assert (theta.mu <= t + 1e-9).all()
        assert all(torch.isfinite(p).all() for p in theta)


# ---- solutions in closed form ----------------------------------------------------------------


def quick(name):
    om = 40.0

    def sine(x):
        return np.sin(om * x) + x

    def product(x, y):
        return np.sin(15 * x) * np.sin(25 * y)

    def cells(x, y, z):
        return np.sin(6 * x) * np.cos(5 * y) * np.sin(7 * z)

    def cube(u):
        return u**3 - u

    return {
        "poisson 1-D": Problem({"x": (0, 1)}, {"xx": 1}, lambda x: -(om**2) * np.sin(om * x),
                               exact=sine),
        "helmholtz 1-D": Problem({"x": (0, 1)}, {"xx": 1, "": 50.0},
                                 lambda x: (50 - om**2) * np.sin(om * x) + 50 * x, exact=sine),
        "variable 1-D": Problem(
            {"x": (0, 1)}, {"xx": lambda x: 1 + x, "x": 3.0},
            lambda x: -(1 + x) * om**2 * np.sin(om * x) + 3 * om * np.cos(om * x) + 3, exact=sine),
        "allen-cahn 1-D": Problem(
            {"x": (0, 1)}, {"xx": 1}, lambda x: -(om**2) * np.sin(om * x) + cube(sine(x)),
            exact=sine, nonlinear=(cube, lambda u: 3 * u**2 - 1)),
        "initial value 1-D": Problem(
            {"t": (0, 1)}, {"t": 1, "": 2.0}, lambda t: om * np.cos(om * t) + 1 + 2 * sine(t),
            boundary={"t-": 0.0}, exact=sine),
        "poisson 2-D": Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1},
                               lambda x, y: -(225 + 625) * product(x, y), exact=product),
        "mixed 2-D": Problem(
            {"x": (0, 1), "y": (0, 1)}, {"xx": 1, "xy": 0.4, "yy": 1},
            lambda x, y: -(225 + 625) * product(x, y)
            + 0.4 * 375 * np.cos(15 * x) * np.cos(25 * y), exact=product),
        "allen-cahn 2-D": Problem(
            {"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1},
            lambda x, y: -(225 + 625) * product(x, y) + cube(product(x, y)), exact=product,
            nonlinear=(cube, lambda u: 3 * u**2 - 1)),
        "advection": Problem({"x": (0, 1), "t": (0, 1)}, {"x": 30, "t": 1}, 0.0,
                             exact=lambda x, t: np.sin(x - 30 * t)),
        "heat": Problem(
            {"x": (0, 1), "t": (0, 0.5)}, {"t": 1, "xx": -0.1}, 0.0,
            boundary={"x": 0.0, "t-": lambda x, t: np.sin(3 * np.pi * x)},
            exact=lambda x, t: np.sin(3 * np.pi * x) * np.exp(-0.9 * np.pi**2 * t)),
        "poisson 3-D": Problem(
            {"x": (0, 1), "y": (0, 1), "z": (0, 1)}, {"xx": 1, "yy": 1, "zz": 1},
            lambda x, y, z: -(36 + 25 + 49) * cells(x, y, z), exact=cells),
    }[name]


QUICK = [  # name, points, worst error for gm, for stm: five to ten times what is usual
    ("poisson 1-D", 150, 1e-7, 1e-6),
    ("helmholtz 1-D", 150, 1e-7, 3e-6),
    ("variable 1-D", 150, 1e-7, 1e-6),
    ("allen-cahn 1-D", 150, 2e-7, 1e-6),
    ("initial value 1-D", 150, 5e-7, 3e-6),
    ("poisson 2-D", 60, 3e-8, 3e-6),
    ("mixed 2-D", 60, 3e-8, 1e-6),
    ("allen-cahn 2-D", 60, 3e-8, 1e-6),
    ("advection", 80, 1e-6, 1e-5),
    ("heat", 40, 1e-4, 1e-3),
    ("poisson 3-D", 24, 1e-6, 5e-4),
]


@pytest.mark.parametrize("name, points, gm, stm", QUICK)
@pytest.mark.parametrize("kernel", ["gm", "stm"])
def test_solutions_in_closed_form(name, points, gm, stm, kernel):
    problem = quick(name)
    system, u = solve(problem, kernel=kernel, points=points, rounds=2, learn_steps=15)
    bound = {"gm": gm, "stm": stm}[kernel]
    assert error(u, problem) < bound
    # What it says about itself without the truth.
    assert u.report["residual"] < 20 * bound
    assert u.report["boundary_gap"] < 2 * bound
    assert u.values.shape == (points,) * problem.dim
    # Evaluation on grids and at points is one function.
    mesh = np.stack(np.meshgrid(*u.axes, indexing="ij"), -1).reshape(-1, problem.dim)
    some = np.random.default_rng(0).integers(len(mesh), size=50)
    scale = np.abs(u.values).max()
    assert np.abs(u(mesh[some]) - u.values.ravel()[some]).max() < 1e-7 * scale
    other = tuple(np.linspace(lo, hi, 7) for lo, hi in problem.box.values())
    mesh = np.stack(np.meshgrid(*other, indexing="ij"), -1).reshape(-1, problem.dim)
    assert np.abs(u(mesh) - system.solution_on(other).ravel()).max() < 1e-7 * scale


def test_grids_that_are_not_uniform():
    """Arrays on squeezed nodes: the dense path, in one and in two dimensions."""
    x = np.linspace(0, 1, 90)
    x = x + 0.05 * np.sin(np.pi * x) ** 2
    problem = quick("poisson 1-D")
    arrays = Problem({"x": (0, 1)}, {"xx": 1}, problem.source(x),
                     {"x-": 0.0, "x+": np.sin(40.0) + 1}, nodes=[x])
    _, u = solve(arrays, rounds=2)
    assert np.array_equal(u.axes[0], x)
    assert error(u, problem) < 1e-6
    plane = quick("poisson 2-D")
    y = np.linspace(0, 1, 64)
    mesh = np.meshgrid(x, y, indexing="ij")
    arrays = Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1}, plane.source(*mesh),
                     plane.exact, nodes=[x, y])
    _, u = solve(arrays, rounds=1, learn_steps=5)
    assert error(u, plane) < 1e-6


# ---- what is learned -------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["gm", "stm"])
@pytest.mark.parametrize("frequency", [11.3, 15.9155])
def test_the_spectrum_shows_the_frequency_of_a_tone(kernel, frequency):
    system, u = solve(tone_problem(frequency), kernel=kernel, points=200)
    w, mu, bandwidth = system.spectrum()["x"]
    assert mu[0] == pytest.approx(frequency, abs=0.05)
    assert (np.diff(w) <= 0).all()
    assert u.report["components_kept"]["x"] < 15
    assert len(w) == len(mu) == len(bandwidth) == 30


def test_the_spectrum_of_each_axis():
    system, _ = solve(plane_problem(), points=60)
    for axis, om in (("x", 20), ("y", 31)):
        assert system.spectrum()[axis][1][0] == pytest.approx(om / (2 * np.pi), abs=0.05)


@pytest.mark.parametrize("problem, points", [(tone_problem(3.0), 60), (plane_problem(), 26)])
def test_variance_is_the_conditional_variance_of_the_dense_gp(problem, points):
    system, _ = solve(problem, points=points, rounds=1, jitter=1e-4)
    lower, upper = np.array(list(problem.box.values())).T
    x = np.random.default_rng(0).uniform(lower, upper, (40, problem.dim))
    thetas = system.fields[0].thetas
    c, rows, prior = [], [], 1.0
    for j, (theta, nodes) in enumerate(zip(thetas, system.axes, strict=True)):
        c.append(matrix("gm", theta, nodes) + 1e-4 * np.eye(len(nodes)))
        rows.append(evaluate(KERNELS["gm"], theta, x[:, j], nodes)[0])
        prior *= float(theta.log_w.exp().sum())
    full = reduce(np.kron, c)
    k = np.stack([reduce(np.kron, [r[i] for r in rows]) for i in range(len(x))])
    expected = prior - np.einsum("pm,pm->p", k, np.linalg.solve(full, k.T).T)
    scale = np.mean(system.values**2)  # fast mode learns for u at unit mean square
    expected, prior = scale * expected, scale * prior
    got = system.variance(x)
    assert got.shape == (40,)
    assert (got >= 0).all()
    assert np.abs(got - expected).max() < 1e-7 * prior
    # Unknown far outside.
    assert system.variance(upper[None] + 100.0)[0] == pytest.approx(prior, rel=0.1)


def test_log_joint_of_a_solution_is_the_papers_objective():
    """Better solutions have the higher log joint; it is a finite number for every mode."""
    problem = tone_problem()
    system, _ = solve(problem, points=100)
    good = system.log_joint(problem)
    assert np.isfinite(good)
    poor = create(points=100, rounds=0)
    poor.solve(problem)
    assert good > poor.log_joint(problem)
    paper = get("gp-hm").create("paper", points=100, max_frequency=16.0)
    paper.solve(problem, "30 steps")
    assert paper.log_joint(problem) < good


def test_log_joint_against_dense_matrices():
    """At the solution's own U, theta and the closed-form t of the conditional mean's gaps."""
    problem = tone_problem(3.0)
    system, u = solve(problem, points=40, jitter=1e-4, max_frequency=5.0)
    x, values, theta = u.axes[0], u.values, system.fields[0].thetas[0]
    k, _, k2 = evaluate(KERNELS["gm"], theta, x, x)
    scale = np.mean(values**2)  # fast mode learns theta for u at unit mean square
    c = scale * (k + 1e-4 * np.eye(40))
    alpha = np.linalg.solve(c, values)
    residual = scale * k2 @ alpha - problem.source(x)
    gap = (values - problem.exact(x))[[0, -1]]
    t1 = min(np.log(2 / max(gap @ gap, 1e-300)), 16.0)
    t2 = min(np.log(40 / (residual @ residual)), 16.0)
    expected = (
        -0.5 * np.linalg.slogdet(c)[1] - 0.5 * values @ alpha
        + 200 * (t1 - 0.5 * np.exp(t1) * gap @ gap)
        + 20 * t2 - 0.5 * np.exp(t2) * residual @ residual
    )
    assert system.log_joint(problem) == pytest.approx(expected, rel=1e-5)


# ---- state, budgets, repeatability -----------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "paper"])
@pytest.mark.parametrize("name", ["poisson 1-D", "poisson 2-D"])
def test_saved_and_loaded_it_gives_the_same_numbers(tmp_path, name, mode):
    problem = quick(name)
    settings = {"iterations": 4, "change_point": 0.5} if mode == "paper" else {"rounds": 1}
    system, u = solve(problem, points=30, mode=mode, components=8, **settings)
    other = load(system.save(tmp_path / "saved"))
    lower, upper = np.array(list(problem.box.values())).T
    points = np.random.default_rng(0).uniform(lower, upper, (20, problem.dim))
    assert np.array_equal(other.solution(points), u(points))
    assert np.array_equal(other.solution_on(u.axes), system.solution_on(u.axes))
    assert np.array_equal(other.variance(points), system.variance(points))
    assert other.log_joint(problem) == system.log_joint(problem)
    for axis, table in system.spectrum().items():
        for a, b in zip(table, other.spectrum()[axis], strict=True):
            assert np.array_equal(a, b)
    assert other.parameter_count() == system.parameter_count()


def test_the_same_numbers_twice():
    problem = quick("poisson 2-D")
    first, second = (solve(problem, points=40, rounds=2)[1] for _ in range(2))
    assert np.array_equal(first.values, second.values)


def test_one_thread_or_two():
    problem = quick("allen-cahn 2-D")
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(solve(problem, points=40, rounds=1)[1].values)
        finally:
            torch.set_num_threads(before)
    assert np.abs(found[0] - found[1]).max() < 1e-7


@pytest.mark.parametrize("mode", ["fast", "paper"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_budget_of_steps(steps, mode):
    _, u = solve(tone_problem(3.0), f"{steps} steps", points=60, mode=mode, patience=100)
    assert u.report["steps"] == steps


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_a_budget_of_seconds_that_is_spent_at_once(mode):
    _, u = solve(tone_problem(3.0), "0.001s", points=60, mode=mode)
    assert u.report["steps"] <= 1
    assert np.isfinite(u.values).all()


@pytest.mark.parametrize("select", ["residual", "last"])
def test_the_iterate_is_selected_as_the_report_says(select):
    _, u = solve(tone_problem(), points=80, select=select, patience=100, rounds=4)
    assert u.report["selected"] == select
    residuals = u.report["residuals"]
    if select == "residual":
        assert u.report["residual"] == min(residuals)


def test_the_exact_solution_is_never_looked_at():
    def forbidden(*_):
        raise AssertionError("the solver looked at the truth")

    problem = quick("poisson 2-D")
    blind = Problem(problem.box, problem.operator, problem.source, 0.0, exact=None)
    honest = Problem(
        problem.box, problem.operator, problem.source,
        boundary=dict.fromkeys(problem.faces, 0.0), exact=problem.exact,
    )
    object.__setattr__(honest, "exact", forbidden)
    a, b = (solve(p, points=30, rounds=1)[1].values for p in (blind, honest))
    assert np.array_equal(a, b)


def test_the_report_speaks_of_the_iterate_that_is_returned():
    """`residual` is that of the solution in hand, whichever iterate was selected."""
    problem = tone_problem()
    for select, pick in (("last", lambda r: r[-1]), ("residual", min)):
        system, u = solve(problem, points=60, rounds=4, select=select)
        assert u.report["residual"] == pick(u.report["residuals"])
        middle = 0.5 * (u.axes[0][1:] + u.axes[0][:-1])
        assert np.abs(system.solution(middle[:, None]) - problem.exact(middle)).max() < 1e-2
