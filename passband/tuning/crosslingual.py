"""A task learned in one language and wanted in others: what a method gets, and what it is asked.

>>> from passband.tuning.number_words import number_words
>>> job = number_words(seed=0, size="smoke").train
>>> job.source, sorted(job.texts)
('en', ['en', 'kz'])

A method that has modules for languages learns one from each `texts[language]`, a job of its own
without any labels, and combines it with what it learned of the task. Any other method learns the
task alone and enters as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from passband.parts.modes import evaluating
from passband.tuning.adaptation import Adaptation
from passband.tuning.measures import change, embeddings_of, weights_of


@dataclass(frozen=True)
class CrossLingual(Adaptation):
    """
    source         language of the examples
    texts          text in the source and in the languages to transfer to, as masked-LM jobs
    sources        language -> the same task's examples, for training in several languages at once
    sources_texts  text in those of the sources that `texts` lacks
    """

    source: str = ""
    texts: Mapping[str, Adaptation] = field(default_factory=dict)
    sources: Mapping[str, Any] = field(default_factory=dict)
    sources_texts: Mapping[str, Adaptation] = field(default_factory=dict)


@dataclass(frozen=True)
class TransferExam:
    """What a model for a task in many languages is measured by.

    accuracy   (model, language) -> %
    fit        (model, language) -> masked-LM loss on held-out text, nats a token
    retention  (model) -> minus the masked-LM loss on what it was pretrained on
    source     language of the task's examples
    targets    languages without any, with few lines in pretraining
    others     languages without any, with many lines in pretraining
    """

    model: Callable[[], nn.Module]
    accuracy: Callable[[nn.Module, str], float]
    fit: Callable[[nn.Module, str], float]
    retention: Callable[[nn.Module], float]
    source: str
    targets: tuple[str, ...]
    others: tuple[str, ...]


class Speaks(Protocol):
    """A fitted system that has modules for languages."""

    def speak(self, model: nn.Module, language: str, task: bool = True) -> nn.Module:
        """The pretrained model for a language, and for the task; in place."""


def measure_transfer(system: Any, exam: TransferExam) -> dict[str, float]:
    """Metrics of a fitted system; one without `speak` is measured as it is in every language."""
    speak = getattr(system, "speak", None)

    def measured(language: str) -> dict[str, float]:
        model = exam.model()
        model = system.adapt(model) if speak is None else speak(model, language)
        alone = exam.model() if speak is None else speak(exam.model(), language, task=False)
        with evaluating(model), evaluating(alone), torch.no_grad():
            return {"accuracy": exam.accuracy(model, language), "fit": exam.fit(alone, language)}

    start, model = exam.model(), exam.model()
    base, tables = weights_of(start), embeddings_of(start)
    model = system.adapt(model)
    with evaluating(start), evaluating(model), torch.no_grad():
        before = _mean(exam.accuracy(start, language) for language in exam.targets)
        forgotten = exam.retention(start) - exam.retention(model)
        alone = _mean(exam.accuracy(model, language) for language in exam.targets)
        others = _mean(exam.accuracy(model, language) for language in exam.others)
    found = {language: measured(language) for language in (exam.source, *exam.targets)}
    zero_shot = _mean(found[language]["accuracy"] for language in exam.targets)
    return {
        "zero_shot": zero_shot,
        "gain": zero_shot - before,
        "forgetting": forgotten,
        "out_of_domain": others,
        "task_alone": alone,
        "source_accuracy": found[exam.source]["accuracy"],
        "source_fit": found[exam.source]["fit"],
        "target_fit": _mean(found[language]["fit"] for language in exam.targets),
        **change(system.fitted(), base, tables),
        **system.facts,
    }


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
