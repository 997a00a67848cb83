"""Signal-to-distortion ratios against torchmetrics and closed forms."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.audio import (
    scale_invariant_signal_distortion_ratio,
    signal_noise_ratio,
)

from passband.errors import DataError
from passband.parts.metrics.sdr import si_sdr, si_sdr_improvement, snr

RANDOM = torch.Generator().manual_seed(0)
TARGET = torch.randn(4, 3, 4000, generator=RANDOM, dtype=torch.float64) + 0.3
NOISE = torch.randn(4, 3, 4000, generator=RANDOM, dtype=torch.float64)


@pytest.mark.parametrize("zero_mean", [True, False])
@pytest.mark.parametrize("level", [1e-3, 0.3, 10.0])
def test_against_torchmetrics(zero_mean, level):
    estimate = 0.7 * TARGET + level * NOISE
    theirs = scale_invariant_signal_distortion_ratio(estimate, TARGET, zero_mean)
    assert torch.allclose(si_sdr(estimate, TARGET, zero_mean), theirs, atol=1e-6)
    theirs = signal_noise_ratio(estimate, TARGET, zero_mean)
    assert torch.allclose(snr(estimate, TARGET, zero_mean), theirs, atol=1e-6)


def test_closed_form():
    """Orthogonal distortion of a known energy: the ratio is that of energies."""
    n = np.arange(1000)
    target, distortion = np.sin(2 * np.pi * 5 * n / 1000), np.sin(2 * np.pi * 7 * n / 1000)
    assert si_sdr(3 * target + 0.03 * distortion, target) == pytest.approx(40, abs=1e-6)
    assert snr(target + 0.1 * distortion, target) == pytest.approx(20, abs=1e-6)
    assert si_sdr_improvement(
        target + 0.1 * distortion, target, target + distortion
    ) == pytest.approx(20, abs=1e-6)


def test_arrays_and_shapes():
    estimate = TARGET + 0.1 * NOISE
    value = si_sdr(estimate.numpy(), TARGET.numpy())
    assert isinstance(value, np.ndarray)
    assert np.allclose(value, si_sdr(estimate, TARGET))
    assert value.shape == (4, 3)
    gain = si_sdr_improvement(estimate, TARGET, TARGET.sum(1))
    mixture = TARGET.sum(1, keepdim=True).expand_as(TARGET)
    assert torch.equal(gain, si_sdr_improvement(estimate, TARGET, mixture))
    assert si_sdr(estimate.float(), TARGET.float()).dtype == torch.float32


def test_silence_is_finite_and_bad():
    silence, voice = torch.zeros(1000), torch.randn(1000, generator=RANDOM)
    assert si_sdr(silence, voice) == pytest.approx(-80)
    assert si_sdr(voice, silence) <= -80
    assert si_sdr(silence, silence) == pytest.approx(-80)
    assert si_sdr(voice, voice) > 80
    estimate = torch.zeros(1000, requires_grad=True)
    si_sdr(estimate, voice).backward()
    assert estimate.grad.isfinite().all()


def test_gradients():
    estimate = (TARGET + NOISE)[:2, :2, :20].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: si_sdr(e, TARGET[:2, :2, :20]), estimate)
    assert torch.autograd.gradcheck(lambda e: snr(e, TARGET[:2, :2, :20], True), estimate)


def test_shapes_that_would_broadcast_are_refused():
    for shape in ((4, 1, 4000), (3, 4000), (4, 3, 3999)):
        with pytest.raises(DataError, match="equal shapes"):
            si_sdr(torch.ones(shape), TARGET)
