"""The steps of the encoder and the decoder.

    step    complex convolution -> normalisation of each part -> leaky ReLU of each part
    down    over (k bins, 2 frames), stride (2, 1);    up    its transpose

In evaluation the normalisation is one scale and one shift for each channel and part: it can't go
into the convolution, whose two parts share their weights.

>>> down = Down(1, 16, kernel=5)
>>> z = torch.randn(2, 3, 1, 161, 50)               # [real | imaginary, B, C, F, T]
>>> down(z).shape                                   # one frame more: padded on both sides of time
torch.Size([2, 3, 16, 79, 51])
>>> Up(16, 1, kernel=5)(down(z)).shape              # and one less
torch.Size([2, 3, 1, 161, 50])

Source: Zhao et al., arXiv 2206.07293, and its published code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.parts.complex_layers import (
    ComplexConv2d,
    ComplexConvTranspose2d,
    PartsBatchNorm2d,
)
from passband.speech.frcrn.fsmn import State


class Step(nn.Module):
    """Convolution, normalisation and leaky ReLU."""

    conv: ComplexConv2d | Cut
    norm: PartsBatchNorm2d

    def activated(self, z: Tensor) -> Tensor:
        z = self.conv(z)
        if self.training:
            z = self.norm(z)
        else:
            scale, shift = folded(self.norm)
            z = torch.addcmul(shift, z, scale)
        return F.leaky_relu(z, inplace=True)


def folded(norm: PartsBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift [2, 1, C, 1, 1] that normalisation by running statistics is."""
    found = []
    for part in (norm.real, norm.imaginary):
        scale = part.weight * (part.running_var + part.eps).rsqrt()
        found.append(torch.stack([scale, part.bias - part.running_mean * scale]))
    scale, shift = torch.stack(found, 1)[:, :, None, :, None, None]
    return scale, shift


class Down(Step):
    """Encoder step: about half of the bins.

    kernel     bins under the convolution, whose stride is 2
    widened    bins more under it, with the output's size unchanged (zeros around)
    lookahead  one frame more than came, as published; False: as many, padded in the past alone
    """

    def __init__(
        self, channels: int, out: int, kernel: int, *, widened: int = 0, lookahead: bool = True
    ) -> None:
        super().__init__()
        self.low, self.high, self.lookahead = widened // 2, widened - widened // 2, lookahead
        self.conv = ComplexConv2d(channels, out, (kernel + widened, 2), (2, 1))
        self.norm = PartsBatchNorm2d(out)

    def forward(self, z: Tensor) -> Tensor:
        """[2, B, C, F, T] -> [2, B, out, (F - kernel) // 2 + 1, T + 1 or T]."""
        return self.activated(F.pad(z, (1, int(self.lookahead), self.low, self.high)))

    def push(self, z: Tensor, state: State, last: bool) -> Tensor:
        """The same for a piece of a stream."""
        before = state.get("frame")
        z = F.pad(z, (1, 0)) if before is None else torch.cat([before, z], -1)
        state["frame"] = z[..., -1:]
        after = int(last and self.lookahead)
        return self.activated(F.pad(z, (0, after, self.low, self.high)))


class Up(Step):
    """Decoder step: from F bins back to 2 (F - 1) + kernel.

    lookahead  frame t is made of frames t and t + 1, as published, one frame less than came;
               False: of frames t - 1 and t, as many as came
    """

    def __init__(
        self, channels: int, out: int, kernel: int, *, widened: int = 0, lookahead: bool = True
    ) -> None:
        super().__init__()
        self.low, self.high, self.lookahead = widened // 2, widened - widened // 2, lookahead
        self.conv = Cut(channels, out, kernel, self.low, self.high)
        self.norm = PartsBatchNorm2d(out)

    def forward(self, z: Tensor) -> Tensor:
        return self.activated(z if self.lookahead else F.pad(z, (1, 0)))

    def push(self, z: Tensor, state: State) -> Tensor:
        before = state.get("frame")
        if before is not None:
            z = torch.cat([before, z], -1)
        elif not self.lookahead:
            z = F.pad(z, (1, 0))
        state["frame"] = z[..., -1:]
        if z.shape[-1] > 1:
            return self.activated(z)
        bins = 2 * (z.shape[-2] - 1) + self.conv.kernel
        return z.new_zeros(*z.shape[:2], self.conv.real.out_channels, bins, 0)


class Cut(ComplexConvTranspose2d):
    """Transposed convolution whose outermost bins and frames are cut off."""

    def __init__(self, channels: int, out: int, kernel: int, low: int, high: int) -> None:
        super().__init__(channels, out, (kernel + low + high, 2), (2, 1), (0, 1))
        self.kernel, self.low, self.high = kernel, low, high

    def forward(self, z: Tensor) -> Tensor:
        z = super().forward(z)
        return z[..., self.low : z.shape[-2] - self.high, :]
