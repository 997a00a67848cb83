"""The benchmarks run, and compare things that are equal."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from passband.pde.gp_hm.model import GridGP
from passband.pde.tasks import TASKS

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize("task", ["poisson1d-single", "poisson2d-sin-sin"])
@pytest.mark.parametrize("kernel", ["stm", "gm"])
def test_the_naive_objective_and_gradient_are_ours(load, task, kernel):
    problem, points = TASKS[task].data(0).train, 24
    ours = GridGP(problem, [points] * problem.dim, [2.0] * problem.dim, kernel, components=4)
    naive = load("_autodiff").AutodiffGP(problem, points, 2.0, kernel, components=4)
    rng = np.random.default_rng(0)
    u = torch.from_numpy(rng.standard_normal(ours.u.shape))
    log_t = torch.from_numpy(rng.standard_normal(2))
    thetas = [torch.from_numpy(0.3 * rng.standard_normal((3, 4))) for _ in problem.axes]
    for model, blocks in ((ours, ours.prior.thetas), (naive, naive.thetas)):
        with torch.no_grad():
            model.u.copy_(u)
            model.log_t.copy_(log_t)
            for block, theta in zip(blocks, thetas, strict=True):
                block.add_(theta)
        model.log_joint().backward()
    assert ours.log_joint().item() == pytest.approx(naive.log_joint().item(), rel=1e-8)
    pairs = [(ours.u, naive.u), (ours.log_t, naive.log_t)]
    pairs += list(zip(ours.prior.thetas, naive.thetas, strict=True))
    for a, b in pairs:
        assert (a.grad - b.grad).norm() <= 1e-6 * b.grad.norm()


def test_step_measures_both(load, capsys, monkeypatch):
    pde = load("pde")
    monkeypatch.setattr(pde, "in_fresh_process", lambda work, *a, **k: work(*a, **k))
    (row,) = pde.step(quick=True, sizes=[50])
    assert (row["task"], row["points"]) == ("poisson1d-single", 50)
    assert row["apart"] < 1e-8
    assert row["ratio"] == pytest.approx(row["naive"]["seconds"] / row["ours"]["seconds"])
    assert "poisson1d-single" in capsys.readouterr().out


def test_a_model_that_differs_is_not_timed(load, monkeypatch):
    pde = load("pde")
    monkeypatch.setattr(pde.AutodiffGP, "log_joint", lambda self: self.u.sum() + 1.0)
    with pytest.raises(SystemExit, match="objectives differ"):
        pde.step_pair("poisson1d-single", 20, "gm")


def test_work_in_a_fresh_process(load):
    timing = load("_timing")
    assert timing.in_fresh_process(math.sqrt, 4.0) == 2.0


def test_exponent(load):
    timing = load("_timing")
    sizes = [1, 10, 20, 40]
    assert timing.exponent(sizes, [5.0] + [3.0 * s**2.5 for s in sizes[1:]]) == pytest.approx(2.5)
    assert timing.exponent(sizes, [1, 1, 1, 9], least=2.0) is None


def test_table_aligns_numbers(load, capsys):
    load("_timing").print_table("title", ("name", "n"), [("a", "1"), ("bb", "22")])
    assert capsys.readouterr().out.splitlines()[-2:] == ["  a      1", "  bb    22"]
