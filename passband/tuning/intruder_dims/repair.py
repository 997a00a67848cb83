"""Shrinking intruders: the causal intervention, its controls, and how far to go.

    W1 = W0 + dW = U S V^T,  J its intruders
    W(factor) = W1 + (factor - 1) sum_{j in J} s_j u_j v_j^T
factor 1 changes nothing, 0 removes the directions, above 1 amplifies them. Removing a tuned
direction also removes the part of W0 that lies in it: at factor 0 the change of the base is not
zero. It has at most |J| ranks more than the update had, so a LoRA stays one.

Controls, which the authors grant to come near: as many other leading directions drawn at random,
and the whole update, W0 + factor dW.

>>> base = {"w": torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))}
>>> edit = Edit({"w": LowRank(torch.ones(4, 1), 5 * torch.ones(1, 4))})
>>> repair = Repair(base, edit, eps=0.6)
>>> repaired = repair.edit(0.0)
>>> repaired.changes["w"].rank
2
>>> Repair(base, repaired, eps=0.6).count
0
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError
from passband.parts.edits import Change, Dense, Edit, LowRank
from passband.parts.intruders import Base, Intruders, Side, detect
from passband.tuning.intruder_dims.pairs import Weights, pairs
from passband.tuning.intruder_dims.report import Bases

Which = Literal["top", "all"]
What = Literal["intruders", "random", "update"]
FACTORS = tuple(round(0.1 * i, 1) for i in range(10))  # tried from the strongest repair on


@dataclass(frozen=True)
class Choice:
    """How far a repair went.

    tried  (factor, metric) in the order of trial; the first is factor 1
    """

    factor: float
    edit: Edit
    value: float
    reference: float  # of the edit as it was
    tried: tuple[tuple[float, float], ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "factor": self.factor, "value": self.value, "reference": self.reference,
            "tried": [list(one) for one in self.tried],
        }


class Repair:
    """The singular directions of `base` + `edit` that are intruders, ready to be scaled.

    base   a model or its tensors by name; untouched
    which  the top intruder of each matrix, or all among its k leading vectors
    names  of the matrices; None: those that the edit changes
    seed   of the random control
    Raises `DataError` where base and edit don't fit, `ConfigError` for k and eps out of range.
    """

    def __init__(
        self, base: Weights, edit: Edit, *, k: int = 10, eps: float = 0.5, which: Which = "top",
        side: Side = "left", names: Sequence[str] | None = None, seed: int = 0,
        bases: Bases | None = None,
    ) -> None:
        if which not in _WHICH:
            raise ConfigError(f"which = {which!r}", expected=f"one of {', '.join(_WHICH)}")
        made = bases or (lambda name, weight: Base(weight))
        generator = torch.Generator().manual_seed(seed)
        self.original = edit
        self._additive: dict[str, Change] = {}
        self.intruders: dict[str, _Directions] = {}
        self.others: dict[str, _Directions] = {}
        for pair in pairs(base, edit, names=names):
            found = detect(made(pair.name, pair.before), pair.after, k, eps, side=side)
            chosen = _WHICH[which](found.positions)
            if not chosen:
                continue
            rest = [j for j in range(len(found.sigma)) if j not in found.positions]
            drawn = torch.randperm(len(rest), generator=generator)[: len(chosen)]
            if not edit.changes[pair.name].additive:  # a mask and a shrunk direction: dense
                dense = pair.delta.T if pair.transposed else pair.delta
                self._additive[pair.name] = Dense(dense)
            self.intruders[pair.name] = _Directions.of(found, chosen, pair.transposed)
            self.others[pair.name] = _Directions.of(
                found, [rest[i] for i in drawn.tolist()], pair.transposed
            )

    @property
    def count(self) -> int:
        """Directions that are scaled, over all matrices."""
        return sum(one.count for one in self.intruders.values())

    def edit(self, factor: float, what: What = "intruders") -> Edit:
        """The edit after the intervention, of the same base.

        what  intruders; random: as many other leading directions; update: all of dW
        """
        if what not in _WHAT:
            raise ConfigError(f"what = {what!r}", expected=f"one of {', '.join(_WHAT)}")
        if not 0 <= factor < float("inf"):
            raise ConfigError(f"factor = {factor}", expected="0 (remove) to 1 (leave), or above")
        return self.original if factor == 1.0 else _WHAT[what](self, factor)

    def _scaled(self, directions: dict[str, _Directions], factor: float) -> Edit:
        changes: dict[str, Change] = dict(self.original.changes)
        for name, some in directions.items():
            if some.count:
                changes[name] = self._additive.get(name, changes[name]) + some.change(factor - 1.0)
        return replace(self.original, changes=changes)

    def choose(
        self, model: nn.Module, score: Callable[[nn.Module], float], tolerance: float, *,
        factors: Sequence[float] = FACTORS, better: Literal["higher", "lower"] = "higher",
        relative: bool = False, what: What = "intruders",
    ) -> Choice:
        """The smallest factor whose score is at most `tolerance` worse than that of factor 1.

        model      the pretrained model; edits are applied for each trial and reverted to the bit
        score      (adapted model) -> the task's metric on validation data
        tolerance  0 or more, in units of the score; relative: as a share of it
        factors    that are tried, in [0, 1); 1 is what remains where none of them is good enough
        """
        if tolerance < 0 or not all(0 <= f < 1 for f in factors):
            raise ConfigError(
                f"tolerance = {tolerance}, factors = {list(factors)}",
                expected="a tolerance of 0 or more, factors in [0, 1)",
            )
        sign = {"higher": 1.0, "lower": -1.0}[better]
        reference = _score(model, self.original, score, check=True)
        tried = [(1.0, reference)]
        allowed = tolerance * (abs(reference) if relative else 1.0)
        if self.count or what == "update":
            for factor in sorted(factors):
                candidate = self.edit(factor, what)
                value = _score(model, candidate, score)
                tried.append((factor, value))
                if sign * (reference - value) <= allowed:
                    return Choice(factor, candidate, value, reference, tuple(tried))
        return Choice(1.0, self.original, reference, reference, tuple(tried))


@dataclass(frozen=True)
class _Directions:
    """Some singular triples of one tuned matrix: U [m, j], s [j], Vh [j, n]."""

    U: Tensor
    s: Tensor
    Vh: Tensor
    transposed: bool

    @classmethod
    def of(cls, found: Intruders, positions: Sequence[int], transposed: bool) -> _Directions:
        chosen = list(positions)
        return cls(found.U[:, chosen], found.sigma[chosen], found.Vh[chosen], transposed)

    @property
    def count(self) -> int:
        return len(self.s)

    def change(self, scale: float) -> LowRank:
        """scale * U diag(s) Vh as a change of the stored tensor."""
        root = self.s.sqrt()
        return LowRank(
            self.U * (scale * root), root[:, None] * self.Vh, transposed=self.transposed
        )


_WHICH: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "top": lambda positions: positions[:1],
    "all": lambda positions: positions,
}
_WHAT: dict[str, Callable[[Repair, float], Edit]] = {
    "intruders": lambda repair, factor: repair._scaled(repair.intruders, factor),
    "random": lambda repair, factor: repair._scaled(repair.others, factor),
    "update": lambda repair, factor: repair.original.scaled(factor),
}


def _score(
    model: nn.Module, edit: Edit, score: Callable[[nn.Module], float], check: bool = False
) -> float:
    applied = edit.apply(model, check=check)
    try:
        value = float(score(model))
    finally:
        applied.revert()
    if value != value:
        raise DataError("the validation gave NaN", expected="a number to compare")
    return value


@dataclass(frozen=True)
class Truncated:
    """residual: ||what was cut off|| / ||dW|| of each matrix, 0 where nothing had to be."""

    edit: Edit
    residual: dict[str, float]


def truncated(edit: Edit, rank: int) -> Truncated:
    """The nearest edit whose matrices have at most this rank; those with no exact factors stay.

    >>> B, A = torch.eye(3)[:, :2], torch.diag(torch.tensor([4.0, 3.0, 1.0]))[:2]
    >>> two = Edit({"w": LowRank(B, A)})
    >>> truncated(two, rank=1).residual
    {'w': 0.6}
    """
    if rank < 1:
        raise ConfigError(f"rank = {rank}", expected="1 or more")
    changes: dict[str, Change] = dict(edit.changes)
    residual: dict[str, float] = {}
    for name, change in edit.changes.items():
        factors = change.lora()
        if factors is None or len(change.shape) != 2:
            continue
        left, right = (torch.linalg.qr(f.double()) for f in (factors[0], factors[1].T))
        U, s, Vh = torch.linalg.svd(left.R @ right.R.T)
        cut, total = float(s[rank:].square().sum()), float(s.square().sum())
        residual[name] = round((cut / total) ** 0.5, 12) if total else 0.0
        if factors[0].shape[1] > rank:
            root = s[:rank].sqrt()
            changes[name] = LowRank(
                left.Q @ U[:, :rank] * root, root[:, None] * (Vh[:rank] @ right.Q.T),
                transposed=bool(getattr(change, "transposed", False)),
            )
    return Truncated(replace(edit, changes=changes), residual)
