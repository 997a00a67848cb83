"""What weights look like: how large, how many near zero, how heavy their tails; what it costs to
lose some of them.

>>> table = weight_stats(nn.Linear(64, 32))
>>> table[0].layer, table[0].count
('', 2048)
>>> 0.03 < table[0].near_zero < 0.09 and table[0].kurtosis < 0      # uniform, as torch draws them
True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from passband.dynamics.layers import check_weight, weighted_layers
from passband.dynamics.weight_compander.model import (
    companders,
    export_plain_state_dict,
    uncompand,
)
from passband.errors import ConfigError

NEAR = 0.1  # standard deviations from zero
AT_BOUND = 0.95  # of the bound


@dataclass(frozen=True)
class WeightStats:
    """One layer's weights w, as used.

    std, largest  standard deviation and largest magnitude
    near_zero     share with |w| < 0.1 of `unit`, the standard deviation itself by default
    kurtosis      excess of the fourth moment: 0 for a normal distribution, -1.2 for a uniform one,
                  above 0 with heavy tails
    bound         what a compander keeps |w| below; None without one
    at_bound      share beyond 95 % of it; None likewise
    """

    layer: str
    count: int
    std: float
    largest: float
    near_zero: float
    kurtosis: float
    bound: float | None = None
    at_bound: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def weight_stats(
    module: nn.Module, units: Mapping[str, float] | None = None
) -> list[WeightStats]:
    """A row for every linear, convolutional or companded layer, in the module's order.

    units  standard deviations by layer that "near zero" is measured by, such as those of another
           network that this one is compared with

    Raises DataError for weights that are not finite.
    """
    wrapped = companders(module)
    layers = {**weighted_layers(module), **_named(module, wrapped)}
    rows = []
    for name in (n for n, _ in module.named_modules() if n in layers):
        layer = layers[name]
        check_weight(name, layer)
        unit = None if units is None else units[name]
        psi = wrapped.get(name)
        bound = None if psi is None or not torch.isfinite(psi.bound).all() else psi.bound
        rows.append(stats_of(cast(Tensor, layer.weight), name, unit=unit, bound=bound))
    return rows


def stats_of(
    weight: Tensor, layer: str = "", *, unit: float | None = None, bound: Tensor | None = None
) -> WeightStats:
    """The row of one tensor.

    >>> stats_of(torch.tensor([-2.0, 0.0, 0.0, 2.0]), bound=torch.tensor(2.0)).at_bound
    0.5
    """
    w = weight.detach().double()
    centred = w - w.mean()
    variance = centred.square().mean()
    std = float(variance.sqrt())
    size = w.abs()
    return WeightStats(
        layer=layer, count=w.numel(), std=std, largest=float(size.max()),
        near_zero=float((size < NEAR * (std if unit is None else unit)).double().mean()),
        kurtosis=float(centred.pow(4).mean() / variance.square().clamp_min(1e-300) - 3),
        bound=None if bound is None else float(bound.max()),
        at_bound=None if bound is None else float((size > AT_BOUND * bound).double().mean()),
    )


def pooled(rows: Sequence[WeightStats]) -> dict[str, float]:
    """One number of each kind: the largest weight of all, means over weights of the others."""
    total = sum(row.count for row in rows)

    def mean(name: str) -> float:
        return float(sum(getattr(row, name) * row.count for row in rows) / total)

    found = {name: mean(name) for name in ("std", "near_zero", "kurtosis")}
    return {"largest": max(row.largest for row in rows), **found}


def weight_probe(model: Any, step: int) -> dict[str, float]:
    """A probe for `passband.parts.probes.Probes`: the pooled figures of a model's weights.

    >>> sorted(weight_probe(nn.Linear(4, 3), 0))
    ['kurtosis', 'largest', 'near_zero', 'std']
    """
    return pooled(weight_stats(model))


@torch.no_grad()
def masking_loss(
    module: nn.Module, score: Callable[[Callable[..., Tensor]], float], shares: Sequence[float],
    *, draws: int = 10, seed: int = 0,
) -> dict[float, float]:
    """How much a score falls when a random share of the weights is set to zero, on average.

    score   (a function with the module's arguments) -> number
    shares  of the weights of each layer; biases and gains stay
    Masks depend on seed, draw and shapes alone: networks of one shape meet the same ones.

    >>> x = torch.eye(4)
    >>> model = nn.Linear(4, 4, bias=False)
    >>> masking_loss(model, lambda f: float(f(x).abs().sum() > 0), [0.0, 1.0], draws=2)
    {0.0: 0.0, 1.0: 1.0}
    """
    if not all(0 <= share <= 1 for share in shares) or draws < 1:
        raise ConfigError(
            f"shares = {list(shares)}, draws = {draws}",
            expected="shares from 0 to 1 and a draw or more",
        )
    layers = {**weighted_layers(module), **_named(module, companders(module))}
    # Masks are of w, not of what is stored: a wrapped network is looked at as a plain one.
    plain = uncompand(copy.deepcopy(module)).eval()
    state = export_plain_state_dict(module)
    names = [f"{name}.weight" if name else "weight" for name in layers]
    before = score(lambda *x: functional_call(plain, state, x))
    found = {}
    for share in shares:
        falls = []
        for draw in range(draws):
            generator = torch.Generator().manual_seed(seed * 10_007 + draw)
            masked = dict(state)
            for name in names:
                kept = torch.rand(state[name].shape, generator=generator) >= share
                masked[name] = state[name] * kept.to(state[name].device)
            falls.append(before - score(lambda *x, m=masked: functional_call(plain, m, x)))
        found[share] = sum(falls) / draws
    return found


def _named(module: nn.Module, names: Mapping[str, Any]) -> dict[str, nn.Module]:
    return {name: module.get_submodule(name) for name in names}
