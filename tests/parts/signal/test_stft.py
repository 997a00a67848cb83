"""The short-time Fourier transform against torch's, SciPy's and its definition."""

import numpy as np
import pytest
import scipy.signal
import torch

from passband.errors import ConfigError, DataError, UnknownNameError
from passband.parts.signal.stft import STFT, hann, overlap_add, sqrt_hann


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SIZES = [
    (640, 160, 640), (510, 128, 510), (512, 100, 400), (16, 4, 16), (31, 7, 31), (2048, 441, 2048),
]


@pytest.mark.parametrize(("n_fft", "hop", "win"), SIZES)
def test_centred_is_torch_stft(n_fft, hop, win):
    x = normal(3, 5000)
    ours = STFT(n_fft, hop, win_length=win)
    window = torch.from_numpy(scipy.signal.get_window("hann", win, fftbins=True))
    theirs = torch.stft(
        x, n_fft, hop, win, window, center=True, pad_mode="reflect", return_complex=True
    )
    assert torch.allclose(ours(x), theirs, atol=1e-5)  # our window is kept in single precision
    assert theirs.shape[-1] == ours.frames(5000) == 1 + 5000 // hop
    if n_fft % 2 == 0:
        back = torch.istft(theirs, n_fft, hop, win, window, center=True)
        assert torch.allclose(ours.inverse(theirs), back, atol=1e-5)


def test_not_centred_is_scipy():
    x = normal(4000)
    stft = STFT(512, 128, center=False)
    reference = scipy.signal.ShortTimeFFT(hann(512), 128, fs=1.0, phase_shift=None)
    # SciPy numbers frames by their middle: number 2 begins at 0.
    theirs = reference.stft(x.numpy(), p0=2, p1=2 + stft.frames(4000))
    assert np.allclose(stft(x), theirs, atol=1e-5)


def test_one_bin_by_its_definition():
    x = normal(300)
    f, t, n = 5, 3, np.arange(64)
    frame = np.sin(np.pi * n / 64) * x.numpy()[t * 32 + n]
    expected = (frame * np.exp(-2j * np.pi * f * n / 64)).sum()
    got = STFT(64, 32, window="sqrt_hann", center=False)(x)[f, t]
    assert abs(complex(got) - expected) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 5, 256, 257, 300, 511, 512, 513, 4096, 4097, 4223])
@pytest.mark.parametrize("window", ["hann", "sqrt_hann"])
def test_any_length_comes_back(length, window):
    stft = STFT(512, 128, window=window)
    x = normal(2, 3, length)
    spectrum = stft(x)
    assert spectrum.shape == (2, 3, 257, stft.frames(length))
    back = stft.inverse(spectrum, length)
    assert back.shape == x.shape
    assert torch.allclose(back, x, atol=1e-10)


def test_single_precision_comes_back():
    x = normal(2, 16_001, dtype=torch.float32)
    stft = STFT(640, 160)
    assert torch.allclose(stft.inverse(stft(x), 16_001), x, atol=1e-5)


def test_not_centred_comes_back_where_windows_cover():
    stft = STFT(640, 320, window="sqrt_hann", center=False)
    x = normal(2, 6400)
    back = stft.inverse(stft(x))
    assert back.shape[-1] == (stft.frames(6400) - 1) * 320 + 640 == 6400
    assert torch.allclose(back[:, 320:-320], x[:, 320:-320], atol=1e-6)
    weight = np.zeros(6400)
    for t in range(stft.frames(6400)):
        weight[t * 320 : t * 320 + 640] += sqrt_hann(640) ** 2
    expected = x * torch.from_numpy(weight / (weight + 1e-8))
    assert torch.allclose(back, expected, atol=1e-6)


def test_frames_beyond_and_short_of_the_length():
    stft = STFT(64, 16)
    x = normal(200)
    longer, shorter = stft.inverse(stft(x), 240), stft.inverse(stft(x), 50)
    assert torch.allclose(shorter, x[:50], atol=1e-10)
    assert longer.shape == (240,)
    assert (longer[224:] == 0).all()  # no frame reaches there
    assert STFT(640, 320, center=False).frames(10) == 1
    assert STFT(640, 320, center=False)(x).shape == (321, 1)


def test_head_of_a_vocoder_gives_whole_hops():
    """T + 1 frames of 16 with hop 4 are T * 4 samples, as torch has it."""
    for frames in range(1, 41):
        spectrum = torch.polar(normal(9, frames + 1).abs(), normal(9, frames + 1, seed=1))
        got = STFT(16, 4).inverse(spectrum)
        window = torch.from_numpy(hann(16))
        assert got.shape == (4 * frames,)
        assert torch.allclose(got, torch.istft(spectrum, 16, 4, window=window), atol=1e-5)


@pytest.mark.parametrize(("size", "hop"), [(8, 3), (8, 8), (9, 4), (4, 1)])
def test_overlap_add_by_hand(size, hop):
    frames = normal(2, 6, size)
    expected = torch.zeros(2, 5 * hop + size, dtype=torch.float64)
    for t in range(6):
        expected[:, t * hop : t * hop + size] += frames[:, t]
    assert torch.allclose(overlap_add(frames, hop), expected)
    frames.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: overlap_add(x, hop).square(), frames)
    assert torch.autograd.gradgradcheck(lambda x: overlap_add(x, hop).square(), frames)


def test_gradients():
    stft = STFT(16, 4).double()
    x = normal(2, 40).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: stft.inverse(stft(x) * (1 + 2j), 40), x)
    framed = STFT(16, 8, window="sqrt_hann", center=False).double()
    assert torch.autograd.gradcheck(lambda x: framed.inverse(framed(x) * (1 + 2j)), x)


def test_inference_and_training_take_turns():
    """What is kept from a call without gradients serves one with them."""
    stft, x = STFT(64, 16), normal(100, dtype=torch.float32)
    with torch.inference_mode():
        stft.inverse(stft(x), 100)
    x.requires_grad_()
    stft.inverse(stft(x), 100).sum().backward()
    assert torch.allclose(x.grad, torch.ones(100), atol=1e-5)
    assert stft.inverse(stft(x.double()), 100).dtype == torch.float64


def test_nothing_is_saved_and_half_precision_works():
    stft = STFT(64, 16)
    assert not stft.state_dict()
    assert stft(torch.ones(100, dtype=torch.bfloat16)).dtype == torch.complex64
    with torch.device("meta"):
        assert STFT(64, 16).window.device.type == "cpu"


def test_what_is_refused():
    with pytest.raises(ConfigError, match="hop_length 65"):
        STFT(64, 65)
    with pytest.raises(ConfigError, match="win_length 65"):
        STFT(64, 16, win_length=65)
    with pytest.raises(UnknownNameError, match="hanning"):
        STFT(64, 16, window="hanning")
    with pytest.raises(DataError, match="empty"):
        STFT(64, 16)(torch.zeros(2, 0))
    with pytest.raises(DataError, match=r"\[\.\.\., 33, T\]"):
        STFT(64, 16).inverse(torch.zeros(32, 5, dtype=torch.complex64))
