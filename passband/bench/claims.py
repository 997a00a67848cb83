"""Claims: what a paper reported, what we obtained, and one verdict.

A claim's proof is a function `prove(bench) -> Evidence` in the system's `claims.py`. Its margin is
written there as a number with the calibration seeds (1000 and up) that set it; `bench.seeds(n)`
hands out judging seeds (0 and up), so nothing is tuned on the seeds that judge.

>>> evidence = judge([3.1, 2.9, 3.4], margin=2.0, better="higher", unit="x")
>>> evidence.verdict
'holds'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from scipy import stats

from passband.bench.budget import Budget
from passband.bench.verdict import Verdict

JUDGING, CALIBRATION = 0, 1000  # the first seed of each kind


@dataclass(frozen=True)
class Evidence:
    """A measured effect against a margin.

    effect          mean over n (geometric when `log`)
    low, high       its 95 % interval
    margin, better  the claim holds when the whole interval is on the better side of the margin
    obtained        the figure as a person would say it
    needs           what would be needed, for "not shown"
    details         anything for the report: {"columns": [...], "rows": [[...]]} makes a table
    """

    verdict: Verdict
    obtained: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    margin: float | None = None
    better: Literal["lower", "higher"] = "lower"
    unit: str = ""
    needs: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(
    values: Sequence[float], *, margin: float, better: Literal["lower", "higher"],
    unit: str = "", log: bool = False, obtained: str = "", details: dict[str, Any] | None = None,
) -> Evidence:
    """Verdict by Student's t interval of the mean (of the logarithm when `log`).

    One value gives no interval: it is judged as it stands and n = 1 says so. NaN or infinity in
    `values` means that a run broke: the claim fails.
    """
    x = np.asarray(values, dtype=float)
    if x.size == 0:
        raise ValueError("judge needs at least one value")
    if not np.all(np.isfinite(x)) or (log and np.any(x <= 0)):
        broken = int(np.sum(~np.isfinite(x)) + (np.sum(x <= 0) if log else 0))
        return Evidence(
            verdict="fails",
            obtained=obtained or f"{broken} of {x.size} runs gave no usable number",
            n=int(x.size), margin=margin, better=better, unit=unit, details=details or {},
        )
    mean, low, high = interval(x, log=log)
    good, bad = (high < margin, low >= margin) if better == "lower" else (
        low > margin, high <= margin
    )
    verdict: Verdict = "holds" if good else "fails" if bad else "inconclusive"
    figure = f"{mean:.3g} {unit}".rstrip()
    text = obtained or f"{figure} [{low:.3g}, {high:.3g}], n = {x.size}"
    return Evidence(
        verdict=verdict, obtained=text, effect=mean, low=low, high=high, n=int(x.size),
        margin=margin, better=better, unit=unit, details=details or {},
    )


def not_shown(needs: str, obtained: str = "not run") -> Evidence:
    """A claim whose full scale is out of reach here; `needs` says what it takes."""
    return Evidence(verdict="not shown", obtained=obtained, needs=needs)


def interval(
    values: Sequence[float] | np.ndarray[Any, Any], *, log: bool = False, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean and its t interval, (mean, low, high); geometric when `log`. n = 1: all three equal.

    >>> [round(v, 2) for v in interval([1.0, 2.0, 3.0])]
    [2.0, -0.48, 4.48]
    """
    x = np.asarray(values, dtype=float)
    y = np.log(x) if log else x
    mean = float(np.mean(y))
    half = 0.0
    if y.size > 1:
        error = np.std(y, ddof=1) / math.sqrt(y.size)
        half = float(stats.t.ppf(0.5 + level / 2, y.size - 1) * error)
    edges = (mean, mean - half, mean + half)
    return tuple(math.exp(v) for v in edges) if log else edges  # type: ignore[return-value]


class Bench(Protocol):
    """What a proof may ask of the engine."""

    smoke: bool  # a proof of some 15 s: fewer cases and seeds, the same code
    calibrate: bool  # True: seeds from 1000 up, verdicts are not recorded

    def seeds(self, n: int) -> list[int]:
        """n seeds: judging ones, or calibration ones when the bench calibrates."""

    def run(
        self, system: str, task: str, *, preset: str = "small", seed: int = 0,
        size: str = "small", budget: Budget | str | None = None, **overrides: Any,
    ) -> Mapping[str, Any]:
        """One cell -> its result row (see `passband.bench.results.Result`)."""

    def run_many(self, cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Many cells, each a mapping of `run`'s arguments, fanned out; rows in the given order."""


Proof = Callable[[Bench], Evidence]
