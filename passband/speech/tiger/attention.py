"""Full-frequency-frame attention (F3A): bands attend to bands over all frames, frames to frames.

    q, k: LN(PReLU(W x)), E values a head;  v: N / h values      x [B, A, S, N], tokens along S
    weights = softmax(q k' / sqrt(E A))    features of a token: all its channels at all A positions
    y = x + LN(PReLU(W' heads))

>>> attention = FullAttention(channels=16, heads=4, width=4)
>>> attention(torch.randn(2, 50, 67, 16)).shape      # 67 bands attend to each other over 50 frames
torch.Size([2, 50, 67, 16])

The three projections of all heads are one matrix. Source: arXiv 2410.01469, section 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from passband.errors import ConfigError

EPS = 1e-5  # of the norms
WIDE = 16  # channels of a head from which torch's own layer norm is faster
SCORES = 1 << 25  # most attention weights held at once: 128 MB; longer sequences take turns


class FullAttention(nn.Module):
    """
    >>> FullAttention(channels=8, heads=2, width=4)(torch.randn(1, 3, 5, 8)).shape
    torch.Size([1, 3, 5, 8])

    channels  N, a multiple of the heads
    heads     h
    width     E: channels of queries and keys of each head
    """

    def __init__(self, channels: int, heads: int = 4, width: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ConfigError(
                f"{channels} channels for {heads} heads", expected="a multiple of the heads",
                mend=f"channels = {-(-channels // heads) * heads}",
            )
        self.heads, self.width, value = heads, width, channels // heads
        self.sizes = (heads * width, heads * width, channels)
        self.project = nn.Linear(channels, sum(self.sizes))
        self.slopes = nn.Parameter(torch.full((3, heads), 0.25))  # of queries, keys, values
        self.norms = nn.ModuleList(HeadNorm(heads, size) for size in (width, width, value))
        self.out = nn.Linear(channels, channels)
        self.act = nn.PReLU()
        self.norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, A, S, N] -> [B, A, S, N]; A positions, S tokens."""
        counts = torch.tensor([size // self.heads for size in self.sizes], device="cpu")
        counts = counts.repeat_interleave(self.heads).to(x.device)
        slopes = self.slopes.flatten().repeat_interleave(counts, output_size=sum(self.sizes))
        y = F.prelu(self.project(x).flatten(0, 2), slopes).view(*x.shape[:3], -1)
        q, k, v = (
            norm(part).unflatten(-1, (self.heads, -1)).permute(0, 3, 2, 1, 4)
            for norm, part in zip(self.norms, y.split(self.sizes, -1), strict=True)
        )  # [B, h, S, A, E] or [B, h, S, A, N / h]
        found = attend(q.flatten(3), k.flatten(3), v.flatten(3)).view(v.shape)
        heads = found.permute(0, 3, 2, 1, 4).flatten(3)  # [B, A, S, N]
        return x + self.norm(self.act(self.out(heads)))


class HeadNorm(nn.Module):
    """Layer norm of each head's channels, with gains of its own: [..., h C] -> [..., h C].

    >>> HeadNorm(2, 4)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, heads: int, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(heads, channels))
        self.bias = nn.Parameter(torch.zeros(heads, channels))

    def forward(self, x: Tensor) -> Tensor:
        heads, channels = self.gain.shape
        if channels >= WIDE:
            normed = F.layer_norm(x.unflatten(-1, (heads, channels)), (channels,), eps=EPS)
            return torch.addcmul(self.bias, normed, self.gain).flatten(-2)
        out: Tensor = _NarrowNorm.apply(
            x.reshape(-1, heads * channels), self.gain.flatten(), self.bias.flatten(), channels
        )
        return out.view(x.shape)

    def macs(self, _: Any, output: Tensor) -> int:
        # Norms don't count: takes off the two products that means of narrow heads are.
        narrow = self.gain.shape[1] < WIDE
        return -2 * output.numel() * output.shape[-1] if narrow else 0


class _NarrowNorm(torch.autograd.Function):
    """Norms of a few channels each, with means as matrix products: x [R, h C], gain, bias [h C].

    torch's layer norm treats each group as a row, and rows of four cost as much as rows of forty.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, channels: int) -> Tensor:
        mean = torch.full((channels, channels), 1 / channels, dtype=x.dtype, device=x.device)
        mean = torch.block_diag(*[mean] * (x.shape[1] // channels))
        normed = x - x @ mean
        scale = ((normed * normed) @ mean).add_(EPS).rsqrt_()
        normed.mul_(scale)
        ctx.save_for_backward(normed, scale, gain, mean)
        return torch.addcmul(bias, normed, gain)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        normed, scale, gain, mean = ctx.saved_tensors
        against = grad * normed
        d_gain = against.sum(0)
        dx = grad * gain
        dx.sub_(dx @ mean).addcmul_(normed, against.mul_(gain) @ mean, value=-1).mul_(scale)
        return dx, d_gain, grad.sum(0), None


def attend(q: Tensor, k: Tensor, v: Tensor, most: int = SCORES) -> Tensor:
    """softmax(q k' / sqrt(d)) v for q, k [B, h, S, d] and v [B, h, S, e].

    >>> q = torch.randn(1, 2, 9, 4)
    >>> bool(torch.allclose(attend(q, q, q, most=40), attend(q, q, q), atol=1e-6))
    True

    most  weights held at once: queries come in blocks where S is large
    """
    rows = max(1, most // (q.shape[0] * q.shape[1] * k.shape[2]))
    if rows >= q.shape[2]:
        return F.scaled_dot_product_attention(q, k, v)
    blocks = q.split(rows, 2)
    return torch.cat([F.scaled_dot_product_attention(block, k, v) for block in blocks], 2)
