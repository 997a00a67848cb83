"""A sentence encoder learns which package a docstring comes from.

>>> from passband.data.instructions import Labelled
>>> sentences = (Labelled("Sum of the elements.", "numpy"), Labelled("Solve for x.", "sympy"))
>>> some = LabelledText("some", ("numpy", "sympy"), train=sentences, valid=(), test=())
>>> inputs, labels = encoded(some, "train").collate(encoded(some, "train").examples)
>>> labels
tensor([0, 1])

The job is `packages(seed=0)`; the first time, sources of eight packages are parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from passband.bench.task import Data, Size
from passband.data.instructions import Labels, from_rows, tokenize_labelled
from passband.data.packages import LabelledText, Retrieval, docstring_packages, retrieval
from passband.tuning.adaptation import Adaptation, Exam, classifier
from passband.tuning.measures import once
from passband.tuning.models import SentenceClassifier, mean_reciprocal_rank, minilm_tokenizer

LONGEST = 48  # tokens of a sentence
HEAD = ("classifier",)
# Sentences of each class in all parts, and pairs of the retrieval test.
SIZES = {"smoke": (16, 20), "small": (200, 100), "full": (400, 200)}


def packages(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """Eight packages, by docstrings of functions; out of domain: those of classes and modules."""
    per_class, pairs = SIZES[size]
    functions = docstring_packages(per_class)
    train = encoded(functions, "train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    shown = Labels(tuple(train.examples[i] for i in order), train.classes, train.pad)
    model = partial(SentenceClassifier, len(functions.classes))

    def measure(model: nn.Module) -> Mapping[str, float]:
        return {
            "target": accuracy(model, encoded(functions, "test")),
            "retention": retention(model, pairs),
            "out_of_domain": accuracy(model, encoded(_others(), "test")),
        }

    def validate(model: nn.Module) -> Mapping[str, float]:
        return {"accuracy": accuracy(model, encoded(functions, "valid"))}

    return Data(
        train=Adaptation(
            "minilm-packages", model, shown, classifier, "classification", head=HEAD,
            collate=shown.collate, validation=validate,
            calibration=calibration(shown, pairs),
        ),
        test=Exam(model, measure, _start(size)), name="minilm-packages",
    )


def _others() -> LabelledText:
    """Docstrings of classes and modules."""
    return docstring_packages(kind="other")


def encoded(data: LabelledText, part: str) -> Labels:
    """One part of labelled text as tokens of MiniLM; classes have the numbers of the whole."""
    rows = from_rows(
        [{"text": one.text, "label": one.label} for one in getattr(data, part)], source=part
    )
    return tokenize_labelled(
        rows, minilm_tokenizer(), max_length=LONGEST, classes=data.classes
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: Labels, batch_size: int = 64) -> float:
    """Share of texts that get the right class, in %."""
    right = 0
    # Texts of like length together: less is filled up.
    order = sorted(range(len(data)), key=lambda i: len(data[i][0]["input_ids"]))
    for start in range(0, len(order), batch_size):
        inputs, labels = data.collate([data[i] for i in order[start : start + batch_size]])
        right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return 100 * right / len(data)


def retention(model: nn.Module, pairs: int) -> float:
    """Mean reciprocal rank of the right function for a docstring, as the encoder knew it."""
    test = retrieval_pairs(pairs)
    return mean_reciprocal_rank(model, minilm_tokenizer(), test.queries, test.targets)


@cache
def retrieval_pairs(count: int) -> Retrieval:
    return retrieval(count)


def calibration(shown: Labels, pairs: int) -> dict[str, list[dict[str, Any]]]:
    """Batches of the job, and of docstrings that retrieval knows."""
    known = retrieval_pairs(pairs)
    tokenizer = minilm_tokenizer()
    knowledge = [
        dict(tokenizer(list(known.queries[i : i + 16]), padding=True, truncation=True,
                       max_length=LONGEST, return_tensors="pt"))
        for i in range(0, min(len(known.queries), 64), 16)
    ]
    count = min(len(shown), 128)
    task = [as_call(*shown.collate([shown[j] for j in range(i, min(i + 16, count))]))
            for i in range(0, count, 16)]
    return {"task": task, "knowledge": knowledge}


def as_call(inputs: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    return {**inputs, "labels": labels}


@cache
def _start(size: Size) -> Callable[[], Mapping[str, float]]:
    """The pretrained encoder's own measures; its fresh head guesses."""

    def measure(model: nn.Module) -> Mapping[str, float]:
        exam: Exam = packages(0, size).test
        return exam.measure(model)

    classes = len(docstring_packages(SIZES[size][0]).classes)
    return once(measure, partial(SentenceClassifier, classes))


