"""Signals of any length through a process that takes windows, at constant memory.

    windows    x[i hop : i hop + window],  i = 0, 1, ..., the last one zero padded
    output     y[n] = sum_i w_i[n] process(window_i)[n] / sum_i w_i[n],   as long as x

>>> blocks = torch.randn(1, 50_000).split(4_096, dim=-1)           # from a file, say
>>> pieces = overlapped(blocks, lambda x: 2 * x, window=16_000, hop=12_000, fade="hann")
>>> sum(piece.shape[-1] for piece in pieces)
50000

Separators may give the talkers of each window in another order: `align_sources` restores it from
what two windows share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from passband.errors import ConfigError, DataError, UnknownNameError

Process = Callable[[Tensor], Tensor]
Align = Callable[[Tensor, Tensor], Tensor]


def _linear(window: int, hop: int) -> Tensor:
    ramp = torch.arange(1, window + 1, dtype=torch.float64) / (window - hop + 1)
    return torch.minimum(ramp, ramp.flip(0)).clamp_max(1)


def _hann(window: int, hop: int) -> Tensor:
    return torch.sin(torch.pi / 2 * _linear(window, hop)).square()


def _flat(window: int, hop: int) -> Tensor:
    return torch.ones(window, dtype=torch.float64)


def _centre(window: int, hop: int) -> Tensor:
    weight = torch.zeros(window, dtype=torch.float64)
    start = (window - hop) // 2
    weight[start : start + hop] = 1
    return weight


# How much a window's samples count, [window]. Whatever it is, weights are divided by their sum.
FADES: dict[str, Callable[[int, int], Tensor]] = {
    "linear": _linear, "hann": _hann, "flat": _flat, "centre": _centre,
}


def overlapped(
    blocks: Iterable[Tensor], process: Process, *, window: int, hop: int, fade: str = "linear",
    align: Align | None = None,
) -> Iterator[Tensor]:
    """Process a signal that comes in blocks; yield the finished output in order.

    >>> x = torch.arange(10.0)[None]
    >>> torch.cat(list(overlapped([x], lambda x: x, window=4, hop=3)), -1)
    tensor([[0., 1., 2., 3., 4., 5., 6., 7., 8., 9.]])

    blocks   [C, n] each, any n: leading axes are alike in all
    process  [C, window] -> [..., window]: always called with whole windows, in order
    window, hop  samples; 1 <= hop <= window, and the overlap is window - hop
    fade     `linear`, `hann`: cross-fade over the overlap; `flat`: plain mean; `centre`: of each
             window the middle `hop` samples only (the first keeps its beginning, the last its end)
    align    previous [K, ..., overlap], new [K, ..., overlap] -> order [K]: how the sources on the
             first axis of a new window are re-ordered, e.g. `align_sources`; no overlap, no effect

    A signal shorter than a window is zero padded and cut. Of no samples comes nothing. At most
    two windows of input and output are held, besides the block that came. Raises `ConfigError`
    for sizes and fades, `DataError` where the process gives another length or order.
    """
    if not 1 <= hop <= window:
        raise ConfigError(
            f"hop {hop} with window {window}", expected="1 <= hop <= window",
            mend="half the window is safe, three quarters faster",
        )
    if fade not in FADES:
        raise UnknownNameError("fade", fade, FADES)
    return _overlapped(blocks, process, window, hop, FADES[fade](window, hop), align)


def _overlapped(
    blocks: Iterable[Tensor], process: Process, window: int, hop: int, shape: Tensor,
    align: Align | None,
) -> Iterator[Tensor]:
    overlap = window - hop
    total = weight = previous = None  # of the samples that coming windows add to, [..., overlap]
    for x, valid, last in _windows(blocks, window, hop):
        y = process(x)
        if y.dim() == 0 or y.shape[-1] != window:
            raise DataError(
                f"a window of {window} samples became {tuple(y.shape)}",
                expected=f"[..., {window}]", mend="let the process keep the length",
            )
        if align is not None and previous is not None and overlap:
            y = _reordered(y, align(previous, y[..., :overlap]))
        previous = y[..., hop:]
        added = shape.to(device=y.device, dtype=y.real.dtype)
        added = _kept(added, hop, first=total is None, last=last)
        y = y * added
        if total is not None and weight is not None:
            # A new tensor: the process may keep what it gave, and gradients may pass.
            y = torch.cat([y[..., :overlap] + total, y[..., overlap:]], dim=-1)
            added = torch.cat([added[:overlap] + weight, added[overlap:]])
        done = valid if last else hop
        yield y[..., :done] / added[:done]
        total, weight = y[..., hop:], added[hop:]


def _kept(shape: Tensor, hop: int, *, first: bool, last: bool) -> Tensor:
    """A window's weights; those of `centre` reach to the ends of the signal.

    At an end no other window has a say, so that any weight above 0 does.
    """
    inside = shape.nonzero()
    start, stop = int(inside[0]), int(inside[-1]) + 1
    if (first and start) or (last and stop < len(shape)):
        shape = shape.clone()
        if first:
            shape[:start] = 1
        if last:
            shape[stop:] = 1
    return shape


def _reordered(y: Tensor, order: Tensor) -> Tensor:
    if sorted(order.tolist()) != list(range(y.shape[0])):
        raise DataError(
            f"the order {order.tolist()} of {y.shape[0]} sources",
            expected="every source once",
        )
    return y[order]


def _windows(
    blocks: Iterable[Tensor], window: int, hop: int
) -> Iterator[tuple[Tensor, int, bool]]:
    """Windows, how many of their samples are the signal's, and whether each is the last."""
    held: list[Tensor] = []
    count = 0
    for block in blocks:
        for piece in torch.split(block, hop, dim=-1):
            if piece.shape[-1] == 0:
                continue
            held.append(piece)
            count += piece.shape[-1]
            while count > window:  # only then is it certain that this is not the last
                x = torch.cat(held, dim=-1)
                yield x[..., :window], window, False
                held, count = [x[..., hop:]], count - hop
    if count:
        x = torch.cat(held, dim=-1)
        padding = x.new_zeros(*x.shape[:-1], window - count)
        yield torch.cat([x, padding], dim=-1), count, True


def apply_chunked(
    x: Tensor, process: Process, *, window: int, hop: int, fade: str = "linear",
    align: Align | None = None,
) -> Tensor:
    """The same of a whole signal: [C, L] -> [..., L]. Arguments and errors of `overlapped`.

    >>> apply_chunked(torch.randn(2, 100), lambda x: x.mean(0), window=40, hop=30).shape
    torch.Size([100])

    An empty signal raises `DataError`.
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise DataError(f"an empty signal of shape {tuple(x.shape)}", expected="[..., L], L > 0")
    pieces = overlapped([x], process, window=window, hop=hop, fade=fade, align=align)
    return torch.cat(list(pieces), dim=-1)


def align_sources(previous: Tensor, new: Tensor) -> Tensor:
    """The order of new sources that continues the previous ones: [K, n], [K, n] -> [K].

    >>> talkers = torch.randn(3, 1000)
    >>> order = align_sources(talkers, talkers[[2, 0, 1]])
    >>> order, bool((talkers[[2, 0, 1]][order] == talkers).all())
    (tensor([1, 2, 0]), True)

    The sum of inner products is largest, that of squared differences least, over all K! orders
    (Hungarian method). Where nothing tells sources apart, as in silence, they stay as they are.
    """
    if previous.shape != new.shape or new.dim() != 2:
        raise DataError(
            f"sources {tuple(previous.shape)} and {tuple(new.shape)}", expected="both [K, n]"
        )
    likeness = (previous.detach().double() @ new.detach().double().t()).cpu().numpy()
    order = torch.from_numpy(linear_sum_assignment(likeness, maximize=True)[1])
    return order.to(new.device)
