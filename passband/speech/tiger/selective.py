"""Selective fusion (SA): local features gated, and added to, by features of another scale.

    y = gLN(w u) up(gate) + up(added)             u [M, S, C]; gate, added [M, O, C], O <= S
    up: the nearest position below, floor(i O / S)

Norm, gate and sum are one multiply-add of u with factors that are computed at the other, coarser
length: two passes over the long sequence where the plain formula takes seven. The gradient is
written out; it keeps u and nothing else of that length.

>>> block = Selective(8, kernel=5)
>>> block(torch.randn(3, 67, 8), torch.randn(3, 5, 8)).shape
torch.Size([3, 67, 8])

Source: arXiv 2410.01469, section 3.3.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from passband.parts.depthwise import DepthwiseConv
from passband.parts.global_norm import GlobalNorm

FEW = 16  # positions up to which sums over their runs are fastest as one matrix product


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
        filtered, norm = self.local.filter, self.local.norm
        weight = None
        if isinstance(filtered, Scale):
            weight = filtered.weight[0]
        else:
            local = filtered(local)
        return gated_norm(local, weight, norm.gain, norm.bias, gate, added, norm.eps)

    def macs(self, given: tuple[Tensor, Tensor], output: Tensor) -> int:
        # The one-tap filter of the local features, which is no module's call.
        return output.numel() if isinstance(self.local.filter, Scale) else 0


class Filtered(nn.Module):
    """A depthwise convolution and its norm, [M, S, C] -> [M, S, C].

    >>> Filtered(8, kernel=1)(torch.randn(3, 5, 8)).shape
    torch.Size([3, 5, 8])
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.filter = (
            Scale(channels) if kernel == 1 else DepthwiseConv(channels, kernel, bias=False)
        )
        self.norm = GlobalNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.filter(x))
        return out


class Scale(nn.Module):
    """A depthwise convolution of one tap: a factor for each channel, [..., C] -> [..., C].

    >>> Scale(8)(torch.randn(3, 67, 8)).shape
    torch.Size([3, 67, 8])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, channels).uniform_(-1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[0]

    def macs(self, _: Any, output: Tensor) -> int:
        return output.numel()


def gated_norm(
    u: Tensor, weight: Tensor | None, gain: Tensor, bias: Tensor, gate: Tensor, added: Tensor,
    eps: float = 1e-8,
) -> Tensor:
    """gLN(weight u) up(gate) + up(added): [M, S, C].

    >>> one, none = torch.ones(4), torch.zeros(4)
    >>> u = torch.randn(2, 9, 4)
    >>> y = gated_norm(u, None, one, none, torch.ones(2, 3, 4), torch.zeros(2, 3, 4))
    >>> bool(torch.allclose(y, GlobalNorm(4)(u), atol=1e-5))
    True

    u [M, S, C]; weight, gain, bias [C], weight None for ones; gate, added [M, O, C] with O <= S
    Half precision is computed in single.
    """
    weight = torch.ones_like(gain) if weight is None else weight
    u, gate, added = (
        x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (u, gate, added)
    )
    out: Tensor = _GatedNorm.apply(u.contiguous(), weight, gain, bias, gate, added, eps)
    return out


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, u: Tensor, weight: Tensor, gain: Tensor, bias: Tensor, gate: Tensor,
        added: Tensor, eps: float,
    ) -> Tensor:
        size = u.shape[1] * u.shape[2]
        total, squares = u.sum(1), (u * u).sum(1)  # [M, C]
        mean = (total @ weight) / size
        # Sums of squares about the mean. What comes here has passed a norm, or a filter of what
        # has: its mean is no larger than its spread, so that few digits cancel.
        variance = ((squares @ weight.square()) / size - mean.square()).clamp_min(0)
        scale = (variance + eps).rsqrt()
        slope = (scale[:, None] * gain * weight)[:, None]  # [M, 1, C]
        level = (bias - (mean * scale)[:, None] * gain)[:, None]
        runs = _runs(gate.shape[1], u.shape[1], u.device)
        factor = slope * gate
        ctx.save_for_backward(
            u, weight, gain, gate, total, squares, mean, scale, slope, level, factor
        )
        out = runs.up(torch.addcmul(added, level, gate))
        return out.addcmul_(u, runs.up(factor))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        u, weight, gain, gate, total, squares, mean, scale, slope, level, factor = (
            ctx.saved_tensors
        )
        size = u.shape[1] * u.shape[2]
        runs = _runs(gate.shape[1], u.shape[1], u.device)
        d_added = runs.down(grad)  # of the sum, at the other length
        work = grad * u
        d_factor = runs.down(work)
        d_slope, d_level = (d_factor * gate).sum(1), (d_added * gate).sum(1)  # [M, C]
        d_gate = d_factor * slope + d_added * level
        by_scale, by_mean = scale[:, None], mean[:, None]
        d_gain = (d_slope * by_scale * weight - d_level * by_mean * by_scale).sum(0)
        d_mean = -scale * (d_level @ gain)
        d_scale = d_slope @ (gain * weight) - mean * (d_level @ gain)
        d_variance = -0.5 * scale**3 * d_scale
        # mean = sum(w u) / n and variance = sum((w u)^2) / n - mean^2, as they were computed.
        d_mean = ((d_mean - 2 * mean * d_variance) / size)[:, None]
        d_square = (2 * d_variance / size)[:, None]
        d_weight = (
            d_slope * by_scale * gain + d_mean * total + d_square * weight * squares
        ).sum(0)
        torch.mul(grad, runs.up(factor), out=work)
        work.addcmul_(u, (d_square * weight.square())[:, None])
        work.add_((d_mean * weight)[:, None])
        return work, d_weight, d_gain, d_level.sum(0), d_gate, d_added, None


class _Runs(NamedTuple):
    """Which position of the coarse sequence each one of the fine sequence takes."""

    source: Tensor | None  # [S]; None where both are alike
    matrix: Tensor | None  # [O, S] of zeros and ones, where O is small
    first: Tensor  # [O]: the run's first fine position
    present: tuple[Tensor, ...]  # [O, 1] each: whether a run has a second, third, ... position

    def up(self, coarse: Tensor) -> Tensor:
        """[M, O, C] -> a new [M, S, C]."""
        return coarse.clone() if self.source is None else coarse.index_select(1, self.source)

    def down(self, fine: Tensor) -> Tensor:
        """Sums over the runs: [M, S, C] -> [M, O, C]."""
        if self.source is None:
            return fine
        if self.matrix is not None:
            return torch.matmul(self.matrix.to(fine.dtype), fine)
        out = fine.index_select(1, self.first)
        for j, present in enumerate(self.present, 1):
            at = (self.first + j).clamp_max(fine.shape[1] - 1)
            out.addcmul_(fine.index_select(1, at), present.to(fine.dtype))
        return out


@cache
def _runs(coarse: int, fine: int, device: torch.device) -> _Runs:
    with torch.inference_mode(False):  # kept for later calls, which may want gradients
        index = torch.arange(fine, device=device) * coarse // fine
        inside = index == torch.arange(coarse, device=device)[:, None]  # [O, S]
        lengths = inside.sum(1, keepdim=True)
        first = lengths.cumsum(0)[:, 0] - lengths[:, 0]
        longest = -(-fine // coarse)
        present = tuple((lengths > j).float() for j in range(1, longest))
        matrix = inside.float() if coarse <= FEW else None
        return _Runs(None if coarse == fine else index, matrix, first, present)


def nearest(x: Tensor, size: int) -> Tensor:
    """x [M, S, C] at `size` positions, the nearest below: position floor(i S / size).

    >>> nearest(torch.tensor([[[1.0], [2.0]]]), 5)[0, :, 0]
    tensor([1., 1., 1., 2., 2.])
    """
    return x.index_select(1, _nearest(x.shape[1], size, x.device))


@cache
def _nearest(source: int, target: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(target, device=device) * source // target
