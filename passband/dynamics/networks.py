"""Networks of the family, by name. All of them are `head(features(x))` with a linear head.

    x [B, *shape]  ->  features [B, d]  ->  logits [B, C]

>>> model = build("mlp", shape=(1, 8, 8), classes=10, hidden=(64, 32))
>>> model.features(torch.zeros(2, 1, 8, 8)).shape, model(torch.zeros(2, 1, 8, 8)).shape
(torch.Size([2, 32]), torch.Size([2, 10]))
>>> with torch.device("meta"):
...     sizes = {name: sum(p.numel() for p in build(name, (3, 32, 32), 10).parameters())
...              for name in ("resnet34", "preact_resnet18", "wide_resnet28")}
>>> sizes
{'resnet34': 21282122, 'preact_resnet18': 11171274, 'wide_resnet28': 36479194}

B batch, C classes, d features. Sources: He et al., arXiv 1512.03385 (ResNet-34 and 50; the stem of
3x3 without pooling is that of its CIFAR networks) and arXiv 1603.05027 (pre-activation);
Zagoruyko and Komodakis, arXiv 1605.07146 (WRN-28-10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.dynamics.inception import FEATURES, LEAST, inception_body
from passband.errors import ConfigError, UnknownNameError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LARGE = 128  # pixels from which a residual network halves images twice before its blocks


class Network(nn.Module):
    """Base: `body` gives features, `head` is linear on them.

    A subclass sets both and may override `features`.

    frozen_norm  batch normalisation keeps its statistics while the rest is trained
    """

    body: nn.Module
    head: nn.Linear
    frozen_norm = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.frozen_norm:
            for part in self.modules():
                if isinstance(part, NORMS):
                    part.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """[B, *shape] -> [B, d]."""
        return cast(Tensor, self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        """[B, *shape] -> logits [B, C]."""
        return cast(Tensor, self.head(self.features(x)))


class MLP(Network):
    """
    hidden   widths of the layers between; () is a linear classifier
    norm     batch normalisation before each ReLU
    dropout  after each ReLU
    """

    def __init__(
        self, shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (512, 512),
        norm: bool = False, dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        widths = [math.prod(shape), *hidden]
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes)


class ConvNet(Network):
    """Convolutions 3x3 of stride 1, each but the last followed by max-pooling by 2.

    channels  of each convolution
    pool      what the head sees: "mean" over pixels, or "flat", all of them
    """

    def __init__(
        self, shape: Sequence[int], classes: int, *, channels: Sequence[int] = (32, 64, 128),
        norm: bool = False, dropout: float = 0.0, pool: str = "mean",
    ) -> None:
        super().__init__()
        colours, height, width = image_shape(shape)
        if not channels:
            raise ConfigError("channels = ()", expected="one convolution or more")
        least = 2 ** (len(channels) - 1)
        if min(height, width) < least:
            raise ConfigError(
                f"{len(channels)} convolutions on images of {height}x{width}",
                expected=f"at least {least} pixels each way: each pooling halves them",
                mend="fewer channels",
            )
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise([colours, *channels])):
            layers += [nn.MaxPool2d(2)] if i else []
            layers += [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else [])]
            layers += [nn.ReLU()]
        layers += [nn.AdaptiveAvgPool2d(1)] if pool == "mean" else []
        layers += [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
        self.body = nn.Sequential(*layers)
        pixels = 1 if pool == "mean" else (height // least) * (width // least)
        self.head = nn.Linear(channels[-1] * pixels, classes)


class BasicBlock(nn.Module):
    """[B, c_in, h, w] -> [B, c_out, h / stride, w / stride]: two convolutions beside a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.shortcut = _projection(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """The same with three convolutions and a quarter of the channels between; the 3x3 strides."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        middle = c_out // 4
        self.conv1 = nn.Conv2d(c_in, middle, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, c_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(c_out)
        self.shortcut = _projection(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
    )


class PreActBlock(nn.Module):
    """The same, norm and ReLU before each convolution; the shortcut starts after the first ReLU."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        y = self.conv1(active)
        return cast(Tensor, self.conv2(F.relu(self.norm2(y))) + shortcut)


class ResNet34(Network):
    """ResNet-34: a stem, four stages of basic blocks, the mean over pixels.

    width  channels of the first stage; 64 in the paper

    The stem is a 3x3 convolution; of images from 128 pixels on, as published, one of 7x7 with
    stride 2 and max-pooling.
    """

    block: ClassVar[Callable[[int, int, int], nn.Module]] = BasicBlock
    depths: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)
    expansion: ClassVar[int] = 1

    def __init__(
        self, shape: Sequence[int], classes: int, *, width: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        colours, *pixels = image_shape(shape)
        large = min(pixels) >= LARGE
        size, stride = (7, 2) if large else (3, 1)
        self.body = nn.Sequential(
            nn.Conv2d(colours, width, size, stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(width), nn.ReLU(),
            *([nn.MaxPool2d(3, 2, padding=1)] if large else []),
            *_stages(self.block, width, self.depths, expansion=self.expansion),
            *_pooled(dropout),
        )
        self.head = nn.Linear(8 * width * self.expansion, classes)


class ResNet50(ResNet34):
    """The same of bottleneck blocks, four times as wide where they end."""

    block, expansion = Bottleneck, 4


class PreActResNet18(Network):
    """Pre-activation ResNet-18 for small images, without a last norm and ReLU before pooling.

    That last norm is part of the published architecture; the networks of the papers here, made
    from one widespread implementation, lack it, and their parameter counts with it.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, *, width: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        colours, *_ = image_shape(shape)
        self.body = nn.Sequential(
            nn.Conv2d(colours, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            *_stages(PreActBlock, width, (2, 2, 2, 2)), *_pooled(dropout),
        )
        self.head = nn.Linear(8 * width, classes)


class WideResNet28(Network):
    """WRN-28-10: pre-activation in three stages of four blocks, with the last norm and ReLU.

    width  channels of the first stage; 160 in the paper, ten times the stem's
    """

    def __init__(
        self, shape: Sequence[int], classes: int, *, width: int = 160, dropout: float = 0.0
    ) -> None:
        super().__init__()
        colours, *_ = image_shape(shape)
        stem, last = 16, 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(colours, stem, 3, padding=1, bias=False),
            *_stages(PreActBlock, width, (4, 4, 4), stem=stem),
            nn.BatchNorm2d(last), nn.ReLU(), *_pooled(dropout),
        )
        self.head = nn.Linear(last, classes)


class InceptionResNetV2(Network):
    """Of noisy web images; see `passband.dynamics.inception`."""

    def __init__(self, shape: Sequence[int], classes: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        colours, *pixels = image_shape(shape)
        if min(pixels) < LEAST:
            raise ConfigError(
                f"images of {pixels[0]}x{pixels[1]} for inception_resnet_v2",
                expected=f"at least {LEAST} pixels each way", mend="network='resnet34'",
            )
        self.body = inception_body(colours, dropout)
        self.head = nn.Linear(FEATURES, classes)


def _stages(
    block: Callable[[int, int, int], nn.Module], width: int, depths: Sequence[int],
    expansion: int = 1, stem: int | None = None,
) -> list[nn.Module]:
    """Stages of twice the channels and half the pixels each; the first keeps the stem's pixels."""
    layers: list[nn.Module] = []
    channels = stem or width
    for stage, depth in enumerate(depths):
        out = width * 2**stage * expansion
        for i in range(depth):
            layers.append(block(channels, out, 2 if stage and not i else 1))
            channels = out
    return layers


def _pooled(dropout: float) -> list[nn.Module]:
    last = [nn.Dropout(dropout)] if dropout else []
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *last]


NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": MLP, "conv": ConvNet, "resnet34": ResNet34, "resnet50": ResNet50,
    "preact_resnet18": PreActResNet18, "wide_resnet28": WideResNet28,
    "inception_resnet_v2": InceptionResNetV2,
}
"""Name -> class; called with (shape, classes, **options)."""


def build(name: str, shape: Sequence[int], classes: int, **options: Any) -> Network:
    """A network with fresh weights.

    shape    of one example: (d,) or (channels, height, width)
    options  of the class; what it doesn't know is a `ConfigError`
    Raises `UnknownNameError` for a name, `ConfigError` for a shape the network can't take.
    """
    if name not in NETWORKS:
        raise UnknownNameError("network", name, NETWORKS)
    try:
        return NETWORKS[name](shape, classes, **options)
    except TypeError as error:
        raise ConfigError(
            f"network {name!r} with {', '.join(options) or 'no options'}: {error}",
            expected=f"options of {NETWORKS[name].__name__}",
        ) from None


def image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width) of an image's shape; raises `ConfigError` for a row of numbers."""
    if len(shape) != 3:
        raise ConfigError(
            f"examples of shape {list(shape)} for a convolutional network",
            expected="[channels, height, width]", mend="network='mlp' takes any shape",
        )
    channels, height, width = shape
    return channels, height, width


def count(module: nn.Module) -> int:
    """Number of parameters.

    >>> count(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in module.parameters())


def normalisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of images, or column of rows.

    x [N, *shape] -> both [1, channels, 1, 1] or [1, d]. A constant column gets deviation 1.

    >>> mean, std = normalisation(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    >>> mean, std
    (tensor([[1., 5.]]), tensor([[1., 1.]]))
    """
    axes = [0, *range(2, x.dim())]
    std, mean = torch.std_mean(x.double(), axes, correction=0, keepdim=True)
    std = torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))
    return mean.float(), std.float()
