"""Exponential moving average of weights, used in place of them for validation and selection.

    average <- d average + (1 - d) weights,   d = min(decay, (1 + n) / (10 + n)) with warm-up

>>> average = Average(named_tensors(model), decay=0.999)
>>> average.update(named_tensors(model))
>>> with swapped(named_tensors(model), average.tensors):
...     score = validate(model)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Average:
    """The running average; integer tensors (counters) are copied."""

    def __init__(self, tensors: Tensors, decay: float, *, warmup: bool = True) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.tensors = clone(tensors)

    @torch.no_grad()
    def update(self, tensors: Tensors) -> None:
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for name, average in self.tensors.items():
            if average.is_floating_point() or average.is_complex():
                averages.append(average)
                values.append(tensors[name].detach())
            else:
                average.copy_(tensors[name])
        torch._foreach_lerp_(averages, values, 1.0 - decay)

    def follow(self, tensors: Tensors) -> None:
        """Tensors that were resized start anew: an average over other shapes has no meaning."""
        for name, average in self.tensors.items():
            if average.shape != tensors[name].shape:
                self.tensors[name] = tensors[name].detach().clone()


def clone(tensors: Tensors) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(tensors: Tensors, values: Tensors) -> None:
    """Overwrite `tensors` in place with `values`, name by name."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


@contextmanager
def swapped(tensors: Tensors, values: Tensors | None) -> Iterator[None]:
    """`tensors` hold `values` inside and their own again outside; None changes nothing."""
    if values is None:
        yield
        return
    own = clone(tensors)
    copy_into(tensors, values)
    try:
        yield
    finally:
        copy_into(tensors, own)
