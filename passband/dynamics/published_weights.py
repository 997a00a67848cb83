"""Published weights as the start of a residual network, by the names of torchvision and timm.

    load_published(network, "resnet50.safetensors")        # of timm/resnet50.tv_in1k, say

    conv1, bn1                          the stem
    layer{s}.{i}.conv{k}, .bn{k}        block i of stage s
    layer{s}.{i}.downsample.{0, 1}      its projection
    fc                                  the head

>>> from passband.dynamics.networks import build
>>> network = build("resnet50", (3, 224, 224), 7)
>>> names = published_names(network)
>>> names["head.weight"], names["body.4.shortcut.0.weight"]
('fc.weight', 'layer1.0.downsample.0.weight')
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from passband.dynamics.networks import LARGE, BasicBlock, Bottleneck, ResNet34
from passband.errors import CheckpointError, ConfigError

COUNTED = "num_batches_tracked"  # not every file has it, and nothing here reads it


def load_published(network: nn.Module, path: str | Path) -> None:
    """Put published weights into a network of the kind; a head of other classes stays as drawn.

    path  a safetensors file: no other kind is safe to open

    Raises `ConfigError` for a network that has no published form, `CheckpointError` for a file that
    can't be read, lacks a weight or has one of another shape.
    """
    names, found = published_names(network), _read(Path(path))
    left = sorted(found.keys() - set(names.values()))
    if left:
        raise CheckpointError(
            f"{len(left)} weights of {path} have no place, such as {left[0]}",
            expected=f"weights of a {type(network).__name__} by torchvision's names",
        )
    state = network.state_dict()
    for own, theirs in names.items():
        given, shape = found.get(theirs), state[own].shape
        other_head = theirs.startswith("fc.") and (given is None or given.shape != shape)
        if other_head or theirs.endswith(COUNTED):
            continue
        if given is None or given.shape != shape:
            raise CheckpointError(
                f"{path} has {'no' if given is None else list(given.shape)} {theirs}",
                expected=f"{list(shape)}",
                mend=f"published stems are of three colours and 64 channels, for images of {LARGE} "
                "pixels or more: see `shape` and `width`",
            )
        state[own] = given
    network.load_state_dict(state)


def published_names(network: nn.Module) -> dict[str, str]:
    """Name of each weight in `network` -> its published name; `ConfigError` where there is none."""
    if not isinstance(network, ResNet34):
        raise ConfigError(
            f"no published weights fit a {type(network).__name__}",
            expected="network='resnet34' or 'resnet50'",
        )
    blocks = [
        name for name, part in network.body.named_children()
        if isinstance(part, (BasicBlock, Bottleneck))
    ]
    theirs = [f"layer{s}.{i}" for s, depth in enumerate(network.depths, 1) for i in range(depth)]
    parts = {"body.0": "conv1", "body.1": "bn1", "head": "fc"}
    parts |= {f"body.{a}": b for a, b in zip(blocks, theirs, strict=True)}
    found = {}
    for name in network.state_dict():
        ours = next(part for part in parts if name.startswith(f"{part}."))
        inner = name.removeprefix(ours).replace("norm", "bn").replace("shortcut", "downsample")
        found[name] = parts[ours] + inner
    return found


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} can't be read: {error}", expected="a safetensors file",
            mend="download model.safetensors of timm/resnet50.tv_in1k or its like from the "
            "Hugging Face hub",
        ) from None
