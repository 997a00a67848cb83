"""Stand-ins for systems: one that knows the truth, one that changes nothing, one that fails."""

from __future__ import annotations

import torch
from torch import Tensor

from passband.data.speech.pairs import Pairs


class Oracle:
    """Looks the answer up. Talkers come in the wrong order."""

    verbs = ("separate",)

    def __init__(self, pairs: Pairs, verb: str = "separate") -> None:
        self.answers = {self.key(x.input): x.target for x in pairs}
        self.verbs = (verb,)

    @staticmethod
    def key(wave: Tensor) -> bytes:
        return wave.numpy().tobytes()

    def separate(self, wave: Tensor, sample_rate: int) -> Tensor:
        return self.answers[self.key(wave)].flip(0)

    def enhance(self, wave: Tensor, sample_rate: int) -> Tensor:
        return self.answers[self.key(wave)]


class Identity:
    """What comes in goes out, for every talker."""

    def __init__(self, verb: str, talkers: int = 2) -> None:
        self.verbs, self.talkers = (verb,), talkers

    def separate(self, wave: Tensor, sample_rate: int) -> Tensor:
        return wave.expand(self.talkers, -1)

    def enhance(self, wave: Tensor, sample_rate: int) -> Tensor:
        return wave


class Copying:
    """A vocoder whose spectrogram is the wave itself, cut to whole frames; `gain` spoils it."""

    verbs = ("vocode",)

    class config:
        sample_rate = 22_050

    def __init__(self, gain: float = 1.0, noise: float = 0.0) -> None:
        self.gain, self.noise = gain, noise

    def analyse(self, wave: Tensor, sample_rate: int) -> Tensor:
        return wave[: len(wave) // 256 * 256].reshape(-1, 256).T

    def vocode(self, mel: Tensor) -> Tensor:
        wave = self.gain * mel.T.reshape(-1)
        generator = torch.Generator().manual_seed(0)
        return wave + self.noise * torch.randn(wave.shape, generator=generator)
