"""Wrong labels with the truth beside them, to measure what a method makes of them.

>>> y = torch.arange(1000) % 10
>>> noisy = symmetric(y, 0.4, classes=10, seed=0)
>>> noisy.rate, round(noisy.effective, 2)        # 40 % drawn anew, a tenth of those come out right
(0.4, 0.36)
>>> bool((noisy.labels[~noisy.wrong] == y[~noisy.wrong]).all())
True
>>> noisy.matrix.shape                           # P(label | truth), measured
torch.Size([10, 10])

N examples, C classes. Labels are [N] integers, tensors or arrays; all draws depend on the seed
alone. Sources: symmetric and pair noise as in Patrini et al., arXiv 1609.03683; instance-dependent
noise is the part-dependent noise of Xia et al., arXiv 2006.07836.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError, DataError, PassbandWarning

# CIFAR-10's asymmetric noise: truck -> car, bird -> plane, cat <-> dog, deer -> horse.
CIFAR10_PAIRS = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
# Digits that are mistaken for each other by hand.
DIGIT_PAIRS = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}


@dataclass(frozen=True, eq=False)
class Noisy:
    """Labels after noise.

    labels     [N] int64
    truth      [N] int64, as they came
    rate       share that was asked for; NaN where a matrix was
    matrix     [C, C] float64, measured share of each label among the examples of a true class
    drawn      [N] True where the noise had its say; some drawings come out right
    """

    labels: Tensor
    truth: Tensor
    rate: float
    matrix: Tensor
    drawn: Tensor

    @property
    def wrong(self) -> Tensor:
        """[N] True where the label differs from the truth."""
        return self.labels != self.truth

    @property
    def effective(self) -> float:
        """Share of labels that differ from the truth, in [0, 1]."""
        return float(self.wrong.double().mean())

    def __len__(self) -> int:
        return len(self.labels)


def symmetric(
    y: Any, rate: float, classes: int, seed: int = 0, *, exclude_true: bool = False
) -> Noisy:
    """Exactly ceil(rate N) labels are drawn anew, each class equally likely.

    exclude_true  draw from the other classes only; by default the true one is among them, so that
                  rate (1 - 1 / C) of the labels become wrong
    Warns where a wrong class is as likely as the true one: no method can tell them apart then.
    """
    truth = _labels(y, classes)
    _check_rate(rate)
    wrong = rate if exclude_true else rate * (1 - 1 / classes)
    if wrong >= 1 - 1 / classes - 1e-12:
        _unidentifiable(f"symmetric noise makes {wrong:.0%} of {classes} classes' labels wrong")
    rng = _rng(seed)
    chosen = rng.permutation(len(truth))[: math.ceil(rate * len(truth) - 1e-9)]
    labels = truth.copy()
    if exclude_true:
        labels[chosen] = (truth[chosen] + rng.randint(1, classes, len(chosen))) % classes
    else:
        labels[chosen] = rng.randint(0, classes, len(chosen))
    return _noisy(labels, truth, rate, classes, chosen)


def pair(
    y: Any, rate: float, mapping: Mapping[int, int] | str | int = "next", seed: int = 0, *,
    classes: int | None = None,
) -> Noisy:
    """In each class the first int(rate n_c) labels of a shuffle become one other class.

    mapping  {from: to}: classes that are not in it stay clean; "next": c -> c + 1, the last to the
             first; an integer: the same inside blocks of that many classes (5 for the superclasses
             of CIFAR-100)
    classes  default: as many as occur

    >>> pair([0] * 10 + [1] * 10, 0.3, {0: 1}).matrix
    tensor([[0.7000, 0.3000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    _check_rate(rate)
    classes = int(np.max(_array(y), initial=0)) + 1 if classes is None else classes
    truth = _labels(y, classes)
    target = _targets(mapping, classes)
    if rate >= 0.5:
        _unidentifiable(f"{rate:.0%} of a class' labels become one other class")
    rng = _rng(seed)
    labels, chosen = truth.copy(), []
    for c in np.unique(truth):
        if target[c] != c:
            places = rng.permutation(np.flatnonzero(truth == c))
            chosen.append(places[: int(rate * len(places) + 1e-9)])
            labels[chosen[-1]] = target[c]
    return _noisy(labels, truth, rate, classes, np.concatenate([*chosen, np.array([], int)]))


def transition(y: Any, matrix: Any, seed: int = 0) -> Noisy:
    """Each label is drawn from the row of its true class.

    matrix  [C, C], rows add up to 1

    >>> float(transition([0, 1] * 500, [[0.9, 0.1], [0.3, 0.7]]).matrix[1, 0]) < 0.35
    True
    """
    table = np.asarray(matrix, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
        raise ConfigError(
            f"a transition matrix of shape {list(table.shape)}", expected="[C, C], C >= 2"
        )
    sums = table.sum(1)
    if not np.isfinite(table).all() or (table < 0).any() or (np.abs(sums - 1) > 1e-6).any():
        row = int(np.argmax(np.abs(np.nan_to_num(sums, nan=np.inf) - 1)))
        raise ConfigError(
            f"row {row} of the transition matrix adds up to {sums[row]:.6g}",
            expected="probabilities: no negative entry, rows that add up to 1",
            mend="divide each row by its sum",
        )
    classes = len(table)
    truth = _labels(y, classes)
    lost = [c for c in range(classes) if table[c].argmax() != c]
    if lost:
        _unidentifiable(f"class {lost[0]} is labelled {table[lost[0]].argmax()} most often")
    draws = _rng(seed).random_sample(len(truth))
    labels = (np.cumsum(table, 1)[truth] <= draws[:, None]).sum(1).clip(max=classes - 1)
    return _noisy(labels, truth, math.nan, classes, np.arange(len(truth)))


def instance_dependent(x: Any, y: Any, rate: float, seed: int = 0, *, classes: int) -> Noisy:
    """Part-dependent noise: what an example looks like says what it is mistaken for.

    Each example has a flip rate q ~ N(rate, 0.1^2) cut to [0, 1]; its label becomes another class
    with probabilities q softmax(x W_y), W_y [d, C] standard normal for each class y. The features
    are brought to mean 0 and mean square 1 first, so that all units do alike.

    x  [N, ...], taken as rows of d numbers
    """
    _check_rate(rate)
    truth = _labels(y, classes)
    rows = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)
    if len(rows) != len(truth):
        raise DataError(f"{len(rows)} rows of x for {len(truth)} labels", expected="as many")
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        raise DataError("x has values that are not finite", expected="finite numbers")
    rows = rows - rows.mean(0)
    rows /= np.sqrt(np.mean(rows**2)) + 1e-12
    if rate >= 0.5:
        _unidentifiable(f"{rate:.0%} of the labels are flipped by what the examples look like")
    rng = _rng(seed)
    flip = _truncated_normal(rng, rate, 0.1, len(truth))
    labels = truth.copy()
    for c in range(classes):
        weights = rng.standard_normal((rows.shape[1], classes))
        places = np.flatnonzero(truth == c)
        logits = rows[places] @ weights
        logits[:, c] = -np.inf
        share = np.exp(logits - logits.max(1, keepdims=True))
        share *= flip[places, None] / share.sum(1, keepdims=True)
        share[:, c] = 1 - flip[places]
        draws = rng.random_sample(len(places))
        drawn = (np.cumsum(share, 1) <= draws[:, None]).sum(1)
        labels[places] = drawn.clip(max=classes - 1)
    return _noisy(labels, truth, rate, classes, np.arange(len(truth)))


def corrupted(y: Any, rate: float, classes: int, seed: int = 0) -> Noisy:
    """The first int(rate N) labels are drawn anew, each class equally likely, the true one too.

    For training sets that are shuffled already: what is corrupted is then known by its place.

    >>> corrupted(torch.zeros(10), 0.35, classes=4).drawn.nonzero().ravel()
    tensor([0, 1, 2])
    """
    _check_rate(rate)
    truth = _labels(y, classes)
    chosen = np.arange(int(rate * len(truth) + 1e-9))
    labels = truth.copy()
    labels[chosen] = _rng(seed).randint(0, classes, len(chosen))
    if rate * (1 - 1 / classes) >= 1 - 1 / classes - 1e-12:
        _unidentifiable("every label is drawn at random")
    return _noisy(labels, truth, rate, classes, chosen)


def measured_matrix(truth: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[C, C] float64: share of each label among the examples of a true class; 0 where none is.

    >>> measured_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    counts = torch.bincount(truth * classes + labels, minlength=classes * classes).double()
    counts = counts.view(classes, classes)
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def _noisy(
    labels: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], rate: float, classes: int,
    chosen: np.ndarray[Any, Any],
) -> Noisy:
    drawn = torch.zeros(len(truth), dtype=torch.bool)
    drawn[torch.from_numpy(chosen)] = True
    a, b = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(truth)
    return Noisy(a, b, rate, measured_matrix(b, a, classes), drawn)


def _targets(mapping: Mapping[int, int] | str | int, classes: int) -> list[int]:
    if isinstance(mapping, Mapping):
        unknown = [c for c in (*mapping, *mapping.values()) if not 0 <= int(c) < classes]
        if unknown:
            raise ConfigError(
                f"the mapping names class {unknown[0]}", expected=f"classes from 0 to {classes - 1}"
            )
        return [int(mapping.get(c, c)) for c in range(classes)]
    block = classes if mapping == "next" else mapping
    if not isinstance(block, int) or block < 2 or classes % block:
        raise ConfigError(
            f"mapping = {mapping!r} for {classes} classes",
            expected="{from: to}, 'next', or a block size of 2 or more that divides the classes",
        )
    return [c - c % block + (c % block + 1) % block for c in range(classes)]


def _truncated_normal(
    rng: np.random.RandomState, mean: float, std: float, n: int
) -> np.ndarray[Any, Any]:
    """Normal draws on condition that they lie in [0, 1]."""
    from scipy.special import ndtr, ndtri

    low, high = ndtr(-mean / std), ndtr((1 - mean) / std)
    found: np.ndarray[Any, Any] = mean + std * ndtri(low + rng.random_sample(n) * (high - low))
    return found.clip(0.0, 1.0)


def _array(y: Any) -> np.ndarray[Any, Any]:
    return np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)


def _labels(y: Any, classes: int) -> np.ndarray[Any, Any]:
    """Checked labels as [N] int64."""
    if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 2:
        raise ConfigError(f"classes = {classes!r}", expected="2 or more")
    found = _array(y)
    if found.ndim != 1:
        raise DataError(
            f"labels of shape {list(found.shape)}", expected="[N], one class an example",
            mend="take argmax of one-hot labels; several classes at once don't fit here",
        )
    whole = found.astype(np.int64)
    if not np.array_equal(whole, found):
        raise DataError("labels that are no whole numbers", expected="classes 0, 1, ...")
    if len(whole) and not 0 <= whole.min() <= whole.max() < classes:
        raise DataError(
            f"labels from {whole.min()} to {whole.max()}", expected=f"0 to {classes - 1}",
            mend="number the classes from 0, or raise `classes`",
        )
    return whole.copy()


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ConfigError(f"a noise rate of {rate}", expected="a share from 0 to 1")


def _rng(seed: int) -> np.random.RandomState:
    # RandomState's streams are frozen by NumPy's policy: a seed's noise stays as it is.
    return np.random.RandomState(seed % 2**32)


def _unidentifiable(what: str) -> None:
    warnings.warn(
        f"{what}: the true class is no longer the likeliest, so nothing can be learned of it from "
        "these labels", PassbandWarning, stacklevel=3,
    )
