"""Convolutions of a user's checkpoint: tensors from the file, what it doesn't say from beside it.

A file of weights holds no strides, groups, dilations, paddings and image sizes. They are read from
NAME.layers.json beside NAME.safetensors (or .pt, .pth), of which `layers` entries may be partial:

    {"size": 16, "layers": {"stem": {"stride": 2, "size": [32, 32]}, "blocks.3": {"groups": 64}}}

>>> from safetensors.torch import save_file
>>> save_file({"stem.weight": torch.randn(8, 3, 3, 3)}, "m.safetensors")
>>> found = read_checkpoint("m.safetensors")
>>> found.layers
{'stem': Facts(stride=1, groups=1, dilation=1, size=16, padding='circular', transposed=False)}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from passband.data.tensor_files import read_tensors
from passband.dynamics.orth_cnn.certify import LayerCertificate, certificate_of
from passband.errors import DataError, UnknownNameError

SIZE = 16  # pixels, where nothing is said
SUFFIXES = (".safetensors", ".pt", ".pth")
Whole = int | list[int]


@checked(frozen=True, config={"extra": "forbid"})
class Facts:
    """What a weight alone doesn't say; one number, or one an axis."""

    stride: Whole = 1
    groups: int = Field(1, ge=1)
    dilation: Whole = 1
    size: Whole = SIZE
    padding: str = "circular"
    transposed: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """
    weights  of every convolution by its layer's name;  layers: what is taken for granted of each
    assumed  layers of which nothing was said
    skipped  tensors with the shape of a kernel that can't be measured, with the reason
    """

    weights: dict[str, Tensor]
    layers: dict[str, Facts]
    assumed: tuple[str, ...]
    skipped: dict[str, str]

    def certificates(self) -> list[LayerCertificate]:
        return [self.certificate(name) for name in self.weights]

    def certificate(self, name: str) -> LayerCertificate:
        weight, facts = self.weights[name], self.layers[name]
        axes = weight.dim() - 2
        size = facts.size if isinstance(facts.size, list) else [facts.size] * axes
        notes = ["stride, groups and size are assumed"] if name in self.assumed else []
        circular = facts.padding == "circular" and not facts.transposed
        if not circular:
            what = "transposed" if facts.transposed else f"padding is {facts.padding!r}"
            notes.append(f"{what}: values are those of the circular layer, of which only the upper "
                         "end bounds this one where padding is by zeros")
        return certificate_of(
            weight, size, name=name, stride=facts.stride, groups=facts.groups,
            dilation=facts.dilation, valid=circular, notes=notes,
        )

    def template(self) -> dict[str, Any]:
        """What a NAME.layers.json would hold, to be corrected."""
        return {"layers": {name: dict(facts.__dict__) for name, facts in self.layers.items()}}


def read_checkpoint(path: str | Path, *, size: int = SIZE, stride: int = 1) -> Checkpoint:
    """
    size, stride  of layers of which nothing is said
    Raises `CheckpointError` for unreadable files, `DataError` for a file without convolutions, NaN
    and what doesn't fit in NAME.layers.json, `UnknownNameError` for a layer that isn't there.
    """
    path = Path(path)
    weights, skipped = _kernels(_flat(read_tensors(path)))
    if not weights:
        raise DataError(
            f"{path} holds no kernel of a convolution"
            + (f" that can be measured: {'; '.join(skipped.values())}" if skipped else ""),
            expected="tensors NAME.weight of three to five axes",
        )
    said = _beside(path.with_suffix(".layers.json"))
    for name in said["layers"]:
        if name not in weights:
            raise UnknownNameError("layer", name, weights)
    layers = {}
    for number, (name, weight) in enumerate(weights.items()):
        base = _guess(
            weight, number, size=said.get("size", size), stride=said.get("stride", stride)
        )
        layers[name] = _facts({**base.__dict__, **said["layers"].get(name, {})}, name)
        _fits(weight, layers[name], name)
    assumed = tuple(name for name in weights if name not in said["layers"])
    return Checkpoint(weights, layers, assumed, skipped)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        found: dict[str, Any] = {}
        for name, part in tree.items():
            found |= _flat(part, f"{prefix}{name}{'.' if isinstance(part, Mapping) else ''}")
        return found
    return {prefix: tree}


def _kernels(tensors: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    kernels, skipped = {}, {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not 3 <= tensor.dim() <= 5:
            continue
        if name != "weight" and not name.endswith(".weight"):
            continue
        if tensor.is_quantized or not tensor.is_floating_point():
            skipped[name] = f"{name} is of type {tensor.dtype}: convert it to real numbers"
        elif not tensor.numel():
            skipped[name] = f"{name} is empty"
        elif not torch.isfinite(tensor).all():
            raise DataError(
                f"{name} has {int((~torch.isfinite(tensor)).sum())} values that are not finite",
                expected="finite numbers", mend="take a checkpoint from before they appeared",
            )
        else:
            kernels[name.removesuffix(".weight")] = tensor
    return kernels, skipped


def _guess(weight: Tensor, number: int, *, size: Whole, stride: Whole) -> Facts:
    # One input channel to many outputs: depthwise, unless it is the stem of grey images.
    depthwise = number > 0 and weight.shape[1] == 1 and weight.shape[0] > 1
    return _facts(
        {"size": size, "stride": stride, "groups": weight.shape[0] if depthwise else 1}, "size"
    )


def _facts(values: Mapping[str, Any], name: str) -> Facts:
    try:
        return TypeAdapter(Facts).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"{name}: {'.'.join(map(str, first['loc'][:1]))} = {first['input']!r}",
            expected="stride, groups, dilation, size: whole numbers or a list of one an axis; "
            "padding: a name; transposed: true or false",
        ) from None


def _fits(weight: Tensor, facts: Facts, name: str) -> None:
    axes = weight.dim() - 2
    for field in ("stride", "dilation", "size"):
        value = getattr(facts, field)
        values = value if isinstance(value, list) else [value] * axes
        if len(values) != axes or min(values) < 1:
            raise DataError(f"{name}: {field} = {value}", expected=f"1 or more on {axes} axes")
    if weight.shape[0] % facts.groups:
        raise DataError(
            f"{name}: {weight.shape[0]} channels in {facts.groups} groups", expected="a divisor"
        )


def _beside(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"layers": {}}
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} can't be read: {error}", expected="JSON") from None
    known = {"size", "stride", "layers"}
    if not isinstance(said, dict) or not said.keys() <= known or not _is_table(said):
        raise DataError(
            f"{path} has other entries", expected='{"size": 16, "stride": 1, "layers": {"NAME": '
            '{"stride": 2, "groups": 1, "dilation": 1, "size": 16}}}',
        )
    return {"layers": {}, **said}


def _is_table(said: Mapping[str, Any]) -> bool:
    layers = said.get("layers", {})
    return isinstance(layers, dict) and all(isinstance(entry, dict) for entry in layers.values())
