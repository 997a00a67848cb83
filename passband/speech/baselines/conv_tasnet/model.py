"""Conv-TasNet: masks in a learned basis of 1 to 2 ms frames, from stacks of dilated convolutions.

    W = ReLU(encode x)                  x [B, L] -> W [B, N, T], frames that overlap by half
    M = ReLU(mask(TCN(gLN(W))))         R times X blocks, dilations 1, 2, 4 ... 2^(X-1)
    y_k = decode(W M_k)                 overlap-add by a transposed convolution
    block: h = gLN(PReLU(DW(gLN(PReLU(A x))))),  x <- x + R h,  skip <- skip + S h

>>> ConvTasNet(filters=16, bottleneck=8, hidden=16, blocks=2, repeats=1)(torch.randn(2, 999)).shape
torch.Size([2, 2, 999])

Source: Luo and Mesgarani, IEEE/ACM TASLP 27 (2019), arXiv 1809.07454.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError


class ConvTasNet(nn.Module):
    """x [B, L] -> y [B, K, L].

    >>> sum(p.numel() for p in ConvTasNet().parameters())
    5050545

    sources     K
    filters     N, of the learned basis
    kernel      L of the paper: samples of a filter, even
    bottleneck  B, channels between the blocks and of the skip paths
    hidden      H, channels inside a block
    taps        P, of the dilated convolutions, odd
    blocks      X, in a repeat
    repeats     R
    """

    def __init__(
        self, sources: int = 2, filters: int = 512, kernel: int = 16, bottleneck: int = 128,
        hidden: int = 512, taps: int = 3, blocks: int = 8, repeats: int = 3,
    ) -> None:
        super().__init__()
        if kernel % 2 or not taps % 2:
            raise ConfigError(
                f"kernel = {kernel}, taps = {taps}", expected="an even kernel, odd taps"
            )
        self.sources, self.kernel = sources, kernel
        hop = kernel // 2
        self.encoder = nn.Conv1d(1, filters, kernel, stride=hop, bias=False)
        self.norm = global_norm(filters)
        self.into = nn.Conv1d(filters, bottleneck, 1)
        self.blocks = nn.ModuleList(
            Block(bottleneck, hidden, taps, 2**x) for _ in range(repeats) for x in range(blocks)
        )
        self.act = nn.PReLU()
        self.mask = nn.Conv1d(bottleneck, sources * filters, 1)
        self.decoder = nn.ConvTranspose1d(filters, 1, kernel, stride=hop, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[-1] == 0:
            raise DataError(f"mixtures of shape {tuple(x.shape)}", expected="[batch, samples]")
        hop, length = self.kernel // 2, x.shape[-1]
        # Half a frame in front, so that every sample is in two frames; whole frames behind.
        padded = F.pad(x, (hop, hop + -length % hop))
        basis = F.relu(self.encoder(padded[:, None]))
        y = self.into(self.norm(basis))
        skips = torch.zeros((), dtype=y.dtype, device=y.device)
        for block in self.blocks:
            y, skip = block(y)
            skips = skips + skip
        masks = F.relu(self.mask(self.act(skips)))
        masked = masks.unflatten(1, (self.sources, -1)) * basis[:, None]
        found = self.decoder(masked.flatten(0, 1)).view(x.shape[0], self.sources, -1)
        return found[..., hop : hop + length]


class Block(nn.Module):
    """One block of the TCN: y [B, C, T] -> (y, skip), both [B, C, T].

    >>> [t.shape[1] for t in Block(8, 16, taps=3, dilation=4)(torch.randn(1, 8, 20))]
    [8, 8]
    """

    def __init__(self, channels: int, hidden: int, taps: int, dilation: int) -> None:
        super().__init__()
        self.inside = nn.Sequential(
            nn.Conv1d(channels, hidden, 1), nn.PReLU(), global_norm(hidden),
            nn.Conv1d(
                hidden, hidden, taps, padding=dilation * (taps // 2), dilation=dilation,
                groups=hidden,
            ),
            nn.PReLU(), global_norm(hidden),
        )
        self.onwards = nn.Conv1d(hidden, channels, 1)
        self.skip = nn.Conv1d(hidden, channels, 1)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.inside(y)
        return y + self.onwards(h), self.skip(h)


def global_norm(channels: int) -> nn.GroupNorm:
    """gLN: statistics over channels and time, [B, C, T].

    >>> global_norm(4)(torch.randn(2, 4, 9)).shape
    torch.Size([2, 4, 9])
    """
    return nn.GroupNorm(1, channels, eps=1e-8)
