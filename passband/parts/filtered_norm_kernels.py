"""The loops of `filtered_norm`, compiled by numba without the interpreter's lock.

A sequence passes filter, norm, activation and gate while it lies in the processor's cache; in the
backward pass its filtered form is computed again instead of read from memory.

    x [M, S, C] -> y [M, n, C];  weight [k, C];  bias, gain, shift [C];  slope [1] or [0]: none
    gate, added [M, O, C], O = 0: none;  stats [M, 2]: mean, and one over the deviation
    sums [k + 4, C] in double precision: gradients of weight, bias, gain, shift, slope (its first)

Sequences `first` to `last` are computed, so that several threads can share the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Array = NDArray[Any]

# Sums may be taken in any order, which lets them use vectors; NaN and infinity keep their meaning.
LOOSE = {"reassoc", "contract", "arcp", "nsz"}


def _compiled(function: F) -> F:
    compiler = numba.njit(nogil=True, cache=True, fastmath=LOOSE, error_model="numpy")
    return compiler(function)  # type: ignore[return-value]


@_compiled
def _filter(x: Array, weight: Array, bias: Array, stride: int, left: int, out: Array) -> None:
    taps, (size, channels) = len(weight), x.shape
    for i in range(len(out)):
        y, start = out[i], i * stride - left
        if taps == 5 and start >= 0 and start + 5 <= size:  # inside: one pass instead of five
            x0, x1, x2, x3, x4 = x[start], x[start + 1], x[start + 2], x[start + 3], x[start + 4]
            w0, w1, w2, w3, w4 = weight[0], weight[1], weight[2], weight[3], weight[4]
            for c in range(channels):
                y[c] = (
                    bias[c] + w0[c] * x0[c] + w1[c] * x1[c] + w2[c] * x2[c] + w3[c] * x3[c]
                    + w4[c] * x4[c]
                )
            continue
        for c in range(channels):
            y[c] = bias[c]
        for j in range(max(0, -start), min(taps, size - start)):
            w, row = weight[j], x[start + j]
            for c in range(channels):
                y[c] += w[c] * row[c]


@_compiled
def forward(
    x: Array, weight: Array, bias: Array, gain: Array, shift: Array, slope: Array, gate: Array,
    added: Array, stride: int, left: int, eps: float, out: Array, stats: Array, first: int,
    last: int,
) -> None:
    number = x.dtype.type
    positions, channels = out.shape[1:]
    size, coarse = positions * channels, gate.shape[1]
    for m in range(first, last):
        y = out[m]
        _filter(x[m], weight, bias, stride, left, y)
        total = 0.0  # sums over a row in the numbers' own precision, over rows in double
        for i in range(positions):
            row, part = y[i], number(0)
            for c in range(channels):
                part += row[c]
            total += part
        mean = number(total / size)
        total = 0.0
        for i in range(positions):  # about the mean: no digits are lost
            row, part = y[i], number(0)
            for c in range(channels):
                part += (row[c] - mean) * (row[c] - mean)
            total += part
        scale = number(1 / np.sqrt(total / size + eps))
        stats[m, 0], stats[m, 1] = mean, scale
        for i in range(positions):
            row = y[i]
            for c in range(channels):
                row[c] = (row[c] - mean) * scale * gain[c] + shift[c]
            if len(slope):
                below = slope[0]
                for c in range(channels):
                    row[c] = row[c] if row[c] > 0 else below * row[c]
            if coarse:
                at = i * coarse // positions
                factor, more = gate[m, at], added[m, at]
                for c in range(channels):
                    row[c] = row[c] * factor[c] + more[c]


@_compiled
def _gather(
    flow: Array, flipped: Array, silence: Array, x: Array, stride: int, left: int, into: Array,
    part: Array,
) -> None:
    """From the gradient of a filter's output to those of its input and, added up, its weights."""
    taps, positions, length, channels = len(flipped), len(flow), len(x), x.shape[1]
    if stride == 1:
        _filter(flow, flipped, silence, 1, left, into)
    else:
        into[:] = 0
    for j in range(taps):
        total, w = part[j], flipped[taps - 1 - j]
        first = max(0, (left - j + stride - 1) // stride)
        last = min(positions, (length - 1 + left - j) // stride + 1)
        i = first
        while i + 4 <= last:  # four at once: their sum is read and written once
            at = i * stride - left + j
            g0, g1, g2, g3 = flow[i], flow[i + 1], flow[i + 2], flow[i + 3]
            x0, x1, x2, x3 = x[at], x[at + stride], x[at + 2 * stride], x[at + 3 * stride]
            for c in range(channels):
                total[c] += g0[c] * x0[c] + g1[c] * x1[c] + g2[c] * x2[c] + g3[c] * x3[c]
            i += 4
        while i < last:
            g0, x0 = flow[i], x[i * stride - left + j]
            for c in range(channels):
                total[c] += g0[c] * x0[c]
            i += 1
        if stride != 1:
            for i in range(first, last):
                back, g0 = into[i * stride - left + j], flow[i]
                for c in range(channels):
                    back[c] += w[c] * g0[c]


@_compiled
def backward(
    grad: Array, x: Array, weight: Array, bias: Array, gain: Array, shift: Array, slope: Array,
    gate: Array, stats: Array, stride: int, left: int, dx: Array, d_gate: Array, d_added: Array,
    sums: Array, first: int, last: int,
) -> None:
    number = x.dtype.type
    positions, channels = grad.shape[1:]
    size, coarse, taps = positions * channels, gate.shape[1], len(weight)
    normed = np.empty((positions, channels), x.dtype)
    flow = np.empty_like(normed)
    part = np.empty(sums.shape, x.dtype)
    flipped, silence = weight[::-1].copy(), np.zeros(channels, x.dtype)
    d_bias, d_gain, d_shift = part[taps], part[taps + 1], part[taps + 2]
    for m in range(first, last):
        mean, scale = stats[m]
        _filter(x[m], weight, bias, stride, left, normed)
        part[:] = 0
        level, along = 0.0, 0.0  # means of the flow into the normed, alone and times the normed
        for i in range(positions):
            h, g, dy = normed[i], flow[i], grad[m, i]
            for c in range(channels):
                h[c] = (h[c] - mean) * scale
                g[c] = dy[c]
            below = slope[0] if len(slope) else number(1)
            if coarse:
                at = i * coarse // positions
                factor, by_gate, by_added = gate[m, at], d_gate[m, at], d_added[m, at]
                for c in range(channels):
                    value = h[c] * gain[c] + shift[c]
                    by_gate[c] += dy[c] * (value if value > 0 else below * value)
                    by_added[c] += dy[c]
                    g[c] *= factor[c]
            if len(slope):
                bent = number(0)
                for c in range(channels):
                    value = h[c] * gain[c] + shift[c]
                    bent += number(0) if value > 0 else value * g[c]
                    g[c] = g[c] if value > 0 else below * g[c]
                part[taps + 3, 0] += bent
            some, other = number(0), number(0)
            for c in range(channels):
                d_gain[c] += g[c] * h[c]
                d_shift[c] += g[c]
                g[c] *= gain[c]
                some += g[c]
                other += g[c] * h[c]
            level += some
            along += other
        by_level, by_along = number(level / size), number(along / size)
        into = dx[m]
        for i in range(positions):
            h, g = normed[i], flow[i]
            for c in range(channels):
                g[c] = scale * (g[c] - by_level - h[c] * by_along)
                d_bias[c] += g[c]
        _gather(flow, flipped, silence, x[m], stride, left, into, part)
        sums += part
