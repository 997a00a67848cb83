"""What a task is to a kernel: its eigenvalues, the target's power in each mode, and noise.

    K(x, x') = sum_i lam_i phi_i(x) phi_i(x')      target y = sum_i v_i phi_i(x) + noise
    from data: K / N = U diag(lam) U^T on N points, v = U^T y / sqrt(N)
    from exponents: lam_i = i^-alpha, v_i^2 = i^-beta

Many modes with nearly equal eigenvalues weigh in sums like one with a count, so that 1e12 modes of
a powerlaw fit into a few thousand numbers. Source: Simon et al., ICLR 2024, arXiv 2311.14646.

>>> spectrum = Spectrum.powerlaw(alpha=1.5, beta=1.3, modes=10**12)
>>> len(spectrum) < 20_000, round(spectrum.modes / 1e12, 6)
(True, 1.0)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from passband.dynamics.rf_eigen.checks import check_kernel, check_targets
from passband.errors import DataError, PassbandWarning

EXACT = 2000  # leading modes of a powerlaw that are never binned
WIDTH = 1.0 / 640  # of a bin, in the logarithm of the index or of the eigenvalue
ROUNDING = 1e-12  # negative eigenvalues up to this share of the largest are rounding


@dataclass(frozen=True, eq=False)
class Spectrum:
    """
    >>> Spectrum([0.5, 0.25], [1.0, 0.1], noise=0.2).variance
    1.3

    eigenvalues  [M] at least 0, largest first
    power        [M] squared coefficients v_i^2 of the target, summed over outputs; of a bin: their
                 sum
    noise        variance of the noise on targets, summed over outputs, with all of the target that
                 no mode represents
    counts       [M] how many modes each entry stands for; None: one each
    Raises `DataError` for NaN, negative numbers or unequal lengths; warns where it has to sort.
    """

    eigenvalues: np.ndarray
    power: np.ndarray
    noise: float = 0.0
    counts: np.ndarray = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        lam, power = (np.asarray(a, dtype=float) for a in (self.eigenvalues, self.power))
        counts = np.ones_like(lam) if self.counts is None else np.asarray(self.counts, dtype=float)
        if lam.ndim != 1 or not lam.size or power.shape != lam.shape or counts.shape != lam.shape:
            raise DataError(
                f"eigenvalues {lam.shape}, power {power.shape}, counts {counts.shape}",
                expected="three arrays [M] of one length, M at least 1",
                mend="v_i^2 summed over outputs gives one number for each eigenvalue",
            )
        for name, values in (("eigenvalues", lam), ("power", power), ("counts", counts)):
            if not np.isfinite(values).all():
                raise DataError(f"{(~np.isfinite(values)).sum()} of the {name} are not finite",
                                expected="finite numbers", mend="look where they come from")
        if lam.min() < -ROUNDING * lam.max() or lam.max() <= 0:
            raise DataError(
                f"the least eigenvalue is {lam.min():.3g}, the largest {lam.max():.3g}",
                expected="none below 0 (rounding aside) and one above",
                mend="a kernel matrix is symmetric and positive semi-definite; compute in float64",
            )
        if power.min() < 0 or counts.min() < 0 or not 0 <= self.noise < np.inf:
            raise DataError(
                f"least power {power.min():.3g}, noise {self.noise:.3g}", expected="0 or more",
                mend="power is the square of the coefficient, noise a variance",
            )
        order = np.argsort(-lam, kind="stable")
        if (np.diff(lam) > 0).any():
            warnings.warn("the eigenvalues were not sorted; they are now, power with them",
                          PassbandWarning, stacklevel=3)
        for name, values in (("eigenvalues", np.maximum(lam, 0)), ("power", power),
                             ("counts", counts)):
            object.__setattr__(self, name, values[order])
        object.__setattr__(self, "noise", float(self.noise))

    def __len__(self) -> int:
        return len(self.eigenvalues)

    @property
    def modes(self) -> float:
        """How many modes have an eigenvalue above 0."""
        return float(self.counts[self.eigenvalues > 0].sum())

    @property
    def trace(self) -> float:
        return float(self.counts @ self.eigenvalues)

    @property
    def variance(self) -> float:
        """Of the noisy targets: the error of predicting nothing."""
        return float(self.power.sum() + self.noise)

    def with_noise(self, noise: float) -> Spectrum:
        return replace(self, noise=noise)

    # ---- where spectra come from -----------------------------------------------------------

    @classmethod
    def powerlaw(
        cls, alpha: float, beta: float, modes: int, noise: float = 0.0, *, tail: bool = False
    ) -> Spectrum:
        """lam_i = i^-alpha, v_i^2 = i^-beta for i = 1 ... modes.

        modes  above 20,000 those after the first 2,000 are binned
        tail   count the target's power beyond the last mode as noise (beta above 1)
        """
        first = np.arange(1.0, min(modes, EXACT if modes > 10 * EXACT else modes) + 1)
        lam, power, counts = powerlaw_bins(len(first), modes, alpha, beta)
        lam, power = np.r_[first**-alpha, lam], np.r_[first**-beta, power]
        rest = (modes + 0.5) ** (1 - beta) / (beta - 1) if tail else 0.0
        return cls(lam, power, noise + rest, np.r_[np.ones_like(first), counts])

    @classmethod
    def of(cls, kernel: Any, targets: Any, noise: float = 0.0) -> Spectrum:
        """The spectrum that N points show.

        >>> x = np.linspace(-1, 1, 50)
        >>> spectrum = Spectrum.of(np.exp(-np.abs(x[:, None] - x)), x)
        >>> bool(np.isclose(spectrum.power.sum(), np.mean(x**2)))
        True

        kernel   [N, N] symmetric, positive semi-definite
        targets  [N] or [N, C] real numbers; labels as one-hot rows or +-1
        Raises `DataError` for what is no kernel matrix, and for integer targets.
        """
        kernel = check_kernel(kernel)
        targets = check_targets(targets, len(kernel))
        values, vectors = eigh(kernel)
        power = np.square(vectors.T @ targets / np.sqrt(len(kernel))).sum(1)
        return cls(values / len(kernel), power, noise)

    # ---- fewer numbers ---------------------------------------------------------------------

    def collapsed(self, width: float = 4 * WIDTH) -> Spectrum:
        """Modes whose eigenvalues agree within `width` (of their logarithm) as one with a count.

        >>> full = Spectrum.powerlaw(1.5, 1.5, modes=20_000)
        >>> len(full.collapsed()) < len(full) / 7
        True

        Sums over modes keep their first two terms: errors of the risk are of order width^2 / 24.
        """
        positive = self.eigenvalues > 0
        with np.errstate(divide="ignore"):
            level = np.where(positive, np.floor(-np.log(self.eigenvalues) / width), np.inf)
        starts = np.flatnonzero(np.r_[True, np.diff(level) != 0])
        counts = np.add.reduceat(self.counts, starts)
        mass = np.add.reduceat(self.counts * self.eigenvalues, starts)
        return Spectrum(
            mass / np.where(counts > 0, counts, 1), np.add.reduceat(self.power, starts),
            self.noise, counts,
        )


def powerlaw_bins(
    start: int, stop: int, alpha: float, beta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean eigenvalue, power and count in bins of the modes start + 1 ... stop of a powerlaw."""
    if start >= stop:
        return np.empty(0), np.empty(0), np.empty(0)
    span = np.log(stop / start)
    edges = np.unique(np.round(start * np.exp(np.linspace(0, span, 2 + int(span / WIDTH)))))
    counts = np.diff(edges)
    # The sum over the integers of a bin by the midpoint rule.
    return (
        _integral(edges, alpha) / counts, _integral(edges, beta), counts,
    )


def _integral(edges: np.ndarray, exponent: float) -> np.ndarray:
    """Of i^-exponent between the edges, half an index up: integer i covers i - 1/2 to i + 1/2."""
    at = edges + 0.5
    if abs(exponent - 1) < 1e-9:
        return np.diff(np.log(at))
    # expm1 keeps the difference of nearly equal powers.
    ratio = np.log(at[1:] / at[:-1])
    return at[:-1] ** (1 - exponent) * np.expm1((1 - exponent) * ratio) / (1 - exponent)


def eigh(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors in the same order of columns."""
    values, vectors = np.linalg.eigh(kernel)
    tolerance = 10 * len(kernel) * np.finfo(float).eps * values[-1]
    if values[0] < -max(tolerance, 1e-7 * values[-1]):
        raise DataError(
            f"the kernel's least eigenvalue is {values[0]:.3g}, its largest {values[-1]:.3g}",
            expected="a positive semi-definite matrix", mend="is it a kernel, and not a distance?",
        )
    return np.maximum(values[::-1], 0), vectors[:, ::-1]
