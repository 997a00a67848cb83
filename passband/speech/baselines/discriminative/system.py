"""The regression baseline as a system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from passband.bench.system import Config
from passband.errors import ConfigError
from passband.speech.baselines.discriminative.model import NCSNpp, Regression
from passband.speech.enhancer import Enhancer
from passband.speech.long import LongConfig
from passband.speech.spectra import CompressedSpectra, peak

if TYPE_CHECKING:
    from passband.data.speech.pairs import Example, Pairs


class DiscriminativeConfig(LongConfig):
    """Defaults are those of the score model it is compared with."""

    seconds: float = Field(2.04, gt=0, le=60, description="of one training segment")
    lr: float = Field(1e-4, gt=0, description="peak learning rate")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; null: none")
    ema: float | None = Field(
        0.999, gt=0, lt=1, description="decay of averaged weights, which are then the ones kept"
    )
    batch_size: int = Field(8, gt=0, description="segments of a step")
    window: float = Field(8.0, gt=0, le=600, description="seconds that are processed at once")
    overlap: float = Field(1.0, gt=0, description="seconds that two windows share")
    n_fft: int = Field(510, ge=8, le=8192, description="samples of a transform")
    hop_length: int = Field(128, ge=1, description="samples from frame to frame")
    alpha: float = Field(0.5, gt=0, le=1, description="exponent of magnitudes")
    beta: float = Field(0.15, gt=0, description="factor of compressed magnitudes")
    width: int = Field(128, ge=4, description="channels at the top")
    multipliers: tuple[int, ...] = Field(
        (1, 1, 2, 2, 2, 2, 2), min_length=1, description="of the width, level by level"
    )
    blocks: int = Field(2, ge=1, description="residual blocks a level")
    attention: tuple[int, ...] = Field((16,), description="heights in bins")
    validation_files: int = Field(20, ge=1, description="recordings enhanced for `select`")

    @model_validator(mode="after")
    def _fits(self) -> DiscriminativeConfig:
        if self.hop_length > self.n_fft // 2:
            raise ValueError(f"hop_length {self.hop_length} is at most half of n_fft {self.n_fft}")
        try:
            with torch.device("meta"):
                _network(self)
        except ConfigError as error:
            raise ValueError(f"{error.what}: {error.expected}") from None
        return self


def _network(c: DiscriminativeConfig) -> NCSNpp:
    return NCSNpp(
        c.n_fft // 2 + 1, 2, 2, c.width, c.multipliers, c.blocks, c.attention, timed=False
    )


_PAPER: dict[str, Any] = {"batch_size": 32, "steps": 64_000, "select": "highest pesq"}
# A transform of a quarter of the size gives a quarter of the magnitudes, half when compressed.
_SMALL: dict[str, Any] = {
    "sample_rate": 8000, "n_fft": 126, "hop_length": 32, "beta": 0.3, "seconds": 63 * 32 / 8000,
    "width": 24, "multipliers": (1, 2, 2, 2), "blocks": 1, "lr": 2e-3, "schedule": "cosine",
    "batch_size": 1, "steps": 1200, "ema": 0.995, "window": 4.0, "overlap": 0.5,
}
_TINY: dict[str, Any] = {**_SMALL, "width": 16, "multipliers": (1, 2, 2), "steps": 2400}


class Discriminative(Enhancer):
    """Clean speech as the mean of what the noisy one may have been: one pass of an NCSN++.

    >>> system = create("discriminative", preset="smoke")
    >>> system.enhance(np.sin(np.arange(4000) / 10).astype(np.float32), sample_rate=8000).shape
    (4000,)
    """

    Config: ClassVar[type[Config]] = DiscriminativeConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER, "small": _SMALL, "tiny": _TINY,
        "smoke": {**_TINY, "steps": 20},
    }

    def __init__(self, config: Config | None = None, *, seed: int = 0) -> None:
        super().__init__(config, seed=seed)
        c = self.config
        self.spectra = CompressedSpectra(c.n_fft, c.hop_length, c.alpha, c.beta)

    def build(self) -> Regression:
        return Regression(_network(self.config))

    @property
    def segment(self) -> int:
        """Samples of a training segment, in whole frames."""
        hop = self.config.hop_length
        return max(1, super().segment // hop) * hop

    def objective(self, module: Any, batch: Example) -> Tensor:
        spectra, level = self.spectra.to(batch.input.device), peak(batch.input)
        loss: Tensor = module.loss(
            spectra.analyse(batch.input, level), spectra.analyse(batch.target, level)
        )
        return loss

    def validate(self, module: Any, pairs: Pairs) -> Mapping[str, float]:
        """Figures of the first recordings: pesq, si_sdr, ..."""
        from passband.data.speech.pairs import Fixed
        from passband.speech.scores import enhancement

        chosen = range(min(self.config.validation_files, len(pairs)))
        return enhancement(self, Fixed([pairs[i] for i in chosen], pairs.sample_rate))

    def process(self, noisy: Tensor) -> Tensor:
        """[B, L] -> [B, L]; silence stays silence."""
        spectra, level = self.spectra.to(noisy.device), peak(noisy)
        found = self.network(spectra.analyse(noisy, level))
        out = spectra.synthesise(found, level, noisy.shape[-1])
        return out * (noisy.abs().amax(-1, keepdim=True) > 0)
