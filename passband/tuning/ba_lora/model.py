"""Bias-alleviating low-rank adaptation (arXiv 2408.04556).

    adapter    PiSSA: B = U_r s_r^(1/2) / sqrt(c), A = s_r^(1/2) V_r^T / sqrt(c), c = alpha / r,
               the rest of the weight frozen
    objective  L = L_task + l1 L_consistency + l2 L_diversity + l3 L_spectrum   (see `regularisers`)
    2026       KL at temperature T; entropy of the top K. Generation: l1 falls by a cosine to a
               tenth; l2 and l3 are 0 for a fifth of the run, then rise over a twentieth
    2024       normalised distance (understanding) or KL (generation), full entropy, constant
               weights

The teacher is the model with the adapter off: base weights are never changed here, so it is exact
and costs no memory. (Where the residual replaces the weight, switching the adapter off gives the
residual, not the pretrained model.)

>>> from passband.tuning.ba_lora.regularisers import supervised_rows
>>> model, ids = byte_lm(32, 64, 2, 4), torch.randint(256, (4, 16))
>>> handle = BALoRA(rank=8, kind="generation").attach(model, steps=1000)
>>> optimizer = handle.optimizer(lr=2e-5)
>>> def answers():
...     return supervised_rows(model(input_ids=ids).logits, ids)
>>> logits, labels = answers()
>>> loss = nn.functional.cross_entropy(logits, labels)
>>> handle.objective(loss, logits, labels, again=lambda: answers()[0]).backward()
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError, PassbandWarning
from passband.parts.low_rank import LowRankFactors
from passband.parts.modes import evaluating
from passband.parts.spectral import balanced_factors
from passband.tuning.ba_lora.regularisers import (
    consistency,
    covariance,
    negative_entropy,
    normalised_distance,
    spectrum,
)
from passband.tuning.ba_lora.schedules import FOCUS, cosine
from passband.tuning.ba_lora.teacher import StoredTeacher
from passband.tuning.factors import FactorHandle, leading_triples, refuse_dropout, start_factors
from passband.tuning.handle import Calibration

Again = Callable[[], "Tensor | StoredTeacher"]


@dataclass(frozen=True)
class BALoRA:
    """
    rank, alpha        of the adapter; alpha None: equal to rank
    l1, l2, l3         weights of consistency, diversity, spectrum
    kind               "understanding" (a classifier's logits) or "generation" (a language model's)
    variant            "2026" or "2024"
    temperature        T of the consistency term (2026)
    top                K of the entropy term (2026)
    leading            k of the spectrum term
    frobenius          divide the spectrum by ||Z||_F (generation, 2026)
    l1_schedule        "cosine"; "adaptive": by how sure the teacher is; "constant"; or "paper":
                       cosine for generation in the variant 2026, else constant
    focus_schedule     of l2 and l3: "two-phase", "linear", "quadratic", "constant"; or "paper":
                       two-phase for generation in the variant 2026, else constant
    hold, ramp         shares of the run: without l2 and l3 (or of their warm-up), of their rise
    lowest             share of l1 at the end of the cosine, and where the teacher knows nothing
    start              "pissa" or "lora" (kaiming A, zero B)
    dropout            of the input of the adapter; 0 with the start "pissa"
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
    frobenius: bool = True
    l1_schedule: Literal["paper", "cosine", "adaptive", "constant"] = "paper"
    focus_schedule: Literal["paper", "two-phase", "linear", "quadratic", "constant"] = "paper"
    hold: float = 0.20
    ramp: float = 0.05
    lowest: float = 0.1
    start: Literal["pissa", "lora"] = "pissa"
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def schedules(self) -> tuple[str, str]:
        """Of l1, and of l2 and l3."""
        whole = (self.variant, self.kind) == ("2026", "generation")
        paper = ("cosine", "two-phase") if whole else ("constant", "constant")
        chosen = (self.l1_schedule, self.focus_schedule)
        first, second = (p if c == "paper" else c for p, c in zip(paper, chosen, strict=True))
        return first, second

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> BALoRAHandle:
        """Decompose every target (`start="pissa"`).

        Raises `ConfigError` for negative weights and for dropout with a start that is taken out of
        the weights.
        """
        self._check()
        generator = torch.Generator().manual_seed(seed)

        def begin(_: str, weight: Tensor) -> LowRankFactors:
            return _STARTS[self.start](self, weight, generator)

        start = start_factors(model, self.targets, self.rank, begin, tuple(head))
        return BALoRAHandle(
            model, start, method=self, head=head, steps=steps, seed=seed, name=name
        )

    def _check(self) -> None:
        if self.start == "pissa":
            refuse_dropout(
                self.dropout, "dropout would change the pretrained output itself; set it to 0"
            )
        for name in ("l1", "l2", "l3"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)}", expected="0 or more")
        if self.temperature <= 0 or self.top < 1 or self.leading < 1:
            raise ConfigError(
                f"temperature = {self.temperature}, top = {self.top}, leading = {self.leading}",
                expected="positive numbers",
            )


def _pissa(method: BALoRA, weight: Tensor, _: torch.Generator) -> LowRankFactors:
    b, a = balanced_factors(*leading_triples(weight, method.rank), method.scale)
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
    """BA-LoRA on a model. `terms`: the last batch's penalties, their weights and `rows`.

    Spectrum and covariance are those of one micro-batch, so results depend on how many rows it has.
    """

    def __init__(
        self, model: nn.Module, start: Mapping[str, LowRankFactors], *, method: BALoRA,
        **options: Any,
    ) -> None:
        super().__init__(model, start, method=method, **options)
        self.method = method
        self._warned = False

    def weights(self) -> tuple[float, float, float]:
        """l1, l2, l3 at this point of the run (an adaptive l1 as it is for a sure teacher)."""
        m = self.method
        first, second = m.schedules
        moving = (first == "cosine" and m.l1) or (second != "constant" and (m.l2 or m.l3))
        t = self.fraction if moving else 0.0
        fall = cosine(t, m.lowest) if first == "cosine" else 1.0
        rise = FOCUS[second](t, m.hold, m.ramp)
        return m.l1 * fall, m.l2 * rise, m.l3 * rise

    def objective(
        self, loss: Tensor, logits: Tensor | None = None, labels: Tensor | None = None,
        again: Again | None = None,
    ) -> Tensor:
        """L_task and the penalties whose weight is not zero at this step.

        logits  [M, C], the rows that the loss is of
        again   the same rows from the model as it stands when called, or from a `StoredTeacher`
        Zero where nothing is supervised (M = 0). Raises `DataError` without logits, for logits that
        are not finite, and where the teacher's have another shape (a resized vocabulary).
        """
        if logits is not None and len(logits) == 0:
            self.terms = {}
            return logits.float().sum()  # a zero that can be differentiated
        l1, l2, l3 = self.weights()
        if not (l1 or l2 or l3):
            return loss
        if logits is None:
            raise DataError(
                "BA-LoRA was given no logits", expected="the logits behind the loss, [M, C]",
                mend="objective(loss, logits, labels, again)",
            )
        if not bool(torch.isfinite(logits).all()):
            raise self._not_finite(again)
        parts: dict[str, tuple[float | Tensor, Tensor]] = {}
        if l1:
            teacher = self._teacher(again, logits)
            parts["consistency"] = (l1 * self._sureness(teacher), self._distance(teacher, logits))
        if l2 and self._several(logits, "generation"):
            parts["diversity"] = (l2, self._diversity(logits))
        if l3 and self._several(logits):
            parts["spectrum"] = (l3, self._spectrum(logits))
        self._note(parts, len(logits))
        return loss + sum(weight * value for weight, value in parts.values())

    def _note(self, parts: Mapping[str, tuple[float | Tensor, Tensor]], rows: int) -> None:
        """For logs. Tensors stay where they are: reading them would wait for the device."""
        self.terms = {name: value.detach() for name, (_, value) in parts.items()}
        self.terms |= {f"weight_{n}": torch.as_tensor(w) for n, (w, _) in parts.items()}
        self.terms["rows"] = torch.tensor(float(rows))

    # ---- the three terms -----------------------------------------------------------------------

    def _distance(self, teacher: Tensor | StoredTeacher, logits: Tensor) -> Tensor:
        m = self.method
        if isinstance(teacher, StoredTeacher):
            return teacher.divergence(logits)
        if (m.variant, m.kind) == ("2024", "understanding"):
            return normalised_distance(teacher, logits)
        return consistency(teacher, logits, self._temperature)

    def _diversity(self, logits: Tensor) -> Tensor:
        if self.method.kind == "understanding":
            return covariance(logits)
        return negative_entropy(logits, self.method.top if self.method.variant == "2026" else None)

    def _spectrum(self, logits: Tensor) -> Tensor:
        m = self.method
        norm = m.frobenius and (m.variant, m.kind) == ("2026", "generation")
        return spectrum(logits, m.leading, frobenius=norm)

    @property
    def _temperature(self) -> float:
        return self.method.temperature if self.method.variant == "2026" else 1.0

    def _several(self, logits: Tensor, *enough: str) -> bool:
        """A single row has no covariance, and one singular value; its entropy is as good as any."""
        if len(logits) > 1 or self.method.kind in enough:
            return True
        if not self._warned:
            self._warned = True
            warnings.warn(
                "a batch with one row: the penalties on its covariance and spectrum are left out",
                PassbandWarning, stacklevel=4,
            )
        return False

    # ---- the teacher -----------------------------------------------------------------------------

    def _teacher(self, again: Again | None, logits: Tensor) -> Tensor | StoredTeacher:
        if again is None:
            raise DataError(
                "BA-LoRA can't ask its teacher", expected="a function that gives the logits again",
                mend="objective(loss, logits, labels, again=lambda: model(x)); or l1=0",
            )
        with self.off(), evaluating(self.model), torch.no_grad():
            teacher = again()
        if isinstance(teacher, StoredTeacher):
            self._check_stored(teacher)
        elif teacher.shape != logits.shape:
            raise DataError(
                f"the pretrained model gives logits {tuple(teacher.shape)}",
                expected=f"{tuple(logits.shape)}", mend="was the vocabulary resized?",
            )
        return teacher

    def _check_stored(self, teacher: StoredTeacher) -> None:
        if (self.method.variant, self.method.kind) == ("2024", "understanding"):
            raise ConfigError(
                "a stored teacher with the distance of 2024", expected="a divergence",
                mend="variant='2026', or let `again` call the model",
            )
        if teacher.temperature != self._temperature:
            raise ConfigError(
                f"a teacher stored at temperature {teacher.temperature}",
                expected=f"{self._temperature}", mend="StoredTeacher.of(logits, temperature=...)",
            )

    def _sureness(self, teacher: Tensor | StoredTeacher) -> float | Tensor:
        """Factor of an adaptive l1: lowest + (1 - lowest) (1 - H / log C), H the mean entropy."""
        m = self.method
        if m.schedules[0] != "adaptive":
            return 1.0
        stored = isinstance(teacher, StoredTeacher)
        entropy = teacher.entropy() if stored else -negative_entropy(
            teacher, temperature=self._temperature
        )
        classes = teacher.total if stored else teacher.shape[-1]
        return m.lowest + (1 - m.lowest) * (1 - entropy / math.log(classes))

    def _not_finite(self, again: Again | None) -> DataError:
        """Says where it began: the first module whose output is not finite."""
        where = "" if again is None else _first_bad(self.model, again)
        return DataError(
            f"logits are not finite at step {self.count}{where}", expected="finite logits",
            mend="lower the learning rate",
        )


@torch.no_grad()
def _first_bad(model: nn.Module, again: Again) -> str:
    bad: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not bool(torch.isfinite(out).all()):
                bad.append(name)
        return hook

    hooks = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n]
    try:
        again()
    finally:
        for hook in hooks:
            hook.remove()
    return f", first in {bad[0]}" if bad else ""
