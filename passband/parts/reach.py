"""Which inputs an output of a stack of one-dimensional layers depends on.

A layer of rate u whose input i reaches the outputs u i + first to u i + last needs, for its output
n, the inputs ceil((n - last) / u) to floor((n - first) / u); a stack is followed from its end.

>>> Reach.convolution(kernel=7, padding=3).inputs(10, 10)
(7, 13)
>>> stack = Reach.chain([Reach.convolution(7, 3), Reach.transposed(kernel=16, stride=8, padding=4)])
>>> stack.inputs(0, 7)          # of the first eight outputs
(-4, 4)
>>> stack.context(hop=8)        # frames before and after the one that eight outputs belong to
(4, 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Self


@dataclass(frozen=True)
class Layer:
    """
    rate         outputs for each input
    first, last  outputs that input 0 reaches, both included
    """

    rate: int
    first: int
    last: int

    def inputs(self, low: int, high: int) -> tuple[int, int]:
        return ceil((low - self.last) / self.rate), floor((high - self.first) / self.rate)


@dataclass(frozen=True)
class Reach:
    """Layers side by side at each depth, in the order in which they are applied."""

    layers: tuple[tuple[Self | Layer, ...], ...]

    @classmethod
    def convolution(cls, kernel: int, padding: int, dilation: int = 1) -> Self:
        """Of stride 1."""
        return cls(((Layer(1, padding - dilation * (kernel - 1), padding),),))

    @classmethod
    def transposed(cls, kernel: int, stride: int, padding: int) -> Self:
        """A transposed convolution, or an overlap-add of frames of `kernel` samples."""
        return cls(((Layer(stride, -padding, kernel - 1 - padding),),))

    @classmethod
    def shift(cls, frames: int) -> Self:
        """Everything comes later by some frames."""
        return cls(((Layer(1, frames, frames),),))

    @classmethod
    def chain(cls, parts: Sequence[Self]) -> Self:
        return cls(tuple(layer for part in parts for layer in part.layers))

    @classmethod
    def widest(cls, parts: Sequence[Self]) -> Self:
        """Parts side by side on the same input."""
        return cls((tuple(parts),))

    def inputs(self, low: int, high: int) -> tuple[int, int]:
        """First and last input that the outputs low to high depend on, both included."""
        for layers in reversed(self.layers):
            ends = [layer.inputs(low, high) for layer in layers]
            low, high = min(a for a, _ in ends), max(b for _, b in ends)
        return low, high

    def context(self, hop: int) -> tuple[int, int]:
        """Inputs needed before and after those whose `hop` outputs each are wanted."""
        # Far from the edges; one period of outputs says it for all.
        low, high = self.inputs(0, hop - 1)
        return max(0, -low), max(0, high)
