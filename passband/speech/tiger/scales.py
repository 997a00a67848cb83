"""Multi-scale selective attention (MSA): a sequence seen at D resolutions and fused again.

    p = PReLU(gLN(W x))                          x [..., S, N] -> p [..., S, H]
    o_0 = gLN(DW5 p),  o_d = gLN(DW5 o_{d-1}) with stride 2        lengths S, S/2, ... S/2^(D-1)
    g = MLP(sum_d pool(o_d))                     at the coarsest length
    SA(l, g) = gLN(DW l) up(sigmoid(gLN(DW g))) + up(gLN(DW g))    three depthwise convolutions
    x_d = SA_1(o_d, g),  e = SA_5(x_{D-2}, x_{D-3}),  e = SA_5(x_d, e) for d = D-3 ... 0
    y = W' e + x

>>> block = MultiScale(channels=16, hidden=32, depth=5)
>>> block(torch.randn(3, 67, 16)).shape
torch.Size([3, 67, 16])

Channels lie last throughout: depthwise convolutions and norms are then operations on whole rows.
Source: arXiv 2410.01469, section 3.3, and the code that the released weights belong to.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.depthwise import DepthwiseConv
from passband.parts.filtered_norm import filtered_norm
from passband.parts.global_norm import GlobalNorm
from passband.speech.tiger.selective import Filtered, Selective

LONGEST = 512  # positions up to which pooling as one matrix product is the fastest way


class MultiScale(nn.Module):
    """
    >>> MultiScale(channels=8, hidden=8, depth=2)(torch.randn(2, 5, 4, 8)).shape
    torch.Size([2, 5, 4, 8])

    channels        N of input and output
    hidden          H inside
    depth           D resolutions, at least 2
    legacy_topdown  True: the way up begins with the second coarsest scale and its FINER
                    neighbour, as the released weights were trained; False: with the coarsest
    dropout         in the MLP of the coarsest scale
    """

    def __init__(
        self, channels: int, hidden: int, depth: int = 5, legacy_topdown: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if depth < 2:
            raise ConfigError(f"depth = {depth}", expected="at least 2 scales")
        self.depth, self.legacy_topdown = depth, legacy_topdown
        self.into = nn.Linear(channels, hidden)
        self.into_norm = GlobalNorm(hidden)
        self.act = nn.PReLU()
        self.down = nn.ModuleList(
            Filtered(hidden, 5, stride=1 if d == 0 else 2, bias=True) for d in range(depth)
        )
        self.mlp = Mlp(hidden, dropout)
        self.gather = nn.ModuleList(Selective(hidden, 1) for _ in range(depth))
        self.up = nn.ModuleList(Selective(hidden, 5) for _ in range(depth - 1))
        self.out = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., S, N] -> [..., S, N]."""
        flat = x.reshape(-1, *x.shape[-2:])
        norm = self.into_norm
        o = filtered_norm(
            self.into(flat), None, None, norm.gain, norm.bias, slope=self.act.weight, eps=norm.eps
        )
        scales = []
        for filtered in self.down:
            o = filtered(o)
            scales.append(o)
        coarse = scales[-1].shape[-2]
        g = self.mlp(sum((pooled(o, coarse) for o in scales[:-1]), scales[-1]))
        fused = [fusion(o, g) for fusion, o in zip(self.gather, scales, strict=True)]
        # The first partner of the way up: for two scales the finer neighbour's index wraps round.
        e = fused[self.depth - 3 if self.legacy_topdown else self.depth - 1]
        for d in range(self.depth - 2, -1, -1):
            e = self.up[d](fused[d], e)
        return x + self.out(e).view(x.shape)


class Mlp(nn.Module):
    """At the coarsest scale: 1x1, depthwise 5, ReLU, 1x1.

    >>> Mlp(8)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, channels: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.first = nn.Linear(channels, channels, bias=False)
        self.first_norm = GlobalNorm(channels)
        self.depthwise = DepthwiseConv(channels, 5)
        self.second = nn.Linear(channels, channels, bias=False)
        self.second_norm = GlobalNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.depthwise(self.first_norm(self.first(x)))))
        return self.dropout(self.second_norm(self.second(x)))


def pooled(x: Tensor, size: int) -> Tensor:
    """Means of x [M, S, C] over `size` windows that cover it: adaptive average pooling.

    >>> pooled(torch.arange(4.0).view(1, 4, 1), 2)[0, :, 0]
    tensor([0.5000, 2.5000])
    """
    if x.shape[-2] <= LONGEST:
        return torch.matmul(_windows(x.shape[-2], size, x.device, x.dtype), x)
    return F.adaptive_avg_pool1d(x.transpose(-1, -2), size).transpose(-1, -2)


@cache
def _windows(source: int, target: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Row i averages positions floor(i S / O) to ceil((i + 1) S / O)."""
    with torch.inference_mode(False):
        i = torch.arange(target, device=device)[:, None]
        j = torch.arange(source, device=device)
        inside = ((j >= i * source // target) & (j < -((i + 1) * -source // target))).to(dtype)
        return inside / inside.sum(1, keepdim=True)
