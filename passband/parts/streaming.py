"""Networks that work while the signal comes: one protocol, and how it is run and checked.

    state = start(batch);   y, state = push(x [B, C, n], state);   y = finish(state)

Everything that was given so far decides what comes out; the pieces together are what the network
gives of the whole signal at once.

>>> class Delay:                                       # y[n] = x[n - 1]
...     def start(self, batch):
...         return torch.zeros(batch, 1, 1)
...     def push(self, x, state):
...         joined = torch.cat([state, x], dim=-1)
...         return joined[..., :-1], joined[..., -1:]
...     def finish(self, state):
...         return state[..., :0]
>>> run_stream(Delay(), torch.arange(5.0)[None, None], block=2)
tensor([[[0., 0., 1., 2., 3.]]])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from passband.errors import ConfigError

State = TypeVar("State")


class Streaming(Protocol[State]):
    """What `run_stream` runs. The state is a value: pushing twice from one gives the same twice."""

    def start(self, batch: int) -> State:
        """The state before the first sample of `batch` signals."""
        ...

    def push(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x [B, ..., n], any n from 1 -> what is certain now [B, ..., m], m from 0; next state."""
        ...

    def finish(self, state: State) -> Tensor:
        """What was still held back when the signal ended, [B, ..., m]."""
        ...


def run_stream(model: Streaming[State], x: Tensor, block: int | Sequence[int]) -> Tensor:
    """Push a whole signal in blocks and join what comes out: [B, ..., L] -> [B, ..., M].

    block  samples of all blocks, or of one after the other (the last size goes on); sizes below
           1 raise `ConfigError`
    """
    state = model.start(x.shape[0])
    pieces = []
    for part in _parts(x, block):
        y, state = model.push(part, state)
        pieces.append(y)
    pieces.append(model.finish(state))
    return torch.cat(pieces, dim=-1)


def _parts(x: Tensor, block: int | Sequence[int]) -> Iterator[Tensor]:
    sizes = [block] if isinstance(block, int) else list(block)
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"blocks of {block} samples", expected="at least 1 sample each")
    start = 0
    for size in chain(sizes, repeat(sizes[-1])):
        if start >= x.shape[-1]:
            return
        yield x[..., start : start + size]
        start += size
