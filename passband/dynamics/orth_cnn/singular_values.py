"""Singular values of a circular convolution, all of them, from one small matrix per frequency.

The kernel is folded to stride 1 and wrapped on the grid of outputs; its Fourier transform gives a
matrix [M, C prod S] for each of the N^n frequencies, whose singular values together are those of
calK. Nothing is approximated. Cost: O(N^n M C prod(S) min(M, C prod S)), half of it for a real K.

>>> weight = torch.arange(1.0, 37.0).view(2, 2, 3, 3) / 50
>>> values = conv_singular_values(weight, stride=1, size=8)
>>> values.shape, round(float(values.max()), 5), round(float(values.min()), 5)
(torch.Size([8, 8, 2]), 7.54945, 0.0111)

Source: Sedghi, Gupta, Long, ICLR 2019, arXiv 1805.10408, for stride 1; folding for the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passband.dynamics.orth_cnn.folding import dilated, folded, wrapped
from passband.dynamics.orth_cnn.geometry import Sizes, on_axes
from passband.errors import DataError

CELLS = 2**22  # complex numbers that are worked on at a time


@dataclass(frozen=True)
class Spread:
    """The ends of a convolution's spectrum at one image size.

    sigma_min, sigma_max  of min(M, C prod S) singular values for each frequency
    err_s                 largest |sigma^2 - 1|: ||calK calK^T - I|| or ||calK^T calK - I||
    err_f                 the same in Frobenius norm
    """

    sigma_min: float
    sigma_max: float
    err_s: float
    err_f: float


def conv_singular_values(
    weight: Tensor, stride: Sizes = 1, size: Sizes = 32, groups: int = 1, *, dilation: Sizes = 1,
) -> Tensor:
    """[*N, groups * min(M, C prod S)] in float64, descending within a group, for every frequency.

    weight  [M, C / groups, *k], also that of a transposed convolution as it is
    size    pixels of the layer's input (of its output if transposed), whole strides: N = size / S
    Raises `DataError` for sizes that are no multiples of the stride, and NaN.
    """
    n = _outputs(weight, stride, size)
    matrices = _at_frequencies(weight, stride, n, groups, dilation)
    half = torch.cat([torch.linalg.svdvals(at) for at in matrices])
    return _whole(half.view(*n[:-1], n[-1] // 2 + 1, -1), n)


def spread(
    weight: Tensor, stride: Sizes = 1, size: Sizes = 32, groups: int = 1, *, dilation: Sizes = 1,
) -> Spread:
    """The ends alone, from Gram matrices of the smaller side: several times faster.

    >>> found = spread(torch.eye(3)[:, :, None], size=5)
    >>> found.sigma_min, found.sigma_max
    (1.0, 1.0)
    """
    n = _outputs(weight, stride, size)
    low, high, apart, square = math.inf, 0.0, 0.0, []
    for at in _at_frequencies(weight, stride, n, groups, dilation):
        at = at if at.shape[-2] <= at.shape[-1] else at.mT
        eigenvalues = torch.linalg.eigvalsh(at @ at.mH).clamp_min(0)  # [F, groups, R]
        low, high = min(low, float(eigenvalues.min())), max(high, float(eigenvalues.max()))
        apart = max(apart, float((eigenvalues - 1).abs().max()))
        square.append((eigenvalues - 1).square().sum((1, 2)))
    half = torch.cat(square).view(*n[:-1], -1)
    total = float(_whole(half[..., None], n).sum())
    return Spread(math.sqrt(low), math.sqrt(high), apart, math.sqrt(total))


def _outputs(weight: Tensor, stride: Sizes, size: Sizes) -> tuple[int, ...]:
    if not 3 <= weight.dim() <= 5:
        raise DataError(f"a weight of shape {list(weight.shape)}", expected="[M, C / groups, *k]")
    if not torch.isfinite(weight).all():
        raise DataError("a weight with values that are not finite", expected="finite numbers")
    axes = weight.dim() - 2
    strides, sizes = on_axes(stride, axes, "stride"), on_axes(size, axes, "size")
    if any(n % s for n, s in zip(sizes, strides, strict=True)):
        raise DataError(
            f"an image of {' x '.join(map(str, sizes))} under stride {list(strides)}",
            expected="whole strides on every axis", mend="pad or crop it, or give another size",
        )
    return tuple(n // s for n, s in zip(sizes, strides, strict=True))


def _at_frequencies(
    weight: Tensor, stride: Sizes, n: Sequence[int], groups: int, dilation: Sizes
) -> Iterator[Tensor]:
    """Matrices [F, groups, M / groups, C prod S / groups], complex, of half of the frequencies."""
    axes = weight.dim() - 2
    if groups < 1 or weight.shape[0] % groups:
        raise DataError(f"{weight.shape[0]} channels in {groups} groups", expected="a divisor")
    kernel = weight.detach().cpu().double().reshape(groups, -1, *weight.shape[1:])
    wide = dilated(kernel, on_axes(dilation, axes, "dilation"))
    grid = wrapped(folded(wide, on_axes(stride, axes, "stride")), n)
    at = torch.fft.rfftn(grid, dim=tuple(range(-axes, 0))).flatten(3).permute(3, 0, 1, 2)
    yield from at.split(max(1, CELLS // at[0].numel()))


def _whole(half: Tensor, n: Sequence[int]) -> Tensor:
    """[*N[:-1], N[-1] // 2 + 1, ...] -> [*N, ...]: a real kernel has the same at f and -f."""
    mirrored = (n[-1] - 1) // 2
    back = half
    for axis, count in enumerate(n[:-1]):
        back = back.index_select(axis, -torch.arange(count) % count)
    last = len(n) - 1
    back = back.index_select(last, torch.arange(mirrored, 0, -1))
    return torch.cat([half, back], last).flatten(len(n))
