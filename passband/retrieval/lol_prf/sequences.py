"""The text that a reformulator reads: [CLS] query [SEP] passage [SEP] passage [SEP] ...

>>> frame = Frame(cls=101, sep=102, max_query=4, max_passage=3, max_length=20)
>>> read = frame.assemble([7, 8], [[1, 2, 3, 4], [5, 6]])
>>> read.ids
(101, 7, 8, 102, 1, 2, 3, 102, 5, 6, 102)
>>> read.types                                   # 0 query, 1 passages
(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1)
>>> read.separators                              # after the query and after each passage
(3, 7, 10)
>>> read.prefix(1).ids
(101, 7, 8, 102, 1, 2, 3, 102)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 10  # positions that have to be left for another passage


@dataclass(frozen=True)
class Read:
    """Token ids of one revision, their types, and the places of its [SEP]."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    separators: tuple[int, ...]

    @property
    def passages(self) -> int:
        """How many fit."""
        return len(self.separators) - 1

    def prefix(self, passages: int) -> Read:
        """The same with its first passages only (or as many as there are)."""
        kept = self.separators[: passages + 1]
        end = kept[-1] + 1
        return Read(self.ids[:end], self.types[:end], kept)


@dataclass(frozen=True)
class Frame:
    """Special tokens and lengths in tokens; `max_query` and `max_passage` without specials."""

    cls: int
    sep: int
    max_query: int = 128
    max_passage: int = 128
    max_length: int = 512

    def assemble(self, query: Sequence[int], passages: Sequence[Sequence[int]]) -> Read:
        """Passages are appended until fewer than ten positions remain; too long ones are cut."""
        ids = [self.cls, *query[: min(self.max_query, self.max_length - 2)], self.sep]
        separators = [len(ids) - 1]
        first = len(ids)
        for passage in passages:
            left = self.max_length - len(ids)
            if left < FEWEST:
                break
            ids += [*passage[: min(self.max_passage, left - 1)], self.sep]
            separators.append(len(ids) - 1)
        types = [0] * first + [1] * (len(ids) - first)
        return Read(tuple(ids), tuple(types), tuple(separators))


class Batch(NamedTuple):
    """Revisions side by side, filled up on the right.

        ids, mask, types [B, T]; separators [B, 1 + K], -1 where there are fewer passages
    """

    ids: Tensor
    mask: Tensor
    types: Tensor
    separators: Tensor

    def rows(self, start: int, end: int) -> Batch:
        """Some of the revisions, without columns that are padding in all of them."""
        mask = self.mask[start:end]
        longest = int(mask.sum(1).max())
        return Batch(
            self.ids[start:end, :longest], mask[:, :longest], self.types[start:end, :longest],
            self.separators[start:end],
        )


def stack(reads: Sequence[Read], pad: int = 0) -> Batch:
    """
    >>> one = Read((1, 5, 2), (0, 0, 0), (2,))
    >>> two = Read((1, 5, 2, 9, 2), (0, 0, 0, 1, 1), (2, 4))
    >>> stack([one, two]).mask.sum(1)
    tensor([3, 5])
    """
    longest = max(len(r.ids) for r in reads)
    most = max(len(r.separators) for r in reads)
    rows = len(reads)
    batch = Batch(
        ids=torch.full((rows, longest), pad, dtype=torch.int64),
        mask=torch.zeros(rows, longest, dtype=torch.int64),
        types=torch.zeros(rows, longest, dtype=torch.int64),
        separators=torch.full((rows, most), -1, dtype=torch.int64),
    )
    for row, read in enumerate(reads):
        length = len(read.ids)
        batch.ids[row, :length] = torch.tensor(read.ids)
        batch.mask[row, :length] = 1
        batch.types[row, :length] = torch.tensor(read.types)
        batch.separators[row, : len(read.separators)] = torch.tensor(read.separators)
    return batch
