"""FRCRN: speech enhancement by complex masks from U-Nets with frequency recurrence.

Removes background noise from speech of one channel.

    X = STFT(x)                      sqrt-Hann windows, frames that cover every sample fully
    U_1 = UNet_1(X), U_k = UNet_k(U_{k-1})           complex [F, T]; see `unet`
    M = sum_k (tanh Re U_k + i tanh Im U_k)          one U-Net in the paper, two as released
    y = ISTFT(M X)                                   complex product

Letters: B batch, L samples, F bins, T frames, C channels. Features keep their real and imaginary
parts apart on a leading axis: [2, B, C, F, T].

Source: Zhao, Ma, Watcharasupat, Gan, FRCRN: Boosting feature representation using frequency
recurrence for monaural speech enhancement, ICASSP 2022, arXiv 2206.07293.

>>> model = FRCRN(n_fft=320, hop_length=160, unets=1, channels=16, depth=6).eval()
>>> noisy = torch.randn(2, 8_000)
>>> model(noisy).shape
torch.Size([2, 8000])
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from passband.errors import ConfigError, DataError
from passband.parts.complex_layers import to_complex, to_parts
from passband.parts.signal.covered import CoveredSTFT
from passband.speech.frcrn.unet import State, UNet


class Estimate(NamedTuple):
    """What the network finds: wave [B, L], mask and noisy spectrum complex [B, F, T]."""

    wave: Tensor
    mask: Tensor
    noisy: Tensor


class FRCRN(nn.Module):
    """
    >>> model = FRCRN(n_fft=320, hop_length=160, unets=2, channels=8, depth=6).eval()
    >>> wave, mask, noisy = model(torch.randn(2, 8_000), lengths=torch.tensor([8_000, 5_000]),
    ...                           whole=True)
    >>> mask.shape, mask.dtype, bool((wave[1, 5_000:] == 0).all())
    (torch.Size([2, 161, 51]), torch.complex64, True)

    n_fft, hop_length, win_length  of the transform, samples; the window is zero padded to n_fft
    unets                          U-Nets in a row
    channels, depth, ...           of each, see `UNet`
    passing                        start with a mask near 1 instead of a drawn one near 0: SI-SNR
                                   doesn't see its sign, and short training may not mend it
    """

    def __init__(
        self, n_fft: int = 640, hop_length: int = 320, win_length: int | None = None,
        unets: int = 2, channels: int = 128, depth: int = 7, passing: bool = False, **more: Any,
    ) -> None:
        super().__init__()
        self.frames = CoveredSTFT(n_fft, hop_length, win_length)
        self.unets = nn.ModuleList(
            UNet(self.frames.stft.bins, channels, depth, **more) for _ in range(unets)
        )
        if passing:
            last: Any = self.unets[0].last  # offsets are the difference and the sum of its biases
            nn.init.constant_(last.real.bias, 0.5)
            nn.init.constant_(last.imaginary.bias, -0.5)

    @property
    def lookahead(self) -> int:
        """Frames after a frame that its output depends on."""
        return sum(unet.depth * unet.lookahead for unet in self.unets)

    def forward(
        self, noisy: Tensor, lengths: Tensor | None = None, whole: bool = False
    ) -> Any:
        """noisy [B, L] -> enhanced [B, L]; `whole` gives an `Estimate` instead.

        lengths  [B] samples of each item of a batch padded with zeros: in evaluation each gets
                 what it would get alone
        Raises `DataError` for other shapes and empty signals.
        """
        if noisy.dim() != 2 or noisy.shape[-1] == 0:
            raise DataError(
                f"a batch of shape {tuple(noisy.shape)}",
                expected="[B, L], with at least one sample", mend="wave[None] makes a batch of one",
            )
        count = None
        if lengths is not None:
            if lengths.shape != noisy.shape[:1] or not 0 < lengths.min() <= lengths.max() <= len(
                noisy[0]
            ):
                raise DataError(
                    f"lengths {lengths.tolist()} of a batch of shape {tuple(noisy.shape)}",
                    expected=f"{len(noisy)} numbers of 1 to {noisy.shape[1]}",
                )
            count = self.frames.count(lengths)
            inside = torch.arange(noisy.shape[1], device=noisy.device) < lengths[:, None]
            noisy = noisy * inside
        spectrum = self.frames(noisy)
        mask = self.mask(spectrum, count)
        wave = self.frames.inverse(spectrum * mask, noisy.shape[-1])
        if lengths is not None:
            wave = wave * inside
        return Estimate(wave, mask, spectrum) if whole else wave

    def mask(self, spectrum: Tensor, frames: Tensor | None = None) -> Tensor:
        """Noisy spectrum, complex [B, F, T] -> complex mask [B, F, T].

        frames  [B] valid frames of each item
        """
        z = to_parts(spectrum)[:, :, None]
        total = None
        for unet in self.unets:
            z = unet(z, frames)
            total = z.tanh() if total is None else total + z.tanh()
        return to_complex(total[:, :, 0])

    def start(self) -> States:
        """The states of a stream of spectra, for `push`."""
        if not all(unet.streamable for unet in self.unets):
            raise ConfigError(
                "attention over the whole recording can't be streamed",
                expected="pooling = 'cumulative' or attention = 'none'",
                mend="create the system with pooling='cumulative' and train it",
            )
        return States([{} for _ in self.unets])

    def push(self, spectrum: Tensor, states: States, last: bool = False) -> Tensor:
        """The next frames [B, F, n] of a noisy spectrum -> the enhanced ones that are final.

        Those of `lookahead` frames before, so that fewer come out at first; all that is left when
        `last`. In evaluation the pieces together are what the whole recording gives.
        """
        z = to_parts(spectrum)[:, :, None]
        waiting = states.waiting or [z[..., :0] for _ in self.unets]
        for k, unet in enumerate(self.unets):
            # What enters a U-Net waits for its mask: the spectrum, then masks of those before.
            entered = z if k == 0 else z.tanh()
            waiting[k] = torch.cat([waiting[k], entered], -1)
            z = unet.push(z, states.layers[k], last)
        count = z.shape[-1]
        mask = z.tanh() + sum(w[..., :count] for w in waiting[1:])
        noisy = to_complex(waiting[0][:, :, 0, :, :count])
        states.waiting = [w[..., count:] for w in waiting]
        return noisy * to_complex(mask[:, :, 0])


class States:
    """What a stream carries from push to push.

    layers   of each U-Net
    waiting  what entered each U-Net and has no output yet, [2, B, 1, F, n]
    """

    def __init__(self, layers: list[dict[str, State]]) -> None:
        self.layers = layers
        self.waiting: list[Tensor] = []
