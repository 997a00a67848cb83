"""Runs of the claims: coloured digits, one network for each seed, all seeds as one stack.

    run_seeds(Setting("hgp"), seeds)  ->  Runs: accuracies and distances along the way, one a seed

Every method has the same network, start, steps and optimiser; they differ in the penalty and its
weight. What is reported is the last step.

>>> runs = run_seeds(Setting("vrex", steps=4, anneal=2, size="smoke", hidden=(8,)), (0, 1))
>>> runs.last("test").shape
(2,)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from passband.bench.task import Size
from passband.data.labelled.coloured import (
    coloured_digits,
    grey_digits,
    imbalanced_digits,
    many_coloured_digits,
)
from passband.data.labelled.labelled import Parts
from passband.dynamics.domains import domain_loss, xavier_
from passband.dynamics.hessian_align.model import HessianAlign
from passband.dynamics.networks import build
from passband.parts.domain_batches import PenaltyAnneal
from passband.parts.head_curvature import head_gradient, hessian_distance, probabilities
from passband.parts.losses.domains import IRM, DomainPenalty, Fishr, VREx
from passband.parts.seeds import Each, Stack, train_seeds

PENALTIES: dict[str, Callable[[], DomainPenalty | None]] = {
    "erm": lambda: None,
    "hgp": lambda: HessianAlign(estimator="hgp", validate=False),
    "diag": lambda: HessianAlign(estimator="diag_exact", validate=False),
    "hutchinson": lambda: HessianAlign(estimator="hutchinson", probes=100, validate=False),
    "irm": lambda: IRM(validate=False),
    "vrex": lambda: VREx(validate=False),
    "fishr": lambda: Fishr(ema=0.0, validate=False),
}
MADE: dict[str, Callable[[int, Size], Parts]] = {
    "coloured": coloured_digits, "imbalanced": imbalanced_digits, "grey": grey_digits,
    "many": many_coloured_digits,
}


@dataclass(frozen=True)
class Setting:
    """A method on a kind of data.

    weight  of the penalty from step `anneal` on; 1 before
    """

    method: str
    data: str = "coloured"
    weight: float = 1e4
    anneal: int = 100
    steps: int = 400
    lr: float = 1e-3
    l2: float = 1e-3
    hidden: tuple[int, ...] = (64, 64)
    size: Size = "small"


@dataclass(eq=False)
class Runs:
    """rows  {"step", "train", "test" in [0, 1], "gradient", "hessian"}, values [S] each

    gradient, hessian  distances of the two training domains in the head (Frobenius for the latter)
    """

    setting: Setting
    seeds: tuple[int, ...]
    rows: list[dict[str, Any]] = field(repr=False)

    def curve(self, name: str) -> np.ndarray:
        """[rows, S]."""
        return np.array([row[name] for row in self.rows])

    def last(self, name: str) -> np.ndarray:
        """[S] after the last step."""
        return self.curve(name)[-1]


class Seen(nn.Module):
    """A network that gives its features beside its outputs: [B, d + C]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.head = network, network.head

    def features(self, x: Tensor) -> Tensor:
        found: Tensor = self.network.features(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return torch.cat([h, self.head(h)], -1)


@lru_cache(maxsize=32)
def run_seeds(setting: Setting, seeds: tuple[int, ...], every: int = 20) -> Runs:
    """Several claims look at the same runs: in one process they are trained once."""
    parts = [MADE[setting.data](seed, setting.size) for seed in seeds]
    x, y, sizes = _stacked(parts)
    test_x = Each(torch.stack([p.test.x for p in parts]))
    test_y = torch.stack([p.test.y for p in parts])
    penalty = PENALTIES[setting.method]()
    anneal = PenaltyAnneal(setting.anneal, 1.0, setting.weight) if penalty else None
    now = [0]

    def batch(step: int) -> tuple[Each, Each]:
        now[0] = step
        return x, y

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        total, _ = domain_loss(
            model, images, labels, sizes, penalty, anneal, now[0], setting.l2
        )
        return total

    def observe(step: int, stack: Stack) -> dict[str, Any]:
        seen = stack(x)
        return {
            "train": _accuracy(seen, y.tensor), "test": _accuracy(stack(test_x), test_y),
            **_distances(seen, y.tensor, sizes),
        }

    stack = train_seeds(
        lambda seed: _network(setting), loss, batch, seeds, setting.steps, setting.lr,
        optimizer="adam", observe=observe, every=every,
    )
    return Runs(setting, seeds, stack.rows)


def _network(setting: Setting) -> Seen:
    return Seen(xavier_(build("mlp", (2, 8, 8), 1, hidden=setting.hidden)))


def _stacked(parts: Sequence[Parts]) -> tuple[Each, Each, list[int]]:
    """x [S, N, ...], y [S, N], domains one after the other, and their sizes.

    Sizes that differ between seeds (imbalanced classes are drawn) are cut to the smallest.
    """
    domains = [p.train.by_group() for p in parts]
    sizes = [min(len(one[e]) for one in domains) for e in range(len(domains[0]))]
    x = [torch.cat([d.x[:n] for d, n in zip(one, sizes, strict=True)]) for one in domains]
    y = [torch.cat([d.y[:n] for d, n in zip(one, sizes, strict=True)]) for one in domains]
    return Each(torch.stack(x)), Each(torch.stack(y)), sizes


def _accuracy(seen: Tensor, y: Tensor) -> list[float]:
    """[S] shares of right answers."""
    found: list[float] = ((seen[..., -1] > 0).long() == y).double().mean(1).tolist()
    return found


def _distances(seen: Tensor, y: Tensor, sizes: Sequence[int]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"gradient": [], "hessian": []}
    for rows, labels in zip(seen, y, strict=True):
        parts = [
            (part[:, :-1].double(), probabilities(part[:, -1:].double()))
            for part in torch.split(rows, list(sizes))
        ]
        split = torch.split(labels, list(sizes))
        one, two = (head_gradient(*part, own) for part, own in zip(parts, split, strict=True))
        found["gradient"].append(float((one - two).norm()))
        found["hessian"].append(float(hessian_distance(*parts[0], *parts[1])))
    return found
