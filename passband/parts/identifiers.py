"""Function names as words, and many names as one sparse incidence of names and words.

>>> split("png_readChunk32")
['png', 'read', 'Chunk', '32']
>>> bag = Bag.of(["read_file", "read_read"])
>>> bag.vocabulary, len(bag), bag.sizes.tolist()
(('read', 'file'), 2, [2, 1])

N names, W words of the vocabulary in the order of their first appearance. Rules of splitting:
Binkley, Moonen, Isaacman: Featherweight Assisted Vulnerability Discovery, IST 146 (2022), 106844.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_letters, digits
from typing import Any

import numpy as np

LONGEST = 50  # characters of a name
CHARACTERS = frozenset(ascii_letters + digits + "_.-")
ABBREVIATIONS = ("JPEG", "TIFF")

Ints = np.ndarray[Any, np.dtype[np.int64]]

_HUMP = re.compile("(?<=[0-9a-z])(?=[A-Z])")
_NUMBER = re.compile("(?<=[^0-9])(?=[0-9])")
_SIGNATURE = re.compile(r"\s*\([^()]*\)\s*(const|noexcept)?\s*$")


def split(name: str) -> list[str]:
    """The words of a name, in order and with repetitions; case is kept.

    >>> split("abc12d"), split("HTTPServer"), split("readJPEGImage"), split("__")
    (['abc', '12d'], ['HTTPServer'], ['read', 'JPEG', 'Image'], [''])
    """
    text = _NUMBER.sub("_", _HUMP.sub("_", name))
    for abbreviation in ABBREVIATIONS:
        text = text.replace(abbreviation, f"_{abbreviation}_")
    text = re.sub("__+", "_", text)
    return text.removeprefix("_").removesuffix("_").split("_")


def without_signature(name: str) -> str:
    """
    >>> without_signature("resize(int, int) const"), without_signature("resize")
    ('resize', 'resize')
    """
    return _SIGNATURE.sub("", name)


def fault(name: str) -> str:
    """What is wrong with a name: "", "empty", "too long" or "other characters".

    >>> fault("read_file"), fault("größe"), fault("x" * 51)
    ('', 'other characters', 'too long')
    """
    if not name:
        return "empty"
    if not CHARACTERS.issuperset(name):
        return "other characters"
    return "too long" if len(name) > LONGEST else ""


@dataclass(frozen=True)
class Dropped:
    """Names that can't be taken: how many for each fault, and the first few."""

    counts: tuple[tuple[str, int], ...]
    examples: tuple[str, ...]
    hint: str = ""

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        counted = ", ".join(f"{count} {why}" for why, count in self.counts)
        shown = ", ".join(repr(name[:60]) for name in self.examples)
        return f"{counted} (for example {shown})" + (f"; {self.hint}" if self.hint else "")


def usable(names: Sequence[str]) -> tuple[list[int], Dropped]:
    """Places of the names that can be taken, and what is wrong with the others.

    >>> places, dropped = usable(["read_file", "resize(int)", "naïve"])
    >>> places, str(dropped)
    ([0], "2 other characters (for example 'resize(int)', 'naïve'); 1 with a signature: ...")
    """
    faults = [fault(name) for name in names]
    bad = [name for name, why in zip(names, faults, strict=True) if why]
    hints = []
    signatures = sum(not fault(without_signature(n)) and without_signature(n) != n for n in bad)
    if signatures:
        hints.append(f"{signatures} with a signature: strip_signatures=True takes it off")
    mangled = sum(name.startswith("_Z") for name in names)
    if mangled:
        hints.append(f"{mangled} look like mangled C++: run them through c++filt -p first")
    counts = Counter(why for why in faults if why)
    dropped = Dropped(tuple(sorted(counts.items())), tuple(bad[:3]), "; ".join(hints))
    return [place for place, why in enumerate(faults) if not why], dropped


@dataclass(frozen=True, eq=False)
class Bag:
    """Which word occurs in which name.

    vocabulary  W words
    starts      [N + 1]: occurrences of name i are `words[starts[i]:starts[i + 1]]`
    words       [occurrences] places in the vocabulary, with repetitions, in order
    """

    vocabulary: tuple[str, ...]
    starts: Ints
    words: Ints

    @classmethod
    def of(cls, names: Iterable[str], vocabulary: Sequence[str] = ()) -> Bag:
        """Split names. Words of `vocabulary` keep their places; new ones come behind them."""
        places = {word: place for place, word in enumerate(vocabulary)}
        words: list[int] = []
        starts = [0]
        for name in names:
            words += [places.setdefault(word, len(places)) for word in split(name)]
            starts.append(len(words))
        return cls(tuple(places), np.array(starts, np.int64), np.array(words, np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def rows(self) -> Ints:
        """[occurrences] the name of each occurrence."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def distinct(self) -> tuple[Ints, Ints]:
        """(rows, words) of the distinct words of each name, ordered by row."""
        width = max(1, len(self.vocabulary))
        pairs = np.unique(self.rows * width + self.words)
        return pairs // width, pairs % width

    @cached_property
    def sizes(self) -> Ints:
        """[N] numbers of distinct words."""
        return np.bincount(self.distinct[0], minlength=len(self))

    def take(self, rows: Any) -> Bag:
        """Some names, over the same vocabulary."""
        lengths = np.diff(self.starts)[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.starts[:-1][rows] - starts[:-1], lengths)
        return Bag(self.vocabulary, starts, self.words[np.arange(starts[-1]) + shift])

    def counts(self, chosen: Any) -> Ints:
        """[W] occurrences of each word in the names where `chosen` [N] is True."""
        inside = np.asarray(chosen, dtype=bool)[self.rows]
        return np.bincount(self.words[inside], minlength=len(self.vocabulary))

    def first_seen(self) -> Ints:
        """[W] the first occurrence of each word; the number of occurrences where there is none."""
        seen = np.full(len(self.vocabulary), len(self.words), np.int64)
        np.minimum.at(seen, self.words, np.arange(len(self.words)))
        return seen
