"""What the paper of intruder dimensions claims, on a small vision transformer that knows digits.

All runs learn inverted, turned digits for 150 steps and keep the checkpoint nearest to 70 %
validation accuracy, so that models of equal quality are compared. Learning rates: the smallest of
3e-4, 1e-3, 3e-3 and 1e-2 with which a variant reaches that accuracy on seed 1000, the same rule for
all. Margins are those of general grounds: no difference, or the figure of the statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from scipy import stats

from passband.bench.budget import Budget
from passband.bench.claims import Bench, Evidence, judge, not_shown
from passband.bench.task import Data
from passband.data.digits import Digits, digits, inverted, permuted, rotated
from passband.parts.intruders import count_intruders
from passband.tuning.adaptation import Adaptation, Exam
from passband.tuning.intruder_dims.model import measure, random_direction
from passband.tuning.intruder_dims.system import IntruderDims
from passband.tuning.jobs.digits import accuracy, output, shift
from passband.tuning.models import pretrained_digits_vit

TARGET = 70.0  # % validation accuracy at which runs are compared
BUDGET = "150 steps"
LOW = ("r=1", "r=4", "r=16")
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"variant": "full", "lr": 3e-4},
    "r=1": {"rank": 1, "lr": 1e-2},
    "r=4": {"rank": 4, "lr": 3e-3},
    "r=16": {"rank": 16, "lr": 1e-3},
    "r=64": {"rank": 64, "lr": 3e-4},
}


# ---- mechanism a: seconds ------------------------------------------------------------------------


def random_directions(bench: Bench) -> Evidence:
    """M-a: share of (matrix, size) pairs with the expected count: 0 below sigma_1, 1 above it.

    Near sigma_1 itself the new direction mixes with the old ones; the sizes keep clear of it.
    """
    right, rows = [], []
    factors = (0.25, 0.5, 1.5, 2.0, 4.0)
    for seed in bench.seeds(4 if bench.smoke else 20):
        generator = torch.Generator().manual_seed(seed)
        base = torch.randn(64, 64, generator=generator, dtype=torch.float64) / 8
        direction = random_direction(64, 64, seed + 50_000)
        top = float(torch.linalg.matrix_norm(base, 2))
        counts = [count_intruders(base, base + f * top * direction) for f in factors]
        fits = [c == (f > 1) for c, f in zip(counts, factors, strict=True)]
        right.append(100 * sum(fits) / len(fits))
        rows.append([seed, f"{top:.2f}", *counts])
    columns = ["seed", "sigma_1", *(f"{f:g} sigma_1" for f in factors)]
    return judge(
        right, margin=90.0, better="higher", unit="% of sizes with the expected count",
        details={"columns": columns, "rows": rows},
    )


# ---- runs of equal accuracy ----------------------------------------------------------------------


def _runs(
    bench: Bench, variants: Mapping[str, Mapping[str, Any]], n: int = 5
) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of each variant, a row a seed."""
    common: dict[str, Any] = {
        "system": "intruder-dims", "task": "digits-shift", "repair": "none",
        "match_metric": TARGET,
    }
    if bench.smoke:
        common |= {"size": "smoke", "preset": "smoke", "budget": "5 steps"}
    else:
        common |= {"budget": BUDGET}
    seeds = bench.seeds(1 if bench.smoke else n)
    cells = [{**common, **v, "seed": seed} for v in variants.values() for seed in seeds]
    rows = iter(bench.run_many(cells))
    return {name: [next(rows) for _ in seeds] for name in variants}


def _spectra(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row["spent"]["intruders"][name]) for row in rows]


def _table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, and the curve of counts over thresholds."""
    thresholds = next(iter(runs.values()))[0]["spent"]["intruders"]["thresholds"]
    shown = [i for i, t in enumerate(thresholds) if round(100 * t) % 10 == 0]
    rows = []
    for name, of in runs.items():
        curve = np.mean([row["spent"]["intruders"]["curve"] for row in of], axis=0)
        rows.append([
            name, *(f"{np.mean([r['metrics'][m] for r in of]):.1f}"
                    for m in ("accuracy", "forgetting")),
            f"{np.mean(_spectra(of, 'update_norm')):.2f}",
            f"{np.mean(_spectra(of, 'effective_rank')):.1f}", *(f"{curve[i]:.1f}" for i in shown),
        ])
    columns = ["run", "accuracy", "forgetting", "||dW||", "effective rank",
               *(f"eps {thresholds[i]:g}" for i in shown)]
    return {"columns": columns, "rows": rows}


def more_than_full(bench: Bench) -> Evidence:
    """C1: the fewest intruders of ranks 1, 4 and 16, less those of full fine-tuning."""
    runs = _runs(bench, VARIANTS)
    counts = {name: _spectra(rows, "count") for name, rows in runs.items()}
    low = np.min([counts[name] for name in LOW], axis=0)
    return judge(
        list(low - counts["full"]), margin=0.0, better="higher",
        unit="intruders above full fine-tuning, in the best low rank", details=_table(runs),
    )


def high_ranks(bench: Bench) -> Evidence:
    """C1-high: the most intruders of ranks 1, 4 and 16, less those of rank 64."""
    runs = _runs(bench, VARIANTS)
    counts = {name: _spectra(rows, "count") for name, rows in runs.items()}
    worst = np.max([counts[name] for name in LOW], axis=0)
    return judge(
        list(worst - counts["r=64"]), margin=0.0, better="higher",
        unit="intruders above rank 64, in the worst low rank", details=_table(runs),
    )


def larger_updates(bench: Bench) -> Evidence:
    """C2: ||dW|| of rank 1 over that of full fine-tuning."""
    runs = _runs(bench, VARIANTS)
    norms = {name: _spectra(rows, "update_norm") for name, rows in runs.items()}
    ratios = [a / b for a, b in zip(norms["r=1"], norms["full"], strict=True)]
    return judge(
        ratios, margin=1.0, better="higher", log=True, unit="x the update of full fine-tuning",
        details=_table(runs),
    )


def effective_ranks(bench: Bench) -> Evidence:
    """C3: effective rank of full fine-tuning over that of LoRA of full rank."""
    runs = _runs(bench, VARIANTS)
    ranks = {name: _spectra(rows, "effective_rank") for name, rows in runs.items()}
    ratios = [a / b for a, b in zip(ranks["full"], ranks["r=64"], strict=True)]
    return judge(
        ratios, margin=1.0, better="higher", log=True, unit="x the effective rank of r = 64",
        details=_table(runs),
    )


def with_forgetting(bench: Bench) -> Evidence:
    """C4: rank correlation of counts with forgetting over the variants of a seed."""
    runs = _runs(bench, VARIANTS)
    found = []
    for rows in zip(*runs.values(), strict=True):
        counts = [row["spent"]["intruders"]["count"] for row in rows]
        forgotten = [row["metrics"]["forgetting"] for row in rows]
        if len(set(counts)) > 1 and len(set(forgotten)) > 1:
            found.append(float(stats.spearmanr(counts, forgotten).statistic))
        else:
            found.append(0.0)  # all alike: nothing goes with anything
    return judge(
        found, margin=0.0, better="higher", unit="rank correlation", details=_table(runs)
    )


# ---- other scales, rates and starts --------------------------------------------------------------


def fixed_alpha(bench: Bench) -> Evidence:
    """C7: intruders at rank 64 with alpha = 8, less those with alpha = 2 r."""
    return _difference(bench, {
        "alpha 8": {"rank": 64, "alpha": 8, "lr": 3e-3}, "alpha 2r": VARIANTS["r=64"],
    })


def learning_rates(bench: Bench) -> Evidence:
    """C7-lr: intruders at rank 4 with three times the learning rate, less those with it."""
    return _difference(bench, {
        "lr 1e-2": {"rank": 4, "lr": 1e-2}, "lr 3e-3": VARIANTS["r=4"],
    })


def one_factor(bench: Bench) -> Evidence:
    """M-b: intruders at rank 4 with both factors trained, less those with B alone."""
    return _difference(bench, {
        "A and B": VARIANTS["r=4"], "B alone": {"rank": 4, "train": "B", "lr": 3e-3},
    })


def _difference(bench: Bench, variants: Mapping[str, Mapping[str, Any]]) -> Evidence:
    runs = _runs(bench, variants)
    more, fewer = (_spectra(rows, "count") for rows in runs.values())
    first, second = runs
    return judge(
        [a - b for a, b in zip(more, fewer, strict=True)], margin=0.0, better="higher",
        unit=f"intruders more with {first} than with {second}", details=_table(runs),
    )


def singular_starts(bench: Bench) -> Evidence:
    """C7-svd: intruders of peft's LoRA less those of its PiSSA, same rank, rate and steps."""
    common: dict[str, Any] = {"task": "digits-shift"}
    common |= (
        {"size": "smoke", "preset": "smoke", "budget": "5 steps"} if bench.smoke
        else {"budget": BUDGET, "rank": 4, "lr": 3e-3, "alpha": 8}
    )
    seeds = bench.seeds(1 if bench.smoke else 5)
    cells = [{**common, "system": s, "seed": seed} for s in ("lora", "pissa") for seed in seeds]
    rows = [row["metrics"] for row in bench.run_many(cells)]
    lora, pissa = rows[: len(seeds)], rows[len(seeds) :]
    names = ("accuracy", "forgetting", "delta_norm", "intruders")
    return judge(
        [a["intruders"] - b["intruders"] for a, b in zip(lora, pissa, strict=True)],
        margin=0.0, better="higher", unit="intruders more with LoRA than with PiSSA",
        details={
            "columns": ["seed", *(f"{n} {of}" for n in names for of in ("LoRA", "PiSSA"))],
            "rows": [
                [seed, *(f"{m[n]:.1f}" for n in names for m in pair)]
                for seed, pair in zip(seeds, zip(lora, pissa, strict=True), strict=True)
            ],
        },
    )


# ---- the intervention ----------------------------------------------------------------------------

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.5, 0.25, 0.0)
Point = tuple[float, float]  # accuracy on the task, forgetting


@cache
def _interventions(seed: int, smoke: bool) -> dict[str, list[Point]]:
    """Accuracy and forgetting at each factor, of rank 1: of intruders, controls, whole update."""
    data = shift(seed, "smoke" if smoke else "small")
    exam: Exam = data.test
    overrides = {} if smoke else VARIANTS["r=1"]
    system = IntruderDims.from_preset(
        "smoke" if smoke else "small", seed=seed, **{**overrides, "repair": "none"}
    )
    system.fit(data.for_fit(), Budget.parse("5 steps" if smoke else BUDGET))
    model, start = exam.model().eval(), exam.start()
    repair = system.mending(model, system.fitted())
    found: dict[str, list[Point]] = {}
    for what in ("intruders", "random", "update"):
        found[what] = []
        for factor in FACTORS:
            with repair.edit(factor, what).apply(model, check=False):  # type: ignore[arg-type]
                after = exam.measure(model)
            found[what].append((after["target"], start["retention"] - after["retention"]))
    return found


def less_forgetting(bench: Bench) -> Evidence:
    """C5: largest reduction of forgetting among factors that cost a point of accuracy or less."""
    seeds = bench.seeds(1 if bench.smoke else 5)
    sweeps = [_interventions(seed, bench.smoke) for seed in seeds]
    return judge(
        [_reduction(sweep["intruders"]) for sweep in sweeps], margin=0.15, better="higher",
        unit="less forgetting, as a share", details=_sweep_table(sweeps),
    )


def _reduction(points: Sequence[Point]) -> float:
    accuracy_before, forgotten = points[0]
    if forgotten <= 0:
        return 0.0  # nothing was forgotten: nothing can be won back
    good = [f for a, f in points if a >= accuracy_before - 1.0]
    return 1.0 - min(good) / forgotten


def others_are_worse(bench: Bench) -> Evidence:
    """C5-control: forgetting after the random control less that after the intervention, mean."""
    seeds = bench.seeds(1 if bench.smoke else 5)
    sweeps = [_interventions(seed, bench.smoke) for seed in seeds]
    gaps = [
        float(np.mean([r[1] - i[1] for r, i in zip(s["random"], s["intruders"], strict=True)][1:]))
        for s in sweeps
    ]
    return judge(
        gaps, margin=0.0, better="higher", unit="% more forgetting with random directions",
        details=_sweep_table(sweeps),
    )


def _sweep_table(sweeps: Sequence[Mapping[str, Sequence[Point]]]) -> dict[str, Any]:
    rows = []
    for what in sweeps[0]:
        means = np.mean([sweep[what] for sweep in sweeps], axis=0)
        rows += [
            [what, factor, f"{a:.1f}", f"{f:.1f}"]
            for factor, (a, f) in zip(FACTORS, means, strict=True)
        ]
    return {"columns": ["scaled", "factor", "accuracy", "forgetting"], "rows": rows}


# ---- tasks in sequence ---------------------------------------------------------------------------

TASKS = {
    "turned": (inverted, rotated(90)), "upside down": (rotated(180),),
    "permuted": (permuted(1),), "permuted again": (permuted(2), inverted),
}
EACH = 60  # steps a task


@cache
def _sequence(variant: str, seed: int, smoke: bool) -> tuple[list[int], list[float]]:
    """Intruders after each task against the pretrained model, and final accuracies by task."""
    data = digits()
    count = 60 if smoke else 600
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    model = partial(pretrained_digits_vit, "upright", smoke=smoke)
    rounds = tuple(
        _round(name, model, data.train.subset(order[:count]).transformed(*transforms))
        for name, transforms in TASKS.items()
    )
    system = IntruderDims.from_preset(
        "smoke" if smoke else "small", seed=seed,
        **{**({"rank": 1} if smoke else VARIANTS[variant]), "repair": "none"},
    )
    problem = replace(rounds[0], rounds=rounds)
    system.fit(Data(train=problem), Budget(steps=len(TASKS) * (3 if smoke else EACH)))
    base = model()
    growth = [measure(base, edit).count for edit in system.edits]
    final = system.adapt(model()).eval()
    scores = [accuracy(final, data.test.transformed(*t)) for t in TASKS.values()]
    return growth, scores


def _round(name: str, model: Any, examples: Digits) -> Adaptation:
    return Adaptation(name, model, examples, output, "classification", collate=_stack)


def _stack(examples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Any:
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(labels)


def _sequences(bench: Bench) -> tuple[list[int], dict[str, list[tuple[list[int], list[float]]]]]:
    seeds = bench.seeds(1 if bench.smoke else 3)
    names = ("full", "r=1") if bench.smoke else ("full", "r=1", "r=4", "r=64")
    return seeds, {
        name: [_sequence(name, seed, bench.smoke) for seed in seeds] for name in names
    }


def keeps_less(bench: Bench) -> Evidence:
    """C6: mean accuracy of old tasks under full fine-tuning less that under rank 1."""
    _, runs = _sequences(bench)
    old = {name: [float(np.mean(s[:-1])) for _, s in of] for name, of in runs.items()}
    return judge(
        [a - b for a, b in zip(old["full"], old["r=1"], strict=True)], margin=0.0,
        better="higher", unit="% of old tasks above rank 1", details=_sequence_table(runs),
    )


def accumulate(bench: Bench) -> Evidence:
    """C6-growth: share of tasks after which ranks 1 and 4 have more intruders than before."""
    seeds, runs = _sequences(bench)
    low = [name for name in runs if name in ("r=1", "r=4")]
    shares = [
        float(np.mean([np.diff([0, *runs[name][i][0]]) > 0 for name in low]))
        for i in range(len(seeds))
    ]
    return judge(
        shares, margin=0.9, better="higher", unit="of the tasks add intruders",
        details=_sequence_table(runs),
    )


def _sequence_table(runs: Mapping[str, Sequence[tuple[list[int], list[float]]]]) -> dict[str, Any]:
    rows = []
    for name, of in runs.items():
        growth = np.mean([g for g, _ in of], axis=0)
        scores = np.mean([s for _, s in of], axis=0)
        rows.append([name, *(f"{g:.1f}" for g in growth), *(f"{s:.1f}" for s in scores)])
    names = list(TASKS)
    return {
        "columns": ["run", *(f"intruders after {n}" for n in names), *(f"% {n}" for n in names)],
        "rows": rows,
    }


def full_scale(bench: Bench) -> Evidence:
    return not_shown("RoBERTa-base and GLUE (1 to 2 GPU-hours a run), LLaMA-2-7B checkpoints")


CLAIMS = {
    "M-a": random_directions,
    "C1": more_than_full,
    "C1-high": high_ranks,
    "C2": larger_updates,
    "C3": effective_ranks,
    "C4": with_forgetting,
    "C5": less_forgetting,
    "C5-control": others_are_worse,
    "C6": keeps_less,
    "C6-growth": accumulate,
    "C7": fixed_alpha,
    "C7-lr": learning_rates,
    "C7-svd": singular_starts,
    "M-b": one_factor,
    "T1": full_scale,
}
