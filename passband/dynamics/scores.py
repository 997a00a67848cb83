"""How well labels are found: accuracy, the worst group, what became of wrong labels.

>>> truth, noisy = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 0])
>>> memory(torch.tensor([0, 1, 1, 1]), noisy, truth)     # one wrong label learned, one mended
{'memorised': 50.0, 'recovered': 50.0}
>>> auroc(np.array([0.9, 0.8, 0.3]), np.array([True, False, False]))
1.0

All shares are in %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.bench.task import Data
from passband.data.labelled.labelled import Labelled


def evaluated(system: Any, data: Data[Labelled]) -> dict[str, float]:
    """Everything that can be said of a classifier on a task's data."""
    test, train = data.test, data.train
    found = accuracies(predicted(system, test), test)
    if train.truth is not None and train.wrong.any():
        found |= memory(predicted(system, train), train.y, train.truth)
        if hasattr(system, "suspicion"):
            found["flag_auroc"] = auroc(system.suspicion(train), train.wrong.numpy())
    if hasattr(system, "diagnose"):
        found |= {name: float(value) for name, value in system.diagnose(data).items()}
    return found


def predicted(system: Any, labelled: Labelled) -> Tensor:
    """[N] classes that a system gives."""
    return torch.as_tensor(system.classify(labelled.x.numpy()))


def accuracies(found: Tensor, labelled: Labelled) -> dict[str, float]:
    """Of all, and of the worst group where there are several; judged by the truth if known."""
    right = (found == labelled.right).double()
    values = {"accuracy": 100 * float(right.mean())}
    if labelled.groups is not None and len(present := labelled.groups.unique()) > 1:
        values["worst_group"] = 100 * min(
            float(right[labelled.groups == g].mean()) for g in present
        )
    return values


def memory(found: Tensor, labels: Tensor, truth: Tensor) -> dict[str, float]:
    """What a model says where the label it learned from is wrong.

    memorised  share that gets the wrong label;  recovered  share that gets the true one
    """
    wrong = labels != truth
    learned = (found == labels)[wrong].double().mean()
    return {
        "memorised": 100 * float(learned),
        "recovered": 100 * float((found == truth)[wrong].double().mean()),
    }


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive is scored above a negative, ties half; NaN without either."""
    from scipy.stats import rankdata

    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def confusion(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """[C, C] counts: rows true, columns found.

    >>> confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    tensor([[1, 1],
            [0, 1]])
    """
    return torch.bincount(truth * classes + found, minlength=classes**2).view(classes, classes)


