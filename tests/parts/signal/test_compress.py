"""Amplitude compression: its closed form, its inverse, its gradient."""

import numpy as np
import pytest
import torch

from passband.errors import ConfigError
from passband.parts.signal.compress import compress, decompress

SPECTRUM = torch.randn(257, 30, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.15), (0.667, 0.065), (1.0, 1.0), (2.0, 3.0)])
def test_closed_form_and_inverse(alpha, beta):
    c = SPECTRUM.numpy()
    expected = beta * np.abs(c) ** alpha * np.exp(1j * np.angle(c))
    small = compress(SPECTRUM, alpha, beta)
    assert np.allclose(small, expected, rtol=1e-12)
    assert torch.allclose(decompress(small, alpha, beta), SPECTRUM, rtol=1e-10)


def test_all_sizes_come_back():
    magnitudes = torch.logspace(-18, 6, 49, dtype=torch.float64) * (0.6 - 0.8j)
    for dtype, tolerance in ((torch.complex128, 1e-10), (torch.complex64, 1e-4)):
        c = torch.cat([magnitudes, torch.zeros(1)]).to(dtype)
        back = decompress(compress(c, 0.5, 0.15), 0.5, 0.15)
        assert torch.allclose(back, c, rtol=tolerance, atol=0)


def test_real_signals_keep_their_sign():
    assert torch.allclose(compress(torch.tensor([-4.0, 9.0]), 0.5, 1.0), torch.tensor([-2.0, 3.0]))


def test_gradients():
    c = SPECTRUM[:3, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: compress(c, 0.5, 0.15), c)
    assert torch.autograd.gradcheck(lambda c: decompress(c, 0.5, 0.15), c)
    zero = torch.zeros(4, dtype=torch.complex64, requires_grad=True)
    decompress(compress(zero, 0.5, 0.15), 0.5, 0.15).real.sum().backward()
    assert zero.grad.isfinite().all()


def test_what_is_refused():
    with pytest.raises(ConfigError, match="alpha 0"):
        compress(SPECTRUM, 0.0, 1.0)
    with pytest.raises(ConfigError, match="beta -1"):
        decompress(SPECTRUM, 0.5, -1.0)
