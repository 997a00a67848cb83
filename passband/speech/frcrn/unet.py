"""The complex U-Net that is recurrent along frequency (CRED).

    encoder i   [i > 0: memory along frequency] -> convolution over (k_i bins, 2 frames), stride
                (2, 1) -> normalisation -> leaky ReLU;    skip i = attention(output i)
    bottleneck  two memories along time on what is left: C channels of one bin
    decoder j   transposed convolution back -> normalisation -> leaky ReLU -> memory along
                frequency -> [j < depth - 2: attention] -> beside skip depth - 2 - j
    last        transposed convolution to one channel, a complex factor and offset

>>> unet = UNet(bins=161, channels=16, depth=6)
>>> unet.kernels
(5, 5, 5, 5, 5, 2)
>>> unet(torch.randn(2, 3, 1, 161, 50)).shape       # [real | imaginary, B, 1, F, T]
torch.Size([2, 3, 1, 161, 50])

The published layout gives each encoder frame more than it got, and each decoder one less: a frame
of the output depends on `depth` later ones. `lookahead=False` is causal instead.

Source: Zhao, Ma, Watcharasupat, Gan, ICASSP 2022, arXiv 2206.07293, and its published code.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from passband.errors import ConfigError
from passband.parts.complex_layers import ComplexConv2d
from passband.speech.frcrn.attention import BlockAttention, SqueezeExcite, within
from passband.speech.frcrn.fsmn import ComplexFSMN, State
from passband.speech.frcrn.layers import Down, Up

Attention = Literal["se", "ccbam", "none"]
Recurrence = Literal["fsmn", "wide", "none"]
Bottleneck = Literal["fsmn", "none"]

KERNEL = 5  # bins under a convolution, where there are as many
ATTENTION: dict[str, Any] = {"se": SqueezeExcite, "ccbam": BlockAttention}


def sizes(bins: int, depth: int) -> tuple[int, ...]:
    """Bins before the first encoder and after each.

    >>> sizes(321, 7)
    (321, 159, 78, 37, 17, 7, 2, 1)

    Raises `ConfigError` when there are too few for the depth.
    """
    found = [bins]
    for step in range(depth):
        if found[-1] < 2:
            raise ConfigError(
                f"depth = {depth} with {bins} bins: one is left after {step} steps",
                expected=f"depth <= {step}", mend="lower depth or raise n_fft",
            )
        found.append((found[-1] - min(KERNEL, found[-1])) // 2 + 1)
    return tuple(found)


class UNet(nn.Module):
    """
    >>> unet = UNet(bins=81, channels=8, depth=5, attention="ccbam", recurrence="wide")
    >>> unet(torch.randn(2, 1, 1, 81, 7)).shape
    torch.Size([2, 1, 1, 81, 7])

    bins        F, at the input and the output
    channels    C, of all steps, at least 8
    attention   `se` (released), `ccbam` (paper) or `none`
    recurrence  along frequency: `fsmn`; ablations: `wide` has larger convolutions of as many
                parameters instead, `none` nothing
    bottleneck  along time: `fsmn`, or `none` as an ablation
    order       taps of the memories
    cumulative  attention pools over the frames so far
    lookahead   decoders see one frame ahead each
    spare       also hold the modules that the released weights hold but never use: the memories
                before the first encoder and after the last decoder, the attention after the last
                encoder and after the last decoder but one
    """

    def __init__(
        self, bins: int, channels: int = 128, depth: int = 7, *, attention: Attention = "se",
        recurrence: Recurrence = "fsmn", bottleneck: Bottleneck = "fsmn", order: int = 20,
        cumulative: bool = False, lookahead: bool = True, spare: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = sizes(bins, depth)
        self.depth, self.lookahead = depth, lookahead
        self.streamable = cumulative or attention == "none"
        self.kernels = tuple(min(KERNEL, size) for size in self.sizes[:-1])
        wider = _wider(channels, depth, order) if recurrence == "wide" else [0] * (2 * depth)
        steps = zip(self.kernels, wider, strict=False)
        self.encoders = nn.ModuleList(
            Down(channels if i else 1, channels, kernel, widened=more, lookahead=lookahead)
            for i, (kernel, more) in enumerate(steps)
        )
        self.decoders = nn.ModuleList()
        for j, (out, size) in enumerate(pairwise(self.sizes[::-1])):
            self.decoders.append(Up(
                2 * channels if j else channels, channels if j < depth - 1 else 1,
                size - 2 * (out - 1), widened=wider[depth + j], lookahead=lookahead,
            ))
        # By number of their step; those that do nothing are not there.
        recurrent = recurrence == "fsmn"
        self.before = _numbered(
            lambda: ComplexFSMN(channels, order), range(0 if spare else 1, depth * recurrent)
        )
        self.after = _numbered(
            lambda: ComplexFSMN(channels, order), range((depth - (not spare)) * recurrent)
        )
        attentive = attention != "none"
        self.skip_attention = _numbered(
            lambda: ATTENTION[attention](channels, cumulative),
            range((depth - (not spare)) * attentive),
        )
        self.attention = _numbered(
            lambda: ATTENTION[attention](channels, cumulative),
            range((depth - 1 - (not spare)) * attentive),
        )
        self.memories = nn.ModuleList(
            ComplexFSMN(channels * self.sizes[-1], order) for _ in range(2 * (bottleneck == "fsmn"))
        )
        self.last = ComplexConv2d(1, 1, 1)

    def forward(self, z: Tensor, frames: Tensor | None = None) -> Tensor:
        """z [2, B, 1, F, T] -> same shape.

        frames  [B] valid frames of each item: the result in them is that of the item alone
        """
        skips = []
        for i, encoder in enumerate(self.encoders):
            z = self._recall(self.before, i, z)
            z = encoder(z if frames is None else z * within(frames, z.shape[-1]))
            frames = None if frames is None else frames + int(self.lookahead)
            skips.append(self._attend(self.skip_attention, i, z, frames))
        z = self._through_time(z, [None] * len(self.memories))
        for j, decoder in enumerate(self.decoders):
            z = decoder(z)
            frames = None if frames is None else frames - int(self.lookahead)
            if j < self.depth - 1:
                z = self._decoded(j, z, frames, None)
                z = torch.cat([z, skips[self.depth - 2 - j]], 2)
        return self.last(z)

    def push(self, z: Tensor, states: dict[str, State], last: bool = False) -> Tensor:
        """The next frames of a stream -> the frames of the output that are final now.

        states  of the layers, empty before the first call, changed in place
        last    these are the last frames: give all that is left
        Needs evaluation mode and, for what `forward` gives, cumulative attention.
        """
        if z.shape[-1] == 0 and not (last and self.lookahead):
            return z
        for i, encoder in enumerate(self.encoders):
            z = encoder.push(self._recall(self.before, i, z), _of(states, f"encoder {i}"), last)
            if i < self.depth - 1:
                state = _of(states, f"skip {i}")
                skip = self._attend(self.skip_attention, i, z, None, state)
                state["waiting"] = torch.cat([state.get("waiting", skip[..., :0]), skip], -1)
        z = self._through_time(z, [_of(states, f"memory {k}") for k in (0, 1)])
        for j, decoder in enumerate(self.decoders):
            z = decoder.push(z, _of(states, f"decoder {j}"))
            count = z.shape[-1]
            if count == 0:
                return z.new_zeros(2, z.shape[1], 1, self.sizes[0], 0)
            if j < self.depth - 1:
                z = self._decoded(j, z, None, _of(states, f"attention {j}"))
                waiting = states[f"skip {self.depth - 2 - j}"]["waiting"]
                states[f"skip {self.depth - 2 - j}"]["waiting"] = waiting[..., count:]
                z = torch.cat([z, waiting[..., :count]], 2)
        return self.last(z)

    def _recall(self, memories: nn.ModuleDict, number: int, z: Tensor) -> Tensor:
        # What stands before the first encoder is spare.
        known = str(number) in memories and not (memories is self.before and number == 0)
        return memories[str(number)](z, "frequency") if known else z

    def _attend(
        self, layers: nn.ModuleDict, number: int, z: Tensor, frames: Tensor | None = None,
        state: State | None = None,
    ) -> Tensor:
        first_spare = self.depth - 1 if layers is self.skip_attention else self.depth - 2
        known = str(number) in layers and number < first_spare
        return layers[str(number)](z, frames, state) if known else z

    def _decoded(
        self, j: int, z: Tensor, frames: Tensor | None, state: State | None
    ) -> Tensor:
        return self._attend(self.attention, j, self._recall(self.after, j, z), frames, state)

    def _through_time(self, z: Tensor, states: list[State | None]) -> Tensor:
        shape = z.shape
        z = z.flatten(2, 3).unsqueeze(3)  # [2, B, C F', 1, T]
        for memory, state in zip(self.memories, states, strict=False):
            z = memory(z, "time", state)
        return z.reshape(shape)


def _of(states: dict[str, State], name: str) -> State:
    return states.setdefault(name, {})


def _numbered(make: Any, numbers: range) -> nn.ModuleDict:
    return nn.ModuleDict({str(number): make() for number in numbers})


def _wider(channels: int, depth: int, order: int) -> list[int]:
    """Bins to widen each encoder's and decoder's convolution by, in place of its memory.

    Rows of kernels are given out in turns to the steps that have a memory, while the parameters
    come nearer to those of the memories.
    """
    memory = 2 * (2 * channels**2 + channels + channels * order)
    missing = (2 * depth - 2) * memory
    # Two parts by two frames by input by output channels; a decoder's input has the skip as well.
    rows = [4 * channels**2 * (1 if i else 0) for i in range(depth)]
    rows += [4 * channels**2 * (2 if j > 0 else 1) * (j < depth - 1) for j in range(depth)]
    order_of_turns = [n for i in range(1, depth) for n in (i, 2 * depth - 1 - i)]
    wider = [0] * (2 * depth)
    turn = 0
    while True:
        step = order_of_turns[turn % len(order_of_turns)]
        if abs(missing - rows[step]) >= abs(missing):
            return wider
        wider[step] += 1
        missing -= rows[step]
        turn += 1
