"""FRCRN as a system: both published forms, its ablations, a causal one that streams."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from passband.bench.system import Config, Monitor
from passband.errors import CheckpointError, PassbandWarning
from passband.speech.frcrn.model import FRCRN
from passband.speech.frcrn.published import read
from passband.speech.frcrn.streaming import StreamingFRCRN
from passband.speech.frcrn.unet import sizes
from passband.speech.masking import MaskConfig, MaskEnhancer


class FRCRNConfig(MaskConfig):
    """The network and its training. `n_fft // 2 + 1` bins have to last for `depth` halvings."""

    n_fft: int = Field(640, ge=16, le=8192, description="samples of a transform")
    hop_length: int = Field(320, ge=1, description="samples from frame to frame")
    win_length: int | None = Field(
        None, ge=2, description="samples of a window, zero padded to n_fft; null: n_fft"
    )
    unets: int = Field(2, ge=1, le=4, description="U-Nets in a row: 2 as released, 1 in the paper")
    channels: int = Field(128, ge=8, description="of all steps of a U-Net")
    depth: int = Field(7, ge=2, le=10, description="encoder and decoder steps of a U-Net")
    attention: Literal["se", "ccbam", "none"] = Field(
        "se", description="squeeze-excite as released, block attention as in the paper, or none"
    )
    recurrence: Literal["fsmn", "wide", "none"] = Field(
        "fsmn", description="along frequency; ablations: wide has larger convolutions of as many "
        "parameters instead, none nothing"
    )
    bottleneck: Literal["fsmn", "none"] = Field(
        "fsmn", description="recurrence along time; none is an ablation"
    )
    order: int = Field(20, ge=2, description="taps of a memory")
    pooling: Literal["global", "cumulative"] = Field(
        "global", description="frames that attention sees: all, or those so far (for streams)"
    )
    lookahead: bool = Field(
        True, description="decoders see a frame ahead each, as published; false: causal"
    )
    spare: bool = Field(
        False, description="hold the never-used modules of the released weights as well"
    )
    passing: bool = Field(
        False, description="start with a mask near 1; false: with a drawn one near 0, as published"
    )

    @model_validator(mode="after")
    def _fits(self) -> FRCRNConfig:
        window = self.win_length or self.n_fft
        if window > self.n_fft:
            raise ValueError(f"win_length {window} is at most n_fft {self.n_fft}")
        if 2 * self.hop_length > window:
            raise ValueError(f"hop_length {self.hop_length} is at most half of the window {window}")
        sizes(self.n_fft // 2 + 1, self.depth)
        return self


# A hundred epochs at most; after five without improvement half the rate and the best weights.
PUBLISHED = {
    "clip": 10.0, "weight_decay": 1e-5, "batch_size": 12, "steps": 100_000,
    "select": "highest si_snr", "validate_every": 1_000, "schedule": "plateau", "drop": 0.5,
    "patience": 5, "reload": True, "stop_after": 10,
}
LONG = {"window": 1.0, "overlap": 0.25, "fade": "centre"}  # how long recordings are published
NARROW = {
    "sample_rate": 8_000, "n_fft": 320, "hop_length": 160, "depth": 6, "clip": 10.0,
    "weight_decay": 1e-5, "spare": True, "lr": 1e-2, "schedule": "cosine",  # for some 100 steps
    "passing": True,
}


class FRCRNEnhancer(MaskEnhancer):
    """
    >>> system = FRCRNEnhancer.from_preset("smoke")
    >>> system.enhance(np.zeros(4_000, np.float32), sample_rate=8_000).shape
    (4000,)
    """

    Config: ClassVar[type[Config]] = FRCRNConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {
            "win_length": 320, "hop_length": 160, "unets": 1, "attention": "ccbam",
            **PUBLISHED, **LONG,
        },
        "released": {"spare": True, **PUBLISHED, **LONG},
        "small": {"channels": 32, **NARROW},
        "tiny": {"unets": 1, "channels": 16, **NARROW},
        "causal": {
            "unets": 1, "channels": 16, "pooling": "cumulative", "lookahead": False, **NARROW,
        },
        "smoke": {
            "unets": 1, "channels": 16, "steps": 20, "batch_size": 2, "seconds": 0.5, **NARROW,
        },
    }

    def build(self) -> FRCRN:
        c = self.config
        return FRCRN(
            c.n_fft, c.hop_length, c.win_length, c.unets, c.channels, c.depth,
            attention=c.attention, recurrence=c.recurrence, bottleneck=c.bottleneck,
            order=c.order, cumulative=c.pooling == "cumulative", lookahead=c.lookahead,
            spare=c.spare, passing=c.passing,
        )

    # ---- use ---------------------------------------------------------------------------------

    def enhance(self, wave: Any, sample_rate: int | None = None) -> Any:
        """[L] -> [L], or [C, L] -> [C, L] channel by channel, as the array type that came.

        sample_rate  of the wave, in Hz; another one than the network's is resampled and back
        Warns when the wave's band is wider than the network's. Raises `DataError` for bad input.
        """
        self._warn(sample_rate)
        return super().enhance(wave, sample_rate)

    def apply_file(self, path: Path, out: Path, monitor: Monitor | None = None) -> list[Path]:
        from passband.data.audio import info

        self._warn(info(path).sample_rate)
        return super().apply_file(path, out, monitor)

    def _warn(self, rate: int | None) -> None:
        own = self.config.sample_rate
        if rate is not None and rate > own:
            warnings.warn(
                f"the recording has {rate} Hz, the network {own} Hz: nothing above {own // 2} Hz "
                "is in the result",
                PassbandWarning, stacklevel=3,
            )

    def stream(self) -> StreamingFRCRN:
        """The trained network on pieces of a stream, at the network's rate; levels are not set.

        >>> stream = FRCRNEnhancer.from_preset("causal").stream()
        >>> stream.latency                                      # samples at 8 kHz
        320
        """
        return StreamingFRCRN(self.network)

    @classmethod
    def from_published(cls, path: str | Path) -> Self:
        """The system `released` with the weights of a FRCRN_SE_16K file (.pt, .safetensors).

        Raises `CheckpointError` for files that hold something else.
        """
        system = cls.from_preset("released")
        state = read(path)
        own = system.network.state_dict()
        wrong = [n for n in own if n not in state or state[n].shape != own[n].shape]
        wrong += [name for name in state if name not in own]
        if wrong:
            raise CheckpointError(
                f"{path}: {len(wrong)} tensors differ from FRCRN_SE_16K, such as {wrong[0]}",
                expected="its released weights",
            )
        system.network.load_state_dict(state)
        return system
