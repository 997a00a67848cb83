"""Context-oriented decomposition adaptation (CorDA, NeurIPS 2024, arXiv 2406.05223).

    C_d = C + d mean(diag C) I             C [n, n] second moments of the layer's inputs, d = 0.01
    W C_d = U diag(sigma) V^T              W [m, n]
    B = U_I diag(sigma_I)^(1/2),  A = diag(sigma_I)^(1/2) V_I^T C_d^(-1) = diag(sigma_I)^(-1/2) U_I^T W
    y = x W^T + c [ (x A^T) B^T - (x A0^T) B0^T ]

    knowledge     I = the r smallest: what calibration text needs stays in the frozen part
    instruction   I = the r largest: the adapter begins where the task lives

The right-hand form of A is exact, since diag(sigma) V^T C_d^-1 = U^T W: the adapter is the projection
U_I U_I^T W, and no inverse of C_d is ever formed. Only the left singular vectors of W C_d are needed:
those of the m x m matrix W C_d^2 W^T, or of the n x n Gram matrix where n < m, in float64.

>>> handle = CorDA(rank=8, mode="knowledge").attach(model, calibration={"knowledge": batches})
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from passband.errors import DataError, PassbandWarning
from passband.parts.low_rank import LowRankFactors
from passband.parts.spectral import left_vectors, rebalance
from passband.parts.targets import find_targets, weight_of
from passband.tuning.corda.covariance import Covariance, stream
from passband.tuning.factors import FactorHandle
from passband.tuning.handle import Calibration

Mode = Literal["knowledge", "instruction"]
Balance = Literal["none", "global", "exact"]
PURPOSE = {"knowledge": "knowledge", "instruction": "task"}
DAMPING = 0.01


@dataclass(frozen=True)
class CorDA:
    """
    rank, alpha  of the adapter; alpha None: equal to rank
    mode         "knowledge" (KPA) or "instruction" (IPA)
    context      what orients: "covariance"; "none" is the plain SVD, for comparison
    damping      d; part of the method, not needed for accuracy
    balance      of A against B: "none" as the paper, "global" one number, "exact" symmetric split
    scaled       divide each sample by its signed maximum
    samples      calibration batches that are used at most; None: all given
    on_missing   a layer that calibration never reaches: "svd" (with a warning) or "error"
    targets      endings of module names
    """

    rank: int = 8
    alpha: float | None = None
    mode: Mode = "knowledge"
    context: Literal["covariance", "none"] = "covariance"
    damping: float = DAMPING
    balance: Balance = "none"
    scaled: bool = True
    samples: int | None = None
    on_missing: Literal["svd", "error"] = "svd"
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> FactorHandle:
        """Calibrate and decompose, block by block.

        calibration  {"knowledge": batches} or {"task": batches}, by mode; each batch the keyword
                     arguments of one call of the model
        Raises `DataError` without calibration, for activations that are NaN or all zero.
        """
        layers = find_targets(model, self.targets, rank=self.rank, head=tuple(head))
        start = {
            n: self._factors(weight_of(layers[n])[0], covariance)
            for n, covariance in self._contexts(model, layers, calibration)
        }
        ordered = {n: start[n] for n in layers}
        return FactorHandle(
            model, ordered, method=self, head=head, steps=steps, seed=seed, name=name
        )

    def _contexts(
        self, model: nn.Module, layers: dict[str, nn.Module], calibration: Calibration | None
    ) -> list[tuple[str, Tensor | None]] | Sequence[tuple[str, Tensor | None]]:
        if self.context == "none":
            return [(name, None) for name in layers]
        purpose = PURPOSE[self.mode]
        batches = list((calibration or {}).get(purpose, ()))[: self.samples]
        if not batches:
            raise DataError(
                f"CorDA in the mode {self.mode!r} has no calibration under {purpose!r}",
                expected="batches of text that says what to keep, or what to learn",
                mend=f"attach(model, calibration={{{purpose!r}: [...]}})",
            )
        return _Lazy(self, model, layers, batches)  # type: ignore[return-value]

    def context_of(self, covariance: Covariance, n: int) -> Tensor | None:
        """C_d of a layer with n inputs; None where calibration never reached it."""
        if covariance.total is None and self.on_missing == "svd":
            warnings.warn(
                f"{covariance.name} was never called in calibration: plain SVD is taken for it",
                PassbandWarning, stacklevel=2,
            )
            return None
        matrix = covariance.matrix()
        if covariance.tokens < n:
            warnings.warn(
                f"{covariance.name} has {n} inputs and saw {covariance.tokens} tokens only: its "
                f"second moments are of low rank; calibrate with {n // max(1, covariance.tokens) + 1}"
                " times as many", PassbandWarning, stacklevel=2,
            )
        return damped(matrix, self.damping)

    def _factors(self, weight: Tensor, context: Tensor | None) -> LowRankFactors:
        b, a = oriented_factors(weight, context, self.rank, self.mode, self.scale)
        b, a = rebalance(b, a, self.balance)
        return LowRankFactors(a, b, from_start=True, scale=self.scale)


class _Lazy:
    """Contexts as calibration reaches the layers: one block's matrices are alive at a time."""

    def __init__(
        self, method: CorDA, model: nn.Module, layers: dict[str, nn.Module], batches: Sequence
    ) -> None:
        self.method, self.model, self.layers, self.batches = method, model, layers, batches

    def __iter__(self):  # type: ignore[no-untyped-def]
        for part in stream(self.model, self.layers, self.batches, scaled=self.method.scaled):
            for name, covariance in part.items():
                n = weight_of(self.layers[name])[0].shape[1]
                yield name, self.method.context_of(covariance, n)


def damped(covariance: Tensor, damping: float = DAMPING) -> Tensor:
    """C + d mean(diag C) I, in float64."""
    c = covariance.double()
    return c + damping * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype, device=c.device)


def oriented_vectors(weight: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """U [m, R] and sigma [R], largest first, of W C_d; R = min(m, n)."""
    w = weight.detach().double()
    u, s = left_vectors(w if context is None else w @ context.double())
    return u[:, : min(w.shape)], s[: min(w.shape)]


def oriented_factors(
    weight: Tensor, context: Tensor | None, rank: int, mode: Mode, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """B [m, r], A [r, n] with scale B A = U_I U_I^T W.

    >>> W, C = torch.randn(6, 4), torch.eye(4)
    >>> B, A = oriented_factors(W, C, rank=4, mode="instruction")
    >>> torch.allclose(B @ A, W, atol=1e-5)
    True
    """
    u, s = oriented_vectors(weight, context)
    u, s = _CHOSEN[mode](u, s, rank)
    # A direction without any weight has no scale of its own.
    root = s.clamp_min(1e-12 * float(s.max()) + torch.finfo(s.dtype).tiny).sqrt() / scale**0.5
    b = u * root
    a = (u.T @ weight.detach().double()) / (root[:, None] * scale)
    return b.float(), a.float()


_CHOSEN: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]] = {
    "instruction": lambda u, s, r: (u[:, :r], s[:r]),
    "knowledge": lambda u, s, r: (u[:, -r:], s[-r:]),
}


# ---- what the decomposition is worth: drop the smallest components -----------------------------------


@torch.no_grad()
def without_smallest(
    weight: Tensor, drop: int, context: Tensor | None = None, *, columns: Tensor | None = None
) -> Tensor:
    """W with its `drop` smallest components left out.

    context  C_d: components of W C_d (CorDA); None: of W itself (plain SVD)
    columns  scale of each input instead: components of W diag(s) (ASVD)
    """
    w = weight.double()
    if columns is not None:
        u, _ = left_vectors(w * columns.double())
    else:
        u, _ = oriented_vectors(weight, context)
    kept = u[:, : min(w.shape) - drop]
    # Components of W M are u_i u_i^T W M; undoing M on the right leaves u_i u_i^T W.
    return (kept @ (kept.T @ w)).to(weight.dtype)


def asvd_columns(covariance: Covariance, alpha: float = 0.5) -> Tensor:
    """(mean |x_j|)^alpha + 1e-6, the column scale of ASVD (arXiv 2312.05821)."""
    return covariance.mean_absolute() ** alpha + 1e-6
