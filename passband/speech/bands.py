"""Frequency bands that are narrow where speech has its harmonics: plans, split, masks.

    split   z_i = W_i norm([Re X_i; Im X_i])     X [B, F, T] -> Z [B, n, T, N], n bands
    masks   M = V sigmoid(G) for each band,  Mr <- Mr - (sum_k Mr - 1) / K,  Mi <- Mi - mean_k Mi
            S_k = X (Mr_k + i Mi_k)              so that sum_k S_k = X

>>> widths = band_widths("speech", sample_rate=16_000, n_fft=640)
>>> len(widths), widths[39:42], widths[-2:], sum(widths)
(67, (1, 4, 4), (20, 1), 321)
>>> spectrum = torch.randn(2, 321, 50, dtype=torch.complex64)
>>> features = BandSplit(widths, channels=16)(spectrum)
>>> features.shape
torch.Size([2, 67, 50, 16])
>>> sources = BandMasks(widths, channels=16, sources=2)(features, spectrum)
>>> sources.shape, bool(torch.allclose(sources.sum(1), spectrum, atol=1e-5))
(torch.Size([2, 2, 321, 50]), True)

Bands of one width are computed together, as one batched matrix product.
Source: Xu et al., TIGER (arXiv 2410.01469); band splits after Luo and Yu (arXiv 2209.15174).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError, UnknownNameError

# Bands from 0 Hz upwards: how many, and how wide in Hz; what is left is one more.
PLANS: dict[str, tuple[tuple[int, float], ...]] = {
    "speech": ((40, 25.0), (10, 100.0), (8, 250.0), (8, 500.0)),
    "cinema": ((20, 50.0), (10, 100.0), (8, 250.0), (8, 500.0), (8, 1000.0), (2, 2000.0)),
}
EVEN = 67  # bands of the plan `even`: as many as `speech` has at 16 kHz
EPS = torch.finfo(torch.float32).eps  # of the norm before the split


def band_widths(plan: str, sample_rate: int, n_fft: int) -> tuple[int, ...]:
    """Bins of each band; they sum to n_fft // 2 + 1.

    >>> band_widths("speech", sample_rate=8000, n_fft=256)[-10:]
    (3, 3, 8, 8, 8, 8, 8, 8, 8, 3)

    plan  `speech` (0 to 8 kHz), `cinema` (0 to 20 kHz) or `even` (67 bands as equal as bins allow)

    A band has at least one bin. A plan that reaches beyond the Nyquist frequency ends there.
    Raises `UnknownNameError` for the plan.
    """
    bins = n_fft // 2 + 1
    if plan == "even":
        count = min(EVEN, bins)
        return tuple(bins // count + (i < bins % count) for i in range(count))
    if plan not in PLANS:
        raise UnknownNameError("band plan", plan, [*PLANS, "even"])
    widths: list[int] = []
    left = bins
    for count, hertz in PLANS[plan]:
        width = max(1, math.floor(hertz / (sample_rate / 2) * bins))
        for _ in range(count):
            if left == 0:
                return tuple(widths)
            widths.append(min(width, left))
            left -= widths[-1]
    return (*widths, left) if left else tuple(widths)


class _Group(nn.Module):
    """All bands of one width: which they are, and their bins."""

    bands: Tensor  # [n]
    bins: Tensor  # [n w]

    def __init__(self, bands: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        starts = [sum(widths[:i]) for i in bands]
        self.width, self.count = widths[bands[0]], len(bands)
        bins = [start + j for start in starts for j in range(self.width)]
        self.register_buffer("bands", torch.tensor(bands, device="cpu"), persistent=False)
        self.register_buffer("bins", torch.tensor(bins, device="cpu"), persistent=False)


def _groups(widths: Sequence[int]) -> list[list[int]]:
    if not widths or min(widths) < 1:
        raise ConfigError(f"band widths {tuple(widths)}", expected="at least one bin each")
    found: dict[int, list[int]] = {}
    for band, width in enumerate(widths):
        found.setdefault(width, []).append(band)
    return list(found.values())


def _order(groups: Sequence[Sequence[int]]) -> Tensor:
    """Where each item stands when the groups are laid one after the other."""
    return torch.tensor([i for group in groups for i in group], device="cpu").argsort()


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    # What torch's linear and convolutional layers start with.
    bound = 1 / math.sqrt(fan_in)
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


class BandSplit(nn.Module):
    """Spectrum to features of each band: X [B, F, T] complex -> Z [B, n, T, N].

    >>> BandSplit((1, 2, 2), channels=4)(torch.randn(1, 5, 7, dtype=torch.complex64)).shape
    torch.Size([1, 3, 7, 4])

    Real parts of a band, then imaginary ones, are normed over bins and time together.
    """

    order: Tensor

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        groups = _groups(widths)
        self.groups = nn.ModuleList(_Split(bands, widths, channels) for bands in groups)
        self.register_buffer("order", _order(groups), persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        parts = torch.view_as_real(spectrum).movedim(-1, 1)  # [B, 2, F, T]
        found = torch.cat([group(parts) for group in self.groups], 1)
        return found.index_select(1, self.order)


class _Split(_Group):
    def __init__(self, bands: Sequence[int], widths: Sequence[int], channels: int) -> None:
        super().__init__(bands, widths)
        n, size = self.count, 2 * self.width
        self.gain = nn.Parameter(torch.ones(n, size))
        self.shift = nn.Parameter(torch.zeros(n, size))
        self.weight = _uniform(n, size, channels, fan_in=size)
        self.bias = _uniform(n, channels, fan_in=size)

    def forward(self, parts: Tensor) -> Tensor:
        x = parts.index_select(2, self.bins).unflatten(2, (self.count, self.width))
        x = x.permute(0, 2, 4, 1, 3).flatten(3)  # [B, n, T, 2 w]
        x = F.layer_norm(x, x.shape[2:], eps=EPS)
        # The norm's own gain and shift act on the same axis as the matrix: one product for both.
        weight = self.gain[:, :, None] * self.weight
        bias = self.bias + torch.einsum("ns,nsc->nc", self.shift, self.weight)
        return torch.einsum("bnts,nsc->bntc", x, weight) + bias[:, None]


class BandMasks(nn.Module):
    """Features of each band to sources: Z [B, n, T, N], X [B, F, T] -> S [B, K, F, T].

    >>> masks = BandMasks((1, 2, 2), channels=4, sources=2)
    >>> masks(torch.randn(1, 3, 7, 4), torch.ones(1, 5, 7, dtype=torch.complex64)).shape
    torch.Size([1, 2, 5, 7])

    The matrix of a band has K blocks, and its outputs are read as (value or gate, real or
    imaginary, source, bin): for K = 2 the first half of the features makes the values of both
    sources and the second half the gates. Raises `ConfigError` unless K divides N.
    """

    order: Tensor

    def __init__(self, widths: Sequence[int], channels: int, sources: int) -> None:
        super().__init__()
        if channels % sources:
            raise ConfigError(
                f"{channels} channels for {sources} sources", expected="a multiple of the sources",
                mend=f"channels = {-(-channels // sources) * sources}",
            )
        groups = _groups(widths)
        self.groups = nn.ModuleList(_Masks(bands, widths, channels, sources) for bands in groups)
        bins = [group.bins.tolist() for group in self.groups]
        self.register_buffer("order", _order(bins), persistent=False)

    def forward(self, features: Tensor, spectrum: Tensor) -> Tensor:
        masks = torch.cat([group(features) for group in self.groups], -1)  # [B, T, 2, K, F]
        masks = masks.index_select(-1, self.order)
        real, imaginary = masks.permute(2, 0, 3, 4, 1)  # [B, K, F, T] each
        real = real - (real.sum(1, keepdim=True) - 1) / real.shape[1]
        imaginary = imaginary - imaginary.mean(1, keepdim=True)
        return spectrum[:, None] * torch.complex(real, imaginary)


class _Masks(_Group):
    def __init__(
        self, bands: Sequence[int], widths: Sequence[int], channels: int, sources: int
    ) -> None:
        super().__init__(bands, widths)
        n, size, outputs = self.count, channels // sources, 4 * self.width
        self.sources = sources
        self.slope = nn.Parameter(torch.full((n,), 0.25))
        self.weight = _uniform(n, sources, size, outputs, fan_in=size)
        self.bias = _uniform(n, sources * outputs, fan_in=size)

    def forward(self, features: Tensor) -> Tensor:
        x = features.index_select(1, self.bands)  # [B, n, T, N]
        x = torch.where(x >= 0, x, x * self.slope[:, None, None])
        x = x.unflatten(3, (self.sources, -1))
        x = torch.einsum("bntkc,nkco->bntko", x, self.weight).flatten(3) + self.bias[:, None]
        value, gate = x.unflatten(3, (2, 2, self.sources, self.width)).unbind(3)
        masks = value * torch.sigmoid(gate)  # [B, n, T, 2, K, w]
        return masks.permute(0, 2, 3, 4, 1, 5).flatten(4)  # [B, T, 2, K, n w]
