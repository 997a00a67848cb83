"""Another sample rate, by the SoX resampler: of a whole signal, or block by block.

>>> resample(np.zeros((2, 22_050)), 22_050, 16_000).shape
(2, 16000)
>>> pieces = resampled(torch.zeros(2, 22_050).split(1000, dim=-1), 22_050, 16_000)
>>> sum(piece.shape[-1] for piece in pieces)
16000

Source: soxr, high quality: linear phase, pass band to 0.91 of the lower Nyquist frequency, 120 dB.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError, DataError, MissingExtraError

Signal = TypeVar("Signal", np.ndarray[Any, Any], Tensor)


def resampled_length(length: int, source: int, target: int) -> int:
    """ceil(length target / source): the last sample of the input has a sample at or after it.

    >>> resampled_length(22_051, 22_050, 16_000)
    16001
    """
    return -(-length * target // source)


def resample(x: Signal, source: int, target: int, axis: int = -1) -> Signal:
    """A signal at `source` samples a second at `target` instead, in time with itself.

    >>> tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    >>> bool(np.allclose(resample(tone, 16_000, 8_000)[200:-200], tone[400:-400:2], atol=1e-5))
    True

    x     array or tensor of floats; the result is of the same kind, dtype and device (half
          precision is computed in single). Gradients don't pass.
    axis  that of time, of length L -> ceil(L target / source). The signal is zero outside.

    With equal rates x itself is returned. Raises `ConfigError` for rates that are not positive
    integers, `DataError` for integers and empty signals, `MissingExtraError` without soxr.
    """
    source, target = _rates(source, target)
    if isinstance(x, Tensor):
        values = x.detach().cpu()
        values = values if values.dtype == torch.float64 else values.float()
        _check(x.is_floating_point(), x.dtype, x.shape, axis)
        if source == target:
            return x
        changed = torch.from_numpy(_resample(values.numpy(), source, target, axis))
        return changed.to(device=x.device, dtype=x.dtype)
    _check(np.issubdtype(x.dtype, np.floating), x.dtype, x.shape, axis)
    if source == target:
        return x
    values = x if x.dtype == np.float64 else x.astype(np.float32, copy=False)
    return _resample(values, source, target, axis).astype(x.dtype, copy=False)


def resampled(blocks: Iterable[Tensor], source: int, target: int) -> Iterator[Tensor]:
    """The same block by block, at constant memory: together what `resample` gives of the whole.

    >>> x = torch.randn(2, 5000)
    >>> pieces = list(resampled(x.split(700, dim=-1), 16_000, 8_000))
    >>> bool(torch.allclose(torch.cat(pieces, -1), resample(x, 16_000, 8_000), atol=1e-6))
    True

    blocks  [..., n] of single precision, any n, alike but for it; pieces are of other lengths,
            ceil(L target / source) samples in all

    Raises `ConfigError` for rates and `MissingExtraError` without soxr when the first piece is
    asked for.
    """
    source, target = _rates(source, target)
    if source == target:
        yield from blocks
        return
    came = gone = 0
    stream: _Stream | None = None
    for block in blocks:
        if block.shape[-1] == 0:
            continue
        stream = stream or _Stream(source, target, tuple(block.shape[:-1]))
        piece = stream.push(block.detach().cpu().float().numpy())
        came, gone = came + block.shape[-1], gone + piece.shape[-1]
        if piece.shape[-1]:
            yield piece
    if stream is not None:
        padding = np.zeros((*stream.batch, _padding(source, target)), dtype=np.float32)
        yield stream.push(padding, last=True)[..., : resampled_length(came, source, target) - gone]


class _Stream:
    """soxr's resampler, which takes [n, rows], for blocks [..., n]."""

    def __init__(self, source: int, target: int, batch: tuple[int, ...]) -> None:
        self.batch, self.rows = batch, math.prod(batch)
        self.stream = _soxr().ResampleStream(
            source, target, self.rows, dtype="float32", quality="HQ"
        )

    def push(self, block: np.ndarray[Any, Any], last: bool = False) -> Tensor:
        rows = np.ascontiguousarray(block.reshape(self.rows, -1).T)
        changed = self.stream.resample_chunk(rows, last).reshape(-1, self.rows)
        return torch.from_numpy(np.ascontiguousarray(changed.T)).reshape(*self.batch, -1)


def _padding(source: int, target: int) -> int:
    # The resampler rounds the length; enough zeros at the end and a cut make it the ceiling.
    return -(-source // target) + 1


def _rates(source: float, target: float) -> tuple[int, int]:
    for name, rate in (("source", source), ("target", target)):
        if rate != int(rate) or rate < 1:
            raise ConfigError(f"{name} sample rate {rate}", expected="a whole number of Hz")
    return int(source), int(target)


def _soxr() -> Any:
    try:
        return importlib.import_module("soxr")
    except ImportError as error:
        raise MissingExtraError("soxr", "speech") from error


def _check(floating: bool, dtype: object, shape: tuple[int, ...], axis: int) -> None:
    if not floating:
        raise DataError(
            f"samples of type {dtype}", expected="floats",
            mend="scale 16-bit samples by 1 / 32768 first",
        )
    if not shape or shape[axis] == 0:
        raise DataError(f"an empty signal of shape {tuple(shape)}", expected="at least one sample")


def _resample(
    x: np.ndarray[Any, Any], source: int, target: int, axis: int
) -> np.ndarray[Any, Any]:
    soxr = _soxr()
    rows = np.moveaxis(x, axis, -1)
    *batch, length = rows.shape
    padding = np.zeros((*batch, _padding(source, target)), dtype=x.dtype)
    rows = np.concatenate([rows, padding], axis=-1).reshape(-1, length + padding.shape[-1])
    # One call for each row: the layout of soxr is [L, channels], and it has a limit on channels.
    changed = np.stack([soxr.resample(row, source, target, quality="HQ") for row in rows])
    changed = changed[:, : resampled_length(length, source, target)]
    return np.moveaxis(changed.reshape(*batch, -1), -1, axis)
