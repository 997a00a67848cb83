"""How the weights, the length of the list and the threshold are chosen.

The paper chooses on the names that were counted. That is circular: a word seen once, in a
vulnerable name, is dangerous by construction. `inner_cv` counts on four fifths of the names and
looks at the fifth that was left, five times, then counts on all:

    best over (plus, minus), K as a share of the list, t   of F2(TP, FP, FN summed over the fifths)

Flagging every name is among what it may choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from passband.retrieval.featherweight.folds import splits
from passband.retrieval.featherweight.model import (
    NO_FILTER,
    WEIGHTS,
    Bag,
    Choice,
    Ranking,
    ranking,
)
from passband.retrieval.featherweight.sweep import FLAG_ALL, THRESHOLDS, Array, Rule, Sweep, sweep

# Shares of the list: dense where lists are short, for most of a long list occurs once.
SHARES = np.unique(np.concatenate([np.geomspace(1e-4, 0.2, 120), np.linspace(0.2, 1.0, 81)]))


def inner_cv(
    bag: Bag, vulnerable: Array, weights: Sequence[tuple[float, float]] = WEIGHTS,
    min_score: float = NO_FILTER, rule: Rule = "set",
    thresholds: Sequence[float] = (FLAG_ALL, *THRESHOLDS), folds: int = 5, seed: int = 0,
) -> tuple[Choice, Ranking]:
    """Choose by cross-validation inside the training names; folds are stratified.

    Of equal F2 the earlier weights, the shorter list and the lower threshold win.
    """
    folds = min(folds, int(vulnerable.sum()))
    if folds < 2:  # one vulnerable name can't be on both sides
        folds_of = []
    else:
        folds_of = [
            (bag.take(train), vulnerable[train], bag.take(held), vulnerable[held])
            for train, held in splits(vulnerable, folds, seed)
        ]
    best: tuple[float, tuple[float, float], float, float] | None = None
    for plus, minus in weights:
        total: Sweep | None = None
        for train, labels, held, truth in folds_of:
            words = ranking(train, labels, plus, minus, min_score)
            n = len(words.order)
            found = sweep(held, truth, words.rank, n, rule, thresholds).at(length(SHARES, n))
            total = found if total is None else total + found
        if total is None:
            break
        table = total.f2
        column = int(table.max(0).argmax())
        row = int(table[:, column].argmax())
        if best is None or table[row, column] > best[0]:
            best = float(table[row, column]), (plus, minus), float(SHARES[column]), thresholds[row]
    if best is None:
        best = 0.0, weights[0], 1.0, FLAG_ALL
    f2, (plus, minus), share, threshold = best
    words = ranking(bag, vulnerable, plus, minus, min_score)
    k = int(length(np.array(share), len(words.order)))
    return Choice(plus, minus, k, threshold, f2), words


def length(share: Array, n: int) -> Array:
    """K of a share of a list of n words: at least 1 where there is a word."""
    return np.clip(np.rint(share * n), min(1, n), n).astype(np.int64)
