"""iSTFTNet as a system: its variants, the training common to GAN vocoders, export."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator

from passband.bench.system import Config
from passband.parts.mel_upsampler import check_stages
from passband.speech.gan_vocoder import (
    BLOCKS,
    HIFIGAN,
    ISTFTNET,
    SMALL,
    SMOKE,
    GANVocoder,
    GANVocoderConfig,
)
from passband.speech.istftnet import artefacts, export
from passband.speech.istftnet.model import ISTFTNet, shrunk

# Generators of HiFi-GAN, and what is left of their stages.
GENERATORS: dict[str, dict[str, Any]] = {
    "v1": {"channels": 512}, "v2": {"channels": 128}, "v3": {"channels": 256, "blocks": "light"},
}
STAGES: dict[str, tuple[int, ...]] = {
    "c8c8c2i": (8, 8, 2), "c8c8i": (8, 8), "c8c1i": (8, 1), "c8i": (8,),
}
VARIANTS: dict[str, dict[str, Any]] = {
    f"{v}-{c}": ISTFTNET | GENERATORS[v] | {"rates": STAGES[c]}
    for v, c in product(GENERATORS, STAGES)
}


class ISTFTNetConfig(GANVocoderConfig):
    """An iSTFTNet: the product of `rates` divides `hop_length` and the analysis window."""

    magnitude: Literal["exp", "softplus"] = Field(
        "exp", description="how magnitudes are made positive; softplus is an ablation"
    )
    phase: Literal["sin", "identity"] = Field(
        "sin", description="how phases are made: sin keeps them within a radian of 0; identity is "
        "an ablation"
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> ISTFTNetConfig:
        check_stages(self.channels, self.rates, self.kernels)
        shrunk(self.rates, self.win_length or self.n_fft, self.hop_length)
        return self


class ISTFTNetVocoder(GANVocoder):
    """
    >>> system = ISTFTNetVocoder.from_preset("smoke")
    >>> system.vocode(np.full((80, 5), -5.0)).shape
    (1280,)
    """

    Config: ClassVar[type[Config]] = ISTFTNetConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": VARIANTS["v1-c8c8i"],
        "hifigan": VARIANTS["v1-c8c8i"] | HIFIGAN,
        **VARIANTS,
        "24k": VARIANTS["v1-c8c8i"] | {
            "sample_rate": 24_000, "n_fft": 2048, "win_length": 1200, "hop_length": 300,
            "fmax": 12_000.0, "rates": (10, 6), "seconds": 9000 / 24_000,
        },
        "44k": VARIANTS["v1-c8c8i"] | {
            "sample_rate": 44_100, "n_fft": 2048, "hop_length": 512, "n_mels": 128,
            "fmax": 22_050.0, "seconds": 16_384 / 44_100,
        },
        "small": SMALL,
        "smoke": SMOKE,
    }

    def build(self) -> ISTFTNet:
        c = self.config
        return ISTFTNet(
            c.n_mels, c.channels, c.rates, c.kernels, n_fft=c.win_length or c.n_fft,
            hop=c.hop_length, blocks=BLOCKS[c.blocks], magnitude=c.magnitude, phase=c.phase,
            initial=c.initial,
        )

    def lines(self, wave: Any) -> float:
        """Level of the artefact that this network is prone to, in dB: see `artefacts.lines`.

        >>> system = ISTFTNetVocoder.from_preset("smoke")
        >>> bool(system.lines(system.vocode(np.full((80, 40), -5.0))) < 60)
        True
        """
        return artefacts.lines(torch.as_tensor(wave), self.network.inverse.n_fft)

    def export(self, path: str | Path) -> Path:
        """Write the vocoder as one file for other runtimes: see `passband.speech.istftnet.export`.

        >>> path = ISTFTNetVocoder.from_preset("smoke").export("vocoder.pt2")
        >>> mel = torch.full((1, 80, 7), -5.0)
        >>> torch.export.load(path).module()(mel).shape
        torch.Size([1, 1792])
        """
        return export.write(self._plain(), self.config.n_mels, Path(path))
