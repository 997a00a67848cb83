"""What the paper of GP-HM claims, proved or shown as failing.

Margins were set on calibration seeds (1000 and up) and on general grounds, not on the judging
seeds; the cases of the paper's table are deterministic and count as one observation each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.pde.tasks import TASKS

KERNELS = ("gm", "stm")
NEURAL = ("pinn", "w-pinn", "rff-pinn")
ABLATIONS = ("gp-se", "gp-matern")
CLASSICAL = ("finite-differences", "chebyshev")  # shown beside, even where they win
# The paper's table: case, and the errors it reported for GM and StM (from memory).
TABLE = {
    "poisson1d-single": (4e-7, 7e-7),
    "poisson1d-mix": (3e-3, 3e-3),
    "poisson1d-sin-cos": (4e-6, 3e-6),
    "poisson1d-x-sin": (2e-6, 9e-7),
    "poisson2d-sin-sin": (2e-3, 4e-4),
    "poisson2d-sin-add-cos": (6e-5, 7e-5),
}
SMOKE = ("poisson1d-mix", "poisson1d-single")

FAR = 0.1  # "far below": a tenth of the rival's error
NEURAL_BUDGET = "10s"  # twice what GP-HM takes on most cases
NEURAL_SEEDS = {"poisson1d-single": 3, "poisson1d-mix": 3}  # elsewhere one


def below_neural_solvers(bench: Bench) -> Evidence:
    """C1: error over that of the best of three PINNs, which get more seconds."""
    budget = "3s" if bench.smoke else NEURAL_BUDGET
    names = SMOKE[:1] if bench.smoke else tuple(TABLE)
    jobs: list[dict[str, Any]] = [
        {"system": rival, "task": case, "seed": seed, "budget": budget}
        for case in names for rival in NEURAL
        for seed in bench.seeds(1 if bench.smoke else NEURAL_SEEDS.get(case, 1))
    ]
    jobs += [{"system": name, "task": case} for case in names for name in CLASSICAL]
    return _ratios(bench, names, NEURAL, jobs, "best PINN", beside=CLASSICAL)


def below_ablations(bench: Bench) -> Evidence:
    """C1-kernels: error over that of the better of GP-SE and GP-Matern, in the same solver.

    Each is given the grid it asks for: the ablations refine theirs further.
    """
    names = SMOKE[:1] if bench.smoke else tuple(TABLE)
    jobs = [{"system": rival, "task": case} for case in names for rival in ABLATIONS]
    return _ratios(bench, names, ABLATIONS, jobs, "better ablation")


def _ratios(
    bench: Bench, names: tuple[str, ...], rivals: tuple[str, ...], jobs: list[dict[str, Any]],
    title: str, beside: tuple[str, ...] = (),
) -> Evidence:
    rows = bench.run_many([*_ours(bench, names), *jobs])
    ours = {(row["task"], row["overrides"]["kernel"]): row for row in rows[: 2 * len(names)]}
    theirs: dict[tuple[str, str], list[float]] = {}
    for row in rows[2 * len(names) :]:
        theirs.setdefault((row["task"], row["system"]), []).append(_error(row))
    ratios, table = [], []
    for case in names:
        best = {kernel: _error(ours[case, kernel]) for kernel in KERNELS}
        # A rival that broke gave no error; it can't be the best. Repeated seeds: their mean.
        means = {name: _geometric(theirs[case, name]) for name in (*rivals, *beside)}
        finite = [means[rival] for rival in rivals if math.isfinite(means[rival])]
        ratios.append(max(best.values()) / min(finite) if finite else math.nan)
        reported = [f"{r:.0e}" for r in TABLE[case]]
        seconds = max(ours[case, kernel]["seconds"]["fit"] for kernel in KERNELS)
        table.append(
            [case, *(f"{best[k]:.1e}" for k in KERNELS), " / ".join(reported), f"{seconds:.1f}",
             *(f"{mean:.1e}" for mean in means.values())]
        )
    return judge(
        ratios, margin=FAR, better="lower", log=True, unit=f"x the error of the {title}",
        details={
            "columns": ["case", *KERNELS, "reported gm / stm", "seconds", *rivals, *beside],
            "rows": table,
        },
    )


def _ours(bench: Bench, names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {"system": "gp-hm", "task": case, "kernel": kernel, "preset": _preset(bench)}
        for case in names for kernel in KERNELS
    ]


def _preset(bench: Bench) -> str:
    """Smoke proofs learn for one round."""
    return "smoke" if bench.smoke else "small"


def level_on_new_equations(bench: Bench) -> Evidence:
    """C1-level: calibration gave at most 2e-6; the margin is the middle of the paper's range."""
    count = 1 if bench.smoke else 6
    tasks = ("poisson2d-random",) if bench.smoke else ("poisson1d-random", "poisson2d-random")
    cells = [
        {"system": "gp-hm", "task": task, "seed": seed, "kernel": kernel, "preset": _preset(bench)}
        for task in tasks for kernel in KERNELS for seed in bench.seeds(count)
    ]
    rows = bench.run_many(cells)
    errors = [_error(row) for row in rows]
    table = [
        [row["task"], row["overrides"]["kernel"], row["seed"], f"{_error(row):.1e}",
         f"{row['seconds']['fit']:.1f}"]
        for row in rows
    ]
    return judge(
        errors, margin=1e-5, better="lower", log=True, unit="relative L2",
        details={"columns": ["task", "kernel", "seed", "error", "seconds"], "rows": table},
    )


def finds_the_frequency(bench: Bench) -> Evidence:
    """C2: |top frequency - truth|, and the components left of 30, on one random tone a seed."""
    cells = [
        {"system": "gp-hm", "task": "poisson1d-tone", "seed": seed, "kernel": kernel,
         "preset": _preset(bench)}
        for kernel in KERNELS for seed in bench.seeds(1 if bench.smoke else 5)
    ]
    gaps, table, most = [], [], 0
    for row in bench.run_many(cells):
        problem = TASKS["poisson1d-tone"].data(row["seed"]).test.exact
        truth = problem.terms[0][2] / (2 * math.pi)
        found = row["spent"]["strongest"]["x"][0][1]
        used = row["spent"]["components_used"]["x"]
        most = max(most, used)
        gaps.append(abs(found - truth))
        kernel = row["overrides"]["kernel"]
        table.append([kernel, row["seed"], f"{truth:.4f}", f"{found:.4f}", f"{used} of 30"])
    evidence = judge(
        gaps, margin=0.05, better="lower", unit="cycles from the true frequency",
        details={"columns": ["kernel", "seed", "true", "strongest", "components left"],
                 "rows": table},
    )
    # "Most vanish" is half of the claim.
    return replace(
        evidence, verdict=evidence.verdict if most <= 15 else "fails",
        obtained=f"{evidence.obtained}; at most {most} of 30 components left",
    )


def large_grids(bench: Bench) -> Evidence:
    """C3: a 400 x 400 grid, all 30 components per axis, solved and learned in under a minute."""
    points = 100 if bench.smoke else 400
    task = "poisson2d-sin-add-cos" if bench.smoke else "poisson2d-sin-sin"
    rows = bench.run_many(
        [{"system": "gp-hm", "task": task, "points": points, "kernel": kernel,
          "preset": _preset(bench)} for kernel in KERNELS]
    )
    dense = points**4 * 8 / 1e9
    obtained = "; ".join(
        f"{row['overrides']['kernel']}: error {_error(row):.0e} in {row['seconds']['fit']:.0f} s"
        for row in rows
    )
    # A process that has worked before may find its memory already there: the larger one counts.
    memory = max(row["peak_memory"] for row in rows) / 1e6
    return judge(
        [row["seconds"]["fit"] if _error(row) < 1e-3 else math.nan for row in rows],
        margin=60.0, better="lower", log=True, unit="seconds",
        obtained=f"{obtained}, {memory:.0f} MB; a dense kernel matrix takes {dense:.0f} GB",
    )


def log_domain_prunes(bench: Bench) -> Evidence:
    """C4: share of components that learning w leaves, minus the share that learning log w leaves.

    "Learning w does not prune" would leave most of them: the margin is half.
    """
    seeds = bench.seeds(1 if bench.smoke else 3)
    kernels = KERNELS[:1] if bench.smoke else KERNELS
    pairs = [(kernel, seed) for kernel in kernels for seed in seeds]
    rows = bench.run_many([
        {"system": "gp-hm", "task": "poisson1d-tone", "seed": seed, "kernel": kernel,
         "preset": _preset(bench), **ablation}
        for ablation in ({}, {"linear_weights": True}) for kernel, seed in pairs
    ])
    left = [row["spent"]["components_used"]["x"] for row in rows]
    log, linear = left[: len(pairs)], left[len(pairs) :]
    means = [sum(counts) / len(counts) for counts in (log, linear)]
    return judge(
        [(b - a) / 30 for a, b in zip(log, linear, strict=True)], margin=0.5, better="higher",
        obtained=f"{means[0]:.1f} of 30 left with log w, {means[1]:.1f} with w itself (fast mode)",
        details={
            "columns": ["kernel", "seed", "left with log w", "left with w"],
            "rows": [[*pair, a, b] for pair, a, b in zip(pairs, log, linear, strict=True)],
        },
    )


def full_table(bench: Bench) -> Evidence:
    return not_shown("1e5 to 1e6 Adam steps a cell, some 10 GPU hours")


def scale_grid_of_rff(bench: Bench) -> Evidence:
    return not_shown("about 20 settings of scales for each case, each trained for minutes to hours")


def _error(row: Mapping[str, Any]) -> float:
    return float(row["metrics"].get("relative_l2", math.nan))


def _geometric(errors: list[float]) -> float:
    good = [e for e in errors if math.isfinite(e) and e > 0]
    return math.exp(sum(map(math.log, good)) / len(good)) if good else math.nan


CLAIMS = {
    "C1": below_neural_solvers,
    "C1-kernels": below_ablations,
    "C1-level": level_on_new_equations,
    "C2": finds_the_frequency,
    "C3": large_grids,
    "C4": log_domain_prunes,
    "T1": full_table,
    "T2": scale_grid_of_rff,
}
