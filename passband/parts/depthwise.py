"""Depthwise convolution of sequences whose channels lie last.

    y[n, c] = b[c] + sum_j w[j, c] x[n stride + j dilation - left, c]       zero outside
    x [..., S, C], w [k, C] -> y [..., n, C]

>>> x = torch.randn(4, 67, 16)
>>> depthwise(x, torch.randn(5, 16), stride=2).shape
torch.Size([4, 34, 16])
>>> depthwise(x, torch.randn(20, 16), padding=(19, 0)).shape          # causal
torch.Size([4, 67, 16])

With channels last there is nothing to transpose between this and linear layers and norms. Forward,
and back to the input, it is a convolution in torch's channels-last layout, which vectorises over
channels: on one AVX2 core 0.25 to 0.75 of the time of as many shifted multiply-adds, and 0.05 to
0.7 of `conv1d`'s on [..., C, S]. The gradient of the weights is sums of shifted products, which
torch's own kernel takes longer for: a training step takes 0.3 to 0.45 of `conv1d`'s time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from passband.errors import ConfigError, DataError

CACHED = 1 << 18  # numbers that are multiplied and summed at a time, so that they stay in cache


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1,
    padding: int | tuple[int, int] | None = None, dilation: int = 1,
) -> Tensor:
    """Each channel filtered along the last axis but one.

    >>> depthwise(torch.ones(3, 1), torch.ones(3, 1))[:, 0]
    tensor([2., 3., 2.])

    x        [..., S, C];  weight [k, C];  bias [C]
    padding  zeros on both sides, or (left, right); None keeps S at stride 1 and gives
             ceil(S / stride) at others, with (k - 1) dilation // 2 of the zeros on the left

    -> [..., (S + left + right - (k - 1) dilation - 1) // stride + 1, C]. Differentiable once.
    Raises `DataError` for other shapes and sequences that are too short.
    """
    if weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
        raise DataError(
            f"x {tuple(x.shape)} with weight {tuple(weight.shape)}",
            expected="x [..., S, C], weight [k, C]",
        )
    reach = (weight.shape[0] - 1) * dilation
    if padding is None:
        padding = (reach // 2, reach - reach // 2)
    elif isinstance(padding, int):
        padding = (padding, padding)
    if x.shape[-2] + sum(padding) <= reach:
        raise DataError(
            f"a sequence of {x.shape[-2]} with padding {padding}",
            expected=f"more than {reach} in all",
        )
    rows = x.reshape(-1, *x.shape[-2:])
    apply: Any = _Depthwise.apply
    y: Tensor = apply(rows, weight, bias, stride, padding, dilation)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


class DepthwiseConv(nn.Module):
    """The same with weights of its own, initialised as `nn.Conv1d` is.

    >>> DepthwiseConv(16, kernel_size=5)(torch.randn(2, 3, 67, 16)).shape
    torch.Size([2, 3, 67, 16])

    Arguments as for `depthwise`; sizes below 1 raise `ConfigError`.
    """

    def __init__(
        self, channels: int, kernel_size: int, stride: int = 1,
        padding: int | tuple[int, int] | None = None, dilation: int = 1, bias: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (
            ("channels", channels), ("kernel_size", kernel_size), ("stride", stride),
            ("dilation", dilation),
        ):
            if value < 1:
                raise ConfigError(f"{name} {value}", expected="at least 1")
        self.stride, self.padding, self.dilation = stride, padding, dilation
        bound = 1 / math.sqrt(kernel_size)
        self.weight = nn.Parameter(torch.empty(kernel_size, channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., S, C] -> [..., n, C]."""
        return depthwise(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding,
            dilation=self.dilation,
        )


class _Depthwise(torch.autograd.Function):
    """x [R, S, C] -> [R, n, C]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int,
        padding: tuple[int, int], dilation: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.left, ctx.dilation = stride, padding[0], dilation
        ctx.biased = bias is not None
        even = padding[0] == padding[1]
        x = x if even else F.pad(x, (0, 0, *padding))
        y = F.conv2d(
            _image(x), _kernel(weight), bias, (1, stride), (0, padding[0] if even else 0),
            (1, dilation), groups=weight.shape[1],
        )
        return _rows(y)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = _input_gradient(dy, weight, x.shape[1], ctx.stride, ctx.left, ctx.dilation)
        if ctx.needs_input_grad[1]:
            dw = _weight_gradient(dy, x, weight, ctx.stride, ctx.left, ctx.dilation)
        if ctx.biased and ctx.needs_input_grad[2]:
            db = dy.sum((0, 1))
        return dx, dw, db, None, None, None


def _image(x: Tensor) -> Tensor:
    """[R, S, C] as [R, C, 1, S] in the channels-last layout: a view."""
    return x.contiguous().permute(0, 2, 1)[:, :, None]


def _rows(image: Tensor) -> Tensor:
    return image[:, :, 0].permute(0, 2, 1)


def _kernel(weight: Tensor) -> Tensor:
    return weight.t()[:, None, None]


def _input_gradient(
    dy: Tensor, weight: Tensor, size: int, stride: int, left: int, dilation: int
) -> Tensor:
    full = _rows(F.conv_transpose2d(
        _image(dy), _kernel(weight.to(dy.dtype)), None, (1, stride), groups=weight.shape[1],
        dilation=(1, dilation),
    ))
    # Where the stride skips the last samples, they had no part in the output.
    full = F.pad(full, (0, 0, 0, max(0, left + size - full.shape[1])))
    return full[:, left : left + size]


def _weight_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, stride: int, left: int, dilation: int
) -> Tensor:
    dw = torch.zeros_like(weight)
    size, channels = x.shape[1:]
    at_once = max(1, CACHED // max(1, size * channels))
    for some_dy, some_x in zip(torch.split(dy, at_once), torch.split(x, at_once), strict=True):
        for j in range(len(weight)):
            offset = j * dilation - left
            first = max(0, -(offset // stride))  # the first output that the tap has an input for
            last = min(dy.shape[1] - 1, (size - 1 - offset) // stride)
            if last < first:
                continue
            start, stop = first * stride + offset, last * stride + offset + 1
            product = some_dy[:, first : last + 1] * some_x[:, start:stop:stride]
            dw[j] += product.sum((0, 1))
    return dw
