"""FRCRN on a stream of samples: the output of the whole recording, piece by piece.

>>> model = FRCRN(n_fft=320, hop_length=160, unets=1, channels=16, depth=6, cumulative=True,
...               lookahead=False).eval()
>>> noisy = torch.randn(1, 8_000)
>>> streaming = StreamingFRCRN(model)
>>> streaming.latency                                # samples: 40 ms at 8 kHz
320
>>> state, pieces = streaming.start(1), []
>>> for piece in noisy.split(1_000, -1):
...     out, state = streaming.push(piece, state)
...     pieces.append(out)
>>> pieces.append(streaming.finish(state))
>>> bool(torch.allclose(torch.cat(pieces, -1), model(noisy), atol=1e-5))
True
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from passband.errors import ConfigError, DataError
from passband.parts.signal.stft import overlap_add
from passband.speech.frcrn.model import FRCRN, States


@dataclass
class StreamState:
    """
    states   of the network
    samples  [B, n] that have not left the window of the frames to come
    tail     [B, win - hop] of the output, to which later frames will add
    came, framed, gave  samples that came, frames that were made, samples that were given
    """

    states: States
    samples: Tensor
    tail: Tensor
    came: int = 0
    framed: int = 0
    gave: int = 0


class StreamingFRCRN:
    """
    model  in evaluation mode, with cumulative attention or none

    With `lookahead` the published decoders wait for later frames: one each, in every U-Net. A
    model without it was trained to do without them.
    Raises `ConfigError` for a model that pools over the whole recording.
    """

    def __init__(self, model: FRCRN) -> None:
        if model.training:
            raise ConfigError(
                "a model in training mode", expected="evaluation mode", mend="model.eval()"
            )
        model.start()  # refuses what can't be streamed
        self.model = model

    @property
    def latency(self) -> int:
        """Samples: none leaves later than this after it came."""
        frames = self.model.frames
        return frames.win_length + self.model.lookahead * frames.hop_length

    def start(self, batch: int = 1) -> StreamState:
        frames = self.model.frames
        like = next(self.model.parameters())
        zeros = like.new_zeros(batch, frames.margin)
        return StreamState(self.model.start(), zeros, zeros)

    def push(self, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """x [B, n], any n -> what is final by now, [B, m]; the state is changed in place."""
        if x.dim() != 2 or len(x) != len(state.samples):
            raise DataError(
                f"a piece of shape {tuple(x.shape)}", expected=f"[{len(state.samples)}, n]"
            )
        state.came += x.shape[-1]
        state.samples = torch.cat([state.samples, x], -1)
        return self._advance(state, last=False), state

    def finish(self, state: StreamState) -> Tensor:
        """All that is left; what `push` gave and this are together as long as what came."""
        if state.came == 0:
            return state.samples[:, :0]
        frames = self.model.frames
        count = frames.count(state.came) - state.framed
        missing = (count - 1) * frames.hop_length + frames.win_length - state.samples.shape[-1]
        state.samples = torch.nn.functional.pad(state.samples, (0, missing if count else 0))
        return self._advance(state, last=True)

    @torch.no_grad()
    def _advance(self, state: StreamState, last: bool) -> Tensor:
        frames = self.model.frames
        hop, window = frames.hop_length, frames.win_length
        count = max(0, (state.samples.shape[-1] - window) // hop + 1)
        cut = state.samples.unfold(-1, window, hop) if count else None
        state.framed += count
        spectrum = self._spectrum(cut) if cut is not None else self._nothing(state)
        state.samples = state.samples[:, count * hop :]
        if count == 0 and not last:
            return state.samples[:, :0]
        found = self.model.push(spectrum, state.states, last)
        out = self._synthesised(found, state)
        # The first samples are the zeros before the recording, the last ones those after it.
        start = max(0, frames.margin - state.gave)
        stop = min(out.shape[-1], frames.margin + state.came - state.gave)
        state.gave += out.shape[-1]
        return out[:, start:stop]

    def _window(self) -> Tensor:
        frames = self.model.frames
        return frames.stft.window[frames.left : frames.left + frames.win_length]

    def _spectrum(self, cut: Tensor) -> Tensor:
        frames = self.model.frames
        right = frames.n_fft - frames.win_length - frames.left
        windowed = torch.nn.functional.pad(cut * self._window(), (frames.left, right))
        return torch.fft.rfft(windowed).mT

    def _nothing(self, state: StreamState) -> Tensor:
        shape = (len(state.samples), self.model.frames.stft.bins, 0)
        return state.samples.new_zeros(shape, dtype=torch.complex64)

    def _synthesised(self, spectrum: Tensor, state: StreamState) -> Tensor:
        """Frames [B, F, n] -> n hops of samples that no later frame reaches."""
        count = spectrum.shape[-1]
        if count == 0:
            return state.tail[:, :0]
        frames = self.model.frames
        hop, window = frames.hop_length, self._window()
        pieces = torch.fft.irfft(spectrum.mT, frames.n_fft)
        pieces = pieces[..., frames.left : frames.left + frames.win_length] * window
        out = overlap_add(pieces, hop)
        out[:, : state.tail.shape[-1]] += state.tail
        done = count * hop
        state.tail = out[:, done:]
        # Each sample is under all windows that can reach it: their sum of squares is periodic.
        squares = torch.nn.functional.pad(window.square(), (0, -len(window) % hop))
        weight = squares.view(-1, hop).sum(0) + 1e-8
        return out[:, :done] / weight.repeat(count)
