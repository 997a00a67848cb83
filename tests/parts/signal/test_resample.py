"""Resampling: length, timing, what passes and what doesn't."""

import math

import numpy as np
import pytest
import torch

from passband.errors import ConfigError, DataError
from passband.parts.signal.resample import resample, resampled, resampled_length

RATES = [(22_050, 16_000), (22_050, 8_000), (16_000, 48_000), (22_050, 15_625), (8_000, 44_100)]


@pytest.mark.parametrize(("source", "target"), RATES)
def test_length(source, target):
    for length in (1, 2, 3, 100, 441, 1000, 22_050, 22_051):
        expected = math.ceil(length * target / source)
        assert resample(np.ones(length), source, target).shape == (expected,)
        assert resampled_length(length, source, target) == expected


@pytest.mark.parametrize(("source", "target"), RATES)
def test_a_tone_stays_in_time(source, target):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    error = resample(tone(source), source, target) - tone(target)
    edge = target // 20
    assert np.abs(error[edge:-edge]).max() < 2e-6


def test_what_the_lower_rate_cannot_hold_is_gone():
    x = np.sin(2 * np.pi * 5_000 * np.arange(16_000) / 16_000)
    assert np.abs(resample(x, 16_000, 8_000)[200:-200]).max() < 1e-4


def test_axes_kinds_and_types():
    x = np.random.default_rng(0).normal(size=(2, 3, 500)).astype(np.float32)
    expected = np.stack([[resample(row, 500, 300) for row in part] for part in x])
    assert expected.shape == (2, 3, 300)
    assert np.array_equal(resample(x, 500, 300), expected)
    moved = resample(np.moveaxis(x, -1, 1), 500, 300, axis=1)
    assert np.array_equal(np.moveaxis(moved, 1, -1), expected)
    tensor = resample(torch.from_numpy(x).requires_grad_(), 500, 300)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), expected)
    assert resample(x.astype(np.float64), 500, 300).dtype == np.float64
    assert resample(x, 16_000, 16_000) is x


@pytest.mark.parametrize(("source", "target"), RATES)
@pytest.mark.parametrize("size", [1, 77, 5000])
def test_block_by_block_is_the_whole(source, target, size):
    x = torch.randn(2, 3, 2003, generator=torch.Generator().manual_seed(0))
    pieces = list(resampled(x.split(size, dim=-1), source, target))
    assert torch.allclose(torch.cat(pieces, -1), resample(x, source, target), atol=1e-6)


def test_blocks_of_any_kind():
    assert list(resampled([], 16_000, 8_000)) == []
    x = torch.ones(3)
    assert next(resampled([x], 8_000, 8_000)) is x
    pieces = resampled([torch.zeros(0), torch.ones(100), torch.zeros(0)], 16_000, 8_000)
    assert torch.cat(list(pieces)).shape == (50,)
    # Nothing is held back but the filter's own length.
    stream = resampled((torch.ones(1, 16_000) for _ in range(3)), 16_000, 8_000)
    assert next(stream).shape[-1] > 7_000


def test_what_is_refused():
    with pytest.raises(DataError, match="int16"):
        resample(np.ones(10, dtype=np.int16), 16_000, 8_000)
    with pytest.raises(DataError, match="empty"):
        resample(np.ones((2, 0)), 16_000, 8_000)
    with pytest.raises(ConfigError, match="target sample rate 0"):
        resample(np.ones(10), 16_000, 0)
    with pytest.raises(ConfigError, match="source"):
        resample(np.ones(10), 16_000.5, 8_000)
