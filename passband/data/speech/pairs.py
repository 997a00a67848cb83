"""What speech systems learn from: pairs of an input and what should come out of it.

    Example   input [L], target [L] or [K, L]
    Pairs     whole examples, deterministic: `pairs[i]`, `len(pairs)`
    Segments  pieces of one length, random: `segments.draw(index, rng)`, for the training loop

>>> noisy, clean = torch.randn(2, 8000)
>>> pairs = Fixed([Example(noisy, clean)], sample_rate=8000)
>>> pairs[0].input.shape, pairs.at(16000)[0].target.shape
(torch.Size([8000]), torch.Size([16000]))
>>> pairs.segments(4000).draw(0, np.random.default_rng(0)).input.shape
torch.Size([4000])
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from passband.errors import ConfigError, DataError

TRIES = 8  # crops that are looked at until one has sound in every target


class Example(NamedTuple):
    """One pair, float32.

    input   [L]: the mixture, the noisy or the reverberant wave; for vocoders the wave itself
    target  [K, L]: the sources of a mixture; [L]: the clean wave
    """

    input: Tensor
    target: Tensor


class Segments(ABC):
    """Random pieces of exactly one length: what `passband.bench.loop.train` draws from."""

    @abstractmethod
    def __len__(self) -> int:
        """Pieces of one epoch."""

    @abstractmethod
    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """One piece; `rng` decides all that is random about it."""


class Pairs(ABC):
    """Whole examples at one sample rate; the same index gives the same example every time."""

    sample_rate: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Example: ...

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def at(self, sample_rate: int) -> Pairs:
        """The same at another rate, in Hz. Nothing is added above the old Nyquist frequency."""
        check_rate(sample_rate)
        return self if sample_rate == self.sample_rate else Resampled(self, sample_rate)

    def segments(self, samples: int) -> Segments:
        """Random pieces of `samples` samples; examples that are shorter end in zeros."""
        return Crops(self, samples)

    def fixed(self) -> Fixed:
        """All examples held in memory."""
        return Fixed(list(self), self.sample_rate)


class Fixed(Pairs):
    """Examples in memory."""

    def __init__(self, examples: Sequence[Example], sample_rate: int) -> None:
        self.examples, self.sample_rate = list(examples), check_rate(sample_rate)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class Crops(Segments):
    """Pieces cut from whole examples at random; pieces in which a target is silent are avoided."""

    def __init__(self, pairs: Pairs, samples: int) -> None:
        self.pairs, self.samples = pairs, check_samples(samples)

    def __len__(self) -> int:
        return len(self.pairs)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        whole = self.pairs[index]
        for _ in range(TRIES):
            start = int(rng.integers(0, max(whole.input.shape[-1] - self.samples, 0) + 1))
            piece = cut(whole, start, self.samples)
            if sounding(piece):
                break
        return piece


class Resampled(Pairs):
    """Pairs at another rate. Pieces are drawn at the old rate and resampled with a margin."""

    MARGIN = 64  # samples at the lower of the two rates, more than the resampler's filter needs

    def __init__(self, pairs: Pairs, sample_rate: int) -> None:
        self.pairs, self.sample_rate = pairs, check_rate(sample_rate)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        return self.convert(self.pairs[index])

    def at(self, sample_rate: int) -> Pairs:
        return self if sample_rate == self.sample_rate else self.pairs.at(sample_rate)

    def segments(self, samples: int) -> Segments:
        return _ResampledSegments(self, check_samples(samples))

    def convert(self, example: Example) -> Example:
        from passband.parts.signal.resample import resample

        rates = self.pairs.sample_rate, self.sample_rate
        # In one call, so that input and target go through the same filter.
        both = torch.cat([example.input[None], example.target.reshape(-1, len(example.input))])
        both = resample(both, *rates)
        return Example(both[0], both[1:].reshape(*example.target.shape[:-1], -1))


class _ResampledSegments(Segments):
    def __init__(self, pairs: Resampled, samples: int) -> None:
        self.pairs, self.samples = pairs, samples
        old, new = pairs.pairs.sample_rate, pairs.sample_rate
        margin = Resampled.MARGIN * max(1, -(-old // new))
        self.skip = -(-margin * new // old)
        self.base = pairs.pairs.segments(-(-(samples + self.skip) * old // new) + margin)

    def __len__(self) -> int:
        return len(self.base)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        return cut(self.pairs.convert(self.base.draw(index, rng)), self.skip, self.samples)


def cut(example: Example, start: int, samples: int) -> Example:
    """`samples` samples from `start` on; zeros where the example has ended."""

    def piece(x: Tensor) -> Tensor:
        found = x[..., start:start + samples]
        missing = samples - found.shape[-1]
        return torch.nn.functional.pad(found, (0, missing)) if missing else found

    return Example(piece(example.input), piece(example.target))


def sounding(example: Example) -> bool:
    """Whether every target has sound (more than -80 dBFS)."""
    return bool((example.target.square().mean(-1) > 1e-8).all())


def check_rate(sample_rate: int) -> int:
    if not 1000 <= sample_rate <= 384_000:
        raise ConfigError(f"a sample rate of {sample_rate}", expected="Hz, 1000 to 384000")
    return int(sample_rate)


def check_samples(samples: int) -> int:
    if samples < 1:
        raise DataError(f"a segment of {samples} samples", expected="at least one sample")
    return int(samples)
