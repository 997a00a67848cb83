"""Which layers of a network have the weight that a method acts on: linear and convolutional ones.

>>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
>>> list(weighted_layers(model)), list(weighted_layers(model, last=False))
(['0', '3'], ['0'])
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from passband.errors import ConfigError, DataError

KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Bilinear, _ConvNd)
TABLES: tuple[type[nn.Module], ...] = (nn.Embedding, nn.EmbeddingBag)
NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def weighted_layers(
    module: nn.Module, include: Sequence[str] = (), exclude: Sequence[str] = (), *,
    first: bool = True, last: bool = True, embeddings: bool = False,
) -> dict[str, nn.Module]:
    """Layers by name, in the module's order, each with a `weight` that can be worked on.

    include      patterns of names such as "body.*"; () takes every linear and convolutional layer.
                 A layer named here may be of any kind but a normalisation
    exclude      patterns of names to leave out
    first, last  False leaves that one of the found layers out
    embeddings   also take embedding tables

    Raises ConfigError for a pattern that matches nothing and when nothing is left, DataError for
    a layer without a weight, one not materialised yet, a quantised one, and NaN.

    >>> weighted_layers(nn.Sequential(nn.ReLU()), include=["0"])
    Traceback (most recent call last):
    ...
    passband.errors.DataError: '0' is a ReLU without a weight
      expected: layers with a tensor `weight`
      to mend:  name the layers inside of it
    """
    named = {
        name: part for name, part in module.named_modules()
        if "parametrizations" not in name.split(".")
    }
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(
                f"no layer matches {pattern!r}", expected="names as in module.named_modules()",
                mend=f"there are {', '.join(repr(n) for n in list(named)[:8])}, ...",
            )
    kinds = (*KINDS, *TABLES) if embeddings else KINDS
    found = {
        name: part for name, part in named.items()
        if (_matches(name, include) if include else isinstance(part, kinds))
        and not _matches(name, exclude)
    }
    for name, part in found.items():
        check_weight(name, part)
    names = list(found)[0 if first else 1 : None if last else -1]
    if not names:
        raise ConfigError(
            f"no layers to work on in a {type(module).__name__}",
            expected="linear or convolutional layers that are not left out",
            mend="name others in `include`; attention's in_proj_weight, recurrent weights and "
            "other tensors take the parametrization by "
            "torch.nn.utils.parametrize.register_parametrization",
        )
    return {name: found[name] for name in names}


def check_weight(name: str, layer: nn.Module) -> None:
    """Raise DataError unless the layer has a floating-point `weight` of finite numbers."""
    label = f"{name!r} is a {type(layer).__name__}"
    if isinstance(layer, NORMS):
        raise DataError(
            f"{label}: its weight is a gain", expected="layers with a matrix or kernels",
            mend="leave normalisations out",
        )
    weight = getattr(layer, "weight", None)
    if weight is None:
        raise DataError(
            f"{label} without a weight", expected="layers with a tensor `weight`",
            mend="name the layers inside of it",
        )
    if is_lazy(weight):
        raise DataError(
            f"{label} that has no shape yet", expected="a materialised layer",
            mend="pass one batch through the model first",
        )
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.is_quantized:
        raise DataError(
            f"{label} with a quantised weight", expected="a floating-point weight",
            mend="train first, quantise afterwards",
        )
    if not weight.is_meta:
        broken = int((~torch.isfinite(weight)).sum())
        if broken:
            raise DataError(
                f"{label} with {broken} weights that are not finite", expected="finite weights",
                mend="initialise again, or load another checkpoint",
            )


def typical_size(weight: Tensor) -> float:
    """Standard deviation of a weight; of torch's default initialisation where it is 0 or unknown.

    >>> round(typical_size(torch.zeros(5, 12)), 4)                   # 1 / sqrt(3 * 12)
    0.1667
    """
    if not weight.is_meta and weight.numel() > 1:
        found = float(weight.detach().float().std())
        if found > 0:
            return found
    fan_in = weight[0].numel() if weight.dim() > 1 else weight.numel()
    return float((3 * max(1, fan_in)) ** -0.5)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
