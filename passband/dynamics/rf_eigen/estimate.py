"""The spectrum of a task beyond the points that are there: what more data would give rests on it.

    head   the leading eigenvalues and powers of the sample: modes that n points learn almost whole
    tail   lam_i = c i^-alpha: alpha from kappa(n) = 1 / Tr K_n^-1, c so that theory gives the
           measured kappa at the largest n
           v_i^2 ~ i^-beta and noise share what the head leaves of the targets' variance: beta and
           the share so that theory gives the measured test errors, over sizes and ridges

For each beta the errors are linear in the share (`sensitivities`), so the fit has one unknown on a
grid. Every fit nearly as good as the best is kept: their predictions make the interval. `backtest`
does the same with half of the points and compares with what all of them gave.

>>> from passband.dynamics.rf_eigen.model import optimal_ridge
>>> x = np.random.default_rng(0).uniform(-1, 1, 300)
>>> kernel = np.exp(-np.abs(x[:, None] - x))
>>> found = estimate(kernel, np.sign(x), trials=2)
>>> more = optimal_ridge(found.spectrum, n=[300, 600, 1200]).test
>>> bool(more[0] > more[1] > more[2])
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import brentq

from passband.dynamics.rf_eigen.checks import check_kernel, check_targets
from passband.dynamics.rf_eigen.experiments import growing
from passband.dynamics.rf_eigen.exponents import (
    LEAST,
    Exponents,
    distinct,
    exponents_of,
    sizes_of,
    split,
)
from passband.dynamics.rf_eigen.model import Risk, predict_risk, sensitivities
from passband.dynamics.rf_eigen.spectrum import Spectrum, eigh
from passband.errors import DataError

RIDGES = tuple(10.0**p for p in range(-4, 4))  # times the mean of K's diagonal; 0 comes first
LEARNED = 20.0  # a mode of the head has an eigenvalue this many times kappa
MODES = 1e12  # where the tail ends: nothing is left there for alpha above 1.1
BINS = 20  # of the tail in each factor e of the index
NEARLY = 1.5  # times the least misfit: fits that are as plausible,
RESOLVED = 0.05  # and all with a misfit below this, about what theory itself is off by


@dataclass(frozen=True, eq=False)
class Measured:
    """Test errors of real regressions: test [trials, R, S] for ridges [R] and sizes [S]."""

    sizes: np.ndarray
    ridges: np.ndarray
    test: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        return self.test.mean(0)

    @property
    def error(self) -> np.ndarray:
        """Standard deviation over the random orders."""
        return self.test.std(0)


@dataclass(frozen=True, eq=False)
class Estimate:
    """spectrum    the best fit, in units of the targets' variance
    plausible   fits nearly as good, the best first
    exponents   slopes as measured
    beta, noise  of the best fit: exponent of the target's tail, share of the variance
    misfit      root mean square of (theory - measured) / measured
    measured    the regressions that it was fitted to
    variance    of the targets, summed over outputs: the unit of every error
    """

    spectrum: Spectrum
    plausible: tuple[Spectrum, ...]
    exponents: Exponents
    beta: float
    noise: float
    misfit: float
    measured: Measured
    variance: float

    def interval(self, risk: Risk) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest test error at the same (n, k, ridge) over the plausible spectra."""
        power, noise = sensitivities(self.spectrum, risk.n, risk.k, risk.ridge)
        tests = np.array([power @ s.power + noise * s.noise for s in self.plausible])
        shape = risk.test.shape
        return tests.min(0).reshape(shape), tests.max(0).reshape(shape)


def estimate(
    kernel: Any, targets: Any, *, trials: int = 4, test_share: float = 0.2,
    ridges: Sequence[float] = RIDGES, seed: int = 0,
) -> Estimate:
    """
    kernel   [N, N], at least 50 distinct points;  targets [N] or [N, C] real numbers
    ridges   to measure at besides 0, as multiples of the mean of the kernel's diagonal
    Raises `DataError` for what is no kernel matrix, integer or constant targets, and few points.
    """
    kernel = check_kernel(kernel)
    targets, variance = standard(check_targets(targets, len(kernel)))
    kept = distinct(kernel)
    if len(kept) < LEAST / (1 - test_share):
        raise DataError(
            f"{len(kept)} distinct points of {len(kernel)}",
            expected=f"at least {LEAST / (1 - test_share):.0f}", mend="give more data",
        )
    scale = float(np.trace(kernel)) / len(kernel)
    sizes = sizes_of(len(kept) - round(test_share * len(kept)))
    asked = np.r_[0.0, np.asarray(ridges) * scale]
    kappa, test = [], []
    for trial in range(trials):
        train, held_out = split(kept, test_share, seed, trial)
        given = (
            kernel[np.ix_(train, train)], targets[train], kernel[np.ix_(held_out, train)],
            targets[held_out],
        )
        found = [growing(*given, ridge, sizes) for ridge in asked]
        kappa.append(found[0].kappa)
        test.append([one.test for one in found])
    measured = Measured(sizes, asked, np.array(test))
    exponents = exponents_of(
        sizes, np.array(kappa), measured.test[:, 0], len(kept), len(kernel) - len(kept)
    )
    values, vectors = eigh(kernel[np.ix_(kept, kept)])
    power = np.square(vectors.T @ targets[kept] / np.sqrt(len(kept))).sum(1)
    fits = _fits(values / len(kept), power, exponents, measured)
    best = fits[0]
    return Estimate(
        best.spectrum, tuple(f.spectrum for f in fits), exponents, best.beta,
        best.spectrum.noise, best.misfit, measured, variance,
    )


def standard(targets: np.ndarray) -> tuple[np.ndarray, float]:
    """Targets without their mean, scaled to a variance of 1 in all, and what it was."""
    centred = targets - targets.mean(0)
    variance = float(np.square(centred).sum(1).mean())
    if variance <= 1e-24 * max(1.0, float(np.square(targets).sum(1).mean())):
        raise DataError("all targets are equal", expected="targets that vary",
                        mend="there is nothing to learn")
    return centred / np.sqrt(variance), variance


# ---- the fit -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fit:
    spectrum: Spectrum
    beta: float
    misfit: float


def _fits(
    values: np.ndarray, power: np.ndarray, exponents: Exponents, measured: Measured
) -> list[_Fit]:
    """Best first, then the outermost of those nearly as good, and the best of each order."""
    kappa = float(np.exp(np.log(exponents.kappa[:, -1]).mean()))
    n, n_max = len(values), int(exponents.sizes[-1])
    head = int(np.clip((values > LEARNED * kappa).sum(), 1, min(n // 4, n_max // 2)))
    alpha = max(exponents.alpha, 1.05)
    edges = np.unique(np.round(np.geomspace(head + 1, MODES, int(BINS * np.log(MODES / head)))))
    tail = (edges[:-1] + edges[1:]) / 2
    counts = np.diff(edges)
    shape = (tail / head) ** -alpha
    level = _level(values[:head], shape, counts, kappa, n_max)
    lam = np.r_[values[:head], level * shape]
    order = np.argsort(-lam, kind="stable")
    base = Spectrum(lam[order], np.zeros_like(lam), 0.0, np.r_[np.ones(head), counts][order])
    back = np.argsort(order)  # place of each mode in the sorted spectrum

    # What n points can't resolve looks like noise: each sample coefficient has a share of it.
    rest = max(1 - power[:head].sum(), 1e-9) / (1 - head / n)
    known = np.maximum(power[:head] - rest / n, 0.0)
    rest = max(1 - known.sum(), 1e-9)

    sizes, ridges = np.meshgrid(measured.sizes, measured.ridges)
    of_power, of_noise = sensitivities(base, sizes.ravel(), np.inf, ridges.ravel())
    of_power = of_power[:, back]
    fixed = of_power[:, :head] @ known

    def fit(beta: float, errors: np.ndarray, most: float = 1.0) -> _Fit:
        weight = counts * (tail / head) ** -beta
        weight = rest * weight / weight.sum()
        signal = fixed + of_power[:, head:] @ weight
        slope = rest * of_noise - of_power[:, head:] @ weight
        # Least squares of relative errors in the share of noise.
        a, b = slope / errors, (errors - signal) / errors
        share = float(np.clip((a @ b) / max(a @ a, 1e-300), 0.0, most))
        misfit = float(np.sqrt(np.mean(np.square(share * a - b))))
        powers = np.r_[known, (1 - share) * weight][order]
        return _Fit(replace(base, power=powers, noise=share * rest), beta, misfit)

    betas = np.linspace(1.02, max(1.1, min(2 * alpha + 0.98, 6.0)), 60)
    # To few points a little noise looks like a slow tail: fits without noise are tried as well.
    errors = measured.mean.ravel()
    whole = sorted(
        (fit(b, errors, most) for b in betas for most in (1.0, 0.0)), key=lambda f: f.misfit
    )
    limit = max(NEARLY * whole[0].misfit, RESOLVED)
    near = [f for f in whole[1:] if f.misfit <= limit]
    single = [
        min((fit(b, one.ravel()) for b in betas), key=lambda f: f.misfit) for one in measured.test
    ]
    # The outermost of the near ones, in beta and in noise, span the interval.
    ends = [
        pick(near, key=key) for pick in (min, max)
        for key in (lambda f: f.beta, lambda f: f.spectrum.noise) if near
    ]
    silent = [f for f in near if f.spectrum.noise == 0]
    ends += [pick(silent, key=lambda f: f.beta) for pick in (min, max) if silent]
    return [whole[0], *ends, *single]


def _level(
    head: np.ndarray, shape: np.ndarray, counts: np.ndarray, kappa: float, n: int
) -> float:
    """c of the tail c * shape for which n samples without a ridge have this kappa."""
    learned = float((head / (head + kappa)).sum())

    def excess(log_c: float) -> float:
        lam = np.exp(log_c) * shape
        return learned + float((counts * lam / (lam + kappa)).sum()) - n

    return float(np.exp(brentq(excess, np.log(kappa) - 60, np.log(kappa) + 60)))


# ---- does it foretell? ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """A prediction beside a measurement of the same. `apart` is their relative difference."""

    what: str
    n: int
    k: float
    predicted: float
    measured: float

    @property
    def apart(self) -> float:
        return self.predicted / self.measured - 1


def backtest(
    kernel: Any, targets: Any, whole: Estimate, *, trials: int = 4, test_share: float = 0.2,
    seed: int = 0,
) -> list[Check]:
    """Half of the points foretell the errors with all: tuned, and without a ridge.

    whole  the `estimate` from all points, by the same trials, test_share and seed
    """
    kernel = check_kernel(kernel)
    train, _ = split(distinct(kernel), test_share, seed, 0)
    half = train[: len(train) // 2]
    if len(half) < LEAST / (1 - test_share):
        return []
    targets = check_targets(targets, len(kernel))
    found = estimate(
        kernel[np.ix_(half, half)], targets[half], trials=trials, test_share=test_share, seed=seed
    )
    n, measured = int(whole.measured.sizes[-1]), whole.measured.mean[:, -1]
    risk = predict_risk(found.spectrum, n, np.inf, whole.measured.ridges)
    # In the units of all points: halves differ in their variance a little.
    predicted = risk.test * found.variance / whole.variance
    return [
        Check(f"best ridge, foretold by {len(half)} points", n, np.inf, float(predicted.min()),
              float(measured.min())),
        Check(f"no ridge, foretold by {len(half)} points", n, np.inf, float(predicted[0]),
              float(measured[0])),
    ]
