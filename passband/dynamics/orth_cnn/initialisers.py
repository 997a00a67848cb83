"""Kernels at which L_orth is 0: where training may start.

    delta_orthogonal_    one tap, or a block of taps under a stride, is semi-orthogonal, the rest 0
    block_orthogonal_    all taps of a full kernel: a product of two-tap factors
                         P z^0 + (I - P) z^1 with random projections P, one factor a tap and axis

>>> weight = torch.empty(32, 16, 3, 3)
>>> from passband.dynamics.orth_cnn.model import lorth
>>> bool(lorth(delta_orthogonal_(weight)) < 1e-8), bool(lorth(block_orthogonal_(weight)) < 1e-8)
(True, True)

Both raise `NoOrthogonalLayerError` for shapes of which no orthogonal kernel exists. Source: Xiao et
al., ICML 2018, arXiv 1806.05393, for square kernels of stride 1; under a stride the same is done to
the folded kernel, whose phases take the place of input channels.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from passband.dynamics.orth_cnn.existence import demand
from passband.dynamics.orth_cnn.folding import unfolded
from passband.dynamics.orth_cnn.geometry import Geometry, Sizes
from passband.errors import DataError

Generator = torch.Generator | None


@torch.no_grad()
def delta_orthogonal_(
    weight: Tensor, stride: Sizes = 1, groups: int = 1, *, dilation: Sizes = 1, gain: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """Fill a weight [M, C / groups, *k] in place: signals pass unmixed over pixels.

    With M <= C or stride 1 the centre tap alone is filled; else a centred block of as many taps as
    the stride has phases.
    """
    geometry = _checked(weight, stride, groups, dilation)
    one = geometry.M <= geometry.C or max(geometry.stride) == 1
    block = (1,) * len(geometry.kernel) if one else geometry.met
    places = tuple(
        slice((k - b) // 2, (k - b) // 2 + b) for k, b in zip(geometry.kernel, block, strict=True)
    )
    weight.zero_()
    for part in weight.split(geometry.M):
        inner = semi_orthogonal(geometry.M, geometry.C * math.prod(block), generator)
        part[(..., *places)] = gain * inner.view(geometry.M, geometry.C, *block).to(weight)
    return weight


@torch.no_grad()
def block_orthogonal_(
    weight: Tensor, stride: Sizes = 1, groups: int = 1, *, dilation: Sizes = 1, gain: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """Fill a weight [M, C / groups, *k] in place with a kernel that mixes neighbouring pixels.

    Under a stride the folded kernel has k // S taps on an axis; taps beyond whole strides stay 0.
    """
    geometry = _checked(weight, stride, groups, dilation)
    taps = tuple(k // p for k, p in zip(geometry.kernel, geometry.met, strict=True))
    # A phase that the kernel doesn't meet has no second tap either.
    taps = tuple(
        t if p == s else 1 for t, p, s in zip(taps, geometry.met, geometry.phases, strict=True)
    )
    filled = tuple(slice(0, t * p) for t, p in zip(taps, geometry.met, strict=True))
    columns = geometry.C * math.prod(geometry.met)
    weight.zero_()
    for part in weight.split(geometry.M):
        kernel = _projections(max(geometry.M, columns), taps, generator)
        outer = semi_orthogonal(geometry.M, columns, generator)
        # Rows or columns of an orthogonal square kernel: the longer side is the kernel's.
        mixed = (
            torch.einsum("mr,rc...->mc...", outer, kernel) if columns >= geometry.M
            else torch.einsum("mr...,rc->mc...", kernel, outer)
        )
        part[(..., *filled)] = gain * unfolded(mixed, geometry.met).to(weight)
    return weight


def semi_orthogonal(rows: int, columns: int, generator: Generator = None) -> Tensor:
    """[rows, columns] float64, uniform among matrices whose shorter side is orthonormal.

    >>> q = semi_orthogonal(3, 5)
    >>> bool(torch.allclose(q @ q.T, torch.eye(3, dtype=torch.float64)))
    True
    """
    draw = torch.randn(
        max(rows, columns), min(rows, columns), dtype=torch.float64, generator=generator,
        device="cpu",
    )
    q, r = torch.linalg.qr(draw)
    q = q * r.diagonal().sign()  # without it the distribution leans with the QR's convention
    return q if rows >= columns else q.T


def _projections(width: int, taps: tuple[int, ...], generator: Generator) -> Tensor:
    """An orthogonal kernel [width, width, *taps] of stride 1."""
    axes = len(taps)
    kernel = semi_orthogonal(width, width, generator).view(width, width, *(1,) * axes)
    for axis, count in enumerate(taps):
        for _ in range(count - 1):
            basis = semi_orthogonal(width, max(1, width // 2), generator)
            first = basis @ basis.T
            kernel = _two_taps(kernel, first, axis + 2)
    return kernel


def _two_taps(kernel: Tensor, first: Tensor, axis: int) -> Tensor:
    """The kernel after a factor of two taps, `first` and I - first, on one axis."""
    now = torch.einsum("rs,sc...->rc...", first, kernel)
    shape = list(kernel.shape)
    shape[axis] = 1
    gap = kernel.new_zeros(shape)
    return torch.cat([now, gap], axis) + torch.cat([gap, kernel - now], axis)


def _checked(weight: Tensor, stride: Sizes, groups: int, dilation: Sizes) -> Geometry:
    if not weight.is_floating_point():
        raise DataError(f"a weight of type {weight.dtype}", expected="real numbers")
    geometry = Geometry.of(weight.shape, stride, groups, dilation)
    demand(geometry, f"weight {list(weight.shape)}")
    return geometry


def taps_of(weight: Tensor) -> list[float]:
    """Share of the squared norm in each tap, in order: how far a kernel is from a 1x1 one.

    >>> [round(v, 6) for v in taps_of(delta_orthogonal_(torch.empty(2, 2, 3)))]
    [0.0, 1.0, 0.0]
    """
    energy = weight.detach().double().square().sum((0, 1))
    total = energy.sum()
    return [float(energy[i] / total) for i in product(*map(range, energy.shape))]
