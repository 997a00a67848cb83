"""Systems side by side: the same data, seeds and budget, paired statistics.

>>> result = compare(["gp-hm", "pinn"], "poisson1d-random", seeds=5, budget="60s")
>>> for line in result.summaries:
...     print(line.system, line.metrics["relative_l2"].mean)
gp-hm 3.2e-06
pinn 0.84
>>> result.differences[0].p_t_holm
0.0004
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from passband import catalog
from passband.bench.budget import Budget
from passband.bench.claims import interval
from passband.bench.dispatch import Report, dispatch
from passband.bench.results import Result
from passband.bench.run import Cell, budget_text, user_path
from passband.bench.task import Metric, Task
from passband.errors import ConfigError, UnknownNameError

WILCOXON_FROM = 6  # pairs; with fewer its smallest two-sided p is above 0.05, whatever the data


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds with its 95 % t interval.

    mean            geometric when `log`
    standard_error  of the mean; of the mean logarithm when `log` (0.1 is about 10 %); None: n = 1
    """

    mean: float
    low: float
    high: float
    standard_error: float | None
    n: int
    log: bool = False


@dataclass(frozen=True)
class Summary:
    """One system over all seeds; costs are means, memory is the highest."""

    system: str
    n: int
    failed: int
    metrics: dict[str, Estimate]
    fit_seconds: float | None
    evaluate_seconds: float | None
    peak_memory: int
    peak_gpu_memory: int
    parameters: int
    file_bytes: int
    spent: dict[str, float]  # mean of every number that `fit` reported as spent
    selected: str            # the rule that chose the evaluated iterate
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """A system against the reference on the primary metric, paired by seed.

    effect     mean of (system - reference); their geometric mean ratio when `log`
    low, high  its 95 % t interval
    p_*        two-sided; None where the number of pairs or their spread allows no test
    *_holm     corrected for the number of systems that are compared
    better     whether the system's mean is on the better side
    """

    system: str
    reference: str
    metric: str
    log: bool
    n: int
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    better: bool | None = None
    p_t: float | None = None
    p_t_holm: float | None = None
    p_wilcoxon: float | None = None
    p_wilcoxon_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns; `rows` are in the order of systems, then seeds."""

    task: str
    size: str
    preset: str
    budget: str
    seeds: list[int]
    metric: str
    better: str
    reference: str
    summaries: list[Summary]
    differences: list[Difference]
    notes: list[str]
    rows: list[Result]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    systems: Sequence[str], task: str, *, seeds: int | Sequence[int] = 3, preset: str = "small",
    data: Path | str | None = None, model: Path | str | None = None,
    budget: Budget | str | None = None, size: str = "small",
    overrides: Mapping[str, Mapping[str, Any]] | None = None, baselines: bool = False,
    reference: str = "first", runs: Path | str = "runs", engine: str = "local",
    processes: int | None = None, address: str | None = None, resume: bool = True,
    artifacts: bool = True, progress: Report | None = None,
) -> Comparison:
    """Run every system on the same data with the same budget, once per seed.

    seeds      how many (0, 1, ...), or which
    data       the user's own data in place of the task's, the same for all systems
    model      folder of the user's own model, likewise, where the task takes one
    overrides  fields per system: {"gp-hm": {"kernel": "gm"}}; "preset" among them is its preset
    baselines  add the baselines that the cards of the systems name
    reference  what the others are tested against: "first", "best" (by mean), or a system's id.
               Prefer one named beforehand: the best of many is best partly by luck.
    engine, processes, address, resume, progress: see `dispatch`

    A system that fails on a seed is counted in `failed`; the pairs without it remain.
    """
    known = catalog.task(task)
    names = _entrants(systems, known, baselines=baselines)
    if reference not in ("first", "best", *names):
        raise UnknownNameError("reference", reference, ["first", "best", *names])
    chosen = {name: dict(fields) for name, fields in (overrides or {}).items()}
    for name in chosen:
        if name not in names:
            raise UnknownNameError("system in overrides", name, names)
    numbers = _seeds(seeds)
    presets = {name: chosen.get(name, {}).pop("preset", preset) for name in names}
    cells = [
        Cell(
            name, task, presets[name], size, seed, budget_text(budget),
            dict(chosen.get(name, {})), user_path(data), user_path(model),
        )
        for name in names for seed in numbers
    ]
    rows = dispatch(
        cells, runs, engine=engine, processes=processes, address=address, resume=resume,
        artifacts=artifacts, progress=progress,
    )
    return summarise(rows, known, reference=reference)


def summarise(rows: Sequence[Result], task: Task, *, reference: str = "first") -> Comparison:
    """The statistics of rows of one task, grouped by system in order of appearance."""
    first = rows[0]
    metrics = {metric.name: _log_if_positive(metric, rows) for metric in task.metrics}
    by_system: dict[str, list[Result]] = {}
    for row in rows:
        by_system.setdefault(row.system, []).append(row)
    summaries = [_summary(name, group, metrics) for name, group in by_system.items()]
    primary = task.primary
    against = _reference(reference, summaries, primary)
    log = metrics[primary.name]
    differences, notes = [], []
    for name, group in by_system.items():
        if name == against:
            continue
        x, y = _pairs(group, by_system[against], primary.name)
        differences.append(_difference(name, against, primary, log, x, y))
        if len(x) > 1 and differences[-1].p_t is None:
            notes.append(
                f"{name} differs from {against} by the same amount on every seed: there is no "
                "spread to test against"
            )
    if primary.log and not log:
        notes.append(f"{primary.name} has values that are not above 0: arithmetic means are shown")
    notes += _overspent(summaries, Budget(**first.budget))
    notes += [
        f"{name} has the preset {group[0].preset}, {first.system} {first.preset}"
        for name, group in by_system.items() if group[0].preset != first.preset
    ]
    return Comparison(
        task=task.name, size=first.size, preset=first.preset,
        budget=str(Budget(**first.budget)), seeds=list(dict.fromkeys(row.seed for row in rows)),
        metric=primary.name, better=primary.better, reference=against, summaries=summaries,
        differences=_holm_all(differences), notes=notes, rows=list(rows),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p_(i) times the number of tests left, kept in order, <= 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p)
    out[order] = np.minimum(raised, 1.0)
    return [float(value) for value in out]


# ---- who takes part --------------------------------------------------------------------------


def _entrants(systems: Sequence[str], task: Task, *, baselines: bool) -> list[str]:
    if isinstance(systems, str):
        systems = [systems]
    names = list(systems)
    if baselines:
        named = [baseline for name in systems for baseline in catalog.get(name).baselines]
        names += [name for name in named if catalog.enters(catalog.get(name), task)]
    names = list(dict.fromkeys(names))
    if not names:
        raise ConfigError("no system to compare", expected="at least one id of the catalog")
    return names


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ConfigError(f"seeds = {seeds!r}", expected="a number above 0, or different seeds")
    return numbers


# ---- statistics ------------------------------------------------------------------------------


def _log_if_positive(metric: Metric, rows: Iterable[Result]) -> bool:
    """Logarithms need values above 0: one exact zero makes a metric arithmetic for all systems."""
    return metric.log and all(row.metrics.get(metric.name, 1.0) > 0 for row in rows)


def estimate(values: Sequence[float], *, log: bool = False) -> Estimate:
    x = np.asarray(values, dtype=float)
    y = np.log(x) if log else x
    error = float(np.std(y, ddof=1) / math.sqrt(len(y))) if len(y) > 1 else None
    return Estimate(*interval(x, log=log), standard_error=error, n=len(x), log=log)


def _summary(name: str, rows: Sequence[Result], metrics: Mapping[str, bool]) -> Summary:
    good = [row for row in rows if not row.error]
    values = {m: [row.metrics[m] for row in good if m in row.metrics] for m in metrics}
    numbers = {
        what: [float(row.spent[what]) for row in good if _is_number(row.spent.get(what))]
        for what in dict.fromkeys(what for row in good for what in row.spent)
    }
    return Summary(
        system=name, n=len(good), failed=len(rows) - len(good),
        metrics={m: estimate(x, log=metrics[m]) for m, x in values.items() if x},
        fit_seconds=_mean([row.seconds["fit"] for row in good]),
        evaluate_seconds=_mean([row.seconds["evaluate"] for row in good]),
        peak_memory=max((row.peak_memory for row in good), default=0),
        peak_gpu_memory=max((row.peak_gpu_memory for row in good), default=0),
        parameters=max((row.parameters for row in good), default=0),
        file_bytes=max((row.file_bytes for row in good), default=0),
        spent={what: float(np.mean(x)) for what, x in numbers.items() if x},
        selected=", ".join(dict.fromkeys(row.selected for row in good)),
        errors=list(dict.fromkeys(row.error for row in rows if row.error)),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _reference(choice: str, summaries: Sequence[Summary], metric: Metric) -> str:
    if choice == "first":
        return summaries[0].system
    if choice != "best":
        return choice
    sign = 1.0 if metric.better == "lower" else -1.0
    measured = [s for s in summaries if metric.name in s.metrics] or summaries[:1]
    return min(
        measured, key=lambda s: sign * s.metrics[metric.name].mean if s.metrics else 0.0
    ).system


def _pairs(
    rows: Iterable[Result], others: Iterable[Result], metric: str
) -> tuple[list[float], list[float]]:
    """Values of two systems on the seeds where both have one."""
    by_seed = {row.seed: row.metrics[metric] for row in others if metric in row.metrics}
    both = [row for row in rows if metric in row.metrics and row.seed in by_seed]
    return [row.metrics[metric] for row in both], [by_seed[row.seed] for row in both]


def _difference(
    name: str, against: str, metric: Metric, log: bool, x: Sequence[float], y: Sequence[float]
) -> Difference:
    if not x:
        return Difference(name, against, metric.name, log, n=0)
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    gaps = np.log(a) - np.log(b) if log else a - b
    effect, low, high = interval(np.exp(gaps) if log else gaps, log=log)
    mean = float(np.mean(gaps))
    # Equal gaps are no evidence: seeds that change nothing repeat one run n times.
    spread = float(np.ptp(gaps)) > 1e-12 * max(1e-300, float(np.abs(gaps).max()))
    moved = int(np.count_nonzero(gaps))
    return Difference(
        name, against, metric.name, log, n=len(gaps), effect=effect, low=low, high=high,
        better=None if mean == 0 else (mean < 0) == (metric.better == "lower"),
        p_t=float(stats.ttest_1samp(gaps, 0.0).pvalue) if spread else None,
        p_wilcoxon=float(stats.wilcoxon(gaps).pvalue)
        if spread and moved >= WILCOXON_FROM else None,
    )


def _holm_all(differences: Sequence[Difference]) -> list[Difference]:
    corrected = {kind: _holm_where([getattr(d, kind) for d in differences])
                 for kind in ("p_t", "p_wilcoxon")}
    return [
        Difference(**{
            **asdict(d), "p_t_holm": corrected["p_t"][i],
            "p_wilcoxon_holm": corrected["p_wilcoxon"][i],
        })
        for i, d in enumerate(differences)
    ]


def _holm_where(p_values: Sequence[float | None]) -> list[float | None]:
    given = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(given) for p in p_values]


def _overspent(summaries: Iterable[Summary], budget: Budget) -> list[str]:
    """Notes on systems that took more than they were given (a last step may run over a little).

    Seconds are those of the whole `fit` by the engine's clock, start-up included.
    """
    limits = {what: limit for what, limit in asdict(budget).items() if limit is not None}
    notes = []
    for summary in summaries:
        spent = summary.spent | {"seconds": summary.fit_seconds or 0.0}
        notes += [
            f"{summary.system} spent {spent[what]:.4g} {what} of {limit:.4g}"
            for what, limit in limits.items() if spent.get(what, 0.0) > 1.1 * limit
        ]
    return notes
