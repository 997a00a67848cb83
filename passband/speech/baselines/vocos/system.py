"""Vocos as a system: the training common to GAN vocoders, with hinges and spectrograms to judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from passband.bench.system import Config
from passband.parts.critics import HINGE, MultiPeriod, MultiResolution
from passband.parts.critics.periods import PERIODS
from passband.parts.critics.resolutions import WINDOWS
from passband.speech.baselines.vocos.model import Vocos, check
from passband.speech.gan_vocoder import SMALL, SMOKE, AdversarialConfig, GANVocoder

PAPER: dict[str, Any] = {
    "sample_rate": 24_000, "n_mels": 100, "fmax": 12_000.0, "lr": 5e-4, "betas": (0.8, 0.9),
    "schedule": "cosine", "batch_size": 16, "steps": 1_000_000, "seconds": 16_384 / 24_000,
}


class VocosConfig(AdversarialConfig):
    """A Vocos; the inverse STFT has the size and hop of the mel's analysis."""

    channels: int = Field(512, gt=0, description="of the layers")
    hidden: int = Field(1536, gt=0, description="channels inside of a layer")
    depth: int = Field(8, ge=1, description="layers")
    lr_decay: float = Field(
        1.0, gt=0, le=1, description="lr is multiplied by this every epoch; 1: `schedule` rules"
    )
    feature_weight: float = Field(1.0, ge=0, description="of feature matching")
    resolution_weight: float = Field(
        0.1, ge=0, description="of what the discriminator of spectrograms says, against 1"
    )

    @model_validator(mode="after")
    def _frames_fit(self) -> VocosConfig:
        check(self.n_fft, self.hop_length)
        return self


class VocosVocoder(GANVocoder):
    """
    >>> system = VocosVocoder.from_preset("smoke")
    >>> system.vocode(np.full((80, 5), -5.0)).shape
    (1280,)
    """

    Config: ClassVar[type[Config]] = VocosConfig
    penalty = HINGE
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": PAPER,
        "small": SMALL | {"channels": 128, "hidden": 384},
        "smoke": SMOKE | {"channels": 32, "hidden": 96, "depth": 2},
    }

    def build(self) -> Vocos:
        c = self.config
        return Vocos(c.n_mels, c.channels, c.hidden, c.depth, c.n_fft, c.hop_length)

    def build_critics(self) -> Sequence[nn.Module]:
        width = self.config.critic_width
        return [MultiPeriod(width=width, first=1), MultiResolution(width=width)]

    def critic_weights(self) -> Sequence[float]:
        """A mean over each kind."""
        share = self.config.resolution_weight / len(WINDOWS)
        return [1 / len(PERIODS)] * len(PERIODS) + [share] * len(WINDOWS)
