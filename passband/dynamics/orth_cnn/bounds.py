"""How far from isometric a convolution can be, whatever the image size.

    eps          bound of err_s = ||calK calK^T - I||, or ||calK^T calK - I|| in the column case
    sigma        in [sqrt(max(0, 1 - eps)), sqrt(1 + eps)]
    rows:        | ||calK^T y||^2 - ||y||^2 | <= eps ||y||^2;   columns: the same of ||calK x||^2

Two bounds: the paper's sqrt(alpha L_orth), and the sum of spectral norms ||A_d - I0_d|| over the
shifts d, which by Cauchy and Schwarz is never above sqrt(M (2 P / S + 1)^n L) and mostly far below.

>>> weight = torch.linalg.qr(torch.randn(8, 8))[0][:, :, None, None]
>>> bounds = isometry_bounds(weight + 0.001 * torch.randn(8, 8, 1, 1))
>>> bounds.eps < 0.1, bounds.eps <= bounds.eps_paper
(True, True)

Source: theorem on stability and near-isometry, arXiv 2108.05623. M and C are those of a group; of
several groups the worst counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from passband.dynamics.orth_cnn.folding import folded
from passband.dynamics.orth_cnn.geometry import Case, Geometry, Sizes
from passband.dynamics.orth_cnn.model import half_of_shifts, lorth_stack, overlapping


@dataclass(frozen=True)
class Bounds:
    """
    lorth      L_orth, summed over groups
    alpha      the paper's constant; eps_paper = sqrt(alpha L_orth) of the worst group
    eps_shifts the sum over shifts; eps the smaller of both
    sigma_min, sigma_max   what follows from eps: all singular values lie between
    """

    case: Case
    lorth: float
    alpha: int
    eps_paper: float
    eps_shifts: float

    @property
    def eps(self) -> float:
        return min(self.eps_paper, self.eps_shifts)

    @property
    def sigma_min(self) -> float:
        return math.sqrt(max(0.0, 1 - self.eps))

    @property
    def sigma_max(self) -> float:
        return math.sqrt(1 + self.eps)


def isometry_bounds(
    weight: Tensor, stride: Sizes = 1, groups: int = 1, *, dilation: Sizes = 1
) -> Bounds:
    """Bounds of a weight [M, C / groups, *k], in float64."""
    geometry = Geometry.of(weight.shape, stride, groups, dilation)
    stack = weight.detach().cpu().double().reshape(groups, -1, *weight.shape[1:])
    penalties = lorth_stack(stack, stride, dilation=dilation).clamp_min(0)
    return Bounds(
        geometry.case, float(penalties.sum()), geometry.alpha,
        math.sqrt(geometry.alpha * float(penalties.max())), float(_over_shifts(stack, geometry)),
    )


def _over_shifts(stack: Tensor, geometry: Geometry) -> Tensor:
    """Largest over groups of sum_d ||B_d - I0_d||, of the side that the case speaks of."""
    side = folded(stack, geometry.phases)
    if geometry.case == "columns":
        side = side.transpose(1, 2)
    size = tuple(side.shape[3:])
    eye = torch.eye(side.shape[1], dtype=side.dtype)
    flat = side.flatten(2)
    total = torch.linalg.matrix_norm(flat @ flat.mT - eye, 2)
    if geometry.case == "columns" and geometry.phases != geometry.stride:
        total = total.clamp_min(1.0)  # inputs that no tap meets: zero columns, apart by 1
    for shift in half_of_shifts(size):
        here, there = overlapping(side, shift)
        total = total + 2 * torch.linalg.matrix_norm(here @ there.mT, 2)
    return total.max()
