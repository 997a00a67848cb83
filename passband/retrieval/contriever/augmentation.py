"""Changes of single tokens, on all rows of a batch at once.

>>> rows = Ragged(np.array([7, 8, 9, 10, 11]), np.array([3, 2]))
>>> hidden = mask(rows, 0.5, np.random.default_rng(0), 4, (5, 12))
>>> hidden.ids.tolist(), hidden.lengths.tolist()
([7, 4, 4, 4, 11], [3, 2])
>>> short = delete(rows, 0.5, np.random.default_rng(0), 4, (5, 12))
>>> short.ids.tolist(), short.lengths.tolist()
([7, 11], [1, 1])

Each takes the rows, the share of tokens, a generator, the id of [MASK] and the range of plain ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows one after the other: ids [T] int64, lengths [B]."""

    ids: np.ndarray
    lengths: np.ndarray

    @property
    def row(self) -> np.ndarray:
        """The row of each token, [T]."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def between(self, cls: int, sep: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, starts, lengths) with [CLS] before and [SEP] after each row."""
        lengths = self.lengths + 2
        ends = np.cumsum(lengths)
        starts = ends - lengths
        ids = np.empty(int(ends[-1]) if len(ends) else 0, np.int64)
        ids[starts], ids[ends - 1] = cls, sep
        inside = np.ones(len(ids), bool)
        inside[starts] = inside[ends - 1] = False
        ids[inside] = self.ids
        return ids, starts, lengths


Range = tuple[int, int]


def none(
    rows: Ragged, share: float, rng: np.random.Generator, mask_id: int, plain: Range
) -> Ragged:
    """Rows as they are."""
    return rows


def delete(
    rows: Ragged, share: float, rng: np.random.Generator, mask_id: int, plain: Range
) -> Ragged:
    """Tokens go with probability `share`; a row may end up empty."""
    kept = rng.random(len(rows.ids)) >= share
    counts = np.bincount(rows.row[kept], minlength=len(rows.lengths))
    return Ragged(rows.ids[kept], counts.astype(np.int64))


def mask(
    rows: Ragged, share: float, rng: np.random.Generator, mask_id: int, plain: Range
) -> Ragged:
    """Tokens become [MASK]."""
    hit = rng.random(len(rows.ids)) < share
    return Ragged(np.where(hit, mask_id, rows.ids), rows.lengths)


def replace(
    rows: Ragged, share: float, rng: np.random.Generator, mask_id: int, plain: Range
) -> Ragged:
    """Tokens become any plain one."""
    hit = rng.random(len(rows.ids)) < share
    return Ragged(np.where(hit, rng.integers(*plain, len(rows.ids)), rows.ids), rows.lengths)


def shuffle(
    rows: Ragged, share: float, rng: np.random.Generator, mask_id: int, plain: Range
) -> Ragged:
    """The tokens that are hit change places among themselves, within their row."""
    places = np.flatnonzero(rng.random(len(rows.ids)) < share)
    row = rows.row[places]
    order = np.lexsort((rng.random(len(places)), row))  # rows stay together, inside at random
    ids = rows.ids.copy()
    ids[places] = rows.ids[places[order]]
    return Ragged(ids, rows.lengths)


AUGMENTATIONS: dict[str, Callable[[Ragged, float, np.random.Generator, int, Range], Ragged]] = {
    "none": none, "delete": delete, "mask": mask, "replace": replace, "shuffle": shuffle,
}
