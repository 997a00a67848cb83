"""Spectrogram frames to samples in pieces, exactly as the network gives them in one pass.

    frames  [B, M, T]  ->  samples [B, T hop]

A network of convolutions gives for a piece, with enough frames around it, what it gives inside of
the whole. `around` says how many those are, before and after.

>>> net = torch.nn.ConvTranspose1d(1, 1, 8, 4, padding=2)
>>> stream = FrameStream(lambda x: net(x)[:, 0], hop=4, before=1, after=1)
>>> x = torch.randn(2, 1, 50)
>>> whole = net(x)[:, 0]
>>> bool(torch.allclose(in_pieces(stream, x, 7), whole, atol=1e-6))
True
>>> state = stream.start(batch=2)
>>> first, state = stream.push(x[..., :20], state)
>>> second, state = stream.push(x[..., 20:], state)
>>> last = stream.finish(state)
>>> bool(torch.allclose(torch.cat([first, second, last], -1), whole, atol=1e-6))
True
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from passband.errors import DataError


class Kept(NamedTuple):
    """Between two pushes: the frames still needed, and how many of them are spoken already."""

    frames: Tensor | None
    done: int
    batch: int


@dataclass(frozen=True)
class FrameStream:
    """
    network  [B, M, T] -> [B, T hop]
    hop      samples for a frame
    before, after  frames around a piece that its samples depend on; samples come `after` frames
             late
    """

    network: Callable[[Tensor], Tensor]
    hop: int
    before: int
    after: int

    def start(self, batch: int = 1) -> Kept:
        return Kept(None, 0, batch)

    def push(self, frames: Tensor, state: Kept) -> tuple[Tensor, Kept]:
        """[B, M, n] more frames -> the samples that are certain now, any number of them."""
        if frames.ndim != 3 or len(frames) != state.batch:
            raise DataError(
                f"frames of shape {tuple(frames.shape)}", expected=f"[{state.batch}, M, n]"
            )
        if state.frames is not None:
            frames = torch.cat([state.frames, frames], -1)
        ready = frames.shape[-1] - state.done - self.after
        if ready <= 0:
            return frames.new_zeros(state.batch, 0), Kept(frames, state.done, state.batch)
        end = state.done + ready
        samples = self.network(frames)[:, state.done * self.hop : end * self.hop]
        first = max(0, end - self.before)
        return samples, Kept(frames[..., first:], end - first, state.batch)

    def finish(self, state: Kept) -> Tensor:
        """The samples of the last frames; [B, 0] when there are none."""
        if state.frames is None or state.frames.shape[-1] == state.done:
            return torch.zeros(state.batch, 0)
        return self.network(state.frames)[:, state.done * self.hop :]


def in_pieces(stream: FrameStream, frames: Tensor, size: int) -> Tensor:
    """[B, M, T] -> [B, T hop], `size` frames at once: memory for one piece and the result."""
    count, pieces = frames.shape[-1], []
    for start in range(0, count, size):
        end = min(start + size, count)
        first, last = max(0, start - stream.before), min(count, end + stream.after)
        samples = stream.network(frames[..., first:last])
        pieces.append(samples[:, (start - first) * stream.hop : (end - first) * stream.hop])
    return torch.cat(pieces, -1)
