"""Short-time Fourier transform and its inverse, for any length.

    X[f, t] = sum_n w[n] x[t hop + n] exp(-2 pi i f n / n_fft)     x [..., L] -> X [..., F, T]
    x[n]    = sum_t w[n - t hop] IDFT(X[:, t])[n - t hop] / sum_t w[n - t hop]^2
    F = n_fft // 2 + 1 bins;   centred: T = 1 + L // hop;   else: T = 1 + (L - n_fft) // hop

>>> stft = STFT(n_fft=512, hop_length=128)
>>> x = torch.randn(2, 16_001)
>>> spectrum = stft(x)
>>> spectrum.shape, spectrum.dtype
(torch.Size([2, 257, 126]), torch.complex64)
>>> bool(torch.allclose(stft.inverse(spectrum, length=16_001), x, atol=1e-5))
True

Source of the inverse: Griffin and Lim, IEEE Trans. ASSP 32 (1984), the least-squares estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, DataError, UnknownNameError

Array: TypeAlias = np.ndarray[Any, Any]

EPS = 1e-8  # added to the sum of squared windows where frames are not centred
UNSEEN = 1e-11  # the sum of squared windows below which a sample of centred frames is lost


def hann(length: int) -> Array:
    """The periodic Hann window [length], float64. (NumPy: real numbers on torch's meta device.)"""
    window: Array = 0.5 - 0.5 * np.cos(2 * np.pi / length * np.arange(length))
    return window


def sqrt_hann(length: int) -> Array:
    """Its square root: analysis times synthesis at half overlap then sums to 1."""
    window: Array = np.sqrt(hann(length))
    return window


WINDOWS: dict[str, Callable[[int], Array]] = {"hann": hann, "sqrt_hann": sqrt_hann}


def padded_window(window: str, win_length: int, n_fft: int) -> Tensor:
    """A window in the middle of n_fft samples: [n_fft]. `UnknownNameError` for other names."""
    if window not in WINDOWS:
        raise UnknownNameError("window", window, WINDOWS)
    left = (n_fft - win_length) // 2
    values = np.pad(WINDOWS[window](win_length), (left, n_fft - win_length - left))
    return torch.from_numpy(values.astype(np.float32))


class STFT(nn.Module):
    """Analysis and synthesis with one window.

    >>> stft = STFT(n_fft=640, hop_length=320, window="sqrt_hann", center=False)
    >>> stft.bins, stft.frames(16_000), stft(torch.zeros(16_000)).shape
    (321, 49, torch.Size([321, 49]))
    >>> stft.inverse(torch.ones(3, 321, 49, dtype=torch.complex64)).shape
    torch.Size([3, 16000])

    n_fft       samples of one transform
    hop_length  samples from frame to frame, at most `win_length`
    window      `hann` or `sqrt_hann`, periodic
    win_length  samples under the window, zero padded to n_fft on both sides; default n_fft
    center      True: frame t is centred at t hop, the signal reflected by n_fft // 2 at both ends.
                False: frame t begins at t hop; samples after the last whole frame are not seen

    Signals that are too short (no more than n_fft // 2 samples where centred, less than n_fft
    where not) are zero padded to the shortest that is long enough; `length` cuts them again.
    Samples that hardly any window covers can't be recovered: the outer half windows where frames
    are not centred, and the last few of a centred signal where hop is above n_fft / 4.
    Spectra are not scaled. The window is a buffer that is not saved. Half precision is computed
    in single. Raises `ConfigError` for sizes, `DataError` for empty signals and wrong bins.
    """

    window: Tensor

    def __init__(
        self, n_fft: int, hop_length: int, window: str = "hann",
        win_length: int | None = None, center: bool = True,
    ) -> None:
        super().__init__()
        win_length = n_fft if win_length is None else win_length
        if not 2 <= win_length <= n_fft:
            raise ConfigError(
                f"win_length {win_length} and n_fft {n_fft}",
                expected="2 <= win_length <= n_fft", mend="raise n_fft or shorten the window",
            )
        if not 1 <= hop_length <= win_length:
            raise ConfigError(
                f"hop_length {hop_length} with win_length {win_length}",
                expected="1 <= hop_length <= win_length", mend="a quarter of the window is usual",
            )
        self.n_fft, self.hop_length, self.center = n_fft, hop_length, center
        values = padded_window(window, win_length, n_fft)
        self.register_buffer("window", values, persistent=False)
        self._kept: tuple[tuple[int, torch.dtype, torch.device], Tensor] | None = None

    @property
    def bins(self) -> int:
        """F = n_fft // 2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def shortest(self) -> int:
        """Samples below which a signal is zero padded first."""
        return self.n_fft // 2 + 1 if self.center else self.n_fft

    def frames(self, length: int) -> int:
        """T of a signal of `length` samples."""
        length = max(length, self.shortest)
        return 1 + (length if self.center else length - self.n_fft) // self.hop_length

    def forward(self, x: Tensor) -> Tensor:
        """x [..., L] real -> spectrum [..., F, T] complex."""
        if x.dim() == 0 or x.shape[-1] == 0:
            raise DataError(
                f"an empty signal of shape {tuple(x.shape)}",
                expected="[..., L] with at least one sample",
            )
        x = x if x.dtype == torch.float64 else x.float()
        flat = x.reshape(-1, x.shape[-1])
        flat = F.pad(flat, (0, max(0, self.shortest - x.shape[-1])))
        spectrum = torch.stft(
            flat, self.n_fft, self.hop_length, window=self.window.to(x.dtype),
            center=self.center, pad_mode="reflect", return_complex=True,
        )
        return spectrum.reshape(*x.shape[:-1], *spectrum.shape[-2:])

    def inverse(self, spectrum: Tensor, length: int | None = None) -> Tensor:
        """spectrum [..., F, T] -> x [..., length].

        length  None gives all that the frames describe: (T - 1) hop samples where centred (one
                more for an odd n_fft), (T - 1) hop + n_fft where not. More is filled with zeros.
        """
        if spectrum.dim() < 2 or spectrum.shape[-2] != self.bins or spectrum.shape[-1] == 0:
            raise DataError(
                f"a spectrum of shape {tuple(spectrum.shape)}", expected=f"[..., {self.bins}, T]",
            )
        frames = torch.fft.irfft(spectrum.transpose(-1, -2), self.n_fft)  # [..., T, n_fft]
        window = self.window.to(frames.dtype)
        x = overlap_add(frames * window, self.hop_length)
        start, stop, weight = synthesis_weight(self, spectrum.shape[-1], length, window.dtype)
        x = x[..., start:stop] / weight
        return x if length is None else F.pad(x, (0, length - x.shape[-1]))

    def weight(self, count: int, dtype: torch.dtype) -> Tensor:
        """What the overlap-add of `count` frames is divided by: [(count - 1) hop + n_fft]."""
        key = (count, dtype, self.window.device)
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False):  # may be kept for a training step
                self._kept = key, self._weight(count, self.window.to(dtype).square())
        return self._kept[1]

    def _weight(self, count: int, squares: Tensor) -> Tensor:
        blocks = -(-self.n_fft // self.hop_length)
        parts = F.pad(squares, (0, blocks * self.hop_length - self.n_fft))
        frame = torch.arange(count + blocks - 1, device=squares.device)[:, None]
        frame = frame - torch.arange(blocks, device=squares.device)
        inside = ((frame >= 0) & (frame < count)).to(squares.dtype)
        weight = (inside @ parts.reshape(blocks, -1)).flatten()
        weight = weight[: (count - 1) * self.hop_length + self.n_fft]
        # Centred: an added constant would only keep the inverse from being exact. Not centred: it
        # fades the ends, which hardly any window covers, instead of raising their rounding.
        return weight.clamp_min(UNSEEN) if self.center else weight + EPS


def synthesis_weight(
    stft: STFT, count: int, length: int | None, dtype: torch.dtype
) -> tuple[int, int, Tensor]:
    """Where in the overlap-add of `count` frames the signal lies, and what it is divided by there.

    -> start, stop, [stop - start]: cut at the end of the last frame where `length` is beyond it
    """
    weight = stft.weight(count, dtype)
    start = stft.n_fft // 2 if stft.center else 0
    stop = len(weight) - start if length is None else min(start + length, len(weight))
    return start, stop, weight[start:stop]


def overlap_add(frames: Tensor, hop_length: int) -> Tensor:
    """Frames [..., T, n], each begun `hop_length` after the one before, summed: [..., L].

    >>> overlap_add(torch.ones(3, 4), hop_length=2)
    tensor([1., 1., 2., 2., 2., 2., 1., 1.])

    L = (T - 1) hop_length + n. As ceil(n / hop_length) adds of whole blocks, with frames of the
    gradient as views of it; differentiable any number of times.
    """
    apply: Any = _OverlapAdd.apply
    y: Tensor = apply(frames, hop_length)
    return y


class _OverlapAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, frames: Tensor, hop_length: int) -> Tensor:
        *batch, count, size = frames.shape
        ctx.size, ctx.hop_length = size, hop_length
        blocks = -(-size // hop_length)
        frames = F.pad(frames, (0, blocks * hop_length - size))
        parts = frames.reshape(*batch, count, blocks, hop_length)
        total = frames.new_zeros(*batch, count + blocks - 1, hop_length)
        for b in range(blocks):
            total[..., b : b + count, :] += parts[..., b, :]
        return total.flatten(-2)[..., : (count - 1) * hop_length + size]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return dy.unfold(-1, ctx.size, ctx.hop_length), None
