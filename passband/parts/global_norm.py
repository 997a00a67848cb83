"""Global layer norm over channels and positions of each sequence, channels last.

    y = (x - mean) / sqrt(var + eps) * gain + bias      x [..., S, C], mean and var over S and C

The same as `GroupNorm(1, C)` of a tensor [..., C, S], computed where the channels lie together: two
passes and one new tensor forward, two passes backward, which keeps the input alone.

>>> norm = GlobalNorm(64)
>>> norm(torch.randn(2, 100, 64)).shape
torch.Size([2, 100, 64])

Source: Luo and Mesgarani, Conv-TasNet (arXiv 1809.07454), eq. 7: gLN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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

    Half precision is computed in single. Differentiable once.
    """
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    flat = x.reshape(-1, *x.shape[-2:]).contiguous()
    apply: Any = _GlobalNorm.apply
    out: Tensor = apply(flat, gain, bias, eps)
    return out.reshape(x.shape)


class _GlobalNorm(torch.autograd.Function):
    """Statistics of whole sequences, applied as one multiply-add a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float) -> Tensor:
        sequences, size = x.shape[0], x.shape[1] * x.shape[2]
        mean = x.reshape(sequences, size).mean(1)
        out = x - mean[:, None, None]  # centred before squaring: no digits are lost
        variance = torch.linalg.vector_norm(out.view(sequences, size), dim=1).square() / size
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, gain, mean, scale)
        return torch.addcmul(bias, out, (scale[:, None] * gain)[:, None], out=out)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (grad,) = grads
        x, gain, mean, scale = ctx.saved_tensors
        size = x.shape[1] * x.shape[2]
        total = grad.sum(1)  # [M, C]
        work = grad * x
        # Sums of grad times the normalised input, per sequence and channel.
        against = (work.sum(1) - mean[:, None] * total) * scale[:, None]
        level = (total @ gain) / size
        slope = (against @ gain) / size
        factor = scale.square() * slope
        torch.mul(x, -factor[:, None, None], out=work)
        work.addcmul_(grad, (scale[:, None] * gain)[:, None])
        work.add_((factor * mean - scale * level)[:, None, None])
        return work, against.sum(0), total.sum(0), None
