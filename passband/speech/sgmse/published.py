"""Weights that were published for the method, under the names of our networks.

>>> network = NCSNpp(bins=16, width=8, multipliers=(1, 1), blocks=1, attention=(8,))
>>> theirs = {name: torch.zeros(1) for name in ("output_layer.weight",)}
>>> from_published(theirs, network)
Traceback (most recent call last):
...
passband.errors.CheckpointError: the weights lack 'all_modules.0.W'
  expected: the state of an NCSN++ of the same sizes, names without 'dnn.'

A checkpoint of the training code holds pickled objects besides its weights, which are never opened
here: save `checkpoint["state_dict"]` as safetensors once, with the averaged weights put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError
from passband.parts.ncsnpp import Attention, Head, NCSNpp, ResBlock


def from_published(theirs: Mapping[str, Tensor], network: NCSNpp) -> dict[str, Tensor]:
    """The published state of `ncsnpp`, `ncsnpp_48k` or `ncsnpp_v2` -> one for `load_state_dict`.

    Raises `CheckpointError` when a weight is missing, left over or of another shape.
    """
    source = _Source(theirs)
    ours: dict[str, Tensor] = {}
    names = {module: name for name, module in network.named_modules()}

    def plain(layer: nn.Module, place: str) -> None:
        for kind in ("weight", "bias"):
            ours[f"{names[layer]}.{kind}"] = source.take(f"{place}.{kind}")

    shifts: list[tuple[Tensor, Tensor]] = []
    for module, i in zip(_in_their_order(network), range(10_000), strict=False):
        place = f"all_modules.{i}"
        if isinstance(module, ResBlock):
            plain(module.norm1, f"{place}.GroupNorm_0")
            plain(module.conv1, f"{place}.Conv_0")
            plain(module.norm2, f"{place}.GroupNorm_1")
            plain(module.conv2, f"{place}.Conv_1")
            if module.shortcut is not None:
                plain(module.shortcut, f"{place}.Conv_2")
            dense = [source.take(f"{place}.Dense_0.{kind}") for kind in ("weight", "bias")]
            shifts.append((dense[0], dense[1]))
        elif isinstance(module, Attention):
            plain(module.norm, f"{place}.GroupNorm_0")
            layers = [
                (source.take(f"{place}.NIN_{n}.W").T, source.take(f"{place}.NIN_{n}.b"))
                for n in range(4)
            ]
            name = names[module]
            ours[f"{name}.qkv.weight"] = torch.cat([w for w, _ in layers[:3]])
            ours[f"{name}.qkv.bias"] = torch.cat([b for _, b in layers[:3]])
            ours[f"{name}.out.weight"], ours[f"{name}.out.bias"] = layers[3]
        elif isinstance(module, nn.Parameter):
            ours["time.frequencies"] = source.take(f"{place}.W")
        else:
            # The layer of an input pyramid lies one level deeper there.
            deeper = f"{place}.Conv_0"
            plain(module, deeper if f"{deeper}.weight" in theirs else place)
    plain(network.output, "output_layer")
    ours["shifts.weight"] = torch.cat([weight for weight, _ in shifts])
    ours["shifts.bias"] = torch.cat([bias for _, bias in shifts])
    source.finish()
    for name, tensor in network.state_dict().items():
        if ours[name].shape != tensor.shape:
            raise CheckpointError(
                f"published weights for {name!r} have the shape {tuple(ours[name].shape)}",
                expected=f"{tuple(tensor.shape)}", mend="build the network in the published sizes",
            )
    return ours


def _in_their_order(network: NCSNpp) -> Iterator[nn.Module | nn.Parameter]:
    assert network.time is not None
    yield network.time.frequencies
    yield from (network.time.inner, network.time.outer, network.first)
    for level in network.down:
        for i, block in enumerate(level.blocks):
            yield block
            yield from level.attend[i : i + 1]
        yield from _present(level.resample, level.merge)
    yield from network.middle
    for level in network.up:
        yield from level.blocks
        yield from level.attend
        yield from _split(level.head)
        yield from _present(level.resample)
    yield from _split(network.last)


def _present(*modules: nn.Module | None) -> Iterator[nn.Module]:
    return (m for m in modules if m is not None)


def _split(head: Head | None) -> Iterator[nn.Module]:
    return iter(()) if head is None else iter((head.norm, head.conv))


class _Source:
    """Hands out weights by name, each once."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.rest = dict(weights)

    def take(self, name: str) -> Tensor:
        if name not in self.rest:
            raise CheckpointError(
                f"the weights lack {name!r}",
                expected="the state of an NCSN++ of the same sizes, names without 'dnn.'",
            )
        return self.rest.pop(name)

    def finish(self) -> None:
        if self.rest:
            raise CheckpointError(
                f"{len(self.rest)} weights are left over, such as {sorted(self.rest)[0]!r}",
                expected="the network's own sizes", mend="more levels, blocks or attention?",
            )
