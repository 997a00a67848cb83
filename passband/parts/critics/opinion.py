"""What a discriminator says of a batch of waveforms, and how many channels it says it with."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from passband.errors import DataError

SLOPE = 0.1  # of every leaky ReLU in these networks


class Opinion(NamedTuple):
    """Of one sub-discriminator.

    score     [B, N], near 1 where it takes the wave for a recording, near 0 where not
    features  what each of its layers gave, the last one included
    """

    score: Tensor
    features: list[Tensor]


class Critic(Protocol):
    """A family of sub-discriminators, which may take any number of samples above its least."""

    def __call__(self, wave: Tensor) -> list[Opinion]:
        """[B, L] or [B, 1, L] -> one opinion a sub-discriminator."""


def scaled(channels: int, width: float) -> int:
    """Channels of a narrower discriminator: at least one.

    >>> scaled(1024, 1 / 16), scaled(8, 1 / 16)
    (64, 1)
    """
    return max(1, round(channels * width))


def as_batch(wave: Tensor) -> Tensor:
    """[B, L] or [B, 1, L] -> [B, 1, L]."""
    if wave.ndim == 2:
        return wave[:, None]
    if wave.ndim != 3 or wave.shape[1] != 1:
        raise DataError(
            f"a discriminator got waves of shape {tuple(wave.shape)}",
            expected="[B, L] or [B, 1, L]", mend="mix or split the channels first",
        )
    return wave
