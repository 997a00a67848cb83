"""How loud a signal is, and signals of one loudness.

    rms     sqrt(mean x^2)
    active  the same over the samples whose power is above the mean: pauses don't count

>>> x = torch.cat([torch.ones(100), torch.zeros(300)])
>>> rms(x), active_rms(x)
(tensor(0.5000), tensor(1.))
>>> y, factor = normalised(x, level=-20.0)
>>> bool(torch.allclose(y, 0.1 * x, atol=1e-5))
True

Levels are in dB of full scale: 0 dB is a square wave of amplitude 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from passband.errors import DataError

EPS = 1e-6  # added to an amplitude that is divided by: silence stays silence


def rms(x: Tensor) -> Tensor:
    """Root mean square over time: [..., L] -> [...]. An empty signal raises `DataError`."""
    return _power(x).mean(-1).sqrt()


def active_rms(x: Tensor) -> Tensor:
    """Root mean square of the samples above the mean power: [..., L] -> [...].

    A constant amplitude has no samples above; its rms is given. Errors as for `rms`.
    """
    power = _power(x)
    mean = power.mean(-1, keepdim=True)
    active = power > mean
    count = active.sum(-1)
    above = (power * active).sum(-1) / count.clamp_min(1)
    return torch.where(count > 0, above, mean[..., 0]).sqrt()


def decibels(amplitude: Tensor) -> Tensor:
    """20 log10 of an amplitude, at least -120.

    >>> decibels(torch.tensor([1.0, 0.1, 0.0]))
    tensor([   0.,  -20., -120.])
    """
    return 20 * amplitude.clamp_min(EPS).log10()


def normalised(
    x: Tensor, level: float = -25.0, reference: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A signal with its active rms at `level` dB: -> x factor [..., L], factor [..., 1].

    >>> noisy, clean = torch.randn(2, 8000), torch.randn(2, 8000)
    >>> noisy, factor = normalised(noisy)
    >>> clean = clean * factor                 # one common factor: masks between the two stay true
    >>> back = noisy / factor

    reference  [..., L] the signal that is measured; default x itself

    Silence stays silence; the factor is at most 10^(level / 20) 1e6. Errors as for `rms`.
    """
    measured = active_rms(x if reference is None else reference)[..., None]
    factor = 10 ** (level / 20) / (measured + EPS)
    return x * factor, factor


def _power(x: Tensor) -> Tensor:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise DataError(f"an empty signal of shape {tuple(x.shape)}", expected="[..., L], L > 0")
    return x.square()
