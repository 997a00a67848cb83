"""Speed of the PDE family, as ratios measured in one run.

    python benchmarks/pde.py [--quick] [--only step|accuracy|growth] [--threads 2] [--json FILE]

step       one training step of GP-HM's paper mode against automatic differentiation of everything
accuracy   seconds to a relative error of 1e-4: GP-HM, a network, finite differences, Chebyshev
growth     seconds and memory of a fast solve, and of a round of learning, against the grid
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from _autodiff import AutodiffGP
from _timing import (
    exponent,
    fix_threads,
    in_fresh_process,
    machine,
    measure,
    megabytes,
    print_machine,
    print_table,
    seconds,
)

from passband import create
from passband.bench.budget import Budget
from passband.bench.system import NullMonitor
from passband.data.pde import Problem
from passband.pde.gp_hm.fast import FastSolver
from passband.pde.gp_hm.model import GridGP
from passband.pde.tasks import TASKS

Row = dict[str, Any]
PRELOAD = ("_autodiff", "passband.bench.loop", "passband.pde.gp_hm.system",
           "passband.pde.baselines.pinn.system", "passband.pde.baselines.chebyshev.system",
           "passband.pde.baselines.finite_differences.system")


# ---- step ------------------------------------------------------------------------------------

TOP, COMPONENTS, AGREE = 20.0, 30, 1e-8
TABLES_KEPT = 50  # arrays of M x M x Q that automatic differentiation holds, at most


def step_pair(task: str, points: int, kernel: str, repeats: int = 5, limit: float = 15.0) -> Row:
    """Objective, gradient and Adam's update, ours and naive, at the same parameters."""
    problem = TASKS[task].data(0).train
    ours = GridGP(problem, [points] * problem.dim, [TOP] * problem.dim, kernel)
    naive = AutodiffGP(problem, points, TOP, kernel)
    # Smooth values: for rough ones u' C^-1 u carries the rounding of an ill-conditioned C.
    mesh = np.meshgrid(*problem.grid(points), indexing="ij")
    values = torch.from_numpy(np.sin(7 * sum(mesh)))
    objectives, costs = [], []
    for model in (ours, naive):  # the small one first: peaks of memory only rise
        with torch.no_grad():
            model.u.copy_(values)
        objectives.append(float(model.log_joint().detach()))
        costs.append(measure(trainer(model), repeats, limit, warm=True))
    apart = abs(objectives[0] / objectives[1] - 1)
    if apart > AGREE:
        raise SystemExit(f"{task}, M = {points}, {kernel}: objectives differ by {apart:.1e}")
    return {
        "task": task, "points": points, "kernel": kernel, "apart": apart,
        "ours": asdict(costs[0]), "naive": asdict(costs[1]),
        "ratio": costs[1].seconds / costs[0].seconds,
    }


def trainer(model: GridGP | AutodiffGP) -> Callable[[], None]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = -model.log_joint()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def step(quick: bool, sizes: Sequence[int] | None = None) -> list[Row]:
    line = sizes or ((100, 400) if quick else (100, 200, 400, 800))
    cases = [("poisson1d-single", m) for m in line]
    cases += [("poisson2d-sin-sin", m) for m in (() if sizes else (100,) if quick else (100, 200))]
    rows = []
    for task, points in cases:
        if TABLES_KEPT * 8 * COMPONENTS * points**2 > 0.8 * psutil.virtual_memory().available:
            print(f"step: M = {points} left out, automatic differentiation needs more memory")
            continue
        for kernel in ("stm",) if quick else ("stm", "gm"):
            limit = 4.0 if quick else 15.0
            rows.append(in_fresh_process(step_pair, task, points, kernel, limit=limit))
    print_table(
        "step: one training step of paper mode, Q = 30, against automatic differentiation",
        ("problem", "M per axis", "kernel", "ours", "autodiff", "times", "memory", "autodiff",
         "CPU times", "objectives differ"),
        [(r["task"], str(r["points"]), r["kernel"], seconds(r["ours"]["seconds"]),
          seconds(r["naive"]["seconds"]), f"{r['ratio']:.0f}x", megabytes(r["ours"]["bytes"]),
          megabytes(r["naive"]["bytes"]),
          f"{r['naive']['processor'] / r['ours']['processor']:.0f}x", f"{r['apart']:.0e}")
         for r in rows],
    )
    return rows


# ---- accuracy --------------------------------------------------------------------------------

TARGET = 1e-4
LARGEST = {"finite-differences": {1: 64_000, 2: 2000}, "chebyshev": {1: 3200, 2: 1600}}


class Watch(NullMonitor):
    """Looks at the error now and then; the looks don't count as the solver's time."""

    def __init__(self, error: Callable[[Any], float]) -> None:
        self.error, self.looks, self.looked = error, [], 0.0
        self.start = time.perf_counter()

    def test_error(self, system: Any) -> None:
        begun = time.perf_counter()
        self.looks.append((begun - self.start - self.looked, self.error(system)))
        self.looked += time.perf_counter() - begun


def error_of(task: str) -> Callable[[Any], float]:
    data = TASKS[task].data(0)
    return lambda system: TASKS[task].evaluate(system, data)["relative_l2"]


def learned(task: str, system: str, budget: float | None, **options: Any) -> Row:
    """A solver that improves with time: when it first was below the target, and where it ended."""
    solver, problem, error = create(system, **options), TASKS[task].data(0).train, error_of(task)
    warm = Problem({"x": (0, 1)}, {"xx": 1.0}, source=-2.0, boundary=0.0)
    create(system, **options).solve(warm, Budget(steps=2))  # imports and caches
    watch = Watch(error)
    solver.solve(problem, Budget(seconds=budget), watch)
    total = time.perf_counter() - watch.start - watch.looked
    end = error(solver)
    hits = [(t, e) for t, e in [*watch.looks, (total, end)] if e <= TARGET]
    found, its_error = hits[0] if hits else (None, None)
    points = "" if budget else " x ".join(str(len(x)) for x in solver.axes)
    return {"task": task, "solver": system, "setting": options.get("kernel", ""), "grid": points,
            "seconds": found, "error": its_error, "total": total, "end": end}


def classical(task: str, system: str, most: int, repeats: int = 3) -> Row:
    """The smallest grid, by doubling, that meets the target; or the largest tried."""
    problem, error = TASKS[task].data(0).train, error_of(task)
    points, end = 25, math.inf
    while end > TARGET and 2 * points <= most:
        points *= 2
        solver = create(system, points=points)
        cost = measure(lambda s=solver: s.solve(problem), 1)
        end = error(solver)
    cost = measure(lambda: solver.solve(problem), repeats, limit=6.0)
    reached = end <= TARGET
    return {"task": task, "solver": system, "setting": "", "grid": " x ".join(
                [str(points)] * problem.dim), "seconds": cost.seconds if reached else None,
            "error": end if reached else None, "total": cost.seconds, "end": end}


def accuracy(quick: bool) -> list[Row]:
    tasks = ("poisson1d-single", "poisson1d-mix", "poisson2d-sin-sin")
    rows: list[Row] = []
    for task in tasks[1:2] if quick else tasks:
        dim = TASKS[task].data(0).train.dim
        for kernel in ("gm", "stm"):
            rows.append(in_fresh_process(learned, task, "gp-hm", None, kernel=kernel))
        rows.append(in_fresh_process(learned, task, "rff-pinn", 15.0 if quick else 60.0))
        for name, most in LARGEST.items():
            rows.append(in_fresh_process(classical, task, name, most[dim]))
    print_table(
        f"accuracy: seconds to a relative error of {TARGET:g} (looks at the truth not counted)",
        ("problem", "solver", "kernel", "grid", f"to {TARGET:g}", "error then", "in all",
         "error at end"),
        [(r["task"], r["solver"], r["setting"], r["grid"],
          "not reached" if r["seconds"] is None else seconds(r["seconds"]),
          "-" if r["error"] is None else f"{r['error']:.1e}", seconds(r["total"]),
          f"{r['end']:.1e}") for r in rows],
    )
    return rows


# ---- growth ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Box:
    """A product of sines on the unit box; top: the kernels' highest frequency."""

    omega: float
    top: float
    sizes: tuple[int, ...]
    quick: tuple[int, ...]


BOXES = {
    1: Box(100.0, 25.0, (500, 1000, 2000, 4000), (500, 1000)),
    2: Box(50.0, 12.0, (125, 250, 500, 1000), (125, 250)),
    3: Box(12.0, 5.0, (16, 32, 64), (16, 32)),
}
NOISE = 10e6  # bytes; less than this is no measure of a method
LONGEST = 60.0  # seconds; a solve that should take longer is left out


def box_problem(dim: int, omega: float) -> Problem:
    def source(*x: np.ndarray) -> np.ndarray:
        return -dim * omega**2 * np.prod([np.sin(omega * c) for c in x], axis=0)

    def exact(*x: np.ndarray) -> np.ndarray:
        return np.prod([np.sin(omega * c) for c in x], axis=0)

    axes = "xyz"[:dim]
    return Problem(
        dict.fromkeys(axes, (0.0, 1.0)), {2 * a: 1.0 for a in axes}, source, exact=exact
    ).blind()


def growth_point(dim: int, points: int, kernel: str, repeats: int) -> Row:
    problem, top = box_problem(dim, BOXES[dim].omega), [BOXES[dim].top] * dim
    small = FastSolver(problem, problem.grid(16), [5.0] * dim, kernel)
    small.learn(small.solve(small.start), 1)  # imports and caches
    made: list[Any] = []

    def solve_once() -> None:
        solver = FastSolver(problem, problem.grid(points), top, kernel)
        made[:] = [solver, solver.solve(solver.start)]

    solve = measure(solve_once, repeats, limit=6.0)
    solver, first = made
    learn = measure(lambda: solver.learn(first, 30), repeats, limit=4.0)
    return {
        "dim": dim, "points": points, "kernel": kernel, "solve": asdict(solve),
        "learn": asdict(learn), "rank": len(first.axes[0].eigenvalues), "residual": first.residual,
    }


def growth_series(dim: int, sizes: Sequence[int], kernel: str, repeats: int) -> list[Row]:
    rows: list[Row] = []
    for points in sizes:
        if rows:
            last = rows[-1]
            if last["solve"]["seconds"] * (points / last["points"]) ** 3 > LONGEST:
                print(f"growth: {dim}-D, M = {points}, {kernel} left out: over {LONGEST:g} s")
                break
        try:
            rows.append(in_fresh_process(growth_point, dim, points, kernel, repeats))
        except MemoryError:
            print(f"growth: {dim}-D, M = {points}, {kernel} ended for lack of memory")
            break
    return rows


def growth(quick: bool) -> list[Row]:
    rows, exponents = [], []
    for dim, box in BOXES.items():
        for kernel in ("gm",) if quick else ("gm", "stm"):
            sizes = box.quick if quick else box.sizes
            series = growth_series(dim, sizes, kernel, repeats=1 if quick else 3)
            rows += series
            sizes = [r["points"] for r in series]
            powers = [
                exponent(sizes, [r[part][what] for r in series], least)
                for part, what, least in (
                    ("solve", "processor", 0), ("solve", "bytes", NOISE), ("learn", "processor", 0)
                )
            ]
            shown = ("-" if p is None else f"{p:.1f}" for p in powers)
            exponents.append((f"{dim}-D", kernel, *shown))
    print_table(
        "growth: one fast solve, and one round of learning (30 steps), Q = 30",
        ("", "M per axis", "kernel", "rank", "solve", "CPU", "memory", "learn", "CPU",
         "residual"),
        [(f"{r['dim']}-D", str(r["points"]), r["kernel"], str(r["rank"]),
          seconds(r["solve"]["seconds"]), seconds(r["solve"]["processor"]),
          megabytes(r["solve"]["bytes"]), seconds(r["learn"]["seconds"]),
          seconds(r["learn"]["processor"]), f"{r['residual']:.0e}") for r in rows],
    )
    print_table(
        "growth: p of cost ~ M^p, M per axis, over the last three sizes",
        ("", "kernel", "solve, CPU", "solve, memory", "learn, CPU"), exponents,
    )
    return rows


# ---- the command -----------------------------------------------------------------------------

PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "step": step, "accuracy": accuracy, "growth": growth,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--threads", type=int, default=2, help="of BLAS and torch (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    options = parser.parse_args()
    fix_threads(options.threads, PRELOAD)
    facts = machine(options.threads)
    print_machine(facts)
    results: dict[str, Any] = {"machine": facts}
    for name, part in PARTS.items():
        if options.only in (None, name):
            results[name] = part(options.quick)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
