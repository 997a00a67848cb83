"""Pressure on sparse vectors to be short lists: the expected cost of searching them.

    L_FLOPS(W) = sum_j (mean_i |w_ij|)^2            W [N, V]: N documents, V vocabulary
    lambda(t)  = lambda min(1, (t + 1) / T)^2

A query that weights entry j by idf_j needs documents' weights w only up to that factor: with
u_j = idf_j w_j in the index and a query of ones, L_FLOPS(w) = sum_j (mean_i u_ij / idf_j)^2. The
same penalty then presses frequent entries hardest and leaves rare ones alone (`idf_aware_flops`).

>>> w = torch.tensor([[1.0, 0.0, 3.0], [1.0, 2.0, 0.0]])
>>> float(flops(w))                                      # 1^2 + 1^2 + 1.5^2
4.25
>>> idf = torch.tensor([0.5, 2.0, 4.0])
>>> float(idf_aware_flops(w * idf, idf))
4.25
>>> [ramp(t, 4) for t in (0, 1, 3, 9)]
[0.0625, 0.25, 1.0, 1.0]

Source: Paria et al., ICLR 2020 (arXiv 2004.05665); Geng et al., arXiv 2411.04403 (idf); Shen et
al., arXiv 2504.14839 (threshold).
"""

from __future__ import annotations

from torch import Tensor

from passband.errors import DataError


def flops(weights: Tensor, groups: int = 1, threshold: int = 0) -> Tensor:
    """Sum over entries of the squared mean absolute weight.

    weights    [N, V]
    groups     documents of one query lie one after the other, `groups` of them: the mean is taken
               over the queries for each position in the group, and positions are summed too
    threshold  documents with at most so many entries count as empty: they are short enough

    Raises `DataError` where the rows are no multiple of `groups`.
    """
    if weights.ndim != 2 or groups < 1 or len(weights) % groups:
        raise DataError(
            f"weights {tuple(weights.shape)} in groups of {groups}",
            expected="[N, V] with N a multiple of the group", mend="give every query as many",
        )
    if threshold:
        weights = weights * ((weights != 0).sum(1, keepdim=True) > threshold)
    grouped = weights.abs().reshape(-1, groups, weights.shape[1])
    return grouped.mean(0).square().sum()


def idf_aware_flops(
    weights: Tensor, idf: Tensor, groups: int = 1, threshold: int = 0
) -> Tensor:
    """`flops` of weights that have the query's idf in them already; idf [V] above 0."""
    return flops(weights / idf, groups, threshold)


def ramp(step: int, length: int) -> float:
    """Share of the penalty in step `step` (from 0): quadratic, whole from step length - 1 on."""
    return min(1.0, (step + 1) / max(1, length)) ** 2

