"""A change of single entries: memory, time and files grow with their number, not with the tensor.

>>> a = Sparse(torch.tensor([0, 4]), torch.tensor([1.0, 0.0]), (2, 3))      # a zero is kept
>>> b = Sparse(torch.tensor([5, 4]), torch.tensor([3.0, 2.0]), (2, 3))
>>> both = a + b
>>> both.indices.tolist(), both.values.tolist()
([0, 4, 5], [1.0, 2.0, 3.0])
>>> both.delta().tolist()
[[1.0, 0.0, 0.0], [0.0, 2.0, 3.0]]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.edits.bitmask import pack, unpack
from passband.parts.edits.change import (
    Change,
    ascending,
    checked_factor,
    positions,
    refuse_twice,
    rounded,
    wide,
)
from passband.parts.edits.place import Entries, Place

# A mask takes a bit an entry, an index 32 bits: above 1/32 of the entries the mask is smaller.
MASK_DENSITY = 0.03


@dataclass(frozen=True, eq=False)
class Sparse(Change):
    """delta.flat[indices] = values, zero elsewhere.

    indices  [K] flat, row-major; sorted here when they are not; kept even where the value is 0
    values   [K] fp32
    shape    of the tensor
    Raises `DataError` for indices outside of the tensor, repeated ones, or other lengths.
    """

    kind: ClassVar[str] = "sparse"
    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        indices = positions(self.indices, math.prod(shape), "sparse indices")
        values = wide(self.values)
        if values.shape != indices.shape:
            raise DataError(
                f"{tuple(values.shape)} values for {len(indices)} indices",
                expected="one value per index",
            )
        if not ascending(indices):
            indices, order = torch.sort(indices)
            refuse_twice(indices, "sparse indices")
            values = values[order.to(values.device)]
        for name, value in (("indices", indices), ("values", values), ("shape", shape)):
            object.__setattr__(self, name, value)

    def delta(self, base: Tensor | None = None) -> Tensor:
        flat = self.values.new_zeros(math.prod(self.shape))
        return flat.index_copy_(0, self.indices.to(flat.device), self.values).reshape(self.shape)

    def place(self) -> Place:
        return Entries(self.indices)

    def difference(self, old: Tensor) -> Tensor:
        return self.values.to(old.device)

    def scaled(self, factor: float) -> Sparse:
        return Sparse(self.indices, self.values * checked_factor(factor), self.shape)

    def _plus(self, other: Sparse) -> Sparse:
        device = self.values.device
        both = torch.cat([self.indices, other.indices.to(self.indices.device)])
        union, where = torch.unique(both, return_inverse=True)
        where = where.to(device)
        values = self.values.new_zeros(len(union))
        values.index_add_(0, where[: len(self.values)], self.values)
        values.index_add_(0, where[len(self.values) :], other.values.to(device))
        return Sparse(union, values, self.shape)

    def _numbers(self) -> Tensor:
        return self.values

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """`values`, and `mask` (packed bits) above 3 % of the entries, else `indices`."""
        numel, values = math.prod(self.shape), rounded(self.values, dtype)
        if len(self.indices) > MASK_DENSITY * numel:
            return {"mask": pack(self.indices, numel), "values": values}
        small = torch.int32 if numel < 2**31 else torch.int64
        return {"indices": self.indices.to(small), "values": values}

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        shape = tuple(facts["shape"])
        if "mask" in tensors:
            indices = unpack(tensors["mask"], math.prod(shape))
        else:
            indices = tensors["indices"]
        return cls(indices, tensors["values"], shape)
