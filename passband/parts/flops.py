"""Multiply-accumulates of a module, counted on the meta device: no weights, no arithmetic.

    one multiply-accumulate (MAC) = two floating-point operations of a matrix product or convolution

>>> count_macs(nn.Linear(128, 256), torch.empty(10, 128))
327680

Norms, activations and Fourier transforms are not counted, as is the custom. A module that convolves
by other means than torch's, or norms by matrix products, says by a method `macs(inputs, output) ->
int` what has to be added.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """MACs of one call `module(*inputs)` in evaluation mode; a copy of it is counted.

    >>> with torch.device("meta"):                       # of any size
    ...     layer = nn.Conv1d(4096, 4096, 3)
    >>> count_macs(layer, torch.empty(1, 4096, 1002, device="meta"))
    50331648000
    """
    module = copy.deepcopy(module).to("meta").eval()
    hidden: list[int] = []

    def counted(part: nn.Module) -> Callable[..., None]:
        own: Callable[..., int] = part.macs  # type: ignore[assignment]

        def hook(_: nn.Module, given: Any, output: Any) -> None:
            hidden.append(own(given, output))

        return hook

    for part in module.modules():
        if callable(getattr(part, "macs", None)):
            part.register_forward_hook(counted(part))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        module(*(x.to("meta") for x in inputs))
    return counter.get_total_flops() // 2 + sum(hidden)
