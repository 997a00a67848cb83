"""Horizontal lines in a vocoder's spectrogram: the artefact that iSTFTNet's users report.

Bins of the small inverse STFT lie at multiples of sample_rate / f. Phases that are held within a
radian of 0 favour them, so that lines stand out there, above what the speech around them has.

>>> noise = torch.randn(65_536, generator=torch.Generator().manual_seed(0))
>>> line = torch.sin(torch.arange(65_536) * 2 * torch.pi * 3 / 16)         # the third bin of f = 16
>>> bool(lines(noise, 16) < 1), bool(lines(noise + line, 16) > 2)
(True, True)
"""

from __future__ import annotations

import torch
from torch import Tensor

from passband.errors import DataError

SIZE = 2048  # of the spectra that are averaged, about
NEAR, FAR = 1, 24  # bins that belong to a line, and that count as around it
CLOSEST = 8  # bins from line to line


def lines(wave: Tensor, n_fft: int) -> float:
    """Level of the bins at multiples of sample_rate / n_fft above their surroundings, in dB.

    wave   [L] or [B, L]
    n_fft  of the network's inverse STFT

    The mean over bins 1 to n_fft / 2 - 1 of power at the bin over the median power around it, from
    an averaged spectrum: near 0 for recordings. Raises `DataError` for waves too short and for
    n_fft whose bins are too close to have anything between them.
    """
    apart = round(SIZE / n_fft)  # bins of the spectrum from line to line, exactly
    size = apart * n_fft
    if apart < CLOSEST:
        raise DataError(
            f"lines of an inverse STFT of {n_fft} samples", expected=f"at most {SIZE // CLOSEST}"
        )
    if wave.shape[-1] < 2 * size:
        raise DataError(f"a wave of {wave.shape[-1]} samples", expected=f"at least {2 * size}")
    far = min(FAR, apart // 2)
    window = torch.hann_window(size, dtype=torch.double)
    pieces = wave.double().unfold(-1, size, size // 2) * window
    power = torch.fft.rfft(pieces).abs().square().flatten(0, -2).mean(0)
    levels = []
    for centre in range(apart, size // 2, apart):
        at = power[centre - NEAR : centre + NEAR + 1].mean()
        around = torch.cat([power[centre - far : centre - NEAR], power[centre + NEAR + 1 :][:far]])
        levels.append(10 * torch.log10(at.clamp_min(1e-20) / around.median().clamp_min(1e-20)))
    return float(torch.stack(levels).mean())
