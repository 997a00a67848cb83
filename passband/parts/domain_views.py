"""What penalties over domains look at: features, outputs and labels of each, and head curvature.

    features  E tensors [n_e, d], or one [E, n, d]
    head      an nn.Linear; its outputs, E tensors [n_e, C] or [E, n, C]; or any other nn.Module
    labels    E tensors [n_e], or [E, n]

>>> views = DomainViews.of([torch.randn(4, 2), torch.randn(6, 2)], nn.Linear(2, 3),
...                        [torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0, 1, 2])])
>>> views.risks.shape, views.curvature().gradient.shape
(torch.Size([2]), torch.Size([2, 9]))

E domains, n examples of each, d features, C outputs (1: two classes by a sigmoid), P parameters of
the head. Every domain counts by its own mean, however many examples it has. Domains of one size
are computed as one stack.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from passband.errors import DataError, PassbandWarning
from passband.parts.head_curvature import (
    autograd_gradient,
    autograd_hvp,
    head_gradient,
    head_hessian_diag,
    head_hvp,
    head_loss,
    probabilities,
)

Stack = Tensor | Sequence[Tensor]
Parts = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class DomainViews:
    """Checked views. Each field is one tensor [E, n, ...] in a tuple, or E tensors [n_e, ...].

    head  the module where it is not linear, else None
    bias  whether the linear head has one
    """

    features: Parts
    logits: Parts
    labels: Parts
    head: nn.Module | None = None
    bias: bool = True

    @classmethod
    def of(
        cls, features: Stack, head: Stack | nn.Module, labels: Stack, *, validate: bool = True
    ) -> DomainViews:
        """
        validate  look at the labels' values; False inside `torch.vmap`, where nobody can

        Raises `DataError` for one domain, lengths that differ, labels out of range; warns of
        domains with one example.
        """
        h, y = _parts(features), _parts(labels)
        linear = not isinstance(head, nn.Module) or type(head) is nn.Linear
        z = _parts([head(part) for part in h] if isinstance(head, nn.Module) else head)
        module = head if isinstance(head, nn.Module) and not linear else None
        bias = not (isinstance(head, nn.Linear) and head.bias is None)
        _check(h, z, y)
        if validate:
            _check_values(z, y)
        if len(h) > 1 and len({part.shape for part in h}) == 1:
            h, z, y = ((torch.stack(list(parts)),) for parts in (h, z, y))
        return cls(h, z, y, module, bias)

    @property
    def count(self) -> int:
        """E."""
        return len(self.features) if self.features[0].dim() == 2 else len(self.features[0])

    def each(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """function(features, logits, labels), which carries leading axes, of all domains [E, ...].

        >>> x = torch.ones(2, 5, 3)
        >>> views = DomainViews.of(x, x, torch.zeros(2, 5, dtype=torch.long))
        >>> views.each(lambda h, z, y: h.sum((-2, -1)))
        tensor([15., 15.])
        """
        parts = zip(self.features, self.logits, self.labels, strict=True)
        found = [function(*part) for part in parts]
        return found[0] if self.features[0].dim() == 3 else torch.stack(found)

    @cached_property
    def risks(self) -> Tensor:
        """[E] mean losses."""
        return self.each(lambda h, z, y: head_loss(z, y))

    def curvature(self) -> Curvature:
        """Gradient and Hessian products in the head: in closed form where it is linear."""
        return _Linear(self) if self.head is None else _AnyHead(self)

    def split(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(features, logits, labels) of each domain."""
        parts = (self.features, self.logits, self.labels)
        if self.features[0].dim() == 3:
            parts = tuple(tuple(part[0]) for part in parts)  # type: ignore[assignment]
        return list(zip(*parts, strict=True))


class Curvature(Protocol):
    """Of each domain's mean loss in the head's parameters."""

    gradient: Tensor  # [E, P]

    def product(self, v: Tensor) -> Tensor:
        """H_e v_e: v [E, P] or [P] -> [E, P]; v [R, 1, P] or [R, E, P] -> [R, E, P]."""

    def diagonal(self) -> Tensor | None:
        """[E, P]; None where there is no closed form."""


class _Linear:
    def __init__(self, views: DomainViews) -> None:
        self.views, self.bias = views, views.bias
        self.p = tuple(probabilities(z) for z in views.logits)
        self.gradient = self._each(lambda h, p, y, e: head_gradient(h, p, y, bias=self.bias))

    def product(self, v: Tensor) -> Tensor:
        if self.views.features[0].dim() == 3:
            return head_hvp(self.views.features[0], self.p[0], v, bias=self.bias)
        v = v.expand(*v.shape[:-2], self.views.count, v.shape[-1])
        return self._each(lambda h, p, y, e: head_hvp(h, p, v[..., e, :], bias=self.bias))

    def diagonal(self) -> Tensor | None:
        return self._each(lambda h, p, y, e: head_hessian_diag(h, p, bias=self.bias))

    def _each(self, function: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> Tensor:
        views = self.views
        if views.features[0].dim() == 3:
            return function(views.features[0], self.p[0], views.labels[0], 0)
        parts = enumerate(zip(views.features, self.p, views.labels, strict=True))
        return torch.stack([function(h, p, y, e) for e, (h, p, y) in parts], -2)


class _AnyHead:
    def __init__(self, views: DomainViews) -> None:
        head = views.head
        assert head is not None
        parts = views.split()
        self.gradient = torch.stack([autograd_gradient(head, h, y) for h, _, y in parts])
        self.products = [autograd_hvp(head, h, y) for h, _, y in parts]

    def product(self, v: Tensor) -> Tensor:
        v = v.expand(*v.shape[:-2], len(self.products), v.shape[-1])
        found = [product(v[..., e, :]) for e, product in enumerate(self.products)]
        return torch.stack(found, -2)

    def diagonal(self) -> Tensor | None:
        return None


def _parts(given: Stack) -> Parts:
    """E tensors, or one that holds them all, in a tuple."""
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _check(h: Parts, z: Parts, y: Parts) -> None:
    stacked = len(h) == 1 and h[0].dim() == 3
    count = len(h[0]) if stacked else len(h)
    if count < 2 or (not stacked and h[0].dim() != 2):
        raise DataError(
            f"{count} domain{'s' * (count != 1)} of features, of shape "
            f"{list(h[0].shape) if h else []}",
            expected="needs >= 2 domains: a list of [n_e, d], or [E, n, d]",
            mend="nothing can be aligned with itself; split the data by where they come from",
        )
    if not len(h) == len(z) == len(y) or any(
        a.shape[:-1] != b.shape[:-1] or a.shape[:-1] != c.shape
        for a, b, c in zip(h, z, y, strict=True)
    ):
        raise DataError(
            f"features {[list(t.shape) for t in h]}, outputs {[list(t.shape) for t in z]}, labels "
            f"{[list(t.shape) for t in y]}",
            expected="[n_e, d], [n_e, C] and [n_e] of every domain",
        )
    if any(part.shape[-2] == 0 for part in h):
        raise DataError("a domain without examples", expected="one or more of each")
    if any(part.shape[-2] == 1 for part in h):
        warnings.warn(
            "a domain has a single example in this batch: its Hessian has rank C - 1 and says "
            "little of the domain", PassbandWarning, stacklevel=4,
        )


def _check_values(z: Parts, y: Parts) -> None:
    classes = max(2, z[0].shape[-1])
    for part in y:
        low, high = (float(v) for v in part.aminmax())
        if low < 0 or high >= classes:
            raise DataError(
                f"labels from {low:g} to {high:g} for a head of {z[0].shape[-1]} outputs",
                expected=f"0 to {classes - 1}", mend="number classes from 0",
            )
