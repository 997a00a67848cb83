"""Published weights of vocoders.

>>> net = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(1, 2, 3))
>>> torch.save({"generator": net.state_dict()}, "g_02500000")
>>> sorted(read_weights("g_02500000"))[0]
'bias'

A checkpoint of HiFi-GAN's code holds {"generator": weights} with `weight_g` and `weight_v` for each
layer, which torch's weight norm takes as they are; one whose weight norm was removed before saving
has `weight` alone, which `with_norms` splits again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from passband.data.tensor_files import read_tensors
from passband.errors import CheckpointError


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, from a saved system's folder, a .safetensors file or a torch checkpoint.

    Raises `CheckpointError` for what is none of these, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "state.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"there are no weights at {path}",
            expected="a saved system's folder, a .safetensors file or a torch checkpoint",
        )
    tree = read_tensors(path)
    inner = tree.get("generator", tree) if isinstance(tree, Mapping) else None
    if not isinstance(inner, Mapping) or not all(isinstance(t, Tensor) for t in inner.values()):
        raise CheckpointError(
            f"{path} holds no weights of a generator",
            expected='tensors by name, or {"generator": tensors by name}',
            mend="discriminators (do_...) are no use here",
        )
    return with_norms(dict(inner))


def with_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights of convolutions split into length and direction, as weight norm keeps them.

    >>> split = with_norms({"ups.0.weight": torch.full((2, 1, 4), 0.5)})
    >>> split["ups.0.weight_g"].flatten()
    tensor([1., 1.])
    """
    split = {}
    for name, tensor in weights.items():
        if name.endswith(".weight") and tensor.ndim >= 3:
            rest = tuple(range(1, tensor.ndim))
            split[f"{name}_g"] = torch.linalg.vector_norm(tensor, dim=rest, keepdim=True)
            split[f"{name}_v"] = tensor
        else:
            split[name] = tensor
    return split
