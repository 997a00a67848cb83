"""Selective fusion (SA): local features gated, and added to, by features of another scale.

    y = gLN(w * u) up(gate) + up(added)           u [M, S, C]; other [M, O, C]
    gate = sigmoid(gLN(w' * other)),  added = gLN(w'' * other)
    up: the nearest position below, floor(i O / S)

>>> block = Selective(8, kernel=5)
>>> block(torch.randn(3, 67, 8), torch.randn(3, 5, 8)).shape
torch.Size([3, 67, 8])

Source: arXiv 2410.01469, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passband.parts.depthwise import DepthwiseConv
from passband.parts.filtered_norm import filtered_norm, nearest
from passband.parts.global_norm import GlobalNorm


class Selective(nn.Module):
    """SA with filters of `kernel` taps: local [M, S, C], other [M, O, C] -> [M, S, C].

    >>> Selective(8, kernel=1)(torch.randn(3, 17, 8), torch.randn(3, 34, 8)).shape
    torch.Size([3, 17, 8])

    A longer `other` is taken at its nearest positions.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.local, self.gate, self.added = (Filtered(channels, kernel) for _ in range(3))

    def forward(self, local: Tensor, other: Tensor) -> Tensor:
        gate, added = torch.sigmoid(self.gate(other)), self.added(other)
        if gate.shape[1] > local.shape[1]:
            gate, added = nearest(gate, local.shape[1]), nearest(added, local.shape[1])
        found: Tensor = self.local(local, gate, added)
        return found


class Filtered(nn.Module):
    """A depthwise convolution and its norm, [M, S, C] -> [M, ceil(S / stride), C].

    >>> Filtered(8, kernel=1)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.filter = DepthwiseConv(channels, kernel, stride, bias=bias)
        self.norm = GlobalNorm(channels)

    def forward(
        self, x: Tensor, gate: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        """gate, added  [M, O, C], O <= S: the norm's output times the one, plus the other."""
        return filtered_norm(
            x, self.filter.weight, self.filter.bias, self.norm.gain, self.norm.bias,
            stride=self.filter.stride, gate=gate, added=added, eps=self.norm.eps,
        )
