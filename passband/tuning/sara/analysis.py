"""What kind of change was learned: how it lies to the weights it changes, and to other changes.

    amplification f_a = |dP|_F / |U^T P V|_F       U, V: leading r singular vectors of dP
    similarity    phi = |U1^T U2|_F^2 / min(r1, r2)    of the leading left singular vectors; 0 to 1

A large f_a: the change strengthens directions that the pretrained weights hardly use. Source:
SaRA, arXiv 2409.06633, appendix; Hu et al., arXiv 2106.09685, section 7.

>>> P = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
>>> dP = torch.diag(torch.tensor([0.0, 0.0, 3.0]))
>>> amplification(dP, P, rank=1)
3.0
>>> similarity(dP, P, rank=1)
0.0
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.spectral import gram_svd


def amplification(delta: Tensor, weight: Tensor, rank: int) -> float:
    """|dP|_F / |U^T P V|_F for matrices [m, n]; inf when P has nothing in these directions.

    Raises `DataError` for shapes that don't agree or a rank that they can't have.
    """
    _check(delta, weight, rank)
    svd = gram_svd(delta).top(rank)
    within = torch.linalg.matrix_norm(svd.U.T @ weight.detach().double() @ svd.Vh.T)
    size = float(torch.linalg.matrix_norm(delta.detach().double()))
    return size / float(within) if float(within) > 0 else math.inf


def similarity(first: Tensor, second: Tensor, rank: int, other_rank: int | None = None) -> float:
    """phi of the leading left singular vectors of two matrices [m, n], [m, k]: 1 for the same.

    rank, other_rank  how many of each; `other_rank` None: the same
    """
    other = rank if other_rank is None else other_rank
    if first.shape[0] != second.shape[0]:
        raise DataError(
            f"matrices {tuple(first.shape)} and {tuple(second.shape)}", expected="equally many rows"
        )
    _check(first, first, rank)
    _check(second, second, other)
    left, right = gram_svd(first).top(rank).U, gram_svd(second).top(other).U
    return float((left.T @ right).square().sum()) / min(rank, other)


def _check(first: Tensor, second: Tensor, rank: int) -> None:
    if first.ndim != 2 or first.shape != second.shape:
        raise DataError(
            f"matrices {tuple(first.shape)} and {tuple(second.shape)}", expected="the same [m, n]"
        )
    if not 1 <= rank <= min(first.shape):
        raise DataError(f"rank {rank}", expected=f"1 to {min(first.shape)}")
