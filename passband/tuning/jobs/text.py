"""Language jobs: a byte-level Llama that knows docstrings learns sums, code, JSON or a cipher.

>>> data = arithmetic(seed=0, size="smoke")
>>> output = data.train.output(data.train.model(), next(iter(batches_of(data.train))))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from passband.bench.task import Data, Size
from passband.data import text
from passband.data.text import Corpus, Pair, Windows
from passband.tuning.adaptation import Adaptation, Exam, SequenceExam, causal_lm
from passband.tuning.measures import once
from passband.tuning.models.byte_llama import SMOKE_MODULES, bits_per_byte, pretrained_byte_lm

LENGTH = 64  # bytes of a window
TARGETS = ("all-linear",)


@dataclass(frozen=True)
class Scale:
    """How much of everything a size has."""

    preset: str
    modules: int | None  # of the standard library
    examples: int
    windows: int  # of each bits/byte
    sums: int
    calibration: int  # windows


SCALES: dict[str, Scale] = {
    "smoke": Scale("smoke", SMOKE_MODULES, 200, 16, 50, 8),
    "small": Scale("small", None, 4000, 150, 500, 64),
    "full": Scale("small", None, 20_000, 600, 500, 256),
}


# ---- measures: higher is better, but for bits ------------------------------------------------


def knowledge(scale: Scale) -> Tensor:
    """Held-out docstrings: what the pretrained model knows."""
    return text.docstrings(scale.modules).bytes("test")


def retention(model: nn.Module, scale: Scale) -> float:
    return -bits_per_byte(model, knowledge(scale), length=LENGTH, limit=scale.windows)


@torch.no_grad()
def exact_match(model: nn.Module, pairs: Sequence[Pair], batch_size: int = 250) -> float:
    """Share of answers that greedy decoding gets right to the last byte, in %.

    Greedy decoding gives the whole answer exactly when each byte of it is the most likely one
    after the true bytes before it, so one pass over prompt and answer decides.
    """
    right = 0
    for start in range(0, len(pairs), batch_size):
        ids, labels = text.collate([text.encode_pair(p) for p in pairs[start : start + batch_size]])
        guess = model(input_ids=ids).logits[:, :-1].argmax(-1)
        wanted = labels[:, 1:]
        right += int(((guess == wanted) | (wanted == text.IGNORED)).all(1).sum())
    return 100 * right / len(pairs)


@torch.no_grad()
def byte_accuracy(model: nn.Module, data: Tensor, limit: int, batch_size: int = 64) -> float:
    """Share of bytes that are the most likely ones after those before them, in %."""
    windows = Windows(data, LENGTH)
    count = min(limit, len(windows))
    chosen = [i * len(windows) // count for i in range(count)]
    right = 0
    for start in range(0, count, batch_size):
        ids = torch.stack([windows[i][0] for i in chosen[start : start + batch_size]])
        right += int((model(input_ids=ids).logits[:, :-1].argmax(-1) == ids[:, 1:]).sum())
    return 100 * right / (count * (LENGTH - 1))


# ---- jobs --------------------------------------------------------------------------------------


def arithmetic(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """Sums of two digits; out of domain: of three."""
    scale = SCALES[size]
    two = text.arithmetic(scale.examples, digits=2, seed=seed, held_out=scale.sums)
    three = text.arithmetic(1, digits=3, held_out=scale.sums)
    examples = [text.encode_pair(pair) for pair in two.train]

    def measure(model: nn.Module) -> Mapping[str, float]:
        return {
            "target": exact_match(model, two.test), "retention": retention(model, scale),
            "out_of_domain": exact_match(model, three.test),
        }

    def validate(model: nn.Module) -> Mapping[str, float]:
        return {"exact_match": exact_match(model, two.valid[:200])}

    return _data("lm-arithmetic", scale, examples, measure, validate)


def code(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    return _corpus("lm-code", seed, size, _code, _json)


def json(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    return _corpus("lm-json", seed, size, _json, _code)


def cipher(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    return _corpus("lm-cipher", seed, size, _cipher, _code)


def _code(scale: Scale, seed: int) -> Corpus:
    return text.code(scale.modules)


def _json(scale: Scale, seed: int) -> Corpus:
    return text.json_lines(scale.examples, seed=seed, held_out=max(100, scale.sums))


def _cipher(scale: Scale, seed: int) -> Corpus:
    return text.cipher(text.docstrings(scale.modules))


def _corpus(
    name: str, seed: int, size: Size, target: Callable[[Scale, int], Corpus],
    other: Callable[[Scale, int], Corpus],
) -> Data[Adaptation]:
    scale = SCALES[size]
    corpus, beside = target(scale, seed), other(scale, 0)
    examples = windows_of(corpus.bytes("train"), scale.examples, seed)

    def measure(model: nn.Module) -> Mapping[str, float]:
        return {
            "target": _bits(model, corpus, "test", scale), "retention": retention(model, scale),
            "out_of_domain": -_bits(model, beside, "test", scale),
        }

    def validate(model: nn.Module) -> Mapping[str, float]:
        return {"bits_per_byte": _bits(model, corpus, "valid", scale)}

    return _data(name, scale, examples, measure, validate)


def _bits(model: nn.Module, corpus: Corpus, part: str, scale: Scale) -> float:
    return bits_per_byte(model, corpus.bytes(part), length=LENGTH, limit=scale.windows)


def windows_of(data: Tensor, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Random windows as examples; every byte is supervised."""
    ids = text.random_windows(data, count, LENGTH, seed)
    return [(row, row) for row in ids]


def _data(
    name: str, scale: Scale, examples: Any, measure: Callable[[nn.Module], Mapping[str, float]],
    validate: Callable[[nn.Module], Mapping[str, float]],
) -> Data[Adaptation]:
    model = partial(pretrained_byte_lm, scale.preset)
    return Data(
        train=Adaptation(
            name, model, examples, causal_lm, "causal-lm", TARGETS, collate=text.collate,
            calibration=_calibration(scale, examples), validation=validate,
        ),
        test=Exam(model, measure, once_of(name, scale, measure)), name=name,
    )


def _calibration(scale: Scale, examples: Sequence[Any]) -> dict[str, list[dict[str, Tensor]]]:
    """Batches for methods that look at activations: of the job, and of what is known already."""
    known = windows_of(
        text.docstrings(scale.modules).bytes("train"), scale.calibration, seed=233
    )
    return {
        purpose: [
            as_call(*text.collate(of[i : i + 8]))
            for i in range(0, min(len(of), scale.calibration), 8)
        ]
        for purpose, of in (("task", examples), ("knowledge", known))
    }


def as_call(ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Keyword arguments of a causal LM. Padding is on the right, where causal models don't look;
    its mask keeps it out of statistics."""
    mask = torch.ones_like(ids)
    tail = (labels != text.IGNORED).flip(1).long().cumsum(1).flip(1) == 0
    mask[tail] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# The pretrained model's own measures depend on the task's name and size alone.
_STARTS: dict[tuple[str, Scale], Callable[[], Mapping[str, float]]] = {}


def once_of(
    name: str, scale: Scale, measure: Callable[[nn.Module], Mapping[str, float]]
) -> Callable[[], Mapping[str, float]]:
    key = (name, scale)
    if key not in _STARTS:
        _STARTS[key] = once(measure, partial(pretrained_byte_lm, scale.preset))
    return _STARTS[key]


# ---- a sequence of tasks -------------------------------------------------------------------------


def sequence(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """Sums, then code, then JSON; scores: exact match, and accuracy of the next byte."""
    scale = SCALES[size]
    sums = text.arithmetic(scale.examples, digits=2, seed=seed, held_out=scale.sums)
    rounds = tuple(make(seed, size).train for make in (arithmetic, code, json))
    exams = (
        lambda model: exact_match(model, sums.test),
        *(partial(_accuracy, of(scale, seed), scale) for of in (_code, _json)),
    )
    first = rounds[0]
    return Data(
        train=Adaptation(
            "lm-sequence", first.model, first.examples, causal_lm, "causal-lm", TARGETS,
            collate=first.collate, calibration=first.calibration, rounds=rounds,
        ),
        test=SequenceExam(first.model, exams, partial(retention, scale=scale)),
        name="lm-sequence",
    )


def _accuracy(corpus: Corpus, scale: Scale, model: nn.Module) -> float:
    return byte_accuracy(model, corpus.bytes("test"), scale.windows)


def batches_of(job: Adaptation, batch_size: int = 32) -> Iterator[Any]:
    """Batches of a job's examples in order."""
    collate = job.collate or torch.utils.data.default_collate
    for start in range(0, len(job.examples), batch_size):
        stop = min(start + batch_size, len(job.examples))
        yield collate([job.examples[i] for i in range(start, stop)])


