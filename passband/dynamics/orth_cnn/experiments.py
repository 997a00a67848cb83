"""Gradient descent on penalties alone: which shapes get to zero, and what zero padding leaves.

>>> found = minimise((4, 8, 3, 3), seeds=[0, 1], steps=300)
>>> found.kernels.shape, bool(found.values.max() < 1e-3)
(torch.Size([2, 4, 8, 3, 3]), True)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.dynamics.orth_cnn.geometry import Geometry, Sizes
from passband.dynamics.orth_cnn.model import lorth_stack

STEPS, RATE = 800, 0.03  # of Adam; its rate falls to 0 along a half cosine


@dataclass(frozen=True)
class Minimised:
    """
    kernels  [seeds, M, C, *k];  values [seeds]: the objective there;  start [seeds]: before
    """

    kernels: Tensor
    values: Tensor
    start: Tensor


def minimise(
    shape: Sequence[int], stride: Sizes = 1, seeds: Sequence[int] = (0,), steps: int = STEPS, *,
    lr: float = RATE, init: float = 1.0,
    objective: Callable[[Tensor], Tensor] | None = None,
) -> Minimised:
    """Adam on L_orth from Glorot's normal draws, every seed's kernel in one tensor.

    shape      [M, C, *k];  init: factor of the draws
    objective  [seeds, M, C, *k] -> [seeds] in place of L_orth. Each seed's value depends on its own
               kernel alone, so a stack moves as runs of their own do
    """
    geometry = Geometry.of(shape, stride)
    taps = math.prod(geometry.kernel)
    deviation = init * math.sqrt(2 / ((geometry.M + geometry.C) * taps))
    draws = [
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    kernels = (deviation * torch.stack(draws)).requires_grad_()
    loss = objective or (lambda stack: lorth_stack(stack, stride))
    optimizer = torch.optim.Adam([kernels], lr=lr)
    start = loss(kernels).detach()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        loss(kernels).sum().backward()
        optimizer.step()
    with torch.no_grad():
        return Minimised(kernels.detach(), loss(kernels), start)


def zero_padded_error(kernels: Tensor, size: int) -> Tensor:
    """||calK calK^T - I||^2 (or calK^T calK, the shorter side) with zero padding, stride 1.

    kernels  [B, M, C, k, k] with odd k -> [B], of images of size x size: the matrix itself is made
    """
    _, m, c, k, _ = kernels.shape
    pixels = torch.eye(c * size**2, dtype=kernels.dtype).view(-1, c, size, size)
    found = []
    for kernel in kernels:
        matrix = F.conv2d(pixels, kernel, padding=k // 2).flatten(1)  # its transpose
        short = matrix.T if m <= c else matrix
        gram = short @ short.T
        found.append((gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum())
    return torch.stack(found)


def valid_column_error(kernels: Tensor, size: int) -> Tensor:
    """||calK^T calK - I||^2 without padding, stride 1; as `zero_padded_error`."""
    c = kernels.shape[2]
    pixels = torch.eye(c * size**2, dtype=kernels.dtype).view(-1, c, size, size)
    found = []
    for kernel in kernels:
        matrix = F.conv2d(pixels, kernel).flatten(1)
        gram = matrix @ matrix.T
        found.append((gram - torch.eye(len(gram), dtype=gram.dtype)).square().sum())
    return torch.stack(found)
