"""FIR resampling of maps against zero insertion and convolution written out."""

import numpy as np
import pytest
import scipy.signal
import torch

from passband.errors import ConfigError, DataError
from passband.parts.fir_resample import KERNEL, fir_down, fir_up


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def up(x, kernel):
    """Zeros between, then the full convolution cut to twice the size."""
    row = 2 * np.array(kernel) / sum(kernel)
    for axis in range(2, x.ndim):
        shape = list(x.shape)
        shape[axis] *= 2
        spread = np.zeros(shape)
        np.moveaxis(spread, axis, -1)[..., ::2] = np.moveaxis(x, axis, -1)
        cut = len(kernel) // 2 - 1
        x = np.apply_along_axis(
            lambda s, cut=cut: np.convolve(s, row)[cut : cut + len(s)], axis, spread
        )
    return x


def down(x, kernel):
    row = np.array(kernel) / sum(kernel)
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        start = len(kernel) // 2  # of the full convolution: as much before as after
        x = np.apply_along_axis(
            lambda s, a=start, n=size: np.convolve(s, row)[a::2][: n // 2], axis, x
        )
    return x


@pytest.mark.parametrize("kernel", [KERNEL, (1.0, 1.0), (1, 5, 10, 10, 5, 1), (1.0, 2.0, 3.0, 4.0)])
@pytest.mark.parametrize("shape", [(2, 3, 16, 10), (1, 1, 2, 2), (2, 5, 12), (1, 8, 7, 9)])
def test_against_convolution(kernel, shape):
    x = normal(*shape, dtype=torch.float64)
    # Convolution turns its kernel round; a layer's convolution doesn't.
    assert np.allclose(fir_down(x, kernel), down(x.numpy(), kernel[::-1]))
    assert np.allclose(fir_up(x, kernel), up(x.numpy(), kernel))


def test_against_upfirdn():
    x = normal(1, 1, 50, dtype=torch.float64)
    row = np.array(KERNEL) / 8
    theirs = scipy.signal.upfirdn(2 * row, x[0, 0].numpy(), up=2)[1:101]
    assert np.allclose(fir_up(x)[0, 0], theirs)
    theirs = scipy.signal.upfirdn(row, np.pad(x[0, 0].numpy(), 1), down=1)[3:][::2][:25]
    assert np.allclose(fir_down(x)[0, 0], theirs)


def test_the_two_are_adjoint():
    """<down x, y> = <x, up y> / 4: one is the other's transpose, but for the gain."""
    x, y = normal(1, 2, 8, 12, dtype=torch.float64), normal(1, 2, 4, 6, seed=1, dtype=torch.float64)
    assert torch.allclose((fir_down(x) * y).sum(), (x * fir_up(y)).sum() / 4)


def test_layout_and_gradients():
    for x in (normal(2, 8, 6, 4), normal(2, 8, 6, 4).contiguous(memory_format=torch.channels_last)):
        for y in (fir_up(x), fir_down(x)):
            assert y.stride(1) == (1 if x.stride(1) == 1 else y.shape[2] * y.shape[3])
    x = normal(1, 2, 4, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(fir_up, x)
    assert torch.autograd.gradcheck(fir_down, x)


def test_what_is_refused():
    for kernel in ((1.0, 2.0, 1.0), (), (1.0, -1.0)):
        with pytest.raises(ConfigError, match="kernel"):
            fir_up(normal(1, 1, 4, 4), kernel)
    with pytest.raises(DataError, match=r"\[B, C, L\]"):
        fir_down(normal(4, 4))
    with pytest.raises(DataError, match="halved"):
        fir_down(normal(1, 1, 1, 4))
