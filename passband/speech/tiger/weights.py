"""The authors' published weights (JusperLee/TIGER-speech, TIGER-DnR) in this network's layout.

    from safetensors.torch import load_file
    network = TIGER(iterations=8)      # the configuration that they were trained in
    network.load_state_dict(from_published(load_file("model.safetensors"), network))

Their network has a norm and a convolution for each band, and three convolutions for each head of
the attention; here bands of one width, and all heads, are stacked into one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from passband.errors import CheckpointError
from passband.speech.tiger.model import TIGER, OnePerSource

SOURCES = ("music", "effect", "dialog")  # the networks of TIGER-DnR, in the order of their outputs


def from_published(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A state dict for `network` from tensors under the authors' names.

    >>> from_published({}, TIGER(channels=8, hidden=8))
    Traceback (most recent call last):
    ...
    passband.errors.CheckpointError: the tensor 'BN.0.0.weight' is missing
      expected: published weights of TIGER of 2 sources, ...

    Raises `CheckpointError` for tensors that are missing, left over or of another shape.
    """
    reader = _Reader(tensors, network)
    if isinstance(network, OnePerSource):
        state = {
            f"networks.{k}.{name}": tensor
            for k, (source, inner) in enumerate(zip(SOURCES, network.networks, strict=True))
            for name, tensor in _network(reader.under(f"{source}."), inner).items()
        }
    else:
        state = _network(reader, network)
    for name, own in network.state_dict().items():
        if state[name].shape != own.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(state[name].shape)}", expected=f"{tuple(own.shape)}",
                mend="build the network with the configuration that the weights were trained in",
            )
    left = sorted(set(tensors) - reader.used)
    if left:
        raise CheckpointError(
            f"{len(left)} tensors have no place, such as {left[0]!r}",
            expected=f"published weights of {_about(network)}",
        )
    return state


class _Reader:
    """Tensors by the authors' names; remembers which were read."""

    def __init__(
        self, tensors: Mapping[str, Tensor], network: nn.Module, prefix: str = "",
        used: set[str] | None = None,
    ) -> None:
        self.tensors, self.network, self.prefix = tensors, network, prefix
        self.used: set[str] = set() if used is None else used

    def under(self, prefix: str) -> _Reader:
        return _Reader(self.tensors, self.network, self.prefix + prefix, self.used)

    def __call__(self, name: str) -> Tensor:
        full = self.prefix + name
        if full not in self.tensors:
            raise CheckpointError(
                f"the tensor {full!r} is missing",
                expected=f"published weights of {_about(self.network)}",
            )
        self.used.add(full)
        return self.tensors[full].detach()

    def stack(self, names: str, numbers: list[int]) -> Tensor:
        return torch.stack([self(names.format(i)) for i in numbers])


def _about(network: nn.Module) -> str:
    count = sum(p.numel() for p in network.parameters())
    sources = getattr(network, "sources", "?")
    return f"{type(network).__name__} of {sources} sources, {count:,} parameters"


def _network(read: _Reader, network: TIGER) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for i, group in enumerate(network.split.groups):
        bands = group.bands.tolist()
        at = f"split.groups.{i}."
        state[at + "gain"] = read.stack("BN.{}.0.weight", bands)
        state[at + "shift"] = read.stack("BN.{}.0.bias", bands)
        state[at + "weight"] = read.stack("BN.{}.1.weight", bands)[..., 0].transpose(1, 2)
        state[at + "bias"] = read.stack("BN.{}.1.bias", bands)
    for i, group in enumerate(network.masks.groups):
        bands = group.bands.tolist()
        at, k = f"masks.groups.{i}.", network.sources
        state[at + "slope"] = read.stack("mask.{}.0.weight", bands)[:, 0]
        weight = read.stack("mask.{}.1.weight", bands)[..., 0]  # [n, 4 w K, N / K]
        state[at + "weight"] = weight.unflatten(1, (k, -1)).transpose(2, 3)
        state[at + "bias"] = read.stack("mask.{}.1.bias", bands)
    inner = read.under("separator.")
    state["separator.gain"] = inner("concat_block.0.weight").flatten()
    state["separator.bias"] = inner("concat_block.0.bias")
    state["separator.act.weight"] = inner("concat_block.1.weight")
    for own, theirs in (("over_bands", "freq_path."), ("over_frames", "frame_path.")):
        path = getattr(network.separator, own)
        for name, tensor in _path(inner.under(theirs), path).items():
            state[f"separator.{own}.{name}"] = tensor
    return state


def _path(read: _Reader, path: nn.Module) -> dict[str, Tensor]:
    state = {f"scales.{n}": t for n, t in _scales(read.under("0."), path.scales.depth).items()}
    if not isinstance(path.attention, nn.Identity):
        heads = path.attention.heads
        state |= {f"attention.{n}": t for n, t in _attention(read.under("1."), heads).items()}
    state["norm.weight"] = read("2.gamma").flatten()
    state["norm.bias"] = read("2.beta").flatten()
    return state


def _scales(read: _Reader, depth: int) -> dict[str, Tensor]:
    state = {
        "into.weight": read("proj_1x1.conv.weight")[..., 0],
        "into.bias": read("proj_1x1.conv.bias"),
        **_norm("into_norm", read, "proj_1x1.norm"),
        "act.weight": read("proj_1x1.act.weight"),
        "out.weight": read("res_conv.weight")[..., 0],
        "out.bias": read("res_conv.bias"),
        "mlp.first.weight": read("globalatt.fc1.conv.weight")[..., 0],
        **_norm("mlp.first_norm", read, "globalatt.fc1.norm"),
        "mlp.depthwise.weight": _taps(read("globalatt.dwconv.weight")),
        "mlp.depthwise.bias": read("globalatt.dwconv.bias"),
        "mlp.second.weight": read("globalatt.fc2.conv.weight")[..., 0],
        **_norm("mlp.second_norm", read, "globalatt.fc2.norm"),
    }
    for d in range(depth):
        state[f"down.{d}.filter.weight"] = _taps(read(f"spp_dw.{d}.conv.weight"))
        state[f"down.{d}.filter.bias"] = read(f"spp_dw.{d}.conv.bias")
        state |= _norm(f"down.{d}.norm", read, f"spp_dw.{d}.norm")
    modules = [(f"gather.{d}", f"loc_glo_fus.{d}") for d in range(depth)]
    modules += [(f"up.{d}", f"last_layer.{d}") for d in range(depth - 1)]
    names = (("local", "local_embedding"), ("gate", "global_act"), ("added", "global_embedding"))
    for own, theirs in modules:
        for mine, other in names:
            weight = read(f"{theirs}.{other}.conv.weight")
            state[f"{own}.{mine}.filter.weight"] = _taps(weight)
            state |= _norm(f"{own}.{mine}.norm", read, f"{theirs}.{other}.norm")
    return state


def _taps(weight: Tensor) -> Tensor:
    """[C, 1, k] -> [k, C]."""
    return weight[:, 0].t()


def _norm(own: str, read: _Reader, theirs: str) -> dict[str, Tensor]:
    return {f"{own}.gain": read(f"{theirs}.weight"), f"{own}.bias": read(f"{theirs}.bias")}


def _attention(read: _Reader, heads: int) -> dict[str, Tensor]:
    kinds, numbers = ("Queries", "Keys", "Values"), list(range(heads))
    state = {
        "project.weight": torch.cat(
            [read.stack(f"{k}.{{}}.conv.weight", numbers).flatten(0, 1)[..., 0, 0] for k in kinds]
        ),
        "project.bias": torch.cat(
            [read.stack(f"{k}.{{}}.conv.bias", numbers).flatten() for k in kinds]
        ),
        "slopes": torch.stack(
            [read.stack(f"{k}.{{}}.act.weight", numbers)[:, 0] for k in kinds]
        ),
        "out.weight": read("attn_concat_proj.conv.weight")[..., 0, 0],
        "out.bias": read("attn_concat_proj.conv.bias"),
        "act.weight": read("attn_concat_proj.act.weight"),
        "norm.weight": read("attn_concat_proj.norm.gamma").flatten(),
        "norm.bias": read("attn_concat_proj.norm.beta").flatten(),
    }
    for i, kind in enumerate(kinds):
        state[f"norms.{i}.gain"] = read.stack(f"{kind}.{{}}.norm.gamma", numbers).flatten(1)
        state[f"norms.{i}.bias"] = read.stack(f"{kind}.{{}}.norm.beta", numbers).flatten(1)
    return state
