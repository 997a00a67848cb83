"""Where deltas go: budgets of the layers, first positions, what is dropped, what grows instead.

    k_l = floor(K numel_l / sum numel)
    share replaced   p = p0 (1 - t/T)  or  p0 (1 + cos(pi t/T)) / 2
    drop             the n = floor(k p) deltas that matter least
    grow (AG)        the n candidates of largest |sum of gradients|
    grow (MA)        the n inactive positions (i, j) of largest r_i c_j

>>> budgets({"a": 100, "b": 300}, 40)
{'a': 10, 'b': 30}
>>> outer_top(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0, 2.0]), torch.tensor([3]), 2)
tensor([5, 0])

Source: SpIEL, arXiv 2401.16405, sections 3.1 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from passband.errors import ConfigError

Policy = Literal["linear", "cosine"]


# ---- how many ------------------------------------------------------------------------------------


def budgets(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Deltas of each layer, in proportion to its size and rounded down.

    Raises `ConfigError`, naming the layer, when one gets none or more than it has entries.
    """
    whole = sum(sizes.values())
    found = {name: total * size // whole for name, size in sizes.items()}
    full = [name for name, count in found.items() if count > sizes[name]]
    if full:
        raise ConfigError(
            f"a budget of {total} deltas gives {found[full[0]]} to {full[0]}, "
            f"which has {sizes[full[0]]} entries",
            expected=f"at most {whole}, the entries of all target layers",
            mend="a lower density (it counts all parameters of the model), or more targets",
        )
    empty = [name for name, count in found.items() if count < 1]
    if empty:
        least = math.ceil(whole / sizes[empty[0]])
        raise ConfigError(
            f"a budget of {total} deltas leaves none for {empty[0]} ({sizes[empty[0]]} entries)",
            expected=f"at least {least}", mend="a larger budget, or leave this layer out",
        )
    return found


def _linear(start: float, fraction: float) -> float:
    return start * (1 - fraction)


def _cosine(start: float, fraction: float) -> float:
    return start * (1 + math.cos(math.pi * fraction)) / 2


SHARES: dict[str, Callable[[float, float], float]] = {"linear": _linear, "cosine": _cosine}


def replaced(policy: Policy, start: float, fraction: float, first: bool) -> float:
    """Share of the deltas that a reselection replaces; the linear policy begins with all.

    >>> replaced("linear", 0.2, 0.25, first=False), replaced("linear", 0.2, 0.0, first=True)
    (0.15000000000000002, 1.0)
    """
    if first and policy == "linear":
        return 1.0
    return SHARES[policy](start, fraction)


# ---- which ---------------------------------------------------------------------------------------


def random_positions(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` distinct numbers below `size`, each set equally likely; sorted [count].

    Memory grows with the count, not with the size, where few are drawn.
    """
    if 4 * count > size:
        return torch.randperm(size, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        more = torch.randint(size, (count - len(drawn) + 64,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    # Which of them are left out must not depend on their order.
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]].sort().values


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest scores, ascending; of equal ones the first.

    scores  [N] without NaN

    >>> largest(torch.tensor([2.0, 1.0, 3.0, 1.0]), 3)
    tensor([0, 1, 2])
    """
    if count >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    edge = scores.topk(count, sorted=False).values.min()
    above = (scores > edge).nonzero().flatten()
    ties = (scores == edge).nonzero().flatten()[: count - len(above)]
    return torch.cat([above, ties]).sort().values


def member(numbers: Tensor, of: Tensor) -> Tensor:
    """Whether each number is in a set: [n] bool, by binary search in O(n log k)."""
    if not len(of):
        return torch.zeros(len(numbers), dtype=torch.bool, device=numbers.device)
    ordered = of.sort().values
    at = torch.searchsorted(ordered, numbers).clamp_(max=len(ordered) - 1)
    return ordered[at] == numbers


def exchange(
    active: Tensor, importance: Tensor, candidates: Tensor, scores: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """What AG drops and grows: (slots [n], numbers of candidates [n]), n <= count.

    active      [k] positions of the slots
    importance  [k] of the slots: the least important are dropped, of equal ones the first
    candidates  [c] positions; scores [c]: the largest grow

    An active position may only grow if it is dropped: it is in neither list then and keeps its
    value. With fewer candidates than slots to drop, fewer are dropped; that may in turn rule out
    candidates, so this is repeated until both agree.
    """
    order = importance.sort(stable=True).indices
    taken = member(candidates, active)
    while True:
        dropped = order[:count]
        valid = (~taken | member(candidates, active[dropped])).nonzero().flatten()
        if len(valid) >= count:
            break
        count = len(valid)
    grown = valid[largest(scores[valid], count)]
    back = member(active[dropped], candidates[grown])
    stays = member(candidates[grown], active[dropped])
    return dropped[~back].sort().values, grown[~stays]


# ---- MA: the largest entries of an outer product -------------------------------------------------


def outer_top(rows: Tensor, columns: Tensor, active: Tensor, count: int) -> Tensor:
    """Flat positions of the `count` largest r_i c_j outside of `active`, largest first [n].

    rows     [R] >= 0
    columns  [C] >= 0
    active   [k] flat positions i C + j that are ruled out

    Exact: products of two float32 numbers are exact in float64, where they are compared; of equal
    ones the lowest position comes first. Products of zero never count, so fewer than `count` may be
    found. Memory R + C + k + count: a threshold is bisected, and each count of the products above
    it is one binary search a row.
    """
    return _Outer(rows.double(), columns.double(), active).top(count)


class _Outer:
    """Products r_i c_j > 0 of inactive positions, in order of their size."""

    def __init__(self, rows: Tensor, columns: Tensor, active: Tensor) -> None:
        self.width = len(columns)
        self.kept = rows.nonzero().flatten()  # numbers of the rows, ascending
        self.r = rows[self.kept]
        # Descending, so that a row's products above a threshold come first; among equal columns
        # ascending numbers, so that ties come in the order of their positions.
        ordered, self.order = columns.sort(descending=True, stable=True)
        self.c = ordered[: int((ordered > 0).sum())]
        self.rising = self.c.flip(0).contiguous()
        i, j = active // self.width, active % self.width
        scores = rows[i] * columns[j]
        self.active = active[scores > 0]
        self.active_scores = scores[scores > 0].sort().values

    def first_below(self, threshold: float) -> Tensor:
        """For each row, how many of its products are >= threshold [R]."""
        # c >= fl(t / r) decides r c >= t but where c is the rounded quotient itself.
        # (A number over a tensor would be its reciprocal times the number, rounded twice.)
        quotient = torch.full_like(self.r, threshold) / self.r
        at = torch.searchsorted(self.rising, quotient)
        after = torch.searchsorted(self.rising, quotient, right=True)
        short = self.r * quotient < threshold
        return len(self.c) - torch.where(short, after, at)

    def count(self, threshold: float) -> int:
        """Inactive products >= threshold."""
        ruled_out = len(self.active_scores) - int(
            torch.searchsorted(self.active_scores, torch.tensor(
                threshold, dtype=torch.float64, device=self.r.device
            ))
        )
        return int(self.first_below(threshold).sum()) - ruled_out

    def top(self, count: int) -> Tensor:
        if not len(self.r) or not len(self.c) or count < 1:
            return self.kept.new_empty(0)
        low = _bits(float(self.r.min() * self.c[-1]))
        high = _bits(float(self.r.max() * self.c[0])) + 1
        count = min(count, self.count(_value(low)))
        if not count:
            return self.kept.new_empty(0)
        # Positive doubles are in the order of their bits. Invariant: count(low) >= n > count(high).
        while high - low > 1:
            middle = (low + high) // 2
            found = self.count(_value(middle))
            if found >= count:
                low = middle
            else:
                high = middle
        edge = _value(low)  # the n-th largest product itself
        above = self.first_below(_value(high))
        sure = self._inactive(self._positions(above * 0, above))
        scores = self._scores(sure)
        ranked = sure[scores.sort(descending=True, stable=True).indices]
        return torch.cat([ranked, self._ties(above, self.first_below(edge), count - len(sure))])

    def _ties(self, start: Tensor, stop: Tensor, wanted: int) -> Tensor:
        """The first positions of those whose product is the edge: columns start..stop of a row."""
        found: list[Tensor] = []
        rows = (stop > start).nonzero().flatten()
        sizes = (stop - start)[rows].cumsum(0)
        begun, have = 0, 0
        # More than once only where active positions lie among the ties.
        while have < wanted and begun < len(rows):
            passed = int(sizes[begun - 1]) if begun else 0
            until = int(torch.searchsorted(sizes, passed + wanted - have)) + 1
            chosen = rows[begun:until]
            at = self._inactive(self._positions(start, stop, chosen))
            found.append(at)
            have += len(at)
            begun = until
        return torch.cat(found)[:wanted] if found else self.kept.new_empty(0)

    def _positions(self, start: Tensor, stop: Tensor, rows: Tensor | None = None) -> Tensor:
        """Flat positions of the sorted columns start..stop of each row, ascending."""
        rows = torch.arange(len(self.r), device=start.device) if rows is None else rows
        sizes = stop[rows] - start[rows]
        of = torch.repeat_interleave(rows, sizes)
        within = torch.arange(len(of), device=of.device)
        within -= torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        flat = self.kept[of] * self.width + self.order[start[of] + within]
        return flat.sort().values

    def _inactive(self, flat: Tensor) -> Tensor:
        return flat[~member(flat, self.active)]

    def _scores(self, flat: Tensor) -> Tensor:
        back = torch.empty_like(self.order)
        back[self.order] = torch.arange(len(self.order), device=back.device)
        i = torch.searchsorted(self.kept, flat // self.width)
        return self.r[i] * self.c[back[flat % self.width]]


def _bits(number: float) -> int:
    return int(torch.tensor(number, dtype=torch.float64).view(torch.int64))


def _value(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int64).view(torch.float64))
