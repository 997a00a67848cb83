"""The convolutional recurrent network as a system, trained on masks and waves together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from passband.bench.system import Config
from passband.speech.baselines.crn.model import CRN, sizes
from passband.speech.masking import MaskConfig, MaskEnhancer


class CRNConfig(MaskConfig):
    """The network and its training. `n_fft // 2 + 1` bins have to last for all steps."""

    n_fft: int = Field(320, ge=16, le=8192, description="samples of a transform")
    hop_length: int = Field(160, ge=1, description="samples from frame to frame")
    channels: tuple[int, ...] = Field(
        (16, 32, 64, 128, 256), min_length=1, max_length=10, description="of the encoder's steps"
    )
    mask: Literal["complex", "magnitude"] = Field(
        "complex", description="what is estimated; magnitude keeps the noisy phase"
    )

    @model_validator(mode="after")
    def _fits(self) -> CRNConfig:
        if 2 * self.hop_length > self.n_fft:
            raise ValueError(f"hop_length {self.hop_length} is at most half of n_fft {self.n_fft}")
        if min(self.channels) < 1:
            raise ValueError(f"channels {self.channels} are at least 1 each")
        sizes(self.n_fft // 2 + 1, len(self.channels))
        return self


NARROW = {
    "sample_rate": 8_000, "clip": 10.0, "weight_decay": 1e-5, "lr": 1e-2, "schedule": "cosine",
}


class CRNEnhancer(MaskEnhancer):
    """
    >>> system = CRNEnhancer.from_preset("smoke", mask="magnitude")
    >>> system.enhance(np.zeros(4_000, np.float32)).shape
    (4000,)
    """

    Config: ClassVar[type[Config]] = CRNConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"mask": "magnitude", "steps": 100_000, "batch_size": 16},
        "small": {"channels": (16, 32, 48, 48, 48), **NARROW},
        "tiny": {"channels": (12, 16, 24, 24, 16), **NARROW},
        "smoke": {
            "channels": (8, 8, 8, 8, 8), "steps": 20, "batch_size": 2, "seconds": 0.5, **NARROW,
        },
    }

    def build(self) -> CRN:
        c = self.config
        return CRN(c.n_fft, c.hop_length, c.channels, c.mask)
