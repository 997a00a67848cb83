"""NCSN++ for spectrograms: a U-Net with input and output pyramids, conditioned on a time.

    x [B, C, F, T] real, t [B]  ->  [B, out, F, T]        F bins (fixed), T frames (any)

    block    h = conv(silu(GN(conv(silu(GN(x))) + W temb))),   y = (shortcut(x) + h) / sqrt 2
    temb     MLP of sin, cos of 2 pi w ln t,   w ~ N(0, 16^2) frozen
    down     blocks, (attention,) a block of half the size, + the input at that size by 1x1
    up       blocks on [h, skip], (attention,) p <- up(p) + conv(silu(GN(h))), a block of twice
    output   conv1x1(p / t)

>>> network = NCSNpp(bins=64, width=16, multipliers=(1, 2, 2), blocks=1)
>>> network(torch.randn(2, 4, 64, 50), torch.tensor([0.1, 0.9])).shape
torch.Size([2, 2, 64, 50])
>>> sum(p.numel() for p in network.parameters())
321718

Source: Song et al., arXiv 2011.13456 (NCSN++); Richter et al., arXiv 2208.05830 (spectrograms).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError
from passband.parts.fir_resample import fir_down, fir_up

Divide = Literal["before", "after", "never"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
NONE = 1e-10  # scale of weights that start out as almost nothing


class NCSNpp(nn.Module):
    """
    >>> NCSNpp(bins=32, in_channels=2, width=8, multipliers=(1, 1), timed=False)(
    ...     torch.zeros(1, 2, 32, 9)).shape
    torch.Size([1, 2, 32, 9])

    bins          F, divisible by 2^(levels - 1)
    in_channels   C; the pyramids have as many
    width         channels at the top; `multipliers` of it at each level, from the top
    blocks        residual blocks a level
    attention     heights, in bins, at which positions attend to each other; the lowest always has
                  one layer
    pyramids      the input and the output at every size; without them the last level gives both
    timed         False: no time, for networks that are asked once
    divide        the output by t: before the last 1x1 convolution, after it, or not at all
    T is zero padded on the right to a multiple of 2^(levels - 1) and cut again.
    Raises `ConfigError` for sizes that don't fit, `DataError` for other inputs.
    """

    def __init__(
        self, bins: int = 256, in_channels: int = 4, out_channels: int = 2, width: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 2, 2, 2), blocks: int = 2,
        attention: Sequence[int] = (16,), pyramids: bool = True, timed: bool = True,
        divide: Divide = "before", fourier_scale: float = 16.0,
    ) -> None:
        super().__init__()
        _check(bins, width, multipliers, blocks)
        self.bins, self.in_channels, self.divide = bins, in_channels, divide if timed else "never"
        self.multiple = 2 ** (len(multipliers) - 1)  # of T
        self.time = TimeEmbedding(width, fourier_scale) if timed else None
        self.first = _convolution(in_channels, width)
        channels = [width * m for m in multipliers]
        heights = [bins // 2**i for i in range(len(channels))]

        self.down = nn.ModuleList()
        now, skips = width, [width]
        for i, out in enumerate(channels):
            level = Level(now, [0] * blocks, out, blocks if heights[i] in attention else 0)
            now = out
            skips += [now] * blocks
            if i < len(channels) - 1:
                level.resample = ResBlock(now, now, "down")
                level.merge = _convolution(in_channels, now, size=1) if pyramids else None
                skips.append(now)
            self.down.append(level)

        self.middle = nn.ModuleList([ResBlock(now, now), Attention(now), ResBlock(now, now)])

        self.up = nn.ModuleList()
        for i in reversed(range(len(channels))):
            taken = [skips.pop() for _ in range(blocks + 1)]
            level = Level(now, taken, channels[i], int(heights[i] in attention))
            now = channels[i]
            if pyramids:
                level.head = Head(now, in_channels)
            if i > 0:
                level.resample = ResBlock(now, now, "up")
            self.up.append(level)
        self.last = None if pyramids else Head(now, in_channels)
        self.output = nn.Conv2d(in_channels, out_channels, 1)

        # What the time adds to each block, for all of them in one product.
        timed_blocks = [m for m in self.modules() if isinstance(m, ResBlock)]
        self.sizes = [b.out_channels for b in timed_blocks]
        self.shifts = _shifts(4 * width, self.sizes) if timed else None

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x [B, C, F, T]; t [B] above 0, or None for a network without time."""
        self._check_input(x, t)
        frames = x.shape[-1]
        x = F.pad(x, (0, -frames % self.multiple))
        shifts = self._shifts(t)
        h, pyramid = self.first(x), x
        skips = [h]
        for level in cast("Iterable[Level]", self.down):
            for i, block in enumerate(level.blocks):
                h = block(h, next(shifts))
                h = level.attend[i](h) if level.attend else h
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h, next(shifts))
                if level.merge is not None:
                    pyramid = fir_down(pyramid)
                    h = h + level.merge(pyramid)
                skips.append(h)

        first, attend, second = self.middle
        h = second(attend(first(h, next(shifts))), next(shifts))

        out: Any = None
        for level in cast("Iterable[Level]", self.up):
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), next(shifts))
            for attend in level.attend:
                h = attend(h)
            if level.head is not None:
                added = level.head(h)
                out = added if out is None else fir_up(out) + added
            if level.resample is not None:
                h = level.resample(h, next(shifts))
        out = out if self.last is None else self.last(h)
        return self._finished(out, t)[..., :frames]

    def _finished(self, out: Tensor, t: Tensor | None) -> Tensor:
        if t is None or self.divide == "never":
            found: Tensor = self.output(out)
        else:
            by = t[:, None, None, None]
            found = self.output(out / by) if self.divide == "before" else self.output(out) / by
        return found

    def _shifts(self, t: Tensor | None) -> Iterator[Tensor | None]:
        """What the time adds, block by block in the order of `modules()`."""
        if self.shifts is None or self.time is None or t is None:
            return iter([None] * len(self.sizes))
        added = self.shifts(F.silu(self.time(t)))
        return iter(torch.split(added[:, :, None, None], self.sizes, dim=1))

    def _check_input(self, x: Tensor, t: Tensor | None) -> None:
        if x.ndim != 4 or x.shape[1:3] != (self.in_channels, self.bins) or not x.shape[3]:
            raise DataError(
                f"a spectrogram of shape {tuple(x.shape)}",
                expected=f"[B, {self.in_channels}, {self.bins}, T], T > 0",
            )
        if (t is None) != (self.time is None):
            raise DataError(
                f"a time {'is missing' if t is None else 'was given'}",
                expected="t [B]" if t is None else "no time: the network was built without",
            )
        if t is not None and t.shape != x.shape[:1]:
            raise DataError(f"times of shape {tuple(t.shape)}", expected=f"[{x.shape[0]}]")


class Level(nn.Module):
    """The blocks of one size. `resample`, `merge` and `head` are set where a level has them."""

    def __init__(self, start: int, skips: Sequence[int], out: int, attentions: int) -> None:
        super().__init__()
        inputs = [start] + [out] * (len(skips) - 1)
        self.blocks = nn.ModuleList(
            ResBlock(a + b, out) for a, b in zip(inputs, skips, strict=True)
        )
        self.attend = nn.ModuleList(Attention(out) for _ in range(attentions))
        self.head: Head | None = None
        self.merge: nn.Conv2d | None = None
        self.resample: ResBlock | None = None


class ResBlock(nn.Module):
    """Two convolutions with what the time adds between them; optionally to half or twice the size.

    >>> ResBlock(8, 16, "down")(torch.zeros(1, 8, 4, 4), torch.zeros(1, 16, 1, 1)).shape
    torch.Size([1, 16, 2, 2])
    """

    def __init__(
        self, in_channels: int, out_channels: int,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.out_channels, self.resample = out_channels, resample
        self.norm1 = _norm(in_channels)
        self.conv1 = _convolution(in_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.conv2 = _convolution(out_channels, out_channels, scale=NONE)
        plain = in_channels == out_channels and resample is None
        self.shortcut = None if plain else _convolution(in_channels, out_channels, size=1)

    def forward(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """x [B, C, H, W], shift [B, C', 1, 1] -> [B, C', H', W']."""
        h = F.silu(self.norm1(x))
        if self.resample is not None:
            change = fir_down if self.resample == "down" else fir_up
            h, x = change(h), change(x)
        h = self.conv1(h)
        h = h if shift is None else h + shift
        h = self.conv2(F.silu(self.norm2(h)))
        x = x if self.shortcut is None else self.shortcut(x)
        found: Tensor = (x + h) * math.sqrt(0.5)
        return found


class Attention(nn.Module):
    """Every position attends to every other, one head, memory linear in their number.

    >>> Attention(8)(torch.zeros(2, 8, 4, 3)).shape
    torch.Size([2, 8, 4, 3])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        _uniform(self.qkv, 0.1 / channels)
        self.out = nn.Linear(channels, channels)
        _uniform(self.out, NONE / channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]
        q, k, v = self.qkv(h)[:, None].chunk(3, dim=-1)
        h = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        back: Tensor = h.transpose(1, 2).reshape(batch, channels, height, width)
        return (x + back) * math.sqrt(0.5)


class Head(nn.Module):
    """From features to the pyramid's channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.conv = _convolution(channels, out, scale=NONE)

    def forward(self, h: Tensor) -> Tensor:
        found: Tensor = self.conv(F.silu(self.norm(h)))
        return found


class TimeEmbedding(nn.Module):
    """t [B] -> [B, 4 width], by random frequencies of ln t.

    >>> TimeEmbedding(8)(torch.tensor([0.03, 1.0])).shape
    torch.Size([2, 32])
    """

    def __init__(self, width: int, scale: float = 16.0) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(width) * scale, requires_grad=False)
        self.inner = nn.Linear(2 * width, 4 * width)
        self.outer = nn.Linear(4 * width, 4 * width)
        _uniform(self.inner, 2 / (6 * width))
        _uniform(self.outer, 1 / (4 * width))

    def forward(self, t: Tensor) -> Tensor:
        # The product with 2 pi comes last: the angles are large, and another order of rounding
        # gives other features than those that published weights were trained with.
        angles = t.log()[:, None] * self.frequencies * 2 * math.pi
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        found: Tensor = self.outer(F.silu(self.inner(features)))
        return found


def _norm(channels: int) -> nn.GroupNorm:
    groups = min(channels // 4, 32)
    if groups < 1 or channels % groups:
        raise ConfigError(
            f"a layer of {channels} channels in {groups} groups",
            expected="a multiple of 4, and of 32 above 128", mend="take another width",
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _convolution(in_channels: int, out: int, *, size: int = 3, scale: float = 1.0) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out, size, padding=size // 2)
    return _uniform(layer, scale / (size**2 * (in_channels + out) / 2))


def _shifts(features: int, sizes: Sequence[int]) -> nn.Linear:
    """One layer for all blocks; each block's rows are drawn as a layer of its own would be."""
    layer = nn.Linear(features, sum(sizes))
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for rows, size in zip(torch.split(layer.weight, list(sizes)), sizes, strict=True):
            bound = math.sqrt(3 / ((features + size) / 2))
            rows.uniform_(-bound, bound)
    return layer


def _uniform(layer: Layer, variance: float) -> Layer:
    bound = math.sqrt(3 * variance)
    nn.init.uniform_(layer.weight, -bound, bound)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _check(bins: int, width: int, multipliers: Sequence[int], blocks: int) -> None:
    if width < 1 or blocks < 1 or not multipliers or min(multipliers) < 1:
        raise ConfigError(
            f"width {width}, multipliers {tuple(multipliers)}, blocks {blocks}",
            expected="all of them at least 1, and one multiplier or more",
        )
    if bins % 2 ** (len(multipliers) - 1) or not bins:
        raise ConfigError(
            f"{bins} bins on {len(multipliers)} levels",
            expected=f"a multiple of {2 ** (len(multipliers) - 1)} bins",
            mend="fewer multipliers, or n_fft = 2 bins - 2 of such a number",
        )
