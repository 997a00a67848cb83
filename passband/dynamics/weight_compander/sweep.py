"""Many seeds of one training at once, with and without companders: what the claims compare.

>>> arm = Arm(hidden=(16,), epochs=1)
>>> found = run(arm, seeds=[0, 1])
>>> found.accuracy.shape
torch.Size([2])

Each seed has digits of its own to learn from (`digits-few`: 300, the other 1,197 test) and its own
weights and order; an MLP 64-256-256-10 is trained by SGD with momentum. Networks of all seeds are
one stack of tensors (`passband.parts.seeds`), so that nothing that mixes them is used: gradients
are not clipped by their norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.data.labelled.digits import few
from passband.dynamics.layers import typical_size, weighted_layers
from passband.dynamics.networks import build, normalisation
from passband.dynamics.weight_compander.model import REACH, compand, uncompand
from passband.parts.seeds import Each, Stack, train_seeds

SCALE_LR = 0.1  # rate of a and b, in units of lr


@dataclass(frozen=True)
class Arm:
    """One training.

    method          plain; compander; clip: weights cut off at the compander's first bound;
                    weight-norm
    bound, slope    of the compander: a = 3 bound std, b = a / slope
    learn           a and b are trained
    dropout         after each ReLU
    smoothing       of labels
    """

    method: Literal["plain", "compander", "clip", "weight-norm"] = "plain"
    lr: float = 0.1
    weight_decay: float = 1e-3
    bound: float = 1.0
    slope: float = 1.5
    learn: bool = False
    curve: str = "arctan"
    init: Literal["match", "raw"] = "match"
    dropout: float = 0.0
    smoothing: float = 0.0
    hidden: tuple[int, ...] = (256, 256)
    epochs: int = 60
    batch_size: int = 50
    momentum: float = 0.9

    def network(self) -> nn.Module:
        """Fresh weights from torch's generator: the same ones whatever the method."""
        plain = build("mlp", (1, 8, 8), 10, hidden=self.hidden, dropout=self.dropout)
        if self.method == "compander":
            return compand(
                plain, bound=self.bound, slope=self.slope, curve=self.curve, learn=self.learn,
                init=self.init,
            )
        if self.method == "weight-norm":
            for layer in weighted_layers(plain).values():
                nn.utils.parametrize.register_parametrization(layer, "weight", _Normalised(layer))
        return plain


@dataclass(frozen=True)
class Found:
    """What became of the seeds of an arm; `accuracy` [S] in %, of the test digits."""

    arm: Arm
    stack: Stack = field(repr=False)
    accuracy: Tensor
    test: tuple[Tensor, Tensor] = field(repr=False)

    def plain(self, i: int) -> nn.Module:
        """The trained network of seed number i, without its companders."""
        return uncompand(self.stack.model(i))


@lru_cache(maxsize=16)
def digits_of(seeds: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [S, N, 1, 8, 8] and y [S, N] to learn from, the same to be judged by; x normalised."""
    rows = []
    for seed in seeds:
        parts = few(seed)
        mean, std = normalisation(parts.train.x)
        test = parts.test
        assert test is not None
        rows.append((
            (parts.train.x - mean) / std, parts.train.y, (test.x - mean) / std, test.y,
        ))
    x, y, x_test, y_test = (torch.stack(part) for part in zip(*rows, strict=True))
    return x, y, x_test, y_test


def run(arm: Arm, seeds: Sequence[int]) -> Found:
    """Train all seeds of an arm and judge them."""
    return _run(arm, tuple(seeds))


@lru_cache(maxsize=64)
def _run(arm: Arm, seeds: tuple[int, ...]) -> Found:
    """Several claims look at the same runs: in one process they are trained once."""
    x, y, x_test, y_test = digits_of(seeds)
    bounds: dict[str, Tensor] = {}

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=arm.smoothing)

    def before_step(step: int, stack: Stack) -> dict[str, Any]:
        if not step:
            _slow_scales(stack)
            if arm.method == "clip":
                bounds.update(_bounds(arm, stack))
        _clip(stack, bounds)
        return {}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[0])  # of dropout's masks
        stack = train_seeds(
            lambda seed: arm.network(), loss, (Each(x), Each(y)), seeds,
            steps=arm.epochs * (x.shape[1] // arm.batch_size), lr=arm.lr, optimizer="sgd",
            weight_decay=arm.weight_decay, momentum=arm.momentum,
            decayed=lambda name, _: not name.endswith((".log_a", ".log_b")),
            batch_size=arm.batch_size, observe=before_step, every=1 if arm.method == "clip" else 10,
        )
    right = stack(Each(x_test)).argmax(-1) == y_test
    return Found(arm, stack, 100 * right.double().mean(1), (x_test, y_test))


def _slow_scales(stack: Stack) -> None:
    """A tenth of the learning rate for a and b: with SGD, a tenth of their gradients."""
    for name, tensor in stack.tensors.items():
        if name.endswith((".log_a", ".log_b")) and tensor.requires_grad:
            tensor.register_hook(lambda g: SCALE_LR * g)  # type: ignore[no-untyped-call]


def _bounds(arm: Arm, stack: Stack) -> dict[str, Tensor]:
    """[S, 1, 1] for each weight matrix: the bound of a compander that starts there."""
    return {
        name: torch.tensor([REACH * arm.bound * torch.pi / 2 * typical_size(w) for w in t])[
            :, None, None
        ]
        for name, t in stack.tensors.items() if t.dim() == 3
    }


@torch.no_grad()
def _clip(stack: Stack, bounds: dict[str, Tensor]) -> None:
    for name, bound in bounds.items():
        tensor = stack.tensors[name]
        tensor.copy_(torch.maximum(torch.minimum(tensor, bound), -bound))


class _Normalised(nn.Module):
    """w = g v / |v| by outputs; torch's own kernel can't be mapped over seeds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.length = nn.Parameter(cast(Tensor, layer.weight).detach().norm(dim=1, keepdim=True))

    def forward(self, v: Tensor) -> Tensor:
        direction: Tensor = v / v.norm(dim=1, keepdim=True)
        return self.length * direction
