"""Handwritten digits as labelled data: clean, with wrong labels, or few of them.

>>> parts = symmetric_noise(seed=0)
>>> len(parts.train), len(parts.valid), len(parts.test)
(1197, 300, 300)
>>> round(float(parts.train.wrong.double().mean()), 2), int(parts.test.wrong.sum())
(0.37, 0)

Validation labels are as wrong as those of training: a choice never sees clean ones. Test labels
are clean. The images and their split are those of `passband.data.digits`; the seed draws noise and
which images are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from passband.data.digits import Digits, digits
from passband.data.labelled.labelled import Labelled, Parts, joined
from passband.errors import MissingExtraError
from passband.parts.noise import DIGIT_PAIRS, Noisy, pair, symmetric

CLASSES = tuple("0123456789")
SMOKE, FEW = 300, 300  # training images
Size = Literal["full", "small", "smoke"]


def clean(seed: int = 0, size: Size = "small") -> Parts:
    """All images with their own labels; `smoke` shows 300 of them, drawn by the seed."""
    try:
        data = digits()
    except MissingExtraError:
        raise MissingExtraError("scikit-learn", "dynamics") from None
    train = labelled(data.train)
    if size == "smoke":
        train = train.subset(stratified(train.y, SMOKE, seed))
    return Parts(train, labelled(data.valid), labelled(data.test))


def symmetric_noise(seed: int = 0, size: Size = "small", rate: float = 0.4) -> Parts:
    """A share of the labels drawn anew from all ten: at 40 %, 36 % become wrong."""
    return noisy(clean(seed, size), lambda y, s: symmetric(y, rate, len(CLASSES), s), seed)


def pair_noise(seed: int = 0, size: Size = "small", rate: float = 0.4) -> Parts:
    """A share of the sevens become ones, twos sevens, threes eights; fives and sixes change places.

    Five of ten classes are touched, so that half of the share is wrong over all.
    """
    return noisy(
        clean(seed, size), lambda y, s: pair(y, rate, DIGIT_PAIRS, s, classes=len(CLASSES)), seed
    )


def few(seed: int = 0, size: Size = "small", n: int = FEW) -> Parts:
    """`n` clean training images drawn by the seed; the rest of the pool joins the test images."""
    whole = clean()
    shown = stratified(whole.train.y, n, seed)
    rest = torch.ones(len(whole.train), dtype=torch.bool)
    rest[shown] = False
    test = joined([whole.test, whole.train.subset(rest)])
    return Parts(whole.train.subset(shown), whole.valid, test)


def noisy(parts: Parts, noise: Callable[[Tensor, int], Noisy], seed: int) -> Parts:
    """Noise on the labels of training and validation, drawn apart; the test stays clean.

    noise  (labels [N], seed) -> Noisy
    """
    train, valid = (
        None if part is None else part.relabelled(noise(part.y, 2 * seed + k).labels)
        for k, part in enumerate((parts.train, parts.valid))
    )
    assert train is not None
    return Parts(train, valid, parts.test)


def labelled(images: Digits) -> Labelled:
    """Digits [N, 1, 8, 8] in [0, 1] with the names of their classes."""
    return Labelled(images.images, images.labels, CLASSES)


def stratified(y: Tensor, n: int, seed: int) -> Tensor:
    """Sorted places of n examples, classes in their proportions as nearly as whole numbers allow.

    >>> y = torch.tensor([0] * 60 + [1] * 30)
    >>> torch.bincount(y[stratified(y, 9, seed=0)])
    tensor([6, 3])
    """
    order = torch.from_numpy(np.random.RandomState(seed % 2**32).permutation(len(y)))
    # Every example by its rank within its class, as a share: the n smallest are in proportion.
    shares = torch.empty(len(y), dtype=torch.float64)
    for c in y.unique():
        places = order[y[order] == c]
        shares[places] = (torch.arange(len(places), dtype=torch.float64) + 0.5) / len(places)
    return shares.argsort(stable=True)[:n].sort().values
