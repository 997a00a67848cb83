"""Losses that make a student rank candidates as a teacher does.

    B queries, C candidates of each; scores [B, C]

    KL          mean over queries of sum_c p_c (log p_c - log q_c),
                p = softmax(teacher / temp), q = softmax(student / temp)
    MarginMSE   mean of ((s_0 - s_c) - (t_0 - t_c))^2 over c = 1 .. C - 1, candidate 0 the positive
    ensemble    scale mean over teachers of (t - min t) / (max t - min t + 1e-6), per query

>>> teacher = torch.tensor([[3.0, 1.0, 0.0]])
>>> float(kl_divergence(teacher, teacher)), float(margin_mse(teacher + 7, teacher))
(0.0, 0.0)
>>> ensemble([teacher, torch.tensor([[200.0, 100.0, 0.0]])], scale=30.0).round(decimals=3)
tensor([[30.0000, 12.5000,  0.0000]])

Sources: Hinton et al., arXiv 1503.02531; Hofstaetter et al., arXiv 2010.02666 (MarginMSE); Geng et
al., arXiv 2411.04403 (ensemble of heterogeneous teachers).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.errors import DataError

EPS = 1e-6  # of the normalisation: teachers that score all candidates alike give zeros


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the distributions over candidates, mean over queries.

    student, teacher  scores [B, C]
    temperature       both are divided by it; the result is not multiplied back
    """
    _same(student, teacher)
    wanted = F.log_softmax(teacher / temperature, dim=1)
    found = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared difference of the margins of candidate 0 over each other one, mean over all."""
    _same(student, teacher)
    if student.shape[1] < 2:
        raise DataError(
            "a margin of one candidate", expected="a positive and at least one negative"
        )
    return F.mse_loss(student[:, :1] - student[:, 1:], teacher[:, :1] - teacher[:, 1:])


def min_max(scores: Tensor) -> Tensor:
    """Scores of each query's candidates from 0 to 1, [B, C]."""
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return (scores - low) / (high - low + EPS)


def ensemble(
    teachers: Sequence[Tensor], scale: float = 30.0, normalise: bool = True
) -> Tensor:
    """Scores of one teacher made of several, [B, C].

    teachers   scores [B, C] each, over the candidates that are actually compared
    scale      of the result; it has to suit the student's own range of scores
    normalise  False: the plain mean, in which the teacher with the largest scores drowns the rest
               (`scale` then has no effect)
    """
    if not teachers:
        raise DataError("no teacher", expected="at least one")
    for other in teachers[1:]:
        _same(teachers[0], other)
    if not normalise:
        return torch.stack(list(teachers)).mean(0)
    return scale * torch.stack([min_max(scores) for scores in teachers]).mean(0)


def _same(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 2:
        raise DataError(
            f"scores {tuple(first.shape)} and {tuple(second.shape)}", expected="both [B, C]"
        )
