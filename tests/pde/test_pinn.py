"""PINN: derivatives against nested autograd, every kind of problem, easy equations, resume."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch

from passband import catalog
from passband.bench.budget import Budget
from passband.data.pde import Problem
from passband.errors import ConfigError, UnknownNameError
from passband.pde.baselines.pinn.model import (
    Network,
    Points,
    mismatch,
    residual,
    sample,
    to_unit,
)
from passband.pde.baselines.pinn.system import PINN

POISSON = Problem(
    {"x": (0, 1)}, {"xx": 1.0}, lambda x: -np.pi**2 * np.sin(np.pi * x), boundary=0.0,
    exact=lambda x: np.sin(np.pi * x),
)
CUBE = Problem(
    {"x": (0, 2), "y": (-1, 1), "t": (0, 0.5)},
    {"xx": 1.5, "xy": lambda x, y, t: 1 + x * y, "t": -2.0, "": lambda x, y, t: np.cos(x),
     "yy": 1.0},
    lambda x, y, t: x + t,
    boundary={"x": 1.0, "y": 1.0, "t-": 1.0},
    nonlinear=(lambda u: np.sin(u) ** 2, lambda u: np.sin(2 * u)),
)


def nested(network, x, key, axes):
    """A derivative by autograd alone."""
    y = x.clone().requires_grad_()
    out = network(y)
    for axis in key:
        out = torch.autograd.grad(out.sum(), y, create_graph=True)[0][:, axes.index(axis)]
    return out


NETWORKS = [
    {}, {"activation": "sin", "depth": 1}, {"scales": (0.5, 2.0), "features": 3},
    {"scales": (0.5, 2.0), "features": 3, "merge": "outputs"},
]


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_derivatives_and_their_gradients_equal_nested_autograd(options):
    torch.manual_seed(0)
    network = Network(3, width=7, **{"depth": 3, **options}).double()
    x = torch.rand(11, 3, dtype=torch.float64) * 2 - 1
    keys = ["yt", "", "x", "xx", "xt", "tt"]
    parameters = list(network.parameters())
    ours = network.derivatives(x, keys, "xyt")
    reference = [nested(network, x, key, "xyt") for key in keys]
    for key, a, b in zip(keys, ours, reference, strict=True):
        torch.testing.assert_close(a, b, msg=key)
    weight = torch.randn(len(keys), 11, dtype=torch.float64)
    total = lambda rows: (weight * torch.stack(rows)).square().sum()  # noqa: E731
    ours_g = torch.autograd.grad(total(ours), parameters)
    reference_g = torch.autograd.grad(total(reference), parameters)
    for a, b in zip(ours_g, reference_g, strict=True):
        torch.testing.assert_close(a, b)


def test_residual_in_the_problems_own_coordinates():
    """Chain rule, variable coefficients, a mixed derivative, a NumPy nonlinearity, 5 of 6 faces."""
    torch.manual_seed(1)
    network = Network(3, width=6, depth=2).double()
    inside, faces = sample(CUBE, 13, 4, np.random.default_rng(0))
    points = Points.of(CUBE, inside, faces, torch.float64)
    low, high = (torch.tensor(v, dtype=torch.float64) for v in ([0, -1, 0], [2, 1, 0.5]))

    def u(own):
        return network(2 * (own - low) / (high - low) - 1)

    own = torch.tensor(inside)
    d = lambda key: nested(u, own, key, "xyt")  # noqa: E731
    x, y, t = own.T
    expected = (
        1.5 * d("xx") + (1 + x * y) * d("xy") - 2 * d("t") + torch.cos(x) * d("") + d("yy")
        + torch.sin(d("")) ** 2 - (x + t)
    )
    ours = residual(network, CUBE, points)
    torch.testing.assert_close(ours, expected)
    parameters = list(network.parameters())
    for a, b in zip(
        torch.autograd.grad(ours.square().sum(), parameters, allow_unused=True),
        torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True), strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert list(faces) == ["x-", "x+", "y-", "y+", "t-"] and points.face.shape == (20, 3)
    assert all((faces[f][:, CUBE.axes.index(f[0])] == e).all()
               for f, e in {"x-": 0, "x+": 2, "y-": -1, "y+": 1, "t-": 0}.items())
    assert mismatch(network, points).shape == (20,)


def test_points_fill_the_box_evenly():
    inside, _ = sample(CUBE, 50, 2, np.random.default_rng(3))
    unit = to_unit(CUBE.box, inside)
    for column in unit.T:  # one point in each of 50 strata
        assert sorted(np.floor((column + 1) * 25).astype(int)) == list(range(50))


def small(**options):
    return PINN(PINN.configure("smoke", **{"steps": 600, "width": 20, **options}))


def error(solution) -> float:
    x = np.linspace(0, 1, 101)
    truth = np.sin(np.pi * x)
    return float(np.linalg.norm(solution(x[:, None]) - truth) / np.linalg.norm(truth))


@pytest.mark.parametrize("options", [
    {}, {"dtype": "float64"}, {"boundary_weight": 100.0}, {"scale_residual": True},
    {"fourier_scales": (0.5, 1.0), "fourier_features": 10}, {"resample": True},
], ids=str)
def test_solves_an_easy_equation(options):
    solution = small(**options).solve(POISSON)
    assert error(solution) < 1e-2
    assert solution.report["selected"] == "last"
    assert solution.report["steps"] <= 602 and solution.values.shape == (400,)


def test_the_loss_falls_on_a_nonlinear_problem_in_three_dimensions():
    class Rows:
        def __init__(self):
            self.losses, self.steps, self.fractions, self.looks = [], [], [], 0

        def log(self, step, seconds, **values):
            self.losses.append(values["loss"])
            self.steps.append(step)

        def progress(self, fraction, text=""):
            self.fractions.append(fraction)

        def test_error(self, system):
            assert np.isfinite(system.solution(np.array([[1.0, 0.0, 0.2]]))).all()
            self.looks += 1

    rows = Rows()
    report = small(steps=120).solve(CUBE, monitor=rows).report
    assert report["loss"] < 0.3 * rows.losses[0]
    assert rows.steps == sorted(rows.steps) and rows.steps[-1] == report["steps"] >= 120
    assert rows.fractions == sorted(rows.fractions) and rows.fractions[-1] == 1.0
    assert 18 <= rows.looks <= 24


def test_budgets_are_obeyed():
    report = small().solve(POISSON, Budget(seconds=0.5)).report
    assert report["seconds"] >= 0.4 and report["steps"] > 0
    assert small(adam_share=1.0).solve(POISSON, Budget(steps=7)).report["steps"] == 7
    assert small(adam_share=0.0).solve(POISSON, Budget(steps=7)).report["steps"] <= 9


def test_same_seed_same_numbers_and_seeds_differ():
    solve = lambda seed: PINN.from_preset("smoke", seed=seed).solve(POISSON).values  # noqa: E731
    assert np.array_equal(solve(0), solve(0)) and not np.array_equal(solve(0), solve(1))


@pytest.mark.parametrize("after", [10, 30, 50])
def test_an_interrupted_fit_resumes_to_the_same_numbers(tmp_path, after):
    """Stopped in the Adam phase, and in the L-BFGS phase."""
    class Stop(Exception):
        pass

    class Breaker:
        def log(self, step, seconds, **values):
            if step >= after:
                raise Stop

        def progress(self, fraction, text=""):
            return None

        test_error = progress

    whole = PINN.from_preset("smoke").solve(POISSON)
    broken = PINN.from_preset("smoke")
    broken.checkpoints = tmp_path / "checkpoint"
    with pytest.raises(Stop):
        broken.solve(POISSON, monitor=Breaker())
    resumed = PINN.from_preset("smoke")
    resumed.checkpoints, resumed.resume = tmp_path / "checkpoint", True
    solution = resumed.solve(POISSON)
    assert np.array_equal(solution.values, whole.values)
    assert solution.report["steps"] == whole.report["steps"]


@pytest.mark.parametrize("at", [0.5, 0.9])
def test_ctrl_c_leaves_a_checkpoint_of_its_phase(tmp_path, at):
    """Under a budget in seconds, whose rest for the second phase must come out the same."""
    class Finger:
        pressed = False

        def log(self, step, seconds, **values):
            return None

        def progress(self, fraction, text=""):
            if fraction > at and not self.pressed:
                self.pressed = True
                os.kill(os.getpid(), signal.SIGINT)

        def test_error(self, system):
            return None

    budget = Budget(seconds=1.0)
    broken = PINN.from_preset("smoke")
    broken.checkpoints = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        broken.solve(POISSON, budget, monitor=Finger())
    assert (tmp_path / "checkpoint" / ("lbfgs" if at > 0.7 else "adam")).is_dir()
    resumed = PINN.from_preset("smoke")
    resumed.checkpoints, resumed.resume = tmp_path / "checkpoint", True
    report = resumed.solve(POISSON, budget).report
    assert report["seconds"] >= 0.9 or report["stopped"] == "converged"


@pytest.mark.parametrize("name", ["pinn", "w-pinn", "rff-pinn"])
def test_cards_build_solve_save_and_load(tmp_path, name):
    system = catalog.get(name).create("smoke", width=8)
    system.solve(CUBE, Budget(steps=5))
    system.save(tmp_path / "saved")
    again = PINN.load(tmp_path / "saved")
    points = np.array([[0.3, 0.1, 0.2], [1.9, -1.0, 0.5]])
    assert np.array_equal(again.solution(points), system.solution(points))
    assert np.array_equal(again.values, system.values) and again.id == name
    assert again.parameter_count() == system.parameter_count() > 0


def test_cards_fix_what_makes_them():
    assert catalog.get("w-pinn").create("smoke").config.boundary_weight == 1000
    assert catalog.get("rff-pinn").create("smoke").config.fourier_scales == (1, 20, 50, 100)
    with pytest.raises(ConfigError, match="fixes boundary_weight"):
        catalog.get("w-pinn").create("smoke", boundary_weight=1.0)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="solved nothing"):
        PINN.from_preset("smoke").solution(np.zeros((1, 1)))
    with pytest.raises(ConfigError, match="activation"):
        PINN.from_preset("smoke", activation="relu")
    with pytest.raises(UnknownNameError, match="widht"):
        PINN.from_preset("smoke", widht=3)
