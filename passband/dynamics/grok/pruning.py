"""Accuracy as neurons are taken away, one by one, in the order of what they do.

    f_n(m, n) = sum over the neurons left of W_:k phi_k(m, n)

The output is a sum over neurons, so a curve costs one forward pass: neurons are added in the
reverse order, each as a product of a column and a row, instead of N passes of what is left.

>>> from passband.data.modular import modular_dataset
>>> from passband.dynamics.grok.model import analytic_weights
>>> data = modular_dataset(23, alpha=0.5, xi=0.2)
>>> curve = prune_curve(analytic_weights(23, 256), "low", data)
>>> float(curve.accuracy["test"][0]), curve.accuracy["test"].shape
(1.0, (256,))

Letters: N neurons, M pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passband.data.modular import Modular
from passband.dynamics.grok.model import ACTIVATIONS, Layers, QuadraticMLP, square
from passband.dynamics.grok.neurons import Order, neuron_table
from passband.errors import ConfigError, DataError

Splits = Mapping[str, tuple[Tensor, Tensor]]  # name -> pairs [M, 2], labels [M]


@dataclass(frozen=True, eq=False)
class PruneCurve:
    """pruned [K] numbers of neurons taken away, accuracy of each split [K] after that.

    order  the neurons in the order in which they go
    """

    order: np.ndarray[Any, Any]
    pruned: np.ndarray[Any, Any]
    accuracy: dict[str, np.ndarray[Any, Any]]

    def at(self, share: float) -> dict[str, float]:
        """Accuracies with this share of the neurons gone (the nearest point below)."""
        wanted = share * len(self.order) + 1e-9
        i = int(np.searchsorted(self.pruned, wanted, side="right")) - 1
        return {name: float(values[i]) for name, values in self.accuracy.items()}

    def rows(self) -> list[dict[str, float]]:
        return [
            {"pruned": int(n), **{name: float(v[i]) for name, v in self.accuracy.items()}}
            for i, n in enumerate(self.pruned)
        ]


def prune_order(
    model: Any, order: str | Sequence[int], reorder: Order = None, seed: int = 0
) -> np.ndarray[Any, Any]:
    """The neurons by IPR, "low" or "high" first, at "random", or as given (each once)."""
    count = (model if isinstance(model, Layers) else model.layers()).u.shape[0]
    if not isinstance(order, str):
        found = np.asarray(order)
        if sorted(found.tolist()) != list(range(count)):
            raise DataError(
                "an order that leaves out or repeats neurons", expected=f"all {count}, once each"
            )
        return found
    if order == "random":
        return np.random.default_rng(seed).permutation(count)
    if order not in ("low", "high"):
        raise ConfigError(f"order = {order!r}", expected="low, high, random, or the neurons")
    rising = neuron_table(model, reorder).ipr.argsort(stable=True).numpy()
    return rising if order == "low" else rising[::-1].copy()


@torch.no_grad()
def prune_curve(
    model: Any, order: str | Sequence[int], splits: Modular | Splits, *, act: Any = square,
    reorder: Order = None, points: int | None = None, seed: int = 0,
) -> PruneCurve:
    """Accuracies with 0 .. N-1 neurons pruned.

    model    a `QuadraticMLP`, in evaluation mode whatever its own; or `Layers` with `act`
    order    "low": those of low IPR go first; "high", "random", or the neurons in order
    splits   a `Modular` (its own splits), or pairs and labels by name
    reorder  for multiplication: `passband.data.modular.discrete_log_order(p)`
    points   of the curve, evenly over the neurons; None: every number of neurons
    """
    going = prune_order(model, order, reorder, seed)
    pairs, judge = _judged(splits)
    sums = _sums(model, pairs, act)
    count = len(going)
    at = np.arange(count)
    if points is not None and points < count:
        at = np.unique(np.linspace(0, count - 1, points).round().astype(int))
    wanted, found = set(at.tolist()), {}
    for left, neuron in zip(range(count - 1, -1, -1), going[::-1].tolist(), strict=True):
        sums.add(neuron)
        if left in wanted:  # `left` neurons are still missing
            found[left] = judge(sums.scores().argmax(1))
    names = found[0]
    return PruneCurve(
        going, at, {name: np.array([found[n][name] for n in at.tolist()]) for name in names}
    )


def _judged(splits: Modular | Splits) -> tuple[Tensor, Callable[[Tensor], dict[str, float]]]:
    if isinstance(splits, Modular):
        return splits.pairs, splits.accuracies
    if not splits:
        raise DataError("no split to measure on", expected="pairs and labels by name")
    labels = torch.cat([y for _, y in splits.values()])
    sizes = [len(y) for _, y in splits.values()]

    def judge(predicted: Tensor) -> dict[str, float]:
        right = (predicted == labels).double().split(sizes)
        return {name: float(r.mean()) for name, r in zip(splits, right, strict=True)}

    return torch.cat([pairs for pairs, _ in splits.values()]), judge


# ---- sums over the neurons so far ----------------------------------------------------------------


class _Sum:
    """scores = sum_k h_k W_k; hidden [M, N] after normalisation."""

    def __init__(self, hidden: Tensor, w: Tensor) -> None:
        self.hidden, self.w = hidden.T.contiguous(), w.contiguous()  # [N, M], [N, C]
        self.total = torch.zeros(hidden.shape[0], w.shape[1])

    def add(self, k: int) -> None:
        self.total.addr_(self.hidden[k], self.w[k])

    def scores(self) -> Tensor:
        return self.total


class _LayerNormSum:
    """Layer normalisation of what is left: its mean and variance change with every neuron.

    scores = (A - mean G) / sd + B,  A = sum h_k g_k W_k,  G = sum g_k W_k,  B = sum b_k W_k
    A pruned neuron has weights of zero, so it stays among the N as an entry phi(0) = 0.
    """

    def __init__(self, hidden: Tensor, w: Tensor, norm: nn.LayerNorm) -> None:
        self.scaled = _Sum(hidden, w * norm.weight[:, None])
        self.w, self.norm, self.count = w, norm, hidden.shape[1]
        self.first = torch.zeros(hidden.shape[0], dtype=torch.float64)
        self.second = torch.zeros_like(self.first)
        self.gains, self.shifts = torch.zeros(w.shape[1]), torch.zeros(w.shape[1])

    def add(self, k: int) -> None:
        self.scaled.add(k)
        column = self.scaled.hidden[k].double()
        self.first += column
        self.second += column.square()
        self.gains += self.norm.weight[k] * self.w[k]
        self.shifts += self.norm.bias[k] * self.w[k]

    def scores(self) -> Tensor:
        mean = self.first / self.count
        variance = (self.second / self.count - mean.square()).clamp_min(0)
        inverse = (variance + self.norm.eps).rsqrt().float()[:, None]
        return (self.scaled.total - mean.float()[:, None] * self.gains) * inverse + self.shifts


def _sums(model: Any, pairs: Tensor, act: Any) -> _Sum | _LayerNormSum:
    if isinstance(model, Layers):
        m, n = pairs.unbind(1)
        function = ACTIVATIONS[act] if isinstance(act, str) else act
        return _Sum(function(model.u.T[m] + model.v.T[n]), model.w.T)
    if not isinstance(model, QuadraticMLP):
        raise DataError(
            f"a {type(model).__name__} has no two layers to prune", expected="a QuadraticMLP",
            mend="give Layers.of(w_in, w_out) and its activation as act",
        )
    hidden, w = model.activations(model.inputs(pairs)), model.w
    if isinstance(model.norm, nn.LayerNorm):
        return _LayerNormSum(hidden, w, model.norm)
    training = model.norm.training
    hidden = model.norm.eval()(hidden)
    model.norm.train(training)
    return _Sum(hidden, w)
