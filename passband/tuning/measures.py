"""The numbers of one row of the family: what was gained, what was forgotten, what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from passband.bench.task import Metric
from passband.parts.edits import Edit
from passband.parts.intruders import count_intruders
from passband.parts.modes import evaluating
from passband.tuning.adaptation import Exam, SequenceExam
from passband.tuning.continual import backward_transfer

# Which sign of (after - before) is an improvement, by the direction of the metric.
_SIGN = {"higher": 1.0, "lower": -1.0}


def measure(system: Any, exam: Exam, target: Metric) -> dict[str, float]:
    """Metrics of a fitted system; `exam.measure` sees the adapted model only."""
    before, model = exam.start(), exam.model()
    edit: Edit = system.fitted()
    base, tables = weights_of(model), embeddings_of(model)
    system.adapt(model)
    with evaluating(model), torch.no_grad():
        after = exam.measure(model)
    return {
        target.name: after["target"],
        "gain": _SIGN[target.better] * (after["target"] - before["target"]),
        "forgetting": -(after["retention"] - before["retention"]),
        "out_of_domain": after["out_of_domain"] - before["out_of_domain"],
        **change(edit, base, tables),
        **system.facts,
    }


def measure_sequence(system: Any, exam: SequenceExam) -> dict[str, float]:
    """Metrics of a fitted system after a sequence of tasks; it keeps an edit for each round."""
    model = exam.model()
    base, tables = weights_of(model), embeddings_of(model)
    with evaluating(model), torch.no_grad():
        known = exam.retention(model)
        scores = []
        for edit in system.edits:
            applied = edit.apply(model)
            scores.append([score(model) for score in exam.scores])
            left = exam.retention(model)
            applied.revert()
    return {
        "score": sum(scores[-1]) / len(scores[-1]),
        "backward_transfer": backward_transfer(scores),
        "forgetting": known - left,
        **change(system.fitted(), base, tables),
        **system.facts,
    }


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def embeddings_of(model: nn.Module) -> set[str]:
    return {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Embedding)}


def change(
    edit: Edit, base: Mapping[str, torch.Tensor], tables: Container[str] = ()
) -> dict[str, float]:
    """Size and spectrum of what an edit does to the weights `base`.

    tables  names of embeddings, whose rows are no directions to be compared
    """
    deltas = {n: c for n, c in edit.changes.items() if c.kind != "replace"}
    squares, intruders = 0.0, 0
    for name, one in deltas.items():
        delta = one.delta(base[name])
        squares += float(delta.double().square().sum())
        if delta.ndim == 2 and name not in tables:
            before = base[name].float()
            intruders += count_intruders(before, before + delta)
    return {
        "adapter_bytes": float(edit.bytes()),
        "delta_norm": math.sqrt(squares),
        "intruders": float(intruders),
    }


def once(
    measure: Callable[[nn.Module], Mapping[str, float]], model: Callable[[], nn.Module]
) -> Callable[[], Mapping[str, float]]:
    """The pretrained model's own measures, computed at the first call only."""

    @cache
    def start() -> dict[str, float]:
        pretrained = model()
        with evaluating(pretrained), torch.no_grad():
            return dict(measure(pretrained))

    return start
