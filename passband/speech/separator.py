"""Systems with the verb `separate`: one recording in, one waveform for each talker out.

>>> mixture = np.random.default_rng(0).normal(0, 0.1, 11_025).astype(np.float32)
>>> create("tiger", preset="smoke").separate(mixture, sample_rate=22_050).shape
(2, 11025)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from passband.bench.system import Config, Monitor
from passband.parts.chunking import align_sources
from passband.speech.files import convert
from passband.speech.long import LongConfig
from passband.speech.trained import Trained
from passband.speech.waveforms import Wave


class SeparatorConfig(LongConfig):
    """Of separators."""

    talkers: int = Field(2, ge=2, le=8, description="voices in a mixture, K")


class Separator(Trained):
    """Base of the separators. A subclass gives `process`."""

    Config: ClassVar[type[Config]] = SeparatorConfig
    verbs: ClassVar[tuple[str, ...]] = ("separate",)

    @abstractmethod
    def process(self, mixtures: Tensor) -> Tensor:
        """[B, L] -> [B, K, L] at the network's rate, of a length that fits into a window."""

    def separate(self, wave: Any, sample_rate: int | None = None) -> Any:
        """[L] -> [K, L], or [C, L] -> [C, K, L], as the array type that came.

        sample_rate  of the wave, in Hz; another one than the network's is resampled and back
        Channels are separated one by one and ordered alike. Raises `DataError` for bad input.
        """
        given = Wave.of(wave, sample_rate, self.config.sample_rate)
        found = torch.cat(list(self.pieces([given.samples])), dim=-1)
        return given.back(found.transpose(0, 1))

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Write NAME_1.wav to NAME_K.wav, of the recording's own rate and length.

        Recordings of any length pass in blocks; logs the real-time factor.
        """
        targets = [out / f"{path.stem}_{k + 1}.wav" for k in range(self.config.talkers)]
        return convert(path, targets, self.config.sample_rate, self.pieces, monitor)

    def pieces(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Blocks [C, n] of one recording -> pieces [K, C, n'], as long in all."""
        found: Iterator[Tensor] = self.config.in_windows(blocks, self._talkers_first, _align)
        return found

    def _talkers_first(self, x: Tensor) -> Tensor:
        """[C, n] -> [K, C, n], talkers of all channels in the order of the first."""
        found: Tensor = self.compute(self.process, x)
        for channel in found[1:]:
            channel.copy_(channel[align_sources(found[0], channel)])
        return found.transpose(0, 1)


def _align(previous: Tensor, new: Tensor) -> Tensor:
    """[K, C, n] twice -> the order of the new talkers."""
    return torch.as_tensor(align_sources(previous.flatten(1), new.flatten(1)))
