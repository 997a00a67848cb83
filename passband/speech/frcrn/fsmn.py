"""Feed-forward sequential memory: recurrence by a long filter, along frequency or time.

    p_n = V relu(W u_n + b)                       u_n [C], the n-th of a sequence
    y_n = u_n + p_n + sum_{k < K} a_k * p_{n-k}   * element by element, K taps, p = 0 before n = 0

The complex layer has two real ones, A and B, and applies them as a complex number would be
multiplied; each carries its own residual:

    (A(u_r) - B(u_i)) + i (A(u_i) + B(u_r))

A and B see both parts, so both parts of both layers are one batch here: one product with W, one
with V, one filter.

>>> memory = ComplexFSMN(16)
>>> z = torch.randn(2, 3, 16, 40, 25)               # [real | imaginary, B, C, F, T]
>>> memory(z, "frequency").shape, memory(z, "time").shape
(torch.Size([2, 3, 16, 40, 25]), torch.Size([2, 3, 16, 40, 25]))

Source: Zhang, Lei, Yan, Dai, Deep-FSMN for large vocabulary continuous speech recognition, ICASSP
2018; the complex form along frequency: Zhao et al., arXiv 2206.07293.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Axis = Literal["frequency", "time"]
DENSE = 4  # a filter of K taps is a matrix up to this many times K bins
State = dict[str, Tensor]  # what a layer remembers between two pieces of a stream


class FSMN(nn.Module):
    """A real memory layer on sequences [B, N, C] -> [B, N, C].

    >>> FSMN(16)(torch.randn(3, 40, 16)).shape
    torch.Size([3, 40, 16])

    size   C, features of an element
    order  K, taps of the filter: how far the layer remembers
    """

    def __init__(self, size: int, order: int = 20) -> None:
        super().__init__()
        self.inner = nn.Linear(size, size)
        self.project = nn.Linear(size, size, bias=False)
        self.taps = nn.Parameter(torch.empty(size, order))  # a_k, k = 0 first
        bound = order**-0.5
        nn.init.uniform_(self.taps, -bound, bound)

    def forward(self, u: Tensor) -> Tensor:
        p = self.project(self.inner(u).relu()).mT  # [B, C, N]
        size, order = self.taps.shape
        memory = F.conv1d(F.pad(p, (order - 1, 0)), self.taps.flip(1)[:, None], groups=size)
        return u + (p + memory).mT


class ComplexFSMN(nn.Module):
    """Two real layers on features with a real and an imaginary part: [2, B, C, F, T], same shape.

    Along frequency every frame is a sequence of its own; along time every bin is.
    """

    def __init__(self, size: int, order: int = 20) -> None:
        super().__init__()
        self.real, self.imaginary = FSMN(size, order), FSMN(size, order)

    def forward(self, z: Tensor, axis: Axis, state: State | None = None) -> Tensor:
        """state  of a stream along time, changed in place; None: the sequence begins here."""
        a, b = self.real, self.imaginary
        size, order = a.taps.shape
        inner = torch.cat([a.inner.weight, b.inner.weight])[..., None, None]
        project = torch.cat([a.project.weight, b.project.weight])[..., None, None]
        taps = torch.cat([a.taps, b.taps])
        taps = torch.cat([taps[:, :1] + 1, taps[:, 1:]], 1)  # p_n itself is one more tap
        hidden = F.conv2d(z.flatten(0, 1), inner, torch.cat([a.inner.bias, b.inner.bias]))
        p = F.conv2d(hidden.relu_(), project, groups=2)  # [2B, 2C, F, T]
        if axis == "frequency":
            m = along_frequency(p, taps)
        else:
            p = _after(p, order - 1, state)
            m = F.conv2d(p, taps[:, None, None].flip(-1), groups=2 * size)
        m = m.unflatten(1, (2, size)).unflatten(0, (2, -1))  # [2 parts, B, 2 layers, C, F, T]
        return torch.stack([
            z[0] - z[1] + m[0, :, 0] - m[1, :, 1],
            z[0] + z[1] + m[1, :, 0] + m[0, :, 1],
        ])


def along_frequency(p: Tensor, taps: Tensor) -> Tensor:
    """p [B, C, F, T] filtered along F: m_f = sum_k taps_k p_{f-k}, taps [C, K].

    >>> p, taps = torch.randn(2, 3, 9, 4), torch.randn(3, 20)
    >>> m = along_frequency(p, taps)
    >>> bool(torch.allclose(m[:, 0, 1], taps[0, 0] * p[:, 0, 1] + taps[0, 1] * p[:, 0, 0]))
    True

    For few bins a product with the filter's triangular matrix, which is up to ten times faster than
    the convolution it stands for.
    """
    bins, (size, order) = p.shape[2], taps.shape
    if bins > DENSE * order:
        kernel = taps[:, None, :, None].flip(2)
        return F.conv2d(F.pad(p, (0, 0, order - 1, 0)), kernel, groups=size)
    taps = F.pad(taps[:, :bins], (bins - 1, max(0, bins - order)))
    matrix = taps.unfold(1, bins, 1).flip(2)  # [C, F, F]: taps_(i - j), zeros above the diagonal
    return matrix @ p


def _after(p: Tensor, count: int, state: State | None) -> Tensor:
    """The frames before, or zeros, in front of p [..., T]; the last ones are kept for later."""
    if state is None:
        return F.pad(p, (count, 0))
    past = state.get("past")
    p = F.pad(p, (count, 0)) if past is None else torch.cat([past, p], -1)
    state["past"] = p[..., p.shape[-1] - count :]
    return p
