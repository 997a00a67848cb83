"""Powerlaw exponents of a task, from how errors fall: fits to eigenvalues are biased.

    kappa(n) = 1 / Tr K_n^-1 ~ n^-alpha                test error without a ridge ~ n^-(beta - 1)
    slopes over the largest decade of n, in several random orders of the points

Source: Simon et al., ICLR 2024, arXiv 2311.14646.

>>> x = np.sort(np.random.default_rng(0).uniform(0, 1, 400))
>>> kernel = np.minimum(x[:, None], x)                        # Brownian motion: alpha = 2
>>> found = fit_exponents(kernel, x**2, trials=3)
>>> bool(1.8 < found.alpha < 2.2), found.points
(True, 400)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from passband.dynamics.rf_eigen.checks import check_kernel, check_targets
from passband.dynamics.rf_eigen.experiments import growing
from passband.errors import DataError

LEAST = 40  # points below which there is no decade to speak of
SAME = 1e-9  # squared distance of duplicates, as a share of the diagonal


@dataclass(frozen=True, eq=False)
class Exponents:
    """alpha, beta   means over the random orders
    *_error       standard deviations over them: of the slopes, not of what the data leave open
    points        without duplicates
    duplicates    points left out, because a kernel matrix with two equal rows has no inverse
    sizes, kappa, test  [S], [trials, S], [trials, S]: what the slopes are of
    """

    alpha: float
    alpha_error: float
    beta: float
    beta_error: float
    points: int
    duplicates: int
    sizes: np.ndarray
    kappa: np.ndarray
    test: np.ndarray


def fit_exponents(
    kernel: Any, targets: Any, *, trials: int = 5, test_share: float = 0.2, seed: int = 0
) -> Exponents:
    """
    kernel   [N, N], N at least 40 without duplicates;  targets [N] or [N, C] real numbers
    Raises `DataError` as `Spectrum.of`, and for too few points.
    """
    kernel = check_kernel(kernel)
    targets = check_targets(targets, len(kernel))
    kept = distinct(kernel)
    if len(kept) < LEAST:
        raise DataError(
            f"{len(kept)} distinct points", expected=f"at least {LEAST}", mend="give more data"
        )
    sizes = sizes_of(len(kept) - round(test_share * len(kept)))
    kappa, test = [], []
    for trial in range(trials):
        train, held_out = split(kept, test_share, seed, trial)
        found = growing(
            kernel[np.ix_(train, train)], targets[train], kernel[np.ix_(held_out, train)],
            targets[held_out], 0.0, sizes,
        )
        kappa.append(found.kappa)
        test.append(found.test)
    return exponents_of(sizes, np.array(kappa), np.array(test), len(kept), len(kernel) - len(kept))


def exponents_of(
    sizes: np.ndarray, kappa: np.ndarray, test: np.ndarray, points: int, duplicates: int = 0
) -> Exponents:
    """From curves [trials, S] that are there already."""
    log_n = np.log(sizes)
    alphas = [-np.polyfit(log_n, np.log(one), 1)[0] for one in kappa]
    betas = [1 - np.polyfit(log_n, np.log(np.maximum(one, 1e-300)), 1)[0] for one in test]
    return Exponents(
        float(np.mean(alphas)), float(np.std(alphas)), float(np.mean(betas)),
        float(np.std(betas)), points, duplicates, sizes, kappa, test,
    )


def sizes_of(most: int, number: int = 12, decade: float = 10.0) -> np.ndarray:
    """Numbers of samples over the largest decade, evenly in logarithms."""
    return np.unique(np.round(np.geomspace(max(2.0, most / decade), most, number)).astype(int))


def split(
    kept: np.ndarray, test_share: float, seed: int, trial: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training points in a random order, and held-out ones."""
    order = np.random.default_rng([seed, trial]).permutation(kept)
    held_out = max(1, round(test_share * len(kept)))
    return order[held_out:], order[:held_out]


def distinct(kernel: np.ndarray) -> np.ndarray:
    """Indices of the points that no earlier point equals."""
    diagonal = kernel.diagonal()
    distance = diagonal[:, None] + diagonal - 2 * kernel
    same = np.tril(distance <= SAME * diagonal.max(), -1)
    return np.flatnonzero(~same.any(1))
