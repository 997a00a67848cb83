"""What more data, more features or less ridge would give a user's task: numbers, then sentences.

Errors are shares of the targets' variance: 1 is what predicting the mean gives, 0 is perfect.

>>> x = np.random.default_rng(0).uniform(-1, 1, 200)
>>> report = recommend(np.exp(-np.abs(x[:, None] - x)), np.sign(x), trials=2)
>>> [row.n for row in report.data]
[50, 100, 200, 400, 800, 2000]
>>> report.advice in ("interpolate", "regularise")
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from passband.dynamics.random_features import Features
from passband.dynamics.rf_eigen.checks import check_kernel, check_targets
from passband.dynamics.rf_eigen.estimate import (
    RIDGES,
    Check,
    Estimate,
    backtest,
    estimate,
    standard,
)
from passband.dynamics.rf_eigen.exponents import distinct, split
from passband.dynamics.rf_eigen.model import Risk, optimal_ridge, predict_risk
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.dynamics.ridge_regression import feature_errors

TIMES = (0.25, 0.5, 1, 2, 4, 10)  # the points that there are
WIDTHS = tuple(2**p for p in range(4, 21))
CLOSE = 0.05  # relative: about what theory and measurement differ by
DRAWN = 61  # ridges of the curve


@dataclass(frozen=True)
class Row:
    """A predicted error at its best ridge, or at the one that is said.

    test, low, high  share of the targets' variance; the interval is of fits nearly as good
    no_ridge         what interpolating (or the least ridge that can be computed) would give
    """

    n: int
    k: float
    ridge: float
    test: float
    low: float
    high: float
    train: float
    no_ridge: float


@dataclass(frozen=True, eq=False)
class Report:
    """All that is known of a task, in the order of `sentences`.

    points      distinct ones; duplicates were left out
    variance    of the targets: the unit of the errors
    noise, noise_range  share of it, of the best fit and of those nearly as good
    data        rows for fewer and more points, features without limit
    features    rows for numbers of random features at all points; () for kernels without features
    curve       (ridge, test, train) at all points
    checks      predictions beside measurements
    spectrum    of the best fit
    """

    kernel: str
    points: int
    duplicates: int
    variance: float
    alpha: float
    beta: float
    noise: float
    noise_range: tuple[float, float]
    misfit: float
    data: tuple[Row, ...]
    features: tuple[Row, ...]
    curve: tuple[tuple[float, float, float], ...]
    checks: tuple[Check, ...]
    spectrum: Spectrum = field(repr=False)
    measured: tuple[tuple[int, float, float], ...] = ()  # n, best measured error, its deviation
    notes: tuple[str, ...] = ()

    @property
    def now(self) -> Row:
        return next(row for row in self.data if row.n == self.points)

    @property
    def interpolation_cost(self) -> float:
        """Error without a ridge over that at the best one, at all points."""
        return self.now.no_ridge / self.now.test

    @property
    def advice(self) -> str:
        """"interpolate" where that costs less than 5 % of the error, else "regularise"."""
        return "interpolate" if self.interpolation_cost < 1 + CLOSE else "regularise"

    @property
    def fitting_ratio(self) -> float:
        """Train / test error at the best ridge."""
        return self.now.train / self.now.test

    def predict(self, n: Any, k: Any = np.inf, ridge: Any = 0.0) -> Risk:
        """The risk for any n, k and ridge, in shares of the variance."""
        return predict_risk(self.spectrum, n, k, ridge)

    def sentences(self) -> list[str]:
        from passband.dynamics.rf_eigen.sentences import sentences

        return sentences(self)

    def to_json(self) -> dict[str, Any]:
        plain = {
            name: value for name, value in self.__dict__.items()
            if name not in ("spectrum", "checks")
        }
        for name in ("data", "features"):
            plain[name] = [_finite(asdict(row)) for row in plain[name]]
        return plain | {
            "sentences": self.sentences(), "advice": self.advice,
            "interpolation_cost": self.interpolation_cost, "fitting_ratio": self.fitting_ratio,
            "checks": [_finite(asdict(c) | {"apart": c.apart}) for c in self.checks],
        }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: null stands for a kernel without a limit of features."""
    return {n: None if isinstance(v, float) and np.isinf(v) else v for n, v in row.items()}


def recommend(
    kernel: Any, targets: Any, *, x: np.ndarray | None = None, features: Features | None = None,
    name: str = "given", trials: int = 4, test_share: float = 0.2,
    ridges: Sequence[float] = RIDGES, widths: Sequence[int] = (64, 512), seed: int = 0,
) -> Report:
    """
    kernel    [N, N];  targets [N] or [N, C] real numbers
    x, features  inputs [N, d] and what makes random features of them: then predictions for k
              features are made, and compared with real ones at `widths`
    trials, test_share, ridges, seed  as `estimate` takes them
    Raises `DataError` as `estimate`.
    """
    kernel = check_kernel(kernel)
    targets = check_targets(targets, len(kernel))
    common: dict[str, Any] = {"trials": trials, "test_share": test_share, "seed": seed}
    found = estimate(kernel, targets, ridges=ridges, **common)
    n = found.exponents.points
    checks = backtest(kernel, targets, found, **common)
    has_features = x is not None and features is not None
    if has_features:
        checks += _feature_checks(kernel, x, targets, features, found, widths, test_share, seed)
    best = found.measured.mean.argmin(0)
    at = np.arange(len(best))
    return Report(
        kernel=name, points=n, duplicates=found.exponents.duplicates, variance=found.variance,
        alpha=found.exponents.alpha, beta=found.beta, noise=found.noise, misfit=found.misfit,
        noise_range=(min(s.noise for s in found.plausible), max(s.noise for s in found.plausible)),
        data=_rows(found, sorted({round(n * t) for t in TIMES}), [np.inf]),
        features=_rows(found, [n], [*WIDTHS, np.inf]) if has_features else (),
        curve=_curve(found, n), checks=tuple(checks), spectrum=found.spectrum,
        measured=tuple(zip(
            found.measured.sizes.tolist(), found.measured.mean[best, at].tolist(),
            found.measured.error[best, at].tolist(), strict=True,
        )),
        notes=_notes(found),
    )


def _rows(found: Estimate, n: Sequence[int], k: Sequence[float]) -> tuple[Row, ...]:
    """Every n with every k."""
    at_n, at_k = (a.ravel() for a in np.meshgrid(n, k, indexing="ij"))
    best = optimal_ridge(found.spectrum, at_n, at_k)
    low, high = found.interval(best)
    # At n = k the error without a ridge has a pole: its neighbour says what a user would see.
    beside = np.where(at_k == at_n, at_k + 1, at_k)
    bare = predict_risk(found.spectrum, at_n, beside, 0.0)
    return tuple(
        Row(int(best.n[i]), float(best.k[i]), float(best.ridge[i]), float(best.test[i]),
            float(min(low[i], best.test[i])), float(max(high[i], best.test[i])),
            float(best.train[i]), float(bare.test[i]))
        for i in range(len(at_n))
    )


def _curve(found: Estimate, n: int) -> tuple[tuple[float, float, float], ...]:
    scale = found.measured.ridges[-1]
    risk = predict_risk(found.spectrum, n, np.inf, np.geomspace(scale * 1e-9, scale, DRAWN))
    return tuple(zip(risk.ridge.tolist(), risk.test.tolist(), risk.train.tolist(), strict=True))


def _feature_checks(
    kernel: np.ndarray, x: Any, targets: np.ndarray, features: Any, found: Estimate,
    widths: Sequence[int], test_share: float, seed: int,
) -> list[Check]:
    """Real random features at the same ridges: the least error of each width."""
    y, _ = standard(targets)
    train, held_out = split(distinct(kernel), test_share, seed, 0)
    checks = []
    for k in widths:
        drawn = features(x, k, np.random.default_rng([seed, k]))
        ridges = found.measured.ridges[1:]
        test, _ = feature_errors(drawn[train], y[train], drawn[held_out], y[held_out], ridges)
        predicted = predict_risk(found.spectrum, len(train), k, ridges).test.min()
        checks.append(
            Check(f"{k} real random features", len(train), k, float(predicted), float(test.min()))
        )
    return checks


def _notes(found: Estimate) -> tuple[str, ...]:
    notes = []
    if found.exponents.duplicates:
        notes.append(
            f"{found.exponents.duplicates} points equal an earlier one and were left out: their "
            "kernel matrix has no inverse"
        )
    if found.misfit > 0.15:
        notes.append(
            f"theory and measurement are {found.misfit:.0%} apart (root mean square) at the sizes "
            "that were measured: this task is no powerlaw, take the numbers beyond them as rough"
        )
    if found.exponents.alpha < 1.05:
        notes.append(
            f"the kernel's eigenvalues fall slowly (alpha {found.exponents.alpha:.2f}, taken as "
            "1.05): most of its weight lies in modes that no data set resolves"
        )
    return tuple(notes)
