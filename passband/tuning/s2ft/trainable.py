"""Three ways to train rows or columns of a matrix, by what kind of layer holds it.

    inside    nn.Linear, Conv1D: a block that lives in the weight (`parts.block_linear`)
    entries   any other floating-point tensor (experts in one stack, layers with a forward pass of
              their own): its entries, by a hook that drops the dense gradient (`parts.selective`)
    beside    quantised layers: y + x_I D^T, or y_R + x D^T, a change of its own

>>> layer = nn.Linear(4, 3)
>>> beside = Beside(layer, torch.tensor([1, 2]), inputs=True)
>>> beside.values.shape
torch.Size([3, 2])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from passband.parts.edits import Block, Change
from passband.parts.targets import is_transposed
from passband.tuning.s2ft.coupling import Part


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows or columns of one matrix that are trained.

    places  sorted positions along `part.dim`, in the model as it stands
    """

    part: Part
    places: Tensor

    @property
    def key(self) -> tuple[str, bool, int | None]:
        return self.part.parameter, self.part.inputs, self.part.expert


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """One piece for each matrix and side: fused matrices hold several roles."""
    together: dict[tuple[str, bool, int | None], list[Piece]] = {}
    for piece in pieces:
        together.setdefault(piece.key, []).append(piece)
    return [
        Piece(of[0].part, torch.cat([p.places for p in of]).unique()) for of in together.values()
    ]


def sorted_out(
    pieces: Iterable[Piece], modules: Mapping[str, nn.Module]
) -> tuple[list[Piece], list[Piece], list[Piece]]:
    """Pieces that are trained inside, by entries, beside."""
    inside, entries, beside = [], [], []
    pieces = list(pieces)
    names = [p.part.parameter for p in pieces]
    for piece in pieces:
        module = modules[piece.part.module]
        weight = getattr(module, piece.part.parameter.rpartition(".")[2], None)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            beside.append(piece)
        elif names.count(piece.part.parameter) == 1 and _plain(module):
            inside.append(piece)
        else:
            entries.append(piece)
    return inside, entries, beside


def _plain(module: nn.Module) -> bool:
    """Whether a block can live in its weight."""
    kind = type(module)
    linear = kind.forward is nn.Linear.forward and "NonDynamically" not in kind.__name__
    return linear or is_transposed(module)


def flat(piece: Piece, shape: tuple[int, ...]) -> Tensor:
    """Row-major positions of a piece's entries in its tensor, sorted."""
    chosen = torch.zeros(shape, dtype=torch.bool)
    piece.part.of(chosen).index_fill_(piece.part.dim, piece.places, True)
    return chosen.flatten().nonzero().flatten()


class Beside:
    """A change of rows or columns kept apart from the layer's weight, as quantised layers need it.

    linear  any module [..., n] -> [..., m] with `in_features` and `out_features`
    places  sorted units of its inputs or outputs
    """

    def __init__(self, linear: nn.Module, places: Tensor, *, inputs: bool) -> None:
        self.linear, self.places, self.inputs = linear, places, inputs
        m, n = int(linear.out_features), int(linear.in_features)  # type: ignore[arg-type]
        self.shape = (m, n)
        size = (m, len(places)) if inputs else (len(places), n)
        self.values = nn.Parameter(torch.zeros(size, device=_device(linear)))
        self.enabled = True
        self._hook = linear.register_forward_hook(self._add)

    def _add(self, _: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        if not self.enabled:
            return None
        x, places = args[0], self.places.to(y.device)
        seen = x.index_select(-1, places) if self.inputs else x
        more = (seen.to(self.values.dtype) @ self.values.T).to(y.dtype)
        return y + more if self.inputs else y.index_add(-1, places, more)

    def change(self) -> Change:
        values = self.values.detach().float().clone()
        return Block(int(self.inputs), self.places, values, self.shape)

    def detach(self) -> None:
        self._hook.remove()


def _device(linear: nn.Module) -> Any:
    tensors = [*linear.parameters(recurse=False), *linear.buffers(recurse=False)]
    return tensors[0].device if tensors else "cpu"
