"""Singular values and orthonormal regularised singular vectors adaptation (arXiv 2409.00055).

    W0 = U diag(s) V^T                    B = U[:, :r],  S = s[:r],  A = V[:, :r]^T   are trained
    y  = x W0^T + c [ ((x A^T) * S) B^T - ((x A0^T) * S0) B0^T ] + bias          c = alpha / r
    L_reg = mean over all factors of  || A A^T - I ||_F  and  || B^T B - I ||_F
    step  = clipped gradient of the task + gradient of (gamma / eta_d) L_reg

    x [..., n], W0 [m, n], A [r, n], B [m, r], S [r];  eta_d: the PEAK learning rate, so that under
    plain gradient descent the regulariser follows the schedule of the learning rate.

The norm is not squared: at the start A A^T - I is rounding, and its gradient a unit direction made
of rounding. `guarded` (default) takes sqrt(|E|^2 + eps^2) with eps = 1e-4 sqrt(r): the same beyond it,
nothing below it; `exact` is the paper's, `squared` |E|^2.

>>> handle = SORSA(rank=8, gamma=4e-4, peak_lr=3e-5).attach(model)
>>> optimizer = handle.optimizer(lr=3e-5)        # adds the regulariser after the loop's clipping
>>> spectra = report(handle)                     # how singular values and vectors have moved
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from passband.errors import PassbandWarning
from passband.parts.edits import Edit
from passband.parts.low_rank import LowRankFactors
from passband.parts.spectral import gram_svd, top_singular
from passband.tuning.factors import FactorHandle, start_factors
from passband.tuning.handle import Calibration

Norm = Literal["guarded", "exact", "squared"]


@dataclass(frozen=True)
class SORSA:
    """
    rank     r, of every layer
    alpha    c = alpha / r; None: c = 1
    gamma    weight of the regulariser at the peak learning rate; 0: none (another form of PiSSA)
    peak_lr  eta_d
    dropout  on the input of the trained part
    norm     of A A^T - I
    accumulation_steps  the released trainer divides the regulariser by it; 1: undivided
    targets  endings of module names
    """

    rank: int = 8
    alpha: float | None = None
    gamma: float = 4e-4
    peak_lr: float = 3e-5
    dropout: float = 0.0
    norm: Norm = "guarded"
    accumulation_steps: int = 1
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> SORSAHandle:
        """Decompose every target; raises `DataError` and `ConfigError` with the layer's name."""
        start = start_factors(model, self.targets, self.rank, self._begin, tuple(head))
        return SORSAHandle(
            model, start, method=self, head=head, steps=steps, seed=seed, name=name
        )

    def _begin(self, name: str, weight: Tensor) -> LowRankFactors:
        leading = top_singular(weight, self.rank)
        if float(leading.s[-1]) <= 1e-6 * float(leading.s[0]):
            _warn(f"{name} has fewer than {self.rank} singular values above rounding: the vectors "
                  "of the others are arbitrary")
        # S is not divided by c, as in the released start: the layer's output is exact all the same.
        return LowRankFactors(
            leading.Vh, leading.U, leading.s, from_start=True, scale=self.scale,
            dropout=self.dropout,
        )


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, PassbandWarning, stacklevel=4)


class SORSAHandle(FactorHandle):
    """SORSA on a model. The regulariser's gradient is added once a step, after clipping."""

    clips_penalty: ClassVar[bool] = False

    def __init__(
        self, model: nn.Module, start: Mapping[str, LowRankFactors], *, method: SORSA,
        **options: Any,
    ) -> None:
        super().__init__(model, start, method=method, **options)
        self.method = method

    def penalty(self) -> Tensor | None:
        """(gamma / eta_d) L_reg."""
        m = self.method
        if m.gamma == 0:
            return None
        return m.gamma / (m.peak_lr * m.accumulation_steps) * self.deviation(m.norm)

    def deviation(self, norm: Norm = "exact") -> Tensor:
        """Mean over the two factors of every layer of || A A^T - I || and || B^T B - I ||."""
        grams = [
            g for f in self.factors.values() for g in (f.A @ f.A.T, f.B.T @ f.B)
        ]  # [r, r] each
        errors = torch.stack(grams) - torch.eye(self.method.rank, device=grams[0].device)
        squares = errors.square().sum((1, 2))
        return _NORMS[norm](squares, self.method.rank).mean()

    @torch.no_grad()
    def condition_numbers(self) -> dict[str, float]:
        """s_max / s_min of the trained product B S A of each layer, from two QR factors."""
        found = {}
        for name, f in self.factors.items():
            left = torch.linalg.qr(f.scaled_left().double())[1]
            right = torch.linalg.qr(f.A.double().T)[1]
            s = torch.linalg.svdvals(left @ right.T)
            found[name] = float(s[0] / s[-1])
        return found


_NORMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "guarded": lambda squares, rank: (squares + 1e-8 * rank).sqrt(),
    "exact": lambda squares, rank: squares.sqrt(),
    "squared": lambda squares, rank: squares,
}


# ---- how spectra move ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Drift:
    """One layer after tuning against before.

    values   mean_i |sigma_i(W_t) - sigma_i(W_0)|
    vectors  1 - mean_j (|<u_j^t, u_j^0>| + |<v_j^t, v_j^0>|) / 2
    """

    values: float
    vectors: float


def drift(before: Tensor, after: Tensor) -> Drift:
    """Drift of one matrix [m, n] over all its singular triples.

    >>> drift(torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([4.0, 1.0])))
    Drift(values=0.5, vectors=0.0)
    """
    old, new = gram_svd(before), gram_svd(after)
    u = (old.U * new.U).sum(0).abs()
    v = (old.Vh * new.Vh).sum(1).abs()
    values = float((new.s - old.s).abs().mean())
    return Drift(values, round(max(0.0, 1 - float((u + v).mean()) / 2), 12))


def report(edit: Edit, weights: Mapping[str, Tensor]) -> dict[str, Drift]:
    """Drift of every matrix that an edit changes; `weights` are the pretrained ones by name."""
    matrices = {n: c for n, c in edit.changes.items() if len(c.shape) == 2 and c.kind != "replace"}
    return {
        n: drift(weights[n], weights[n].float() + c.delta(weights[n]))
        for n, c in matrices.items()
    }
