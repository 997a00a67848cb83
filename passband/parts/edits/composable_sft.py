"""Sparse differences as the composable-sft package writes them (`pytorch_diff.bin`).

    diffs  name -> size, index_steps [K], values [K]     differences of single entries
    abs    name -> tensor                                new values (heads)

`index_steps` are the gaps between ascending flat indices in COLUMN-major order (the first index
runs fastest): index = c0 + size0 c1 + size0 size1 c2 + ..., summed here in 64 bits.

>>> loaded = {"diffs": {"w": {"size": (2, 3), "index_steps": torch.tensor([1, 3]),
...                           "values": torch.tensor([5.0, 7.0])}}, "abs": {}}
>>> from_composable_sft(loaded).changes["w"].delta().tolist()
[[0.0, 0.0, 7.0], [5.0, 0.0, 0.0]]

Source of the format: Ansell et al. 2022, arXiv 2110.07560.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from passband.errors import CheckpointError, DataError
from passband.parts.edits.change import Change
from passband.parts.edits.dense import Replace
from passband.parts.edits.edit import Edit
from passband.parts.edits.sparse import Sparse


def from_composable_sft(loaded: Mapping[str, Any]) -> Edit:
    """The edit in such a file, without a base (the format doesn't name one).

    loaded  what `torch.load(path, weights_only=True)` gave; nothing is unpickled here
    Raises `CheckpointError` for another layout, naming the tensor.
    """
    if not isinstance(loaded, Mapping) or "diffs" not in loaded:
        keys = sorted(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise CheckpointError(
            f"no differences, but {keys}", expected="a dict with 'diffs' and 'abs'",
            mend="older files have 'body' and 'head': convert them with composable-sft",
        )
    changes: dict[str, Change] = {}
    for name, stored in loaded["diffs"].items():
        try:
            changes[name] = _sparse(stored)
        except (KeyError, TypeError, DataError) as error:
            reason = error.what if isinstance(error, DataError) else repr(error)
            raise CheckpointError(
                f"{name}: {reason}", expected="size, index_steps [K] and values [K]",
            ) from None
    for name, values in (loaded.get("abs") or {}).items():
        changes[name] = Replace(torch.as_tensor(values))
    return Edit(changes, about={"format": "composable-sft"})


def _sparse(stored: Mapping[str, Any]) -> Sparse:
    if not isinstance(stored, Mapping):
        raise DataError(f"a {type(stored).__name__}")
    size = tuple(int(n) for n in stored["size"])
    steps = torch.as_tensor(stored["index_steps"]).to(torch.int64)
    if bool((steps < 0).any()):
        raise DataError("negative steps between indices")
    index = steps.cumsum(0)
    if len(index) and int(index[-1]) >= math.prod(size):
        raise DataError(f"index {int(index[-1])} in a tensor of shape {size}")
    return Sparse(row_major(index, size), torch.as_tensor(stored["values"]), size)


def row_major(index: Tensor, size: tuple[int, ...]) -> Tensor:
    """Column-major flat indices [K], int64, as row-major ones.

    >>> row_major(torch.tensor([0, 1, 2]), (2, 3)).tolist()
    [0, 3, 1]
    """
    found, stride = torch.zeros_like(index), math.prod(size)
    for length in size:
        stride //= length
        found += (index % length) * stride
        index = index // length
    return found
