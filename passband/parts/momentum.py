"""A key encoder that follows a query encoder slowly, and the queue of its last outputs.

    theta_k <- m theta_k + (1 - m) theta_q        queue [K, d]: the oldest rows are replaced

>>> query = nn.Linear(4, 2)
>>> key = MomentumCopy(query, momentum=0.9)
>>> with torch.no_grad():
...     _ = query.weight.add_(1.0)
>>> key.follow(query)
>>> torch.allclose(query.weight - key.module.weight, torch.full((2, 4), 0.9))
True
>>> queue = Queue(size=6, width=2, start="warm")
>>> queue.push(torch.ones(3, 2))
>>> queue.rows().shape
torch.Size([3, 2])

Source: He et al., arXiv 1911.05722.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError


class MomentumCopy(nn.Module):
    """A copy of a module that no gradient reaches.

    momentum  m in [0, 1): of the copy's weights at each `follow`

    It moves with a training run as its `state`: `state_dict`, `load_state_dict` and `at` are what
    the loop asks for.
    """

    def __init__(self, module: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum = {momentum}", expected="a number in [0, 1)")
        self.module: Any = copy.deepcopy(module).requires_grad_(False)
        self.momentum = momentum

    @torch.no_grad()
    def follow(self, module: nn.Module) -> None:
        """One step towards a module of the same shape: one fused call for all tensors."""
        torch._foreach_lerp_(  # type: ignore[attr-defined]
            list(self.module.parameters()), [p.detach() for p in module.parameters()],
            1 - self.momentum,
        )
        for mine, theirs in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(theirs)

    def forward(self, *inputs: Any, **more: Any) -> Any:
        return self.module(*inputs, **more)

    def at(self, fraction: float) -> None:
        """Nothing depends on how far a run is."""


class Queue(nn.Module):
    """The last `size` keys, row-major so that a push is one contiguous copy.

    start  "random": Gaussian rows of length 1 until they are replaced, as published;
           "warm": rows that were never filled are left out
    seed   of the random rows

    Raises `ConfigError` for a size below 1.
    """

    keys: Tensor
    pushed: Tensor

    def __init__(
        self, size: int, width: int, start: Literal["random", "warm"] = "random", seed: int = 0
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"a queue of {size}", expected="at least 1 key")
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(size, width, generator=generator, device="cpu")
        self.register_buffer("keys", nn.functional.normalize(rows, dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))
        self.start = start

    @property
    def size(self) -> int:
        return len(self.keys)

    def rows(self) -> Tensor:
        """The negatives, [K, d]; fewer while a warm queue fills."""
        if self.start == "warm":
            return self.keys[: min(int(self.pushed), self.size)]
        return self.keys

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replace the oldest rows by keys [B, d]; `DataError` where B does not divide the size."""
        if self.size % len(keys):
            raise DataError(
                f"{len(keys)} keys for a queue of {self.size}", expected="a divisor of its size",
                mend=f"take a queue of {nearest_multiple(self.size, len(keys))}",
            )
        first = int(self.pushed) % self.size
        self.keys[first : first + len(keys)].copy_(keys)
        self.pushed += len(keys)


def nearest_multiple(size: int, of: int) -> int:
    """The multiple, at least 1 x, that is nearest to a size.

    >>> nearest_multiple(100, 64), nearest_multiple(3, 64)
    (128, 64)
    """
    return max(1, (2 * size + of) // (2 * of)) * of


