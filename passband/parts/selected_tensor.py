"""Some entries of one weight tensor as a parameter of their own.

>>> weight = nn.Parameter(torch.zeros(3, 4))
>>> part = SelectedTensor("w", weight, torch.tensor([5, 0]))
>>> with torch.no_grad():
...     part.values.add_(1.0)
Parameter containing:
tensor([1., 1.], requires_grad=True)
>>> part.write()
>>> weight.flatten().nonzero().flatten()
tensor([0, 5])

W [any shape, numel N], its entries at flat row-major indices [k], values [k]:
    value   W.flat[indices] = values              values start as W's entries
    delta   W.flat[indices] = W0 + values         values start at 0, W0 the entries as they were
The values are at least float32 whatever W is, so that a bf16 weight is rounded once, when written.
The bits of every entry ever touched are kept: what is taken back is taken back exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError, ConfigError, DataError
from passband.parts.written import stamp

Parametrisation: TypeAlias = Literal["value", "delta"]

TRAINABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_trainable(name: str, weight: Tensor) -> None:
    """Raise `DataError`, naming the tensor, for quantised, integer, NaN or infinite weights."""
    if weight.dtype not in TRAINABLE:
        raise DataError(
            f"{name} is {_kind(weight)}", expected="float16, bfloat16, float32 or float64",
            mend="dequantise the model first, or leave this tensor out",
        )
    broken = int((~torch.isfinite(weight.detach())).sum())
    if broken:
        raise DataError(
            f"{name} has {broken} NaN or infinite of {weight.numel()} entries",
            expected="finite weights", mend="load the pretrained weights again",
        )


def check_parametrisation(parametrisation: str) -> None:
    """Raise `ConfigError` for anything but `value` and `delta`."""
    if parametrisation not in get_args(Parametrisation):
        raise ConfigError(
            f"parametrisation={parametrisation!r}", expected="'value' or 'delta'",
            mend="'value' decays towards 0 under weight decay, 'delta' towards the pretrained "
            "weight",
        )


class SelectedTensor:
    """The entries of `weight` at flat row-major `indices`, sorted, as `values`.

    weight           floating point, any shape; dense in memory (any order of its axes)
    indices          [k] distinct integers in [0, numel)
    dtype            of the values; never less precise than the weight
    parametrisation  `value` or `delta`, see the module

    Raises `DataError` for indices that are empty, repeated or out of range, and for weights that
    can't be trained.
    """

    def __init__(
        self, name: str, weight: nn.Parameter, indices: Tensor, *,
        dtype: torch.dtype = torch.float32, parametrisation: Parametrisation = "value",
    ) -> None:
        check_parametrisation(parametrisation)
        check_trainable(name, weight)
        self.name, self.weight, self.parametrisation = name, weight, parametrisation
        self._axes = _memory_order(name, weight)
        self._in_order = self._axes == tuple(range(weight.dim()))
        self.indices = self._checked(indices).sort().values
        if not self.indices.numel():
            raise DataError(
                f"no entry of {name} is selected", expected="at least one index",
                mend="leave this tensor out, or raise the budget until it gets an entry",
            )
        self.original = self._read(self.indices)
        precise = torch.promote_types(dtype, weight.dtype)
        start = self.original.to(precise, copy=True)
        self.values = nn.Parameter(torch.zeros_like(start) if self._is_delta else start)
        # Entries that were trained once and are frozen now: still part of the change.
        self.retired_indices = self.indices[:0]
        self.retired_original = self.original[:0]
        self.retired_values = self.values.detach()[:0].clone()
        self._places = self._place(self.indices)
        self._written = stamp(self.values)

    @property
    def _is_delta(self) -> bool:
        return self.parametrisation == "delta"

    @property
    def support(self) -> Tensor:
        """[K] sorted indices of all entries that may differ from the original, frozen or not."""
        return torch.cat([self.indices, self.retired_indices]).sort().values

    @property
    def pending(self) -> bool:
        """Whether the values were changed since they were last written into the weight."""
        return stamp(self.values) != self._written

    def write(self) -> None:
        """Put the values into the weight, rounded once."""
        if (self.weight.dtype, self.weight.device) != (self.original.dtype, self.original.device):
            raise DataError(
                f"{self.name} became {_kind(self.weight)} on {self.weight.device} after its "
                f"entries were selected as {_kind(self.original)} on {self.original.device}",
                expected="the type and device it had",
                mend="move the model first and select then",
            )
        with torch.no_grad():
            weights: Tensor = self.values
            if self._is_delta:
                weights = self.original.to(self.values.dtype) + self.values
            self._write(self._places, weights.to(self.weight.dtype))
        self._written = stamp(self.values)

    def collect(self, gradient: Tensor) -> None:
        """Add the dense gradient of the weight, at the entries, to the gradient of the values."""
        with torch.no_grad():
            got = self._flat(gradient).index_select(0, self._places).to(self.values.dtype)
            if self.values.grad is None:
                self.values.grad = got  # not 0 + got, which would lose the sign of -0
            else:
                self.values.grad.add_(got)

    def move(self, slots: Tensor, indices: Tensor, change: Tensor | float = 0.0) -> None:
        """Let `slots` of the values stand for other entries; the ones they leave are restored.

        slots    [n] positions in `values`
        indices  [n] flat indices, inactive ones or among those that the slots leave
        change   [n] or a number: difference from the original weight at the new entries
        """
        slots = slots.to(self.indices.device, torch.int64)
        indices = self._checked(indices)
        if slots.shape != indices.shape or _repeated(slots):
            raise DataError(
                f"{slots.numel()} slots of {self.name} for {indices.numel()} new indices",
                expected="as many distinct slots as new indices",
            )
        stays = torch.ones(len(self.indices), dtype=torch.bool, device=slots.device)
        stays[slots] = False
        taken = torch.cat([self.indices[stays], self.retired_indices])
        if (twice := indices[torch.isin(indices, taken)]).numel():
            raise DataError(
                f"{twice.numel()} new indices of {self.name} belong to other slots or to frozen "
                f"entries (the first is {int(twice[0])})",
                expected="indices outside the support, or among those that the slots leave",
            )
        self._write(self._places[slots], self.original[slots])
        self.indices = self.indices.index_copy(0, slots, indices)
        self._places = self._place(self.indices)
        fresh = self._read(indices)
        self.original = self.original.index_copy(0, slots, fresh)
        with torch.no_grad():
            start = torch.zeros_like(fresh, dtype=self.values.dtype) + change
            self.values[slots] = start if self._is_delta else start + fresh.to(start.dtype)
            if self.values.grad is not None:
                self.values.grad[slots] = 0
        self.write()

    def keep(self, mask: Tensor) -> None:
        """Go on training the entries where `mask` [k] holds; the others stay as they stand now.

        `values` stays the same object and gets shorter, with its gradient.
        """
        if mask.dtype != torch.bool or mask.shape != self.values.shape:
            raise DataError(
                f"a mask of {mask.dtype} {tuple(mask.shape)} for {self.name}",
                expected=f"torch.bool {tuple(self.values.shape)}: one for each value",
            )
        self.write()
        drop = ~mask
        values = self.values.detach()
        self.retired_indices = torch.cat([self.retired_indices, self.indices[drop]])
        self.retired_original = torch.cat([self.retired_original, self.original[drop]])
        self.retired_values = torch.cat([self.retired_values, values[drop]])
        self._resize(self.indices[mask], self.original[mask], values[mask], mask)

    def swap(self, bits: Tensor | None = None) -> Tensor:
        """Put `bits` (None: the originals) into the support and return what stood there.

        The weight's version counter doesn't move: whoever swaps puts everything back before a
        graph that saved the weight runs backward.
        """
        places = torch.cat([self._places, self._place(self.retired_indices)])
        stood = self._flat(self.weight.data).index_select(0, places)
        put = torch.cat([self.original, self.retired_original]) if bits is None else bits
        self._flat(self.weight.data).scatter_(0, places, put)
        return stood

    def restore(self) -> None:
        """Give all touched entries their original bits, for good."""
        self._write(self._places, self.original)
        self._write(self._place(self.retired_indices), self.retired_original)

    def change(self) -> tuple[Tensor, Tensor]:
        """Indices [K], sorted, and the difference [K] from the original in the values' precision.

        Raises `DataError` when a value is NaN or infinite.
        """
        values = torch.cat([self.values.detach(), self.retired_values])
        if not bool(torch.isfinite(values).all()):
            raise DataError(
                f"trained values of {self.name} are NaN or infinite", expected="finite values",
                mend="lower the learning rate, or clip the gradients",
            )
        if not self._is_delta:
            original = torch.cat([self.original, self.retired_original])
            values = values - original.to(values.dtype)
        indices, order = torch.cat([self.indices, self.retired_indices]).sort()
        return indices, values[order]

    def tensors(self) -> dict[str, Tensor]:
        """All that is needed to go on exactly here; the key of the values says what they are."""
        return {
            "indices": self.indices, "original": self.original,
            self.parametrisation: self.values.detach().clone(),
            "retired_indices": self.retired_indices, "retired_original": self.retired_original,
            f"retired_{self.parametrisation}": self.retired_values,
        }

    def check_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `CheckpointError` unless `load` can take them; the weight must be the original."""
        expected = sorted(self.tensors())
        if sorted(tensors) != expected:
            raise CheckpointError(
                f"{self.name} is saved as {', '.join(sorted(tensors))}",
                expected=", ".join(expected),
                mend="use the parametrisation it was trained with",
            )
        for part in ("", "retired_"):
            indices, original = tensors[f"{part}indices"], tensors[f"{part}original"]
            sizes = {len(tensors[f"{part}{key}"]) for key in ("indices", "original")}
            sizes.add(len(tensors[part + self.parametrisation]))
            if len(sizes) > 1:
                raise CheckpointError(f"{self.name} has {part}tensors of unequal length")
            here = self._read(self._checked(indices))
            if original.dtype != here.dtype or not _same_bits(original.to(here.device), here):
                raise CheckpointError(
                    f"{self.name} is not the weight that these entries were taken from",
                    expected="the same pretrained model", mend="load it as it was before training",
                )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors()` of a run on the same weight."""
        self.restore()
        device = self.weight.device
        at = {key: tensor.to(device) for key, tensor in tensors.items()}
        values = self.values.dtype
        self.retired_indices = at["retired_indices"].clone()
        self.retired_original = at["retired_original"].clone()
        self.retired_values = at[f"retired_{self.parametrisation}"].to(values, copy=True)
        current = at[self.parametrisation].to(values, copy=True)
        self._resize(at["indices"].clone(), at["original"].clone(), current)
        self._write(self._place(self.retired_indices), self._rounded_retired())
        self.write()

    def _rounded_retired(self) -> Tensor:
        weights = self.retired_values
        if self._is_delta:
            weights = self.retired_original.to(weights.dtype) + weights
        return weights.to(self.weight.dtype)

    def _resize(
        self, indices: Tensor, original: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> None:
        gradient = self.values.grad
        self.values.grad = None
        self.values.data = values  # the same parameter: optimisers hold it
        if gradient is not None and mask is not None:
            self.values.grad = gradient[mask]
        self.indices, self.original = indices, original
        self._places = self._place(indices)
        self._written = stamp(self.values)
        self.weight.requires_grad_(indices.numel() > 0)  # nothing to train: no gradient to compute

    def _checked(self, indices: Tensor) -> Tensor:
        whole = not (indices.is_floating_point() or indices.is_complex())
        if indices.dim() != 1 or not whole or indices.dtype == torch.bool:
            raise DataError(
                f"indices of {self.name} are {_kind(indices)} {tuple(indices.shape)}",
                expected="flat row-major integers [k]",
                mend="mask.flatten().nonzero().flatten() gives them for a mask",
            )
        indices = indices.to(self.weight.device, torch.int64)
        if not indices.numel():
            return indices
        low, high = (int(end) for end in indices.aminmax())
        if low < 0 or high >= self.weight.numel():
            raise DataError(
                f"index {low if low < 0 else high} of {self.name}",
                expected=f"0 to {self.weight.numel() - 1} for shape {tuple(self.weight.shape)}",
            )
        if _repeated(indices):
            raise DataError(f"indices of {self.name} are repeated", expected="distinct indices")
        return indices

    # Indices are row-major over the shape; places are positions in memory, other ones where the
    # weight is stored transposed (or channels last).

    def _place(self, indices: Tensor) -> Tensor:
        if self.weight.is_contiguous():
            return indices
        coordinates = torch.unravel_index(indices, self.weight.shape)
        places = torch.zeros_like(indices)
        for coordinate, stride in zip(coordinates, self.weight.stride(), strict=True):
            places += coordinate * stride
        return places

    def _flat(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return (tensor if self._in_order else tensor.permute(self._axes)).reshape(-1)

    def _read(self, indices: Tensor) -> Tensor:
        return self._flat(self.weight).index_select(0, self._place(indices))

    def _write(self, places: Tensor, bits: Tensor) -> None:
        self._flat(self.weight).scatter_(0, places, bits)


def _memory_order(name: str, weight: Tensor) -> tuple[int, ...]:
    """The axes from the slowest to the fastest in memory."""
    strides = weight.stride()
    axes = tuple(sorted(range(weight.dim()), key=lambda axis: -strides[axis]))
    if weight.layout != torch.strided or not weight.detach().permute(axes).is_contiguous():
        raise DataError(
            f"{name} is a view with strides {strides} for shape {tuple(weight.shape)}",
            expected="a tensor that owns its memory", mend="set the parameter to weight.clone()",
        )
    return axes


def _repeated(numbers: Tensor) -> bool:
    ordered = numbers.sort().values
    return bool((ordered[1:] == ordered[:-1]).any())


def _same_bits(a: Tensor, b: Tensor) -> bool:
    bits = _BITS[a.element_size()]
    return torch.equal(a.view(bits), b.view(bits))


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
