"""DCUNet with a time: the complex U-Net that was the score model before NCSN++.

    x [B, C, F, T] complex, t [B]  ->  [B, 1, F, T] complex        (F - 1) divisible by the strides

    encoder   z <- act(BN(conv z + E(t))),   decoder the same with transposed convolutions on
              [z, what the encoder gave at that size];  all layers complex, act on both parts
    E(t)      complex layers on sin, cos of 2 pi w t,   w ~ N(0, 16^2) frozen

>>> network = DCUNet("dcunet-10", scale=0.25)
>>> x = torch.randn(2, 2, 65, 30, dtype=torch.complex64)
>>> network(x, torch.tensor([0.1, 0.9])).shape
torch.Size([2, 1, 65, 30])

Sources: Choi et al., ICLR 2019 (DCUNet); Welker et al., arXiv 2203.17004 (with a time, `dilated`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError, UnknownNameError
from passband.parts.complex_layers import (
    ComplexConv2d,
    ComplexConvTranspose2d,
    ComplexLinear,
    PartsBatchNorm2d,
    WhiteningBatchNorm2d,
    to_complex,
    to_parts,
)

Pair = tuple[int, int]  # along frequency, along time


class Layer(NamedTuple):
    """One encoder layer; the decoder's mirrors it."""

    channels: int
    kernel: Pair
    stride: Pair
    dilation: Pair = (1, 1)


ARCHITECTURES: dict[str, tuple[Layer, ...]] = {
    "dcunet-10": (
        Layer(32, (7, 5), (2, 2)), Layer(64, (7, 5), (2, 2)), Layer(64, (5, 3), (2, 2)),
        Layer(64, (5, 3), (2, 2)), Layer(64, (5, 3), (2, 1)),
    ),
    "dcunet-16": (
        Layer(32, (7, 5), (2, 2)), Layer(32, (7, 5), (2, 1)), Layer(64, (7, 5), (2, 2)),
        Layer(64, (5, 3), (2, 1)), Layer(64, (5, 3), (2, 2)), Layer(64, (5, 3), (2, 1)),
        Layer(64, (5, 3), (2, 2)), Layer(64, (5, 3), (2, 1)),
    ),
    "dcunet-20": (
        Layer(32, (7, 1), (1, 1)), Layer(32, (1, 7), (1, 1)), Layer(64, (7, 5), (2, 2)),
        Layer(64, (7, 5), (2, 1)), Layer(64, (5, 3), (2, 2)), Layer(64, (5, 3), (2, 1)),
        Layer(64, (5, 3), (2, 2)), Layer(64, (5, 3), (2, 1)), Layer(64, (5, 3), (2, 2)),
        Layer(90, (5, 3), (2, 1)),
    ),
    "dilated": (
        Layer(32, (4, 4), (1, 1)), Layer(32, (4, 4), (1, 1)), Layer(32, (4, 4), (1, 1)),
        Layer(64, (4, 4), (2, 1), (2, 1)), Layer(128, (4, 4), (2, 2), (4, 1)),
        Layer(256, (4, 4), (2, 2), (8, 1)),
    ),
}
NORMS = {"complex": WhiteningBatchNorm2d, "parts": PartsBatchNorm2d}


class DCUNet(nn.Module):
    """
    architecture  "dcunet-10", "dcunet-16", "dcunet-20" or "dilated"
    in_channels   C, complex
    scale         of all widths
    norm          "complex": whitens both parts together; "parts": each part by itself
    features      of the time embedding; half of them frequencies
    T of any length is zero padded on the right and cut again. Raises `DataError` for bins that the
    strides don't fit, `UnknownNameError` for other names.
    """

    multiple = 1  # of T: padding is done inside

    def __init__(
        self, architecture: str = "dcunet-20", in_channels: int = 2, *, scale: float = 1.0,
        norm: Literal["complex", "parts"] = "complex", features: int = 128,
        fourier_scale: float = 16.0, time_layers: int = 1,
    ) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise UnknownNameError("architecture", architecture, ARCHITECTURES)
        if not scale > 0:
            raise ConfigError(f"scale = {scale}", expected="a factor above 0 on the widths")
        layers = [
            layer._replace(channels=max(1, round(scale * layer.channels)))
            for layer in ARCHITECTURES[architecture]
        ]
        self.strides = [math.prod(layer.stride[axis] for layer in layers) for axis in (0, 1)]
        self.in_channels, self.layers = in_channels, layers
        self.time = TimeEmbedding(features, fourier_scale, time_layers)
        widths = [in_channels, *(layer.channels for layer in layers)]
        self.encoder = nn.ModuleList(
            Block(Down(a, layer), layer.channels, norm, features)
            for a, layer in zip(widths, layers, strict=False)
        )
        deepest = len(layers) - 1
        self.decoder = nn.ModuleList(
            Block(
                Up(widths[i + 1] * (1 if i == deepest else 2), widths[i], layers[i]),
                widths[i], norm, features,
            )
            for i in range(deepest, 0, -1)
        )
        self.output = Up(2 * widths[1], 1, layers[0], bias=True)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, F, T] complex, t [B] -> [B, 1, F, T] complex."""
        self._check_input(x, t)
        frames = x.shape[-1]
        z = to_parts(F.pad(x, (0, -(frames - 1) % self.strides[1])))
        size, time = z.shape[-2:], self.time(t)
        skips = []
        for block in self.encoder:
            z = block(z, time)
            skips.append(z)
        skips.pop()
        for block in self.decoder:
            skip = skips.pop()
            z = torch.cat([block(z, time, skip.shape[-2:]), skip], dim=2)
        return to_complex(self.output(z, size))[..., :frames]

    def takes(self, bins: int) -> bool:
        """Whether spectra of so many bins fit the strides and all kernels."""
        size = bins
        for layer in self.layers:
            reach = layer.dilation[0] * (layer.kernel[0] - 1) + 1
            size = (size + 2 * _padding(layer)[0] - reach) // layer.stride[0] + 1
        return size > 0 and not (bins - 1) % self.strides[0]

    def _check_input(self, x: Tensor, t: Tensor) -> None:
        fits = x.ndim == 4 and x.shape[1] == self.in_channels and x.is_complex()
        if not fits or not self.takes(x.shape[2]) or not x.shape[3]:
            raise DataError(
                f"a spectrogram of shape {tuple(x.shape)}, {x.dtype}",
                expected=f"complex [B, {self.in_channels}, F, T], F - 1 divisible by "
                f"{self.strides[0]} and large enough for all kernels, T > 0",
                mend="n_fft = 512 has 257 bins",
            )
        if t.shape != x.shape[:1]:
            raise DataError(f"times of shape {tuple(t.shape)}", expected=f"[{x.shape[0]}]")


class Block(nn.Module):
    """A convolution, what the time adds to its channels, normalisation, activation."""

    def __init__(self, layer: Down | Up, channels: int, norm: str, features: int) -> None:
        super().__init__()
        self.layer = layer
        self.time = ComplexLinear(features, channels)
        self.norm = NORMS[norm](channels)

    def forward(self, z: Tensor, time: Tensor, size: Sequence[int] = ()) -> Tensor:
        """z [2, B, C, F, T], time [2, B, features]."""
        z = self.layer(z, size) + F.silu(self.time(time))[..., None, None]
        return F.leaky_relu(self.norm(z))


class Down(nn.Module):
    """A strided convolution; the norm after it has the bias."""

    def __init__(self, channels: int, layer: Layer) -> None:
        super().__init__()
        self.conv = ComplexConv2d(
            channels, layer.channels, layer.kernel, layer.stride, _padding(layer),
            layer.dilation, bias=False,
        )

    def forward(self, z: Tensor, size: Sequence[int] = ()) -> Tensor:
        return self.conv(z)


class Up(nn.Module):
    """The transposed convolution of an encoder layer, to a given size."""

    def __init__(self, channels: int, out: int, layer: Layer, bias: bool = False) -> None:
        super().__init__()
        # Where a stride skipped the last samples, several sizes lead to the same one. The largest
        # is computed and cut: the samples that all of them have don't depend on the size.
        extra = tuple(stride - 1 for stride in layer.stride)
        self.conv = ComplexConvTranspose2d(
            channels, out, layer.kernel, layer.stride, _padding(layer), extra,
            bias=bias, dilation=layer.dilation,
        )

    def forward(self, z: Tensor, size: Sequence[int]) -> Tensor:
        return self.conv(z)[..., : size[0], : size[1]]


class TimeEmbedding(nn.Module):
    """t [B] -> [2, B, features], by random frequencies of t itself."""

    def __init__(self, features: int, scale: float, layers: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(features // 2) * scale, requires_grad=False)
        self.layers = nn.ModuleList(ComplexLinear(features, features) for _ in range(layers))

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies * 2 * math.pi
        found = torch.cat([angles.sin(), angles.cos()], dim=-1)
        z = torch.stack([found, torch.zeros_like(found)])
        for layer in self.layers:
            z = F.silu(layer(z))
        return z


def _padding(layer: Layer) -> Pair:
    return layer.kernel[0] // 2, layer.kernel[1] // 2
