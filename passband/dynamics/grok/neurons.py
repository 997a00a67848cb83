"""What a neuron does, read from its weights alone: one frequency, or none in particular.

    a = |rfft(u)|,  a_hat = a / ||a||_2,  IPR_r(u) = sum_k a_hat_k^(2 r)

The inverse participation ratio is 1 for one frequency and falls to 1 / (number of frequencies)
where all take part alike. Neurons that generalise have a high one, those that memorise a low one.

>>> wave = torch.cos(2 * torch.pi * 5 * torch.arange(97) / 97)
>>> round(float(ipr(wave)), 6)
1.0
>>> net = nn.Sequential(nn.Linear(22, 50), nn.ReLU(), nn.Linear(50, 11))       # any two layers
>>> table = neuron_table(Layers.of(net[0].weight, net[2].weight))
>>> table.ipr.shape, table.rows()[0]["neuron"]
(torch.Size([50]), 0)

The constant counts as a frequency; an even number of residues has the alternating one besides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.modular import Modular, discrete_log_order
from passband.dynamics.grok.model import Layers
from passband.errors import DataError

Order = Any  # positions [P] of the residues in the order in which waves are looked for


def order_of(data: Modular) -> Order:
    """The order of the residues that suits an operation: powers for products, as they are else."""
    return discrete_log_order(data.p) if data.op == "multiply" else None


def spectrum(weights: Tensor, dim: int = -1, reorder: Order = None) -> Tensor:
    """Complex amplitudes of P // 2 + 1 frequencies along `dim`, which becomes the last one.

    >>> spectrum(torch.ones(3, 8), reorder=[1, 2, 3, 4]).shape
    torch.Size([3, 3])
    """
    if not torch.isfinite(weights).all():
        raise DataError("weights that are not finite", expected="finite numbers")
    moved = weights.detach().movedim(dim, -1)
    if reorder is not None:
        moved = moved[..., torch.as_tensor(np.asarray(reorder))]
    return torch.fft.rfft(moved.double())


def ipr(weights: Tensor, r: float = 2, dim: int = -1, reorder: Order = None) -> Tensor:
    """Inverse participation ratio of each vector along `dim`, in (0, 1]; 0 for a vector of zeros.

    >>> ipr(torch.randn(500, 97, generator=torch.Generator().manual_seed(0))).mean() < 0.05
    tensor(True)

    reorder  for multiplication: `passband.data.modular.discrete_log_order(p)`
    """
    return participation(spectrum(weights, dim, reorder).abs(), r)


def participation(amplitudes: Tensor, r: float = 2) -> Tensor:
    """[..., K] amplitudes -> [...]."""
    power = amplitudes.square()
    total = power.sum(-1, keepdim=True)
    share = power / torch.where(total > 0, total, 1.0)
    return share.pow(r).sum(-1)


def gini(weights: Tensor, dim: int = -1, reorder: Order = None) -> Tensor:
    """Gini coefficient of the amplitudes along `dim`: 0 all alike, near 1 for one frequency.

    >>> gini(torch.eye(9)[:1])                         # a peak has all frequencies alike
    tensor([0.], dtype=torch.float64)
    """
    sizes = spectrum(weights, dim, reorder).abs().sort(-1).values
    count = sizes.shape[-1]
    rank = torch.arange(1, count + 1, dtype=sizes.dtype)
    total = sizes.sum(-1)
    weighted = ((2 * rank - count - 1) * sizes).sum(-1)
    found = weighted / (count * torch.where(total > 0, total, 1.0))
    return torch.where(found.abs() < 1e-12, 0.0, found)


@dataclass(frozen=True)
class Neurons:
    """A row a neuron, all tensors [N].

    ipr                     mean of the three below
    ipr_u, ipr_v, ipr_w     of the weights of each residue and of the output
    gini                    mean of the three
    frequency_u, ..._v, ..._w  the strongest
    phase_error             a + b - c of that frequency in (-pi, pi]; NaN where the three differ
    gain                    of a normalisation; NaN without
    """

    ipr: Tensor
    ipr_u: Tensor
    ipr_v: Tensor
    ipr_w: Tensor
    gini: Tensor
    frequency_u: Tensor
    frequency_v: Tensor
    frequency_w: Tensor
    phase_error: Tensor
    gain: Tensor

    def __len__(self) -> int:
        return len(self.ipr)

    def rows(self) -> list[dict[str, float]]:
        """One dictionary a neuron, for tables and JSON; what is not defined is left out."""
        columns = {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}
        return [
            {"neuron": k} | {n: v[k] for n, v in columns.items() if v[k] == v[k]}
            for k in range(len(self))
        ]


def neuron_table(model: Any, reorder: Order = None) -> Neurons:
    """All that can be said of each neuron, by one Fourier transform of each layer.

    >>> from passband.dynamics.grok.model import analytic_weights
    >>> table = neuron_table(analytic_weights(23, 256))
    >>> bool((table.ipr > 1 - 1e-6).all()), bool((table.phase_error.abs() < 1e-5).all())
    (True, True)

    model    a `QuadraticMLP`, or `Layers` (see `Layers.of` for a network of your own)
    reorder  for multiplication: `passband.data.modular.discrete_log_order(p)`
    """
    layers = model if isinstance(model, Layers) else model.layers()
    if reorder is None and layers.w.shape[0] != layers.u.shape[1]:
        output = torch.fft.rfft(layers.w.T.double())  # classes that are no residues
    else:
        output = spectrum(layers.w, 0, reorder)
    waves = [spectrum(layers.u, -1, reorder), spectrum(layers.v, -1, reorder), output]
    parts = [participation(wave.abs()) for wave in waves]
    peaks = [wave.abs().argmax(-1) for wave in waves]
    at = torch.arange(len(peaks[0]))
    same = (peaks[0] == peaks[1]) & (peaks[1] == peaks[2])
    a, b, c = (wave[at, peak].angle() for wave, peak in zip(waves, peaks, strict=True))
    error = torch.pi - (torch.pi - (a + b - c)) % (2 * torch.pi)
    nan = torch.full_like(error, torch.nan)
    dispersion = [
        gini(layers.u, -1, reorder), gini(layers.v, -1, reorder),
        gini(layers.w, 0, reorder if layers.w.shape[0] == layers.u.shape[1] else None),
    ]
    return Neurons(
        torch.stack(parts).mean(0), *parts, torch.stack(dispersion).mean(0), *peaks,
        torch.where(same, error, nan), nan if layers.gain is None else layers.gain.double(),
    )
