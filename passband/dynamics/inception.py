"""Inception-ResNet-v2, the network of the noisy web images: modules of parallel branches.

    stem 299 -> 35 pixels, 10 residual modules A, 35 -> 17, 20 of B, 17 -> 8, 10 of C, the mean

>>> with torch.device("meta"):
...     body = inception_body(3)
...     sum(p.numel() for p in body.parameters())
54306464

Source: Szegedy et al., arXiv 1602.07261; sizes and scales of branches are those of the published
TensorFlow weights, which differ from the paper's figures in places.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEATURES = 1536
LEAST = 75  # pixels, of which one is left in the end

Size = int | tuple[int, int]


def inception_body(colours: int, dropout: float = 0.0) -> nn.Sequential:
    """Images [B, colours, height, width] of 75 pixels or more -> features [B, 1536]."""
    stem = [
        Conv(colours, 32, 3, stride=2, pad=False), Conv(32, 32, 3, pad=False), Conv(32, 64, 3),
        nn.MaxPool2d(3, 2), Conv(64, 80, 1), Conv(80, 192, 3, pad=False), nn.MaxPool2d(3, 2),
    ]
    mean = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
    widen = Branches(
        Conv(192, 96, 1), chain(192, (48, 1), (64, 5)), chain(192, (64, 1), (96, 3), (96, 3)),
        nn.Sequential(mean, Conv(192, 64, 1)),
    )  # 320
    first = [
        Residual(320, 128, 0.17, Conv(320, 32, 1), chain(320, (32, 1), (32, 3)),
                 chain(320, (32, 1), (48, 3), (64, 3)))
        for _ in range(10)
    ]
    halve = Branches(
        Conv(320, 384, 3, stride=2, pad=False), reduced(320, (256, 1), (256, 3), (384, 3)),
        nn.MaxPool2d(3, 2),
    )  # 1088
    second = [
        Residual(1088, 384, 0.1, Conv(1088, 192, 1),
                 chain(1088, (128, 1), (160, (1, 7)), (192, (7, 1))))
        for _ in range(20)
    ]
    again = Branches(
        reduced(1088, (256, 1), (384, 3)), reduced(1088, (256, 1), (288, 3)),
        reduced(1088, (256, 1), (288, 3), (320, 3)), nn.MaxPool2d(3, 2),
    )  # 2080
    third = [
        Residual(2080, 448, 1.0 if last else 0.2, Conv(2080, 192, 1),
                 chain(2080, (192, 1), (224, (1, 3)), (256, (3, 1))), act=not last)
        for last in (*[False] * 9, True)
    ]
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(
        *stem, widen, *first, halve, *second, again, *third, Conv(2080, FEATURES, 1), *end
    )


class Conv(nn.Sequential):
    """Convolution without bias, norm, ReLU. `pad`: as many pixels as came, at stride 1."""

    def __init__(
        self, c_in: int, c_out: int, size: Size, *, stride: int = 1, pad: bool = True
    ) -> None:
        sides = size if isinstance(size, tuple) else (size, size)
        padding = tuple(side // 2 for side in sides) if pad else 0
        super().__init__(
            nn.Conv2d(c_in, c_out, sides, stride, padding, bias=False),  # type: ignore[arg-type]
            nn.BatchNorm2d(c_out, eps=1e-3), nn.ReLU(),
        )


def chain(c_in: int, *layers: tuple[int, Size]) -> nn.Sequential:
    """Convolutions one after the other, (channels, size) each.

    >>> chain(4, (2, 1), (3, (1, 7)))(torch.zeros(1, 4, 9, 9)).shape
    torch.Size([1, 3, 9, 9])
    """
    widths = [c_in, *(width for width, _ in layers)]
    return nn.Sequential(*(
        Conv(a, b, size) for (a, b), (_, size) in zip(pairwise(widths), layers, strict=True)
    ))


def reduced(c_in: int, *layers: tuple[int, Size]) -> nn.Sequential:
    """The same, the last with stride 2 and without padding."""
    *before, (width, size) = layers
    end = Conv(before[-1][0], width, size, stride=2, pad=False)
    return nn.Sequential(*chain(c_in, *before), end)


class Branches(nn.Module):
    """Channels of all branches, one after the other."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Residual(Branches):
    """x + scale W branches(x), ReLU unless `act` is False.

    channels, inner  of x, and of all branches together
    """

    def __init__(
        self, channels: int, inner: int, scale: float, *branches: nn.Module, act: bool = True
    ) -> None:
        super().__init__(*branches)
        self.scale, self.act = scale, act
        self.project = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.scale * self.project(super().forward(x))
        return F.relu(y) if self.act else y
