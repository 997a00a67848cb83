"""Conv-TasNet as a system."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import nn

from passband.bench.system import Config
from passband.speech.baselines.conv_tasnet.model import ConvTasNet
from passband.speech.blind import BlindSeparator
from passband.speech.separator import SeparatorConfig


class ConvTasNetConfig(SeparatorConfig):
    """Conv-TasNet and its training; letters are the paper's."""

    filters: int = Field(512, ge=1, le=8192, description="N, of the learned basis")
    kernel: int = Field(16, ge=2, le=1024, description="L, samples of a filter, even")
    bottleneck: int = Field(128, ge=1, le=4096, description="B, channels between blocks")
    hidden: int = Field(512, ge=1, le=8192, description="H, channels inside a block")
    taps: int = Field(3, ge=1, le=63, description="P, of the dilated convolutions, odd")
    blocks: int = Field(8, ge=1, le=16, description="X, of dilations 1, 2, 4, ... in a repeat")
    repeats: int = Field(3, ge=1, le=16, description="R")

    @field_validator("kernel")
    @classmethod
    def _even(cls, kernel: int) -> int:
        if kernel % 2:
            raise ValueError("an even number of samples")
        return kernel

    @field_validator("taps")
    @classmethod
    def _odd(cls, taps: int) -> int:
        if taps % 2 == 0:
            raise ValueError("an odd number")
        return taps


class ConvTasNetSeparator(BlindSeparator):
    """
    >>> system = ConvTasNetSeparator.from_preset("smoke")
    >>> system.separate(np.ones(8000, np.float32)).shape
    (2, 8000)
    """

    Config: ClassVar[type[Config]] = ConvTasNetConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # 100 epochs of WSJ0-2mix: 20,000 mixtures of 4 s at 8 kHz
        "paper": {
            "sample_rate": 8000, "seconds": 4.0, "batch_size": 4, "steps": 500_000,
            "select": "highest si_sdr",
        },
        # of the sizes of TIGER's presets of the same names
        "small": (small := {
            "filters": 128, "kernel": 32, "bottleneck": 32, "hidden": 64, "blocks": 6,
            "repeats": 2, "batch_size": 2,
        }),
        "small-8k": small | {"sample_rate": 8000, "kernel": 16, "blocks": 8, "repeats": 1},
        "tiny-8k": {
            "sample_rate": 8000, "filters": 64, "bottleneck": 24, "hidden": 48, "blocks": 7,
            "repeats": 1, "batch_size": 2, "steps": 500,
        },
        "smoke": {
            "sample_rate": 8000, "filters": 32, "bottleneck": 16, "hidden": 32, "blocks": 4,
            "repeats": 1, "seconds": 0.5, "batch_size": 2, "steps": 20,
        },
    }

    def build(self) -> nn.Module:
        c = self.config
        return ConvTasNet(
            c.talkers, c.filters, c.kernel, c.bottleneck, c.hidden, c.taps, c.blocks, c.repeats
        )
