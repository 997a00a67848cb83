"""Components of a weight in the order of how much a layer's inputs need them.

    C_d = C + d mean(diag C) I             C [n, n] second moments of the inputs
    W C_d = U diag(sigma) V^T              W [m, n], U [m, R], R = min(m, n)
    diag(sigma) V^T C_d^-1 = U^T W         so that component i of W is u_i u_i^T W

No inverse of C_d is formed: U is all that is needed. The largest directions come from the smaller
Gram matrix of W C_d. The smallest are lost in a squared spectrum (W C_d has condition numbers of
1e5 and more): they are the largest of the inverse of the triangular factor of W C_d, as accurate
as a singular value decomposition in float64 and several times faster.

>>> W, C = torch.randn(6, 4), torch.eye(4)
>>> B, A = oriented_factors(W, C, rank=4, mode="instruction")
>>> torch.allclose(B @ A, W, atol=1e-5)
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from passband.errors import ConfigError
from passband.parts.spectral import gram, left_vectors, ordered_eigh, top_singular

Mode = Literal["knowledge", "instruction"]
DAMPING = 0.01
INVERTIBLE = 1e10  # condition number up to which the inverse in float64 gives directions
FLOOR = 1e-12  # of the largest singular value: what is below has no scale of its own


def damped(covariance: Tensor, damping: float = DAMPING) -> Tensor:
    """C + d mean(diag C) I, in float64.

    >>> damped(torch.diag(torch.tensor([3.0, 1.0])), 0.5).diagonal()
    tensor([4., 2.], dtype=torch.float64)
    """
    c = covariance.to(torch.float64, copy=True)
    c.diagonal().add_(damping * c.diagonal().mean())
    return c


def oriented(weight: Tensor, context: Tensor | None) -> Tensor:
    """W C_d in float64; W itself without a context."""
    w = weight.detach().double()
    return w if context is None else w @ context.to(w)


def directions(weight: Tensor, context: Tensor | None = None) -> Tensor:
    """All U [m, R], the most important first."""
    return left_vectors(oriented(weight, context))[0][:, : min(weight.shape)]


def oriented_factors(
    weight: Tensor, context: Tensor | None, rank: int, mode: Mode, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """B [m, r], A [r, n] in float32 with scale B A = U_I U_I^T W.

    mode   "instruction": I = the r largest; "knowledge": the r smallest of the thin spectrum
    Raises `ConfigError` for a rank outside 1 ... min(m, n).
    """
    if not 1 <= rank <= min(weight.shape):
        raise ConfigError(
            f"rank = {rank} for a matrix {tuple(weight.shape)}",
            expected=f"1 to {min(weight.shape)}",
        )
    product = oriented(weight, context)
    u, s = _CHOSEN[mode](product, rank)
    rows = u.T @ weight.detach().double()
    # Without damping sigma may be 0 where U^T W is not: such a direction is split evenly.
    floor = FLOOR * float(torch.linalg.vector_norm(product))
    sizes = torch.where(s > floor, s, torch.linalg.vector_norm(rows, dim=1).clamp_min(floor))
    root = torch.where(sizes > 0, sizes, 1.0).sqrt()
    b, a = u * root / scale**0.5, rows / (root[:, None] * scale**0.5)
    return b.float(), a.float()


def largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """u [m, r] and s [r] of the r largest singular values, falling."""
    leading = top_singular(matrix, rank)
    return leading.U, leading.s


def smallest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """u [m, r] and s [r] of the r smallest of min(m, n) singular values, falling.

    >>> smallest(torch.diag(torch.tensor([3.0, 1e-7, 2.0], dtype=torch.float64)), 1)[1]
    tensor([1.0000e-07], dtype=torch.float64)
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    # wide: M^T = Q R, and u are right vectors of R; tall: M = Q R, and u = Q times its left ones.
    R = torch.linalg.qr(matrix.T if wide else matrix, mode="r").R
    eye = torch.eye(len(R), dtype=R.dtype, device=R.device)
    inverse = torch.linalg.solve_triangular(R, eye, upper=True)
    condition = torch.linalg.vector_norm(R) * torch.linalg.vector_norm(inverse)
    if not float(condition) < INVERTIBLE:  # singular: infinite, or not a number
        u, s = left_vectors(matrix)
        thin = len(R)
        return u[:, thin - rank : thin], s[thin - rank : thin]
    values, vectors = ordered_eigh(gram(inverse if wide else inverse.T), rank)
    s, vectors = values.rsqrt().flip(0), vectors.flip(1)
    if wide:
        return vectors, s
    u = torch.linalg.qr(matrix @ (inverse @ vectors)).Q
    return u, s


_CHOSEN: dict[Mode, Callable[[Tensor, int], tuple[Tensor, Tensor]]] = {
    "instruction": largest,
    "knowledge": smallest,
}
