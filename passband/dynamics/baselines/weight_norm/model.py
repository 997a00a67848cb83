"""Weight normalisation: w = g v / |v|, a length g and a direction v for each output.

torch's own parametrization on every linear and convolutional layer.
Source: Salimans and Kingma, arXiv 1602.07868.

>>> model = normalised(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
>>> [n for n, _ in model[0].named_parameters()]
['bias', 'parametrizations.weight.original0', 'parametrizations.weight.original1']
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrizations import weight_norm

from passband.dynamics.layers import weighted_layers


def normalised(module: nn.Module) -> nn.Module:
    """Parametrize in place; returns the module, whose outputs stay as they are.

    Raises as `weighted_layers` does.
    """
    for layer in weighted_layers(module).values():
        weight_norm(layer, dim=1 if isinstance(layer, _ConvTransposeNd) else 0)
    return module
