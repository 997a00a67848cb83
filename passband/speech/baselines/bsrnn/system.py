"""BSRNN as a system."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import nn

from passband.bench.system import Config
from passband.speech.baselines.bsrnn.model import BSRNN
from passband.speech.blind import BlindSeparator
from passband.speech.separator import SeparatorConfig


class BSRNNConfig(SeparatorConfig):
    """BSRNN and its training. `talkers` divides `channels`."""

    channels: int = Field(128, ge=2, le=2048, description="N, features of a band in a frame")
    hidden: int = Field(256, ge=1, le=4096, description="of each direction of the BLSTMs")
    layers: int = Field(12, ge=1, le=64, description="pairs of a path over frames and over bands")
    n_fft: int = Field(640, ge=16, le=65536, description="samples of the STFT's Hann window")
    hop_length: int = Field(160, ge=1, le=32768, description="samples from frame to frame")
    bands: Literal["speech", "cinema", "even"] = Field(
        "speech", description="as for TIGER: speech and cinema are uneven, even has 67 equal ones"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> BSRNNConfig:
        if self.channels % self.talkers:
            raise ValueError(
                f"channels a multiple of talkers: {self.channels} against {self.talkers}"
            )
        if self.hop_length > self.n_fft // 2:
            raise ValueError(f"hop_length at most half of n_fft {self.n_fft}")
        return self


class BSRNNSeparator(BlindSeparator):
    """
    >>> system = BSRNNSeparator.from_preset("smoke")
    >>> system.separate(np.ones(8000, np.float32)).shape
    (2, 8000)
    """

    Config: ClassVar[type[Config]] = BSRNNConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "seconds": 3.0, "batch_size": 4, "steps": 2_533_500, "select": "highest si_sdr",
        },
        # of the sizes of TIGER's presets of the same names
        "small": (small := {"channels": 24, "hidden": 16, "layers": 4, "batch_size": 2}),
        "small-8k": small | {"sample_rate": 8000, "n_fft": 256, "hop_length": 64},
        "tiny-8k": {
            "sample_rate": 8000, "n_fft": 256, "hop_length": 128, "channels": 16, "hidden": 16,
            "layers": 2, "batch_size": 2, "steps": 500,
        },
        "smoke": {
            "sample_rate": 8000, "n_fft": 256, "hop_length": 128, "channels": 12, "hidden": 8,
            "layers": 2, "seconds": 0.5, "batch_size": 2, "steps": 20,
        },
    }

    def build(self) -> nn.Module:
        c = self.config
        return BSRNN(
            c.talkers, c.channels, c.hidden, c.layers, sample_rate=c.sample_rate, n_fft=c.n_fft,
            hop_length=c.hop_length, plan=c.bands,
        )
