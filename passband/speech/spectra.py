"""Waves as compressed complex spectra, and back: what networks on spectrograms learn from.

    X = beta |S|^alpha exp(i angle S),   S = STFT(x / peak),   peak = max |noisy x| of each wave

>>> spectra = CompressedSpectra(n_fft=510, hop_length=128, alpha=0.5, beta=0.15)
>>> wave = torch.randn(2, 8_000)
>>> level = peak(wave)
>>> X = spectra.analyse(wave, level)
>>> X.shape, X.dtype
(torch.Size([2, 256, 63]), torch.complex64)
>>> bool(torch.allclose(spectra.synthesise(X, level, 8_000), wave, atol=1e-4))
True

Source: Richter et al., arXiv 2208.05830, section V.
"""

from __future__ import annotations

from torch import Tensor, nn

from passband.parts.signal.compress import compress, decompress
from passband.parts.signal.stft import STFT


def peak(wave: Tensor) -> Tensor:
    """The largest magnitude of each wave: [..., L] -> [...]; 1 for silence, which stays silence.

    >>> peak(torch.tensor([[0.5, -2.0], [0.0, 0.0]]))
    tensor([2., 1.])
    """
    largest = wave.abs().amax(-1)
    return largest.masked_fill(largest == 0, 1.0)


class CompressedSpectra(nn.Module):
    """
    n_fft, hop_length  samples; a periodic Hann window, frames centred
    alpha, beta        exponent and factor of the magnitudes, both above 0
    """

    def __init__(self, n_fft: int, hop_length: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.stft = STFT(n_fft, hop_length)
        self.alpha, self.beta = alpha, beta

    def analyse(self, wave: Tensor, level: Tensor) -> Tensor:
        """wave [..., L], level [...] -> X [..., F, T] complex."""
        return compress(self.stft(wave / level[..., None]), self.alpha, self.beta)

    def synthesise(self, spectrum: Tensor, level: Tensor, length: int) -> Tensor:
        """X [..., F, T], level [...] -> wave [..., length]."""
        raw = decompress(spectrum, self.alpha, self.beta)
        return self.stft.inverse(raw, length) * level[..., None]
