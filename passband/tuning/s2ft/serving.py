"""Adapters of whole rows and columns in service: switched, fused, and many in one batch.

    switch    W.index_add_(dim, I, +-D): |I| m numbers are touched, whatever the size of W
    fuse      the sum; adapters with disjoint I don't disturb each other's entries
    parallel  request b with adapter b:  y_b = x_b W^T + x_b[I_b] D_b^T         (columns)
                                         y_b[R_b] += x_b D_b^T                  (rows)

    x [B, T, n], D_b [m, |I_b|] or [|R_b|, n]

>>> model = nn.Sequential(nn.Linear(4, 2))
>>> one, two = (
...     Edit({"0.weight": Block(1, torch.tensor([unit]), torch.ones(2, 1), (2, 4))})
...     for unit in (0, 3)
... )
>>> with Switcher(model, {"sums": one, "code": two}) as switcher:
...     switcher.to("code")
>>> with Parallel(model, [one, two]) as served:
...     served.requests([0, 1, None])             # the third gets the pretrained model
...     y = model(torch.randn(3, 5, 4))

Source: S2FT (arXiv 2412.06289).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from passband.errors import DataError, UnknownNameError
from passband.parts.edits import Applied, Block, Edit
from passband.parts.targets import is_transposed


@torch.no_grad()
def add_block(weight: Tensor, change: Block, sign: float = 1.0) -> None:
    """W[I] += sign D in place. In fp32 or wider; rounded weights are reverted by their saved bits:
    see `Switcher`.

    >>> weight = torch.zeros(2, 3)
    >>> add_block(weight, Block(1, torch.tensor([2]), torch.ones(2, 1), (2, 3)))
    >>> weight.tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    """
    weight.index_add_(change.dim, change.index, change.values.to(weight.dtype), alpha=sign)


def disjoint(one: Edit, other: Edit) -> bool:
    """Whether no entry of a weight is changed by both: their sum is exact then."""
    for name in one.changes.keys() & other.changes.keys():
        a, b = one.changes[name], other.changes[name]
        if not (isinstance(a, Block) and isinstance(b, Block) and a.dim == b.dim):
            return False
        if set(a.index.tolist()) & set(b.index.tolist()):
            return False
    return True


class Switcher:
    """One of several edits applied to a model at a time.

    edits  by name; they are compared with the model once, here
    Raises `CheckpointError` for an edit of another base.
    """

    def __init__(self, model: nn.Module, edits: Mapping[str, Edit]) -> None:
        self.model, self.edits = model, dict(edits)
        self._applied: Applied | None = None
        for edit in self.edits.values():
            edit.apply(model).revert()

    def to(self, name: str | None) -> None:
        """Revert what is applied, to the bit, and apply another; None: the pretrained model."""
        if name is not None and name not in self.edits:
            raise UnknownNameError("adapter", name, self.edits)
        if self._applied is not None:
            self._applied.revert()
            self._applied = None
        if name is not None:
            self._applied = self.edits[name].apply(self.model, check=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.to(None)


class Parallel:
    """Requests of one batch, each with an adapter of its own; the weights stay as they are.

    edits  of blocks (rows or columns) of linear layers
    Raises `DataError` for edits of another kind, and at a call for inputs whose first axis isn't
    the requests.
    """

    def __init__(self, model: nn.Module, edits: Sequence[Edit]) -> None:
        modules = dict(model.named_modules())
        self._chosen: list[int | None] = []
        self._banks: list[_Bank] = []
        for name in dict.fromkeys(n for edit in edits for n in edit.changes):
            changes = [edit.changes.get(name) for edit in edits]
            blocks = [c for c in changes if isinstance(c, Block)]
            layer = modules.get(name.rpartition(".")[0])
            if layer is None or len(blocks) < sum(c is not None for c in changes):
                kinds = sorted({c.kind for c in changes if c is not None})
                raise DataError(
                    f"{name} is changed by {', '.join(kinds)}",
                    expected="blocks of rows or columns of linear layers",
                    mend="apply such an edit to the model, for all requests",
                )
            for rows in (False, True):
                of = [_rows_or_columns(c, is_transposed(layer), rows) for c in changes]
                if any(b is not None for b in of):
                    self._banks.append(_Bank(name, layer, of, rows, self._chosen))

    def requests(self, adapters: Iterable[int | None]) -> None:
        """The adapter of each request of the following batches; None: none."""
        self._chosen[:] = list(adapters)

    def detach(self) -> None:
        for bank in self._banks:
            bank.hook.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


Pair = tuple[Tensor, Tensor]  # units [k], and their rows [k, n] or columns [k, m]


def _rows_or_columns(change: object, transposed: bool, rows: bool) -> Pair | None:
    if not isinstance(change, Block) or (change.dim == 0) != (rows != transposed):
        return None
    along = change.values if change.dim == 0 else change.values.T
    return change.index, along


class _Bank:
    """The blocks of one layer, padded to the largest; the last one is empty."""

    def __init__(
        self, name: str, layer: nn.Module, pairs: Sequence[Pair | None], rows: bool,
        chosen: list[int | None],
    ) -> None:
        self.name, self.rows, self.chosen = name, rows, chosen
        some = [p for p in pairs if p is not None]
        most, width = max(len(i) for i, _ in some), some[0][1].shape[1]
        self.index = torch.zeros(len(pairs) + 1, most, dtype=torch.int64)
        self.values = torch.zeros(len(pairs) + 1, most, width)
        for number, pair in enumerate(pairs):
            if pair is not None:
                self.index[number, : len(pair[0])] = pair[0]
                self.values[number, : len(pair[0])] = pair[1]
        self.hook = layer.register_forward_hook(self._add)

    def _add(self, _: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        x = args[0]
        if not self.chosen:
            return None
        if x.shape[0] != len(self.chosen) or x.ndim < 2:
            raise DataError(
                f"the input of {self.name} is {tuple(x.shape)} for {len(self.chosen)} requests",
                expected="the requests along its first axis",
                mend="call requests() with one adapter for each row of the batch",
            )
        which = torch.tensor([len(self.index) - 1 if a is None else a for a in self.chosen])
        index = self.index.to(x.device)[which]
        values = self.values.to(x.device, y.dtype)[which]
        flat, out = x.reshape(len(which), -1, x.shape[-1]), y.reshape(len(which), -1, y.shape[-1])
        spread = index[:, None].expand(-1, flat.shape[1], -1)
        if self.rows:
            more = torch.bmm(flat.to(y.dtype), values.transpose(1, 2))
            return out.scatter_add(-1, spread, more).reshape(y.shape)
        more = torch.bmm(flat.gather(-1, spread).to(y.dtype), values)
        return (out + more).reshape(y.shape)
