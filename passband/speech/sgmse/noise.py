"""Noise that belongs to a place in a recording: wherever two windows overlap, they see the same.

>>> field = NoiseField(seed=0, bins=4)
>>> first, second = field.at([0]), field.at([30])       # windows that begin at frames 0 and 30
>>> x = torch.zeros(1, 4, 50, dtype=torch.complex64)
>>> bool((first(x)[..., 30:] == second(x)[..., :20]).all())
True

Each draw of a sampler is a field of its own; only the blocks that a window touches are ever made,
so that recordings of any length need constant memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from passband.bench.streams import sequence

BLOCK = 64  # frames that are drawn together


class NoiseField:
    """
    seed  the same seed, the same noise, whatever the windows and batches
    bins  F
    All recordings of a batch see the same field, so that a batch changes nothing.
    """

    def __init__(self, seed: int, bins: int) -> None:
        self.seed, self.bins = seed, bins

    def at(self, starts: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """The source of noise of a batch of windows: a call is a draw for x [B, F, T].

        starts  [B] first frames
        """
        draw = -1

        def noise(like: Tensor) -> Tensor:
            nonlocal draw
            draw += 1
            made = {
                start: self.window(draw, start, like.shape[-1], like.dtype) for start in set(starts)
            }
            return torch.stack([made[start] for start in starts]).to(like.device)

        return noise

    def window(self, draw: int, start: int, frames: int, dtype: torch.dtype) -> Tensor:
        """[F, frames] of one draw, from a frame on."""
        blocks = range(start // BLOCK, (start + frames - 1) // BLOCK + 1)
        whole = torch.cat([self._block(draw, number, dtype) for number in blocks], dim=-1)
        skip = start - blocks[0] * BLOCK
        return whole[:, skip : skip + frames]

    def _block(self, draw: int, number: int, dtype: torch.dtype) -> Tensor:
        state = sequence(self.seed, draw, number).generate_state(1, "uint64")[0]
        generator = torch.Generator().manual_seed(int(state) >> 1)
        return torch.randn(self.bins, BLOCK, dtype=dtype, generator=generator)
