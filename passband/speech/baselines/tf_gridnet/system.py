"""TF-GridNet as a system; the network is in passband/speech/tf_gridnet.py."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from passband.bench.system import Config
from passband.speech.blind import BlindSeparator
from passband.speech.separator import SeparatorConfig
from passband.speech.tf_gridnet import TFGridNet


class TFGridNetConfig(SeparatorConfig):
    """TF-GridNet and its training. `heads` divides `channels`."""

    channels: int = Field(64, ge=1, le=2048, description="D, of a time-frequency unit")
    hidden: int = Field(256, ge=1, le=4096, description="of each direction of the LSTMs")
    blocks: int = Field(6, ge=1, le=64, description="R")
    kernel: int = Field(4, ge=1, le=64, description="bins or frames that an LSTM's step sees")
    hop: int = Field(1, ge=1, le=64, description="bins or frames from step to step")
    heads: int = Field(4, ge=1, le=64, description="of the attention over frames")
    query: int = Field(512, ge=1, le=65536, description="values of a query, about")
    n_fft: int = Field(128, ge=8, le=65536, description="samples of the STFT's Hann window")
    hop_length: int = Field(64, ge=1, le=32768, description="samples from frame to frame")

    @model_validator(mode="after")
    def _sizes_fit(self) -> TFGridNetConfig:
        if self.channels % self.heads:
            raise ValueError(f"channels a multiple of heads: {self.channels}, {self.heads}")
        if self.hop > self.kernel:
            raise ValueError(f"hop at most kernel: {self.hop} against {self.kernel}")
        if self.hop_length > self.n_fft // 2:
            raise ValueError(f"hop_length at most half of n_fft {self.n_fft}")
        return self


class TFGridNetSeparator(BlindSeparator):
    """
    >>> system = TFGridNetSeparator.from_preset("smoke")
    >>> system.separate(np.ones(8000, np.float32)).shape
    (2, 8000)
    """

    Config: ClassVar[type[Config]] = TFGridNetConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The STFT with which the network has the 14.4 M parameters that TIGER's paper reports.
        "paper": (paper := {
            "seconds": 4.0, "batch_size": 4, "steps": 1_000_000, "clip": 1.0,
            "select": "highest si_sdr",
        }),
        # 32 ms and 8 ms, the STFT of TF-GridNet's own paper
        "paper-32ms": paper | {"n_fft": 512, "hop_length": 128},
        "small": (small := {
            "channels": 16, "hidden": 16, "blocks": 2, "query": 128, "n_fft": 512,
            "hop_length": 256, "batch_size": 2,
        }),
        "small-8k": small | {"sample_rate": 8000, "n_fft": 256, "hop_length": 128},
        "tiny-8k": {
            "sample_rate": 8000, "channels": 16, "hidden": 16, "blocks": 1, "query": 64,
            "n_fft": 256, "hop_length": 128, "batch_size": 2, "steps": 500,
        },
        "smoke": {
            "sample_rate": 8000, "channels": 8, "hidden": 8, "blocks": 1, "query": 64,
            "n_fft": 256, "hop_length": 128, "seconds": 0.5, "batch_size": 2, "steps": 20,
        },
    }

    def build(self) -> nn.Module:
        c = self.config
        return TFGridNet(
            c.talkers, c.channels, c.hidden, c.blocks, c.kernel, c.hop, c.heads, c.query,
            n_fft=c.n_fft, hop_length=c.hop_length,
        )
