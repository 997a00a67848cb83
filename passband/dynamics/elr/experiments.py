"""The same network from several seeds at once, with ELR or without, on digits with wrong labels.

>>> found = learn(Setting(hidden=(32,), epochs=2, size="smoke"), seeds=[0, 1])
>>> len(found), sorted(found[0].memory)
(2, ['clean_missed', 'clean_right', 'memorised', 'other', 'recovered'])

Each seed has labels, initial weights and batches of its own; seeds are an axis of every tensor
(`passband.parts.seeds`). Accuracies are on clean test images; which epoch is best is said by the
validation images, whose labels are as wrong as those of training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from passband.bench.schedule import factor
from passband.data.labelled.digits import Size, pair_noise, symmetric_noise
from passband.data.labelled.labelled import Parts
from passband.dynamics.elr.memorization import MemorizationTracker
from passband.dynamics.elr.model import ELRLoss
from passband.dynamics.elr.suspects import Suspects, flag_mislabeled
from passband.dynamics.networks import MLP, normalisation
from passband.errors import UnknownNameError
from passband.parts.seeds import Each, Stack, train_seeds

NOISES: dict[str, Callable[..., Parts]] = {"symmetric": symmetric_noise, "pair": pair_noise}


@dataclass(frozen=True)
class Setting:
    """lam = 0 is cross-entropy. A tenth of the epochs is a period of the cosine."""

    noise: str = "symmetric"
    rate: float = 0.4
    lam: float = 3.0
    beta: float = 0.7
    hidden: tuple[int, ...] = (512, 512)
    epochs: int = 100
    batch_size: int = 64
    lr: float = 0.02
    weight_decay: float = 1e-3
    size: Size = "small"


@dataclass(frozen=True, eq=False)
class Learned:
    """One seed's run; accuracies in [0, 1].

    test, best     clean test accuracy at the end, and at the epoch that validation finds best
    fitted         share of the given training labels, right or wrong, that come out
    memory         shares of `MemorizationTracker` at the end
    rows           the same on the way, with steps
    """

    seed: int
    test: float
    best: float
    fitted: float
    memory: Mapping[str, float]
    suspects: Suspects = field(repr=False)
    wrong: Tensor = field(repr=False)
    rows: Sequence[Mapping[str, float]] = field(repr=False, default=())


class _Learner(nn.Module):
    """A network beside its loss: the targets are then an axis of seeds like the weights."""

    def __init__(self, network: nn.Module, rows: int, setting: Setting) -> None:
        super().__init__()
        self.network = network
        self.elr = ELRLoss(rows, 10, setting.lam, setting.beta, checks=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        return out

    def loss(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        found: Tensor = self.elr(self.network(x), y, index)
        return found


def learn(setting: Setting, seeds: Sequence[int]) -> list[Learned]:
    """Train from all seeds; raises UnknownNameError for a noise."""
    if setting.noise not in NOISES:
        raise UnknownNameError("noise", setting.noise, NOISES)
    parts = [NOISES[setting.noise](seed, setting.size, setting.rate) for seed in seeds]
    scales = [normalisation(part.train.x) for part in parts]

    def stacked(name: str) -> Each:
        """x [S, N, ...] of a part, scaled as that seed's training images ask for."""
        return Each(torch.stack([
            (getattr(part, name).x - mean) / std
            for part, (mean, std) in zip(parts, scales, strict=True)
        ]))

    train, valid, test = stacked("train"), stacked("valid"), stacked("test")
    rows = train.tensor.shape[1]
    per_epoch = rows // setting.batch_size
    steps = setting.epochs * per_epoch
    trackers = [
        MemorizationTracker(x, part.train.right, part.train.y)
        for x, part in zip(train.tensor, parts, strict=True)
    ]

    def look(_: int, runs: Stack) -> dict[str, Any]:
        given, checked, judged = (runs(x).argmax(2) for x in (train, valid, test))
        return {
            "memory": [t.count(row) for t, row in zip(trackers, given, strict=True)],
            "fitted": [_right(row, p.train.y) for row, p in zip(given, parts, strict=True)],
            "valid": [_right(row, p.valid.y) for row, p in zip(checked, parts, strict=True)],
            "test": [_right(row, p.test.right) for row, p in zip(judged, parts, strict=True)],
        }

    runs = train_seeds(
        lambda _: _Learner(MLP((1, 8, 8), 10, hidden=setting.hidden), rows, setting),
        lambda learner, x, y, index: learner.loss(x, y, index),
        (train, Each(torch.stack([part.train.y for part in parts])), torch.arange(rows)),
        seeds, steps, setting.lr, optimizer="sgd", momentum=0.9,
        weight_decay=setting.weight_decay, batch_size=setting.batch_size,
        schedule=lambda step: factor(
            "cosine", steps=step, fraction=step / steps, final=0.05, periods=10
        ),
        observe=look, every=per_epoch * max(1, setting.epochs // 20),
    )
    last = runs.rows[-1]
    found = []
    for i, (seed, part) in enumerate(zip(seeds, parts, strict=True)):
        best = max(runs.rows[1:], key=lambda row: row["valid"][i])
        targets = runs.tensors["elr.store.targets"][i]
        found.append(Learned(
            seed, last["test"][i], best["test"][i], last["fitted"][i], last["memory"][i],
            flag_mislabeled(targets, part.train.y), part.train.wrong,
            [{"step": row["step"], **row["memory"][i]} for row in runs.rows],
        ))
    return found


def _right(given: Tensor, labels: Tensor) -> float:
    return float((given == labels).double().mean())
