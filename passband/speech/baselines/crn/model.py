"""A convolutional recurrent network for speech enhancement: convolutions, LSTM over time, masks.

    encoder   convolution over (3 bins, this frame and the last), stride 2 along bins -> norm -> ELU
    between   two LSTM layers over frames on all channels and bins of what is left
    decoder   beside the encoder's output: transposed convolution -> norm -> ELU
    mask      complex: tanh of two channels;   magnitude: sigmoid of one, the noisy phase is kept

Causal: no frame sees a later one. Letters: B batch, L samples, F bins, T frames, C channels.
Source: Tan and Wang, A convolutional recurrent neural network for real-time speech enhancement,
Interspeech 2018; its network maps magnitudes, the masks are those of later work.

>>> model = CRN(n_fft=320, hop_length=160, channels=(8, 8, 16, 16, 16)).eval()
>>> model(torch.randn(2, 8_000)).shape
torch.Size([2, 8000])
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passband.errors import ConfigError
from passband.parts.signal.covered import CoveredSTFT

KERNEL = 3  # bins under a convolution


class CRN(nn.Module):
    """
    n_fft, hop_length  of the transform, samples
    channels           of the encoder's steps; each halves the bins
    mask               `complex` or `magnitude`
    """

    def __init__(
        self, n_fft: int = 320, hop_length: int = 160,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        mask: Literal["complex", "magnitude"] = "complex",
    ) -> None:
        super().__init__()
        self.frames = CoveredSTFT(n_fft, hop_length)
        self.mask = mask
        bins = sizes(n_fft // 2 + 1, len(channels))
        maps = 2 if mask == "complex" else 1
        self.encoder = nn.ModuleList(
            _Step(nn.Conv2d(a, b, (KERNEL, 2), (2, 1))) for a, b in pairwise([maps, *channels])
        )
        size = channels[-1] * bins[-1]
        self.memory = nn.LSTM(size, size, num_layers=2, batch_first=True)
        back = [*channels[::-1], maps]
        self.decoder = nn.ModuleList(
            _Step(
                nn.ConvTranspose2d(
                    2 * a, b, (KERNEL, 2), (2, 1), output_padding=(out - 2 * (size - 1) - KERNEL, 0)
                ),
                last=i == len(channels) - 1,
            )
            for i, ((a, b), (size, out)) in enumerate(
                zip(pairwise(back), pairwise(bins[::-1]), strict=True)
            )
        )

    def forward(self, noisy: Tensor, lengths: Tensor | None = None, whole: bool = False) -> Any:
        """noisy [B, L] -> enhanced [B, L]; `whole` gives (wave, mask, noisy spectrum).

        lengths  [B] samples of each item of a padded batch: what comes after is zero
        """
        if lengths is not None:
            inside = torch.arange(noisy.shape[1], device=noisy.device) < lengths[:, None]
            noisy = noisy * inside
        spectrum = self.frames(noisy)
        mask = self._mask(spectrum)
        wave = self.frames.inverse(spectrum * mask, noisy.shape[1])
        wave = wave if lengths is None else wave * inside
        return (wave, mask, spectrum) if whole else wave

    def _mask(self, spectrum: Tensor) -> Tensor:
        if self.mask == "complex":
            x = torch.stack([spectrum.real, spectrum.imag], 1)  # [B, 2, F, T]
        else:
            x = (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()[:, None]
        skips = []
        for step in self.encoder:
            x = step(F.pad(x, (1, 0)))
            skips.append(x)
        shape = x.shape
        x = self.memory(x.flatten(1, 2).mT)[0].mT.reshape(shape)
        for step, skip in zip(self.decoder, reversed(skips), strict=True):
            x = step(torch.cat([x, skip], 1))[..., :-1]  # the frame after the last is cut
        if self.mask == "complex":
            x = x.tanh()
            return torch.complex(x[:, 0], x[:, 1])
        gate = x[:, 0].sigmoid()
        return torch.complex(gate, torch.zeros_like(gate))


class _Step(nn.Module):
    def __init__(self, layer: Any, last: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.norm = nn.Identity() if last else nn.BatchNorm2d(layer.out_channels)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x))
        return x if self.last else F.elu(x)


def sizes(bins: int, depth: int) -> tuple[int, ...]:
    """Bins before the first step and after each.

    >>> sizes(161, 5)
    (161, 80, 39, 19, 9, 4)

    Raises `ConfigError` when there are too few for the depth.
    """
    found = [bins]
    for step in range(depth):
        if found[-1] < KERNEL:
            raise ConfigError(
                f"{depth} steps on {bins} bins: {found[-1]} are left after {step}",
                expected=f"at least {KERNEL} before each", mend="fewer channels, or a larger n_fft",
            )
        found.append((found[-1] - KERNEL) // 2 + 1)
    return tuple(found)
