"""Methods that train low-rank factors beside each target layer: one handle for all of them.

    y = base(x) + c [ (x A^T * S) B^T - (x A0^T) B0^T ]

Base weights stay as they are, to the bit: "off" is a flag, a teacher needs no second model, and the
edit is a LoRA of the original weights (see `passband.parts.low_rank`).

>>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
>>> def leading(name, weight):
...     U, s, Vh = leading_triples(weight, rank=2)
...     return LowRankFactors(Vh, U * s, from_start=True)
>>> handle = FactorHandle(model, start_factors(model, ("all-linear",), 2, leading))
>>> list(handle.trained())
['0.A', '0.B', '2.A', '2.B']
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passband.data.cache import stored_tensors
from passband.errors import ConfigError, DataError
from passband.parts.edits import Change
from passband.parts.low_rank import LowRankFactors, LowRankLinear
from passband.parts.spectral import content_key, top_singular
from passband.parts.targets import find_targets, sharing, weight_of
from passband.tuning.handle import Handle

# (name of the layer, its matrix [out, in]) -> factors to begin with
Start = Callable[[str, Tensor], LowRankFactors]

LARGE = 1024  # smaller side from which a decomposition takes seconds to minutes


class FactorHandle(Handle):
    """Factors on layers of a model.

    start  factors by the name of their layer
    """

    def __init__(
        self, model: nn.Module, start: Mapping[str, LowRankFactors], **options: Any
    ) -> None:
        modules = dict(model.named_modules())
        shared = {name: sharing(model, modules[name]) for name in start}
        _refuse_tables(shared)
        super().__init__(model, **options)
        self.layers = {name: LowRankLinear.of(modules[name]) for name in start}
        self.factors = {
            name: self.layers[name].add(self.name, factors) for name, factors in start.items()
        }
        self._twins: list[LowRankLinear] = []  # layers that share a weight share its change
        for name, factors in self.factors.items():
            for other, twin in shared[name].items():
                if other != name:
                    self._twins.append(LowRankLinear.of(twin))
                    self._twins[-1].add(self.name, factors)

    def trained(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{part}": p
            for name, factors in self.factors.items() for part, p in factors.named_parameters()
        }

    def changes(self) -> dict[str, Change]:
        return {f"{name}.weight": layer.change(self.name) for name, layer in self.layers.items()}

    def extra_state(self) -> dict[str, Any]:
        """Where the factors began: a resumed run must not depend on a decomposition's rounding."""
        return {name: dict(factors.named_buffers()) for name, factors in self.factors.items()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        for name, buffers in state.items():
            for part, tensor in buffers.items():
                getattr(self.factors[name], part).copy_(tensor)

    def _switch(self, on: bool) -> None:
        for factors in self.factors.values():
            factors.enabled = on

    def _release(self) -> None:
        for layer in (*self.layers.values(), *self._twins):
            layer.detach(self.name)


def _refuse_tables(shared: Mapping[str, Mapping[str, nn.Module]]) -> None:
    """An embedding has no product that factors could be added to."""
    for name, modules in shared.items():
        for other, module in modules.items():
            if isinstance(module, nn.Embedding):
                raise DataError(
                    f"{name} shares its weight with the embedding {other}",
                    expected="targets with weights of their own",
                    mend=f"leave {name.rpartition('.')[2]!r} out of the targets",
                )


def start_factors(
    model: nn.Module, targets: tuple[str, ...], rank: int, start: Start,
    head: tuple[str, ...] | list[str] = (),
) -> dict[str, LowRankFactors]:
    """Factors for each target layer, made one after the other.

    Raises `DataError` where nothing matches, or weights are quantised or NaN, and `ConfigError`
    for a rank above a layer's.
    """
    layers = find_targets(model, targets, rank=rank, head=tuple(head))
    return {name: start(name, weight_of(layer)[0]) for name, layer in layers.items()}


def leading_triples(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], s [r], V^T [r, n] of W [m, n], in the dtype that is trained: fp32, or fp64.

    Those of large matrices are kept in the cache folder by content and rank, so that the next run
    on the same model begins at once.

    >>> U, s, Vh = leading_triples(torch.diag(torch.tensor([3.0, 5.0])).bfloat16(), rank=1)
    >>> s
    tensor([5.])
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)

    def decomposed() -> dict[str, Tensor]:
        found = top_singular(weight, rank)
        return {n: getattr(found, n).to(dtype).contiguous() for n in ("U", "s", "Vh")}

    if min(weight.shape) < LARGE:
        kept = decomposed()
    else:
        key = {"version": 1, "rank": rank, "weight": content_key(weight.detach().cpu()).hex()}
        kept = stored_tensors("singular-triples", key, decomposed)
    return kept["U"], kept["s"], kept["Vh"]


def count_factors(model: nn.Module, targets: tuple[str, ...], rank: int, per_rank: int = 0) -> int:
    """Trained scalars: rank (m + n + per_rank) for each target; works on the meta device."""
    layers = find_targets(model, targets, rank=rank)
    return sum(rank * (sum(weight_of(layer)[0].shape) + per_rank) for layer in layers.values())


def refuse_dropout(dropout: float, why: str) -> None:
    if dropout > 0:
        raise ConfigError(f"dropout = {dropout}", expected="0", mend=why)
