"""TIGER: separates talkers by interleaved attention over frequency bands and over frames.

Problem: K talkers in one recording, x [B, L] -> y [B, K, L] with sum_k y_k = x.
Letters: B batch, L samples, F bins, T frames, n bands, N channels, K talkers.

    X = STFT x [B, F, T],  Z = split X [B, n, T, N]     narrow bands at low frequencies, wide above
    FFI(x):  x <- x + LN(F3A_f(MSA_f(x)))                along the bands of each frame
             x <- x + LN(F3A_t(MSA_t(x)))                along the frames of each band
    y_1 = FFI(Z),  y_j = FFI(PReLU(a (Z + y_{j-1}) + b))  one FFI, its weights used every time
    S_k = X M_k(y),  sum_k M_k = 1                        complex masks of each band, iSTFT

MSA, multi-scale selective attention: scales.py. F3A, full-frequency-frame attention: attention.py.
Bands and masks: passband/speech/bands.py. Source: Xu, Li, Chen, Hu, ICLR 2025, arXiv 2410.01469.

>>> network = TIGER(channels=16, hidden=32, iterations=2)
>>> mixture = torch.randn(1, 16_000)
>>> talkers = network(mixture)
>>> talkers.shape, bool(torch.allclose(talkers.sum(1), mixture, atol=1e-5))
(torch.Size([1, 2, 16000]), True)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from passband.errors import ConfigError, DataError
from passband.parts.signal.stft import STFT
from passband.speech.bands import BandMasks, BandSplit, band_widths
from passband.speech.tiger.attention import FullAttention
from passband.speech.tiger.scales import MultiScale


class OnePath(nn.Module):
    """One path of the FFI: MSA, F3A and norm along the third axis, [B, A, S, N] -> the same.

    >>> OnePath(channels=8, hidden=16, depth=3)(torch.randn(1, 4, 10, 8)).shape
    torch.Size([1, 4, 10, 8])

    attention  False: without F3A, the ablation
    """

    def __init__(
        self, channels: int, hidden: int, depth: int = 5, heads: int = 4, width: int = 4,
        legacy_topdown: bool = True, attention: bool = True,
    ) -> None:
        super().__init__()
        self.scales = MultiScale(channels, hidden, depth, legacy_topdown)
        self.attention = FullAttention(channels, heads, width) if attention else nn.Identity()
        self.norm = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.norm(self.attention(self.scales(x)))
        return out


class Interleave(nn.Module):
    """The separator: one FFI, applied `iterations` times, [B, n, T, N] -> [B, n, T, N].

    >>> Interleave(channels=8, hidden=16, iterations=2)(torch.randn(1, 9, 20, 8)).shape
    torch.Size([1, 9, 20, 8])

    recompute  keep only what goes in and out of each iteration for the gradient, and compute the
               inside twice: the memory of one iteration instead of all
    """

    def __init__(
        self, channels: int, hidden: int, iterations: int, depth: int = 5, heads: int = 4,
        width: int = 4, legacy_topdown: bool = True, attention: bool = True,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.iterations, self.recompute = iterations, recompute
        sizes = (channels, hidden, depth, heads, width, legacy_topdown, attention)
        self.over_bands, self.over_frames = OnePath(*sizes), OnePath(*sizes)
        bound = 1.0  # a convolution of one tap and one channel starts within 1 / sqrt(1)
        self.gain = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.act = nn.PReLU()

    def forward(self, z: Tensor) -> Tensor:
        z = z.transpose(1, 2).contiguous()  # [B, T, n, N]: the bands of a frame lie together
        y = self._ffi(z)
        for _ in range(self.iterations - 1):
            y = self._ffi(self.act(torch.addcmul(self.bias, z + y, self.gain)))
        return y.transpose(1, 2)

    def _ffi(self, x: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._once, x, use_reentrant=False)
            return out
        return self._once(x)

    def _once(self, x: Tensor) -> Tensor:
        """[B, T, n, N] -> [B, T, n, N]."""
        over_bands = self.over_bands(x).transpose(1, 2).contiguous()
        out: Tensor = self.over_frames(over_bands).transpose(1, 2).contiguous()
        return out


class TIGER(nn.Module):
    """The whole network: x [B, L] -> y [B, K, L], the y_k summing to x.

    >>> TIGER(sources=3, channels=12, hidden=16, sample_rate=8000, n_fft=256, hop_length=64)(
    ...     torch.randn(2, 4000)).shape
    torch.Size([2, 3, 4000])

    sources         K
    channels        N, a multiple of K and of the heads
    hidden          H, channels inside the MSA
    iterations      of the FFI: 4 (paper, small) or 8 (paper, large)
    depth           D, scales of the MSA
    heads, width    attention heads of the F3A, and E, their channels of queries and keys
    sample_rate     Hz, places the bands
    n_fft, hop_length   samples of the periodic Hann window and between frames
    plan            of the bands: see `band_widths`
    legacy_topdown  see `MultiScale`
    attention       False: F3A replaced by identity
    recompute       see `Interleave`

    Signals shorter than half a window are zero padded and cut again. Raises `ConfigError` where
    K or the heads don't divide N, `DataError` for other shapes than [B, L].
    """

    def __init__(
        self, sources: int = 2, channels: int = 128, hidden: int = 256, iterations: int = 4,
        depth: int = 5, heads: int = 4, width: int = 4, *, sample_rate: int = 16_000,
        n_fft: int = 640, hop_length: int = 160, plan: str = "speech",
        legacy_topdown: bool = True, attention: bool = True, recompute: bool = False,
    ) -> None:
        super().__init__()
        if iterations < 1:
            raise ConfigError(f"iterations = {iterations}", expected="at least 1")
        self.sources = sources
        self.widths = band_widths(plan, sample_rate, n_fft)
        self.stft = STFT(n_fft, hop_length, window="hann", center=True)
        self.split = BandSplit(self.widths, channels)
        self.separator = Interleave(
            channels, hidden, iterations, depth, heads, width, legacy_topdown, attention, recompute
        )
        self.masks = BandMasks(self.widths, channels, sources)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise DataError(f"mixtures of shape {tuple(x.shape)}", expected="[batch, samples]")
        spectrum = self.stft(x)
        y = self.separator(self.split(spectrum))
        return self.stft.inverse(self.masks(y, spectrum), length=x.shape[-1])


class OnePerSource(nn.Module):
    """A network of its own for each source, of which only its own output is used (TIGER-DnR).

    >>> sizes = dict(channels=12, hidden=16, iterations=1, sample_rate=44_100)
    >>> network = OnePerSource(3, **sizes, n_fft=2048, hop_length=512, plan="cinema")
    >>> network(torch.randn(1, 8000)).shape      # music, effects, dialogue
    torch.Size([1, 3, 8000])

    Takes the arguments of `TIGER`. The outputs don't sum to the input.
    """

    def __init__(self, sources: int = 3, *sizes: int, **options: object) -> None:
        super().__init__()
        self.sources = sources
        self.networks = nn.ModuleList(
            TIGER(sources, *sizes, **options) for _ in range(sources)  # type: ignore[arg-type]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x)[:, k] for k, network in enumerate(self.networks)], 1)
