"""The errors of a known spectrum as a table: every n with every k, tuned and without a ridge.

>>> spectrum = Spectrum.powerlaw(1.5, 1.5, modes=1000, noise=0.5)
>>> table(spectrum).splitlines()[:2]
['n,k,ridge,test,train,test_without_ridge', '2,2,8.61...,2.88...,1.92...,inf']
"""

from __future__ import annotations

import warnings

import numpy as np

from passband.dynamics.rf_eigen.model import predict_risk, risk_surface
from passband.dynamics.rf_eigen.spectrum import Spectrum
from passband.errors import DataError, PassbandWarning

MOST = 2**16  # samples and features


def table(spectrum: Spectrum) -> str:
    """CSV over powers of two below half of the modes, features up to infinitely many.

    Raises `DataError` for a spectrum of fewer than 8 modes.
    """
    limit = min(MOST, spectrum.modes / 2)
    sizes = [2**p for p in range(1, 17) if 2**p <= limit]
    if len(sizes) < 2:
        raise DataError(f"{spectrum.modes:g} modes", expected="at least 8")
    short = spectrum.collapsed() if len(spectrum) > 20_000 else spectrum
    tuned = risk_surface(short, sizes, [*sizes, np.inf])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PassbandWarning)  # n = k: inf is what the table says
        bare = predict_risk(short, tuned.n, tuned.k, 0.0)
    columns = (tuned.n, tuned.k, tuned.ridge, tuned.test, tuned.train, bare.test)
    rows = zip(*(column.ravel() for column in columns), strict=True)
    lines = [",".join(f"{value:.10g}" for value in row) for row in rows]
    return "\n".join(["n,k,ridge,test,train,test_without_ridge", *lines, ""])
