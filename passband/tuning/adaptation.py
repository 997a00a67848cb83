"""What a fine-tuning method is given: a pretrained model and a job for it.

>>> ids = torch.randint(256, (4, 16))
>>> job = Adaptation("own", lambda: byte_lm(32, 64, 2, 4), ids, output=causal_lm)
>>> output = job.output(job.model(), (ids, ids))       # each byte is asked for but the first
>>> output.logits.shape
torch.Size([60, 256])
>>> output.loss.backward()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["causal-lm", "masked-lm", "classification", "denoising"]


@dataclass(frozen=True)
class Output:
    """One batch's loss, and what regularisers of the output look at.

    logits  [M, C] at the M supervised positions, aligned with labels; None for regression
    labels  [M]
    """

    loss: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Adaptation:
    """A pretrained model and a job for it.

    model        a fresh copy of the pretrained model at each call
    examples     indexable, for the training loop; `collate` joins them to batches
    output       (model, batch) -> Output
    targets      endings of the names of modules to adapt (`parts.targets.find_targets`)
    head         prefixes of parameters that are fresh and trained in any case
    calibration  batches by purpose ("task", "knowledge"), each the keyword arguments of one call
                 of the model, labels included: `model(**batch).loss`
    validation   (model) -> metrics on held-out data of the job, for selection
    rounds       a sequence of tasks, learned one after the other; the other fields are then those
                 of the first
    """

    name: str
    model: Callable[[], nn.Module]
    examples: Any
    output: Callable[[nn.Module, Any], Output]
    kind: Kind = "causal-lm"
    targets: tuple[str, ...] = ("all-linear",)
    head: tuple[str, ...] = ()
    calibration: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    collate: Callable[[list[Any]], Any] | None = None
    validation: Callable[[nn.Module], Mapping[str, float]] | None = None
    rounds: tuple[Adaptation, ...] = ()


@dataclass(frozen=True)
class Exam:
    """What an adapted model is measured by.

    measure  (model) -> {"target", "retention", "out_of_domain"}: the target as its metric says,
             the other two so that more is better (minus bits/byte, accuracy, ...)
    start    the same of the pretrained model, computed at the first call
    """

    model: Callable[[], nn.Module]
    measure: Callable[[nn.Module], Mapping[str, float]]
    start: Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class SequenceExam:
    """What a model that learned several tasks is measured by.

    scores     one function (model) -> % for each task, more is better
    retention  (model) -> what was known before, more is better
    """

    model: Callable[[], nn.Module]
    scores: tuple[Callable[[nn.Module], float], ...]
    retention: Callable[[nn.Module], float]


def causal_lm(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Output:
    """Next-token loss of a transformers causal LM, at the supervised positions only.

    batch  ids [B, T] and labels [B, T], -100 where nothing is asked. The vocabulary projection is
           computed for supervised rows alone.
    """
    ids, labels = batch
    wanted = labels[:, 1:] != -100
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, :-1][wanted])
    aligned = labels[:, 1:][wanted]
    return Output(F.cross_entropy(logits.float(), aligned), logits, aligned)


def classifier(model: nn.Module, batch: tuple[Any, Tensor]) -> Output:
    """Cross-entropy of a model whose output has `logits` [N, C], or is logits.

    batch  inputs (a tensor, or a mapping of keyword arguments) and labels [N]
    """
    inputs, labels = batch
    out = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits = getattr(out, "logits", out)
    return Output(F.cross_entropy(logits.float(), labels), logits, labels)
