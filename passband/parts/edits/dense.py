"""Changes that store a number for every entry: a difference, or the new values themselves.

>>> change = Dense(torch.tensor([[0.5, -0.5]]))
>>> weight = torch.ones(1, 2)
>>> _ = change.add_to(weight)
>>> weight.tolist(), round(change.norm(), 4)
([[1.5, 0.5]], 0.7071)
>>> _ = Replace(torch.zeros(1, 2)).add_to(weight)
>>> weight.tolist()
[[0.0, 0.0]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.edits.change import Change, checked_factor, rounded, wide
from passband.parts.edits.place import Place, Whole


@dataclass(frozen=True, eq=False)
class Dense(Change):
    """delta = values, of the tensor's own shape, fp32."""

    kind: ClassVar[str] = "dense"
    values: Tensor
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", wide(self.values))
        object.__setattr__(self, "shape", tuple(self.values.shape))

    def delta(self, base: Tensor | None = None) -> Tensor:
        return self.values

    def place(self) -> Place:
        return Whole()

    def difference(self, old: Tensor) -> Tensor:
        return self.values.to(old.device)

    def scaled(self, factor: float) -> Dense:
        return Dense(self.values * checked_factor(factor))

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return {"values": rounded(self.values, dtype)}

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        return cls(tensors["values"])


@dataclass(frozen=True, eq=False)
class Replace(Change):
    """W <- values: fresh heads, and tensors in which the base has no say.

    values  in any floating-point dtype, kept as it is; a scale does nothing to it
    """

    kind: ClassVar[str] = "replace"
    additive: ClassVar[bool] = False
    values: Tensor
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.values.is_floating_point():
            raise DataError(f"values of {self.values.dtype}", expected="floating-point numbers")
        object.__setattr__(self, "values", self.values.detach())
        object.__setattr__(self, "shape", tuple(self.values.shape))

    def delta(self, base: Tensor | None = None) -> Tensor:
        if base is None:
            raise DataError(
                "a replace change has no difference of its own",
                expected="the weight it is applied to", mend="change.delta(weight)",
            )
        self._fits(base)
        return self.values.to(base.device).float() - base.detach().float()

    def place(self) -> Place:
        return Whole()

    def difference(self, old: Tensor) -> Tensor:
        return self.values.to(old) - old

    def _write(self, old: Tensor, scale: float) -> tuple[Tensor, int, int]:
        # The values themselves: old + (values - old) would round twice.
        return self.values.to(old), 0, 0

    def scaled(self, factor: float) -> Replace:
        checked_factor(factor)
        return self

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        return {"values": self.values}

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        return cls(tensors["values"])
