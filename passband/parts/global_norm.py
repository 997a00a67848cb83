"""Global layer norm over channels and positions of each sequence, channels last.

    y = (x - mean) / sqrt(var + eps) * gain + bias      x [..., S, C], mean and var over S and C

The same as `GroupNorm(1, C)` of a tensor [..., C, S], computed where the channels lie together.

>>> norm = GlobalNorm(64)
>>> norm(torch.randn(2, 100, 64)).shape
torch.Size([2, 100, 64])

Source: Luo and Mesgarani, Conv-TasNet (arXiv 1809.07454), eq. 7: gLN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passband.parts.filtered_norm import filtered_norm


class GlobalNorm(nn.Module):
    """
    >>> x = torch.randn(3, 10, 8)
    >>> same = nn.GroupNorm(1, 8, eps=1e-8)(x.transpose(1, 2)).transpose(1, 2)
    >>> bool(torch.allclose(GlobalNorm(8)(x), same, atol=1e-5))
    True

    channels  C; each has a gain, at first 1, and a bias, at first 0
    """

    def __init__(self, channels: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., S, C] -> [..., S, C]."""
        return global_norm(x, self.gain, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.gain.numel()}, eps={self.eps:g}"


def global_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-8) -> Tensor:
    """x [..., S, C], gain [C], bias [C] -> [..., S, C].

    >>> global_norm(torch.randn(2, 9, 4), torch.ones(4), torch.zeros(4)).shape
    torch.Size([2, 9, 4])

    Half precision is computed in single. Differentiable once on a CPU.
    """
    return filtered_norm(x, None, None, gain, bias, eps=eps)
