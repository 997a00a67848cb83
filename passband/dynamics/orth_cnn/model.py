"""L_orth: zero iff a convolution is orthogonal, for every image size at once.

Problem: a convolution with kernel K [M, C, *k], stride S and circular padding is a matrix calK that
turns C prod(S) N^n inputs into M N^n outputs, far too large to look at. How far is it from being
orthogonal (rows if M <= C prod S, else columns)? One small tensor says it:

    A[m, l, d] = sum_{c, i} K[m, c, i] K[l, c, i + S d]        d: shifts at which K overlaps itself
    L_orth(K)  = ||A - I0||^2 - max(0, M - C prod S)           I0: identity at d = 0, else 0
    err_F^2    = N^n L_orth                                    err_F = ||calK calK^T - I||_F, or
                                                               ||calK^T calK - I||_F for columns
    err_s^2   <= alpha L_orth                                  spectral norm, whatever N is

The definition is a convolution of K with itself (method "conv"). Here it is folded to stride 1
first (space-to-depth), and the side with fewer channels is taken, of which the constant vanishes:

    W [R, Q, *k']: the folded kernel or its transpose, R <= Q
    B_d = sum_i W[:, :, i] W[:, :, i + d]'
    L = ||B_0 - I||^2 + 2 sum over half of the shifts ||B_d||^2
    L = mean over frequencies of ||W(f) W(f)^H - I||^2            on a grid of (2 k' - 1)^n

Sources: Achour, Malgouyres, Mamalet, JMLR 23 (2022), arXiv 2108.05623; the penalty without the
square and the constant (`form="norm"`) is that of Wang et al., CVPR 2020, arXiv 1911.12207.

>>> weight = torch.arange(1.0, 37.0).view(2, 2, 3, 3) / 50
>>> round(float(lorth(weight)), 2), round(float(lorth(weight, stride=2)), 2)
(169.53, 49.87)
>>> layer = nn.Conv2d(16, 32, 3, padding=1, padding_mode="circular")
>>> loss = layer(torch.randn(4, 16, 8, 8)).square().mean() + 0.01 * lorth(layer.weight)
>>> loss.backward()
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from passband.dynamics.orth_cnn.folding import folded
from passband.dynamics.orth_cnn.geometry import Geometry, Sizes
from passband.errors import ConfigError, DataError

Form = Literal["squared", "norm"]
Method = Literal["auto", "conv", "gemm", "pairs", "fft"]
HALF = (torch.float16, torch.bfloat16)
TINY = 1e-30  # below it a norm has no gradient


def lorth(
    weight: Tensor, stride: Sizes = 1, groups: int = 1, *, dilation: Sizes = 1,
    form: Form = "squared", method: Method = "auto",
) -> Tensor:
    """The penalty of one convolution, a scalar.

    weight  [M, C / groups, *k] with one to three axes, as torch stores it. That of a transposed
            convolution [C_in, C_out / groups, *k] is given as it is: its matrix is the transpose
    stride  of the layer, one or one an axis; groups: the sum over them is taken
    form    "squared", or "norm": sum over groups of ||A - I0||, without the constant. Its gradient
            has length 1 however near 0 is; where it is 0 the gradient is 0
    method  "conv" is the definition; "gemm" one product for each of half of the shifts; "pairs" all
            their pairs of taps in one batched product, for few channels; "fft" for large kernels;
            "auto" chooses. All give the same to rounding

    Half precision is summed in float32. Raises `DataError` for another shape, whole numbers (a
    quantised kernel can be measured, not trained: convert it) and groups that don't divide M.

    >>> centre = torch.zeros(4, 4, 3, 3)
    >>> centre[:, :, 1, 1] = torch.eye(4)
    >>> float(lorth(centre)), float(lorth(centre, form="norm"))
    (0.0, 0.0)
    """
    if groups < 1 or (weight.dim() and weight.shape[0] % groups):
        Geometry.of(weight.shape, stride, groups, dilation)  # raises
    stack = weight.reshape(groups, -1, *weight.shape[1:])
    return lorth_stack(stack, stride, dilation=dilation, form=form, method=method).sum()


def lorth_stack(
    weights: Tensor, stride: Sizes = 1, *, dilation: Sizes = 1, form: Form = "squared",
    method: Method = "auto",
) -> Tensor:
    """Penalties [B] of many kernels [B, M, C, *k] of one shape at once; as `lorth`.

    >>> lorth_stack(torch.randn(5, 8, 4, 3, 3), stride=2).shape
    torch.Size([5])
    """
    if not weights.is_floating_point():
        raise DataError(f"weights of type {weights.dtype}", expected="real numbers",
                        mend="weight.dequantize() or weight.float() to measure it")
    geometry = Geometry.of(weights.shape[1:], stride, 1, dilation)
    if method not in METHODS:
        raise ConfigError(f"method = {method!r}", expected=f"one of {', '.join(METHODS)}")
    if form not in FORMS:
        raise ConfigError(f"form = {form!r}", expected=f"one of {', '.join(FORMS)}")
    # A - I0 is a small difference: autocast and half precision would leave nothing of it.
    with torch.autocast(weights.device.type, enabled=False):
        wide = weights.float() if weights.dtype in HALF else weights
        return FORMS[form](METHODS[method](wide, geometry), geometry)


# ---- forms ---------------------------------------------------------------------------------------


def _squared(value: Tensor, geometry: Geometry) -> Tensor:
    return value


def _norm(value: Tensor, geometry: Geometry) -> Tensor:
    # The clamp stops the infinite gradient of a root at 0: there 0 is a subgradient.
    return (value + geometry.excess).clamp_min(TINY).sqrt() * (value + geometry.excess > 0)


FORMS: dict[str, Callable[[Tensor, Geometry], Tensor]] = {"squared": _squared, "norm": _norm}


# ---- methods -------------------------------------------------------------------------------------

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _by_convolution(weights: Tensor, geometry: Geometry) -> Tensor:
    """The definition, one kernel after the other."""
    stride = geometry.phases
    padding = tuple((k - 1) // s * s for k, s in zip(geometry.kernel, stride, strict=True))
    centre = tuple(p // s for p, s in zip(padding, stride, strict=True))
    convolve, found = _CONV[len(stride)], []
    for kernel in weights:
        overlap = convolve(kernel, kernel, stride=stride, padding=padding)
        target = torch.zeros_like(overlap)
        target[(..., *centre)] = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        found.append((overlap - target).square().sum())
    return torch.stack(found) - geometry.excess


def _by_products(weights: Tensor, geometry: Geometry) -> Tensor:
    side, constant = _smaller_side(weights, geometry)
    size = tuple(side.shape[3:])
    flat = side.flatten(2)
    total = _far(torch.bmm(flat, flat.mT)) + constant
    for shift in half_of_shifts(size):
        here, there = overlapping(side, shift)
        total = total + 2 * torch.bmm(here, there.mT).square().sum((1, 2))
    return total


def _by_pairs(weights: Tensor, geometry: Geometry) -> Tensor:
    side, constant = _smaller_side(weights, geometry)
    count, rows, columns = side.shape[:3]
    first, second, shifts = _pairs(tuple(side.shape[3:]), side.device)
    taps = side.flatten(3).permute(3, 0, 1, 2)  # [taps, B, R, Q]
    here = taps.index_select(0, first).view(-1, rows, columns)
    there = taps.index_select(0, second).view(-1, rows, columns)
    products = torch.bmm(here, there.mT).view(len(first), -1)
    # Sums over pairs of one shift as a product with zeros and ones: index_add is slower here.
    overlaps = (shifts.to(side.dtype) @ products).view(-1, count, rows, rows)
    around = 2 * overlaps[1:].square().sum((0, 2, 3))
    return _far(overlaps[0]) + around + constant


@lru_cache(maxsize=64)
def _pairs(size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Taps i and i + d of half of the shifts, 0 first: twice [P] numbers, and [D, P] whose d."""
    places = list(product(*map(range, size)))
    number = {place: n for n, place in enumerate(places)}
    kept = [(0,) * len(size), *half_of_shifts(size)]
    found = []
    for row, shift in enumerate(kept):
        for place in places:
            ahead = tuple(i + d for i, d in zip(place, shift, strict=True))
            if ahead in number:
                found.append((number[place], number[ahead], row))
    first, second, row_of = torch.tensor(found, device=device).T
    shifts = (row_of == torch.arange(len(kept), device=device)[:, None]).float()
    return first.contiguous(), second.contiguous(), shifts


def _by_fft(weights: Tensor, geometry: Geometry) -> Tensor:
    side, constant = _smaller_side(weights, geometry)
    axes = len(geometry.kernel)
    grid = [2 * k - 1 for k in side.shape[-axes:]]
    at = torch.fft.rfftn(side, s=grid, dim=tuple(range(-axes, 0)))
    at = at.flatten(3).permute(0, 3, 1, 2)  # [B, F, R, Q]
    apart = at @ at.mH - torch.eye(at.shape[2], dtype=at.dtype, device=at.device)
    # Of a real kernel half of the frequencies are given; on an odd grid all but 0 count twice.
    counts = torch.full((grid[-1] // 2 + 1,), 2.0, dtype=side.dtype, device=side.device)
    counts[0] = 1.0
    counts = counts.repeat(math.prod(grid[:-1])) / math.prod(grid)
    return torch.view_as_real(apart).square().sum((2, 3, 4)) @ counts + constant


def _automatically(weights: Tensor, geometry: Geometry) -> Tensor:
    return METHODS[choose(geometry, len(weights))](weights, geometry)


def choose(geometry: Geometry, count: int = 1) -> str:
    """The method that "auto" takes for so many kernels, by what was measured on CPUs.

    >>> shapes = ((64, 64, 3, 3), (128, 32, 3, 3), (512, 512, 3, 3), (64, 64, 7, 7))
    >>> [choose(Geometry.of(shape)) for shape in shapes]
    ['conv', 'pairs', 'gemm', 'fft']
    """
    taps = math.prod(-(-k // s) for k, s in zip(geometry.kernel, geometry.phases, strict=True))
    columns = geometry.C * math.prod(geometry.phases)
    if taps >= FFT_TAPS:
        return "fft"
    if count == 1 and min(columns, MANY) >= geometry.M:
        return "conv"  # nothing to gain from the other side, and too small for fewer products
    return "pairs" if min(geometry.M, columns) <= FEW else "gemm"


FFT_TAPS = 25  # of the folded kernel: half of its shifts as products cost more from here on
FEW, MANY = 64, 128  # channels of the smaller side up to which pairs, and the definition, are fast
METHODS: dict[str, Callable[[Tensor, Geometry], Tensor]] = {
    "auto": _automatically, "conv": _by_convolution, "gemm": _by_products, "pairs": _by_pairs,
    "fft": _by_fft,
}


def _smaller_side(weights: Tensor, geometry: Geometry) -> tuple[Tensor, int]:
    """W [B, R, Q, *k'] with R <= Q, of stride 1, and what L_orth has besides ||W W' - I||^2."""
    side = folded(weights, geometry.phases)
    rows, columns = side.shape[1:3]
    if rows <= columns:
        return side, 0
    # The Gram matrices of both sides differ by rows - columns; dilation may hide inputs besides.
    return side.transpose(1, 2), rows - columns - geometry.excess


def half_of_shifts(size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shifts at which kernels of this size overlap, one of each pair d and -d, without 0.

    >>> list(half_of_shifts((2, 2)))
    [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    zero = (0,) * len(size)
    return (d for d in product(*(range(1 - k, k) for k in size)) if d > zero)


def overlapping(kernels: Tensor, shift: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Taps i and i + d of kernels [B, R, Q, *k] where both are there: twice [B, R, Q taps].

    >>> here, there = overlapping(torch.tensor([[[[1.0, 2.0, 3.0]]]]), (1,))
    >>> here, there
    (tensor([[[1., 2.]]]), tensor([[[2., 3.]]]))
    """
    pairs = list(zip(shift, kernels.shape[3:], strict=True))
    here = tuple(slice(max(-d, 0), k - max(d, 0)) for d, k in pairs)
    there = tuple(slice(max(d, 0), k + min(d, 0)) for d, k in pairs)
    return kernels[(..., *here)].flatten(2), kernels[(..., *there)].flatten(2)


def _far(gram: Tensor) -> Tensor:
    """[B, R, R] -> ||gram - I||^2 of each."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return (gram - eye).square().sum((1, 2))
