"""Examples that know their place: what keeps a state for every example needs an index.

>>> dataset = torch.utils.data.TensorDataset(torch.rand(5, 2), torch.tensor([0, 1, 0, 1, 1]))
>>> loader = torch.utils.data.DataLoader(Indexed(dataset), batch_size=3)
>>> x, y, index, group = next(iter(loader))
>>> index
tensor([0, 1, 2])
>>> half = torch.utils.data.Subset(Indexed(dataset), [4, 0])     # the place stays that of dataset
>>> [item.index for item in half]
[4, 0]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from passband.errors import DataError

WRAP = "wrap the data set: passband.parts.indexed.Indexed(dataset), then batches are " \
    "(x, y, index, group)"


class Item(NamedTuple):
    """An example, or a batch of them.

    x      whatever the data set gives, [B, ...] of a batch
    y      label, [B]
    index  place in the data set that was wrapped, [B] int64
    group  of the example (domain, environment), [B] int64; 0 where there are none
    """

    x: Any
    y: Any
    index: Any
    group: Any


class Indexed(torch.utils.data.Dataset[Item]):
    """A map-style data set of (x, y) whose items are (x, y, index, group).

    The index is the position in `dataset`, whatever samples or selects from this: a `Subset` of an
    `Indexed` keeps the positions of the whole. An `Indexed` of a `Subset` counts the subset.

    groups  group of each example; None takes the data set's own attribute `groups`, or 0
    Raises `DataError` for a data set without length and for groups of another length.
    """

    def __init__(self, dataset: Any, groups: Sequence[int] | Tensor | None = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise DataError(
                f"a {type(dataset).__name__} has no len() and no [index]",
                expected="a map-style data set: examples need a place that stays",
                mend="read the stream into a list, or give each example an index yourself",
            )
        groups = getattr(dataset, "groups", None) if groups is None else groups
        self.dataset = dataset
        self.groups = None if groups is None else torch.as_tensor(groups).long()
        if self.groups is not None and self.groups.shape != (len(dataset),):
            raise DataError(
                f"groups of shape {list(self.groups.shape)} for {len(dataset)} examples",
                expected="one an example",
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Item:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        index = int(index) % len(self)
        item = self.dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"example {index} is a {type(item).__name__}"
                + (f" of {len(item)}" if isinstance(item, (tuple, list)) else ""),
                expected="a pair (x, y)", mend="wrap a data set that gives pairs",
            )
        group = 0 if self.groups is None else int(self.groups[index])
        return Item(item[0], item[1], index, group)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))


def unpack(batch: Any) -> Item:
    """A batch of an `Indexed` as an `Item`; raises `DataError` that names what is missing.

    >>> unpack((torch.rand(2, 3), torch.tensor([0, 1])))
    Traceback (most recent call last):
    ...
    passband.errors.DataError: a batch of 2 things: the index is missing
      expected: (x, y, index, group)
      to mend:  wrap the data set: passband.parts.indexed.Indexed(dataset), then batches are (x, y,
      index, group)
    """
    if isinstance(batch, Item):
        return batch
    found = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if len(found) not in (3, 4):
        missing = ": the index is missing" if len(found) == 2 else ""
        raise DataError(
            f"a batch of {len(found)} things{missing}", expected="(x, y, index, group)", mend=WRAP
        )
    if len(found) == 3:
        found.append(torch.zeros_like(torch.as_tensor(found[2])))
    return Item(*found)


def check_index(index: Any, size: int) -> Tensor:
    """[B] int64 places below `size`, checked before a state is touched.

    >>> check_index(torch.tensor([0, 7]), 5)
    Traceback (most recent call last):
    ...
    passband.errors.DataError: index 7 of 5 examples
      expected: places from 0 to 4 in the data set that the state was made for
      to mend:  wrap the whole data set, then select: Subset(Indexed(dataset), chosen)
    """
    if index is None:
        raise DataError("the index is missing", expected="[B] places in the data set", mend=WRAP)
    found = torch.as_tensor(index)
    if found.is_floating_point() or found.dtype == torch.bool or found.dim() != 1:
        raise DataError(
            f"an index of {found.dtype}, shape {list(found.shape)}", expected="[B] integers",
            mend=WRAP,
        )
    if len(found):
        low, high = (int(v) for v in found.aminmax())
        if low < 0 or high >= size:
            raise DataError(
                f"index {low if low < 0 else high} of {size} examples",
                expected=f"places from 0 to {size - 1} in the data set that the state was made for",
                mend="wrap the whole data set, then select: Subset(Indexed(dataset), chosen)",
            )
    return found.long()
