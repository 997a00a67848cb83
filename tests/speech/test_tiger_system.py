"""TIGER as a system: presets, training, recordings of any kind, published weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from passband.bench.budget import Budget
from passband.bench.task import Data
from passband.data.speech.pairs import Example, Fixed
from passband.errors import CheckpointError, ConfigError, DataError
from passband.speech.tiger.system import TIGERSeparator
from tests.speech import tiger_plain as plain

RATE = 16_000
FAST = {"channels": 8, "hidden": 8, "iterations": 1}


def voices(count: int, seed: int, length: int = RATE // 2) -> torch.Tensor:
    """Harmonic tones that come and go, [count, length]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / RATE
    pitch = 90 + 250 * torch.rand(count, 1, generator=generator)
    waves = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 9))
    return 0.2 * waves * (1 + torch.sin(2 * torch.pi * 3 * time + pitch))


def mixtures(count: int, talkers: int = 2, length: int = RATE // 2) -> Fixed:
    sources = [voices(talkers, seed, length) for seed in range(count)]
    return Fixed([Example(s.sum(0), s) for s in sources], RATE)


class Losses:
    def __init__(self) -> None:
        self.values: list[float] = []

    def log(self, step: int, seconds: float, **values: float) -> None:
        self.values += [values["loss"]] if "loss" in values else []

    def progress(self, fraction: float, text: str = "") -> None: ...

    def test_error(self, system: object) -> None: ...


@pytest.mark.parametrize(("preset", "expected"), [
    ("paper", 821_932), ("paper-large", 821_932), ("3-speaker", 839_780), ("small", 102_116),
    ("tiny", 56_188), ("smoke", 56_188), ("dnr", 3 * 1_407_282),
])
def test_presets_have_the_published_sizes(preset, expected):
    assert TIGERSeparator.from_preset(preset).parameter_count() == expected


def test_twenty_steps_on_one_mixture_gain_three_decibels():
    losses = Losses()
    system = TIGERSeparator.from_preset("smoke")
    system.fit(Data(train=mixtures(1)), Budget(steps=20), losses)
    assert losses.values[-1] < losses.values[0] - 3
    for length in (16_000, 16_001, 12_345):
        mixture = voices(2, 5, length).sum(0)
        found = system.separate(mixture, sample_rate=RATE)
        assert found.shape == (2, length)
        assert (found.sum(0) - mixture).abs().max() < 1e-5


def test_the_best_weights_on_validation_are_kept():
    system = TIGERSeparator.from_preset("smoke", **FAST, select="highest si_sdr")
    found = system.fit(Data(train=mixtures(2), valid=mixtures(2)), Budget(steps=4))
    assert found["selected"] == "highest si_sdr"
    assert np.isfinite(found["si_sdr"])
    again = system.validate(system.network, mixtures(2))
    assert found["si_sdr"] == pytest.approx(again["si_sdr"], abs=1e-3)


@pytest.mark.parametrize("change", [
    {"attention": False}, {"bands": "even"}, {"legacy_topdown": False}, {"recompute": True},
    {"depth": 2}, {"one_per_source": True},
])
def test_every_variant_learns(change):
    losses = Losses()
    system = TIGERSeparator.from_preset("smoke", **FAST, **change)
    system.fit(Data(train=mixtures(1)), Budget(steps=6), losses)
    assert losses.values[-1] < losses.values[0]


def test_three_talkers():
    system = TIGERSeparator.from_preset("smoke", **(FAST | {"channels": 12}), talkers=3)
    system.fit(Data(train=mixtures(1, talkers=3)), Budget(steps=2))
    assert system.separate(voices(3, 1).sum(0), sample_rate=RATE).shape == (3, RATE // 2)


def test_references_of_another_number_stop_the_training():
    system = TIGERSeparator.from_preset("smoke", **FAST)
    with pytest.raises(DataError, match=r"3 references.*2 talkers"):
        system.fit(Data(train=mixtures(1, talkers=3)), Budget(steps=2))


# ---- recordings --------------------------------------------------------------------------------


def test_a_recording_of_one_window_is_separated_as_a_whole():
    system = TIGERSeparator.from_preset("smoke", **FAST)
    mixture = voices(2, 0).sum(0)
    with torch.no_grad():
        whole = system.network(mixture[None])[0]
    torch.testing.assert_close(system.separate(mixture, sample_rate=RATE), whole)


def test_long_recordings_pass_in_windows_that_sum_to_the_mixture():
    system = TIGERSeparator.from_preset("smoke", **FAST, window=0.5, overlap=0.1)
    mixture = voices(2, 0, 20_011).sum(0)
    found = system.separate(mixture, sample_rate=RATE)
    assert found.shape == (2, 20_011)
    assert (found.sum(0) - mixture).abs().max() < 1e-5


def test_talkers_keep_their_places_from_window_to_window():
    """Every second window gives its talkers in another order."""
    system = TIGERSeparator.from_preset("smoke", **FAST, window=0.25, overlap=0.1)
    length = 16_000
    truth = voices(2, 3, length)
    mixture, calls = truth.sum(0), 0

    def process(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        start = calls * system.config.sizes()[1]
        calls += 1
        part = truth[:, start : start + x.shape[-1]]
        part = torch.nn.functional.pad(part, (0, x.shape[-1] - part.shape[-1]))
        return part.flip(0)[None] if calls % 2 else part[None]

    system.process = process  # type: ignore[method-assign]
    found = system.separate(mixture, sample_rate=RATE)
    torch.testing.assert_close(found, truth.flip(0), atol=1e-5, rtol=0)
    assert calls > 4


@pytest.mark.parametrize("blocks", [[7000], [100, 3000, 1, 3899]])
def test_cinema_averages_three_windows(blocks):
    """Against the published rule, written out: 12 s windows every 4 s, 8 s of zeros around."""
    system = TIGERSeparator.from_preset(
        "smoke", channels=12, hidden=8, iterations=1, talkers=3, one_per_source=True, window=0.15,
        overlap=0.05,
    )
    hop, window = 800, 2400
    x = torch.randn(1, 7000)
    padded = torch.nn.functional.pad(x, (2 * hop, 2 * hop + window))
    total = torch.zeros(3, padded.shape[-1])
    with torch.no_grad():
        for start in range(0, 7000 + 4 * hop, hop):
            total[:, start : start + window] += system.network(padded[:, start : start + window])[0]
    expected = total[:, 2 * hop : 2 * hop + 7000] / 3
    found = torch.cat(list(system.pieces(iter(x.split(blocks, -1)))), -1)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=0)


def test_channels_come_in_one_order():
    system = TIGERSeparator.from_preset("smoke", **FAST)
    mixture = voices(2, 0).sum(0)
    found = system.separate(torch.stack([mixture, 0.5 * mixture]), sample_rate=RATE)
    assert found.shape == (2, 2, RATE // 2)
    torch.testing.assert_close(found.sum(1), torch.stack([mixture, 0.5 * mixture]), atol=1e-5,
                               rtol=0)
    likeness = torch.einsum("il,jl->ij", *found)
    assert likeness.trace() >= likeness.flip(0).trace()


def test_other_rates_and_types():
    system = TIGERSeparator.from_preset("smoke", **FAST)
    wave = voices(2, 0).sum(0)
    resampled = system.separate(wave.numpy(), sample_rate=44_100)
    assert isinstance(resampled, np.ndarray)
    assert resampled.shape == (2, RATE // 2)
    integers = (wave * 32768).round().clamp(-32768, 32767).to(torch.int16)
    found = system.separate(integers, sample_rate=RATE)
    expected = system.separate(integers.float() / 32768, sample_rate=RATE)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrong", [
    np.zeros(0, np.float32), np.zeros((2, 3, 100), np.float32),
    np.full(100, np.nan, np.float32), np.full(100, np.inf, np.float32),
])
def test_bad_recordings(wrong):
    with pytest.raises(DataError):
        TIGERSeparator.from_preset("smoke", **FAST).separate(wrong, sample_rate=RATE)


@pytest.mark.parametrize("wrong", [
    {"talkers": 3}, {"heads": 3}, {"hop_length": 400}, {"depth": 1}, {"bands": "bark"},
    {"iterations": 0}, {"channels": 0},
])
def test_bad_configurations(wrong):
    with pytest.raises(ConfigError):
        TIGERSeparator.from_preset("smoke", **wrong)


# ---- published weights -------------------------------------------------------------------------


def test_published_weights(tmp_path):
    system = TIGERSeparator.from_preset("smoke", **FAST)
    tensors = plain.weights(system.network.widths, 8, 8, 5, 2)
    path = tmp_path / "model.safetensors"
    save_file({name: t.float().contiguous() for name, t in tensors.items()}, path)
    system.load_published(path)
    mixture = voices(2, 1, 4000).sum(0)
    expected = plain.separate(
        {n: t.float().double() for n, t in tensors.items()}, mixture[None],
        system.network.widths, 2, 1, 5, 640, 160,
    )[0]
    found = system.separate(mixture, sample_rate=RATE)
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def test_files_that_are_no_published_weights(tmp_path):
    system = TIGERSeparator.from_preset("smoke", **FAST)
    with pytest.raises(CheckpointError, match="can't be read"):
        system.load_published(tmp_path / "nothing.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        system.load_published(tmp_path / "other.safetensors")
