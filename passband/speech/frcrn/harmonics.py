"""Sounds whose low partial decides to whom the high ones belong.

    every slot of 1/8 s: one low tone at 150 Hz (a voice) or 300 Hz (a noise), and six high tones
    somewhere between 1.9 and 3.8 kHz, which sound alike in both
    target: the low tone always; the high ones where the low tone is the voice's

What sees only some hundred hertz around a bin can do no better than pass half of every high tone;
what carries the low tone's pitch upwards along the frequencies solves it.

>>> pairs = Harmonics(count=4, seed=0)
>>> pairs[0].input.shape, pairs[0].target.shape
(torch.Size([8000]), torch.Size([8000]))
"""

from __future__ import annotations

import numpy as np
import torch

from passband.data.speech.pairs import Example, Pairs, Segments

RATE = 8_000
SLOT = RATE // 8  # samples of one decision
LOW = (150.0, 300.0)  # Hz, of a voice and of a noise
HIGH = (1_900.0, 3_800.0)
TONES, RAMP = 6, 80  # high tones of a slot; samples over which a slot fades in and out


class Harmonics(Pairs):
    """
    count, seed  how many seconds, and which
    """

    sample_rate = RATE

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return sound(RATE, np.random.default_rng([self.seed, index]))

    def segments(self, samples: int) -> Segments:
        return _Fresh(self.count, samples)


class _Fresh(Segments):
    """New sounds for every draw."""

    def __init__(self, count: int, samples: int) -> None:
        self.count, self.samples = count, samples

    def __len__(self) -> int:
        return self.count

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        return sound(self.samples, rng)


def sound(samples: int, rng: np.random.Generator) -> Example:
    """`samples` samples of slots, each decided anew."""
    time = np.arange(SLOT) / RATE
    edge = np.minimum(1, np.minimum(np.arange(SLOT), np.arange(SLOT)[::-1]) / RAMP)
    noisy, clean = [], []
    for _ in range(-(-samples // SLOT)):
        voice = bool(rng.integers(2))
        low = np.sin(2 * np.pi * (LOW[0 if voice else 1] * time + rng.random()))
        pitch, phase = rng.uniform(*HIGH, TONES), rng.random(TONES)
        high = np.sin(2 * np.pi * (pitch[:, None] * time + phase[:, None])).sum(0) / np.sqrt(TONES)
        noisy.append(0.1 * edge * (low + high))
        clean.append(0.1 * edge * (low + voice * high))
    waves = np.stack([np.concatenate(w)[:samples] for w in (noisy, clean)])
    return Example(*torch.from_numpy(waves.astype(np.float32)).unbind(0))
