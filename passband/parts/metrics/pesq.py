"""Perceptual evaluation of speech quality (PESQ), as a mean opinion score from 1.0 to 4.6.

>>> silence = np.zeros(16_000)
>>> float(pesq(silence, silence, 16_000))
nan

Sources: ITU-T P.862.1 (narrow band) and P.862.2 (wide band), computed by the package `pesq`.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

from passband.errors import ConfigError, MissingExtraError
from passband.parts.metrics.arrays import Array, Signal, one_by_one

MODES = {8_000: "nb", 16_000: "wb"}  # sample rate in Hz -> band


def pesq(reference: Signal, estimate: Signal, sample_rate: int, mode: str | None = None) -> Signal:
    """Quality of an estimate beside its clean reference: [..., L], [..., L] -> [...].

    >>> speech = np.random.default_rng(0).normal(size=(2, 16_000)) * np.hanning(16_000)
    >>> pesq(speech, speech, 16_000).round(2)
    array([4.64, 4.64])

    sample_rate  8000 Hz: narrow band; 16000 Hz: wide band; others raise `ConfigError`
    mode         `nb` asks for narrow band at 16000 Hz

    NaN where the measure is not defined: no speech found in the reference or in the estimate, as
    in silence, or less than a quarter of a second. The level doesn't matter. One signal at a
    time, about 0.05 s of work for a second of sound.
    Raises `DataError` for unequal shapes and NaN, `MissingExtraError` without the package.
    """
    if sample_rate not in MODES:
        raise ConfigError(
            f"PESQ at {sample_rate} Hz", expected="8000 or 16000 Hz",
            mend="resample both signals to 16000 Hz",
        )
    band = MODES[sample_rate] if mode is None else mode
    if band not in ("nb", MODES[sample_rate]):
        raise ConfigError(
            f"PESQ in mode {band!r} at {sample_rate} Hz", expected="nb, or wb at 16000 Hz",
        )
    package = _package()

    def measure(clean: Array, found: Array) -> float:
        if not clean.any() or not found.any():  # the package divides by the peak
            return math.nan
        try:
            return float(package.pesq(sample_rate, clean, found, band))
        except (package.NoUtterancesError, package.BufferTooShortError):
            return math.nan

    return one_by_one(measure, reference, estimate)


def _package() -> Any:
    try:
        return importlib.import_module("pesq")
    except ImportError as error:
        raise MissingExtraError("pesq", "speech") from error
