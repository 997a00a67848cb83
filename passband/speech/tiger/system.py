"""TIGER as a system: configuration, presets, the cinema variant's windows, published weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from passband.bench.system import Config
from passband.errors import CheckpointError
from passband.parts.chunking import overlapped
from passband.speech.blind import BlindSeparator
from passband.speech.separator import SeparatorConfig
from passband.speech.tiger.model import TIGER, OnePerSource
from passband.speech.tiger.weights import from_published

# 500 epochs at most over the 20,268 mixtures of EchoSet, each with a validation at its end.
PAPER: dict[str, Any] = {
    "seconds": 3.0, "batch_size": 4, "steps": 2_533_500, "validate_every": 5_067,
    "select": "highest si_sdr", "schedule": "plateau", "drop": 0.5, "patience": 10,
    "stop_after": 20,
}
SMALL: dict[str, Any] = {"channels": 24, "hidden": 64, "batch_size": 2}
TINY: dict[str, Any] = {
    "channels": 16, "hidden": 32, "iterations": 2, "batch_size": 2, "steps": 500,
}


class TIGERConfig(SeparatorConfig):
    """TIGER and its training. `talkers` and `heads` divide `channels`."""

    channels: int = Field(128, ge=2, le=2048, description="N, features of a band in a frame")
    hidden: int = Field(256, ge=1, le=4096, description="H, channels inside the MSA")
    iterations: int = Field(4, ge=1, le=64, description="of the one FFI block: 4 small, 8 large")
    depth: int = Field(5, ge=2, le=10, description="D, scales of the MSA")
    heads: int = Field(4, ge=1, le=64, description="attention heads of the F3A")
    width: int = Field(4, ge=1, le=256, description="E, channels of a head's queries and keys")
    n_fft: int = Field(640, ge=16, le=65536, description="samples of the STFT's Hann window")
    hop_length: int = Field(160, ge=1, le=32768, description="samples from frame to frame")
    bands: Literal["speech", "cinema", "even"] = Field(
        "speech", description="speech: 25 Hz wide below 1 kHz to 500 Hz wide above 4 kHz; cinema: "
        "50 Hz to 2 kHz wide up to 20 kHz; even: 67 equal ones, an ablation"
    )
    legacy_topdown: bool = Field(
        True, description="the way up through the scales as in the released weights, which leaves "
        "the coarsest scale out; false: from the coarsest scale, as the paper's text says"
    )
    attention: bool = Field(True, description="false: without the F3A, an ablation")
    one_per_source: bool = Field(
        False, description="a network of its own for each source, in fixed order (TIGER-DnR)"
    )
    recompute: bool = Field(
        False, description="compute the inside of each iteration again for the gradient: slower, "
        "in the memory of one iteration"
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> TIGERConfig:
        for name, value in (("talkers", self.talkers), ("heads", self.heads)):
            if self.channels % value:
                raise ValueError(
                    f"channels a multiple of {name}: {self.channels} against {value}"
                )
        if self.hop_length > self.n_fft // 2:
            raise ValueError(f"hop_length at most half of n_fft {self.n_fft}")
        return self


class TIGERSeparator(BlindSeparator):
    """
    >>> system = TIGERSeparator.from_preset("smoke")
    >>> mixture = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    >>> talkers = system.separate(mixture, sample_rate=16_000)
    >>> talkers.shape, bool(np.allclose(talkers.sum(0), mixture, atol=1e-5))
    ((2, 16000), True)
    """

    Config: ClassVar[type[Config]] = TIGERConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": PAPER,
        "paper-small": PAPER,
        "paper-large": PAPER | {
            "iterations": 8, "batch_size": 8, "steps": 1_266_750, "validate_every": 2_533,
        },
        "3-speaker": PAPER | {"talkers": 3, "channels": 132, "iterations": 8},
        "small": SMALL,
        "small-8k": SMALL | {"sample_rate": 8000, "n_fft": 256, "hop_length": 64},
        "smoke": TINY | {"seconds": 0.5, "steps": 20},
        "tiny": TINY,
        "tiny-8k": TINY | {"sample_rate": 8000, "n_fft": 256, "hop_length": 128},
        # What leaves the mixture soonest in minutes of one core: few and long frames, one pass.
        "brief-8k": {
            "sample_rate": 8000, "n_fft": 512, "hop_length": 128, "channels": 24, "hidden": 48,
            "depth": 3, "iterations": 1, "batch_size": 2, "lr": 3e-3, "steps": 1500,
        },
        "dnr": PAPER | {
            "sample_rate": 44_100, "n_fft": 2048, "hop_length": 512, "bands": "cinema",
            "talkers": 3, "channels": 132, "iterations": 8, "one_per_source": True,
            "window": 12.0, "overlap": 6.0,
        },
    }

    @property
    def any_order(self) -> bool:  # type: ignore[override]
        return not self.config.one_per_source

    def build(self) -> nn.Module:
        c = self.config
        kind = OnePerSource if c.one_per_source else TIGER
        return kind(
            c.talkers, c.channels, c.hidden, c.iterations, c.depth, c.heads, c.width,
            sample_rate=c.sample_rate, n_fft=c.n_fft, hop_length=c.hop_length, plan=c.bands,
            legacy_topdown=c.legacy_topdown, attention=c.attention, recompute=c.recompute,
        )

    def pieces(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        if self.config.one_per_source:
            return self._averaged(blocks)
        return super().pieces(blocks)

    def load_published(self, path: str | Path) -> Self:
        """The authors' weights, a .safetensors file, in a system of their configuration.

        >>> system = create("tiger", preset="paper-large")                      # doctest: +SKIP
        >>> system.load_published("model.safetensors").save("tiger-speech")     # doctest: +SKIP

        Raises `CheckpointError` for other files and for other sizes than the configuration's.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} can't be read: {error}", expected="published weights, .safetensors"
            ) from None
        network = self.build()
        network.load_state_dict(from_published(tensors, network))
        self._network = network.eval()
        return self

    def _averaged(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """TIGER-DnR's rule: a third of a window from one to the next, plain means of three.

        Two thirds of a window of zeros at both ends put every sample under three windows.
        """
        hop = round(self.config.window * self.config.sample_rate / 3)
        blocks = iter(blocks)
        first = next(blocks, None)
        if first is None:
            return
        silence = first.new_zeros(first.shape[0], 2 * hop)
        found = overlapped(
            chain([silence, first], blocks, [silence]), self._sources_first, window=3 * hop,
            hop=hop, fade="flat",
        )
        yield from _inner(found, 2 * hop)

    def _sources_first(self, x: Tensor) -> Tensor:
        """[C, n] -> [K, C, n]; the order is fixed."""
        found: Tensor = self.compute(self.process, x)
        return found.transpose(0, 1)


def _inner(pieces: Iterable[Tensor], margin: int) -> Iterator[Tensor]:
    """The same without the first and last `margin` samples, held back no longer than needed."""
    ahead = margin
    held: Tensor | None = None
    for piece in pieces:
        cut = min(ahead, piece.shape[-1])
        ahead -= cut
        piece = piece[..., cut:]
        held = piece if held is None else torch.cat([held, piece], dim=-1)
        if held.shape[-1] > margin:
            yield held[..., :-margin]
            held = held[..., -margin:]
