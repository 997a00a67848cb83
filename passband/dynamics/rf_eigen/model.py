"""Test and train error of random-feature and kernel ridge regression, before any training.

n samples, k random features (inf: the kernel itself), M modes, ridge delta: the predictor is
K_hat(x, X) (K_hat(X, X) + delta I)^-1 y, K_hat the mean over k features. delta is not divided by n.

    L_i = lam_i / (lam_i + gamma),  z = sum L_i,  q = sum L_i^2
    gamma solves (n - z)(k - z) gamma = k delta with z < min(n, k);  k = inf: (n - z) gamma = delta
    rho    = (k - z) / (k - q)
    test   = [sum (1 - L_i)(1 - rho L_i) v_i^2 + sigma^2] / [(n - z) / n + rho (z - q) / n]
    train  = ((n - z) / n)^2 test

The paper states two equations in gamma and kappa = gamma (k - z) / k; above they are one, solved by
Newton's method in log gamma, and no term is a difference of near-equal numbers. `test` is the error
on noisy targets. Source: Simon, Karkada, Ghosh, Belkin, ICLR 2024, arXiv 2311.14646.

>>> from passband.dynamics.rf_eigen.spectrum import Spectrum
>>> spectrum = Spectrum.powerlaw(alpha=1.5, beta=1.5, modes=1000, noise=0.5)
>>> risk = predict_risk(spectrum, n=64, k=128, ridge=0.1)
>>> round(float(risk.test), 4), round(float(risk.train), 5)
(1.3653, 0.09485)
>>> predict_risk(spectrum, n=[64, 128, 256], k=np.inf, ridge=[[1e-3], [1.0]]).test.shape
(2, 3)
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError, PassbandWarning

Numbers: TypeAlias = Any  # a number or an array of them

CELLS = 2_000_000  # points times modes that are worked on at a time
MOST_STEPS = 200  # of Newton's method; bisection alone would need 60


@dataclass(frozen=True, eq=False)
class Risk:
    """Errors for a grid of (n, k, ridge), each field an array of the grid's shape.

    test, train  mean squared errors on noisy targets, summed over outputs
    gamma        eigenvalue at which a mode is half learned
    kappa        ridge / (n - z): the ridge with the one that finite n adds
    learned      z, how many modes are learned
    """

    n: np.ndarray
    k: np.ndarray
    ridge: np.ndarray
    test: np.ndarray
    train: np.ndarray
    gamma: np.ndarray
    kappa: np.ndarray
    learned: np.ndarray

    @property
    def fitting_ratio(self) -> np.ndarray:
        """train / test: 0 where the training targets are interpolated."""
        return np.divide(
            self.train, self.test, out=np.zeros_like(self.test), where=np.isfinite(self.test)
        )

    def __getitem__(self, index: Any) -> Risk:
        return Risk(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def predict_risk(
    spectrum: Spectrum, n: Numbers, k: Numbers = np.inf, ridge: Numbers = 0.0
) -> Risk:
    """
    >>> spectrum = Spectrum.powerlaw(1.5, 1.3, modes=10**9)
    >>> risk = predict_risk(spectrum, n=300)                # interpolating kernel regression
    >>> bool(risk.train == 0), bool(abs(risk.learned - 300) < 1e-9)
    (True, True)

    n, k, ridge  numbers or arrays that broadcast; n, k above 0, k may be inf, ridge 0 or more
    Raises `DataError` for others, and at ridge 0 for a spectrum of fewer modes than min(n, k). At
    n = k without ridge the error diverges: inf, with a warning.
    """
    n, k, ridge = _grid(n, k, ridge)
    shape = n.shape
    flat = [a.ravel() for a in (n, k, ridge)]
    _check_modes(spectrum, *flat)
    gamma = np.concatenate([
        _solve(spectrum, *part) for part in _chunks(len(spectrum), *flat)
    ] or [np.empty(0)])
    gap = _wanted(*flat, gamma)[1]
    if (diverges := (flat[0] == flat[1]) & (flat[2] == 0)).any():
        warnings.warn(
            f"n = k = {flat[0][diverges][0]:g} without a ridge: the expected error is infinite",
            PassbandWarning, stacklevel=2,
        )
    parts = [
        _evaluate(spectrum, *part)
        for part in _chunks(len(spectrum), *flat, gamma, gap)
    ]
    names = Risk.__dataclass_fields__
    return Risk(*(
        np.concatenate([getattr(p, name) for p in parts] or [np.empty(0)]).reshape(shape)
        for name in names
    ))


def sensitivities(
    spectrum: Spectrum, n: Numbers, k: Numbers = np.inf, ridge: Numbers = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The test error as a linear form: [G, M] of each mode's power, [G] of the noise.

    >>> spectrum = Spectrum.powerlaw(1.5, 1.5, modes=1000, noise=0.5)
    >>> power, noise = sensitivities(spectrum, n=[64, 64], k=128, ridge=[0.1, 1e-3])
    >>> (power @ spectrum.power + noise * spectrum.noise).round(4).tolist()
    [1.3653, 2.0223]

    Errors for every target at once: how `estimate` fits one to what was measured.
    """
    n, k, ridge = (a.ravel() for a in _grid(n, k, ridge))
    _check_modes(spectrum, n, k, ridge)
    chunks = _chunks(len(spectrum), n, k, ridge)
    gamma = np.concatenate([_solve(spectrum, *part) for part in chunks])
    left, of_noise, _ = _weights(spectrum, n, k, gamma, _wanted(n, k, ridge, gamma)[1])
    return left * of_noise[:, None], of_noise


def optimal_ridge(spectrum: Spectrum, n: Numbers, k: Numbers = np.inf) -> Risk:
    """The risk at the ridge with the least test error; that ridge is its `ridge`, 0 included.

    >>> best = optimal_ridge(Spectrum.powerlaw(1.5, 1.5, modes=1000, noise=0.5), n=[32, 64])
    >>> best.test.round(3).tolist()
    [1.235, 1.042]

    n, k  numbers or arrays that broadcast
    A grid over gamma, each with its ridge in closed form, finds the valley; it is then refined
    until the error is exact to about 1e-12.
    """
    n, k, _ = _grid(n, k, 0.0)
    found = [_optimum(spectrum, float(a), float(b)) for a, b in zip(n.ravel(), k.ravel(),
                                                                    strict=True)]
    return Risk(*(
        np.array([getattr(one, name) for one in found]).reshape(n.shape)
        for name in Risk.__dataclass_fields__
    ))


def risk_surface(
    spectrum: Spectrum, n: Numbers, k: Numbers, ridge: Numbers | None = None
) -> Risk:
    """Every n with every k (and every ridge): arrays [n, k, ridge], or [n, k] at the best ridges.

    >>> risk_surface(Spectrum.powerlaw(1.5, 1.5, 500, 0.5), [32, 64], [16, np.inf]).test.shape
    (2, 2)
    """
    n, k = np.atleast_1d(n), np.atleast_1d(k)
    if ridge is None:
        return optimal_ridge(spectrum, n[:, None], k)
    return predict_risk(spectrum, n[:, None, None], k[:, None], np.atleast_1d(ridge))


def pool_corrected(risk: Risk, pool: int) -> np.ndarray:
    """Test error on the points of a pool that are not among the n of training.

    pool  M, from whose kernel matrix the spectrum was taken: `risk.test` is a mean over all M, of
          which n were trained on
    """
    if (risk.n >= pool).any():
        raise DataError(f"n = {risk.n.max():g} of a pool of {pool}", expected="fewer",
                        mend="leave points of the pool out of training")
    return (pool * risk.test - risk.n * risk.train) / (pool - risk.n)


# ---- the equation --------------------------------------------------------------------------------


def _wanted(
    n: np.ndarray, k: np.ndarray, ridge: np.ndarray, gamma: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z as (n - z)(k - z) = c = k ridge / gamma asks for, min(n, k) - z, and dz / dlog gamma.

    The smaller root of the quadratic. Without a difference: min(n, k) - z = 2 c / (|n - k| + root).
    """
    infinite = np.isinf(k)
    wide = np.where(infinite, n, k)
    c = wide * ridge / gamma
    root = np.sqrt((n - wide) ** 2 + 4 * c)
    whole = np.abs(n - wide) + root
    gap = np.divide(2 * c, whole, out=np.zeros_like(c), where=whole > 0)
    slope = np.divide(c, root, out=np.zeros_like(c), where=root > 0)
    gap, slope = (np.where(infinite, ridge / gamma, a) for a in (gap, slope))
    return np.minimum(n, k) - gap, gap, slope


def _solve(
    spectrum: Spectrum, n: np.ndarray, k: np.ndarray, ridge: np.ndarray
) -> np.ndarray:
    """gamma of each point, by Newton's method on log z - log z_wanted, guarded by bisection.

    z falls and what is wanted grows with gamma; for powerlaws both are nearly straight lines in
    logarithms, so that a handful of steps do.
    """
    lam, counts = spectrum.eigenvalues, spectrum.counts
    mass = lam * counts
    positive = lam[lam > 0]
    least = np.minimum(n, k)
    with np.errstate(divide="ignore"):
        low = np.maximum(np.log(ridge / n), np.log(positive[-1]) - 60)
    # Here z <= trace / gamma is at most what is wanted.
    high = np.log(np.maximum(2 * spectrum.trace / least, (2 * spectrum.trace + 2 * ridge) / n)) + 1
    place = np.clip(np.searchsorted(np.cumsum(counts), least), 0, len(positive) - 1)
    log_gamma = np.clip(np.log(positive[place] + ridge / n), low + 1e-3, high)
    active = np.arange(len(n))
    for _ in range(MOST_STEPS):
        gamma = np.exp(log_gamma[active])
        inverse = 1 / (lam + gamma[:, None])
        z = inverse @ mass
        falls = gamma * (np.square(inverse) @ mass)
        wanted, _, rises = _wanted(n[active], k[active], ridge[active], gamma)
        inside = wanted > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            over = np.where(inside, np.log(z / wanted), np.inf)
            step = over / (falls / z + rises / wanted)
        now = log_gamma[active]
        low[active] = np.where(over > 0, now, low[active])
        high[active] = np.where(over <= 0, now, high[active])
        new = now + step
        bad = ~inside | ~np.isfinite(new) | (new < low[active]) | (new > high[active])
        new = np.where(bad, (low[active] + high[active]) / 2, new)
        log_gamma[active] = new
        # Newton's error is squared by each step: after one of 1e-9 nothing is left to gain.
        moving = (np.abs(new - now) > 1e-9) & (high[active] - low[active] > 1e-14)
        active = active[moving]
        if not len(active):
            break
    return np.exp(log_gamma)


def _evaluate(
    spectrum: Spectrum, n: np.ndarray, k: np.ndarray, ridge: np.ndarray, gamma: np.ndarray,
    gap: np.ndarray,
) -> Risk:
    """The formulas at the head of the file; gap is min(n, k) - z."""
    left, of_noise, z = _weights(spectrum, n, k, gamma, gap)
    samples_left = n - np.minimum(n, k) + gap
    with np.errstate(invalid="ignore"):
        test = (left @ spectrum.power + spectrum.noise) * of_noise
        kappa = np.where(np.isinf(k), gamma, gamma * (k - np.minimum(n, k) + gap) / k)
        train = np.where(samples_left > 0, (samples_left / n) ** 2 * test, 0.0)
    return Risk(n, k, ridge, test, train, gamma, kappa, z)


def _weights(
    spectrum: Spectrum, n: np.ndarray, k: np.ndarray, gamma: np.ndarray, gap: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share [G, M] of each mode's power that is left, by how much noise is enlarged [G], and z."""
    lam, counts = spectrum.eigenvalues, spectrum.counts
    learned = lam / (lam + gamma[:, None])
    z, between = learned @ counts, (learned * (1 - learned)) @ counts
    least = np.minimum(n, k)
    features_left = np.where(np.isinf(k), np.inf, k - least + gap)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = np.where(np.isinf(k), 1.0, features_left / (features_left + between))
        of_noise = n / (n - least + gap + rho * between)
    return (1 - learned) * (1 - rho[:, None] * learned), of_noise, z


def _optimum(spectrum: Spectrum, n: float, k: float) -> Risk:
    """Grid over log gamma from the one of ridge 0 upward, then zoomed."""
    least = min(n, k)
    positive = spectrum.eigenvalues[spectrum.eigenvalues > 0]
    if least < spectrum.modes:
        bottom = float(np.log(_solve(spectrum, *(np.array([v]) for v in (n, k, 0.0)))[0]))
    else:
        bottom = float(np.log(positive[-1])) - 40
    low, high = bottom, max(bottom, float(np.log(spectrum.trace))) + 25
    points = 129
    while True:
        grid = np.linspace(low, high, points)
        risk = _along(spectrum, n, k, np.exp(grid), floor=bottom)
        best = int(np.argmin(risk.test))
        spacing = grid[1] - grid[0]
        if spacing < 1e-6:
            return risk[best]
        low, high = max(bottom, grid[best] - spacing), grid[best] + spacing
        points = 17


def _along(
    spectrum: Spectrum, n: float, k: float, gamma: np.ndarray, floor: float
) -> Risk:
    """Risks for given gamma, the ridges following from them; at `floor` the ridge is 0."""
    parts = []
    for (some,) in _chunks(len(spectrum), gamma):
        z = (spectrum.eigenvalues / (spectrum.eigenvalues + some[:, None])) @ spectrum.counts
        gap = np.maximum(min(n, k) - z, 0.0)
        if min(n, k) < spectrum.modes:
            gap = np.where(np.log(some) <= floor + 1e-12, 0.0, gap)
        features = 1.0 if np.isinf(k) else (k - min(n, k) + gap) / k
        ridge = some * (n - min(n, k) + gap) * features
        of_n, of_k = np.full_like(some, n), np.full_like(some, k)
        risk = _evaluate(spectrum, of_n, of_k, ridge, some, gap)
        parts.append(risk)
    return Risk(*(
        np.concatenate([getattr(p, name) for p in parts]) for name in Risk.__dataclass_fields__
    ))


# ---- grids ---------------------------------------------------------------------------------------


def _grid(*values: Numbers) -> list[np.ndarray]:
    """n, k and ridge broadcast against each other, checked."""
    try:
        n, k, ridge = np.broadcast_arrays(*(np.asarray(v, dtype=float) for v in values))
    except (TypeError, ValueError) as error:
        raise DataError(f"n, k and ridge don't fit together: {error}",
                        expected="numbers, or arrays that broadcast") from None
    wrong = ~(n > 0) | np.isinf(n) | ~(k > 0)
    if wrong.any():
        raise DataError(f"n = {n[wrong][0]:g}, k = {k[wrong][0]:g}", expected="n and k above 0",
                        mend="k = inf is kernel regression")
    wrong = ~(ridge >= 0) | np.isinf(ridge)
    if wrong.any():
        raise DataError(f"ridge = {ridge[wrong][0]:g}", expected="0 or more, finite",
                        mend="it is added to the kernel matrix, undivided by n")
    return [np.array(a) for a in (n, k, ridge)]


def _check_modes(
    spectrum: Spectrum, n: np.ndarray, k: np.ndarray, ridge: np.ndarray
) -> None:
    wanted = np.minimum(n, k)[ridge == 0]
    if wanted.size and wanted.max() >= spectrum.modes:
        raise DataError(
            f"{wanted.max():g} modes are to be learned without a ridge; the spectrum has "
            f"{spectrum.modes:g}",
            expected="min(n, k) below the number of modes, or a ridge above 0",
            mend="a spectrum from N points says nothing on n >= N: extend it (see `estimate`)",
        )


def _chunks(modes: int, *arrays: np.ndarray) -> list[list[np.ndarray]]:
    """The points in parts of bounded memory."""
    size = max(1, CELLS // modes)
    return [[a[i : i + size] for a in arrays] for i in range(0, len(arrays[0]), size)]
