"""Exchanging hidden units: the function stays, chosen units come first.

    W1[rows of p] , bias[p] , norm[p]   and   W2[:, columns of p]

An order lists old units at their new places. Channels and heads (g = 1) may take any; with grouped
queries whole groups of g heads move with their head of keys and values, and heads within a group.

>>> order = chosen_first(units=6, groups=3, chosen=[3], also=[])
>>> order.units.tolist(), order.groups.tolist()
([3, 2, 0, 1, 4, 5], [1, 0, 2])
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.tuning.s2ft.coupling import Part, Structure


@dataclass(frozen=True, eq=False)
class Order:
    """units [H], groups [K]: the old one at each new place; a group is g units in succession."""

    units: Tensor
    groups: Tensor

    def of(self, part: Part) -> Tensor:
        """The order that a part's units follow."""
        return self.units if len(part.table) == len(self.units) else self.groups


def chosen_first(
    units: int, groups: int, chosen: Collection[int], also: Collection[int],
) -> Order:
    """The order in which `chosen` units stand first and those in `also` next to them, overlapping.

    With groups of several units each, chosen ones stand first in their group and such groups first:
    one slice where they fill groups or share one.
    """
    chosen, also = set(chosen), set(also)

    def rank(of: Collection[int]) -> tuple[int, int]:
        # Both sets are one slice each: chosen alone, both, the other alone, none.
        first, second = sum(u in chosen for u in of), sum(u in also for u in of)
        return {(1, 0): 0, (1, 1): 1, (0, 1): 2, (0, 0): 3}[first > 0, second > 0], -first

    size = units // groups
    inside = [
        sorted(range(i * size, (i + 1) * size), key=lambda u: rank([u])) for i in range(groups)
    ]
    by_group = sorted(range(groups), key=lambda i: rank(inside[i]))
    return Order(torch.tensor([u for i in by_group for u in inside[i]]), torch.tensor(by_group))


def random_order(structure: Structure, generator: torch.Generator) -> Order:
    """A legal exchange drawn at random."""
    units = len(structure.second.table)
    groups = units // structure.group
    chosen = torch.randperm(groups, generator=generator)
    inside = torch.stack([
        torch.randperm(structure.group, generator=generator) for _ in range(groups)
    ])
    order = (chosen[:, None] * structure.group + inside).flatten()
    return Order(order, chosen)


class Permuted:
    """A model whose structures are put into another order, in place.

    orders  by the structure's name
    Raises `DataError` where an exchange would change the function, and for tied or quantised
    tensors.

    >>> from passband.tuning.s2ft.coupling import Coupling, find_structures
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> (structure,) = find_structures(model, [Coupling({"u": "0"}, "2")])
    >>> order = chosen_first(units=6, groups=6, chosen=[3], also=[])
    >>> before = model[0].bias[3].item()
    >>> moved = Permuted(model, [structure], {structure.name: order})
    >>> model[0].bias[0].item() == before
    True
    >>> moved.undo()                              # to the bit
    """

    def __init__(
        self, model: nn.Module, structures: Sequence[Structure], orders: Mapping[str, Order]
    ) -> None:
        self.tensors = dict(model.named_parameters(remove_duplicate=False))
        self.orders = dict(orders)
        moving = [s for s in structures if s.name in orders]
        _check(self.tensors, moving)
        # New place -> old place along one axis of one matrix; fused matrices have several parts.
        self.places: dict[tuple[str, int | None, int], Tensor] = {}
        for structure in moving:
            for part in structure.everything():
                self._place(part, orders[structure.name])
        self.active = False
        self.redo()

    def _place(self, part: Part, order: Order) -> None:
        key = (part.parameter, part.expert, part.dim)
        if key not in self.places:
            matrix = part.of(self.tensors[part.parameter])
            self.places[key] = torch.arange(matrix.shape[part.dim])
        self.places[key][part.table.flatten()] = part.table[order.of(part)].flatten()

    def redo(self) -> None:
        """Exchange."""
        self._move(lambda places: places)
        self.active = True

    def undo(self) -> None:
        """The original weights, to the bit."""
        self._move(torch.argsort)
        self.active = False

    @torch.no_grad()
    def _move(self, of: Any) -> None:
        for (name, expert, dim), places in self.places.items():
            tensor = self.tensors[name].data
            matrix = tensor if expert is None else tensor[expert]
            matrix.copy_(matrix.index_select(dim, of(places).to(matrix.device)))

    def new(self, parameter: str, expert: int | None, dim: int, old: Tensor) -> Tensor:
        """Where old positions are now."""
        places = self.places.get((parameter, expert, dim))
        return old if places is None else torch.argsort(places)[old]

    def old(self, parameter: str, expert: int | None, dim: int, new: Tensor) -> Tensor:
        """Where positions were before."""
        places = self.places.get((parameter, expert, dim))
        return new if places is None else places.to(new.device)[new]


def _check(tensors: Mapping[str, Tensor], structures: Iterable[Structure]) -> None:
    owners: dict[int, int] = {}
    for tensor in tensors.values():
        owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    for structure in structures:
        if structure.fixed:
            raise DataError(
                f"units of {structure.name} can't change places: {structure.fixed}",
                expected="units that are treated alike",
                mend="layout='gather' trains the same entries where they are",
            )
        for part in structure.everything():
            tensor = tensors.get(part.parameter)
            if tensor is None or not tensor.is_floating_point():
                raise DataError(
                    f"{part.parameter} is quantised", expected="floating-point weights",
                    mend="layout='gather' trains a separate change",
                )
            if owners[id(tensor)] > 1:
                raise DataError(
                    f"{part.parameter} is tied to another tensor", expected="weights of its own",
                    mend="layout='gather'",
                )


@torch.no_grad()
def verify(
    model: nn.Module, structures: Sequence[Structure], example: Mapping[str, Any] | Tensor,
    seed: int = 0,
) -> float:
    """The largest change of the output, relative to its largest entry, under random exchanges.

    example  keyword arguments of a call of the model, or its one argument
    Raises `DataError` naming the structures whose exchange changes the function: their coupling
    map is wrong. The model is as it was afterwards, to the bit. Units that can't move are skipped.
    """
    structures = [s for s in structures if not s.fixed]
    training = model.training
    model.eval()
    try:
        before = outputs(model, example)
        worst = _exchanged(model, structures, example, before, seed)
        limit = tolerance(before)
        if worst <= limit:
            return worst
        wrong = [
            s.name for s in structures if _exchanged(model, [s], example, before, seed) > limit
        ]
    finally:
        model.train(training)
    raise DataError(
        f"exchanging units changes the output by {worst:.1e} of its size: "
        f"{', '.join(wrong[:5]) or 'several together'}",
        expected=f"less than {limit:.0e}: the same function",
        mend="name all matrices that produce the units, norms in `middle`, and the unit's size",
    )


def tolerance(values: Tensor) -> float:
    """What rounding in another order of summation may do."""
    return max(1e-4, 16 * torch.finfo(values.dtype).eps)


def outputs(model: nn.Module, example: Mapping[str, Any] | Tensor) -> Tensor:
    out = model(**example) if isinstance(example, Mapping) else model(example)
    if isinstance(out, Tensor):
        return out
    for name in ("logits", "last_hidden_state"):
        if getattr(out, name, None) is not None:
            return getattr(out, name)  # type: ignore[no-any-return]
    raise DataError(
        f"a {type(out).__name__} came out of the model",
        expected="a tensor, or an output with logits or last_hidden_state",
    )


def _exchanged(
    model: nn.Module, structures: Sequence[Structure], example: Any, before: Tensor, seed: int
) -> float:
    generator = torch.Generator().manual_seed(seed)
    orders = {s.name: random_order(s, generator) for s in structures}
    moved = Permuted(model, structures, orders)
    try:
        after = outputs(model, example)
    finally:
        moved.undo()
    gap = (after - before).abs().max() / before.abs().max().clamp_min(1e-30)
    return float(gap)
