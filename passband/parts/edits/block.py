"""A change of whole rows or columns, as structured selections make it.

>>> change = Block(1, torch.tensor([2]), values=torch.tensor([[1.0], [2.0]]), shape=(2, 3))
>>> change.delta().tolist()
[[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]]
>>> b, a = change.lora()                       # the block and one-hot rows
>>> a.tolist(), bool((b @ a == change.delta()).all())
([[0.0, 0.0, 1.0]], True)

Source of the algebra: Yang et al. 2024 (S2FT), arXiv 2412.06289.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.edits.change import (
    Change,
    ascending,
    checked_factor,
    positions,
    refuse_twice,
    rounded,
    wide,
)
from passband.parts.edits.place import Place, Slices


@dataclass(frozen=True, eq=False)
class Block(Change):
    """delta[index] = values along one dimension, zero elsewhere.

    dim         0: rows, 1: columns, ...
    index       [k] positions along `dim`; sorted here when they are not
    values      fp32, of `shape` with k in place of shape[dim]
    shape       of the tensor
    transposed  the weight is stored [in, out] (GPT-2's Conv1D): `lora` turns it round
    Raises `DataError` for positions outside of the tensor, repeated ones, or another shape.
    """

    kind: ClassVar[str] = "block"
    dim: int
    index: Tensor
    values: Tensor
    shape: tuple[int, ...]
    transposed: bool = False

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if not 0 <= self.dim < len(shape):
            raise DataError(f"dim {self.dim}", expected=f"0 to {len(shape) - 1} for {shape}")
        index = positions(self.index, shape[self.dim], f"block index along dim {self.dim}")
        values = wide(self.values)
        needed = (*shape[: self.dim], len(index), *shape[self.dim + 1 :])
        if tuple(values.shape) != needed:
            raise DataError(
                f"block values of shape {tuple(values.shape)}",
                expected=f"{needed}: {len(index)} slices along dim {self.dim} of {shape}",
            )
        if not ascending(index):
            index, order = torch.sort(index)
            refuse_twice(index, "block index")
            values = values.index_select(self.dim, order.to(values.device))
        for name, value in (("index", index), ("values", values), ("shape", shape)):
            object.__setattr__(self, name, value)

    def delta(self, base: Tensor | None = None) -> Tensor:
        dense = self.values.new_zeros(self.shape)
        return dense.index_copy_(self.dim, self.index.to(dense.device), self.values)

    def place(self) -> Place:
        return Slices(self.dim, self.index)

    def difference(self, old: Tensor) -> Tensor:
        return self.values.to(old.device)

    def scaled(self, factor: float) -> Block:
        values = self.values * checked_factor(factor)
        return Block(self.dim, self.index, values, self.shape, self.transposed)

    def _plus(self, other: Block) -> Block | None:
        if (self.dim, self.transposed) != (other.dim, other.transposed):
            return None
        device = self.values.device
        both = torch.cat([self.index, other.index.to(self.index.device)])
        union, where = torch.unique(both, return_inverse=True)
        where = where.to(device)
        values = self.values.new_zeros(
            (*self.shape[: self.dim], len(union), *self.shape[self.dim + 1 :])
        )
        values.index_add_(self.dim, where[: len(self.index)], self.values)
        values.index_add_(self.dim, where[len(self.index) :], other.values.to(device))
        return Block(self.dim, union, values, self.shape, self.transposed)

    def _numbers(self) -> Tensor:
        return self.values

    def lora(self) -> tuple[Tensor, Tensor] | None:
        """Rank k: the block beside one-hot factors. None for vectors and inner dims of kernels."""
        if len(self.shape) < 2 or (len(self.shape) > 2 and self.dim > 0):
            return None
        hot = torch.zeros(len(self.index), self.shape[self.dim], device=self.values.device)
        hot[torch.arange(len(self.index)), self.index.to(hot.device)] = 1.0
        if self.dim == 0:
            left, right = hot.t(), self.values.flatten(1)
        else:
            left, right = self.values, hot
        return (right.t(), left.t()) if self.transposed else (left, right)

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        small = torch.int32 if math.prod(self.shape) < 2**31 else torch.int64
        return {"index": self.index.to(small), "values": rounded(self.values, dtype)}

    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dim": self.dim, "transposed": self.transposed}

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        return cls(
            facts["dim"], tensors["index"], tensors["values"], tuple(facts["shape"]),
            facts.get("transposed", False),
        )
