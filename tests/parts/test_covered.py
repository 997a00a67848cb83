"""The transform without edges against scipy, and the complex ratio mask by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch

from passband.errors import ConfigError
from passband.parts.losses.ratio_mask import mask_error, ratio_mask
from passband.parts.signal.covered import CoveredSTFT


@pytest.mark.parametrize(("n_fft", "hop", "win"), [
    (640, 320, None), (320, 80, 160), (256, 100, 200), (256, 60, 200),
])
@pytest.mark.parametrize("length", [1, 79, 320, 1_601])
def test_every_sample_comes_back(n_fft: int, hop: int, win: int | None, length: int) -> None:
    frames = CoveredSTFT(n_fft, hop, win)
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    spectrum = frames(x)
    assert spectrum.shape == (2, n_fft // 2 + 1, frames.count(length))
    torch.testing.assert_close(frames.inverse(spectrum, length), x, rtol=0, atol=1e-5)


def test_frames_are_those_of_scipy() -> None:
    x = np.random.default_rng(0).standard_normal(1_000)
    window = np.sqrt(scipy.signal.get_window("hann", 160))
    found = CoveredSTFT(320, 80, 160).double()(torch.from_numpy(x)).numpy()
    padded = np.pad(x, (80, 320))
    for t in range(found.shape[1]):
        frame = np.pad(padded[80 * t : 80 * t + 160] * window, 80)
        np.testing.assert_allclose(found[:, t], np.fft.rfft(frame), atol=1e-5)
    assert found.shape[1] == -(-(1_000 + 80) // 80)


def test_frames_have_to_overlap() -> None:
    with pytest.raises(ConfigError, match="hop_length 161"):
        CoveredSTFT(320, 161)


def test_the_target_is_passed_where_it_is_large() -> None:
    noisy = torch.tensor([1 + 0j, 2j, 1 + 1j, 0j])
    clean = torch.tensor([1.5 - 3j, 2j, -5 + 0j, 1 + 1j])
    expected = torch.tensor([1.5 - 1j, 1 + 0j, -1 + 1j, 0j])  # -5 / (1 + i) = -2.5 + 2.5 i
    torch.testing.assert_close(ratio_mask(clean, noisy), expected)
    error = mask_error(expected, expected + torch.tensor([1 + 0j, 2j, 0j, 0j]))
    assert float(error) == pytest.approx(1 / 4 + 4 / 4)
