"""Kernels of the Fourier transform against the transform; learned kernels learn."""

import pytest
import torch

from passband.errors import DataError
from passband.parts.signal.stft import STFT
from passband.parts.signal.windowed import KernelSTFT


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SIZES = [
    (640, 320, "sqrt_hann", None, False), (16, 4, "hann", None, True), (31, 7, "hann", None, True),
    (512, 100, "hann", 400, True), (64, 48, "sqrt_hann", None, False),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("length", [1, 40, 2000, 2001])
def test_kernels_are_the_transform(sizes, length):
    kernels, stft = KernelSTFT(*sizes), STFT(*sizes)
    x = normal(2, 3, length)
    spectrum = stft(x)
    parts = kernels(x)
    assert parts.shape == (2, *spectrum.shape)
    assert torch.allclose(torch.complex(parts[0], parts[1]), spectrum, atol=1e-4)
    given = torch.complex(normal(*spectrum.shape), normal(*spectrum.shape, seed=1))
    parts = torch.stack([given.real, given.imag])
    for cut in (None, length):
        expected = stft.inverse(given, cut)
        assert kernels.inverse(parts, cut).shape == expected.shape
        # Ends that hardly any window covers are large and without meaning.
        inside = slice(320, -320) if len(expected) > 640 else slice(None)
        assert torch.allclose(
            kernels.inverse(parts, cut)[..., inside], expected[..., inside], rtol=1e-3, atol=1e-3
        )


def test_any_length_comes_back():
    stft = KernelSTFT(64, 16, "hann")
    for length in (1, 20, 33, 500):
        x = normal(2, length, dtype=torch.float32)
        assert torch.allclose(stft.inverse(stft(x), length), x, atol=1e-5)


def test_learned_kernels():
    torch.manual_seed(0)
    stft = KernelSTFT(32, 16, center=False, trainable=True)
    assert {name for name, _ in stft.named_parameters()} == {"analysis", "synthesis"}
    assert not KernelSTFT(32, 16).state_dict()
    x = normal(4, 320, dtype=torch.float32)
    optimizer = torch.optim.Adam(stft.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = (stft.inverse(stft(x)) - 2 * x)[:, 16:-16].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_gradients():
    stft = KernelSTFT(16, 4, "hann").double()
    x = normal(1, 30).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stft.inverse(2 * stft(x), 30), x)


def test_what_is_refused():
    with pytest.raises(DataError, match="empty"):
        KernelSTFT(64, 16)(torch.zeros(2, 0))
    with pytest.raises(DataError, match=r"\[2, \.\.\., 33, T\]"):
        KernelSTFT(64, 16).inverse(torch.zeros(33, 5))
