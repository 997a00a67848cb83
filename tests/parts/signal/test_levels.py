"""Levels: against a formulation in two steps, and where there is nothing to measure."""

import numpy as np
import pytest
import torch

from passband.errors import DataError
from passband.parts.signal.levels import active_rms, decibels, normalised, rms

X = torch.randn(3, 8000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X * torch.linspace(0, 1, 8000) ** 3


def test_two_steps_in_numpy():
    """Scale to the level; then again by the samples above the mean power."""
    for row, found in zip(X.numpy(), normalised(X, -25.0)[0], strict=True):
        once = row * 10 ** (-25 / 20) / np.sqrt((row**2).mean())
        loud = once[once**2 > (once**2).mean()]
        twice = once * 10 ** (-25 / 20) / np.sqrt((loud**2).mean())
        assert np.allclose(found, twice, rtol=1e-4)


def test_levels():
    assert np.allclose(rms(X), np.sqrt((X.numpy() ** 2).mean(-1)))
    assert decibels(active_rms(normalised(X, -30.0)[0])) == pytest.approx([-30] * 3, abs=1e-3)
    tone = torch.sin(2 * torch.pi * 100 * torch.arange(8000) / 8000)
    assert decibels(rms(tone)) == pytest.approx(-3.0103, abs=1e-3)
    # Above half power a sine spends half the time, where its power is 1/2 + 1/pi.
    assert active_rms(tone) == pytest.approx(np.sqrt(0.5 + 1 / np.pi), abs=2e-2)
    assert active_rms(torch.full((10,), 0.5)) == 0.5


def test_factor_and_reference():
    y, factor = normalised(X)
    assert factor.shape == (3, 1)
    assert torch.allclose(y / factor, X)
    z, same = normalised(2 * X, reference=X)
    assert torch.equal(same, factor)
    assert torch.allclose(z, 2 * y)


def test_silence_and_nothing():
    y, factor = normalised(torch.zeros(2, 100))
    assert (y == 0).all()
    assert factor.isfinite().all()
    with pytest.raises(DataError, match="empty"):
        rms(torch.zeros(2, 0))
