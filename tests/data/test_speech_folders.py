"""Users' folders: every layout is read, and what is wrong is named before any work starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from passband.data.audio import read as read_audio
from passband.data.audio import write
from passband.data.speech.folders import read
from passband.data.speech.names import held_out, talkers_of
from passband.errors import DataError

RATE = 8000
FSDD = Path(__file__).parents[3] / "shared" / "data" / "fsdd"


def wave(seed: int, samples: int = 4000) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


def pairs_in(folder: Path, names: tuple[str, ...], parts: tuple[str, ...], **changes: str) -> Path:
    """The last part is what the first one is the sum of, with the others."""
    for i, name in enumerate(names):
        waves = [wave(10 * i + k) for k in range(len(parts) - 1)]
        for part, x in zip(parts, [sum(waves), *waves], strict=True):
            write(folder / part / f"{name}{changes.get(part, '.wav')}", x, RATE)
    return folder


NAMES = tuple(f"u{i}" for i in range(6))


def test_noisy_and_clean_meet_by_name(tmp_path: Path) -> None:
    pairs_in(tmp_path, NAMES, ("noisy", "clean"), clean=".flac")
    parts = read(tmp_path, "denoise")
    assert [len(part) for part in parts] == [4, 1, 1]
    seen = [item.name for part in parts for item in part.items]
    assert sorted(seen) == list(NAMES)
    for part in parts:
        example = part[0]
        torch.testing.assert_close(example.input, example.target, atol=1e-4, rtol=0)
    assert read(tmp_path, "denoise").test.items == parts.test.items
    assert parts.train.segments(100).draw(0, np.random.default_rng(0)).input.shape == (100,)


@pytest.mark.parametrize("talkers", [2, 3])
def test_mixtures_and_their_sources(talkers: int, tmp_path: Path) -> None:
    sources = tuple(f"s{k + 1}" for k in range(talkers))
    pairs_in(tmp_path, NAMES, ("mix", *sources))
    for part in read(tmp_path, "separate"):
        mixture, target = part[0]
        assert target.shape == (talkers, 4000)
        torch.testing.assert_close(target.sum(0), mixture, atol=1e-6, rtol=0)
        piece = part.segments(1000).draw(0, np.random.default_rng(0))
        torch.testing.assert_close(piece.target.sum(0), piece.input, atol=1e-6, rtol=0)


def test_parts_that_the_user_has_split_stay_as_they_are(tmp_path: Path) -> None:
    pairs_in(tmp_path / "tr", NAMES, ("mix_both", "s1", "s2"))
    pairs_in(tmp_path / "cv", NAMES[:2], ("mix_both", "s1", "s2"))
    pairs_in(tmp_path / "tt", NAMES[:3], ("mix_both", "s1", "s2"))
    assert [len(part) for part in read(tmp_path, "separate")] == [6, 2, 3]
    shutil.rmtree(tmp_path / "cv")
    assert [len(part) for part in read(tmp_path, "separate")] == [5, 1, 3]
    shutil.rmtree(tmp_path / "tr")
    with pytest.raises(DataError, match="has test but no training part"):
        read(tmp_path, "separate")


def test_lists_in_json(tmp_path: Path) -> None:
    pairs_in(tmp_path / "audio", NAMES, ("mix", "s1", "s2"))
    for part in ("mix", "s1", "s2"):
        rows = [[f"audio/{part}/{name}.wav", 4000] for name in NAMES]
        (tmp_path / f"{part}.json").write_text(json.dumps(rows))
    assert [len(part) for part in read(tmp_path, "separate")] == [4, 1, 1]
    (tmp_path / "s2.json").write_text(json.dumps(rows[::-1]))
    with pytest.raises(DataError, match=r"entry 0 of mix\.json is u0\.wav, of s2\.json u5\.wav"):
        read(tmp_path, "separate")
    (tmp_path / "s2.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(DataError, match="lists 5 files"):
        read(tmp_path, "separate")
    (tmp_path / "s2.json").write_text("{}")
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path, "separate")


def test_lists_of_lines(tmp_path: Path) -> None:
    pairs_in(tmp_path, ("a b", "c", "d"), ("noisy", "clean"))
    path = tmp_path / "all.scp"
    path.write_text('# noisy clean\n"noisy/a b.wav" "clean/a b.wav"\n\n'
                    f"noisy/c.wav {tmp_path}/clean/c.wav\nnoisy/d.wav clean/d.wav\n")
    assert [len(part) for part in read(path, "denoise")] == [1, 1, 1]
    path.write_text("noisy/c.wav\n")
    with pytest.raises(DataError, match=r"line 1 of .* has one name"):
        read(path, "denoise")
    path.write_text('"noisy/c.wav clean/c.wav\n')
    with pytest.raises(DataError, match=r"line 1 of .*quotation"):
        read(path, "denoise")
    path.write_text("noisy/c.wav clean/none.wav\n")
    with pytest.raises(DataError, match=r"none\.wav is not there"):
        read(path, "denoise")


def test_lists_of_recordings_with_their_text(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / "wavs" / f"LJ{i}.wav", wave(i), RATE)
    (tmp_path / "training.txt").write_text("LJ0|Some text.|some text\n\nLJ1|More.\nwavs/LJ2.wav\n")
    (tmp_path / "validation.txt").write_text("LJ3|Other text.\n")
    parts = read(tmp_path, "vocode")
    assert [[file.stem for file in part.speech.files] for part in parts][1] == ["LJ3"]
    assert [len(part) for part in parts] == [2, 1, 1]
    assert len(read(tmp_path / "training.txt", "vocode").train) == 1
    (tmp_path / "validation.txt").write_text("LJ3|a\nLJ9|b\n")
    with pytest.raises(DataError, match=r"line 2 of .*: there is no LJ9"):
        read(tmp_path, "vocode")


def test_a_folder_for_every_sample(tmp_path: Path) -> None:
    for i in range(4):
        waves = [wave(10 * i + k) for k in (0, 1)]
        for name, x in zip(("mix_3", "spk1_reverb_3", "spk2_reverb_3"), [sum(waves), *waves],
                           strict=True):
            write(tmp_path / f"sample{i}" / f"{name}.wav", x, RATE)
    parts = read(tmp_path, "separate")
    assert [len(part) for part in parts] == [2, 1, 1]
    torch.testing.assert_close(parts.train[0].target.sum(0), parts.train[0].input, atol=1e-6,
                               rtol=0)


def test_clean_recordings_become_all_kinds_of_pairs(tmp_path: Path) -> None:
    for talker in range(4):
        for i in range(6):
            write(tmp_path / f"talker{talker}" / f"{i}.wav", wave(100 * talker + i), RATE)
    parts = read(tmp_path, "separate")
    files = [set(part.speech.files) for part in parts]
    assert sum(map(len, files)) == len(set.union(*files)) == 24
    assert set(parts.train.speech.talkers) == {f"talker{k}" for k in range(4)}
    mixture, sources = parts.test[0]
    torch.testing.assert_close(sources.sum(0), mixture, atol=1e-6, rtol=0)
    assert read(tmp_path, "denoise").train[0].target.ndim == 1
    assert read(tmp_path, "vocode").train.sample_rate == 22_050


def test_speech_and_noise_of_the_users_own(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "speech" / f"{i}.wav", wave(i), RATE)
        # The noise of file k is the constant 2^-k: a draw tells where it came from.
        write(tmp_path / "noise" / f"{i}.wav", np.full(4000, 2.0**-i, np.float32), RATE)
    parts = read(tmp_path, "denoise")
    heard = [set(part.noises.recorded.files) for part in parts]
    assert [len(files) for files in heard] == [4, 1, 1]
    assert len(set.union(*heard)) == 6
    noisy, clean = parts.test[0]
    added = noisy - clean
    torch.testing.assert_close(added, added[:1].expand_as(added), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("work", "parts"), [("separate", ("noisy", "clean")),
                                             ("denoise", ("mix", "s1", "s2"))])
def test_pairs_for_other_work_are_refused(
    work: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    pairs_in(tmp_path, NAMES, parts)
    with pytest.raises(DataError, match=f"to learn to {work}"):
        read(tmp_path, work)  # type: ignore[arg-type]
    # Vocoders learn from the targets, of each talker.
    assert len(read(tmp_path, "vocode").train) == 4 * (len(parts) - 1)


def test_files_without_a_partner(tmp_path: Path) -> None:
    pairs_in(tmp_path, NAMES, ("noisy", "clean"))
    (tmp_path / "clean" / "u3.wav").unlink()
    with pytest.raises(DataError, match=r"noisy/u3 has no partner in clean/"):
        read(tmp_path, "denoise")
    shutil.rmtree(tmp_path / "clean")
    with pytest.raises(DataError, match="has noisy/ alone"):
        read(tmp_path, "denoise")


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda p: write(p, wave(0, 3999), RATE), r"4000 samples and .*u2\.wav has 3999"),
    (lambda p: write(p, wave(0), 16_000), r"u2\.wav at 16000 Hz"),
    (lambda p: write(p, np.stack([wave(0)] * 2), RATE), r"u2\.wav has 2 channels"),
    (lambda p: p.write_bytes(b"RIFF"), r"u2\.wav can't be read"),
    (lambda p: write_empty(p), r"u2\.wav has no samples"),
])
def test_files_that_do_not_fit(spoil: object, said: str, tmp_path: Path) -> None:
    pairs_in(tmp_path, NAMES, ("noisy", "clean"))
    spoil(tmp_path / "clean" / "u2.wav")  # type: ignore[operator]
    with pytest.raises(DataError, match=said):
        read(tmp_path, "denoise")


def write_empty(path: Path) -> None:
    import soundfile

    soundfile.write(path, np.zeros(0, np.float32), RATE)


def test_folders_with_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recordings in a layout"):
        read(tmp_path, "denoise")
    with pytest.raises(DataError, match="is not there"):
        read(tmp_path / "none", "denoise")
    write(tmp_path / "a.wav", wave(0), RATE)
    with pytest.raises(DataError, match="has 1 recording"):
        read(tmp_path, "denoise")


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "talkers"), [
    (["0_ann_1", "0_bob_1", "1_ann_2", "1_bob_2"], ["ann", "bob", "ann", "bob"]),
    (["84-121-0000", "84-121-0001", "91-122-0000", "91-122-0001"], ["84", "84", "91", "91"]),
    (["p225_001", "p225_002", "p226_001", "p226_002"], ["p225", "p225", "p226", "p226"]),
    (["x/1", "x/2", "y/1", "y/2"], ["x", "x", "y", "y"]),
    (["one", "two", "three"], ["one.wav", "two.wav", "three.wav"]),
])
def test_talkers_are_found_in_names(names: list[str], talkers: list[str]) -> None:
    files = [Path("root") / f"{name}.wav" for name in names]
    assert list(talkers_of(files, Path("root"))) == talkers


def test_who_is_held_out_depends_on_names_alone() -> None:
    names = [f"f{i}" for i in range(100)]
    pieces = held_out(names, 2)
    assert [len(piece) for piece in pieces] == [80, 10, 10]
    mixed = names[::-1]
    again = held_out(mixed, 2)
    for piece, other in zip(pieces, again, strict=True):
        assert {names[i] for i in piece} == {mixed[i] for i in other}
    talkers = [f"t{i % 20}" for i in range(100)]
    apart = [{talkers[i] for i in piece} for piece in held_out(names, 2, talkers)]
    assert [len(piece) for piece in apart] == [16, 2, 2]
    assert len(set.union(*apart)) == 20


@pytest.mark.skipif(not FSDD.is_dir(), reason="the recordings are not here")
def test_spoken_digits() -> None:
    parts = read(FSDD, "separate")
    assert parts.train.sample_rate == 8000
    assert set(parts.train.speech.talkers) == {"george", "jackson", "lucas", "nicolas"}
    assert [len(part.speech) for part in parts] == [1600, 200, 200]
    mixture, sources = parts.test[0]
    torch.testing.assert_close(sources.sum(0), mixture, atol=1e-6, rtol=0)
    one = parts.train.speech
    np.testing.assert_array_equal(one[3], read_audio(one.files[3])[0][0].numpy())
