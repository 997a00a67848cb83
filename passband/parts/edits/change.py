"""What happens to one tensor of a model.

    W  ->  round(W + scale * delta)         the sum in fp32 (or wider), rounded once to W's dtype

A kind of change (dense, sparse, block, low-rank, ...) stores its delta compactly and tells where it
writes; everything else is common to all kinds and lies here. Values are kept, not copied: hand over
a tensor that nobody trains any more.

>>> weight = torch.zeros(2, 3, dtype=torch.bfloat16)
>>> change = change_of(
...     {"kind": "sparse", "shape": [2, 3]},
...     {"indices": torch.tensor([4]), "values": torch.tensor([0.5])},
... )
>>> saved = change.add_to(weight, scale=2.0)
>>> weight.tolist()
[[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
>>> saved.restore(weight)
>>> weight.abs().sum().item()
0.0
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from passband.errors import CheckpointError, DataError, UnknownNameError
from passband.parts.edits.place import Place, Saved

_KINDS: dict[str, type[Change]] = {}


class Change(ABC):
    """Base of all kinds. Immutable; subclasses are frozen dataclasses.

    kind      its name in files
    additive  the delta does not depend on the weight, so that changes can be summed
    shape     of the tensor that it changes
    """

    kind: ClassVar[str]
    additive: ClassVar[bool] = True
    shape: tuple[int, ...]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            _KINDS[cls.kind] = cls

    # ---- what a kind gives -----------------------------------------------------------------

    @abstractmethod
    def delta(self, base: Tensor | None = None) -> Tensor:
        """The dense difference, fp32, of `shape`; `base` is needed by what is not additive."""

    @abstractmethod
    def place(self) -> Place:
        """Where it writes."""

    @abstractmethod
    def difference(self, old: Tensor) -> Tensor:
        """The delta at `place()`, for the entries `old` (fp32 or wider) that stand there."""

    @abstractmethod
    def scaled(self, factor: float) -> Change:
        """The same change, `factor` times as strong."""

    @abstractmethod
    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """What a file holds; differences are rounded to `dtype` where one is given."""

    @classmethod
    @abstractmethod
    def build(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """From what `tensors` and `facts` gave."""

    def facts(self) -> dict[str, Any]:
        """Small JSON facts that belong to the tensors."""
        return {"shape": list(self.shape)}

    def lora(self) -> tuple[Tensor, Tensor] | None:
        """B [m, r], A [r, n] with delta = B A exactly (W [m, n] = [out, in]); None: no such form.

        Kernels count as [out, in * height * width]; the transposed weights of GPT-2 are given as
        an ordinary Linear layer has them.
        """
        return None

    def _plus(self, other: Self) -> Change | None:
        """The sum with a change of the same kind and shape, where it stays in compact form."""
        return None

    # ---- what they share -------------------------------------------------------------------

    @torch.no_grad()
    def add_to(self, weight: Tensor, scale: float = 1.0) -> Saved:
        """W <- round(W + scale * delta), in place; returns what restores the bits.

        Raises `DataError` for another shape, integers, or a result that is not finite; the weight
        is untouched then.
        """
        self._fits(weight)
        place = self.place()
        old = place.gather(weight)
        new, changed, lost = self._write(old, scale)
        if not is_finite(new):
            raise DataError(
                f"a {self.kind} change gives NaN or infinity in {weight.dtype}",
                expected="finite weights", mend="a smaller scale, or weights of a wider dtype",
            )
        place.put(weight, new)
        return Saved(place, old, changed, lost)

    def _write(self, old: Tensor, scale: float) -> tuple[Tensor, int, int]:
        """What replaces the entries `old`; how many change, and how many of these are lost."""
        wide = old.to(torch.promote_types(old.dtype, torch.float32))
        difference = self.difference(wide)
        new = torch.add(wide, difference, alpha=scale).to(old.dtype)
        if scale == 0:
            return new, 0, 0
        changed = int(torch.count_nonzero(difference))
        return new, changed, changed - count_different(old, new)

    def __add__(self, other: Change) -> Change:
        """The change that does both: supports are united, ranks stacked, mixed kinds dense."""
        if self.shape != other.shape:
            raise DataError(
                f"a change of shape {self.shape} and one of {other.shape}",
                expected="changes of the same tensor",
            )
        if not (self.additive and other.additive):
            raise DataError(
                f"a {self.kind} and a {other.kind} change of the same tensor have no sum",
                expected="changes that add to the weight",
                mend="leave the tensor out of one of the edits: edit.only(...)",
            )
        if type(self) is type(other):
            compact = self._plus(other)
            if compact is not None:
                return compact
        from passband.parts.edits.dense import Dense

        return Dense(self.delta().add(other.delta()))

    def norm(self) -> float:
        """Frobenius norm of the delta. Raises `DataError` where it depends on the weight."""
        if not self.additive:
            raise DataError(
                f"a {self.kind} change has no norm of its own",
                expected="the weight it is applied to", mend="change.delta(weight).norm()",
            )
        return float(torch.linalg.vector_norm(self._numbers(), dtype=torch.float64))

    def _numbers(self) -> Tensor:
        """Values whose squares sum to those of the delta."""
        return self.delta()

    def same(self, other: Change) -> bool:
        """Equal in kind and in every number."""
        if type(self) is not type(other) or self.facts() != other.facts():
            return False
        mine, theirs = self.held(), other.held()
        return mine.keys() == theirs.keys() and all(
            torch.equal(tensor, theirs[name].to(tensor.device)) for name, tensor in mine.items()
        )

    def held(self) -> dict[str, Tensor]:
        """The tensors in memory, by field."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # type: ignore[arg-type]
        return {name: value for name, value in values if isinstance(value, Tensor)}

    def _fits(self, weight: Tensor) -> None:
        if tuple(weight.shape) != self.shape:
            raise DataError(
                f"a weight of shape {tuple(weight.shape)}", expected=f"shape {self.shape}",
            )
        if not weight.is_floating_point():
            raise DataError(
                f"a weight of {weight.dtype} (a quantised model?)",
                expected="floating-point numbers", mend="load the model without quantisation",
            )
        if weight.is_meta:
            raise DataError("a weight without memory (meta device)", expected="loaded weights")


def change_of(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
    """The change whose `facts()` plus {"kind": ...} and `tensors()` are given.

    Raises `UnknownNameError` for another kind, `CheckpointError` for tensors or facts that are
    missing.
    """
    kind = str(facts.get("kind"))
    if kind not in _KINDS:
        raise UnknownNameError("kind of change", kind, _KINDS)
    try:
        return _KINDS[kind].build(tensors, facts)
    except KeyError as error:
        raise CheckpointError(
            f"a {kind} change lacks {error}", expected="what Change.tensors() and facts() gave",
        ) from None


def is_finite(values: Tensor) -> bool:
    """No NaN, no infinity; without a temporary of the size of `values`."""
    if values.numel() == 0 or not values.is_floating_point():
        return True
    low, high = torch.aminmax(values)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def count_different(one: Tensor, other: Tensor, chunk: int = 1 << 20) -> int:
    """Entries that differ; in pieces, because allocating large masks costs more than comparing."""
    pairs = zip(*(torch.split(t.reshape(-1), chunk) for t in (one, other)), strict=True)
    counts = [torch.count_nonzero(a != b) for a, b in pairs]
    return int(torch.stack(counts).sum()) if counts else 0


def checked_factor(factor: float) -> float:
    """A finite scale. Raises `DataError` otherwise."""
    if not math.isfinite(factor):
        raise DataError(f"scale {factor}", expected="a finite number")
    return float(factor)


def wide(values: Tensor) -> Tensor:
    """Values of a change as it keeps them: fp32, detached. Raises `DataError` for integers."""
    if not values.is_floating_point():
        raise DataError(f"values of {values.dtype}", expected="floating-point numbers")
    return values.detach().float()


def rounded(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Values as a file keeps them. Raises `DataError` where `dtype` can't hold them."""
    if dtype is None or dtype == values.dtype:
        return values
    narrow = values.to(dtype)
    if not is_finite(narrow):
        raise DataError(
            f"values up to {float(values.abs().max()):.3g} overflow in {dtype}",
            expected=f"at most {torch.finfo(dtype).max:.3g}", mend="save with dtype=None",
        )
    return narrow


def positions(index: Tensor, size: int, what: str) -> Tensor:
    """Indices [K] as int64, each in [0, size). Raises `DataError`."""
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool:
        raise DataError(
            f"{what} of {index.dtype} and shape {tuple(index.shape)}",
            expected="integers, one dimension",
        )
    index = index.detach().long()
    if index.numel():
        low, high = (int(end) for end in torch.aminmax(index))
        if low < 0 or high >= size:
            raise DataError(
                f"{what} from {low} to {high}", expected=f"0 to {size - 1}",
                mend="they belong to a tensor of another shape",
            )
    return index


def refuse_twice(index: Tensor, what: str) -> None:
    """Raises `DataError` when sorted indices repeat."""
    twice = index[1:][index[1:] == index[:-1]]
    if len(twice):
        raise DataError(
            f"{what} with {len(twice)} repeated, first {int(twice[0])}",
            expected="every index once", mend="sum the values of equal indices first",
        )


def ascending(index: Tensor) -> bool:
    """Sorted, and no index twice."""
    return bool((index[1:] > index[:-1]).all())
