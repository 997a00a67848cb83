"""Short-time objective intelligibility (STOI), and its extended form.

>>> speech = np.random.default_rng(0).normal(size=16_000)
>>> round(float(stoi(speech, speech, 16_000)), 6)
1.0

Sources: Taal, Hendriks, Heusdens, Jensen, IEEE TASLP 19 (2011); Jensen and Taal, IEEE/ACM TASLP 24
(2016), extended; computed by the package `pystoi`.
"""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

from passband.errors import ConfigError, MissingExtraError
from passband.parts.metrics.arrays import Array, Signal, one_by_one

SHORTEST = 0.39  # seconds: 30 frames of 256 samples, 128 apart, at 10 kHz, make one value


def stoi(
    reference: Signal, estimate: Signal, sample_rate: int, extended: bool = False
) -> Signal:
    """How much of the speech can be understood, up to 1: [..., L], [..., L] -> [...].

    >>> speech = torch.randn(2, 16_000)
    >>> stoi(speech, speech + torch.randn(2, 16_000), 16_000, extended=True).shape
    torch.Size([2])

    sample_rate  Hz; resampled to 10 kHz inside
    extended     correlates whole spectra too, for noise that comes and goes

    NaN where less than 0.4 s of the reference is speech, as in silence (the package says 1e-5).
    Raises `ConfigError` for the rate, `DataError` for unequal shapes and NaN, `MissingExtraError`
    without the package.
    """
    if sample_rate < 1:
        raise ConfigError(f"sample rate {sample_rate}", expected="above 0 Hz")
    package = _package()

    def measure(clean: Array, found: Array) -> float:
        if len(clean) < SHORTEST * sample_rate or not clean.any():
            return math.nan  # the package fails, or says 0
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Not enough STFT frames")
            try:
                return float(package.stoi(clean, found, sample_rate, extended=extended))
            except RuntimeWarning:
                return math.nan

    return one_by_one(measure, reference, estimate)


def _package() -> Any:
    try:
        return importlib.import_module("pystoi")
    except ImportError as error:
        raise MissingExtraError("pystoi", "speech") from error
