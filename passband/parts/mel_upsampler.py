"""From mel frames to a faster rate by transposed convolutions and residual blocks (HiFi-GAN).

    h_0     = conv7(mel)                                                   [B, c0, T]
    h_{i+1} = mean_k block_k( up_i( lrelu(h_i) ) )       up_i: rate u_i, channels halved
    out     = conv7( lrelu'(h_n) )                                         [B, outputs, T prod u_i]

    block of type 1, kernel k:   x <- x + conv_k( lrelu( conv_{k, dilation d}( lrelu(x) ) ) )
                                 for d = 1, 3, 5
    block of type 2:             x <- x + conv_{k, dilation d}( lrelu(x) )  for two dilations

lrelu has the slope 0.1, lrelu' before the last convolution 0.01. All convolutions are weight-normed
while they learn; `fused` gives the same network with plain weights.

>>> net = Upsampler(80, 64, rates=(8, 8), kernels=(16, 16), outputs=18)
>>> net(torch.randn(2, 80, 10)).shape
torch.Size([2, 18, 640])
>>> plain = fused(net)                                           # for use, not for training
>>> net.context(hop=256)[0] > 0
True

Source: HiFi-GAN (arXiv 2010.05646); parameters have the names of its published checkpoints.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized

from passband.errors import ConfigError
from passband.parts.reach import Reach

SLOPE = 0.1
LAST_SLOPE = 0.01
EDGE = 7  # kernel of the first and the last convolution


@dataclass(frozen=True)
class Blocks:
    """The residual blocks after each up-sampling, one for every kernel.

    kind       1: two convolutions for each dilation; 2: one
    kernels    of the blocks, which stand side by side
    dilations  of each block
    """

    kind: int = 1
    kernels: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))


LARGE = Blocks()
LIGHT = Blocks(2, (3, 5, 7), ((1, 2), (2, 6), (3, 12)))


class ResBlock1(nn.Module):
    """Pairs of convolutions, the first of each dilated; [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_same(channels, channels, kernel, d) for d in dilations)
        self.convs2 = nn.ModuleList(_same(channels, channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            y = dilated(F.leaky_relu(x, SLOPE))
            # In place on what a convolution has just given, which its gradient does not need.
            x = plain(F.leaky_relu(y, SLOPE, inplace=True)).add_(x)
        return x

    def reach(self) -> Reach:
        layers = zip(self.convs1, self.convs2, strict=True)
        return Reach.chain([_reach(conv) for pair in layers for conv in pair])


class ResBlock2(nn.Module):
    """Single dilated convolutions; [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_same(channels, channels, kernel, d) for d in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(F.leaky_relu(x, SLOPE)).add_(x)
        return x

    def reach(self) -> Reach:
        return Reach.chain([_reach(conv) for conv in self.convs])


BLOCKS: dict[int, type[ResBlock1] | type[ResBlock2]] = {1: ResBlock1, 2: ResBlock2}


class Upsampler(nn.Module):
    """
    n_mels    channels of the input
    channels  c0 of the first layer, halved at every stage
    rates     of the stages; 1 is a stage that does not up-sample
    kernels   of the up-sampling layers, as far above the rate as an even number says
    blocks    the residual blocks of each stage
    outputs   channels of the output
    lead      frames that are put before the last convolution by reflection
    initial   "default": PyTorch's. "normal": N(0, 0.01) for all layers but the first, as the paper
              says; its code draws them too, but into tensors that weight norm then overwrites
    """

    def __init__(
        self, n_mels: int, channels: int, rates: Sequence[int], kernels: Sequence[int],
        outputs: int, blocks: Blocks = LARGE, *, lead: int = 0, initial: str = "default",
    ) -> None:
        super().__init__()
        check_stages(channels, rates, kernels)
        self.rates, self.lead, self.per_stage = tuple(rates), lead, len(blocks.kernels)
        self.conv_pre = weight_norm(nn.Conv1d(n_mels, channels, EDGE, padding=EDGE // 2))
        widths = [channels >> i for i in range(len(rates) + 1)]
        self.ups = nn.ModuleList(
            _up(a, b, rate, kernel)
            for a, b, rate, kernel in zip(widths[:-1], widths[1:], rates, kernels, strict=True)
        )
        self.resblocks = nn.ModuleList(
            BLOCKS[blocks.kind](width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(blocks.kernels, blocks.dilations, strict=True)
        )
        self.conv_post = _same(widths[-1], outputs, EDGE)
        if initial == "normal":
            for part in (self.ups, self.resblocks, self.conv_post):
                part.apply(_small)

    def forward(self, mel: Tensor) -> Tensor:  # [B, n_mels, T]
        return self.finish(self.features(mel))

    def finish(self, x: Tensor) -> Tensor:
        """What a subclass makes of the last convolution's output, without weights."""
        return x

    def features(self, mel: Tensor) -> Tensor:
        """[B, n_mels, T] -> [B, outputs, T rate + lead]"""
        x = self.conv_pre(mel)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            blocks = self._stage(i)
            total = blocks[0](x)
            for block in blocks[1:]:
                total = total.add_(block(x))
            x = total / self.per_stage
        x = F.leaky_relu(x, LAST_SLOPE)
        if self.lead:
            x = F.pad(x, (self.lead, 0), "reflect")
        out: Tensor = self.conv_post(x)
        return out

    def _stage(self, index: int) -> list[ResBlock1 | ResBlock2]:
        first = index * self.per_stage
        blocks: Any = list(self.resblocks)[first : first + self.per_stage]
        return cast(list[ResBlock1 | ResBlock2], blocks)

    @property
    def rate(self) -> int:
        """Output frames for each frame of mel."""
        return math.prod(self.rates)

    def reach(self) -> Reach:
        """Which mel frames an output frame depends on."""
        layers = [_reach(self.conv_pre)]
        for i, up in enumerate(self.ups):
            layers += [_reach(up), Reach.widest([block.reach() for block in self._stage(i)])]
        # The reflected frames move everything after them to the right.
        layers += [Reach.shift(self.lead), _reach(self.conv_post)]
        return Reach.chain(layers)

    def context(self, hop: int, after: Reach | None = None) -> tuple[int, int]:
        """Frames of mel needed before and after those that a piece of samples belongs to.

        hop    samples for a frame of mel
        after  what stands between the output and the samples
        """
        reach = Reach.chain([self.reach(), *([after] if after else [])])
        return reach.context(hop)


def fused(module: nn.Module) -> nn.Module:
    """A copy with weight norm folded into the weights, for use: the same output, fewer numbers.

    >>> net = fused(Upsampler(80, 32, (8,), (16,), 1))
    >>> "conv_pre.weight" in net.state_dict()
    True
    """
    # torch's remove_parametrizations would take the weight off the original as well: a copy shares
    # its class. So copies are made with plain layers in the place of parametrized ones.
    instead = {
        id(part): _plain(part) for part in module.modules() if is_parametrized(part, "weight")
    }
    return copy.deepcopy(module, dict(instead)).eval()


def _plain(layer: nn.Module) -> nn.Module:
    """A convolution with the weight that a parametrized one has now."""
    assert isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d))
    kind = nn.ConvTranspose1d if isinstance(layer, nn.ConvTranspose1d) else nn.Conv1d
    more: Any = {}
    if isinstance(layer, nn.ConvTranspose1d):
        more["output_padding"] = layer.output_padding[0]
    plain = kind(
        layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0],
        int(layer.padding[0]), dilation=layer.dilation[0], device="meta", **more,
    )
    assert layer.bias is not None
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain


def usual_kernels(rates: Sequence[int]) -> tuple[int, ...]:
    """Of the up-sampling layers: twice the rate, one more where the rate is odd.

    >>> usual_kernels((8, 2, 1, 5))
    (16, 4, 3, 11)
    """
    return tuple(2 * rate + rate % 2 for rate in rates)


def check_stages(
    channels: int, rates: Sequence[int], kernels: Sequence[int] | None = None
) -> None:
    """Raise `ConfigError` for stages that can't be built."""
    kernels = usual_kernels(rates) if kernels is None else kernels
    if len(rates) != len(kernels) or not rates:
        raise ConfigError(
            f"{len(rates)} rates and {len(kernels)} kernels", expected="as many, at least one"
        )
    for rate, kernel in zip(rates, kernels, strict=True):
        if rate < 1 or kernel < rate or (kernel - rate) % 2:
            raise ConfigError(
                f"a kernel of {kernel} for the rate {rate}",
                expected="at least the rate, and above it by an even number",
                mend=f"take {2 * rate + rate % 2}",
            )
    if channels % 2 ** len(rates):
        raise ConfigError(
            f"{channels} channels to be halved {len(rates)} times",
            expected=f"a multiple of {2 ** len(rates)}",
        )


def _same(before: int, after: int, kernel: int, dilation: int = 1) -> nn.Conv1d:
    """A weight-normed convolution that keeps the length."""
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv1d(before, after, kernel, dilation=dilation, padding=padding)
    weight_norm(conv)
    return conv


def _up(before: int, after: int, rate: int, kernel: int) -> nn.ConvTranspose1d:
    conv = nn.ConvTranspose1d(before, after, kernel, rate, padding=(kernel - rate) // 2)
    weight_norm(conv)
    return conv


def _small(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)):
        with torch.no_grad():
            module.weight = torch.randn_like(module.weight) * 0.01


def _reach(layer: nn.Module) -> Reach:
    assert isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d))
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    padding, dilation = int(layer.padding[0]), layer.dilation[0]
    if isinstance(layer, nn.ConvTranspose1d):
        return Reach.transposed(kernel, stride, padding)
    return Reach.convolution(kernel, padding, dilation)
