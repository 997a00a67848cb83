"""A transformer on pairs of residues: one or two blocks without causal mask, norm or biases.

    x <- x + mu attention(x),  x <- x + mu mlp(x),  scores = head(x at the second place)
    attention logits / d_head^((1+s)/2),  scores * width^(-(1+s)/2)          s = 1: muP, 0: standard

>>> model = TinyEncoder(97)
>>> model(torch.tensor([[3, 5]])).shape
torch.Size([1, 97])
>>> sum(p.numel() for name, p in model.named_parameters() if name not in ("tokens", "places"))
209024

Only the second place is read, so the last block computes no other; and what enters the first block
is one of 2 p vectors, so those are projected, not the B pairs. Source: the transformer
experiments of arXiv 2310.13061.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passband.errors import ConfigError


class TinyEncoder(nn.Module):
    """[B, 2] pairs of residues -> [B, C] scores of classes.

    s        1: width-independent scales (muP), 0: the standard ones
    mu       what a block adds is multiplied with
    classes  default: p
    """

    def __init__(
        self, p: int, width: int = 128, heads: int = 4, blocks: int = 1, *, s: float = 1.0,
        mu: float = 1.0, classes: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"width = {width} with {heads} heads", expected="a multiple of heads")
        self.p, self.scale = p, width ** (-(1 + s) / 2)
        self.tokens = nn.Parameter(torch.randn(p, width))
        self.places = nn.Parameter(torch.randn(2, width))
        self.blocks = nn.ModuleList(Block(width, heads, s, mu) for _ in range(blocks))
        self.head = linear(width, p if classes is None else classes)

    def forward(self, pairs: Tensor) -> Tensor:
        # What enters the first block is one of 2 p vectors: they are projected once, not B times.
        each = (self.places[:, None] + self.tokens).flatten(-3, -2)  # [2 p, width]
        rows = pairs + torch.tensor([0, self.p], device=pairs.device)
        x = F.embedding(rows, each)  # [B, 2, width]
        for i, block in enumerate(self.blocks, 1):
            asked = slice(-1, None) if i == len(self.blocks) else slice(None)
            q, k, v = block.project(x if i > 1 else each)
            if i == 1:
                q = F.embedding(rows[..., asked], q)
                k, v = F.embedding(rows, k), F.embedding(rows, v)
            else:
                q = q[..., asked, :]
            x = block(x[..., asked, :], q, k, v)
        return self.head(x[..., -1, :]) * self.scale


class Block(nn.Module):
    """Self-attention and a ReLU layer of four times the width, each added to its input."""

    def __init__(self, width: int, heads: int, s: float, mu: float) -> None:
        super().__init__()
        self.heads, self.mu = heads, mu
        self.temperature = (width // heads) ** ((1 + s) / 2)
        self.query, self.key = linear(width, width), linear(width, width)
        self.value, self.out = linear(width, width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of vectors [..., width]."""
        return self.query(x), self.key(x), self.value(x)

    def forward(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """x, q [B, Q, width] of the places asked for; k, v [B, L, width] -> [B, Q, width]."""
        q, k, v = self._split(q), self._split(k), self._split(v)
        weights = (q @ k.transpose(-1, -2) / self.temperature).softmax(-1)
        x = x + self.mu * self.out((weights @ v).transpose(-2, -3).flatten(-2))
        return x + self.mu * self.down(torch.relu(self.up(x)))

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, width] -> [B, heads, L, d_head]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """No bias; normal weights with variance 1 / inputs."""
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer
