"""Which passages the revisions of a query read: in training nested subsets, else the first k.

>>> rng = np.random.default_rng(0)
>>> drawn = draw([11, 12, 13, 14, 15], revisions=2, rng=rng)
>>> len(drawn.passages) == drawn.sizes[0] > drawn.sizes[1]
True

A smaller revision reads a prefix of what the larger one reads. Were the two drawn apart, a smaller
one could be better by its luck with passages, and the comparison would say nothing about their
number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passband.errors import DataError


@dataclass(frozen=True)
class Drawn:
    """Passages of the largest revision in reading order, and how many each revision reads.

    sizes  falling; 0 is the query alone
    """

    passages: tuple[int, ...]
    sizes: tuple[int, ...]


def draw(
    found: Sequence[int], revisions: int, rng: np.random.Generator, *, shuffle: bool = True
) -> Drawn:
    """Distinct sizes among 0 .. len(found), and a random subset of the largest in random order.

    found    places of the passages found first, best first
    shuffle  False: the first ones in their order

    Raises `DataError` when fewer passages were found than the sizes need.
    """
    if len(found) + 1 < revisions:
        raise DataError(
            f"{len(found)} passages for {revisions} revisions of different size",
            expected=f"at least {revisions - 1}",
            mend="leave the query out of training, or compare fewer revisions",
        )
    sizes = np.sort(rng.choice(len(found) + 1, size=revisions, replace=False))[::-1]
    largest = int(sizes[0])
    chosen = rng.permutation(len(found))[:largest] if shuffle else range(largest)
    return Drawn(tuple(int(found[i]) for i in chosen), tuple(int(s) for s in sizes))


def first(found: Sequence[int], k: int) -> tuple[int, ...]:
    """The k best, or as many as there are; without passages (-1 fills rankings up) the query alone.

    >>> first([7, 3, -1, -1], k=3)
    (7, 3)
    """
    return tuple(int(place) for place in found[:k] if place >= 0)
