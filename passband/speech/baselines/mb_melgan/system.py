"""Multi-band MelGAN as a system: STFT losses of the wave and its bands, later discriminators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from passband.bench.loop import Outcome
from passband.bench.system import Config
from passband.parts.losses.spectral import MultiResolutionSTFT
from passband.parts.signal.pqmf import PQMF
from passband.speech.baselines.mb_melgan.critics import MelGANScales
from passband.speech.gan_vocoder import SMALL, SMOKE, AdversarialConfig, GANVocoder
from passband.speech.mb_melgan import BANDS, MultiBandMelGAN, check
from passband.speech.trained import Run

SCALES = 3
BAND_RESOLUTIONS = ((384, 30, 150), (683, 60, 300), (171, 10, 60))  # n_fft, hop, window

TRAINING: dict[str, Any] = {
    "optimizer": "adam", "schedule": "step", "drop": 0.5, "drop_every": 100_000,
    "critic_start": 200_000, "steps": 1_000_000,
}
PAPER: dict[str, Any] = TRAINING | {
    "sample_rate": 16_000, "n_fft": 1024, "win_length": 800, "hop_length": 200,
    "rates": (2, 5, 5), "lr": 1e-4, "betas": (0.5, 0.9), "batch_size": 128, "seconds": 1.0,
}
LJSPEECH: dict[str, Any] = TRAINING | {
    "lr": 1e-3, "betas": (0.9, 0.999), "batch_size": 64, "seconds": 16_384 / 22_050,
}


class MultiBandMelGANConfig(AdversarialConfig):
    """A multi-band MelGAN: four times the product of `rates` is `hop_length`."""

    channels: int = Field(384, gt=0, description="of the first layer, halved at every stage")
    rates: tuple[int, ...] = Field((8, 4, 2), description="of the stages, four bands wide")
    stacks: int = Field(4, ge=1, le=6, description="dilated layers after each stage")
    lr_decay: float = Field(
        1.0, gt=0, le=1, description="lr is multiplied by this every epoch; 1: `schedule` rules"
    )
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    mel_weight: float = Field(0.0, ge=0, description="of the log-mel loss, besides those of STFTs")
    feature_weight: float = Field(0.0, ge=0, description="of feature matching")
    adversarial_weight: float = Field(2.5, ge=0, description="of the adversarial loss")

    @field_validator("rates")
    @classmethod
    def _positive(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if not values or min(values) < 1:
            raise ValueError("whole numbers above 0, at least one")
        return values

    @model_validator(mode="after")
    def _stages_fit(self) -> MultiBandMelGANConfig:
        check(self.channels, self.rates, self.hop_length)
        return self


class MultiBandMelGANVocoder(GANVocoder):
    """
    >>> system = MultiBandMelGANVocoder.from_preset("smoke")
    >>> system.vocode(np.full((80, 5), -5.0)).shape
    (1280,)
    """

    Config: ClassVar[type[Config]] = MultiBandMelGANConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": PAPER,
        "ljspeech": LJSPEECH,
        # Half as wide as published, as the small ones of the others are; critics join as early.
        "small": SMALL | {"channels": 192, "optimizer": "adam", "critic_start": 80},
        "smoke": SMOKE | {"channels": 64, "optimizer": "adam"},
    }

    def build(self) -> MultiBandMelGAN:
        c = self.config
        return MultiBandMelGAN(c.n_mels, c.channels, c.rates, c.stacks, c.hop_length)

    def build_critics(self) -> Sequence[nn.Module]:
        return [MelGANScales(SCALES, self.config.critic_width)]

    def critic_weights(self) -> Sequence[float]:
        return [1 / SCALES] * SCALES

    def learn(self, network: nn.Module, pairs: Any, run: Run) -> Outcome:
        self._whole = MultiResolutionSTFT()
        self._banded = MultiResolutionSTFT(BAND_RESOLUTIONS, bands=True)
        self._bank = PQMF(BANDS)
        return super().learn(network, pairs, run)

    def distance(
        self, wave: Tensor, made: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Half the STFT loss of the waves, half that of their bands."""
        for part in (self._whole, self._banded, self._bank):
            part.to(wave.device)
        whole = self._whole(made.float(), wave)
        banded = self._banded(hidden.float(), self._bank.split(wave))
        total = 0.5 * (whole + banded)
        values = {"stft": whole.detach(), "band_stft": banded.detach()}
        if self.config.mel_weight:
            mel, more = super().distance(wave, made, hidden)
            return total + mel, {**values, **more}
        return total, values
