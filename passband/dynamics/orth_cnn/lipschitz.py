"""Lipschitz constants of single layers in the Euclidean norm: exact, or bounds from above.

    constant_of(module, shape in, shape out)  ->  a number, or the reason why there is none

A convolution with any padding is a part of a circular one on a larger grid, after a padding that
repeats each pixel at most r times: sqrt(r) sigma_max of that grid bounds it (zero padding: r = 1).

>>> constant_of(nn.LeakyReLU(0.2), (1, 4), (1, 4))
1.0
>>> constant_of(nn.MaxPool2d(3, stride=2), (1, 4, 9, 9), (1, 4, 4, 4))      # a pixel in 4 windows
2.0
>>> constant_of(nn.LayerNorm(4), (1, 4), (1, 4))
'LayerNorm has no constant here'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from passband.dynamics.orth_cnn.geometry import on_axes
from passband.dynamics.orth_cnn.network import GroupSort
from passband.dynamics.orth_cnn.regularizer import CONVOLUTIONS, TRANSPOSED
from passband.dynamics.orth_cnn.singular_values import spread

Shape = Sequence[int]
Rule = Callable[[Any, Shape, Shape], float | str]


def constant_of(module: nn.Module, given: Shape, out: Shape) -> float | str:
    """
    given, out  shapes [1, ...] of its input and output, in evaluation mode
    """
    for kinds, rule in RULES:
        if isinstance(module, kinds):
            return rule(module, given, out)
    return f"{type(module).__name__} has no constant here"


def padding_of(layer: Any) -> list[tuple[int, int]]:
    """Pixels that a convolution adds before and after each axis."""
    axes = len(layer.kernel_size)
    if layer.padding == "valid":
        return [(0, 0)] * axes
    if layer.padding == "same":
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(n // 2, n - n // 2) for n in total]
    return [(p, p) for p in on_axes(layer.padding, axes, "padding", least=0)]


def is_circular(layer: Any, size: Shape, outputs: Shape) -> bool:
    """Whether a convolution is the circular one of the theory: every stride one output."""
    whole = all(
        n % s == 0 and o == n // s for n, s, o in zip(size, layer.stride, outputs, strict=True)
    )
    if not whole or isinstance(layer, TRANSPOSED):
        return False
    if layer.padding_mode == "circular":
        return True
    # Without any padding needed, all paddings are the same.
    return all(before == after == 0 for before, after in padding_of(layer))


def _convolution(layer: Any, given: Shape, out: Shape) -> float:
    size, outputs = given[2:], out[2:]
    weight, groups, dilation = layer.weight, layer.groups, layer.dilation
    if is_circular(layer, size, outputs):
        return spread(weight, layer.stride, size, groups, dilation=dilation).sigma_max
    padded = [n + a + b for n, (a, b) in zip(size, padding_of(layer), strict=True)]
    repeats = math.prod(
        _repeats(n, before, after, layer.padding_mode)
        for n, (before, after) in zip(size, padding_of(layer), strict=True)
    )
    grid = _whole_strides(padded, layer.stride)
    bound = spread(weight, layer.stride, grid, groups, dilation=dilation).sigma_max
    return math.sqrt(repeats) * bound


def _transposed(layer: Any, given: Shape, out: Shape) -> float:
    spans = [d * (k - 1) + 1 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    full = [(n - 1) * s + w for n, s, w in zip(given[2:], layer.stride, spans, strict=True)]
    grid = _whole_strides([max(f, o) for f, o in zip(full, out[2:], strict=True)], layer.stride)
    return spread(
        layer.weight, layer.stride, grid, layer.groups, dilation=layer.dilation
    ).sigma_max


def _repeats(size: int, before: int, after: int, mode: str) -> int:
    """How often a padding shows the same pixel at most."""
    if mode == "zeros" or before + after == 0:
        return 1
    pixels = torch.arange(size, dtype=torch.float64).view(1, 1, size)
    shown = F.pad(pixels, (before, after), mode=mode).long().ravel()
    return int(torch.bincount(shown).max())


def _whole_strides(size: Shape, stride: Shape) -> tuple[int, ...]:
    return tuple(-(-n // s) * s for n, s in zip(size, stride, strict=True))


def _dense(layer: Any, given: Shape, out: Shape) -> float:
    return float(torch.linalg.matrix_norm(layer.weight.detach().cpu().double(), 2))


def _batch_norm(layer: Any, given: Shape, out: Shape) -> float | str:
    if layer.running_var is None:
        return "batch normalisation without running statistics depends on the batch"
    scale = layer.weight if layer.weight is not None else torch.ones(1)
    return float((scale.detach().abs() / (layer.running_var + layer.eps).sqrt()).max())


def _windows(layer: Any, axes: int) -> int:
    """Windows of a pooling in which a pixel is at most."""
    kernel = on_axes(layer.kernel_size, axes, "kernel_size")
    stride = on_axes(layer.stride, axes, "stride")
    return math.prod(-(-k // s) for k, s in zip(kernel, stride, strict=True))


def _max_pool(layer: Any, given: Shape, out: Shape) -> float | str:
    if on_axes(layer.dilation, len(given) - 2, "dilation") != (1,) * (len(given) - 2):
        return "dilated pooling has no constant here"
    return math.sqrt(_windows(layer, len(given) - 2))


def _mean_pool(layer: Any, given: Shape, out: Shape) -> float | str:
    if getattr(layer, "divisor_override", None):
        return "pooling with a divisor of its own has no constant here"
    axes = len(given) - 2
    if layer.count_include_pad is False and any(on_axes(layer.padding, axes, "padding", 0)):
        return "pooling that leaves its padding out has no constant here"
    pixels = math.prod(on_axes(layer.kernel_size, axes, "kernel_size"))
    return math.sqrt(_windows(layer, axes) / pixels)


def _adaptive_pool(layer: Any, given: Shape, out: Shape) -> float | str:
    if any(n % m for n, m in zip(given[2:], out[2:], strict=True)):
        return "adaptive pooling to sizes that don't divide the image has no constant here"
    return math.sqrt(math.prod(out[2:]) / math.prod(given[2:]))


def _one(layer: Any, given: Shape, out: Shape) -> float:
    return 1.0


RULES: tuple[tuple[tuple[type, ...], Rule], ...] = (
    (CONVOLUTIONS, _convolution),
    (TRANSPOSED, _transposed),
    ((nn.Linear,), _dense),
    ((_BatchNorm,), _batch_norm),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _mean_pool),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive_pool),
    ((nn.LeakyReLU,), lambda m, given, out: max(1.0, abs(float(m.negative_slope)))),
    ((nn.ELU,), lambda m, given, out: max(1.0, abs(float(m.alpha)))),
    ((nn.PReLU,), lambda m, given, out: max(1.0, float(m.weight.detach().abs().max()))),
    ((nn.Sigmoid,), lambda m, given, out: 0.25),
    ((nn.GELU,), lambda m, given, out: 1.13),  # its slope is at most 1.1290
    ((nn.SiLU,), lambda m, given, out: 1.1),  # at most 1.0999
    ((
        GroupSort, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Identity, nn.Flatten,
        nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
        nn.Dropout3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
    ), _one),
)
