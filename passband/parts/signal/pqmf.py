"""A cosine-modulated filter bank that splits a signal into bands of equal width (pseudo-QMF).

    h_k[n] = 2 p[n] cos( (2 k + 1) pi / 2 K (n - N / 2) + (-1)^k pi / 4 )       analysis
    g_k[n] = h_k[N - n]                                                         synthesis
    p      a low pass of N + 1 taps: sin(pi c (n - N / 2)) / (pi (n - N / 2)), under a Kaiser window
    bands  x [B, L] -> X [B, K, L / K],    wave  X -> x

Each band is kept at 1 / K of the rate. What aliases from one band into its neighbours cancels in
their sum, so that x comes back nearly: 60 dB or so below it is what the prototype leaves.

>>> bank = PQMF(bands=4)
>>> x = torch.randn(1, 8000)
>>> x_bands = bank.split(x)
>>> x_bands.shape
torch.Size([1, 4, 2000])
>>> error = (bank.join(x_bands) - x)[:, 100:-100]
>>> bool(error.square().mean() < 1e-4)
True

Sources: Nguyen, IEEE Trans. Signal Processing 42 (1994); prototype: Lin and Vaidyanathan, IEEE
Signal Processing Letters 5 (1998). The default prototype is the one for four bands.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.reach import Reach

TAPS, CUTOFF, BETA = 62, 0.142, 9.0  # of the prototype for four bands


def prototype(taps: int = TAPS, cutoff: float = CUTOFF, beta: float = BETA) -> np.ndarray[Any, Any]:
    """The low pass [taps + 1], float64.

    >>> p = prototype()
    >>> p.shape, bool(np.allclose(p, p[::-1]))
    ((63,), True)

    cutoff  as a share of half the sample rate; beta  of the Kaiser window
    """
    n = np.arange(taps + 1) - taps / 2
    low: np.ndarray[Any, Any] = cutoff * np.sinc(cutoff * n) * np.kaiser(taps + 1, beta)
    return low


class PQMF(nn.Module):
    """
    bands         K
    taps, cutoff, beta  of the prototype; other numbers of bands need another cutoff, near 0.5 / K

    Raises `ConfigError` for an odd number of taps or no band.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(
        self, bands: int = 4, taps: int = TAPS, cutoff: float = CUTOFF, beta: float = BETA
    ) -> None:
        super().__init__()
        if bands < 1 or taps < 2 or taps % 2 or not 0 < cutoff < 1:
            raise ConfigError(
                f"{bands} bands of {taps} taps with a cutoff of {cutoff:g}",
                expected="at least one band, an even number of taps, a cutoff within 0 and 1",
            )
        self.count, self.taps = bands, taps
        n = np.arange(taps + 1) - taps / 2
        k = np.arange(bands)[:, None]
        angles = (2 * k + 1) * (np.pi / (2 * bands)) * n + (-1.0) ** k * np.pi / 4
        filters = 2 * prototype(taps, cutoff, beta) * np.cos(angles)
        weight = torch.from_numpy(filters.astype(np.float32))[:, None]
        # Zeros between the samples would take K - 1 of K from the power: the bands times K.
        self.register_buffer("analysis", weight, persistent=False)
        self.register_buffer("synthesis", bands * weight, persistent=False)

    def split(self, x: Tensor) -> Tensor:
        """x [B, L] -> bands [B, K, L / K], rounded up; silence before and after x."""
        if x.ndim != 2 or x.shape[-1] == 0:
            raise DataError(f"waves of shape {tuple(x.shape)}", expected="[B, L], L above 0")
        return F.conv1d(x[:, None], self.analysis, stride=self.count, padding=self.taps // 2)

    def join(self, bands: Tensor) -> Tensor:
        """Bands [B, K, n] -> x [B, K n]."""
        if bands.ndim != 3 or bands.shape[1] != self.count:
            raise DataError(
                f"bands of shape {tuple(bands.shape)}", expected=f"[B, {self.count}, n]"
            )
        # The synthesis filters are those of the analysis in reverse, which the transposed
        # convolution already makes of them.
        return F.conv_transpose1d(
            bands, self.synthesis, stride=self.count, padding=self.taps // 2,
            output_padding=self.count - 1,
        )[:, 0]

    @property
    def reach(self) -> Reach:
        """Of `join`."""
        return Reach.transposed(self.taps + 1, self.count, self.taps // 2)
