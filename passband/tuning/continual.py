"""Learning tasks in a sequence: rehearsal of old examples, gradients that don't undo them.

    replay  a share of each earlier task's examples is mixed into the present one
    gem     g' = g - min(0, <g, m>) m / <m, m>, m the gradient on remembered examples: a step never
            raises the loss on them, to first order (Lopez-Paz and Ranzato, NeurIPS 2017, arXiv
            1706.08840; with the average constraint of Chaudhry et al., ICLR 2019, arXiv 1812.00420)

>>> first, second, new = range(0, 50), range(50, 80), range(80, 100)
>>> examples = rehearse(new, old=[first, second], share=0.1, seed=0)
>>> len(examples)                                # 20 new ones, 5 and 3 old ones
28
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer


class Joined:
    """Examples of several indexables as one."""

    def __init__(self, parts: Iterable[tuple[Any, Sequence[int]]]) -> None:
        self.places = [(data, int(i)) for data, indices in parts for i in indices]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        data, i = self.places[index]
        return data[i]


def remember(old: Sequence[Any], share: float, seed: int) -> Joined:
    """A share of each earlier task's examples, at least one of each."""
    rng = np.random.default_rng([seed, 77])
    return Joined(
        (data, rng.permutation(len(data))[: max(1, round(share * len(data)))].tolist())
        for data in old
    )


def rehearse(new: Any, old: Sequence[Any], share: float, seed: int) -> Any:
    """The present task's examples with a share of the earlier ones' among them."""
    if not old:
        return new
    kept = remember(old, share, seed)
    return Joined([(new, range(len(new))), (kept, range(len(kept)))])


def project_gradients(
    optimizer: Optimizer, memory: Callable[[], Tensor]
) -> Any:
    """Before each step: take out of the gradient what would raise the loss on remembered examples.

    memory  computes that loss, on a new draw of them at each call
    Returns the handle of the hook; its `remove()` ends it.
    """

    def hook(*_: Any) -> None:
        parameters = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        with torch.enable_grad():
            memory().backward()  # type: ignore[no-untyped-call]
        old = [torch.zeros_like(g) if p.grad is None else p.grad
               for p, g in zip(parameters, gradients, strict=True)]
        along, square = _dot(gradients, old), _dot(old, old)
        if along < 0 < square:
            gradients = [g - (along / square) * m for g, m in zip(gradients, old, strict=True)]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g

    return optimizer.register_step_pre_hook(hook)


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)))


def backward_transfer(scores: Sequence[Sequence[float]]) -> float:
    """Mean over tasks but the last of (score at the end - score when just learned).

    scores[i][j]  of task j after round i; more is better

    >>> backward_transfer([[0.9, 0.1], [0.5, 0.8]])
    -0.4
    """
    last = len(scores) - 1
    gaps = [scores[last][task] - scores[task][task] for task in range(last)]
    return round(sum(gaps) / max(last, 1), 12)
