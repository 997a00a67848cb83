"""The filter bank by its definition, by its promise (the signal comes back), and by bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import signal

from passband.errors import ConfigError, DataError
from passband.parts.signal.pqmf import PQMF, prototype


def snr(x: torch.Tensor, y: torch.Tensor) -> float:
    x, y = x[..., 100:-100], y[..., 100:-100]
    return float(10 * torch.log10(x.square().mean() / (x - y).square().mean()))


def test_the_prototype_is_scipys_windowed_low_pass() -> None:
    expected = signal.firwin(63, 0.142, window=("kaiser", 9.0), scale=False)
    np.testing.assert_allclose(prototype(), expected, atol=1e-12)
    assert prototype()[31] == pytest.approx(0.142)


def test_bands_are_filtered_and_thinned() -> None:
    x = torch.randn(2, 403)
    found = PQMF().split(x)
    assert found.shape == (2, 4, 101)
    n = np.arange(63) - 31
    for k in range(4):
        h = 2 * prototype() * np.cos((2 * k + 1) * np.pi / 8 * n + (-1) ** k * np.pi / 4)
        whole = signal.correlate(np.pad(x.numpy(), ((0, 0), (31, 31))), h[None], mode="valid")
        np.testing.assert_allclose(found[:, k].numpy(), whole[:, ::4], atol=1e-5)


def test_synthesis_is_filtering_of_bands_with_zeros_between() -> None:
    bands = torch.randn(1, 4, 50)
    n, expected = np.arange(63) - 31, 0
    for k in range(4):
        g = 2 * prototype() * np.cos((2 * k + 1) * np.pi / 8 * n - (-1) ** k * np.pi / 4)
        sparse = np.zeros(200)
        sparse[::4] = 4 * bands[0, k].numpy()
        expected = expected + signal.correlate(np.pad(sparse, 31), g, mode="valid")
    np.testing.assert_allclose(PQMF().join(bands)[0].numpy(), expected, atol=1e-5)


def test_a_signal_comes_back() -> None:
    bank, generator = PQMF(), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4000, generator=generator)
    assert snr(noise, bank.join(bank.split(noise))) > 55
    t = torch.arange(4000)
    for frequency in (0.003, 0.12, 0.125, 0.25, 0.3, 0.375, 0.49):
        tone = torch.sin(2 * torch.pi * frequency * t)[None]
        assert snr(tone, bank.join(bank.split(tone))) > 55, frequency
    # With another cutoff neighbours don't cancel any more: the figures above are the prototype's.
    other = PQMF(cutoff=0.2)
    assert snr(noise, other.join(other.split(noise))) < 20


def test_a_tone_is_in_its_band() -> None:
    t = torch.arange(4000)
    for k in range(4):
        tone = torch.sin(2 * torch.pi * (k + 0.5) / 8 * t)[None]
        energy = PQMF().split(tone).square().sum(-1)[0]
        assert float(energy[k] / energy.sum()) > 0.999


def test_an_input_reaches_where_it_is_said_to() -> None:
    bank, bands = PQMF(), torch.zeros(1, 4, 60)
    bands[..., 30] = 1
    where = bank.join(bands)[0].nonzero().flatten()
    low, high = int(where[0]), int(where[-1])
    assert bank.reach.inputs(low, low)[1] >= 30 >= bank.reach.inputs(high, high)[0]
    assert high - low <= 62


def test_wrong_input_is_named() -> None:
    for options in ({"bands": 0}, {"taps": 61}, {"cutoff": 1.0}):
        with pytest.raises(ConfigError, match="even number of taps"):
            PQMF(**options)
    with pytest.raises(DataError, match=r"\(2, 1, 9\)"):
        PQMF().split(torch.zeros(2, 1, 9))
    with pytest.raises(DataError, match=r"\[B, 4, n\]"):
        PQMF().join(torch.zeros(2, 3, 9))
