"""Attacks on classifiers: how far the accuracy falls when inputs are moved a little on purpose.

>>> model = nn.Linear(2, 2)
>>> x, y = torch.randn(5, 2), torch.zeros(5, dtype=torch.long)
>>> moved = pgd_l2(model, x, y, eps=0.5)
>>> bool(((moved - x).norm(dim=1) <= 0.5 + 1e-5).all())
True

Source: Madry et al., ICLR 2018, arXiv 1706.06083: projected gradient ascent on the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.bench.task import Data
from passband.errors import ConfigError
from passband.parts.modes import evaluating

if TYPE_CHECKING:
    from passband.data.labelled.labelled import Labelled

CHUNK = 512  # inputs at once
EPS = 0.5  # Euclidean distance between images of 0 to 1 a pixel, at which robustness is judged


def pgd_l2(
    logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, steps: int = 10, *,
    low: float | None = None, high: float | None = None, seed: int = 0,
) -> Tensor:
    """Inputs [B, ...] within Euclidean distance eps of x that the classifier is worst on.

    logits     (inputs) -> [B, C], differentiable
    low, high  what inputs may hold, e.g. 0 and 1 of images; None: anything
    steps      of length 2.5 eps / steps, from a random place in the ball
    """
    if not eps > 0 or steps < 1:
        raise ConfigError(f"eps = {eps}, steps = {steps}", expected="above 0, and 1 or more")
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([
        _attacked(logits, part, labels, eps, steps, low, high, generator)
        for part, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
    ])


def _attacked(
    logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float, steps: int,
    low: float | None, high: float | None, generator: torch.Generator,
) -> Tensor:
    start = torch.randn(x.shape, generator=generator).to(x)
    away = eps * torch.rand(len(x), generator=generator).to(x)
    moved = _inside(x + _scaled(start, away), x, eps, low, high)
    for _ in range(steps):
        moved.requires_grad_()
        with torch.enable_grad():
            loss = F.cross_entropy(logits(moved), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
        step = _scaled(gradient, torch.full((len(x),), 2.5 * eps / steps).to(x))
        moved = _inside(moved.detach() + step, x, eps, low, high)
    return moved


def _inside(
    moved: Tensor, x: Tensor, eps: float, low: float | None, high: float | None
) -> Tensor:
    """Cut to what inputs may hold, then to the ball; the way to x stays within the former."""
    if low is not None or high is not None:
        moved = moved.clamp(low, high)
    away = moved - x
    length = away.flatten(1).norm(dim=1)
    return x + _scaled(away, length.clamp(max=eps))


def _scaled(direction: Tensor, length: Tensor) -> Tensor:
    """Each row of [B, ...] brought to its length."""
    now = direction.flatten(1).norm(dim=1).clamp_min(1e-12)
    return direction * (length / now).view(-1, *[1] * (direction.dim() - 1))


def robustness(system: Any, data: Data[Labelled]) -> dict[str, float]:
    """Accuracy on test examples, in %, after `pgd_l2` within EPS of them.

    The attack goes through the system's normalisation. Inputs stay between the least and the
    largest value of the test part. A system without logits has no such figure.
    """
    if not hasattr(system, "logits") or not hasattr(system, "ready"):
        return {}
    x, y = data.test.x, data.test.right
    with evaluating(system.network):
        moved = pgd_l2(
            lambda inputs: system.logits(system.ready(inputs)), x, y, EPS,
            low=float(x.min()), high=float(x.max()),
        )
    found = torch.as_tensor(system.classify(moved.numpy()))
    return {"robust": 100 * float((found == y).double().mean())}
