"""Systems with the verb `enhance`: noisy or reverberant speech in, clean speech of its length out.

>>> noisy = np.random.default_rng(0).normal(0, 0.1, 4_000).astype(np.float32)
>>> create("frcrn", preset="smoke").enhance(noisy, sample_rate=8_000).shape
(4000,)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from passband.bench.system import Config, Monitor
from passband.speech.files import convert
from passband.speech.long import LongConfig
from passband.speech.trained import Trained
from passband.speech.waveforms import Wave


class Enhancer(Trained):
    """Base of the enhancers. A subclass gives `process`."""

    Config: ClassVar[type[Config]] = LongConfig
    verbs: ClassVar[tuple[str, ...]] = ("enhance",)

    @abstractmethod
    def process(self, noisy: Tensor) -> Tensor:
        """[B, L] -> [B, L] at the network's rate, of a length that fits into a window."""

    def enhance(self, wave: Any, sample_rate: int | None = None) -> Any:
        """[L] -> [L], or [C, L] -> [C, L] channel by channel, as the array type that came.

        sample_rate  of the wave, in Hz; another one than the network's is resampled and back
        Raises `DataError` for bad input.
        """
        given = Wave.of(wave, sample_rate, self.config.sample_rate)
        return given.back(torch.cat(list(self._pieces([given.samples])), dim=-1))

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        """Write NAME.wav, of the recording's own rate and length.

        Recordings of any length pass in blocks; logs the real-time factor.
        """
        return convert(
            path, [out / f"{path.stem}.wav"], self.config.sample_rate,
            lambda blocks: (y[None] for y in self._pieces(blocks)), monitor,
        )

    def _pieces(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        found: Iterator[Tensor] = self.config.in_windows(blocks, self._windowed)
        return found

    def _windowed(self, x: Tensor) -> Tensor:
        found: Tensor = self.compute(self.process, x)
        return found
