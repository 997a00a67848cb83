"""Log-spectral distance: how far two power spectra are apart, frame by frame.

    LSD = mean_t sqrt( mean_f ( log10 |S[f, t]|^2 - log10 |E[f, t]|^2 )^2 )

>>> target = torch.randn(2, 48_000)
>>> log_spectral_distance(10 * target, target).round(decimals=3)
tensor([2., 2.])

Source: Gray and Markel, IEEE Trans. ASSP 24 (1976), with the decimal logarithm of the literature on
bandwidth extension.
"""

from __future__ import annotations

from passband.parts.metrics.arrays import Signal, like, same_shape, tensors
from passband.parts.signal.stft import STFT

FLOOR = 1e-10  # power below which nothing is distinguished: digital silence has no logarithm


def log_spectral_distance(
    estimate: Signal, target: Signal, n_fft: int = 2048, hop_length: int = 512,
    low: int = 0, high: int | None = None, floor: float = FLOOR,
) -> Signal:
    """[..., L], [..., L] -> [...], in decades of power (1 is 10 dB); 0 for equal signals.

    >>> noise = np.random.default_rng(0).normal(size=8_000)
    >>> float(log_spectral_distance(noise, noise, n_fft=512, hop_length=128, low=128))
    0.0

    n_fft, hop_length  samples; periodic Hann, centred frames
    low, high          bins low <= f < high only, to see a band by itself; f is n_fft / rate Hz
    floor              of both powers |X|^2

    Raises `DataError` for unequal shapes.
    """
    e, s = tensors(estimate, target)
    same_shape(e, s)
    stft = STFT(n_fft, hop_length).to(s.device)
    powers = [
        (x.real.square() + x.imag.square()).clamp_min(floor).log10()
        for x in (stft(e)[..., low:high, :], stft(s)[..., low:high, :])
    ]
    distance = (powers[0] - powers[1]).square().mean(-2).sqrt().mean(-1)
    return like(distance, target)
