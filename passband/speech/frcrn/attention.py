"""Attention for complex features: gates from what the whole recording, or its past, looks like.

    squeeze-excite   s = mean of z over F and T;     G(s) = sigmoid(W2 relu(W1 s + b1) + b2)
                     g_r = G_r(s_r) - G_i(s_i),      g_i = G_r(s_i) + G_i(s_r)
                     (z_r, z_i) -> (z_r g_r, z_i g_i)          part by part: no complex product
    block attention  the same with mean and maximum, sigmoid(MLP(mean) + MLP(max)); then each part
                     times the sigmoid of a complex 7 x 7 convolution of its mean and maximum over C

`cumulative` takes the mean and maximum of the frames so far instead of those of the recording, and
lets the 7 x 7 convolution see no later frame: the layer is then causal and can be streamed.

>>> layer = SqueezeExcite(16)
>>> layer(torch.randn(2, 3, 16, 40, 25)).shape      # [real | imaginary, B, C, F, T]
torch.Size([2, 3, 16, 40, 25])

Sources: Hu et al., Squeeze-and-excitation networks, CVPR 2018; Woo et al., CBAM, ECCV 2018; the
complex forms: Zhao et al., arXiv 2206.07293 and its published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.parts.complex_layers import ComplexConv2d
from passband.speech.frcrn.fsmn import State

REDUCTION = 8  # of channels inside the gates


class SqueezeExcite(nn.Module):
    """
    >>> layer = SqueezeExcite(16, cumulative=True)
    >>> z = torch.randn(2, 3, 16, 40, 25)
    >>> bool(torch.allclose(layer(z[..., :10]), layer(z)[..., :10], atol=1e-6))     # causal
    True

    channels    C, at least 8
    cumulative  pool over the frames so far
    """

    def __init__(self, channels: int, cumulative: bool = False) -> None:
        super().__init__()
        self.cumulative = cumulative
        self.real, self.imaginary = _gates(channels), _gates(channels)

    def forward(
        self, z: Tensor, frames: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        """z [2, B, C, F, T] -> same shape.

        frames  [B] valid frames of each item of a padded batch: the others are not pooled
        state   of a stream, changed in place
        """
        mean = pooled_mean(z, frames, self.cumulative, state)
        return z * self._combined(self.real(mean).sigmoid(), self.imaginary(mean).sigmoid())

    @staticmethod
    def _combined(a: Tensor, b: Tensor) -> Tensor:
        """Gates [2, B, T or 1, C] of both parts by both layers -> [2, B, C, 1, T or 1]."""
        gates = torch.stack([a[0] - b[1], a[1] + b[0]])
        return gates.mT.unsqueeze(-2)


class BlockAttention(SqueezeExcite):
    """Channel gates from mean and maximum, then gates for each bin and frame.

    >>> BlockAttention(16)(torch.randn(2, 3, 16, 40, 25)).shape
    torch.Size([2, 3, 16, 40, 25])
    """

    SIZE = 7  # of the convolution over bins and frames

    def __init__(self, channels: int, cumulative: bool = False) -> None:
        super().__init__(channels, cumulative)
        self.spatial = ComplexConv2d(2, 1, self.SIZE)

    def forward(
        self, z: Tensor, frames: Tensor | None = None, state: State | None = None
    ) -> Tensor:
        mean = pooled_mean(z, frames, self.cumulative, state)
        peak = pooled_max(z, frames, self.cumulative, state)
        a, b = ((g(mean) + g(peak)).sigmoid() for g in (self.real, self.imaginary))
        z = z * self._combined(a, b)
        maps = torch.stack([z.mean(2), z.amax(2)], 2)  # [2, B, 2, F, T]
        if frames is not None:  # as if the recording ended there
            maps = maps * within(frames, maps.shape[-1])
        side = self.SIZE // 2
        maps = F.pad(maps, (0, 0, side, side))
        return z * self.spatial(self._around(maps, 2 * side, state)).sigmoid()

    def _around(self, maps: Tensor, count: int, state: State | None) -> Tensor:
        if not self.cumulative:
            return F.pad(maps, (count // 2, count // 2))
        past = state.get("maps") if state is not None else None
        maps = F.pad(maps, (count, 0)) if past is None else torch.cat([past, maps], -1)
        if state is not None:
            state["maps"] = maps[..., maps.shape[-1] - count :]
        return maps


def _gates(channels: int) -> nn.Sequential:
    inside = max(1, channels // REDUCTION)
    return nn.Sequential(nn.Linear(channels, inside), nn.ReLU(), nn.Linear(inside, channels))


def within(frames: Tensor, count: int) -> Tensor:
    """[B] valid frames -> 1 there and 0 elsewhere, [B, 1, 1, T]."""
    return (torch.arange(count, device=frames.device) < frames[:, None])[:, None, None]


def pooled_mean(
    z: Tensor, frames: Tensor | None, cumulative: bool, state: State | None
) -> Tensor:
    """Mean over bins and frames of z [2, B, C, F, T]: [2, B, 1, C], or [2, B, T, C] so far."""
    mean = z.mean(-2).mT  # [2, B, T, C]
    if not cumulative:
        if frames is None:
            return mean.mean(-2, keepdim=True)
        inside = within(frames, z.shape[-1])[:, 0].mT
        return (mean * inside).sum(-2, keepdim=True) / frames[:, None, None]
    seen = int(state["seen"]) if state and "seen" in state else 0
    total = mean.cumsum(-2)
    if state and "mean" in state:
        total = total + seen * state["mean"]
    count = torch.arange(1, z.shape[-1] + 1, device=z.device) + seen
    mean = total / count[:, None]
    if state is not None:
        state["mean"], state["seen"] = mean[..., -1:, :], count[-1]
    return mean


def pooled_max(
    z: Tensor, frames: Tensor | None, cumulative: bool, state: State | None
) -> Tensor:
    """Maximum over bins and frames, shaped as the mean."""
    peak = z.amax(-2)  # [2, B, C, T]
    if not cumulative:
        if frames is not None:
            peak = peak.masked_fill(~within(frames, z.shape[-1])[:, 0], -torch.inf)
        return peak.amax(-1, keepdim=True).mT
    if state and "peak" in state:
        peak = torch.cat([state["peak"], peak], -1).cummax(-1).values[..., 1:]
    else:
        peak = peak.cummax(-1).values
    if state is not None:
        state["peak"] = peak[..., -1:]
    return peak.mT
