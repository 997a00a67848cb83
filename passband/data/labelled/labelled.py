"""A labelled data set in memory, and the three parts a task has of it.

>>> rng = np.random.default_rng(0)
>>> data = Labelled(rng.random((6, 4)), [0, 1, 0, 1, 0, 1], classes=("cat", "dog"))
>>> len(data), data.shape, data[1][1]
(6, (4,), tensor(1))
>>> noisy = data.relabelled([1, 1, 0, 1, 0, 1])          # the old labels become the truth
>>> noisy.wrong
tensor([ True, False, False, False, False, False])
>>> noisy.subset([0, 2]).wrong
tensor([ True, False])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.cache import digest
from passband.errors import DataError


@dataclass(frozen=True, eq=False)
class Labelled:
    """N examples; arrays and lists become tensors.

    x            [N, ...] float32: images [N, channels, height, width] in [0, 1], or rows [N, d]
    y            [N] int64, place in `classes`; may be wrong
    classes      names
    truth        [N] int64 right labels, where they are known besides y
    groups       [N] int64 domain or environment of each example, place in `group_names`
    names        of the examples: files, or empty
    Raises `DataError` for parts that don't fit each other and for values that are not finite.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]
    truth: Tensor | None = None
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__  # the class is frozen once it is checked
        put(self, "x", torch.as_tensor(self.x).float())
        put(self, "classes", tuple(map(str, self.classes)))
        put(self, "names", tuple(self.names))
        n = len(self.x)
        if self.x.dim() < 2 or n == 0:
            raise DataError(
                f"examples of shape {list(self.x.shape)}",
                expected="[N, d] rows or [N, channels, height, width] images, N >= 1",
            )
        bad = ~torch.isfinite(self.x).flatten(1).all(1)
        if bad.any():
            raise DataError(
                f"{int(bad.sum())} of {n} examples have values that are not finite, the first at "
                f"{int(bad.nonzero()[0])}", expected="finite numbers",
                mend="fill them or leave those examples out",
            )
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise DataError(
                f"classes {list(self.classes)}", expected="2 or more, of different names"
            )
        put(self, "y", _numbers("labels", self.y, n, len(self.classes)))
        if self.truth is not None:
            put(self, "truth", _numbers("truth", self.truth, n, len(self.classes)))
        if self.groups is not None:
            count = int(torch.as_tensor(self.groups).max()) + 1
            if not self.group_names:
                put(self, "group_names", tuple(map(str, range(count))))
            put(self, "group_names", tuple(map(str, self.group_names)))
            put(self, "groups", _numbers("groups", self.groups, n, len(self.group_names)))
        if self.names and len(self.names) != n:
            raise DataError(f"{len(self.names)} names for {n} examples", expected="as many")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return tuple(self.x.shape[1:])

    @property
    def right(self) -> Tensor:
        """[N] the true labels where they are known, else the given ones."""
        return self.y if self.truth is None else self.truth

    @property
    def wrong(self) -> Tensor:
        """[N] True where the label is known to be wrong."""
        return self.y != self.right

    def subset(self, chosen: Tensor | Iterable[int]) -> Labelled:
        """The examples at these places, or where a mask [N] is True."""
        given = chosen if isinstance(chosen, Tensor) else torch.as_tensor(np.asarray(list(chosen)))
        index = given.nonzero().ravel() if given.dtype == torch.bool else given.long()
        return replace(
            self, x=self.x[index], y=self.y[index],
            truth=None if self.truth is None else self.truth[index],
            groups=None if self.groups is None else self.groups[index],
            names=tuple(self.names[i] for i in index.tolist()) if self.names else (),
        )

    def relabelled(self, labels: Any) -> Labelled:
        """The same examples with other labels; what was right before stays the truth."""
        return replace(self, y=torch.as_tensor(labels), truth=self.right)

    def by_group(self) -> list[Labelled]:
        """One part a group that occurs; the whole where there are none."""
        if self.groups is None:
            return [self]
        return [self.subset(self.groups == g) for g in self.groups.unique()]

    @cached_property
    def fingerprint(self) -> str:
        tensors = (self.x, self.y, self.truth, self.groups)
        return digest([
            "\n".join((*self.classes, *self.group_names, *self.names)),
            *(b"" if t is None else t.contiguous().numpy().tobytes() for t in tensors),
        ])


@dataclass(frozen=True, eq=False)
class Parts:
    """What is learned from, what a choice may look at, what is judged by."""

    train: Labelled
    valid: Labelled | None
    test: Labelled

    @property
    def fingerprint(self) -> str:
        parts = (self.train, self.valid, self.test)
        return digest("" if part is None else part.fingerprint for part in parts)


def _numbers(what: str, values: Any, n: int, count: int) -> Tensor:
    """Checked places [n] below count."""
    array = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    if array.shape != (n,):
        raise DataError(f"{what} of shape {list(array.shape)} for {n} examples", expected=f"[{n}]")
    found = array.long()
    if array.is_floating_point() and not torch.equal(found.to(array.dtype), array):
        raise DataError(f"{what} that are no whole numbers", expected="places from 0 up")
    low, high = (int(v) for v in found.aminmax())
    if low < 0 or high >= count:
        raise DataError(
            f"{what} from {low} to {high}", expected=f"places from 0 to {count - 1}",
            mend="number them from 0, and name each of them",
        )
    return found


def joined(parts: Sequence[Labelled]) -> Labelled:
    """Several data sets of the same classes as one.

    >>> one = Labelled(torch.zeros(2, 3), [0, 1], ("a", "b"))
    >>> len(joined([one, one]))
    4
    """
    first = parts[0]
    if any(p.classes != first.classes or p.group_names != first.group_names for p in parts):
        raise DataError("data sets of different classes or groups", expected="the same in all")
    truth = any(p.truth is not None for p in parts)
    return Labelled(
        torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]), first.classes,
        torch.cat([p.right for p in parts]) if truth else None,
        None if first.groups is None else torch.cat([p.groups for p in parts]),
        first.group_names, tuple(name for p in parts for name in p.names),
    )
