"""Sets of positions as packed bits: one bit an entry, the lowest bit first.

>>> packed = pack(torch.tensor([0, 9]), numel=10)
>>> packed.tolist(), unpack(packed, numel=10).tolist()
([1, 2], [0, 9])
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from passband.errors import CheckpointError


def pack(indices: Tensor, numel: int) -> Tensor:
    """Positions [K] in [0, numel) as bytes [ceil(numel / 8)], uint8."""
    flags = np.zeros(numel, dtype=np.uint8)
    flags[indices.cpu().numpy()] = 1
    return torch.from_numpy(np.packbits(flags, bitorder="little"))


def unpack(packed: Tensor, numel: int) -> Tensor:
    """The positions [K], int64, ascending. Raises `CheckpointError` for another length."""
    if packed.dtype != torch.uint8 or packed.numel() != (numel + 7) // 8:
        raise CheckpointError(
            f"a bit mask of {packed.numel()} {packed.dtype}",
            expected=f"{(numel + 7) // 8} bytes for {numel} entries",
        )
    flags = np.unpackbits(packed.cpu().numpy().reshape(-1), count=numel, bitorder="little")
    return torch.from_numpy(np.flatnonzero(flags))
