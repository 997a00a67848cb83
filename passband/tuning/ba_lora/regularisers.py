"""Penalties on the logits of a model that is being tuned.

    Z_F, Z_P [M, C]   logits of the tuned and of the pretrained model on the same rows (examples of
                      a classifier, supervised tokens of a language model)
    consistency       T^2 mean KL( softmax(Z_P / T) || softmax(Z_F / T) )
    diversity         understanding: (1/C) sum_{i != j} C_ij^2, C the covariance of the columns
                      generation:    - mean entropy of the K leading logits, renormalised
    spectrum          - (sum of the k largest singular values of Z_F) / (sum of all, or ||Z_F||_F)

Source: Chang, Chang, Wu, arXiv 2408.04556, both published variants.

>>> Z = torch.randn(6, 4, requires_grad=True)
>>> consistency(Z.detach(), Z).item()
0.0
>>> spectrum(Z, k=4).item()                     # all of the spectrum
-1.0
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from passband.parts.spectral import gram, ordered_eigh

ROWS = 1024  # whose softmax over the vocabulary is held at a time
COLUMNS = 4096  # of the logits that are held in float64 at a time
FLOOR = 1e-12  # of squared singular values, relative to the largest: below lies rounding
SMALLEST = 1e-8  # norm of logits that have a spectrum


def consistency(teacher: Tensor, student: Tensor, temperature: float = 2.0) -> Tensor:
    """T^2 times the mean over rows of KL(teacher || student); fp32, in chunks of rows."""
    total = student.new_zeros((), dtype=torch.float32)
    several = len(student) > ROWS and student.requires_grad
    for p, q in zip(teacher.split(ROWS), student.split(ROWS), strict=True):
        # Kept for the backward pass, the softmax of every chunk would be there at once.
        total = total + (
            checkpoint(_divergence, p, q, temperature, use_reentrant=False,
                       preserve_rng_state=False)
            if several else _divergence(p, q, temperature)
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
    z = logits.double()  # autocast leaves float64 alone
    z = z - z.mean(0)
    c = z.T @ z / (len(z) - 1)
    return ((c.square().sum() - c.diagonal().square().sum()) / len(c)).float()


def negative_entropy(logits: Tensor, top: int | None = None, temperature: float = 1.0) -> Tensor:
    """Minus the mean entropy of rows, over the `top` leading logits; None: over all."""
    z = logits.float() / temperature
    if top is not None and top < z.shape[-1]:
        z = z.gather(-1, z.detach().topk(top, -1).indices)
    logp = F.log_softmax(z, -1)
    return (logp.exp() * logp).sum(-1).mean()


def spectrum(logits: Tensor, k: int, *, frobenius: bool = False) -> Tensor:
    """Minus the share of the k largest singular values; scale-free, 0 for logits that are zero.

    k  clipped to min(M, C);  frobenius: the share of ||Z||_F, not of the sum of all values
    """
    share: Tensor = _LeadingShare.apply(logits, min(k, *logits.shape), frobenius)  # type: ignore[no-untyped-call]
    return -share


class _LeadingShare(torch.autograd.Function):
    """t / b, t = sum of the k largest s_i, b = sum of all or ||Z||_F; gradient G Z (or Z G).

    s^2 and U are eigenvalues and vectors of the smaller Gram matrix, in float64: no V is needed,

        dt/dZ = U_k diag(1/s_k) U_k^T Z,     d||Z||_F / dZ = Z / ||Z||_F

    and sums of leading values have a gradient where single, repeated ones have none.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, k: int, frobenius: bool) -> Tensor:  # type: ignore[override]
        wide = z if z.shape[0] <= z.shape[1] else z.T
        H = sum(gram(part.double()) for part in wide.split(COLUMNS, 1))
        assert isinstance(H, Tensor)
        norm = H.diagonal().sum().sqrt()
        values, U = ordered_eigh(H, k if frobenius else None)
        s = values.clamp_min(0).sqrt()
        inverse = torch.where(values > FLOOR * values[0], 1 / s, 0.0)
        U_k = U[:, :k]
        top, below = s[:k].sum(), norm if frobenius else s.sum()
        # Each matrix times Z is the gradient of a sum of singular values.
        d_top = (U_k * inverse[:k]) @ U_k.T
        d_below = torch.eye(len(H), dtype=H.dtype, device=H.device) / norm if frobenius else (
            (U * inverse) @ U.T
        )
        empty = norm < SMALLEST
        G = torch.where(empty, 0.0, d_top / below - top / below.square() * d_below)
        ctx.save_for_backward(z, G.to(torch.promote_types(z.dtype, torch.float32)))
        return torch.where(empty, 0.0, top / below).float()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        z, G = ctx.saved_tensors
        wide = z.to(G.dtype)
        product = G @ wide if len(G) == len(z) else wide @ G
        return (upstream * product).to(z.dtype), None, None


def supervised_rows(
    logits: Tensor, labels: Tensor, *, legacy_mask: bool = False
) -> tuple[Tensor, Tensor]:
    """Rows of a causal LM's logits [B, T, V] at supervised positions, with labels [B, T].

    legacy_mask  the released code's choice: the logits AT a supervised token, which predict the
                 token after it

    >>> logits, labels = torch.eye(3)[None], torch.tensor([[-100, 1, -100]])
    >>> supervised_rows(logits, labels)[0]                    # row 0 predicts token 1
    tensor([[1., 0., 0.]])
    >>> supervised_rows(logits, labels, legacy_mask=True)[0]
    tensor([[0., 1., 0.]])
    """
    if legacy_mask:
        wanted = labels != -100
        return logits[wanted], labels[wanted]
    wanted = labels[:, 1:] != -100
    return logits[:, :-1][wanted], labels[:, 1:][wanted]
