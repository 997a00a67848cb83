"""Whether a parameter was changed since somebody last looked.

>>> values = torch.nn.Parameter(torch.zeros(2))
>>> seen = stamp(values)
>>> optimizer = torch.optim.SGD([values], lr=1.0)
>>> values.grad = torch.ones(2)
>>> stamp(values) == seen
True
>>> optimizer.step()
>>> stamp(values) == seen
False

In-place operations count in torch's version counter, except those of fused optimisers; these are
noticed by a hook on all optimisers' steps. Only writing through `.data` by hand goes unseen.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

_STEPS = "_passband_steps"


def stamp(values: Tensor) -> tuple[int, int, int]:
    """A token that differs after any in-place operation on `values` or optimiser's step."""
    _watch_optimizers()
    if not hasattr(values, _STEPS):
        setattr(values, _STEPS, 0)
    return values._version, values.data_ptr(), getattr(values, _STEPS)


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_count_step)  # once a process; a look-up for each parameter


def _count_step(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if hasattr(parameter, _STEPS):
                setattr(parameter, _STEPS, getattr(parameter, _STEPS) + 1)
