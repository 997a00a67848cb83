"""What to log while a network groks, in one line of any training loop.

>>> from passband.data.modular import modular_dataset
>>> from passband.dynamics.grok.model import QuadraticMLP
>>> data, model = modular_dataset(11, alpha=0.7, xi=0.2), QuadraticMLP(11, 64)
>>> monitor = GrokMonitor(data, every=20)
>>> for step in range(41):
...     _ = monitor(model, step)                   # beside your optimiser's step
>>> monitor.column("step")
[0, 20, 40]
>>> sorted(monitor.rows[0])[:7], sorted(monitor.rows[0])[7:]
(['all', 'clean', 'corrupt', 'ipr', 'ipr_histogram', 'memorised', 'norm_u'],
 ['norm_v', 'norm_w', 'recovered', 'step', 'test', 'train'])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from passband.data.modular import Modular
from passband.dynamics.grok.model import Layers
from passband.dynamics.grok.neurons import Order, neuron_table
from passband.parts.modes import evaluating
from passband.parts.probes import Probes


class GrokMonitor(Probes):
    """Accuracies of each split, IPR of the neurons and norms of the layers.

    data     what is learned: its pairs [N, 2] go through the model, which gives scores [N, C]
    every    steps between rows
    bins     of the histogram of IPR over [0, 1]; counts of neurons
    layers   (model) -> `Layers`, for a model that is no `QuadraticMLP`; one without two layers on
             pairs has accuracies alone
    reorder  for multiplication: `passband.data.modular.discrete_log_order(p)`
    forward  (model, pairs) -> scores, for a model with another kind of input
    """

    def __init__(
        self, data: Modular, every: int = 10, *, bins: int = 20,
        layers: Callable[[Any], Layers] | None = None, reorder: Order = None,
        forward: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(self.measure, every=every)
        self.data, self.bins, self.reorder = data, bins, reorder
        self._layers, self._forward = layers, forward

    @torch.no_grad()
    def measure(self, model: Any, step: int = 0) -> dict[str, Any]:
        """One row that is not kept. The model's mode is put back afterwards."""
        with evaluating(model):
            pairs = self.data.pairs
            scores = self._forward(model, pairs) if self._forward else model(pairs)
        row: dict[str, Any] = dict(self.data.accuracies(scores.argmax(-1)))
        layers = self._two_layers(model)
        if layers is not None:
            row |= measure_layers(layers, self.bins, self.reorder)
        return row

    def _two_layers(self, model: Any) -> Layers | None:
        if self._layers is not None:
            return self._layers(model)
        return model.layers() if hasattr(model, "layers") else None


def measure_layers(layers: Layers, bins: int = 20, reorder: Order = None) -> dict[str, Any]:
    """Mean IPR, its histogram and Frobenius norms; gains of a normalisation if there is one."""
    ratios = neuron_table(layers, reorder).ipr
    found: dict[str, Any] = {
        "ipr": float(ratios.mean()),
        "ipr_histogram": torch.histc(ratios, bins, 0.0, 1.0).long().tolist(),
        "norm_u": float(layers.u.norm()), "norm_v": float(layers.v.norm()),
        "norm_w": float(layers.w.norm()),
    }
    if layers.gain is not None:
        found["gain"] = layers.gain.tolist()
    return found
