"""Weight clipping: after every step of the optimiser, w <- min(max(w, -bound), bound).

The projection onto a box, the hard counterpart of a bounded parametrization: gradients pass
unchanged inside, and weights stay at the edge as long as the gradient pushes outwards.

>>> model = nn.Linear(4, 2)
>>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
>>> clipping = WeightClipping({model: 0.3}).after(optimizer)      # one line in any loop
>>> model(torch.randn(8, 4)).square().mean().backward()
>>> _ = optimizer.step()
>>> float(model.weight.detach().abs().max()) <= 0.3
True
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from passband.dynamics.layers import typical_size, weighted_layers
from passband.errors import ConfigError


class WeightClipping:
    """
    bounds  largest magnitude of the weight of each layer, above 0
    """

    def __init__(self, bounds: Mapping[nn.Module, float]) -> None:
        for layer, bound in bounds.items():
            if not 0 < bound < math.inf:
                raise ConfigError(
                    f"bound = {bound} of a {type(layer).__name__}", expected="finite and above 0"
                )
        self.bounds = dict(bounds)

    @classmethod
    def of(cls, module: nn.Module, bound: float = math.pi / 2) -> Self:
        """Each linear and convolutional layer's bound is 3 bound standard deviations of its weight.

        At pi / 2 that is where an arctan compander of bound 1 has its own.

        >>> [round(b, 3) for b in WeightClipping.of(nn.Linear(12, 5)).bounds.values()][0] > 0.5
        True
        """
        layers = weighted_layers(module).values()
        return cls({x: 3 * bound * typical_size(cast(Tensor, x.weight)) for x in layers})

    @torch.no_grad()
    def __call__(self) -> None:
        """Clip now."""
        for layer, bound in self.bounds.items():
            cast(Tensor, layer.weight).clamp_(-bound, bound)

    def after(self, optimizer: Optimizer) -> Self:
        """Clip now and after every step of this optimiser."""
        self()

        def clip(*_: Any) -> None:
            self()

        optimizer.register_step_post_hook(clip)
        return self
