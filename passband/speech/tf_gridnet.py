"""TF-GridNet: LSTMs over the bins of a frame and over the frames of a bin, attention over frames.

    Z = gLN(conv2d [Re X; Im X])                   x [B, L] -> X [B, F, T] -> Z [B, D, T, F]
    Z <- Z + deconv(BLSTM(unfold(LN(Z))))          along bins, then the same along frames
    Z <- Z + LN(PReLU(W attend(Z)))                frames attend to frames, all bins at once
    S = deconv2d Z [B, K, 2, T, F]                 spectra themselves, no masks; R blocks

>>> TFGridNet(channels=8, hidden=4, blocks=1, n_fft=64, hop_length=32, query=16)(
...     torch.randn(2, 999)).shape
torch.Size([2, 2, 999])

Source: Wang et al., TF-GridNet, IEEE/ACM TASLP 31 (2023), arXiv 2211.12433.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.signal.stft import STFT

EPS = 1e-5


class TFGridNet(nn.Module):
    """x [B, L] -> y [B, K, L].

    >>> with torch.device("meta"):
    ...     network = TFGridNet()
    >>> sum(p.numel() for p in network.parameters())
    14435602

    sources      K
    channels     D, of each time-frequency unit
    hidden       of each direction of the LSTMs
    blocks       R
    kernel, hop  bins, or frames, that enter the LSTM together, and from step to step
    heads        of the attention
    query        values of a query in all: each head has ceil(query / F) channels
    n_fft, hop_length   samples of the Hann window and between frames

    The mixture is scaled to unit standard deviation first, the estimates back.
    """

    def __init__(
        self, sources: int = 2, channels: int = 64, hidden: int = 256, blocks: int = 6,
        kernel: int = 4, hop: int = 1, heads: int = 4, query: int = 512, *, n_fft: int = 128,
        hop_length: int = 64,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ConfigError(
                f"{channels} channels for {heads} heads", expected="a multiple of the heads"
            )
        self.sources = sources
        self.stft = STFT(n_fft, hop_length, window="hann", center=True)
        bins = self.stft.bins
        self.into = nn.Conv2d(2, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels, eps=EPS)
        self.blocks = nn.ModuleList(
            GridBlock(channels, hidden, kernel, hop, heads, math.ceil(query / bins), bins)
            for _ in range(blocks)
        )
        self.out = nn.ConvTranspose2d(channels, 2 * sources, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[-1] == 0:
            raise DataError(f"mixtures of shape {tuple(x.shape)}", expected="[batch, samples]")
        level = x.std(-1, correction=0, keepdim=True) + 1e-8
        spectrum = self.stft(x / level).transpose(1, 2)  # [B, T, F]
        z = self.norm(self.into(torch.view_as_real(spectrum).movedim(-1, 1).contiguous()))
        for block in self.blocks:
            z = block(z)
        found = self.out(z).unflatten(1, (self.sources, 2)).movedim(2, -1)
        found = torch.view_as_complex(found.contiguous()).transpose(2, 3)  # [B, K, F, T]
        return self.stft.inverse(found, length=x.shape[-1]) * level[:, None]


class GridBlock(nn.Module):
    """[B, D, T, F] -> [B, D, T, F].

    >>> GridBlock(8, 4, kernel=4, hop=1, heads=2, width=3, bins=9)(torch.randn(1, 8, 6, 9)).shape
    torch.Size([1, 8, 6, 9])
    """

    def __init__(
        self, channels: int, hidden: int, kernel: int, hop: int, heads: int, width: int, bins: int
    ) -> None:
        super().__init__()
        self.over_bins = UnfoldedRNN(channels, hidden, kernel, hop)
        self.over_frames = UnfoldedRNN(channels, hidden, kernel, hop)
        self.attention = FrameAttention(channels, heads, width, bins)

    def forward(self, z: Tensor) -> Tensor:
        z = self.over_bins(z.permute(0, 2, 3, 1))  # [B, T, F, D]
        z = self.over_frames(z.transpose(1, 2))  # [B, F, T, D]
        out: Tensor = self.attention(z.permute(0, 3, 2, 1).contiguous())
        return out


class UnfoldedRNN(nn.Module):
    """A BLSTM whose steps see `kernel` neighbours: [B, A, S, D] -> [B, A, S, D], residual.

    >>> UnfoldedRNN(8, 4, kernel=4, hop=1)(torch.randn(2, 3, 10, 8)).shape
    torch.Size([2, 3, 10, 8])
    """

    def __init__(self, channels: int, hidden: int, kernel: int, hop: int) -> None:
        super().__init__()
        self.kernel, self.hop = kernel, hop
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.rnn = nn.LSTM(channels * kernel, hidden, batch_first=True, bidirectional=True)
        self.out = nn.ConvTranspose1d(2 * hidden, channels, kernel, stride=hop)

    def forward(self, z: Tensor) -> Tensor:
        length = z.shape[2]
        missing = max(0, self.kernel - length)
        missing += -(length + missing - self.kernel) % self.hop
        y = F.pad(self.norm(z), (0, 0, 0, missing)).flatten(0, 1)  # [M, S, D]
        y = y.unfold(1, self.kernel, self.hop).flatten(2)  # [M, steps, D kernel]
        y = self.out(self.rnn(y)[0].transpose(1, 2))  # [M, D, S]
        return z + y[..., :length].transpose(1, 2).reshape(z.shape)


class FrameAttention(nn.Module):
    """Frames attend to frames, [B, D, T, F] -> [B, D, T, F], residual.

    >>> FrameAttention(8, heads=2, width=3, bins=9)(torch.randn(1, 8, 6, 9)).shape
    torch.Size([1, 8, 6, 9])

    width  channels of a query in each head; a token's query is all of them at all F bins
    """

    def __init__(self, channels: int, heads: int, width: int, bins: int) -> None:
        super().__init__()
        value = channels // heads
        self.queries, self.keys, self.values, self.out = (
            nn.ModuleList(Projection(channels, size, bins) for _ in range(count))
            for size, count in ((width, heads), (width, heads), (value, heads), (channels, 1))
        )

    def forward(self, z: Tensor) -> Tensor:
        q, k, v = (
            torch.stack([project(z) for project in heads], 1).transpose(2, 3)
            for heads in (self.queries, self.keys, self.values)
        )  # [B, h, T, E, F]
        found = F.scaled_dot_product_attention(q.flatten(3), k.flatten(3), v.flatten(3))
        found = found.view(v.shape).transpose(2, 3).flatten(1, 2)  # [B, D, T, F]
        out: Tensor = z + self.out[0](found)
        return out


class Projection(nn.Module):
    """1x1 convolution, PReLU, norm over channels and bins of each frame: [B, D, T, F].

    >>> Projection(8, 3, bins=9)(torch.randn(1, 8, 6, 9)).shape
    torch.Size([1, 3, 6, 9])
    """

    def __init__(self, channels: int, outputs: int, bins: int) -> None:
        super().__init__()
        self.matrix = nn.Conv2d(channels, outputs, 1)
        self.act = nn.PReLU()
        self.gain = nn.Parameter(torch.ones(outputs, 1, bins))
        self.bias = nn.Parameter(torch.zeros(outputs, 1, bins))

    def forward(self, z: Tensor) -> Tensor:
        y = self.act(self.matrix(z))
        variance, mean = torch.var_mean(y, (1, 3), correction=0, keepdim=True)
        return (y - mean) * (variance + EPS).rsqrt() * self.gain + self.bias
