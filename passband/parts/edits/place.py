"""Where in a weight a change writes, and what stood there before.

>>> weight = torch.arange(6.0).reshape(2, 3)
>>> place = Entries(torch.tensor([1, 5]))                  # flat, row-major
>>> saved = Saved(place, place.gather(weight))
>>> place.put(weight, torch.tensor([-1.0, -5.0]))
>>> weight.tolist()
[[0.0, -1.0, 2.0], [3.0, 4.0, -5.0]]
>>> saved.restore(weight)
>>> weight.tolist()
[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Place(ABC):
    """Some of the entries of a tensor, in a fixed order."""

    @abstractmethod
    def gather(self, weight: Tensor) -> Tensor:
        """A copy of the entries, in the weight's dtype and on its device."""

    @abstractmethod
    def put(self, weight: Tensor, values: Tensor) -> None:
        """Write what `gather` gave back into the weight, in place, bit for bit."""


class Whole(Place):
    """Every entry."""

    @torch.no_grad()
    def gather(self, weight: Tensor) -> Tensor:
        return weight.detach().clone(memory_format=torch.preserve_format)

    @torch.no_grad()
    def put(self, weight: Tensor, values: Tensor) -> None:
        weight.copy_(values)


@dataclass(frozen=True, eq=False)
class Entries(Place):
    """Single entries: flat row-major indices [K], int64, whatever the memory layout."""

    indices: Tensor

    @torch.no_grad()
    def gather(self, weight: Tensor) -> Tensor:
        at = self.indices.to(weight.device)
        if weight.is_contiguous():
            return weight.detach().view(-1).index_select(0, at)
        return weight.detach().take(at)

    @torch.no_grad()
    def put(self, weight: Tensor, values: Tensor) -> None:
        at, values = self.indices.to(weight.device), values.to(weight.device)
        if weight.is_contiguous():
            weight.view(-1).index_copy_(0, at, values)
        else:  # channels_last kernels: put_ counts in row-major order too
            weight.put_(at, values)


@dataclass(frozen=True, eq=False)
class Slices(Place):
    """Whole rows (dim 0), columns (dim 1), ...: index [k], int64."""

    dim: int
    index: Tensor

    @torch.no_grad()
    def gather(self, weight: Tensor) -> Tensor:
        return weight.detach().index_select(self.dim, self.index.to(weight.device))

    @torch.no_grad()
    def put(self, weight: Tensor, values: Tensor) -> None:
        at = self.index.to(weight.device)
        weight.index_copy_(self.dim, at, values.to(weight.device))


@dataclass(frozen=True, eq=False)
class Saved:
    """What restores the bits of one tensor after a change.

    place    where the change wrote
    values   what stood there, in the weight's dtype
    changed  entries whose change is not zero
    lost     those of them that rounding to the weight's dtype left as they were
    """

    place: Place
    values: Tensor
    changed: int = 0
    lost: int = 0

    def restore(self, weight: Tensor) -> None:
        self.place.put(weight, self.values)


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(values: Tensor) -> Tensor:
    """The bit patterns of floating-point numbers as integers: equal for NaN, apart for -0 and 0."""
    return values.view(_INTEGERS[values.element_size()])
