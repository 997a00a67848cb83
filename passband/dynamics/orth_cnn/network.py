"""Networks of circular convolutions: what the certificate speaks of.

    x [B, C, H, W] -> convolutions and activations -> pixels as they are -> linear -> [B, classes]

>>> model = CircularNet((1, 8, 8), 10, channels=(16, 32, 32), strides=(1, 2, 1))
>>> model.features(torch.zeros(2, 1, 8, 8)).shape
torch.Size([2, 512])
>>> GroupSort()(torch.tensor([[3.0, 1.0, 2.0, 4.0]]))
tensor([[1., 3., 2., 4.]])
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from passband.dynamics.networks import Network, image_shape
from passband.errors import ConfigError, DataError


class GroupSort(nn.Module):
    """Sorts neighbouring pairs of channels: 1-Lipschitz, and its gradient keeps its norm."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] of the same shape, C even."""
        if x.shape[1] % 2:
            raise DataError(f"{x.shape[1]} channels", expected="an even number to sort in pairs")
        pairs = x.unflatten(1, (-1, 2))
        return torch.stack([pairs.amin(2), pairs.amax(2)], 2).flatten(1, 2)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"groupsort": GroupSort, "relu": nn.ReLU}


class CircularNet(Network):
    """
    channels, strides  of each convolution; sides of the image have to be whole strides
    kernel             odd, one size for all
    activation         "groupsort" or "relu", after each convolution
    """

    def __init__(
        self, shape: Sequence[int], classes: int, *, channels: Sequence[int] = (16, 32, 32),
        strides: Sequence[int] = (1, 2, 1), kernel: int = 3, activation: str = "groupsort",
    ) -> None:
        super().__init__()
        colours, height, width = image_shape(shape)
        if len(channels) != len(strides) or not channels:
            raise ConfigError(
                f"{len(channels)} channels and {len(strides)} strides", expected="as many of each"
            )
        if kernel % 2 == 0:
            raise ConfigError(f"kernel = {kernel}", expected="an odd size")
        if activation == "groupsort" and any(c % 2 for c in channels):
            raise ConfigError(
                f"channels = {list(channels)} with groupsort", expected="even numbers",
                mend="activation='relu', or one channel more",
            )
        shrunk = math.prod(strides)
        if height % shrunk or width % shrunk:
            raise ConfigError(
                f"strides {list(strides)} on images of {height}x{width}",
                expected=f"sides that {shrunk} divides", mend="other strides or padded images",
            )
        if min(height, width) // shrunk < kernel // 2:
            raise ConfigError(
                f"images of {height}x{width} end at {height // shrunk}x{width // shrunk}",
                expected=f"at least {kernel // 2} pixels for a kernel of {kernel}",
            )
        layers: list[nn.Module] = []
        for (a, b), stride in zip(pairwise([colours, *channels]), strides, strict=True):
            layers += [
                nn.Conv2d(a, b, kernel, stride, padding=kernel // 2, padding_mode="circular"),
                ACTIVATIONS[activation](),
            ]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(channels[-1] * (height // shrunk) * (width // shrunk), classes)


def circular_(model: nn.Module) -> nn.Module:
    """Pad every convolution of a model circularly, in place: certificates speak of such alone.

    >>> circular_(nn.Conv2d(3, 4, 3, padding=1)).padding_mode
    'circular'
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.padding_mode = "circular"
    return model
