"""Bias-alleviating low-rank adaptation (arXiv 2408.04556).

    adapter    PiSSA: B = U_r s_r^(1/2) / sqrt(c), A = s_r^(1/2) V_r^T / sqrt(c), c = alpha / r,
               the rest of the weight frozen
    objective  L = L_task + l1 L_consistency + l2 L_diversity + l3 L_spectrum   (see `regularisers`)
    2026       KL at temperature T; entropy of the top K; l1 falls by a cosine to a tenth; l2 and l3
               are 0 for a fifth of the run, then rise over a twentieth
    2024       normalised distance (understanding) or KL (generation), full entropy, constant weights

The teacher is the model with the adapter off: base weights are never changed here, so it is exact
and costs no memory. (Where the residual replaces the weight, switching the adapter off gives the
residual, not the pretrained model.)

>>> handle = BALoRA(rank=8, kind="generation").attach(model, steps=1000)
>>> optimizer = handle.optimizer(lr=2e-5)
>>> logits, labels = supervised_rows(model(input_ids=ids).logits, wanted)
>>> again = lambda: supervised_rows(model(input_ids=ids).logits, wanted)[0]
>>> handle.objective(cross_entropy(logits, labels), logits, labels, again).backward()
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.low_rank import LowRankFactors
from passband.parts.spectral import balanced_factors, top_singular
from passband.tuning.ba_lora.regularisers import (
    consistency,
    covariance,
    negative_entropy,
    normalised_distance,
    spectrum,
)
from passband.tuning.factors import FactorHandle, start_factors
from passband.tuning.handle import Calibration

Schedule = Literal["paper", "constant", "linear", "quadratic"]
HOLD, RAMP = 0.20, 0.05  # two-phase schedule of l2 and l3, shares of the run
LOWEST = 0.1  # of l1 at the end of its cosine


@dataclass(frozen=True)
class BALoRA:
    """
    rank, alpha        of the adapter; alpha None: equal to rank
    l1, l2, l3         weights of consistency, diversity, spectrum
    kind               "understanding" (a classifier's logits) or "generation" (a language model's)
    variant            "2026" or "2024"
    temperature        T of the consistency term
    top                K of the entropy term
    leading            k of the spectrum term
    schedule           of the weights: the variant's own, "constant", or l2, l3 warmed up as t, t^2
    adaptive           l1 by how sure the teacher is, between a tenth and all, in place of cosine
    frobenius          divide the spectrum by ||Z||_F (generation, 2026)
    start              "pissa" or "lora" (kaiming A, zero B)
    targets            endings of module names
    """

    rank: int = 8
    alpha: float | None = None
    l1: float = 0.025
    l2: float = 0.005
    l3: float = 0.005
    kind: Literal["understanding", "generation"] = "generation"
    variant: Literal["2026", "2024"] = "2026"
    temperature: float = 2.0
    top: int = 20
    leading: int = 10
    schedule: Schedule = "paper"
    adaptive: bool = False
    frobenius: bool = True
    start: Literal["pissa", "lora"] = "pissa"
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> BALoRAHandle:
        """Raises `ConfigError` for dropout with a start that is taken out of the weights."""
        if self.dropout > 0 and self.start == "pissa":
            raise ConfigError(
                f"dropout = {self.dropout} with singular triples to begin with", expected="0",
                mend="dropout would change the pretrained output itself; set it to 0",
            )
        generator = torch.Generator().manual_seed(seed)

        def begin(_: str, weight: Tensor) -> LowRankFactors:
            return _STARTS[self.start](self, weight, generator)

        start = start_factors(model, self.targets, self.rank, begin, tuple(head))
        return BALoRAHandle(
            model, start, method=self, head=head, steps=steps, seed=seed, name=name
        )


def _pissa(method: BALoRA, weight: Tensor, _: torch.Generator) -> LowRankFactors:
    leading = top_singular(weight, method.rank)
    b, a = balanced_factors(leading.U, leading.s, leading.Vh, method.scale)
    return LowRankFactors(a, b, from_start=True, scale=method.scale)


def _lora(method: BALoRA, weight: Tensor, generator: torch.Generator) -> LowRankFactors:
    m, n = weight.shape
    bound = 1 / math.sqrt(n)
    a = torch.empty(method.rank, n).uniform_(-bound, bound, generator=generator)
    return LowRankFactors(
        a, torch.zeros(m, method.rank), scale=method.scale, dropout=method.dropout
    )


_STARTS: dict[str, Callable[[BALoRA, Tensor, torch.Generator], LowRankFactors]] = {
    "pissa": _pissa, "lora": _lora,
}


class BALoRAHandle(FactorHandle):
    """BA-LoRA on a model. `terms` holds the last values of the penalties, detached."""

    def __init__(
        self, model: nn.Module, start: Mapping[str, LowRankFactors], *, method: BALoRA,
        **options: Any,
    ) -> None:
        super().__init__(model, start, method=method, **options)
        self.method = method
        self.terms: dict[str, Tensor] = {}
        self._warned = False

    def weights(self) -> tuple[float, float, float]:
        """l1, l2, l3 at this point of the run."""
        m = self.method
        if m.schedule == "constant" or (m.schedule == "paper" and m.variant == "2024"):
            return m.l1, m.l2, m.l3
        rise = _RISES[m.schedule](self.fraction)
        fall = 1.0
        if m.kind == "generation" or m.schedule != "paper":
            fall = LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * self.fraction))
        if m.kind == "understanding" and m.schedule == "paper":
            rise = 1.0  # the paper's schedules are those of generation
        return m.l1 * (1.0 if m.adaptive else fall), m.l2 * rise, m.l3 * rise

    def objective(
        self, loss: Tensor, logits: Tensor | None = None, labels: Tensor | None = None,
        again: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """L_task and the penalties.

        Raises `DataError` without logits, for logits that are not finite, and where the teacher's
        have another shape (a resized vocabulary).
        """
        l1, l2, l3 = self.weights()
        if not (l1 or l2 or l3):
            return loss
        if logits is None:
            raise DataError(
                "BA-LoRA was given no logits", expected="the logits behind the loss, [M, C]",
                mend="objective(loss, logits, labels, again)",
            )
        if len(logits) == 0:
            return loss  # nothing is supervised in this batch
        if not bool(torch.isfinite(logits).all()):
            raise DataError(
                f"logits are not finite at step {self.count}", expected="finite logits",
                mend="lower the learning rate",
            )
        m, terms = self.method, {}
        if l1:
            teacher = self._teacher(again, logits)
            distance = _CONSISTENCY.get((m.variant, m.kind), consistency)
            warm = m.temperature if m.variant == "2026" else 1.0
            terms["consistency"] = (
                distance(teacher, logits) if distance is normalised_distance
                else consistency(teacher, logits, warm)
            )
            if m.adaptive:
                l1 *= LOWEST + (1 - LOWEST) * self._sureness(teacher)
        if (l2 or l3) and self._enough(logits):
            if l2:
                terms["diversity"] = self._diversity(logits)
            if l3:
                k = min(m.leading, *logits.shape)
                norm = m.frobenius and (m.variant, m.kind) == ("2026", "generation")
                terms["spectrum"] = spectrum(logits, k, frobenius=norm)
        self.terms = {name: value.detach() for name, value in terms.items()}
        scales = {"consistency": l1, "diversity": l2, "spectrum": l3}
        return loss + sum(scales[name] * value for name, value in terms.items())

    def _diversity(self, logits: Tensor) -> Tensor:
        m = self.method
        if m.kind == "understanding":
            return covariance(logits)
        return negative_entropy(logits, m.top if m.variant == "2026" else None)

    def _enough(self, logits: Tensor) -> bool:
        """A single row has no covariance and one singular value."""
        if len(logits) > 1:
            return True
        if not self._warned:
            self._warned = True
            warnings.warn(
                "a batch with one row: diversity and spectrum are left out of it",
                PassbandWarning, stacklevel=4,
            )
        return False

    def _teacher(self, again: Callable[[], Tensor] | None, logits: Tensor) -> Tensor:
        if again is None:
            raise DataError(
                "BA-LoRA can't ask its teacher", expected="a function that gives the logits again",
                mend="objective(loss, logits, labels, again=lambda: model(x)); or l1=0",
            )
        with self.off(), _evaluating(self.model), torch.no_grad():
            teacher = again()
        if teacher.shape != logits.shape:
            raise DataError(
                f"the pretrained model gives logits {tuple(teacher.shape)}",
                expected=f"{tuple(logits.shape)}", mend="was the vocabulary resized?",
            )
        return teacher

    @staticmethod
    def _sureness(teacher: Tensor) -> float:
        """1 - H / log C of the teacher, mean over rows."""
        entropy = -negative_entropy(teacher)
        return float(1 - entropy / math.log(teacher.shape[-1]))


_CONSISTENCY: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("2024", "understanding"): normalised_distance,
}
_RISES: dict[str, Callable[[float], float]] = {
    "paper": lambda t: min(1.0, max(0.0, (t - HOLD) / RAMP)),
    "linear": lambda t: t,
    "quadratic": lambda t: t * t,
}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The teacher drops nothing out."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
