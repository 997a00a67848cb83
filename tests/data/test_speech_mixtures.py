"""Mixtures, noisy and reverberant speech: levels, overlaps and identities that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from passband.data.speech import embedded
from passband.data.speech.mixtures import Clean, Mixtures, Noisy, Reverberant
from passband.data.speech.noises import Noises
from passband.data.speech.pairs import Crops, Example, Fixed, Pairs, cut
from passband.data.speech.recordings import Waves
from passband.data.speech.rooms import Rooms
from passband.errors import ConfigError, DataError

RATE = 8000


def hiss(talkers: int = 4, each: int = 3, seconds: float = 1.5) -> Waves:
    """White recordings: two of them are never alike by chance."""
    rng = np.random.default_rng(0)
    waves = [0.1 * rng.standard_normal(int(seconds * RATE)).astype(np.float32)
             for _ in range(talkers * each)]
    return Waves.of(waves, [f"t{i // each}" for i in range(talkers * each)], RATE)


def level(x: torch.Tensor) -> float:
    return float(10 * torch.log10(x.double().square().mean()))


def tail(seconds: float = 0.3) -> Rooms:
    rng = np.random.default_rng(1)
    t = np.arange(int(seconds * RATE)) / RATE
    bank = 0.05 * rng.standard_normal((2, 2, len(t))) * np.exp(-t / 0.05)
    bank[..., 0] = 1.0
    return Rooms(bank.astype(np.float32), RATE)


KINDS = {
    "mixtures": lambda: Mixtures(hiss(), seed=3),
    "rooms": lambda: Mixtures(hiss(), seed=3, rooms=tail(), noises=Noises(RATE, ["pink"])),
    "noisy": lambda: Noisy(hiss(), Noises(RATE, speech=hiss()), seed=3),
    "reverberant": lambda: Reverberant(hiss(), tail(), seed=3),
    "clean": lambda: Clean(hiss(), seed=3),
    "fixed": lambda: Mixtures(hiss(), seed=3, count=4).fixed(),
    "resampled": lambda: Mixtures(hiss(), seed=3).at(11_025),
    "resampled down": lambda: Noisy(hiss(), Noises(RATE, ["white"]), seed=3).at(5000),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_the_contract(kind: str) -> None:
    pairs: Pairs = KINDS[kind]()
    again = KINDS[kind]()
    for i in (0, len(pairs) - 1):
        example = pairs[i]
        assert example.input.dtype == example.target.dtype == torch.float32
        assert example.input.shape == example.target.shape[-1:]
        assert torch.equal(example.input, again[i].input)
        assert torch.equal(example.target, again[i].target)
        assert float(example.input.abs().max()) < 1.1
    for samples in (1000, 12_345, 40_000):
        pieces = pairs.segments(samples)
        draws = [pieces.draw(1, np.random.default_rng(seed)) for seed in (0, 0, 1)]
        assert draws[0].input.shape == (samples,)
        assert draws[0].target.shape == (*pairs[0].target.shape[:-1], samples)
        assert torch.equal(draws[0].input, draws[1].input)
        if samples < 12_000:
            assert not torch.equal(draws[0].input, draws[2].input)
    batch = default_collate([pairs.segments(500).draw(i, np.random.default_rng(i))
                             for i in range(3)])
    assert batch.input.shape == (3, 500)
    assert pairs.at(pairs.sample_rate) is pairs


def test_sources_add_up_and_stand_the_wanted_levels_apart() -> None:
    pairs = Mixtures(hiss(), seed=0, count=200, level=(-5.0, 5.0), overlap=(1.0, 1.0))
    gaps = []
    for mixture, sources in pairs:
        torch.testing.assert_close(sources.sum(0), mixture, atol=1e-6, rtol=0)
        assert -28.01 <= level(mixture) <= -19.99
        gaps.append(level(sources[0]) - level(sources[1]))
    # The difference of two uniform draws over (-2.5, 2.5) dB: a triangle over (-5, 5).
    assert -5 <= min(gaps) < -3
    assert 3 < max(gaps) <= 5
    assert np.std(gaps) == pytest.approx(5 / np.sqrt(6), rel=0.15)


@pytest.mark.parametrize("overlap", [0.5, 0.8, 1.0])
def test_both_talk_for_the_wanted_share_of_the_time(overlap: float) -> None:
    pairs = Mixtures(hiss(seconds=9.0), seed=0, count=10, overlap=(overlap, overlap),
                     seconds=(2.0, 2.0))
    for example in pairs:
        talking = example.target.abs() > 0
        both = float((talking[0] & talking[1]).float().mean())
        assert both == pytest.approx(overlap, abs=0.01)
        assert bool((talking[0] | talking[1]).float().mean() > 0.99)


def test_talkers_of_a_mixture_differ() -> None:
    t = np.arange(RATE) / RATE
    waves = [0.5 * np.sin(2 * np.pi * f * t).astype(np.float32) for f in (100, 200, 300)]
    speech = Waves.of(waves * 2, ["a", "b", "c"] * 2, RATE)
    for talkers in (2, 3):
        pairs = Mixtures(speech, seed=1, count=20, talkers=talkers, seconds=(1.0, 1.0),
                         overlap=(1.0, 1.0))
        for example in pairs:
            found = np.abs(np.fft.rfft(example.target.numpy(), axis=-1)).argmax(-1)
            assert len(set(np.round(found / 100))) == talkers


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.0])
def test_noise_lies_as_far_below_as_asked(snr: float) -> None:
    pairs = Noisy(hiss(), Noises(RATE, ["white", "hum"]), seed=0, count=10, snr=(snr, snr))
    for noisy, clean in pairs:
        assert level(clean) - level(noisy - clean) == pytest.approx(snr, abs=1e-3)


def test_reverberation_is_a_convolution_that_knows_what_came_before() -> None:
    """A piece hears the half second before it: its first samples are as reverberant as the rest."""
    pairs = Reverberant(hiss(seconds=9.0), tail(), seed=0, count=30, seconds=(1.0, 1.0))
    early, late = [], []
    for wet, dry in pairs:
        echo = wet - dry
        early.append(float(echo[:400].square().mean()))
        late.append(float(echo[-400:].square().mean()))
    assert np.mean(early) == pytest.approx(np.mean(late), rel=0.2)
    dead = Rooms(np.eye(1, 800, dtype=np.float32)[None], RATE)
    wet, dry = Reverberant(hiss(), dead, seed=0)[0]
    torch.testing.assert_close(wet, dry, atol=1e-6, rtol=0)


def test_pieces_are_made_anew() -> None:
    pieces = Mixtures(hiss(), seed=0).segments(4000)
    draws = [pieces.draw(0, np.random.default_rng(seed)).target for seed in range(30)]
    partners = {round(float(draw[1].square().sum()), 6) for draw in draws}
    assert len(partners) == 30


def test_short_recordings_are_joined_and_long_ones_cut() -> None:
    speech = hiss(seconds=0.3)
    piece = Clean(speech).segments(6000).draw(0, np.random.default_rng(0))
    assert float(piece.input[2400:].abs().max()) == 0.0  # a vocoder's piece ends in zeros
    mixture = Mixtures(speech, seed=0, overlap=(1.0, 1.0)).segments(3 * RATE)
    sources = mixture.draw(0, np.random.default_rng(0)).target
    talking = (sources.abs() > 0).float().mean(-1)
    assert float(talking.min()) > 0.4  # pauses of 0.1 to 0.4 s between recordings of 0.3 s


def test_crops_avoid_silence() -> None:
    wave = torch.zeros(RATE)
    wave[-400:] = 0.1
    crops = Crops(Fixed([Example(wave, wave)], RATE), 2000)
    sound = sum(float(crops.draw(0, np.random.default_rng(i)).target.abs().max()) > 0
                for i in range(50))
    assert sound > 12  # one try in fifteen has sound, eight tries in 2.4


def test_cutting_beyond_the_end_gives_zeros() -> None:
    piece = cut(Example(torch.ones(10), torch.ones(2, 10)), 8, 5)
    assert piece.input.tolist() == [1, 1, 0, 0, 0]
    assert piece.target.shape == (2, 5)


def test_a_resampled_piece_has_the_tone_of_the_original() -> None:
    t = np.arange(4 * RATE) / RATE
    wave = torch.from_numpy((0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32))
    pieces = Fixed([Example(wave, wave)], RATE).at(16_000).segments(4000)
    x = pieces.draw(0, np.random.default_rng(0)).input.double()
    # Three samples of a tone: x[n-1] + x[n+1] = 2 cos(w) x[n], right to the edges.
    w = 2 * np.pi * 440 / 16_000
    gap = (x[:-2] + x[2:] - 2 * np.cos(w) * x[1:-1]).abs().max()
    assert float(gap) < 1e-4


def test_the_embedded_sets_are_apart_and_fit_a_training_loop() -> None:
    parts = embedded.two_talkers(0, "smoke")
    names = [set(part.speech.talkers) for part in parts]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    assert [len(part) for part in parts] == [32, 2, 3]
    other = embedded.two_talkers(1, "smoke")
    assert not torch.equal(parts.test[0].input[:8000], other.test[0].input[:8000])
    rooms = embedded.talkers_in_rooms(0, "smoke")
    mixture, sources = rooms.test[0]
    assert 4 < level(sources.sum(0)) - level(mixture - sources.sum(0)) < 21
    kinds = embedded.noisy_speech(0, "smoke", kinds=["white"], test_kinds=["hum"])
    assert (kinds.train.noises.kinds, kinds.test.noises.kinds) == (("white",), ("hum",))
    wide = embedded.noisy_speech(0, "smoke", 16_000, kinds=["white"]).test[0]
    spectrum = torch.fft.rfft(wide.input - wide.target).abs()
    assert float(spectrum[-len(spectrum) // 4:].mean() / spectrum.mean()) > 0.8
    clean = embedded.clean_speech(0, "smoke")
    assert clean.train.sample_rate == 22_050
    assert float(clean.test[0].input.abs().max()) == pytest.approx(0.95)


def test_wrong_requests() -> None:
    with pytest.raises(DataError, match="2 talkers out of 1"):
        Mixtures(hiss(talkers=1), seed=0)
    with pytest.raises(DataError, match="one rate"):
        Noisy(hiss(), Noises(16_000, ["white"]), seed=0)
    with pytest.raises(ConfigError, match="snr"):
        Noisy(hiss(), Noises(RATE, ["white"]), seed=0, snr=(5, -5))
    with pytest.raises(ConfigError, match="overlap"):
        Mixtures(hiss(), seed=0, overlap=(0.0, 1.0))
    with pytest.raises(DataError, match="no recordings"):
        Clean(Waves.of([], [], RATE))
    with pytest.raises(DataError, match="at least one sample"):
        Clean(hiss()).segments(0)
    with pytest.raises(ConfigError, match="sample rate of 7"):
        Clean(hiss()).at(7)
    with pytest.raises(DataError, match="seed -1"):
        embedded.two_talkers(-1, "smoke")
