"""The embedded voices: apart between the parts, made once, of the promised spectrum."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from passband.data.speech import voices as v
from passband.data.speech.sentences import sentences
from passband.errors import DataError, MissingExtraError

SPLITS = ("train", "valid", "test")


@pytest.mark.parametrize("size", ["smoke", "small", "full"])
def test_parts_share_neither_voices_nor_timbres_nor_sentences(size: v.Size) -> None:
    lines = v.plan(size)
    texts = [text for _, said in lines for text in said]
    assert len(set(texts)) == len(texts)
    timbres = [voice.name.split("+")[1] for voice, _ in lines]
    assert len(set(timbres)) == len(timbres)
    expected = {"smoke": (8, 2, 4), "small": (24, 4, 8), "full": (24, 4, 8)}[size]
    names = {split: {voice.name for voice in v.all_voices(split)} for split in SPLITS}
    counts = tuple(sum(voice.name in names[split] for voice, _ in lines) for split in SPLITS)
    assert counts == expected


def test_sentences_are_the_same_in_another_process() -> None:
    code = "from passband.data.speech.sentences import sentences; import sys; " \
        "sys.stdout.write('|'.join(sentences(300)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert tuple(found.stdout.split("|")) == sentences(300)
    for text in sentences(300):
        assert text[0].isupper()
        assert text[-1] in ".?"
        assert 4 <= len(text.split()) <= 14


def test_they_speak_for_a_second_or_more_without_silence_around() -> None:
    train = v.voices("train", "smoke")
    assert train.sample_rate == 22_050
    assert len(train) == 32
    for wave in map(train.__getitem__, range(len(train))):
        assert 0.8 < len(wave) / train.sample_rate < 6.0
        assert 0.02 < np.abs(wave).max() < 0.99  # heard, and not limited
        loud, moment = 0.005 * np.abs(wave).max(), train.sample_rate // 40
        assert np.abs(wave[:moment]).max() > loud
        assert np.abs(wave[-moment:]).max() > loud


def test_energy_by_band_is_that_of_speech() -> None:
    """The sheet's figures: -1.4 dB below 1 kHz, -13 dB in 2-4 kHz; voices differ by some dB."""
    train = v.voices("train", "smoke")
    power = np.abs(np.fft.rfft(train.samples / 32768)) ** 2
    frequency = np.fft.rfftfreq(len(train.samples), 1 / train.sample_rate)

    def level(low: float, high: float) -> float:
        inside = power[(frequency >= low) & (frequency < high)].sum()
        return float(10 * np.log10(inside / power.sum()))

    assert level(0, 1000) == pytest.approx(-1.4, abs=1.5)
    assert level(2000, 4000) == pytest.approx(-13, abs=4)
    assert -40 < level(8000, 11_000) < -18


def test_they_are_made_once() -> None:
    first = v.voices("test", "smoke")
    again = v._spoken.__wrapped__("smoke")  # as another process would, from the cache
    assert v._spoken("smoke").digest == again.digest
    assert len(first.digest) == 16


def test_another_rate_is_the_same_speech() -> None:
    high, low = v.voices("test", "smoke"), v.voices("test", "smoke", 8000)
    assert low.talkers == high.talkers
    from scipy.signal import resample_poly

    for i in (0, 5):
        x = resample_poly(high[i].astype(float), 160, 441)
        y = low[i][: len(x)]
        correlation = np.corrcoef(x[: len(y)], y)[0, 1]
        assert correlation > 0.995
        assert len(low[i]) == -(-len(high[i]) * 8000 // 22_050)


def test_an_engine_that_fails_is_reported() -> None:
    job = {"voice": "xx-nobody+f1", "rate": 150, "pitch": 50, "range": 50, "texts": ["Hello."]}
    with pytest.raises(DataError, match="no voice 'xx-nobody"):
        v.speak([job])


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"passband\[speech\]"):
        v.speak([])


def test_an_engine_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v, "PATIENCE", 0.01)
    with pytest.raises(DataError, match="not done"):
        v.speak([{"voice": "en", "rate": 150, "pitch": 50, "range": 50, "texts": ["A word."] * 50}])


def test_all_voices_exist() -> None:
    lines = [(voice, "Yes.") for split in SPLITS for voice in v.all_voices(split)]
    jobs = [{"voice": x.name, "rate": x.rate, "pitch": x.pitch, "range": x.range, "texts": [text]}
            for x, text in lines]
    waves = v.speak(jobs)
    assert len(waves) == 36
    assert min(len(w) for w in waves) > 2000
