"""The loss of separators: negative SNR of the permutation that fits best.

    loss = min over permutations p of mean_k -SNR(y_p(k), s_k)        y, s [B, K, L]

>>> targets = torch.randn(3, 2, 1000)
>>> swapped = targets.flip(1) + 0.1 * targets.flip(1)
>>> float(separation_loss(swapped, targets).round(decimals=2))
-20.0

Source: Kolbaek et al., arXiv 1703.06284, with the SNR in place of the squared error.
"""

from __future__ import annotations

from torch import Tensor

from passband.errors import DataError
from passband.parts.metrics.pit import pit
from passband.parts.metrics.sdr import si_sdr, snr


def separation_loss(
    estimates: Tensor, targets: Tensor, any_order: bool = True, scale_counts: bool = True
) -> Tensor:
    """Negative SNR in dB, a scalar: the mean over talkers and batch.

    >>> targets = torch.randn(3, 2, 1000)
    >>> bool(separation_loss(2 * targets, targets, scale_counts=False) < -60)
    True

    estimates, targets  [B, K, L]; other or unequal shapes raise `DataError`
    any_order           False: output k is source k, for sources that are kinds of sound
    scale_counts        False: negative SI-SDR, which takes an estimate at any level
    """
    if estimates.dim() != 3 or estimates.shape != targets.shape:
        raise DataError(
            f"{tuple(targets.shape)} references for {tuple(estimates.shape)} estimates",
            expected="both [B, K, L]",
            mend="set the number of talkers to that of the data",
        )

    def loss(e: Tensor, s: Tensor) -> Tensor:
        return -(snr if scale_counts else si_sdr)(e, s, zero_mean=True)

    return (pit(loss, estimates, targets)[0] if any_order else loss(estimates, targets)).mean()
