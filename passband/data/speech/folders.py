"""Users' speech: folders and lists of their own, in the layouts that the field uses.

    DIR/{train,valid,test}/...            any layout below in each; what is missing is held out
    DIR/noisy/*.wav, DIR/clean/*.wav      equal names (also reverb/ and anechoic/)
    DIR/mix/*.wav, DIR/s1/, DIR/s2/, ...  equal names, two or more talkers
    DIR/mix.json, DIR/s1.json, ...        lists [[path, samples], ...], paths from DIR
    DIR/SAMPLE/mix.wav, spk1_reverb.wav, spk2_reverb.wav
    FILE.scp or DIR/{train,test}.scp      lines "noisy.wav clean.wav" or "mix.wav s1.wav s2.wav"
    FILE.txt or DIR/{training,validation}.txt   a recording on each line, "name" or "name|text"
    DIR/speech/, DIR/noise/               noisy speech is made of them
    DIR                                   clean recordings: mixtures and noisy speech are made

>>> for part in ("noisy", "clean"):
...     for name in ("a", "b", "c"):
...         _ = write(f"mine/{part}/{name}.wav", np.sin(np.arange(8000) * 0.1), 8000)
>>> parts = read(Path("mine"), "denoise")
>>> len(parts.train), len(parts.valid), len(parts.test), parts.train.sample_rate
(1, 1, 1, 8000)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from passband.data.audio import write  # noqa: F401  the example's
from passband.data.speech.embedded import ROOMS, SPLITS, Parts
from passband.data.speech.files import FilePairs, FileRecordings, Item
from passband.data.speech.layouts import (
    audio_files,
    find_items,
    listed_recordings,
    noise_folder,
    speech_folder,
)
from passband.data.speech.mixtures import Clean, Mixtures, Noisy, Reverberant
from passband.data.speech.names import held_out, relative, talkers_of
from passband.data.speech.noises import Noises
from passband.data.speech.pairs import Pairs
from passband.data.speech.recordings import Recordings
from passband.data.speech.rooms import rooms
from passband.errors import DataError

Work = Literal["separate", "denoise", "dereverberate", "vocode"]
ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training", "tr"),
    "valid": ("valid", "validation", "val", "dev", "cv"),
    "test": ("test", "testing", "tt", "eval"),
}
VOCODED = 22_050  # Hz
TESTED = 50  # mixtures that are made of a user's recordings for validation and test, at most


def read(path: Path, work: Work) -> Parts:
    """Training, validation and test pairs from a folder or a list.

    What the user does not split is split by a hash of the names: about a tenth each for validation
    and test; by talkers where ten or more can be told apart.

    Raises `DataError` for layouts that are none, files that are missing, unreadable, empty or not
    mono, rates that differ, and pairs whose lengths do.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} is not there", expected="a folder of recordings or an .scp list")
    given = _given(path)
    found = {split: _one(place, work) for split, place in given.items()}
    if "train" not in found:
        raise DataError(
            f"{path} has {', '.join(sorted(found))} but no training part",
            expected="a folder train/ as well", mend="or leave the split to Passband: one folder",
        )
    _equal_rates(path, found)
    return _build(_completed(found, path), work, given)


# ---- from places to what lies there ------------------------------------------------------------

Content = FilePairs | FileRecordings


def _given(path: Path) -> dict[str, Path]:
    """Split -> where the user has put it; everything under "train" when nothing is split."""
    if path.is_file():
        return {"train": path}
    found: dict[str, Path] = {}
    for split, names in ALIASES.items():
        places = [path / f"{name}{end}" for name in names for end in ("", ".scp", ".txt")]
        there = [place for place in places if place.exists()]
        if there:
            found[split] = there[0]
    return found or {"train": path}


def _one(place: Path, work: Work) -> Content:
    if place.suffix == ".txt" and place.is_file():
        return _recordings(listed_recordings(place), place.parent)
    items = find_items(place)
    if items is None:
        folder = speech_folder(place)
        return _recordings(audio_files(folder), folder)
    if work == "vocode":
        return _recordings([target for item in items for target in item.targets], place)
    _check_work(items, work, place)
    return FilePairs(items)


def _recordings(files: Sequence[Path], folder: Path) -> FileRecordings:
    if not files:
        raise DataError(
            f"{folder} has no recordings in a layout that is known",
            expected="noisy/ and clean/, mix/ and s1/ and s2/, an .scp list, or recordings",
            mend="the module passband.data.speech.folders lists the layouts",
        )
    names = [relative(file, folder).as_posix() for file in files]
    return FileRecordings(files, talkers_of(files, folder), names)


def _check_work(items: Sequence[Item], work: Work, place: Path) -> None:
    counts = sorted({len(item.targets) for item in items})
    fits = len(counts) == 1 and (counts[0] >= 2 if work == "separate" else counts[0] == 1)
    if not fits:
        wanted = "two sources or more, as many for each" if work == "separate" else "one clean wave"
        raise DataError(
            f"{place} has {' or '.join(map(str, counts))} target(s) for an input",
            expected=f"{wanted}, to learn to {work}",
            mend="separation takes mix/, s1/ and s2/; enhancement takes noisy/ and clean/",
        )


def _equal_rates(path: Path, found: Mapping[str, Content]) -> None:
    rates = {split: content.sample_rate for split, content in found.items()}
    if len(set(rates.values())) > 1:
        text = ", ".join(f"{split} at {rate} Hz" for split, rate in rates.items())
        raise DataError(f"{path} has {text}", expected="one sample rate")


def _completed(found: dict[str, Content], path: Path) -> dict[str, Content]:
    """With validation and test held out from training where the user gave none."""
    missing = [split for split in ("valid", "test") if split not in found]
    train = found["train"]
    if not missing:
        return found
    if len(train) <= len(missing):
        raise DataError(
            f"{path} has {len(train)} recording(s)",
            expected=f"{len(missing) + 1} or more: some to learn from, some held out",
            mend="give more, or folders train/, valid/ and test/",
        )
    if isinstance(train, FilePairs):
        pieces: Sequence[Content] = train.split(held_out(train.names(), len(missing)))
    else:
        pieces = train.split(held_out(train.names, len(missing), train.talkers))
    return {**found, "train": pieces[0], **dict(zip(missing, pieces[1:], strict=True))}


# ---- from recordings to pairs ------------------------------------------------------------------


def _build(found: Mapping[str, Content], work: Work, given: Mapping[str, Path]) -> Parts:
    noise = _noise(given) if work == "denoise" else [None] * len(SPLITS)
    pairs = [
        content if isinstance(content, FilePairs)
        else _MAKERS[work](content, k, _count(content, k), noise[k])
        for k, content in enumerate(found[split] for split in SPLITS)
    ]
    return Parts(*pairs)


def _count(speech: Recordings, part: int) -> int | None:
    return None if part == 0 else min(TESTED, len(speech))


def _noise(given: Mapping[str, Path]) -> list[FileRecordings | None]:
    """The user's own noise for each part: what a test has is not in training."""
    folders = {split: noise_folder(place) for split, place in given.items() if place.is_dir()}
    own = {
        split: _recordings(audio_files(folder), folder)
        for split, folder in folders.items() if folder is not None
    }
    if "train" not in own:
        return [own.get(split) for split in SPLITS]
    missing = [split for split in SPLITS if split not in own]
    train = own["train"]
    if missing and len(train) > len(missing):
        pieces = train.split(held_out(train.names, len(missing)))
        own |= {"train": pieces[0], **dict(zip(missing, pieces[1:], strict=True))}
    return [own.get(split, train) for split in SPLITS]


Noise = FileRecordings | None


def _mixtures(speech: FileRecordings, part: int, count: int | None, noise: Noise) -> Pairs:
    return Mixtures(speech, seed=part, count=count)


def _noisy(speech: FileRecordings, part: int, count: int | None, noise: Noise) -> Pairs:
    rate = speech.sample_rate
    recorded = noise.at(rate) if noise is not None else None
    return Noisy(
        speech, Noises(rate, speech=speech, recorded=recorded), seed=part, count=count
    )


def _reverberant(speech: FileRecordings, part: int, count: int | None, noise: Noise) -> Pairs:
    bank = rooms(ROOMS["small"][SPLITS[part]], speech.sample_rate, part, places=2)
    return Reverberant(speech, bank, seed=part, count=count)


def _clean(speech: FileRecordings, part: int, count: int | None, noise: Noise) -> Pairs:
    return Clean(speech.at(VOCODED), seed=part, count=count)


_MAKERS: dict[Work, Callable[[FileRecordings, int, int | None, Noise], Pairs]] = {
    "separate": _mixtures, "denoise": _noisy, "dereverberate": _reverberant, "vocode": _clean,
}
