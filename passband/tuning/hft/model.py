"""Half fine-tuning (HFT, ACL 2025, arXiv 2404.18466): train half of the matrices, keep the rest.

    trained <- trained - eta grad L          frozen <- frozen

    selection   whole matrices, drawn once a round, half of each category in each block:
                2 of {q, k, v, o};  2 of 3 feed-forward matrices in half of the blocks and 1 of 3 in
                the others;  1 of 2 norms.  Embeddings, head and final norm are trained.
    rounds      a new draw for each task of a sequence: every matrix is visited in time, while in
                each round half of them hold the state before
    half reset  the same selection puts half of an already tuned model back
    soft form   min_theta L + lambda |(I - M)(theta - theta_0)|^2: all trained, half pulled
                back; HFT is its limit lambda -> infinity

>>> handle = HFT(ratio=0.5).attach(byte_lm(32, 64, 2, 4))
>>> optimizer = handle.optimizer(lr=2e-5)       # state for the trained half only
>>> handle.report.of_blocks, handle.report.counts["attention"]
(0.5, '4 of 8 units, 50.0 % of elements')
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.tuning.handle import Calibration
from passband.tuning.hft.selection import Strategy, Unit, draw, find_units, ratio_of
from passband.tuning.whole import WholeTensors


@dataclass(frozen=True)
class HFT:
    """
    ratio             trained share of each category, between 0 and 1
    strategy          "category", or its ablations "layer" and "model"
    freeze_embeddings also keep token embeddings: with frozen lowest blocks backward ends early
    freeze_head       also keep the output projection
    freeze_final_norm also keep the norm after the last block
    pull              None: the method. A number: the soft form with this lambda, everything trained
    respect_existing  accept a model that is partly frozen already; what is frozen stays so
    groups            module names by category for architectures that are not recognised
    """

    ratio: float = 0.5
    strategy: Strategy = "category"
    freeze_embeddings: bool = False
    freeze_head: bool = False
    freeze_final_norm: bool = False
    pull: float | None = None
    respect_existing: bool = False
    groups: Mapping[str, Sequence[str]] | None = None

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> HalfTuning:
        """Draw and freeze. A round of a sequence is a new `attach` with another seed."""
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        if frozen and not self.respect_existing:
            raise DataError(
                f"{len(frozen)} parameters are frozen already, such as {sorted(frozen)[0]}",
                expected="a plain pretrained model",
                mend="HFT(respect_existing=True) leaves them frozen and draws from the others",
            )
        units = [u for u in find_units(model, self.groups) if not frozen & set(u.parameters)]
        drawn = draw(units, strategy=self.strategy, ratio=self.ratio, seed=seed)
        outside = self.outside(model, units, frozen)
        return HalfTuning(
            model, units, drawn, outside, method=self, head=head, steps=steps, seed=seed, name=name
        )

    def outside(
        self, model: nn.Module, units: Sequence[Unit], frozen: Collection[str] = ()
    ) -> list[str]:
        """Trained parameters that belong to no block: embeddings, head, final norm."""
        inside = {p for u in units for p in u.parameters} | set(frozen)
        names = {id(p): n for n, p in model.named_parameters()}
        kinds = {n: self._kind(model, names, n, p) for n, p in model.named_parameters()}
        kept = {
            "embedding": self.freeze_embeddings, "head": self.freeze_head,
            "norm": self.freeze_final_norm,
        }
        return [n for n, kind in kinds.items() if n not in inside and not kept[kind]]

    @staticmethod
    def _kind(model: nn.Module, names: dict[int, str], name: str, parameter: Tensor) -> str:
        output = getattr(model, "get_output_embeddings", lambda: None)()
        table = getattr(model, "get_input_embeddings", lambda: None)()
        # A tied table is the head as well; it counts once, as the embedding.
        if table is not None and any(p is parameter for p in table.parameters()):
            return "embedding"
        if output is not None and any(p is parameter for p in output.parameters()):
            return "head"
        return "embedding" if "embed" in name else "norm" if parameter.ndim == 1 else "head"


@dataclass(frozen=True)
class Report:
    """What was drawn. Ratios are shares of elements."""

    strategy: str
    ratio: float
    seed: int
    of_blocks: float
    of_model: float
    trained: tuple[str, ...] = field(repr=False)
    counts: dict[str, str] = field(default_factory=dict)  # category -> "12 of 24 units, 50.0 %"


class HalfTuning(WholeTensors):
    """HFT on a model: half of its matrices are trained, the others are bit-identical at the end."""

    def __init__(
        self, model: nn.Module, units: Sequence[Unit], drawn: Sequence[Unit],
        outside: Sequence[str], *, method: HFT, **options: Any,
    ) -> None:
        half = [p for u in drawn for p in u.parameters]
        rest = [p for u in units for p in u.parameters if p not in set(half)]
        soft = method.pull is not None
        super().__init__(
            model, [*half, *(rest if soft else ()), *outside], method=method, **options
        )
        self.method, self.units, self.drawn = method, list(units), list(drawn)
        self.pulled = rest if soft else []
        total = sum(p.numel() for p in model.parameters())
        known = dict(model.named_parameters())
        held = sum(known[n].numel() for n in [*half, *outside])
        self.report = Report(
            method.strategy, method.ratio, self.seed, ratio_of(drawn, units), held / total,
            (*half, *outside), _counts(units, drawn),
        )
        self.about |= {"drawn": [u.name for u in drawn], "seed": self.seed}

    def penalty(self) -> Tensor | None:
        """lambda |(I - M)(theta - theta_0)|^2 of the soft form."""
        if not self.pulled:
            return None
        now = self.trained()
        gaps = (now[n] - self._saved[n] for n in self.pulled if n in now)
        squares = [gap.float().square().sum() for gap in gaps]
        return self.method.pull * torch.stack(squares).sum()


def _counts(units: Sequence[Unit], drawn: Sequence[Unit]) -> dict[str, str]:
    chosen = set(drawn)
    found = {}
    for category in dict.fromkeys(u.category for u in units):
        of = [u for u in units if u.category == category]
        on = [u for u in of if u in chosen]
        share = 100 * ratio_of(on, of)
        found[category] = f"{len(on)} of {len(of)} units, {share:.1f} % of elements"
    return found


# ---- half reset ----------------------------------------------------------------------------------


@torch.no_grad()
def half_reset(
    model: nn.Module, reference: Mapping[str, Tensor] | Path | str, *, ratio: float = 0.5,
    strategy: Strategy = "category", seed: int = 0,
) -> list[str]:
    """Put part of a tuned model's matrices back to the pretrained values, in place.

    reference  state dict of the pretrained model, or its safetensors file, read tensor by tensor
    ratio      share that goes back
    Returns the names that went back. Raises `DataError` for names or shapes that differ.

    >>> base, chat = byte_lm(32, 64, 2, 4, seed=0), byte_lm(32, 64, 2, 4, seed=1)
    >>> back = half_reset(chat, base.state_dict(), seed=0)
    >>> all(torch.equal(chat.get_parameter(n), base.get_parameter(n)) for n in back)
    True
    """
    drawn = draw(find_units(model), strategy=strategy, ratio=ratio, seed=seed)
    names = [p for u in drawn for p in u.parameters]
    known = dict(model.named_parameters())
    if isinstance(reference, Mapping):
        _put_back(known, names, set(reference), reference.__getitem__)
    else:
        with safe_open(str(reference), framework="pt") as file:
            _put_back(known, names, set(file.keys()), file.get_tensor)
    return names


def _put_back(
    known: Mapping[str, Tensor], names: Sequence[str], there: set[str],
    read: Callable[[str], Tensor],
) -> None:
    missing = [n for n in names if n not in there]
    if missing:
        raise DataError(
            f"the reference lacks {', '.join(missing[:5])}",
            expected="the pretrained model's state",
            mend="take the state of the same class of model",
        )
    for name in names:
        value = read(name)
        if value.shape != known[name].shape:
            raise DataError(
                f"{name} has shape {tuple(value.shape)} in the reference",
                expected=f"{tuple(known[name].shape)}", mend="was the vocabulary resized?",
            )
        known[name].copy_(value)


# ---- preference tuning -------------------------------------------------------------------------


def dpo_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Direct preference optimisation: -log sigmoid(beta (margin - margin of the reference)).

    All inputs [B]: summed log-probabilities of responses. The reference of half fine-tuning needs
    no second model: `with handle.off()` is the start of the round, and the frozen half is shared.
    Source: Rafailov et al., NeurIPS 2023, arXiv 2305.18290.

    >>> model, (good, bad) = byte_lm(32, 64, 2, 4), torch.randint(256, (2, 4, 16))
    >>> handle = HFT(ratio=0.5).attach(model)
    >>> with handle.off(), torch.no_grad():
    ...     reference = [response_logprob(model, ids, ids) for ids in (good, bad)]
    >>> policy = [response_logprob(model, ids, ids) for ids in (good, bad)]
    >>> round(dpo_loss(*policy, *reference).item(), 4)          # log 2: nothing is trained yet
    0.6931
    """
    margin = (chosen - rejected) - (reference_chosen - reference_rejected)
    return -F.logsigmoid(beta * margin).mean()


def response_logprob(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    """Summed log-probability of the supervised tokens, [B]; labels [B, T] with -100 elsewhere."""
    if ids.shape != labels.shape:
        raise ConfigError(
            f"ids {tuple(ids.shape)} and labels {tuple(labels.shape)}", expected="equal shapes"
        )
    logits = model(input_ids=ids).logits[:, :-1].float()
    wanted = labels[:, 1:]
    picked = wanted.clamp_min(0)[..., None]
    logp = torch.log_softmax(logits, -1).gather(-1, picked)[..., 0]
    total: Tensor = (logp * (wanted != -100)).sum(1)
    return total
