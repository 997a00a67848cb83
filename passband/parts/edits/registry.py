"""What is applied to which tensors, in which order, and how each is taken back.

Every tensor has its own stack of applied changes, so a model, its submodules and tied weights all
agree. Taking back one that lies below others lifts those, restores the bits, and puts them back.

>>> from passband.parts.edits import Dense
>>> model = torch.nn.Linear(2, 1, bias=False)
>>> before = model.weight.detach().clone()
>>> applied = apply_changes(model, {"weight": Dense(torch.ones(1, 2))})
>>> edited(model)
['weight']
>>> applied.revert()
>>> bool((model.weight == before).all()), edited(model)
(True, [])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

from passband.errors import DataError
from passband.parts.edits.change import Change, checked_factor
from passband.parts.edits.names import find
from passband.parts.edits.place import Saved, bits

Trained = Literal["refuse", "keep", "discard"]


@dataclass
class _Layer:
    """One change on one tensor; `owner` is what its edit's changes have in common."""

    owner: object
    change: Change
    scale: float
    saved: Saved


@dataclass
class _Stack:
    layers: list[_Layer] = field(default_factory=list)
    version: int = 0  # the tensor's version counter after our own last write


# Weak keys: a model that is gone takes its stacks along. No layer may hold the tensor itself.
_STACKS = WeakTensorKeyDictionary()


class Applied:
    """An edit on a model, until `revert`. Also a context manager that reverts at its end.

    lost    fraction of the changed entries that rounding to the weights' dtype left as they were
    losses  the same by tensor
    active  it is still applied
    """

    def __init__(self, owner: object, weights: Mapping[str, Tensor], saved: Mapping[str, Saved]):
        self._owner = owner
        self._weights = {name: TensorWeakRef(weight) for name, weight in weights.items()}
        self.losses = {n: s.lost / s.changed if s.changed else 0.0 for n, s in saved.items()}
        changed = sum(s.changed for s in saved.values())
        self.lost = sum(s.lost for s in saved.values()) / changed if changed else 0.0
        self.active = True

    def revert(self, trained: Trained = "refuse") -> None:
        """Restore the bits of every weight, whatever was applied later.

        trained  what happens where the weights were changed by something else meanwhile:
                 refuse   raise, naming the tensors
                 keep     take the change away and keep what was added to it (in fp32, one
                          rounding); entries that nobody touched are restored to the bit
                 discard  restore the bits all the same
        Raises `DataError` when it isn't applied, or as said above.
        """
        if not self.active:
            raise DataError(
                "this edit is not applied (any more)", expected="an applied edit",
                mend="revert it once",
            )
        weights = self._alive()
        touched = [name for name, weight in weights.items() if _touched(weight, self._owner)]
        if touched and trained == "refuse":
            raise DataError(
                f"{len(touched)} tensors were changed since: {', '.join(touched[:5])}",
                expected="weights as the edit left them",
                mend="revert(trained='keep') keeps what was added meanwhile, "
                "revert(trained='discard') drops it",
            )
        if touched and trained == "keep":
            covered = [n for n in touched if not _on_top(weights[n], self._owner)]
            if covered:
                raise DataError(
                    f"other edits lie on {', '.join(covered[:5])}, which were trained since",
                    expected="the edit applied last", mend="revert the later ones first",
                )
        for name, weight in weights.items():
            if name in touched and trained == "keep":
                _take_away(weight)
            else:
                _lift(weight, self._owner)
        self.active = False

    def _alive(self) -> dict[str, Tensor]:
        weights = {name: reference() for name, reference in self._weights.items()}
        gone = [n for n, w in weights.items() if w is None or not _holds(w, self._owner)]
        if gone:
            raise DataError(
                f"the edit is not applied to {', '.join(gone[:5])} any more: the tensors were "
                "replaced by others, or the model was settled",
                expected="the parameters that the edit was applied to",
                mend="revert before a vocabulary is resized or modules are exchanged",
            )
        alive = {name: weight for name, weight in weights.items() if weight is not None}
        saved = {n: _layer(w, self._owner).saved.values.dtype for n, w in alive.items()}
        cast = [n for n, w in alive.items() if w.dtype != saved[n]]
        if cast:
            raise DataError(
                f"{', '.join(cast[:5])} were cast to {alive[cast[0]].dtype} since",
                expected="the dtype that the edit was applied in", mend="revert before a cast",
            )
        return alive

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.active:
            self.revert()


def apply_changes(
    model: nn.Module, changes: Mapping[str, Change], scale: float = 1.0
) -> Applied:
    """Apply changes by parameter name, all or nothing.

    Raises `DataError` for names or shapes that don't fit, the same changes twice, or new values for
    a tensor that other applied edits change.
    """
    scale = checked_factor(scale)
    weights = find(model, {name: change.shape for name, change in changes.items()})
    stacks = {name: _stack_of(weight) or _Stack() for name, weight in weights.items()}
    _refuse_twice(changes, stacks)
    _refuse_replacing(changes, stacks)
    owner, saved = object(), {}
    try:
        for name, change in changes.items():
            saved[name] = _added(name, change, weights[name], scale)
    except BaseException:
        for name, old in saved.items():
            old.restore(weights[name])
            stacks[name].version = weights[name]._version
        raise
    for name, change in changes.items():
        stack = stacks[name]
        stack.layers.append(_Layer(owner, change, scale, saved[name]))
        stack.version = weights[name]._version
        _STACKS[weights[name]] = stack
    return Applied(owner, weights, saved)


def edited(model: nn.Module) -> list[str]:
    """Names of the parameters with applied changes: such a model is no base."""
    return [name for name, weight in model.named_parameters() if weight in _STACKS]


def settle(model: nn.Module) -> None:
    """Make what is applied part of the weights: a base of its own; nothing can be reverted then.

    Frees the bits that were kept for it, as between the rounds of continual learning.
    """
    for _, weight in model.named_parameters():
        if weight in _STACKS:
            del _STACKS[weight]


def pristine(weight: Tensor) -> Tensor:
    """The weight without what is applied to it: itself, or a copy with the changes lifted."""
    stack = _stack_of(weight)
    if stack is None:
        return weight.detach()
    copy = weight.detach().clone()
    for layer in reversed(stack.layers):
        layer.saved.restore(copy)
    return copy


def _added(name: str, change: Change, weight: Tensor, scale: float) -> Saved:
    try:
        return change.add_to(weight, scale)
    except DataError as error:
        raise DataError(f"{name}: {error.what}", expected=error.expected, mend=error.mend) from None


def _refuse_twice(changes: Mapping[str, Change], stacks: Mapping[str, _Stack]) -> None:
    twice = bool(changes) and all(
        any(layer.change.same(change) for layer in stacks[name].layers)
        for name, change in changes.items()
    )
    if twice:
        raise DataError(
            "this edit is applied to the model already", expected="an edit that is not",
            mend="revert it first; edit.scaled(2.0) makes it twice as strong",
        )


def _refuse_replacing(changes: Mapping[str, Change], stacks: Mapping[str, _Stack]) -> None:
    names = [n for n, c in changes.items() if c.kind == "replace" and stacks[n].layers]
    if names:
        raise DataError(
            f"new values for {', '.join(names[:5])}, which another applied edit changes",
            expected="one edit that gives a tensor its values",
            mend="edit.only(...) leaves them out of one of the edits",
        )


def _stack_of(weight: Tensor) -> _Stack | None:
    return _STACKS[weight] if weight in _STACKS else None  # noqa: SIM401  `get` has no types


def _holds(weight: Tensor, owner: object) -> bool:
    stack = _stack_of(weight)
    return stack is not None and any(layer.owner is owner for layer in stack.layers)


def _at(weight: Tensor, owner: object) -> tuple[_Stack, int]:
    stack: _Stack = _STACKS[weight]
    return stack, next(i for i, layer in enumerate(stack.layers) if layer.owner is owner)


def _layer(weight: Tensor, owner: object) -> _Layer:
    stack, i = _at(weight, owner)
    return stack.layers[i]


def _on_top(weight: Tensor, owner: object) -> bool:
    stack, i = _at(weight, owner)
    return i == len(stack.layers) - 1


def _touched(weight: Tensor, owner: object) -> bool:
    """Something else wrote into what this layer or a later one wrote.

    An unmoved version counter says no at once. A moved one may come from writing the same bits
    again, so the layers are lifted and put back, and the bits compared.
    """
    stack, i = _at(weight, owner)
    if weight._version == stack.version:
        return False
    layers = stack.layers[i:]
    now = [layer.saved.place.gather(weight) for layer in layers]
    _unwind(weight, layers)
    _rewind(weight, layers)
    same = all(
        torch.equal(bits(values), bits(layer.saved.place.gather(weight)))
        for values, layer in zip(now, layers, strict=True)
    )
    if not same:
        for values, layer in zip(now, layers, strict=True):
            layer.saved.place.put(weight, values)
        return True
    stack.version = weight._version
    return False


def _unwind(weight: Tensor, layers: list[_Layer]) -> None:
    for layer in reversed(layers):
        layer.saved.restore(weight)


def _rewind(weight: Tensor, layers: list[_Layer]) -> None:
    for layer in layers:
        layer.saved = layer.change.add_to(weight, layer.scale)


def _lift(weight: Tensor, owner: object) -> None:
    """Restore the bits under one layer; later layers are put back on top."""
    stack, i = _at(weight, owner)
    later = stack.layers[i + 1 :]
    _unwind(weight, stack.layers[i:])
    del stack.layers[i]
    _rewind(weight, later)
    _settle(weight, stack)


@torch.no_grad()
def _take_away(weight: Tensor) -> None:
    """Take the last layer away from a weight that was trained since."""
    stack: _Stack = _STACKS[weight]
    layer = stack.layers.pop()
    place, original = layer.saved.place, layer.saved.values.to(weight.device)
    now = place.gather(weight)
    layer.saved.restore(weight)
    layer.change.add_to(weight, layer.scale)
    written = place.gather(weight)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    moved = (now.to(dtype) - (written.to(dtype) - original.to(dtype))).to(weight.dtype)
    place.put(weight, torch.where(bits(now) == bits(written), original, moved))
    _settle(weight, stack)


def _settle(weight: Tensor, stack: _Stack) -> None:
    stack.version = weight._version
    if not stack.layers:
        del _STACKS[weight]
