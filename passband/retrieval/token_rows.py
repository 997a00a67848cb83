"""Token ids of many texts in one array, and batches of rows of like length.

>>> rows = TokenRows.of([[2, 7, 3], [2, 3], [2, 8, 9, 3]])
>>> places, ids, mask = next(rows.batches(tokens=8))
>>> places.tolist(), ids.tolist(), mask.sum(1).tolist()
([2, 0], [[2, 8, 9, 3], [2, 7, 3, 0]], [4, 3])
>>> round(rows.padding(tokens=8), 3)                # padded positions over all positions
0.1

    B rows, L positions of the longest; ids [B, L] int64, mask [B, L] bool, padded on the right
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from passband.errors import DataError


@dataclass(frozen=True)
class TokenRows:
    """Row i is ids[offsets[i] : offsets[i + 1]].

    ids      [T] int32 (or uint16, from a file)
    offsets  [N + 1] int64
    cut      rows that were longer than the limit
    """

    ids: np.ndarray
    offsets: np.ndarray
    cut: int = 0

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], cut: int = 0) -> TokenRows:
        """From lists of ids."""
        lengths = [len(row) for row in rows]
        flat = [np.asarray(row, np.int32) for row in rows]
        ids = np.concatenate(flat) if flat else np.empty(0, np.int32)
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), cut)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, place: int) -> np.ndarray:
        return self.ids[self.offsets[place] : self.offsets[place + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, [N]."""
        return np.diff(self.offsets)

    def batch(self, places: Sequence[int] | np.ndarray, pad: int = 0) -> tuple[Tensor, Tensor]:
        """(ids, mask) of rows, filled up to the longest with `pad`."""
        chosen = np.asarray(places, np.int64)
        return padded(self.ids, self.offsets[chosen], self.lengths[chosen], pad)

    def groups(self, tokens: int = 8192) -> list[np.ndarray]:
        """Places of the rows in batches of at most so many positions, the longest first.

        The longest first, so that memory that runs out does so at once. A row longer than
        `tokens` is a batch of its own; rows of equal length keep their order.
        """
        if tokens < 1:
            raise DataError(f"batches of {tokens} tokens", expected="at least 1")
        lengths = self.lengths
        order = np.argsort(-lengths, kind="stable")
        found, start = [], 0
        while start < len(order):
            fit = max(1, tokens // max(1, int(lengths[order[start]])))
            found.append(order[start : start + fit])
            start += fit
        return found

    def batches(
        self, tokens: int = 8192, pad: int = 0
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """(places, ids, mask) of all rows in batches of like length; see `groups`."""
        for places in self.groups(tokens):
            yield (places, *self.batch(places, pad))

    def padding(self, tokens: int = 8192) -> float:
        """Share of the positions in `batches` that are padded, in [0, 1)."""
        groups, lengths = self.groups(tokens), self.lengths
        whole = sum(len(g) * int(lengths[g].max()) for g in groups)
        return 1 - int(lengths.sum()) / whole if whole else 0.0


def padded(
    ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Slices ids[starts[i] : starts[i] + lengths[i]] as rows of (ids, mask), without a loop.

    >>> padded(np.arange(10), np.array([4, 0]), np.array([1, 3]))[0].tolist()
    [[4, 0, 0], [0, 1, 2]]
    """
    columns = np.arange(int(lengths.max()) if len(lengths) else 0)
    mask = columns < lengths[:, None]
    places = np.where(mask, starts[:, None] + columns, 0)
    filled = np.where(mask, ids[places] if len(ids) else pad, pad)
    return torch.from_numpy(filled.astype(np.int64)), torch.from_numpy(mask)
