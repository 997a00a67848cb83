"""Permutation-invariant comparison: which estimate is whose does not count.

    value = min over permutations p of mean_j loss(estimate_p(j), target_j)        K sources

>>> targets = torch.randn(4, 3, 8_000)
>>> swapped = targets[:, [2, 0, 1]]
>>> value, order = pit(lambda e, t: -si_sdr(e, t), swapped, targets)
>>> value.shape, order[0].tolist()
(torch.Size([4]), [1, 2, 0])
>>> bool((permuted(swapped, order) == targets).all())
True

Source: Kolbaek, Yu, Tan, Jensen, IEEE/ACM TASLP 25 (2017), arXiv 1703.06284.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from passband.errors import DataError
from passband.parts.metrics.sdr import si_sdr  # noqa: F401  the example's

EXHAUSTIVE = 4  # sources up to which all permutations are compared; beyond, the Hungarian method


def best_permutation(loss_matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The assignment of least mean loss: [B, K, K] -> value [B], permutation [B, K].

    >>> value, order = best_permutation(torch.tensor([[[5.0, 1.0], [2.0, 9.0]]]))
    >>> value, order
    (tensor([1.5000]), tensor([[1, 0]]))

    loss_matrix  [b, i, j]: loss of estimate i against target j
    value        mean over the K pairs; gradients reach the chosen pairs
    permutation  [b, j]: the estimate that belongs to target j

    Raises `DataError` for matrices that are not square or not finite.
    """
    if loss_matrix.dim() != 3 or loss_matrix.shape[1] != loss_matrix.shape[2]:
        raise DataError(
            f"a loss matrix of shape {tuple(loss_matrix.shape)}",
            expected="[B, K, K], estimates by targets",
        )
    count = loss_matrix.shape[-1]
    known = loss_matrix.detach()
    if not bool(known.isfinite().all()):
        raise DataError(
            "losses that are not finite", expected="finite numbers",
            mend="look for NaN in the estimates or targets",
        )
    order = _exhaustive(known) if count <= EXHAUSTIVE else _assigned(known)
    pairs = loss_matrix.gather(1, order[:, None, :])[:, 0]
    return pairs.mean(-1), order


def pit(
    loss: Callable[[Tensor, Tensor], Tensor], estimates: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The least mean loss over permutations: -> value [B], permutation [B, K].

    >>> square = lambda e, t: (e - t).square().mean(-1)
    >>> value, order = pit(square, torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0], [1.0]]]))
    >>> value, order
    (tensor([0.]), tensor([[1, 0]]))

    loss                [B, K, K, L], [B, K, K, L] -> [B, K, K]: lower is better
    estimates, targets  [B, K, L]; other shapes raise `DataError`
    """
    if estimates.shape != targets.shape or estimates.dim() != 3:
        raise DataError(
            f"estimates {tuple(estimates.shape)} against targets {tuple(targets.shape)}",
            expected="both [B, K, L]",
            mend="as many references as the model has outputs, of one length",
        )
    batch, count, length = estimates.shape
    pairs = (batch, count, count, length)
    return best_permutation(
        loss(estimates[:, :, None].expand(pairs), targets[:, None].expand(pairs))
    )


def permuted(estimates: Tensor, permutation: Tensor) -> Tensor:
    """Estimates [B, K, ...] in the order of their targets: out[b, j] = estimates[b, p[b, j]]."""
    rows = torch.arange(len(estimates), device=estimates.device)[:, None]
    return estimates[rows, permutation]


@cache
def _permutations(count: int) -> Tensor:
    return torch.tensor(list(permutations(range(count))))


def _exhaustive(losses: Tensor) -> Tensor:
    orders = _permutations(losses.shape[-1]).to(losses.device)  # [K!, K]
    targets = torch.arange(losses.shape[-1], device=losses.device)
    return orders[losses[:, orders, targets].sum(-1).argmin(-1)]


def _assigned(losses: Tensor) -> Tensor:
    # Rows are targets: the result is then the estimate of each.
    rows = losses.transpose(1, 2).double().cpu().numpy()
    orders = np.stack([linear_sum_assignment(row)[1] for row in rows])
    return torch.from_numpy(orders).to(losses.device)
