"""Bases of the family: arrays and files of any length, rate and number of channels."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from passband.errors import DataError
from passband.speech.enhancer import Enhancer
from passband.speech.long import LongConfig
from passband.speech.separator import Separator, SeparatorConfig
from passband.speech.vocoder import Vocoder, VocoderConfig
from passband.speech.waveforms import Wave


class Gain(nn.Module):
    """One parameter, so that there is a network."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))


class Identity(Enhancer):
    presets: ClassVar = {"small": {"sample_rate": 8_000, "window": 0.5, "overlap": 0.1}}
    lengths: list[int]

    def build(self) -> nn.Module:
        self.lengths = []
        return Gain()

    def process(self, noisy: Tensor) -> Tensor:
        self.lengths.append(noisy.shape[-1])
        return noisy * self.network.gain


class Halves(Separator):
    """Positive and negative parts, in another order at every other call and channel."""

    presets: ClassVar = {"small": {"sample_rate": 8_000, "window": 0.5, "overlap": 0.1}}
    Config = SeparatorConfig

    def build(self) -> nn.Module:
        self.calls = 0
        return Gain()

    def process(self, mixtures: Tensor) -> Tensor:
        self.calls += 1
        parts = torch.stack([mixtures.clamp_min(0), mixtures.clamp_max(0)], 1)
        parts = torch.stack([p.flip(0) if c % 2 else p for c, p in enumerate(parts)])
        return parts.flip(1) if self.calls % 2 else parts


class Flat(Vocoder):
    presets: ClassVar = {
        "small": {"sample_rate": 8_000, "hop_length": 64, "n_fft": 256, "n_mels": 20,
                  "fmax": 4_000.0},
    }
    Config = VocoderConfig

    def build(self) -> nn.Module:
        return Gain()

    def process(self, mel: Tensor) -> Tensor:
        return mel.mean(1).repeat_interleave(64, dim=-1) * self.network.gain


def made(kind: type) -> Enhancer | Separator | Vocoder:
    return kind(kind.configure("small"))


def wave(length: int, channels: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (length,) if channels is None else (channels, length)
    smooth = np.random.default_rng(seed).standard_normal((*shape[:-1], length + 50))
    kernel = np.hanning(21) / np.hanning(21).sum()
    return np.apply_along_axis(np.convolve, -1, smooth, kernel, "valid")[..., :length].astype("f4")


@pytest.mark.parametrize("length", [1, 10, 4_000, 4_001, 13_777])
@pytest.mark.parametrize("channels", [None, 1, 2])
def test_any_length_comes_back(length: int, channels: int | None) -> None:
    x = wave(length, channels) if length > 60 else np.ones((channels or 1, length), "f4")
    x = x if channels or x.ndim == 1 else x[0]
    out = made(Identity).enhance(x)
    assert out.shape == x.shape and isinstance(out, np.ndarray) and out.dtype == np.float32
    np.testing.assert_allclose(out, x, atol=1e-6)


def test_what_fits_is_not_padded() -> None:
    system = made(Identity)
    system.enhance(wave(1_000))
    assert system.lengths == [1_000]
    system.enhance(wave(9_000))
    assert system.lengths == [1_000, 4_000, 4_000, 4_000]  # starts at 0, 3200, 6400: 9000 in reach


def test_types_and_rates() -> None:
    system = made(Identity)
    x = wave(5_000)
    assert isinstance(system.enhance(torch.from_numpy(x)), Tensor)
    whole = (x * 20_000).astype(np.int16)
    np.testing.assert_allclose(system.enhance(whole), whole / 32768, atol=1e-6)
    tone = np.sin(2 * np.pi * 440 * np.arange(22_051) / 22_050).astype("f4")
    out = system.enhance(tone, sample_rate=22_050)
    assert out.shape == tone.shape
    assert np.abs(out - tone)[500:-500].max() < 2e-3  # there and back through 8 kHz


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (np.zeros(0, "f4"), "one sample or more"),
        (np.zeros((2, 2, 100), "f4"), "shape"),
        (np.zeros((16_000, 2), "f4"), "channels"),
        (np.array([0.0, np.nan, 0.0], "f4"), "1"),
    ],
)
def test_bad_waves_are_answered(bad: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(Identity).enhance(bad)
    with pytest.raises(DataError, match="sample rate"):
        Wave.of(wave(100), -5, rate=8_000)


@pytest.mark.parametrize("channels", [None, 2])
def test_talkers_keep_their_order(channels: int | None) -> None:
    x = wave(20_000, channels)
    first, second = np.moveaxis(made(Halves).separate(x), -2, 0)
    parts = np.clip(x, 0, None), np.clip(x, None, 0)
    close = [np.allclose(first, p, atol=1e-6) for p in parts]
    # All windows, and all channels, in one order.
    assert any(close) and np.allclose(second, parts[close.index(False)], atol=1e-6)


@pytest.mark.parametrize(("rate", "channels", "suffix"), [(8_000, 1, "wav"), (44_100, 2, "flac")])
def test_files_of_any_rate(tmp_path: Path, rate: int, channels: int, suffix: str) -> None:
    x = 0.5 * wave(3 * rate + 17, channels)
    path = tmp_path / f"talk.{suffix}"
    soundfile.write(path, x.T, rate)
    figures: dict[str, float] = {}

    class Hears:
        def log(self, step: int, seconds: float, **values: float) -> None:
            figures.update(values)

        def progress(self, fraction: float, text: str = "") -> None:
            assert 0 <= fraction <= 1

        def test_error(self, system: object) -> None:
            raise AssertionError

    [out] = made(Identity).apply_file(path, tmp_path / "out", Hears())
    assert out.name == "talk.wav" and figures["real_time_factor"] > 0
    found, found_rate = soundfile.read(out, dtype="float32", always_2d=True)
    assert found_rate == rate and found.shape == (x.shape[-1], channels)
    whole = made(Identity).enhance(soundfile.read(path, dtype="float32", always_2d=True)[0].T,
                                   sample_rate=rate)
    np.testing.assert_allclose(found.T, whole, atol=1e-4)

    outs = made(Halves).apply_file(path, tmp_path / "out")
    assert [o.name for o in outs] == ["talk_1.wav", "talk_2.wav"]
    total = sum(soundfile.read(o, dtype="float32", always_2d=True)[0] for o in outs)
    np.testing.assert_allclose(total.T, whole, atol=2e-4)


def test_vocoders_take_mels_and_recordings(tmp_path: Path) -> None:
    system = made(Flat)
    x = 0.1 * wave(6_400)
    mel = system.analyse(x)
    assert mel.shape == (20, 100)
    out = system.vocode(mel)
    np.testing.assert_allclose(out, np.repeat(mel.mean(0), 64), atol=1e-6)
    both = system.vocode(torch.from_numpy(np.stack([mel, mel])))
    assert isinstance(both, Tensor) and both.shape == (2, 6_400)
    np.save(tmp_path / "a.npy", mel[None])
    [written] = system.apply_file(tmp_path / "a.npy", tmp_path / "out")
    assert soundfile.info(written).frames == 6_400
    for bad, said in [
        (mel.T, "mel.T"), (mel[:3], "shape"), (mel[:, :0], "shape"), (mel + np.nan, "finite"),
        (mel + 30, "logarithm"),
    ]:
        with pytest.raises(DataError, match=said):
            system.vocode(bad)


def test_overlap_is_at_most_half_a_window() -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="half of window"):
        LongConfig(window=1.0, overlap=0.6)
