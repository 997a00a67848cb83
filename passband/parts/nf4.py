"""Four-bit weights (NF4 with doubly quantised scales), and trained entries on top of them.

>>> packed = quantise(torch.randn(128, 64))
>>> packed.dequantise().shape, round(8 * packed.nbytes / (128 * 64), 2)       # bits an entry
(torch.Size([128, 64]), 4.13)
>>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
>>> pack(model, ["0"])                                       # the dense weight is gone
['0.weight']
>>> selected = NF4Selected(model, {"0.weight": torch.arange(5)})
>>> model(torch.randn(3, 64)).square().sum().backward()
>>> selected.values["0.weight"].grad.shape
torch.Size([5])

A block of 64 entries shares a scale s, its largest absolute value; each entry is the nearest of 16
codes times s, the codes being quantiles of the normal distribution scaled to [-1, 1]. The scales,
less their mean, are 8-bit integers with one float for each 256 of them:
    w ~ q[code] s,   s ~ mean + (coarse / 127) int8          4 + 8/64 + 32/(64 256) bits an entry
A packed layer makes its dense weight for one product at a time, forward and again backward:
    y = x (W + scatter(values))^T + b
    dx = dy (W + scatter(values)),   dvalues = (dy^T x)[indices]
so that nothing dense is kept between layers.

Source: Dettmers et al. 2023 (QLoRA), arXiv 2305.14314; trained entries: SpIEL, arXiv 2401.16405.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from passband.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PassbandWarning,
    UnknownNameError,
)
from passband.parts.sampled_product import sampled_product
from passband.parts.targets import find_targets, is_transposed

if TYPE_CHECKING:
    from passband.parts.edits import Edit, Fingerprint, Sparse

BLOCK, GROUP = 64, 256  # entries that share a scale; scales that share a float
_SCALES = ("weight_scales", "weight_coarse", "weight_mean")


# ---- numbers -------------------------------------------------------------------------------------


def codebook() -> Tensor:
    """The 16 codes, ascending: 7 negative ones, 0, 8 positive ones.

    >>> [round(code, 4) for code in codebook().tolist()][7:10]
    [0.0, 0.0796, 0.1609]
    """
    return _codebook().clone()


@cache
def _codebook() -> Tensor:
    # Quantiles halfway between those of 2^4 and of 2^4 - 2 steps; asymmetric so that 0 is a code.
    edge = 1 - (1 / 32 + 1 / 30) / 2
    positive = torch.special.ndtri(torch.linspace(edge, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(edge, 0.5, 8, dtype=torch.float64)[:-1])
    codes = torch.cat([negative, torch.zeros(1, dtype=torch.float64), positive]).sort().values
    return (codes / codes.abs().max()).float()


@dataclass(frozen=True, eq=False)
class NF4:
    """A packed tensor.

    codes   uint8, two entries a byte (the first in the high bits), filled up to whole blocks
    scales  int8 [blocks];  coarse  fp32 [blocks / 256];  mean  fp32 []
    shape, dtype  of the tensor that was packed
    """

    codes: Tensor
    scales: Tensor
    coarse: Tensor
    mean: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scales, self.coarse, self.mean)
        return sum(t.numel() * t.element_size() for t in parts)

    def dequantise(self, dtype: torch.dtype | None = None) -> Tensor:
        """The dense tensor, in its own type or another one."""
        pairs = _pairs().to(self.codes.device)[self.codes.flatten().int()]
        dense = pairs.view(-1, BLOCK).mul_(_scales(self.scales, self.coarse, self.mean)[:, None])
        return dense.flatten()[: math.prod(self.shape)].view(self.shape).to(dtype or self.dtype)


@cache
def _pairs() -> Tensor:
    """The two entries of each byte [256, 2]."""
    byte = torch.arange(256)
    return torch.stack([_codebook()[byte // 16], _codebook()[byte % 16]], 1)


def quantise(weight: Tensor) -> NF4:
    """Pack a floating-point tensor of any shape.

    Raises `DataError` for other types, empty tensors, NaN and infinity.
    """
    if not weight.is_floating_point() or not weight.numel():
        raise DataError(
            f"a tensor of {weight.dtype} {tuple(weight.shape)}", expected="floating-point weights"
        )
    with torch.no_grad():
        flat = weight.detach().float().flatten()
        fill = -len(flat) % BLOCK
        blocks = torch.cat([flat, flat.new_zeros(fill)]).view(-1, BLOCK)
        largest = blocks.abs().amax(1)
        if not bool(torch.isfinite(largest).all()):
            raise DataError("weights with NaN or infinity", expected="finite weights")
        scales, coarse, mean = _quantise_scales(largest)
        found = _scales(scales, coarse, mean)
        # A block of zeros may get the scale 0: its entries are the code 0 under any other.
        blocks = blocks / torch.where(found == 0, 1.0, found)[:, None]
        middles = (_codebook()[1:] + _codebook()[:-1]).div(2).to(blocks.device)
        codes = torch.bucketize(blocks, middles, out_int32=True).to(torch.uint8).view(-1, 2)
        packed = codes[:, 0] * 16 + codes[:, 1]
    return NF4(packed, scales, coarse, mean, tuple(weight.shape), weight.dtype)


def _quantise_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = scales.mean()
    fill = -len(scales) % GROUP
    groups = torch.cat([scales - mean, scales.new_zeros(fill)]).view(-1, GROUP)
    coarse = groups.abs().amax(1)
    steps = groups / torch.where(coarse == 0, 1.0, coarse)[:, None] * 127
    return steps.round_().to(torch.int8).flatten()[: len(scales)], coarse, mean


def _scales(scales: Tensor, coarse: Tensor, mean: Tensor) -> Tensor:
    wide = coarse.float().repeat_interleave(GROUP)[: len(scales)]
    return mean.float() + wide / 127 * scales.float()


# ---- layers --------------------------------------------------------------------------------------


class NF4Layer:
    """Packs the weight of one `nn.Linear` or GPT-2 `Conv1D`; the module stays in its place.

    The parameter `weight` becomes one of bytes, beside buffers `weight_scales`, `weight_coarse` and
    `weight_mean`, and the forward pass is patched; `unpack` takes all of that back, with the
    rounded weight. Raises `DataError` for other layers and for patched ones.
    """

    def __init__(self, layer: nn.Module, name: str = "the layer") -> None:
        plain = type(layer).forward is nn.Linear.forward and "NonDyn" not in type(layer).__name__
        self.transposed = is_transposed(layer)
        if not (plain or self.transposed):
            raise DataError(
                f"{name} is a {type(layer).__name__}", expected="nn.Linear or transformers' Conv1D"
            )
        if "forward" in layer.__dict__:
            raise DataError(
                f"the forward pass of {name} is patched already", expected="the layer's own",
                mend="detach the other method first",
            )
        self.layer, self.name = layer, name
        self.entries: NF4Entries | None = None
        weight = cast(Tensor, layer.weight)
        self.shape, self.dtype = tuple(weight.shape), weight.dtype
        for buffer in _SCALES:
            layer.register_buffer(buffer, None)
        self.put(quantise(weight))
        cast(Any, layer).forward = self._forward

    def put(self, packed: NF4) -> None:
        """Another weight of the same shape."""
        self.layer.weight = nn.Parameter(packed.codes, requires_grad=False)
        for buffer, tensor in zip(
            _SCALES, (packed.scales, packed.coarse, packed.mean), strict=True
        ):
            setattr(self.layer, buffer, tensor)

    def packed(self) -> NF4:
        codes, scales, coarse, mean = (
            cast(Tensor, getattr(self.layer, name)) for name in ("weight", *_SCALES)
        )
        return NF4(codes.data, scales, coarse, mean, self.shape, self.dtype)

    def dense(self, dtype: torch.dtype | None = None, added: bool = False) -> Tensor:
        """The weight [shape], without or with the trained entries; a new tensor."""
        weight = self.packed().dequantise()
        if added and self.entries is not None and self.entries.on:
            weight = weight.float()  # added in the values' precision, rounded once
            weight.view(-1).index_add_(0, self.entries.indices, self.entries.values.detach())
        return weight.to(dtype or self.dtype)

    def unpack(self) -> None:
        """A plain layer again; its weight is the dequantised one, in the original type."""
        if self.entries is not None:
            raise DataError(
                f"entries of {self.name} are being trained", expected="a layer without a method",
                mend="detach the method first",
            )
        dense = self.dense()
        for buffer in _SCALES:
            delattr(self.layer, buffer)
        self.layer.weight = nn.Parameter(dense, requires_grad=False)
        del self.layer.forward

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        return x @ (weight if self.transposed else weight.mT)

    def _forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        bias = cast("Tensor | None", self.layer.bias)
        values = self.entries.values if self.entries is not None and self.entries.on else None
        with torch.autocast(kind, enabled=False):
            x = x.to(dtype)
            y: Tensor = _Product.apply(x, values, self)  # type: ignore[no-untyped-call]
            return y if bias is None else y + bias.to(dtype)


class _Product(torch.autograd.Function):
    """x times a weight that is made for this product, and once more for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor | None, layer: NF4Layer) -> Tensor:  # type: ignore[override]
        # The values are saved for their version counter: a step in between would go unseen.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values)
        ctx.layer, ctx.dtype = layer, x.dtype
        return layer.product(x, layer.dense(x.dtype, added=True))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, values = ctx.saved_tensors
        layer: NF4Layer = ctx.layer
        dx = dvalues = None
        if ctx.needs_input_grad[0]:
            weight = layer.dense(ctx.dtype, added=True)
            dx = dy @ (weight.mT if layer.transposed else weight)
            del weight
        if values is not None and ctx.needs_input_grad[1]:
            entries = layer.entries
            if entries is None:
                raise DataError(f"entries of {layer.name} were detached before the backward pass")
            dvalues = entries.gradient(dy.flatten(0, -2), x.flatten(0, -2)).to(values.dtype)
        return dx, dvalues, None


def pack(model: nn.Module, endings: str | Sequence[str]) -> list[str]:
    """Pack the weights of the layers whose names have these endings; returns the weights' names.

    Raises as `find_targets`. Weights that layers share, embeddings and norms are left alone.
    """
    layers = find_targets(model, endings)
    names = dict(model.named_parameters())
    for name, layer in layers.items():
        if f"{name}.weight" not in names or _shared(model, layer):
            raise DataError(
                f"the weight of {name} is shared with another module", expected="one of its own",
                mend="leave it out of the targets",
            )
    for name, layer in layers.items():
        NF4Layer(layer, f"{name}.weight")
    return [f"{name}.weight" for name in layers]


def packed_layers(model: nn.Module) -> dict[str, NF4Layer]:
    """Packed layers of a model, by the name of their weight."""
    found = {}
    for name, module in model.named_modules():
        patch = module.__dict__.get("forward")
        if isinstance(patch, MethodType) and isinstance(patch.__self__, NF4Layer):
            found[f"{name}.weight" if name else "weight"] = patch.__self__
    return found


def unpack(model: nn.Module) -> nn.Module:
    """Plain layers again, with the rounded weights; returns the model.

    An edit that was trained on the packed model applies to this one exactly.
    """
    for layer in packed_layers(model).values():
        layer.unpack()
    return model


def fingerprint_of_packed(model: nn.Module, without: Container[str] = ()) -> Fingerprint:
    """What `fingerprint` gives of the model after `unpack`; one dense weight at a time."""
    from passband.parts.edits import fingerprint

    layers = packed_layers(model)
    left_out = {*layers, *(n for n, _ in model.named_parameters() if n in without)}
    found = fingerprint(model, without=left_out)
    for name, layer in layers.items():
        if name not in without:
            found = found | fingerprint({name: layer.dense()})
    return found


def merge_packed(model: nn.Module, edit: Edit) -> float:
    """Add an edit to packed weights and pack them again, in place; other tensors get it as it is.

    Returns the share of the change (Frobenius norm) that packing lost, and warns of it.
    Raises `DataError` for names that the model lacks.
    """
    layers = packed_layers(model)
    inside = edit.only(lambda name: name in layers)
    outside = edit.only(lambda name: name not in layers)
    if outside.changes:
        outside.apply(model, check=False)
    lost = changed = 0.0
    for name, change in inside.changes.items():
        layer = layers[name]
        before = layer.dense(torch.float32)
        delta = change.delta(before).to(before.device)
        layer.put(quantise((before + delta).to(layer.dtype)))
        lost += float((layer.dense(torch.float32) - before - delta).square().sum())
        changed += float(delta.square().sum())
    share = math.sqrt(lost / changed) if changed else 0.0
    if share > 0:
        warnings.warn(
            f"packing the merged weights to 4 bits loses {share:.0%} of the change (Frobenius "
            "norm): unpack(model) and edit.apply(model) keep all of it", PassbandWarning,
            stacklevel=2,
        )
    return share


def _shared(model: nn.Module, layer: nn.Module) -> bool:
    held = [m for m in model.modules() if any(p is layer.weight for p in m._parameters.values())]
    return len(held) > 1


# ---- trained entries -----------------------------------------------------------------------------


class NF4Entries:
    """Entries of one packed weight: values [k] that are added at flat row-major indices [k]."""

    def __init__(self, layer: NF4Layer, indices: Tensor, owner: NF4Selected) -> None:
        self.layer, self.owner, self.on = layer, owner, True
        self.indices = _checked(layer, indices).sort().values
        if not len(indices):
            raise DataError(f"no entry of {layer.name} is selected", expected="at least one index")
        self.values = nn.Parameter(torch.zeros(len(indices), device=self.indices.device))

    def gradient(self, dy: Tensor, x: Tensor) -> Tensor:
        """Of the values [k], from rows dy [B, m] and x [B, n]."""
        left, right = (x, dy) if self.layer.transposed else (dy, x)
        name, owner = self.layer.name, self.owner
        if owner.sampled is not None and owner.sampled(name):
            width = right.shape[1]
            return sampled_product(left, right, self.indices // width, self.indices % width)
        dense = left.mT @ right
        if owner.on_gradient is not None:
            owner.on_gradient(name, dense)
        return dense.view(-1).index_select(0, self.indices)


class NF4Selected:
    """Entries of packed weights in training: what `Selected` is for dense ones.

    indices      flat row-major positions [k] by name of the packed weight; values start at 0
    on_gradient  called with (name, dense gradient of the weight) in each backward pass
    sampled      (name) -> whether the gradient at the entries alone is wanted now: no dense one is
                 made then, and `on_gradient` isn't called

    Raises `UnknownNameError` for names that aren't packed weights, `DataError` for bad indices.
    """

    def __init__(
        self, model: nn.Module, indices: Mapping[str, Tensor], *,
        on_gradient: Callable[[str, Tensor], None] | None = None,
        sampled: Callable[[str], bool] | None = None,
    ) -> None:
        layers = packed_layers(model)
        for name in indices:
            if name not in layers:
                raise UnknownNameError("packed weight", name, layers)
            if layers[name].entries is not None:
                raise DataError(
                    f"entries of {name} are selected already", expected="one selection at a time",
                    mend="detach the other one first",
                )
        self.on_gradient, self.sampled = on_gradient, sampled
        self._entries = {n: NF4Entries(layers[n], at, self) for n, at in indices.items()}
        for entry in self._entries.values():
            entry.layer.entries = entry

    @property
    def values(self) -> dict[str, nn.Parameter]:
        return {name: entry.values for name, entry in self._entries.items()}

    @property
    def indices(self) -> dict[str, Tensor]:
        return {name: entry.indices for name, entry in self._entries.items()}

    def place(self, parameter: Tensor) -> tuple[Tensor, int, int] | None:
        """(indices [k], rows, columns) of the weight that values stand in; None for others."""
        for entry in self._entries.values():
            if entry.values is parameter:
                return entry.indices, *cast("tuple[int, int]", entry.layer.shape)
        return None

    def sync(self) -> None:
        """Nothing to do: the values are added in the forward pass."""

    @contextmanager
    def off(self) -> Iterator[None]:
        """The packed weights alone inside; nests. Backward passes belong on the same side."""
        stood = {name: entry.on for name, entry in self._entries.items()}
        for entry in self._entries.values():
            entry.on = False
        try:
            yield
        finally:
            for name, on in stood.items():
                self._entries[name].on = on

    def change_slots(
        self, name: str, slots: Tensor, new_indices: Tensor, new_values: Tensor | float = 0.0
    ) -> None:
        """As `Selected.change_slots`."""
        entry = self._entries[name]
        fresh = _checked(entry.layer, new_indices)
        if slots.shape != fresh.shape:
            raise ConfigError(f"{len(slots)} slots for {len(fresh)} indices", expected="as many")
        stays = torch.ones_like(entry.indices, dtype=torch.bool)
        stays[slots] = False
        if bool(torch.isin(fresh, entry.indices[stays]).any()):
            raise DataError(f"new indices of {name} belong to other slots")
        entry.indices = entry.indices.index_copy(0, slots, fresh)
        with torch.no_grad():
            entry.values[slots] = torch.zeros_like(fresh, dtype=entry.values.dtype) + new_values
            if entry.values.grad is not None:
                entry.values.grad[slots] = 0

    def edit_changes(self) -> dict[str, Sparse]:
        """The change of every weight; raises `DataError` for NaN."""
        from passband.parts.edits import Sparse

        changes = {}
        for name, entry in self._entries.items():
            values = entry.values.detach().clone()
            if not bool(torch.isfinite(values).all()):
                raise DataError(
                    f"trained values of {name} are NaN or infinite", expected="finite values",
                    mend="lower the learning rate, or clip the gradients",
                )
            changes[name] = Sparse(entry.indices, values, entry.layer.shape)
        return changes

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{name}.{part}": tensor
            for name, entry in self._entries.items()
            for part, tensor in (
                ("indices", entry.indices), ("delta", entry.values.detach().clone())
            )
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises `CheckpointError`, with nothing changed, for another selection."""
        expected = {f"{n}.{part}" for n in self._entries for part in ("indices", "delta")}
        if set(state) != expected:
            raise CheckpointError(
                f"saved entries {', '.join(sorted(set(state) ^ expected)[:5])} differ",
                expected=f"entries of {', '.join(self._entries)}",
            )
        for name, entry in self._entries.items():
            entry.indices = _checked(entry.layer, state[f"{name}.indices"]).clone()
            entry.values.data = state[f"{name}.delta"].to(entry.values, copy=True)

    def detach(self, restore: bool = True) -> None:
        """Let go of the layers: packed as they were.

        Raises `ConfigError` for restore=False: `merge_packed` says what is lost then.
        """
        if not restore:
            raise ConfigError("keeping deltas in packed weights", mend="merge_packed(model, edit)")
        for entry in self._entries.values():
            entry.layer.entries = None


def _checked(layer: NF4Layer, indices: Tensor) -> Tensor:
    device = cast(Tensor, layer.layer.weight).device
    indices = indices.to(device, torch.int64)
    numel = math.prod(layer.shape)
    wrong = indices.dim() != 1 or bool(((indices < 0) | (indices >= numel)).any())
    ordered = indices.sort().values
    if wrong or bool((ordered[1:] == ordered[:-1]).any()):
        raise DataError(
            f"indices of {layer.name}", expected=f"distinct numbers [k] from 0 to {numel - 1}"
        )
    return indices
