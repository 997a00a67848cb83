"""GP-HM given wrong, extreme and degenerate input: clear errors, warnings, or right answers."""

import warnings

import numpy as np
import pytest
import torch

from passband.catalog import get
from passband.data.pde import Problem, read_problem
from passband.errors import ConfigError, DataError, PassbandError, PassbandWarning, ProblemError
from passband.parts.kernels import KERNELS
from passband.pde.gp_hm.fast import start_theta

OM = 40.0


def create(**settings):
    return get("gp-hm").create("small", **settings)


def solve(problem, budget=None, **settings):
    return create(**settings).solve(problem, budget)


def tone(amplitude=1.0, start=0.0, length=1.0, **fields):
    """A sine of 6.4 periods over the box, of any size, anywhere."""
    om = OM / length

    def exact(x):
        return amplitude * np.sin(om * (x - start) + 0.3)

    return Problem(
        {"x": (start, start + length)}, {"xx": 1.0}, lambda x: -(om**2) * exact(x), exact=exact,
        **fields,
    )


def plane(amplitude=1.0):
    def exact(x, y):
        return amplitude * np.sin(15 * x) * np.sin(25 * y)

    return Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1.0, "yy": 1.0},
                   lambda x, y: -850 * exact(x, y), exact=exact)


def error(u, problem, count=400):
    lower, upper = np.array(list(problem.box.values())).T
    points = np.random.default_rng(0).uniform(lower, upper, (count, problem.dim))
    truth = problem.truth(points)
    return np.linalg.norm(u(points) - truth) / np.linalg.norm(truth)


# ---- frequencies, points ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_frequencies_above_nyquist_are_capped_with_a_warning(mode):
    with pytest.warns(PassbandWarning) as caught:
        u = solve(tone(), "1 steps", mode=mode, points=60, max_frequency=40.0)
    assert "would alias on 60 points" in str(caught[0].message)
    highest = 0.9 * 59 / 2
    assert u.report["highest_frequency"] == [pytest.approx(highest)]
    assert f"{highest:.3g}" in str(caught[0].message)
    assert any("alias" in note for note in u.report["notes"])


def test_only_the_axis_above_nyquist_is_capped():
    with pytest.warns(PassbandWarning) as caught:
        u = solve(plane(), points=(60, 40), max_frequency=(12.0, 30.0), rounds=0)
    assert [str(w.message)[:8] for w in caught if "alias" in str(w.message)] == ["axis 'y'"]
    assert u.report["highest_frequency"] == [12.0, pytest.approx(0.9 * 39 / 2)]


def test_data_beyond_the_grid_are_told():
    with pytest.warns(PassbandWarning) as caught:
        solve(tone(), points=12, rounds=0)
    assert "give more points" in str(caught[0].message)
    assert "the equation is met to" in str(caught[1].message)


def test_a_jump_gets_a_grid_of_reasonable_size():
    problem = Problem({"x": (0, 1)}, {"xx": 1}, lambda x: np.where(x > 0.5, 1.0, -1.0), 0.0)
    with pytest.warns(PassbandWarning, match="the equation is met to"):
        u = solve(problem, rounds=0)
    assert u.report["points"][0] < 1000
    assert u(np.array([0.25]))[0] == pytest.approx(1 / 32, abs=2e-4)


def test_points_outside_the_box_are_refused():
    u = solve(tone(), points=60, rounds=0)
    for point in (-0.1, 1.1, np.nan):
        with pytest.raises(DataError, match="not in the box"):
            u(np.array([0.5, point]))


def test_absurdly_many_points_are_refused():
    with pytest.raises(ConfigError, match="100000"):
        solve(tone(), points=100_000)


@pytest.mark.parametrize("kernel", ["gm", "stm"])
@pytest.mark.parametrize("top", [2.0, 20.0, 500.0])
def test_the_start_leaves_no_gaps_between_components(kernel, top):
    """Each component's band reaches at least half way to its neighbours."""
    theta = start_theta(KERNELS[kernel], 30, top, 1.0)
    spacing = float(theta.mu[1] - theta.mu[0])
    bandwidth = KERNELS[kernel].bandwidth(theta)
    assert (bandwidth >= 0.499 * spacing).all()
    papers = KERNELS[kernel].bandwidth(theta._replace(log_a=0 * theta.log_a))
    if top == 500.0:  # the start of the paper, log a = 0, does leave them
        assert (papers < 0.1 * spacing).all()


def test_one_component():
    u = solve(tone(), components=1, points=60, max_frequency=8.0)
    assert np.isfinite(u.values).all()


@pytest.mark.parametrize("mode", ["fast", "paper"])
@pytest.mark.parametrize("points", [1, 7, (7,), 0, -3])
def test_fewer_than_eight_points(points, mode):
    with pytest.raises(ConfigError, match="points"):
        solve(tone(), mode=mode, points=points)


def test_fewer_than_eight_points_of_an_array():
    x = np.linspace(0, 1, 7)
    problem = Problem({"x": (0, 1)}, {"xx": 1}, np.sin(x), 0.0, nodes=[x])
    with pytest.raises(ConfigError, match="the grid 7"):
        solve(problem)


@pytest.mark.parametrize("setting", [
    {"points": (20, 20)}, {"max_frequency": (3.0, 4.0)}, {"max_frequency": 0.0},
    {"max_frequency": -2.0}, {"max_frequency": float("nan")}, {"max_frequency": float("inf")},
    {"kernel": "rbf"}, {"mode": "slow"}, {"components": 0}, {"jitter": 0.0}, {"jitter": 1.0},
    {"learning_rate": float("nan")}, {"boundary_weight": -1.0}, {"change_point": 1.5},
    {"rounds": -1}, {"nonsense": 1},
])
def test_settings_out_of_range(setting):
    with pytest.raises(PassbandError) as caught:
        solve(tone(), **setting)
    assert next(iter(setting)) in str(caught.value)


def test_eight_cubed_points():
    problem = Problem(
        {"x": (0, 1), "y": (0, 1), "z": (0, 1)}, {"xx": 1, "yy": 1, "zz": 1},
        lambda x, y, z: -3 * np.sin(x) * np.sin(y) * np.sin(z),
        exact=lambda x, y, z: np.sin(x) * np.sin(y) * np.sin(z),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PassbandWarning)
        u = solve(problem, points=8)
    assert error(u, problem) < 5e-3
    assert u.values.shape == (8, 8, 8)


# ---- the problem itself ----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_their_field(bad):
    x = np.linspace(0, 1, 33)
    f = np.sin(x)
    f[5] = bad
    with pytest.raises(ProblemError, match=r"source has 1 NaN or infinite values.*5"):
        Problem({"x": (0, 1)}, {"xx": 1}, f, 0.0, nodes=[x])
    with pytest.raises(ProblemError, match="source"):
        Problem({"x": (0, 1)}, {"xx": 1}, lambda x: np.where(x > 0.5, bad, x), 0.0)
    with pytest.raises(ProblemError, match="boundary"):
        Problem({"x": (0, 1)}, {"xx": 1}, 0.0, {"x-": bad, "x+": 0.0})
    with pytest.raises(ProblemError, match="boundary"):
        Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1}, 0.0, lambda x, y: bad * (x + 1))


def test_a_source_that_is_infinite_only_on_the_fine_grid():
    """Finite where the problem was tried at first: the solver's own grid finds it."""
    problem = Problem({"x": (0, 1)}, {"xx": 1}, lambda x: np.where(x == 0.25 + 1 / 32, np.nan, x),
                      0.0)
    with pytest.raises(ProblemError, match="source"):
        solve(problem, points=33, max_frequency=5.0)


def test_corners_that_disagree():
    with pytest.raises(ProblemError, match="disagree"):
        Problem({"x": (0, 1), "y": (0, 1)}, {"xx": 1, "yy": 1}, 0.0, {"x": 0.0, "y": 1.0})


@pytest.mark.parametrize("key", ["xxx", "xxxx", "xxyy", "xxy"])
def test_third_and_fourth_derivatives(key):
    with pytest.raises(ProblemError, match="order") as caught:
        Problem({"x": (0, 1), "y": (0, 1)}, {key: 1, "yy": 1}, 0.0, 0.0)
    assert key in str(caught.value)


@pytest.mark.parametrize("box", [
    {"x": (1, 0)}, {"x": (0, 0)}, {"x": (0, np.inf)}, {"x": "disc"}, [(0, 1)], {},
    {"r": lambda theta: 1.0}, {"x": ((0, 1), (2, 3))},
])
def test_domains_that_are_no_boxes(box):
    with pytest.raises(ProblemError, match="box"):
        Problem(box, {"xx": 1}, 0.0, 0.0)


def test_an_eigenvalue_of_the_operator():
    problem = Problem({"x": (0, 1)}, {"xx": 1, "": np.pi**2}, lambda x: x, 0.0)
    try:
        u = solve(problem, points=60, max_frequency=8.0, rounds=1)
    except ProblemError as caught:
        assert "singular" in str(caught)
    else:  # the discrete operator may just miss it: then the report must not look like success
        assert np.abs(u.values).max() > 1e6 or u.report["residual"] > 1e-3


def test_a_reaction_without_a_solution():
    """u'' + 10 e^u = 0 between zeros has none: an error, not a field of wrong numbers."""
    problem = Problem({"x": (0, 1)}, {"xx": 1}, 0.0, 0.0,
                      nonlinear=(lambda u: 10 * np.exp(u), lambda u: 10 * np.exp(u)))
    with pytest.raises(ProblemError, match="Newton"):
        solve(problem, points=60, max_frequency=8.0)


def test_asked_before_it_was_solved():
    for call in (lambda s: s.solution(np.zeros((1, 1))), lambda s: s.solution_on((np.zeros(1),)),
                 lambda s: s.variance(np.zeros((1, 1)))):
        with pytest.raises(PassbandError, match="no solution"):
            call(create())


@pytest.mark.parametrize("points", [np.zeros((3, 2)), np.zeros((2, 3, 1)), 0.5])
def test_points_of_the_wrong_shape(points):
    u = solve(tone(), points=60, rounds=0)
    with pytest.raises(DataError, match="points have shape"):
        u(points)
    assert u(np.zeros((0, 1))).shape == (0,)


# ---- precision -------------------------------------------------------------------------------


def test_everything_is_computed_in_double_precision():
    """Whatever torch's default is, and for arrays that come in single precision."""
    reference = solve(tone(), points=100, rounds=2)
    torch.set_default_dtype(torch.float16)
    try:
        again = solve(tone(), points=100, rounds=2)
        paper = solve(tone(), "2 steps", points=40, mode="paper")
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.values.dtype == paper.values.dtype == np.float64
    assert np.abs(again.values - reference.values).max() < 1e-7
    assert error(again, tone()) < 1e-7


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_arrays_in_single_precision_are_computed_in_double(mode):
    """f in float32 has an error of 1e-7, and u about the same: no cause to refuse it."""
    x = np.linspace(0, 1, 120)
    problem = tone()
    arrays = Problem({"x": (0, 1)}, {"xx": 1}, problem.source(x).astype(np.float32),
                     {"x-": np.float32(problem.exact(0.0)), "x+": np.float32(problem.exact(1.0))},
                     nodes=[x])
    assert arrays.source.dtype == np.float64
    u = solve(arrays, "3 steps", mode=mode)
    assert u.values.dtype == np.float64
    if mode == "fast":
        assert error(u, problem) < 1e-5


def test_nodes_in_single_precision():
    """linspace rounded to float32 is uniform to 1e-5 of a step only."""
    x = np.linspace(0, 1, 120, dtype=np.float32)
    problem = tone()
    arrays = Problem({"x": (0, 1)}, {"xx": 1}, problem.source(x.astype(float)),
                     {"x-": problem.exact(0.0), "x+": problem.exact(1.0)}, nodes=[x])
    assert error(solve(arrays), problem) < 1e-6


@pytest.mark.parametrize("size", [1e-12, 1e-9, 3e-7, 2e-6, 1e-3])
def test_nodes_that_are_almost_uniform(size):
    """No threshold between the Toeplitz and the dense path at which answers go wrong."""
    x = np.linspace(0, 1, 100)
    x[1:-1] += size * (x[1] - x[0]) * np.random.default_rng(0).uniform(-1, 1, 98)
    problem = tone()
    arrays = Problem({"x": (0, 1)}, {"xx": 1}, problem.source(x),
                     {"x-": problem.exact(0.0), "x+": problem.exact(1.0)}, nodes=[x])
    u = solve(arrays, rounds=2)
    assert error(u, problem) < 1e-6
    assert u.report["boundary_gap"] < 1e-6


# ---- degenerate solutions --------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "paper"])
@pytest.mark.parametrize("dim", [1, 2])
def test_the_zero_solution(dim, mode):
    axes = "xy"[:dim]
    problem = Problem(dict.fromkeys(axes, (0, 1)), {2 * a: 1.0 for a in axes}, 0.0, 0.0)
    u = solve(problem, "5 steps", points=20, mode=mode)
    assert not u.values.any()
    assert u.report["residual"] == 0.0
    assert u.report["boundary_gap"] == 0.0
    assert np.isfinite(u.solver.variance(np.full((1, dim), 0.5))).all()
    assert np.isfinite(u.solver.log_joint(problem))


@pytest.mark.parametrize("value", [1.0, -7.0, 1e6])
@pytest.mark.parametrize("dim", [1, 2])
def test_a_constant_solution(dim, value):
    axes = "xy"[:dim]
    problem = Problem(dict.fromkeys(axes, (0, 1)), {2 * a: 1.0 for a in axes}, 0.0, value)
    u = solve(problem, points=40)
    points = np.random.default_rng(0).uniform(size=(50, dim))
    assert np.abs(u(points) - value).max() < 1e-5 * abs(value)


def test_a_straight_line():
    problem = Problem({"x": (0, 2)}, {"xx": 1}, 0.0, {"x-": 1.0, "x+": -3.0},
                      exact=lambda x: 1 - 2 * x)
    assert error(solve(problem), problem) < 1e-6


# ---- size and place --------------------------------------------------------------------------


@pytest.mark.parametrize("amplitude", [1e6, 1e-6, 1e-12])
@pytest.mark.parametrize("make, points", [(tone, 120), (plane, 50)])
def test_the_amplitude_does_not_matter(make, points, amplitude):
    settings = {"points": points, "rounds": 2, "learn_steps": 15}
    plain, scaled = (solve(make(a), **settings) for a in (1.0, amplitude))
    assert error(scaled, make(amplitude)) < 1e-7
    scale = np.abs(plain.values).max()
    assert np.abs(scaled.values / amplitude - plain.values).max() < 1e-6 * scale
    # The first solution knows no learning: rounding only.
    assert scaled.report["residuals"][0] == pytest.approx(plain.report["residuals"][0], rel=1e-2)


@pytest.mark.parametrize("start, bound", [(1000.0, 1e-6), (-1e6, 1e-4)])
def test_a_box_far_from_the_origin(start, bound):
    assert error(solve(tone(start=start), points=120), tone(start=start)) < bound


@pytest.mark.parametrize("length", [1e-12, 1e-6, 1e3, 1e9])
def test_tiny_and_huge_boxes(length):
    """The same problem in other units has the same solution."""
    problem = tone(length=length)
    u = solve(problem, points=120)
    assert error(u, problem) < 1e-7
    assert u.report["highest_frequency"][0] * length == pytest.approx(14.1, rel=0.01)


def test_a_flat_box():
    problem = Problem(
        {"x": (0, 100), "y": (0, 0.01)}, {"xx": 1.0, "yy": 1.0},
        lambda x, y: -(0.16 + 1e4) * np.sin(0.4 * x) * np.cos(100 * y),
        exact=lambda x, y: np.sin(0.4 * x) * np.cos(100 * y),
    )
    assert error(solve(problem, points=(80, 30), rounds=1), problem) < 1e-5


@pytest.mark.parametrize("other", [tone(5.0), plane()])
def test_solving_again_leaves_earlier_solutions_alone(other):
    system, x = create(rounds=0, points=60), np.linspace(0, 1, 20)
    first = system.solve(tone())
    before = first(x)
    second = system.solve(other)
    assert np.array_equal(first(x), before)
    assert error(second, other) < 1e-2


# ---- arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, budget", [("fast", None), ("paper", "3 steps")])
def test_arrays_on_a_uniform_grid_are_the_callable(tmp_path, mode, budget):
    """An .npz of the source's values against the same source as a function."""
    problem, x = tone(), np.linspace(0, 1, 150)
    np.savez(tmp_path / "p.npz", x1=x, f=problem.source(x), g1_lo=problem.exact(0.0),
             g1_hi=problem.exact(1.0), operator='{"xx": 1}')
    settings = {"mode": mode, "max_frequency": 9.0}
    from_file = solve(read_problem(tmp_path / "p.npz"), budget, **settings)
    from_function = solve(problem, budget, points=150, **settings)
    assert np.array_equal(from_file.axes[0], x)
    assert np.allclose(from_file.values, from_function.values, rtol=0, atol=1e-10)
    assert from_file.report["points"] == [150]


def test_arrays_in_two_dimensions(tmp_path):
    problem = plane()
    x, y = np.linspace(0, 1, 60), np.linspace(0, 1, 70)
    np.savez(
        tmp_path / "p.npz", x1=x, x2=y, f=problem.source(*np.meshgrid(x, y, indexing="ij")),
        g1_lo=problem.exact(0.0, y), g1_hi=problem.exact(1.0, y),
        g2_lo=problem.exact(x, 0.0), g2_hi=problem.exact(x, 1.0),
    )
    u = solve(read_problem(tmp_path / "p.npz"), rounds=1)
    assert u.report["points"] == [60, 70]
    assert error(u, problem) < 1e-7


def test_points_beside_arrays_are_ignored_and_told():
    x = np.linspace(0, 1, 60)
    problem = Problem({"x": (0, 1)}, {"xx": 1}, np.sin(x), 0.0, nodes=[x])
    with pytest.warns(PassbandWarning, match="points was ignored"):
        u = solve(problem, points=100, rounds=0)
    assert len(u.axes[0]) == 60
