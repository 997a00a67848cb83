"""When is interpolation optimal? Closed forms for powerlaw tasks, n large.

    lam_i = i^-alpha, v_i^2 = i^-beta, kernel regression on n samples; noise s times the error of
    interpolating without noise; R = train error / test error (mean squares), r = sqrt(R)

    E(R) = n^-(beta-1) c [(1-r) + alpha s (1-r)^beta] / [1 + (alpha-1) r]
           [alpha sin(pi/alpha) (1-r)]^-beta
    c    = pi^beta (alpha-beta+1) sin(pi/alpha) / sin(pi (beta-1)/alpha)
    best:  alpha - beta - (alpha-1) beta r + alpha (alpha-1) s (1-r)^beta = 0, or r = 0 where the
           left side is not above 0 at r = 0, which is beta >= alpha + alpha (alpha-1) s

Source: Simon et al., ICLR 2024, arXiv 2311.14646; the condition follows by differentiating E(R).

>>> best = fitting_ratio(alpha=1.17, beta=1.14)           # CIFAR-10 to a convolutional kernel
>>> round(best.ratio, 3), round(best.interpolation_cost, 4), best.interpolate
(0.024, 1.0024, False)
>>> fitting_ratio(alpha=1.2, beta=1.5).interpolate
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

from passband.errors import DataError


@dataclass(frozen=True)
class FittingRatio:
    """ratio               R* = train / test error at the best ridge
    interpolation_cost  test error of interpolating over the least one, 1 or more
    interpolate         whether no ridge is best
    """

    ratio: float
    interpolation_cost: float
    interpolate: bool


def fitting_ratio(alpha: float, beta: float, noise: float = 0.0) -> FittingRatio:
    """Best R of a powerlaw task.

    noise  s: variance of the noise over the error of interpolating without it
    Raises `DataError` unless alpha > 1, 1 < beta < 2 alpha + 1 and noise >= 0.
    """
    _check(alpha, beta, noise)

    def slope(r: float) -> float:
        inner = alpha * (alpha - 1) * noise * (1 - r) ** beta
        return float(alpha - beta - (alpha - 1) * beta * r + inner)

    r = float(brentq(slope, 0.0, 1.0, xtol=1e-14)) if slope(0.0) > 0 else 0.0
    least, interpolating = powerlaw_risk(1, alpha, beta, [r * r, 0.0], noise)
    return FittingRatio(r * r, float(interpolating / least), r == 0.0)


def powerlaw_risk(
    n: Any, alpha: float, beta: float, ratio: Any, noise: float = 0.0
) -> np.ndarray:
    """Test error at a fitting ratio R in [0, 1), leading order in n.

    >>> powerlaw_risk([100, 400], 1.5, 1.5, ratio=0.0).round(3).tolist()
    [0.376, 0.188]
    """
    _check(alpha, beta, noise)
    r = np.sqrt(np.asarray(ratio, dtype=float))
    if not ((r >= 0) & (r < 1)).all():
        raise DataError(f"ratio = {ratio}", expected="train / test error in [0, 1)")
    sine = np.sin(np.pi / alpha)
    # sinc-like quotient: finite where beta - 1 = alpha
    around = np.pi * (beta - 1) / alpha
    quotient = (
        (alpha - beta + 1) / np.sin(around) if abs(alpha - beta + 1) > 1e-9 else alpha / np.pi
    )
    shape = ((1 - r) + alpha * noise * (1 - r) ** beta) / (1 + (alpha - 1) * r)
    level = np.pi**beta * quotient * sine
    n_part = np.asarray(n, dtype=float) ** (1 - beta)
    return n_part * level * shape * (alpha * sine * (1 - r)) ** -beta


def _check(alpha: float, beta: float, noise: float) -> None:
    if not alpha > 1 or not 1 < beta < 2 * alpha + 1 or not 0 <= noise < np.inf:
        raise DataError(
            f"alpha = {alpha:g}, beta = {beta:g}, noise = {noise:g}",
            expected="alpha > 1, 1 < beta < 2 alpha + 1, noise >= 0",
            mend="`predict_risk` takes any spectrum",
        )
