"""Vision jobs: a small transformer that knows upright digits, or half-wrong ones, learns others.

>>> data = shift(seed=0, size="smoke")
>>> data.test.start()["retention"] > 20         # accuracy on upright digits, %; guessing: 10
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from passband.bench.task import Data, Size
from passband.data.digits import Digits, digits, imbalanced, inverted, rotated
from passband.tuning.adaptation import Adaptation, Exam, Output, classifier
from passband.tuning.measures import once
from passband.tuning.models.small_vit import pretrained_digits_vit

RARE = (5, 6, 7, 8, 9)
ANGLE = 90.0
CALIBRATION = 256  # images


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of images that get the right class, in %."""
    return float(100 * (_guess(model, data) == data.labels).double().mean())


@torch.no_grad()
def class_accuracies(model: nn.Module, data: Digits) -> list[float]:
    """The same for each of the ten classes."""
    right = _guess(model, data) == data.labels
    return [float(100 * right[data.labels == c].double().mean()) for c in range(10)]


def _guess(model: nn.Module, data: Digits) -> Tensor:
    return model(pixel_values=data.images).logits.argmax(-1)


def output(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Output:
    """Cross-entropy of a batch of images [B, 1, 8, 8] and labels [B]."""
    return classifier(model, ({"pixel_values": batch[0]}, batch[1]))


def shift(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """Digits turned by 90 degrees and inverted; out of domain: inverted and upright.

    A seed draws which 600 of the training images are shown.
    """
    data = digits()
    shifted = {p: getattr(data, p).transformed(inverted, rotated(ANGLE))
               for p in ("train", "valid", "test")}
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    shown = shifted["train"].subset(order[: 100 if size == "smoke" else 600])
    upright = data.test.transformed(inverted)

    def measure(model: nn.Module) -> Mapping[str, float]:
        return {
            "target": accuracy(model, shifted["test"]), "retention": accuracy(model, data.test),
            "out_of_domain": accuracy(model, upright),
        }

    def validate(model: nn.Module) -> Mapping[str, float]:
        return {"accuracy": accuracy(model, shifted["valid"])}

    return _data("digits-shift", "upright", size, shown, data.train, measure, validate)


def biased(seed: int = 0, size: Size = "small") -> Data[Adaptation]:
    """300 clean, imbalanced digits for a model pretrained on imbalanced ones with wrong labels."""
    data = digits()
    shown = imbalanced(data.train, 60 if size == "smoke" else 300, seed=seed)

    def measure(model: nn.Module) -> Mapping[str, float]:
        each = class_accuracies(model, data.test)
        rare = [each[c] for c in RARE]
        frequent = [each[c] for c in range(10) if c not in RARE]
        return {
            "target": sum(each) / 10, "retention": sum(frequent) / len(frequent),
            "out_of_domain": sum(rare) / len(rare),
        }

    def validate(model: nn.Module) -> Mapping[str, float]:
        return {"balanced_accuracy": sum(class_accuracies(model, data.valid)) / 10}

    return _data("digits-biased", "biased", size, shown, data.train, measure, validate)


def _data(
    name: str, kind: str, size: Size, shown: Digits, known: Digits,
    measure: Callable[[nn.Module], Mapping[str, float]],
    validate: Callable[[nn.Module], Mapping[str, float]],
) -> Data[Adaptation]:
    smoke = size == "smoke"
    model = partial(pretrained_digits_vit, kind, smoke=smoke)
    return Data(
        train=Adaptation(
            name, model, shown, output, "classification", collate=_stack,
            calibration={"task": _batches(shown), "knowledge": _batches(known)},
            validation=validate,
        ),
        test=Exam(model, measure, _start(name, kind, smoke)), name=name,
    )


def _stack(examples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(labels)


def _batches(data: Digits, size: int = 32) -> list[dict[str, Any]]:
    count = min(len(data), CALIBRATION)
    return [
        {"pixel_values": data.images[i : min(i + size, count)],
         "labels": data.labels[i : min(i + size, count)]}
        for i in range(0, count, size)
    ]


@cache
def _start(name: str, kind: str, smoke: bool) -> Callable[[], Mapping[str, float]]:
    """The pretrained model's own measures: its test sets are the same for every seed."""
    make = {"digits-shift": shift, "digits-biased": biased}[name]

    def measure(model: nn.Module) -> Mapping[str, float]:
        exam: Exam = make(0, "smoke" if smoke else "small").test
        return exam.measure(model)

    return once(measure, partial(pretrained_digits_vit, kind, smoke=smoke))
