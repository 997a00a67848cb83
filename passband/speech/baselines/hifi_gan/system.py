"""HiFi-GAN as a system: its variants, and the training common to GAN vocoders."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, model_validator

from passband.bench.system import Config
from passband.parts.mel_upsampler import check_stages
from passband.speech.baselines.hifi_gan.model import HiFiGAN, check_product
from passband.speech.gan_vocoder import (
    BLOCKS,
    HIFIGAN,
    SMALL,
    SMOKE,
    GANVocoder,
    GANVocoderConfig,
)

V1: dict[str, Any] = HIFIGAN | {"channels": 512, "rates": (8, 8, 2, 2)}
V2 = V1 | {"channels": 128}
V3 = V1 | {"channels": 256, "rates": (8, 8, 4), "blocks": "light"}


class HiFiGANConfig(GANVocoderConfig):
    """A HiFi-GAN: `rates` multiply to `hop_length`."""

    rates: tuple[int, ...] = Field(
        (8, 8, 2, 2), description="of the up-sampling stages; their product is hop_length"
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> HiFiGANConfig:
        check_stages(self.channels, self.rates, self.kernels)
        check_product(self.rates, self.hop_length)
        return self


class HiFiGANVocoder(GANVocoder):
    """
    >>> system = HiFiGANVocoder.from_preset("smoke")
    >>> system.vocode(np.full((80, 5), -5.0)).shape
    (1280,)
    """

    Config: ClassVar[type[Config]] = HiFiGANConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": V1, "v1": V1, "v2": V2, "v3": V3,
        "small": SMALL,
        "smoke": SMOKE,
    }

    def build(self) -> HiFiGAN:
        c = self.config
        return HiFiGAN(
            c.n_mels, c.channels, c.rates, c.kernels, hop=c.hop_length, blocks=BLOCKS[c.blocks],
            initial=c.initial,
        )
