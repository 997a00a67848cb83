"""Depthwise filter, global norm, activation and gate of sequences with channels last, as one step.

    u = w * x                            depthwise, k taps centred, zeros outside
    v = PReLU((u - mean) / sqrt(var + eps) gain + shift)    mean, var of each sequence, gLN
    y = v up(gate) + up(added)           up: the nearest position below, floor(i O / n)

Filter, activation and gate may be left out. Written as torch's operations these are five to ten
passes over tensors that lie in memory; on a CPU compiled loops do them one sequence at a time, in
cache, and keep for the gradient the input alone. Elsewhere torch's operations are used.

>>> x = torch.randn(4, 67, 16)
>>> one, none = torch.ones(16), torch.zeros(16)
>>> y = filtered_norm(x, torch.randn(5, 16), none, one, none, stride=2)
>>> y.shape, bool(y.mean((1, 2)).abs().max() < 1e-5)
(torch.Size([4, 34, 16]), True)

Source: gLN after Luo and Mesgarani, Conv-TasNet (arXiv 1809.07454), eq. 7; gates after TIGER
(arXiv 2410.01469), section 3.3.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from passband.errors import DataError
from passband.parts.depthwise import depthwise

SHARED = 1 << 16  # numbers from which the work is shared among threads

Found = TypeVar("Found")


def filtered_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, gain: Tensor, shift: Tensor, *,
    stride: int = 1, slope: Tensor | None = None, gate: Tensor | None = None,
    added: Tensor | None = None, eps: float = 1e-8,
) -> Tensor:
    """x [..., S, C] -> [..., ceil(S / stride), C].

    >>> one, none = torch.ones(4), torch.zeros(4)
    >>> y = filtered_norm(torch.randn(2, 9, 4), None, None, one, none, slope=torch.zeros(1))
    >>> bool(y.min() == 0)
    True

    weight [k, C], k odd, None for no filter; bias [C] or None; gain, shift [C]
    slope        [1], of the activation where it is negative; None for no activation
    gate, added  [..., O, C] with O at most the output's length; both or none

    Half precision is computed in single. Differentiable once on a CPU. Raises `DataError` for other
    shapes.
    """
    _check(x, weight, gate, added, stride)
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if gate is not None and added is not None:
        gate, added = (t.to(x.dtype).reshape(-1, *t.shape[-2:]) for t in (gate, added))
    rows = x.reshape(-1, *x.shape[-2:])
    given = (rows, weight, bias, gain, shift, slope, gate, added, stride, eps)
    y = _compiled(*given) if _can_compile(x) else plain(*given)
    return y.reshape(*x.shape[:-2], *y.shape[-2:])


def _check(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, added: Tensor | None, stride: int
) -> None:
    if weight is not None and (weight.dim() != 2 or not weight.shape[0] % 2):
        raise DataError(
            f"a filter of shape {tuple(weight.shape)}", expected="[k, C] with an odd number of taps"
        )
    if (gate is None) != (added is None):
        raise DataError("gate or added alone", expected="both or none")
    length = -(-x.shape[-2] // stride)
    if gate is not None and added is not None and (
        gate.shape != added.shape or gate.shape[-2] > length
    ):
        raise DataError(
            f"gate {tuple(gate.shape)} and added {tuple(added.shape)} for {length} positions",
            expected="two of one shape, at most as long",
        )


def plain(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, gain: Tensor, shift: Tensor,
    slope: Tensor | None = None, gate: Tensor | None = None, added: Tensor | None = None,
    stride: int = 1, eps: float = 1e-8,
) -> Tensor:
    """The same by torch's operations: x [M, S, C] -> [M, n, C].

    >>> plain(torch.zeros(1, 3, 2), None, None, torch.ones(2), torch.ones(2))[0, 0]
    tensor([1., 1.])
    """
    u = x if weight is None else depthwise(x, weight, bias, stride=stride)
    y = torch.addcmul(shift, F.layer_norm(u, u.shape[-2:], eps=eps), gain)
    if slope is not None:
        y = F.prelu(y, slope)
    if gate is None or added is None:
        return y
    return torch.addcmul(nearest(added, y.shape[-2]), y, nearest(gate, y.shape[-2]))


def nearest(x: Tensor, size: int) -> Tensor:
    """x [M, O, C] at `size` positions, the nearest below: position floor(i O / size).

    >>> nearest(torch.tensor([[[1.0], [2.0]]]), 5)[0, :, 0]
    tensor([1., 1., 1., 2., 2.])
    """
    if x.shape[1] == size:
        return x
    return x.index_select(1, torch.arange(size, device=x.device) * x.shape[1] // size)


def _can_compile(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.numel() > 0
        and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()
        and _here()
    )


@cache
def _here() -> bool:
    return find_spec("numba") is not None


def _compiled(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, gain: Tensor, shift: Tensor,
    slope: Tensor | None, gate: Tensor | None, added: Tensor | None, stride: int, eps: float,
) -> Tensor:
    channels = x.shape[2]
    weight = x.new_ones(1, channels) if weight is None else weight
    bias = x.new_zeros(channels) if bias is None else bias
    slope = x.new_empty(0) if slope is None else slope
    gate = x.new_empty(len(x), 0, channels) if gate is None else gate
    added = gate if added is None else added
    same = (t.to(x.dtype) for t in (weight, bias, gain, shift, slope))
    apply: Any = _FilteredNorm.apply
    y: Tensor = apply(x, *same, gate, added, stride, eps)
    return y


class _FilteredNorm(torch.autograd.Function):
    """All given, in the shapes that filtered_norm_kernels.py names."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        from passband.parts import filtered_norm_kernels as kernels

        *tensors, stride, eps = given
        tensors = [t.contiguous() for t in (x, *tensors)]
        x, weight = tensors[:2]
        out = x.new_empty(x.shape[0], -(-x.shape[1] // stride), x.shape[2])
        stats = x.new_empty(len(x), 2)
        ctx.stride, ctx.left = stride, len(weight) // 2
        ctx.save_for_backward(*tensors[:-1], stats)
        arrays = [t.detach().numpy() for t in (*tensors, out, stats)]
        arguments = (*arrays[:-2], stride, ctx.left, eps, *arrays[-2:])
        run: Any = kernels.forward
        _share(out, lambda first, last: run(*arguments, first, last))
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from passband.parts import filtered_norm_kernels as kernels

        tensors = (grads[0].contiguous(), *ctx.saved_tensors)
        x, weight, gate = tensors[1], tensors[2], tensors[7]
        dx, d_gate, d_added = torch.empty_like(x), torch.zeros_like(gate), torch.zeros_like(gate)
        arrays = [t.detach().numpy() for t in tensors]
        into = [t.numpy() for t in (dx, d_gate, d_added)]
        run: Any = kernels.backward

        def work(first: int, last: int) -> Tensor:
            sums = torch.zeros(len(weight) + 4, x.shape[2], dtype=torch.float64)
            run(*arrays, ctx.stride, ctx.left, *into, sums.numpy(), first, last)
            return sums

        sums = torch.stack(_share(tensors[0], work)).sum(0).to(x.dtype)
        d_bias, d_gain, d_shift, last = sums[len(weight) :]
        d_slope = last[: tensors[6].numel()]
        return (
            dx, sums[: len(weight)], d_bias, d_gain, d_shift, d_slope, d_gate, d_added, None, None
        )


def _share(tensor: Tensor, work: Callable[[int, int], Found]) -> list[Found]:
    """What `work` gives for the sequences, in as many runs as torch has threads."""
    count = len(tensor)
    threads = min(torch.get_num_threads(), count) if tensor.numel() >= SHARED else 1
    if threads == 1:
        return [work(0, count)]
    runs = [(count * i // threads, count * (i + 1) // threads) for i in range(threads)]
    begun = [_pool(os.getpid(), threads).submit(work, *run) for run in runs]
    return [one.result() for one in begun]


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads don't outlive a fork: each process has its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="filtered-norm")
