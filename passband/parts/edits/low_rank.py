"""A change of low rank, optionally measured from where its factors began.

    delta = scale (B A - B0 A0)        B [m, r], A [r, n];  B0 [m, r0], A0 [r0, n]

Factors taken from the weight itself (its singular vectors, say) begin at B0 A0, not at 0: keeping
them makes the change one of the original weight, as LoRA of rank r + r0, exactly.

>>> b, a = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, 1.0]])
>>> change = LowRank(b, a, scale=0.5)
>>> change.delta().tolist()
[[0.5, 0.0, 0.5], [1.0, 0.0, 1.0]]
>>> LowRank(b, a, b, a).delta().tolist()           # nothing learned: zero to the bit
[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

Source: Hu et al. 2021 (LoRA), arXiv 2106.09685; Yang et al. 2024 (CorDA), arXiv 2406.05223.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from passband.errors import DataError
from passband.parts.edits.change import Change, checked_factor, rounded, wide
from passband.parts.edits.place import Place, Whole


@dataclass(frozen=True, eq=False)
class LowRank(Change):
    """delta = scale (B A - B0 A0), reshaped to `shape`.

    B, A        [m, r], [r, n], fp32
    B0, A0      the factors at the start, of any rank, or None
    shape       of the tensor; None: (m, n). Kernels [out, in, h, w] count as [out, in * h * w]
    transposed  the weight is stored [n, m] (GPT-2's Conv1D)
    Raises `DataError` for factors that don't fit each other or the shape.
    """

    kind: ClassVar[str] = "low_rank"
    B: Tensor
    A: Tensor
    B0: Tensor | None = None
    A0: Tensor | None = None
    scale: float = 1.0
    shape: tuple[int, ...] = None  # type: ignore[assignment]
    transposed: bool = False

    def __post_init__(self) -> None:
        _check_pair(self.B, self.A, "B", "A")
        m, n = len(self.B), self.A.shape[1]
        if (self.B0 is None) != (self.A0 is None):
            raise DataError("one of B0 and A0 alone", expected="both or none")
        if self.B0 is not None and self.A0 is not None:
            _check_pair(self.B0, self.A0, "B0", "A0")
            if (len(self.B0), self.A0.shape[1]) != (m, n):
                raise DataError(
                    f"B0 A0 of shape {(len(self.B0), self.A0.shape[1])}", expected=f"{(m, n)}",
                )
        rows, columns = (n, m) if self.transposed else (m, n)
        sizes = (rows, columns) if self.shape is None else self.shape
        shape = tuple(int(size) for size in sizes)
        if len(shape) < 2 or shape[0] != rows or math.prod(shape[1:]) != columns:
            raise DataError(
                f"factors of a {rows} x {columns} matrix for a tensor of shape {shape}",
                expected=f"{shape[0] if shape else 1} x {math.prod(shape[1:])}",
                mend="transposed=True where the weight is stored [in, out]",
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "scale", checked_factor(self.scale))
        for name, factor in self.held().items():
            object.__setattr__(self, name, wide(factor))

    @property
    def rank(self) -> int:
        """Columns of B."""
        return int(self.B.shape[1])

    def delta(self, base: Tensor | None = None) -> Tensor:
        return self.difference(self.B)

    def place(self) -> Place:
        return Whole()

    def difference(self, old: Tensor) -> Tensor:
        at = old.device
        product = self.B.to(at) @ self.A.to(at)
        if self.B0 is not None and self.A0 is not None:
            # Two products of the same form: where nothing was learned they cancel to the bit.
            product -= self.B0.to(at) @ self.A0.to(at)
        product *= self.scale
        return (product.t() if self.transposed else product).reshape(self.shape)

    def scaled(self, factor: float) -> LowRank:
        scale = self.scale * checked_factor(factor)
        return LowRank(self.B, self.A, self.B0, self.A0, scale, self.shape, self.transposed)

    def _plus(self, other: LowRank) -> LowRank | None:
        if self.transposed != other.transposed:
            return None
        common = self.scale if self.scale == other.scale else 1.0
        # At equal scales nothing is rounded; otherwise the scales go into the left factors.
        mine, theirs = self._pairs(common), other._pairs(common)
        joined: list[Tensor | None] = []
        for ours, added in zip(mine, theirs, strict=True):
            both = [pair for pair in (ours, added) if pair is not None]
            joined.append(torch.cat([b.to(self.B.device) for b, _ in both], 1) if both else None)
            joined.append(torch.cat([a.to(self.B.device) for _, a in both], 0) if both else None)
        b, a, b0, a0 = joined
        assert b is not None and a is not None
        return LowRank(b, a, b0, a0, common, self.shape, self.transposed)

    def _pairs(self, common: float) -> list[tuple[Tensor, Tensor] | None]:
        """(B, A) and (B0, A0) for the scale `common`."""
        ratio = 1.0 if self.scale == common else self.scale / common
        start = None
        if self.B0 is not None and self.A0 is not None:
            start = (self.B0 if ratio == 1.0 else self.B0 * ratio, self.A0)
        return [(self.B if ratio == 1.0 else self.B * ratio, self.A), start]

    def norm(self) -> float:
        """Frobenius norm, O((m + n) r^2): of the triangular factors of [B, -B0] and [A; A0]'."""
        left, right = self.lora()
        triangle = [torch.linalg.qr(side.double(), mode="r").R for side in (left, right.t())]
        return float(torch.linalg.matrix_norm(triangle[0] @ triangle[1].t()))

    def lora(self) -> tuple[Tensor, Tensor]:
        """scale [B, -B0] and [A; A0]: ordinary LoRA on the original weight, rank r + r0."""
        left, right = self.B, self.A
        if self.B0 is not None and self.A0 is not None:
            left, right = torch.cat([self.B, -self.B0], 1), torch.cat([self.A, self.A0], 0)
        return left * self.scale, right

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        # B A - B0 A0 is a small difference of large products: rounded factors would drown it.
        dtype = dtype if self.B0 is None else None
        return {name: rounded(factor, dtype) for name, factor in self.held().items()}

    def facts(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "scale": self.scale, "transposed": self.transposed}

    @classmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        return cls(
            tensors["B"], tensors["A"], tensors.get("B0"), tensors.get("A0"), facts["scale"],
            tuple(facts["shape"]), facts["transposed"],
        )


def _check_pair(left: Tensor, right: Tensor, b: str, a: str) -> None:
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise DataError(
            f"{b} of shape {tuple(left.shape)} and {a} of {tuple(right.shape)}",
            expected=f"{b} [m, r] and {a} [r, n]",
        )
