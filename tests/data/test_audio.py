"""Audio files, against soundfile and the standard library's wave module."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from passband.data import audio
from passband.errors import ConfigError, DataError, PassbandWarning

RATE = 8000


def noise(channels: int, samples: int) -> np.ndarray:
    return 0.3 * np.random.default_rng(0).standard_normal((channels, samples)).astype(np.float32)


def test_sixteen_bits_as_the_standard_library_writes_them(tmp_path: Path) -> None:
    values = np.array([0, 1, -1, 32767, -32768, 12345], np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(values.tobytes())
    samples, rate = audio.read(tmp_path / "a.wav")
    assert rate == RATE
    assert samples.tolist() == [(values / 32768).tolist()]
    assert torch.equal(audio.checked(values), samples[0])


@pytest.mark.parametrize(("name", "tolerance"), [
    ("a.wav", 0.0), ("a.flac", 2.0**-15), ("a.ogg", 0.2), ("a.aif", 0.0), ("a.mp3", 0.3),
])
def test_what_is_written_is_read_again(name: str, tolerance: float, tmp_path: Path) -> None:
    t = np.arange(RATE) / RATE
    x = np.stack([0.5 * np.sin(2 * np.pi * f * t) for f in (200, 300)]).astype(np.float32)
    path = audio.write(tmp_path / "deep" / name, x, RATE)
    about = audio.info(path)
    assert (about.channels, about.sample_rate) == (2, RATE)
    samples, _ = audio.read(path)
    assert abs(samples.shape[1] - RATE) <= (2304 if name.endswith("mp3") else 0)
    if tolerance < 0.1:
        np.testing.assert_allclose(samples.numpy(), x, rtol=0, atol=tolerance)
    assert sorted(p.name for p in path.parent.iterdir()) == [name]


def test_floats_beyond_full_scale_are_kept_and_integers_limited(tmp_path: Path) -> None:
    x = np.array([0.0, 1.5, -2.0], np.float32)
    assert audio.read(audio.write(tmp_path / "a.wav", x, RATE))[0][0].tolist() == x.tolist()
    with pytest.warns(PassbandWarning, match=r"largest sample is 2\.00"):
        path = audio.write(tmp_path / "b.wav", x, RATE, "pcm16")
    assert soundfile.info(str(path)).subtype == "PCM_16"
    np.testing.assert_allclose(audio.read(path)[0][0], [0.0, 1.0, -1.0], atol=2.0**-15)


@pytest.mark.parametrize("size", [1, 999, 1000, 5000])
def test_blocks_laid_end_to_end_are_the_file(size: int, tmp_path: Path) -> None:
    x = noise(2, 2000)
    path = audio.write(tmp_path / "a.wav", x, RATE)
    found = list(audio.blocks(path, size))
    assert {block.shape[1] for block in found[:-1]} <= {size}
    np.testing.assert_array_equal(torch.cat(found, 1).numpy(), x)


def test_a_part_of_a_file(tmp_path: Path) -> None:
    x = noise(1, 2000)
    path = audio.write(tmp_path / "a.wav", x, RATE)
    np.testing.assert_array_equal(audio.read(path, 500, 700)[0], x[:, 500:700])


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError), audio.Writer(path, RATE) as file:
        file.write(torch.zeros(100))
        raise RuntimeError
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, np.float32), RATE)
    broken = audio.write(tmp_path / "broken.wav", np.zeros(10), RATE)
    soundfile.write(broken, np.array([0, 0, np.nan, 0], np.float32), RATE, subtype="FLOAT")
    for path, said in (
        (text, "can't be read"), (empty, "shape"), (broken, "nan at sample 2"),
        (tmp_path / "none.wav", "not there"), (tmp_path, "is a folder"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            audio.read(path)
        assert str(path) in caught.value.what
    with pytest.raises(DataError, match="no samples"):
        list(audio.blocks(empty, 10))


@pytest.mark.parametrize(("given", "said"), [
    (np.zeros(0, np.float32), "shape"), (np.zeros((2, 3, 4), np.float32), "shape"),
    (np.array(["a"]), "ndarray"), (np.zeros(3, bool), "bool"), (np.zeros(3, np.uint8), "uint8"),
    (torch.tensor([0.0, float("inf")]), "inf at sample 1"),
    (np.array([[0, 0], [0, np.nan]]), "nan at sample 1 of channel 1"),
    (np.zeros((8000, 2), np.float32), "8000 channels"), (None, "NoneType|object"),
    (np.zeros(3, complex), "complex"),
])
def test_what_is_no_wave_is_refused(given: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        audio.checked(given)


def test_formats_that_are_none() -> None:
    with pytest.raises(ConfigError, match="txt"):
        audio.Writer("a.txt", RATE)
    with pytest.raises(ConfigError, match="float"):
        audio.Writer("a.flac", RATE, encoding="float")
