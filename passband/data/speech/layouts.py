"""Finds the pairs in a folder or list: which files belong together.

    find_items(place) -> [Item(name, input, targets), ...], or None where there are no pairs
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from passband.data.audio import SUFFIXES
from passband.data.speech.files import Item
from passband.errors import DataError

MIXED = ("mix", "mix_both", "mix_clean", "mixture", "mixtures")  # the first one that is there
INPUTS = ("noisy", "reverb", "reverberant")
TARGETS = ("clean", "anechoic", "dry")
SPEECH, NOISE = ("speech", "clean"), ("noise", "noises")
MOST = 8  # talkers


def find_items(place: Path) -> list[Item] | None:
    """Pairs in the first layout that fits. Raises `DataError` where one fits in part."""
    if place.is_file():
        return _scp(place)
    for layout in (_json, _mixtures, _enhancement, _samples):
        found = layout(place)
        if found is not None:
            return found
    return None


def audio_files(folder: Path) -> list[Path]:
    """All audio files below a folder, sorted; hidden ones left out."""
    return sorted(
        path for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def listed_recordings(path: Path) -> list[Path]:
    """Files of a list with a name on each line, with or without ending, text after a bar.

    Names are looked for beside the list and in wavs/ beside it.
    """
    folders = (path.parent, path.parent / "wavs")
    found = []
    for number, line in enumerate(_lines(path), 1):
        name = line.split("|")[0].strip()
        if not name:
            continue
        places = [folder / f"{name}{end}" for folder in folders for end in ("", *SUFFIXES)]
        there = [place for place in places if place.is_file()]
        if not there:
            raise DataError(
                f"line {number} of {path}: there is no {name}",
                expected="the name of a recording in the list's folder or in wavs/ there",
            )
        found.append(there[0])
    return found


def speech_folder(place: Path) -> Path:
    """Where the clean recordings are: speech/ or clean/ beside noise/, else the folder itself."""
    inner = _first(place, SPEECH)
    return inner if inner is not None else place


def noise_folder(place: Path) -> Path | None:
    return _first(place, NOISE) if _first(place, SPEECH) is not None else None


# ---- layouts -----------------------------------------------------------------------------------


def _mixtures(place: Path) -> list[Item] | None:
    mixed = _first(place, MIXED)
    sources = _numbered(place, lambda k: place / f"s{k}")
    if mixed is None or not sources:
        return None
    return _matched(mixed, sources)


def _enhancement(place: Path) -> list[Item] | None:
    noisy, clean = _first(place, INPUTS), _first(place, TARGETS)
    if noisy is None:
        return None
    if clean is None:
        raise DataError(
            f"{place} has {noisy.name}/ alone", expected=f"{' or '.join(TARGETS)} beside it",
        )
    return _matched(noisy, [clean])


def _samples(place: Path) -> list[Item] | None:
    """A folder for every sample: mix*.wav, spk1_reverb*.wav, spk2_reverb*.wav."""
    items = []
    for mix in sorted(place.glob("*/mix*.wav")):
        sources = _numbered(mix.parent, lambda k, at=mix.parent: next(  # type: ignore[misc]
            iter(sorted(at.glob(f"spk{k}_reverb*.wav"))), at / f"spk{k}_reverb.wav"
        ))
        if sources:
            items.append(Item(mix.parent.name, mix, tuple(sources)))
    return items or None


def _json(place: Path) -> list[Item] | None:
    mixed = place / "mix.json"
    sources = _numbered(place, lambda k: place / f"s{k}.json")
    if not mixed.is_file():
        return None
    if not sources:
        raise DataError(f"{mixed} has no s1.json beside it", expected="a list for every talker")
    lists = [_listed(path) for path in (mixed, *sources)]
    for path, found in zip(sources, lists[1:], strict=True):
        if len(found) != len(lists[0]):
            raise DataError(f"{path.name} lists {len(found)} files, mix.json {len(lists[0])}",
                            expected="equal lists")
        for i, (a, b) in enumerate(zip(lists[0], found, strict=True)):
            if a.stem != b.stem:
                raise DataError(
                    f"entry {i} of mix.json is {a.name}, of {path.name} {b.name}",
                    expected="equal names", mend="put the lists into one order",
                )
    return [Item(row[0].stem, row[0], tuple(row[1:])) for row in zip(*lists, strict=True)]


def _listed(path: Path) -> list[Path]:
    """Files of a list [[path, samples], ...], paths from the list's folder or the current one."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [Path(row[0]) for row in rows]
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"{path} is no list of files: {error}",
                        expected='[["path.wav", samples], ...]') from None
    if not found:
        raise DataError(f"{path} is empty", expected="one file or more")
    return [_placed(file, path.parent) for file in found]


def _scp(path: Path) -> list[Item]:
    items: list[Item] = []
    for number, line in enumerate(_lines(path), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise DataError(f"line {number} of {path}: {error}",
                            expected="names with blanks in quotes") from None
        if not words:
            continue
        if len(words) < 2:
            raise DataError(
                f"line {number} of {path} has one name",
                expected='"noisy.wav clean.wav", or "mix.wav s1.wav s2.wav"',
            )
        files = [_placed(Path(word), path.parent) for word in words]
        items.append(Item(words[0], files[0], tuple(files[1:])))
    if not items:
        raise DataError(f"{path} is empty", expected="a line for every pair")
    return items


# ---- helpers -----------------------------------------------------------------------------------


def _matched(inputs: Path, targets: Sequence[Path]) -> list[Item]:
    """Files of equal names, endings aside."""
    named = [_by_name(folder) for folder in (inputs, *targets)]
    if not named[0]:
        raise DataError(f"{inputs} has no audio files", expected="one or more")
    for folder, found in zip(targets, named[1:], strict=True):
        for one, other, missing in (
            (inputs, folder, sorted(named[0].keys() - found.keys())),
            (folder, inputs, sorted(found.keys() - named[0].keys())),
        ):
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                raise DataError(
                    f"{one.name}/{missing[0]}{more} has no partner in {other.name}/",
                    expected="equal names in both folders", mend="leave it out or add the other",
                )
    return [Item(name, named[0][name], tuple(found[name] for found in named[1:]))
            for name in sorted(named[0])]


def _by_name(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in audio_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{folder} has {found[name].name} and {path.name}",
                            expected="one file of a name")
        found[name] = path
    return found


def _first(place: Path, names: Sequence[str]) -> Path | None:
    return next((place / name for name in names if (place / name).is_dir()), None)


def _numbered(place: Path, path: Callable[[int], Path]) -> list[Path]:
    """path(1), path(2), ... as far as they exist."""
    found = []
    for k in range(1, MOST + 1):
        if not path(k).exists():
            break
        found.append(path(k))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} can't be read as text: {error}",
                        expected="lines of file names") from None


def _placed(file: Path, folder: Path) -> Path:
    beside = folder / file
    return beside if file.is_absolute() or beside.exists() or not file.exists() else file
