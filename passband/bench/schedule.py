"""Learning-rate schedules: pure functions of the steps done and the share of the budget spent.

>>> factor("cosine", steps=500, fraction=0.5)
0.5
>>> factor("constant", steps=5, fraction=0.001, warmup=10)      # 10 steps of linear warm-up
0.5
>>> factor("cosine", steps=500, fraction=0.5, periods=2)        # a warm restart: at the peak again
1.0

A schedule keeps no state, so there is nothing of it to save or to restore; what validation does to
the learning rate has one, and a file of its own: `plateau`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from passband.bench.budget import Budget

Shape = Callable[[float], float]

# Share of the time after the warm-up, in [0, 1] -> factor in [0, 1].
SHAPES: dict[str, Shape] = {
    "constant": lambda x: 1.0,
    "plateau": lambda x: 1.0,  # until `plateau.Plateau` says otherwise
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
}
SCHEDULES = (*SHAPES, "step")


def factor(
    name: str, *, steps: int, fraction: float, warmup: float = 0.0, final: float = 0.0,
    drop_every: float = 0.5, drop: float = 0.1, drop_at: Sequence[float] = (), periods: int = 1,
) -> float:
    """What the learning rate is multiplied with.

    name        one of SCHEDULES
    steps       done so far
    fraction    of the budget spent, in [0, 1]
    warmup      length of the linear warm-up: below 1 a share of the budget, else steps
    final       factor at the end of "linear" and "cosine"
    drop_every  "step" multiplies by `drop` each time: below 1 a share of the budget, else steps
    drop_at     "step" does so at these places instead, in the same measure
    periods     times that "cosine" and "linear" run from the peak to `final` (warm restarts,
                Loshchilov and Hutter, arXiv 1608.03983)
    """
    if warmup >= 1:
        if steps < warmup:
            return steps / warmup
        # The rest of the budget in the same measure that brought us here.
        start = fraction * warmup / steps
    else:
        if fraction < warmup:
            return fraction / warmup
        start = warmup
    if name == "step" and drop_at:
        passed = (fraction + 1e-9 >= at if at < 1 else steps >= at for at in drop_at)
        return drop ** sum(passed)
    if name == "step":
        done = fraction / drop_every if drop_every < 1 else steps / drop_every
        return drop ** math.floor(done + 1e-9)
    rest = (fraction - start) / (1.0 - start) if start < 1 else 1.0
    rest = min(1.0, max(0.0, rest))
    # The very end is the end of the last period, not the start of another.
    rest = rest * periods - min(periods - 1, math.floor(rest * periods + 1e-9))
    return final + (1.0 - final) * SHAPES[name](max(0.0, rest))


def spent(budget: Budget, *, steps: int, seconds: float, examples: int) -> float:
    """Share of the tightest limit of a budget, in [0, 1]."""
    limits = (budget.steps, budget.seconds, budget.examples)
    shares = [
        done / limit
        for done, limit in zip((steps, seconds, examples), limits, strict=True)
        if limit is not None
    ]
    return min(1.0, max(shares, default=0.0))


def crossed(before: float, after: float, every: float) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    # A hair of tolerance: 3 * 0.05 is above 0.15 in floating point.
    return math.floor(after / every + 1e-9) > math.floor(before / every + 1e-9)
