"""Weights of the penalties over a run; t in [0, 1] is the share of it that is done.

    consistency           cosine: from 1 to `lowest`
    diversity, spectrum   two-phase: 0 for `hold`, a linear ramp over `ramp`, then 1
                          linear, quadratic: t / hold, (t / hold)^2 up to 1

>>> cosine(0.0, lowest=0.1), round(cosine(1.0, lowest=0.1), 12)
(1.0, 0.1)
>>> [FOCUS["two-phase"](t, 0.2, 0.05) for t in (0.1, 0.2, 0.25, 0.9)]
[0.0, 0.0, 1.0, 1.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(t: float, lowest: float) -> float:
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * t))


def _risen(t: float, start: float, length: float) -> float:
    """0 up to the start, 1 from its end on, linear between."""
    if t >= start + length:
        return 1.0
    return max(0.0, (t - start) / length)


FOCUS: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda t, hold, ramp: 1.0,
    "two-phase": lambda t, hold, ramp: _risen(t, hold, ramp),
    "linear": lambda t, hold, ramp: _risen(t, 0.0, hold),
    "quadratic": lambda t, hold, ramp: _risen(t, 0.0, hold) ** 2,
}
