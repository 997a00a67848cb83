"""Penalties on the logits of a model that is being tuned.

    Z_F, Z_P [M, C]   logits of the tuned and of the pretrained model on the same rows (examples of
                      a classifier, supervised tokens of a language model)
    consistency       T^2 mean KL( softmax(Z_P / T) || softmax(Z_F / T) )
    diversity         understanding: (1/C) sum_{i != j} C_ij^2, C the covariance of the columns
                      generation:    - mean entropy of the K leading logits, renormalised
    spectrum          - (sum of the k largest singular values of Z_F) / (sum of all, or ||Z_F||_F)

Source: Chang, Chang, Wu, arXiv 2408.04556, both published variants.

>>> Z = torch.randn(6, 4, requires_grad=True)
>>> float(consistency(Z.detach(), Z))
0.0
>>> spectrum(Z, k=4).item()                     # all of the spectrum
-1.0
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 1024  # rows whose softmax over the vocabulary is held at a time
FLOOR = 1e-12  # of eigenvalues, relative to the largest: below lies rounding


def consistency(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 times the mean over rows of KL(teacher || student); fp32, in chunks of rows."""
    total = student.new_zeros((), dtype=torch.float32)
    for p, q in zip(teacher.split(CHUNK), student.split(CHUNK), strict=True):
        chunked = len(student) > CHUNK and q.requires_grad
        total = total + (
            checkpoint(_divergence, p, q, temperature, use_reentrant=False)
            if chunked else _divergence(p, q, temperature)
        )
    return temperature**2 * total / max(len(student), 1)


def _divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    p = F.log_softmax(teacher.float() / temperature, -1)
    q = F.log_softmax(student.float() / temperature, -1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def normalised_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference of rows of length one (the 2024 variant for understanding)."""
    return F.mse_loss(F.normalize(student.float(), dim=-1), F.normalize(teacher.float(), dim=-1))


def covariance(logits: Tensor) -> Tensor:
    """(1/C) sum over i != j of the squared covariance of columns; needs two rows."""
    z = logits.float()
    z = z - z.mean(0)
    c = z.T @ z / (len(z) - 1)
    return (c.square().sum() - c.diagonal().square().sum()) / len(c)


def negative_entropy(logits: Tensor, top: int | None = None) -> Tensor:
    """Minus the mean entropy of rows, over the `top` leading logits; None: over all."""
    z = logits.float()
    if top is not None and top < z.shape[-1]:
        z = z.gather(-1, z.detach().topk(top, -1).indices)
    logp = F.log_softmax(z, -1)
    return (logp.exp() * logp).sum(-1).mean()


def spectrum(logits: Tensor, k: int, *, frobenius: bool = False) -> Tensor:
    """Minus the share of the k largest singular values; scale-free.

    The values are roots of the eigenvalues of the smaller Gram matrix in float64: their gradient
    needs the vectors alone, so equal values do no harm.
    """
    z = logits.double()
    gram = z @ z.T if z.shape[0] <= z.shape[1] else z.T @ z
    values = torch.linalg.eigvalsh(gram)
    kept = values[values > FLOOR * values[-1].detach()]
    if len(kept) == 0:
        return logits.new_zeros((), dtype=torch.float32)
    s = kept.sqrt()
    below = gram.diagonal().sum().sqrt() if frobenius else s.sum()
    return -(s[-k:].sum() / below).float()


def supervised_rows(
    logits: Tensor, labels: Tensor, *, legacy_mask: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows of a causal LM's logits [B, T, V] at supervised positions, with labels [B, T].

    legacy_mask  the released code's choice: the logits AT a supervised token, which predict the
                 token after it
    """
    if legacy_mask:
        wanted = labels != -100
        return logits[wanted], labels[wanted]
    wanted = labels[:, 1:] != -100
    return logits[:, :-1][wanted], labels[:, 1:][wanted]
