"""A strided convolution as one of stride 1: space-to-depth on its kernel.

    K [..., M, C, *k], stride S  ->  [..., M, C prod S, *k'],  k' = ceil(k / S), stride 1

Tap i of axis a becomes tap i // S of phase i % S; missing taps are zeros. Both have the same matrix
up to the order of the inputs, so the same singular values and the same penalty.

>>> folded(torch.randn(8, 4, 3, 3), (2, 2)).shape
torch.Size([8, 16, 2, 2])
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def folded(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """[..., M, C, *k] -> [..., M, C prod S, *k'], differentiable; one stride for each axis."""
    axes = len(stride)
    if all(s == 1 for s in stride):
        return kernel
    sizes = kernel.shape[-axes:]
    blocks = [-(-k // s) for k, s in zip(sizes, stride, strict=True)]
    lacking = [b * s - k for b, s, k in zip(blocks, stride, sizes, strict=True)]
    if any(lacking):
        kernel = F.pad(kernel, [n for missing in reversed(lacking) for n in (0, missing)])
    *batch, m, c = kernel.shape[:-axes]
    split = [n for pair in zip(blocks, stride, strict=True) for n in pair]
    first = len(batch) + 2
    order = (
        *range(first), *range(first + 1, first + 2 * axes, 2), *range(first, first + 2 * axes, 2)
    )
    return kernel.reshape(*batch, m, c, *split).permute(order).reshape(*batch, m, -1, *blocks)


def unfolded(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """The way back: [M, C prod S, *k'] -> [M, C, *(k' S)].

    >>> kernel = torch.randn(4, 2, 6, 3)
    >>> bool((unfolded(folded(kernel, (2, 3)), (2, 3)) == kernel).all())
    True
    """
    axes = len(stride)
    m, _, *blocks = kernel.shape
    split = kernel.reshape(m, -1, *stride, *blocks)
    order = (0, 1, *(n for a in range(axes) for n in (2 + axes + a, 2 + a)))
    sizes = [b * s for b, s in zip(blocks, stride, strict=True)]
    return split.permute(order).reshape(m, split.shape[1], *sizes)


def dilated(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    """Zeros between the taps: [..., *k] -> [..., *(d (k - 1) + 1)].

    >>> dilated(torch.ones(1, 1, 3), (2,))
    tensor([[[1., 0., 1., 0., 1.]]])
    """
    if all(d == 1 for d in dilation):
        return kernel
    axes = len(dilation)
    sizes = [d * (k - 1) + 1 for k, d in zip(kernel.shape[-axes:], dilation, strict=True)]
    wide = kernel.new_zeros(*kernel.shape[:-axes], *sizes)
    wide[(..., *(slice(None, None, d) for d in dilation))] = kernel
    return wide


def wrapped(kernel: Tensor, size: Sequence[int]) -> Tensor:
    """Taps on a circular grid [..., *size]; those beyond it come round and add up.

    >>> wrapped(torch.tensor([[[1.0, 2.0, 3.0]]]), (2,))
    tensor([[[4., 2.]]])
    """
    axes = len(size)
    for a, n in enumerate(size):
        axis = kernel.dim() - axes + a
        k = kernel.shape[axis]
        shape = list(kernel.shape)
        shape[axis] = n
        grid = kernel.new_zeros(shape)
        kernel = grid.index_add(axis, torch.arange(k, device=kernel.device) % n, kernel)
    return kernel
