"""Adaptive sharpness-aware minimisation: the gradient where the loss is worst nearby.

    e = rho T^2 g / |T g|,  T = |w| + eta;      the step at w takes the gradient at w + e

>>> w = nn.Parameter(torch.tensor([1.0, -2.0]))
>>> loss = lambda: (w ** 2).sum()
>>> gradients, _ = sharp_gradients(loss, [w], rho=0.5, eta=0.0)
>>> torch.round(gradients[0], decimals=4)   # 2 (w + e), e = (1, -8) / 68 ** 0.5
tensor([ 2.2425, -5.9403])
>>> w.data
tensor([ 1., -2.])

Two passes a step. Source: Kwon et al., arXiv 2102.11600.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from passband.errors import ConfigError


def sharp_gradients(
    loss: Callable[[], Tensor | tuple[Tensor, Any]], parameters: Sequence[Tensor], *,
    rho: float = 0.5, eta: float = 0.01,
) -> tuple[list[Tensor], tuple[Tensor, Any]]:
    """Gradients at the perturbed weights, and the loss (with what came along) at the given ones.

    loss        of the same batch at each call; draws the same noise each time if it draws any
    parameters  that are moved and put back
    rho, eta    size of the neighbourhood, and what small weights get of it
    """
    if not rho > 0 or not eta >= 0:
        raise ConfigError(f"rho = {rho}, eta = {eta}", expected="rho above 0, eta 0 or more")
    state = torch.get_rng_state()
    value, more = _split(loss())
    first = torch.autograd.grad(value, parameters, allow_unused=True)
    moves = _moves(parameters, first, rho, eta)
    torch.set_rng_state(state)  # the same dropout at both points
    with torch.no_grad():
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
    try:
        worse, _ = _split(loss())
        second = torch.autograd.grad(worse, parameters, allow_unused=True)
    finally:
        with torch.no_grad():
            for p, move in zip(parameters, moves, strict=True):
                p.sub_(move)
    found = [torch.zeros_like(p) if g is None else g
             for p, g in zip(parameters, second, strict=True)]
    return found, (value.detach(), more)


def _split(found: Tensor | tuple[Tensor, Any]) -> tuple[Tensor, Any]:
    return found if isinstance(found, tuple) else (found, None)


@torch.no_grad()
def _moves(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rho: float, eta: float
) -> list[Tensor]:
    scales = [p.abs() + eta for p in parameters]
    scaled = [torch.zeros_like(t) if g is None else t * g
              for t, g in zip(scales, gradients, strict=True)]
    norm = torch.stack([s.norm() for s in scaled]).norm().clamp_min(1e-12)
    return [rho * t * s / norm for t, s in zip(scales, scaled, strict=True)]
