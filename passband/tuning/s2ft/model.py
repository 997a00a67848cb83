"""Structured sparse fine-tuning (S2FT, NeurIPS 2024, arXiv 2412.06289).

Problem. Full fine-tuning keeps what LoRA loses outside of the tuned domain, at several times the
cost. Between the two: train few hidden units of every layer, densely.

    coupled structure   W1 (rows) -> units -> W2 (columns)       heads of attention, FFN channels
    I                   n = floor(units * ratio) of ALL layers' units, drawn at once
    trained             W2[:, I] (o, d by default); rows of W1 (v, u, q, k, gate) by choice
    y = x W^T           dW[:, I] = dy^T x_I         x_I is all that is kept of x
    edit                dW = sum_j D[:, j] e_{I_j}^T: whole columns; LoRA with B = D, A one-hot rows

    x [B, T, n], W [m, n], D [m, |I|]

    layout "gather"   x_I is gathered; the weights stay where they are
    layout "permute"  the paper's: the units of I are brought together in W1 and W2, which leaves
                      the function as it is, so that the block is one slice; put back at the end

>>> handle = S2FT(o=0.25, d=0.05).attach(byte_lm(32, 64, 2, 4))
>>> optimizer = handle.optimizer(lr=2e-3)
>>> sum(len(of.get("d", ())) for of in handle.units.values())   # 5 % of the model's 128
6
>>> factors = handle.edit().lora()              # for any runtime of LoRA
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, DataError
from passband.parts.block_linear import BlockLinear
from passband.parts.edits import Block, Change, Sparse, edited
from passband.parts.selected_tensor import Parametrisation
from passband.parts.selective import Selected
from passband.tuning.handle import Calibration, Handle
from passband.tuning.s2ft.coupling import SECOND, Coupling, Structure, find_structures
from passband.tuning.s2ft.permutation import Order, Permuted, chosen_first, verify
from passband.tuning.s2ft.selection import Strategy, Units, draw, score
from passband.tuning.s2ft.trainable import Beside, Piece, flat, joined, sorted_out

Layout = Literal["gather", "permute"]
Example = Mapping[str, Any] | Tensor


@dataclass(frozen=True)
class S2FT:
    """
    o, d, v, u, q, k, gate  share of the units of all layers that is trained, by role
    strategy         random, or ranked by weight, activation, product, gradient
    order            the largest or the smallest of these
    layout           gather or permute
    parametrisation  value: the block itself; delta: its change from 0. They differ by rounding, and
                     by what weight decay pulls to: 0, or the pretrained weight
    couplings        structures of a network that isn't recognised
    example          what such a network is called with, to verify them; else the calibration's
    avoid            units (`handle.units`) of another adapter that this one must not overlap
    targets          endings of modules that may be trained; empty: all
    """

    o: float = 0.052
    d: float = 0.02
    v: float = 0.0
    u: float = 0.0
    q: float = 0.0
    k: float = 0.0
    gate: float = 0.0
    strategy: Strategy = "random"
    order: Literal["largest", "smallest"] = "largest"
    layout: Layout = "gather"
    parametrisation: Parametrisation = "value"
    couplings: tuple[Coupling, ...] = ()
    example: Example | None = None
    avoid: Mapping[str, Mapping[str, Sequence[int]]] | None = None
    targets: tuple[str, ...] = ()

    @property
    def ratios(self) -> dict[str, float]:
        return {role: getattr(self, role) for role in ("o", "d", "v", "u", "q", "k", "gate")}

    def attach(
        self, model: nn.Module, calibration: Calibration | None = None, *,
        head: Sequence[str] = (), steps: int | None = None, seed: int = 0, name: str = "default",
    ) -> S2FTHandle:
        structures = find_structures(model, self.couplings)
        if self.couplings:
            verify(model, structures, self._example(calibration))
        units = self.select(model, structures, calibration, seed=seed)
        return S2FTHandle(
            model, structures, units, method=self, head=head, steps=steps, seed=seed, name=name
        )

    def select(
        self, model: nn.Module, structures: Sequence[Structure],
        calibration: Calibration | None = None, *, seed: int = 0,
    ) -> Units:
        """Units by structure and role. Random ones need no weights."""
        allowed = [_allowed(s, self.targets) for s in structures]
        roles = [role for role, ratio in self.ratios.items() if ratio > 0]
        scores = score(model, allowed, roles, self.strategy, calibration)
        return draw(
            allowed, self.ratios, seed=seed, scores=scores, order=self.order, avoid=self.avoid
        )

    def count(self, model: nn.Module, seed: int = 0) -> int:
        """Trained scalars; works on the meta device. With equal layers the draw does not matter."""
        structures = find_structures(model, self.couplings)
        plain = replace(self, strategy="random", avoid=None)
        return sum(
            len(p.places) * _across(model, p)
            for p in joined(pieces(structures, plain.select(model, structures, seed=seed)))
        )

    def _example(self, calibration: Calibration | None) -> Example:
        if self.example is not None:
            return self.example
        batches = (calibration or {}).get("task", ())
        if not batches:
            raise DataError(
                "couplings named by hand are verified by exchanging units, which needs an input",
                expected="what the model is called with",
                mend="S2FT(couplings=..., example=x), or calibration={'task': [batch]}",
            )
        return batches[0]  # type: ignore[no-any-return]


def _allowed(structure: Structure, targets: Sequence[str]) -> Structure:
    """The structure without the roles of modules that may not be trained."""
    if not targets:
        return structure
    parts = {
        role: part for role, part in structure.parts.items()
        if any(part.module == t or part.module.endswith("." + t) for t in targets)
    }
    return replace(structure, parts=parts)


def pieces(
    structures: Sequence[Structure], units: Units, orders: Mapping[str, Order] | None = None
) -> list[Piece]:
    """Rows and columns of the drawn units, in a model whose structures are in these orders."""
    found = []
    for structure in structures:
        for role, chosen in units.get(structure.name, {}).items():
            part, at = structure.parts[role], torch.tensor(chosen)
            if orders and structure.name in orders:
                at = torch.argsort(orders[structure.name].of(part))[at]
            found.append(Piece(part, part.table[at].flatten().sort().values))
    return found


def _across(model: nn.Module, piece: Piece) -> int:
    """Entries of one row or column."""
    module = model.get_submodule(piece.part.module)
    weight = getattr(module, piece.part.parameter.rpartition(".")[2], None)
    if isinstance(weight, Tensor):
        return int(piece.part.of(weight).shape[1 - piece.part.dim])
    return int(module.out_features if piece.part.inputs else module.in_features)  # type: ignore[arg-type]


def orders_for(structures: Sequence[Structure], units: Units) -> dict[str, Order]:
    """Orders that bring the units of each structure together: those of W2, then those of W1."""
    found = {}
    for structure in structures:
        drawn = units.get(structure.name, {})
        if not drawn:
            continue
        second = SECOND[structure.kind]
        total, group = len(structure.second.table), structure.group
        # Two sets can be slices at once: the second matrix's and that of one first matrix.
        first = next((role for role in drawn if role != second), second)
        size = total // structure.units(first)  # heads of queries to a unit of keys and values
        also = {u for unit in drawn.get(first, ()) for u in range(unit * size, (unit + 1) * size)}
        found[structure.name] = chosen_first(
            total, total // group, drawn.get(second, ()), also
        )
    return found


class S2FTHandle(Handle):
    """S2FT on a model.

    units   structure -> role -> trained units
    blocks  by parameter: blocks inside of layers
    """

    def __init__(
        self, model: nn.Module, structures: Sequence[Structure], units: Units, *, method: S2FT,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.method, self.structures, self.units = method, list(structures), units
        self.about |= {"config": _facts(method), "seed": self.seed, "units": _json(units)}
        modules = dict(model.named_modules())
        orders = orders_for(structures, units) if method.layout == "permute" else {}
        drawn = joined(pieces(structures, units, orders))
        inside, entries, beside = sorted_out(drawn, modules)
        _refuse_tied(model, inside)
        self.permuted = _permute(model, structures, orders) if orders else None
        self.selected = self._select(entries)
        self.blocks = {
            p.part.parameter: BlockLinear(
                modules[p.part.module], parametrisation=method.parametrisation,
                name=p.part.module, **{"inputs" if p.part.inputs else "outputs": p.places},
            )
            for p in inside
        }
        self.beside = {
            p.part.parameter: Beside(modules[p.part.module], p.places, inputs=p.part.inputs)
            for p in beside
        }
        self._pieces = {p.part.parameter: p for p in drawn}
        self._away: ExitStack | None = None

    def _select(self, entries: Sequence[Piece]) -> Selected | None:
        if not entries:
            return None
        shapes = {n: tuple(p.shape) for n, p in self.model.named_parameters()}
        indices: dict[str, Tensor] = {}
        for piece in entries:
            at = flat(piece, shapes[piece.part.parameter])
            before = indices.get(piece.part.parameter, at)
            indices[piece.part.parameter] = torch.cat([before, at]).unique()
        return Selected(
            self.model, indices, parametrisation=self.method.parametrisation, also=self.head
        )

    # ---- what the frame asks ---------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        return {
            **{name: block.values for name, block in self.blocks.items()},
            **(self.selected.values if self.selected else {}),
            **{name: beside.values for name, beside in self.beside.items()},
        }

    def changes(self) -> dict[str, Change]:
        """Of the model in its own order, whatever the layout."""
        found: dict[str, Change] = {n: self._home(n, b) for n, b in self.blocks.items()}
        if self.selected is not None:
            found |= {n: self._sparse(n, c) for n, c in self.selected.edit_changes().items()}
        return found | {name: beside.change() for name, beside in self.beside.items()}

    def _home(self, name: str, block: BlockLinear) -> Block:
        change = block.edit_change()
        index = change.index
        if self.permuted is not None:
            index = self.permuted.old(name, None, change.dim, index)
        return replace(change, index=index, transposed=block.transposed)

    def _sparse(self, name: str, change: Sparse) -> Change:
        """Entries as whole rows or columns again, where they are no more than that."""
        if self.permuted is not None:
            change = self._unpermuted(name, change)
        piece = self._pieces[name]
        if len(change.shape) != 2 or sum(1 for p in self._drawn() if p == name) > 1:
            return change
        dense = change.delta()
        index = change.indices // change.shape[1] if piece.part.dim == 0 else (
            change.indices % change.shape[1]
        )
        index = index.unique()
        return Block(piece.part.dim, index, dense.index_select(piece.part.dim, index), change.shape)

    def _drawn(self) -> list[str]:
        return [p.part.parameter for p in joined(pieces(self.structures, self.units))]

    def _unpermuted(self, name: str, change: Sparse) -> Sparse:
        assert self.permuted is not None
        where = list(torch.unravel_index(change.indices, change.shape))
        for (parameter, expert, dim), places in self.permuted.places.items():
            if parameter != name:
                continue
            axis = dim if expert is None else dim + 1
            here = slice(None) if expert is None else where[0] == expert
            where[axis] = where[axis].clone()
            where[axis][here] = places[where[axis][here]]
        flat_at = torch.zeros_like(where[0])
        for axis, size in enumerate(change.shape):
            flat_at = flat_at * size + where[axis]
        return Sparse(flat_at, change.values, change.shape)

    def sync(self) -> None:
        """Write the trained values into the weights now."""
        for block in self.blocks.values():
            block.sync()
        if self.selected is not None:
            self.selected.sync()

    def _after_step(self) -> None:
        # Layers may be read without a forward pass: state dicts, fused kernels.
        self.sync()

    def _switch(self, on: bool) -> None:
        if on:
            assert self._away is not None
            self._away.close()
            self._away = None
            return
        with ExitStack() as away:
            for block in self.blocks.values():
                away.enter_context(block.off())
                away.callback(_patch, block.linear, vars(block.linear).pop("forward"))
            if self.selected is not None:
                away.enter_context(self.selected.off())
            for beside in self.beside.values():
                beside.enabled = False
                away.callback(setattr, beside, "enabled", True)
            if self.permuted is not None:
                self.permuted.undo()
                away.callback(self.permuted.redo)
            self._away = away.pop_all()

    def _release(self) -> None:
        self._switch(True)  # blocks are taken out where they were put in
        for block in self.blocks.values():
            block.detach()
        if self.selected is not None:
            self.selected.detach()
        for beside in self.beside.values():
            beside.detach()
        if self.permuted is not None:
            self.permuted.undo()

    def extra_state(self) -> dict[str, Any]:
        return {"units": _json(self.units)}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if state["units"] != _json(self.units):
            raise CheckpointError(
                "the checkpoint trains other units", expected="the same selection",
                mend="attach with the seed, ratios and calibration of the run that was stopped",
            )

    @property
    def slices(self) -> dict[str, bool]:
        """Whether each block is one slice of its weight."""
        return {
            name: int(b.index[-1]) - int(b.index[0]) + 1 == len(b.index)
            for name, b in self.blocks.items()
        }


def _permute(
    model: nn.Module, structures: Sequence[Structure], orders: Mapping[str, Order]
) -> Permuted:
    if edited(model):
        raise DataError(
            f"edits are applied to {', '.join(edited(model)[:5])}",
            expected="a model whose units nobody else counts",
            mend="revert or settle them first, or layout='gather'",
        )
    return Permuted(model, structures, orders)


def _patch(linear: nn.Module, forward: Any) -> None:
    linear.forward = forward


def _refuse_tied(model: nn.Module, inside: Sequence[Piece]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for piece in inside:
        tied = next((of for of in names.values() if piece.part.parameter in of), [])
        if len(tied) > 1:
            raise DataError(
                f"{' and '.join(tied)} are one tensor", expected="weights of its own",
                mend="leave it out: S2FT(targets=...)",
            )


def _facts(method: S2FT) -> dict[str, Any]:
    """The configuration as JSON, without tensors and other adapters."""
    return {
        **method.ratios,
        "strategy": method.strategy, "order": method.order, "layout": method.layout,
        "parametrisation": method.parametrisation, "targets": list(method.targets),
        "couplings": [
            [dict(c.first), c.second, list(c.middle), c.unit] for c in method.couplings
        ],
    }


def _json(units: Units) -> dict[str, dict[str, list[int]]]:
    return {name: {role: list(of) for role, of in roles.items()} for name, roles in units.items()}
