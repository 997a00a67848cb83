"""Distances of spectrograms, a value for each signal: what a vocoder is measured by.

>>> target = torch.randn(3, 16_000)
>>> multi_resolution_stft(0.5 * target, target).shape
torch.Size([3])
>>> mel = LogMel(16_000, n_fft=1024, hop_length=256, win_length=1024, n_mels=80)
>>> mel_distance(0.5 * target, target, mel).round(decimals=2)           # ln 2
tensor([0.6900, 0.6900, 0.6900])

Sources: Yamamoto, Song, Kim 2020 (Parallel WaveGAN), arXiv 1910.11480; Kong et al. 2020 (HiFi-GAN),
arXiv 2010.05646.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from passband.parts.losses.spectral import POWER_FLOOR, RESOLUTIONS
from passband.parts.metrics.arrays import Signal, like, same_shape, tensors
from passband.parts.signal.mel import LogMel
from passband.parts.signal.stft import STFT


def mel_distance(estimate: Signal, target: Signal, mel: LogMel) -> Signal:
    """Mean absolute difference of log-mel spectrograms (natural): [..., L], [..., L] -> [...].

    Raises `DataError` for unequal shapes.
    """
    e, s = tensors(estimate, target)
    same_shape(e, s)
    return like((mel(e) - mel(s)).abs().mean((-2, -1)), target)


def multi_resolution_stft(
    estimate: Signal, target: Signal, resolutions: Sequence[tuple[int, int, int]] = RESOLUTIONS
) -> Signal:
    """Spectral convergence + log-magnitude distance, mean over resolutions: -> [...].

        | |S| - |E| |_F / | |S| |_F  +  mean | ln |S| - ln |E| |

    >>> silence = torch.zeros(16_000)
    >>> float(multi_resolution_stft(silence, silence))
    0.0

    estimate, target  [..., L]; unequal shapes raise `DataError`
    resolutions       (n_fft, hop_length, win_length) each, in samples; periodic Hann, centred
    """
    e, s = tensors(estimate, target)
    same_shape(e, s)
    values = []
    for n_fft, hop_length, win_length in resolutions:
        stft = STFT(n_fft, hop_length, win_length=win_length).to(s.device)
        found, true = _magnitude(stft(e)), _magnitude(stft(s))
        size = torch.linalg.vector_norm(true, dim=(-2, -1))
        convergence = torch.linalg.vector_norm(true - found, dim=(-2, -1)) / size
        values.append(convergence + (true.log() - found.log()).abs().mean((-2, -1)))
    return like(torch.stack(values).mean(0), target)


def _magnitude(spectrum: Tensor) -> Tensor:
    power = spectrum.real.square() + spectrum.imag.square()
    return power.clamp_min(POWER_FLOOR).sqrt()
