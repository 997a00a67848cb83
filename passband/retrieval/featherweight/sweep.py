"""Scores, flags and F2 of names for every length K of a ranked list of words, all at once.

    rule "set":   s(K) = (number of distinct words of the name with rank < K) / u
    rule "rank":  s(K) = sum over them of (K - rank) / K / u        u: distinct words of the name

Both grow with K: each name is flagged from some K on, the smallest one with s(K) > t. Finding it
takes the name's sorted ranks r_1 < r_2 < ... only:

    set:   r_j + 1 of the smallest j with j / u > t
    rank:  min over j of max(r_j + 1, floor(S_j / (j - t u)) + 1),   S_j = r_1 + ... + r_j

so that true and false positives of all K are cumulative counts: O(words in all names), where
scoring all names anew for each K costs O(K x names).

>>> ranks = np.array([[0, 4], [2, NEVER]])           # two names of two words, one of them unlisted
>>> first_flagged(ranks, np.array([2, 2]), [0.49, 0.6], "set")[0]
array([1, 3])
>>> first_flagged(ranks, np.array([2, 2]), [0.49, 0.6], "set")[1].tolist() == [5, NEVER]
True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from passband.parts.identifiers import Bag

Array = np.ndarray[Any, Any]
Rule = Literal["set", "rank"]

NEVER = 1 << 40  # a rank below every list, and a K above every list
# Just below i/j for j up to 6, for flags are given strictly above.
THRESHOLDS = (0.01, 0.16, 0.19, 0.24, 0.32, 0.39, 0.49, 0.59, 0.66, 0.74, 0.79, 0.82, 0.99)
FLAG_ALL = -0.01  # a threshold that every score is above


def sorted_ranks(bag: Bag, rank: Array) -> Array:
    """[N, U] ranks of each name's distinct words in rising order, filled up with NEVER.

    rank  [W] of the words of the vocabulary; NEVER for unlisted ones
    """
    rows, words = bag.distinct
    found = np.full((len(bag), max(1, int(bag.sizes.max(initial=1)))), NEVER, np.int64)
    column = np.arange(len(rows)) - np.repeat(np.cumsum(bag.sizes) - bag.sizes, bag.sizes)
    found[rows, column] = rank[words]
    found.sort(axis=1)
    return found


def scores(ranks: Array, sizes: Array, k: int, rule: Rule) -> Array:
    """[N] in [0, 1], from the first K words of the list.

    ranks [N, U] of `sorted_ranks`, sizes [N] numbers of distinct words
    """
    if k == 0:
        return np.zeros(len(ranks))
    inside = ranks < k
    if rule == "set":
        return inside.sum(1) / sizes
    # Whole numbers until the last division: the sum of fractions would depend on its order.
    return np.where(inside, k - ranks, 0).sum(1) / (k * sizes)


def first_flagged(ranks: Array, sizes: Array, thresholds: Sequence[float], rule: Rule) -> Array:
    """[T, N] smallest K at which each name's score is above each threshold; NEVER: at none."""
    find = _first_by_set if rule == "set" else _first_by_rank
    return np.stack([
        np.ones(len(ranks), np.int64) if t < 0 else find(ranks, sizes, t) for t in thresholds
    ])


def _first_by_set(ranks: Array, sizes: Array, threshold: float) -> Array:
    widest = ranks.shape[1]
    share = np.arange(widest + 1) / np.maximum(np.arange(widest + 1), 1)[:, None]  # [u, j] = j / u
    enough = share > threshold
    # A name of u words has at most u of them listed.
    needed = np.where(enough.any(1), enough.argmax(1), widest + 1)[sizes]
    found = np.take_along_axis(ranks, np.clip(needed - 1, 0, widest - 1)[:, None], 1)[:, 0]
    return np.where((needed <= sizes) & (found < NEVER), found + 1, NEVER)


def _first_by_rank(ranks: Array, sizes: Array, threshold: float) -> Array:
    best = np.full(len(ranks), NEVER)
    total = np.zeros(len(ranks), np.int64)
    for j in range(1, ranks.shape[1] + 1):
        rank = ranks[:, j - 1]
        listed = np.flatnonzero(rank < NEVER)
        if not len(listed):
            break
        total[listed] += rank[listed]
        spare = j - threshold * sizes[listed]
        rows, spare = listed[spare > 0], spare[spare > 0]
        least, sums, u = rank[rows] + 1, total[rows], sizes[rows]
        k = np.minimum(np.floor(sums / spare) + 1, NEVER).astype(np.int64)

        def above(k: Array, sums: Array = sums, u: Array = u, j: int = j) -> Array:
            return (j * k - sums) / (k * u) > threshold

        # The quotient is rounded: the comparison that flags names decides on its neighbours.
        k = np.where((k > 1) & above(np.maximum(k - 1, 1)), k - 1, k)
        k = np.where(above(k), k, k + 1)
        best[rows] = np.minimum(best[rows], np.maximum(k, least))
    return best


@dataclass(frozen=True, eq=False)
class Sweep:
    """True and false positives [T, n + 1] of every threshold and every K from 0 to n."""

    true: Array
    false: Array
    positives: int

    @property
    def f2(self) -> Array:
        return f2(self.true, self.false, self.positives)

    def __add__(self, other: Sweep) -> Sweep:
        return Sweep(
            self.true + other.true, self.false + other.false, self.positives + other.positives
        )

    def at(self, ks: Array) -> Sweep:
        return Sweep(self.true[:, ks], self.false[:, ks], self.positives)


def f2(true: Any, false: Any, positives: Any) -> Any:
    """5 TP / (5 TP + 4 FN + FP); 0 where undefined.

    >>> float(f2(2, 1, 3))                    # 10 / (10 + 4 + 1)
    0.666...
    """
    below = np.asarray(true + 4 * positives + false)
    return np.where(below > 0, 5 * np.asarray(true) / np.maximum(below, 1), 0.0)


def sweep(
    bag: Bag, vulnerable: Array, rank: Array, n: int, rule: Rule,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Sweep:
    """Counts of a ranked list on labelled names.

    vulnerable [N] bool, rank [W] (NEVER: not on the list), n: words on the list
    """
    first = first_flagged(sorted_ranks(bag, rank), bag.sizes, thresholds, rule)
    first = np.minimum(first, n + 1)

    def counted(places: Array) -> Array:
        rows = [np.bincount(row, minlength=n + 2)[: n + 1] for row in places]
        return np.cumsum(np.stack(rows), axis=1)

    return Sweep(counted(first[:, vulnerable]), counted(first[:, ~vulnerable]),
                 int(vulnerable.sum()))


# ---- which K and threshold ---------------------------------------------------------------------


@dataclass(frozen=True)
class Best:
    k: int
    threshold: float
    f2: float


def coarse_to_fine(
    found: Sweep, thresholds: Sequence[float] = THRESHOLDS,
) -> Best:
    """The paper's search: some 20 values of K, then ever finer around the best.

    Of equal F2 the one that is tried first wins: K in the order of the search, then thresholds.
    """
    table = found.f2
    n = table.shape[1] - 1
    top = table.max(0)
    start, stop, step, best = 1, n + 1, max(1, n // 20), -1
    while step >= 1:
        tried = np.append(np.arange(start, stop, step), stop - 1)
        one = int(tried[top[tried].argmax()])
        if best < 0 or top[one] > top[best]:
            best = one
        start, stop, step = max(1, best - step), min(n + 1, best + step), step // 10
    return _best(table, best, thresholds)


def every_k(found: Sweep, thresholds: Sequence[float] = THRESHOLDS) -> Best:
    """The best of all K: of equal F2 the shortest list, then the first threshold."""
    table = found.f2
    return _best(table, int(table.max(0)[1:].argmax()) + 1 if table.shape[1] > 1 else 0, thresholds)


def _best(table: Array, k: int, thresholds: Sequence[float]) -> Best:
    place = int(table[:, k].argmax())
    return Best(k, float(thresholds[place]), float(table[place, k]))


SEARCHES = {"coarse": coarse_to_fine, "all": every_k}
