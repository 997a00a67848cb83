"""Singular values and orthonormal regularised singular vectors adaptation (arXiv 2409.00055).

    W0 = U diag(s) V^T                    B = U[:, :r],  S = s[:r],  A = V[:, :r]^T   are trained
    y  = x W0^T + c [ ((x A^T) * S) B^T - ((x A0^T) * S0) B0^T ] + bias          c = alpha / r
    L_reg = mean over all factors of  || A A^T - I ||_F  and  || B^T B - I ||_F
    step  = clipped gradient of the task + gradient of (gamma / eta_d) L_reg

    x [..., n], W0 [m, n], A [r, n], B [m, r], S [r];  eta_d: the PEAK learning rate, so that under
    plain gradient descent the regulariser follows the schedule of the learning rate.

The norm is not squared: at the start A A^T - I is rounding, and its gradient a unit direction made
of rounding. `guarded` (default) takes sqrt(|E|^2 + eps^2) with eps = 1e-4 sqrt(r): the same beyond
it, nothing below it; `exact` is the paper's, `squared` |E|^2.

>>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
>>> handle = SORSA(rank=2, gamma=4e-4).attach(model)
>>> optimizer = handle.optimizer(lr=3e-5)        # adds the regulariser after the loop's clipping
>>> spectra = handle.report()                    # how singular values and vectors have moved
>>> list(spectra)
['0.weight', '2.weight']
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, PassbandWarning
from passband.parts.low_rank import LowRankFactors
from passband.tuning.factors import FactorHandle, leading_triples, start_factors
from passband.tuning.handle import Calibration
from passband.tuning.sorsa.analysis import Drift, report

Norm = Literal["guarded", "exact", "squared"]
ROUNDING = 1e-6  # of the largest singular value


@dataclass(frozen=True)
class SORSA:
    """
    rank     r, of every layer
    alpha    c = alpha / r; None: c = 1
    gamma    weight of the regulariser at the peak learning rate; 0: none (another form of PiSSA)
    peak_lr  eta_d; None: the learning rate that the bound optimiser was made with
    dropout  on the input of the trained part
    norm     of A A^T - I
    divisor  of the regulariser: the released trainer divides it by its micro-batches of a step
    targets  endings of module names
    """

    rank: int = 8
    alpha: float | None = None
    gamma: float = 4e-4
    peak_lr: float | None = None
    dropout: float = 0.0
    norm: Norm = "guarded"
    divisor: int = 1
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> SORSAHandle:
        """Decompose every target; raises `DataError` and `ConfigError` with the layer's name."""
        if self.norm not in _NORMS or not self.gamma >= 0:
            raise ConfigError(
                f"norm = {self.norm!r}, gamma = {self.gamma}",
                expected=f"a norm of {', '.join(_NORMS)}, and gamma of 0 or more",
            )
        start = start_factors(model, self.targets, self.rank, self._begin, tuple(head))
        return SORSAHandle(
            model, start, method=self, head=head, steps=steps, seed=seed, name=name
        )

    def _begin(self, name: str, weight: Tensor) -> LowRankFactors:
        U, s, Vh = leading_triples(weight, self.rank)
        if float(s[-1]) <= ROUNDING * float(s[0]):
            warnings.warn(
                f"{name} has fewer than {self.rank} singular values above rounding: the vectors "
                "of the others are arbitrary", PassbandWarning, stacklevel=4,
            )
        # S is not divided by c, as in the released start: the layer's output is exact all the same.
        return LowRankFactors(
            Vh, U, s, from_start=True, scale=self.scale, dropout=self.dropout
        )


class SORSAHandle(FactorHandle):
    """SORSA on a model. The regulariser's gradient is added once a step, after clipping."""

    clips_penalty: ClassVar[bool] = False

    def __init__(
        self, model: nn.Module, start: Mapping[str, LowRankFactors], *, method: SORSA,
        **options: Any,
    ) -> None:
        super().__init__(model, start, method=method, **options)
        self.method = method

    @property
    def peak_lr(self) -> float:
        """eta_d. A schedule that was there before `bind` has left the peak in `initial_lr`."""
        if self.method.peak_lr is not None:
            return self.method.peak_lr
        if not self.optimizers:
            raise ConfigError(
                "the peak learning rate is unknown", expected="an optimiser of this handle",
                mend="handle.optimizer(lr=...), handle.bind(optimizer), or SORSA(peak_lr=...)",
            )
        group = self.optimizers[-1].param_groups[0]
        return float(group.get("initial_lr", group["lr"]))

    def penalty(self) -> Tensor | None:
        """(gamma / eta_d) L_reg."""
        m = self.method
        if m.gamma == 0:
            return None
        deviation = self.deviation(m.norm)
        self.terms = {"deviation": deviation.detach()}
        return m.gamma / (self.peak_lr * m.divisor) * deviation

    def deviation(self, norm: Norm = "exact") -> Tensor:
        """Mean over the two factors of every layer of || A A^T - I || and || B^T B - I ||."""
        device = next(iter(self.factors.values())).A.device
        groups: dict[tuple[Any, ...], list[Tensor]] = {}
        for f in self.factors.values():
            for rows in (f.A, f.B.T):
                groups.setdefault((rows.shape, rows.device, rows.dtype), []).append(rows)
        with torch.autocast(device.type, enabled=False):
            squares = [_squared_errors(torch.stack(rows)).to(device) for rows in groups.values()]
            return _NORMS[norm](torch.cat(squares), self.method.rank).mean()

    def report(self) -> dict[str, Drift]:
        """How the spectrum of every layer stands against the pretrained one."""
        return report(self.edit(), dict(self.model.named_parameters()))


def _squared_errors(rows: Tensor) -> Tensor:
    """|F F^T - I|^2 [L] of factors F [L, r, n]."""
    errors = rows @ rows.mT - torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return errors.square().sum((1, 2))


_NORMS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "guarded": lambda squares, rank: (squares + 1e-8 * rank).sqrt(),
    # Clamped, so that the derivative at 0 is 0 and not NaN.
    "exact": lambda squares, rank: squares.clamp_min(torch.finfo(squares.dtype).tiny).sqrt(),
    "squared": lambda squares, rank: squares,
}
