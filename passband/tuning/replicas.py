"""Means over data-parallel replicas.

>>> average(torch.tensor([1.0, 2.0]))            # one process: as it is
tensor([1., 2.])
"""

from __future__ import annotations

import torch
from torch import Tensor


def replicas() -> int:
    """Processes of `torch.distributed`; 1 without it."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if ready else 1


def average(tensor: Tensor) -> Tensor:
    """The mean over all processes, in place; the tensor itself where there is one.

    Every process has to call it, in the same order and with the same shape.
    """
    count = replicas()
    if count > 1:
        torch.distributed.all_reduce(tensor)
        tensor.div_(count)
    return tensor
