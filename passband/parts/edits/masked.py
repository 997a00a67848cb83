"""A change that sets entries to zero, or pulls them towards it.

    W  ->  W (m + (1 - strength) (1 - m))          m: the mask, 1 where an entry is kept

>>> change = Masked(torch.tensor([[True, False, True, False]]), pattern=(2, 4))
>>> weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
>>> _ = change.add_to(weight)
>>> weight.tolist()
[[1.0, 0.0, 3.0, 0.0]]

Source of the soft mask: Bambhaniya et al. 2024, arXiv 2402.04744.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.edits.bitmask import pack, unpack
from passband.parts.edits.change import Change, checked_factor
from passband.parts.edits.place import Place, Whole


@dataclass(frozen=True, eq=False)
class Masked(Change):
    """W <- W where the mask is True, (1 - strength) W elsewhere.

    mask      bool, of the tensor's shape; packed to bits in files
    strength  1: pruned entries are zero; 0: nothing happens
    pattern   (N, M): at most N kept of every M consecutive along the input dimension (dim 1, or
              the only one). Raises `DataError` for a mask that breaks it.
    """

    kind: ClassVar[str] = "masked"
    additive: ClassVar[bool] = False
    mask: Tensor
    strength: float = 1.0
    pattern: tuple[int, int] | None = None
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise DataError(f"a mask of {self.mask.dtype}", expected="torch.bool: True is kept")
        object.__setattr__(self, "mask", self.mask.detach())
        object.__setattr__(self, "shape", tuple(self.mask.shape))
        object.__setattr__(self, "strength", checked_factor(self.strength))
        if self.pattern is not None:
            object.__setattr__(self, "pattern", tuple(self.pattern))
            _check_pattern(self.mask, *self.pattern)

    def delta(self, base: Tensor | None = None) -> Tensor:
        if base is None:
            raise DataError(
                "a masked change has no difference of its own",
                expected="the weight it is applied to", mend="change.delta(weight)",
            )
        self._fits(base)
        return self.difference(base.detach().float())

    def place(self) -> Place:
        return Whole()

    def difference(self, old: Tensor) -> Tensor:
        return torch.where(self.mask.to(old.device), torch.zeros_like(old), -self.strength * old)

    def scaled(self, factor: float) -> Masked:
        """`factor` times the strength."""
        return Masked(self.mask, self.strength * checked_factor(factor), self.pattern)

    def __add__(self, other: Change) -> Change:
        """Two full masks: what both keep. Anything else has no sum."""
        alike = isinstance(other, Masked) and self.strength == other.strength == 1.0
        if not alike or self.shape != other.shape:
            return super().__add__(other)
        assert isinstance(other, Masked)
        mask = self.mask & other.mask.to(self.mask.device)
        return Masked(mask, pattern=self.pattern or other.pattern)

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        kept = self.mask.reshape(-1).nonzero().reshape(-1)
        return {"mask": pack(kept, self.mask.numel())}

    def facts(self) -> dict[str, Any]:
        pattern = list(self.pattern) if self.pattern else None
        return {"shape": list(self.shape), "strength": self.strength, "pattern": pattern}

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        shape = tuple(facts["shape"])
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[unpack(tensors["mask"], len(mask))] = True
        pattern = tuple(facts["pattern"]) if facts["pattern"] else None
        return cls(mask.reshape(shape), facts["strength"], pattern)


def _check_pattern(mask: Tensor, n: int, m: int) -> None:
    if not 0 < n <= m:
        raise DataError(f"pattern {n}:{m}", expected="N:M with 0 < N <= M")
    groups = mask.movedim(min(1, mask.ndim - 1), -1)
    if groups.shape[-1] % m:
        raise DataError(
            f"pattern {n}:{m} on {groups.shape[-1]} inputs", expected=f"a multiple of {m}",
            mend="pad the layer, or take an M that divides its inputs",
        )
    kept = groups.reshape(-1, m).sum(-1)
    if int(kept.max()) > n:
        raise DataError(
            f"{int((kept > n).sum())} groups of {m} keep more than {n}", expected=f"{n}:{m}",
        )
