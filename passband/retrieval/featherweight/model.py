"""Dangerous words: flags function names that look like those of vulnerable functions.

    N names, W words; a name's words U are distinct, case is kept

    split    getHTTPBuffer2 -> get, HTTPBuffer, 2             (`passband.parts.identifiers`)
    score    plus * (occurrences in vulnerable names) - minus * (occurrences in benign names)
    list     words by falling score, ties by first appearance; the first K count
    name     "set":   s = |U & list| / |U|          "rank":  s = mean over U of (K - rank) / K
    flag     s > t

plus, minus, K and t maximise F2 on labelled names: see `choose`. A few thousand words and their
counts are the whole model; it is a JSON file that a person can read, edit and compare.

Source: Binkley, Moonen, Isaacman: Featherweight Assisted Vulnerability Discovery, Information and
Software Technology 146 (2022), 106844; arXiv 2202.02679.

>>> names = ["copy_buffer", "copy_string", "unpack_buffer", "get_size", "set_size", "print_list"]
>>> model = choose(names, [True, True, True, False, False, False])
>>> model.top(3)
(('copy', 2, 0), ('buffer', 2, 0), ('string', 1, 0))
>>> model.flags(["copy_list", "get_list"]).tolist()
[True, False]
>>> model.why("copy_list")
[('copy', 0.5)]
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from passband.errors import CheckpointError, DataError
from passband.parts.identifiers import Bag, split
from passband.retrieval.featherweight.sweep import (
    NEVER,
    SEARCHES,
    THRESHOLDS,
    Array,
    Best,
    Rule,
    scores,
    sorted_ranks,
    sweep,
)

# (plus, minus) in the order they are tried; (10, 1) is the released code's last one, which the
# paper used for VDISC alone.
WEIGHTS = (
    (3, 4), (1, 1), (3, 2), (7, 4), (2, 1), (9, 4), (5, 2), (11, 4), (3, 1), (7, 2), (4, 1), (5, 1),
)
WEIGHTS_13 = (*WEIGHTS, (10, 1))
NO_FILTER = -999.0  # at or below -900: every word of the training names stays on the list
FORMAT = 1


@dataclass(frozen=True)
class Choice:
    """What decides which words count and when a name is flagged."""

    plus: float
    minus: float
    k: int
    threshold: float
    f2: float  # on the names it was chosen by


@dataclass(frozen=True, eq=False)
class Ranking:
    """A list of words by falling score.

    order  [n] places in the vocabulary
    rank   [W] the inverse; NEVER for words that are not on the list
    """

    order: Array
    rank: Array

    @classmethod
    def by(cls, values: Array, seen: Array, keep: Array) -> Ranking:
        """values [W] scores, seen [W] first appearances (they break ties), keep [W] bool."""
        listed = np.flatnonzero(keep)
        order = listed[np.lexsort((seen[listed], -values[listed]))]
        rank = np.full(len(values), NEVER, np.int64)
        rank[order] = np.arange(len(order))
        return cls(order, rank)


def ranking(
    bag: Bag, vulnerable: Array, plus: float, minus: float, min_score: float = NO_FILTER
) -> Ranking:
    """Words of labelled names by counts; vulnerable [N] bool."""
    danger, benign = bag.counts(vulnerable), bag.counts(~vulnerable)
    values = plus * danger - minus * benign
    keep = danger + benign > 0
    if min_score >= -900:
        keep &= values >= min_score
    return Ranking.by(values, bag.first_seen(), keep)


def given_ranking(bag: Bag, values: Array, min_score: float = 0.0) -> Ranking:
    """The same from scores [W] of the words by any other means, such as a network."""
    seen = bag.first_seen()
    there = (seen < len(bag.words)) & np.array([bool(word) for word in bag.vocabulary])
    return Ranking.by(values, seen, there & (values >= min_score))


def best_counts(
    bag: Bag, vulnerable: Array, weights: Sequence[tuple[float, float]] = WEIGHTS,
    min_score: float = NO_FILTER, rule: Rule = "set", search: str = "coarse",
    thresholds: Sequence[float] = THRESHOLDS,
) -> tuple[Choice, Ranking]:
    """The weights, K and threshold with the best F2 on labelled names.

    Of weights with equal F2 the last ones win; inside a search the first K and threshold.
    """
    best: tuple[Choice, Ranking] | None = None
    for plus, minus in weights:
        words = ranking(bag, vulnerable, plus, minus, min_score)
        found = best_of(bag, vulnerable, words, rule, search, thresholds)
        if best is None or found.f2 >= best[0].f2:
            best = Choice(plus, minus, found.k, found.threshold, found.f2), words
    assert best is not None
    return best


def best_of(
    bag: Bag, vulnerable: Array, words: Ranking, rule: Rule = "set", search: str = "coarse",
    thresholds: Sequence[float] = THRESHOLDS,
) -> Best:
    """K and threshold of one ranked list with the best F2 on labelled names."""
    found = sweep(bag, vulnerable, words.rank, len(words.order), rule, thresholds)
    return SEARCHES[search](found, thresholds)


@dataclass(frozen=True)
class DangerousWords:
    """The fitted model: a ranked list of words, how many of them count, and a threshold.

    words       in rank order
    vulnerable  occurrences of each in vulnerable names, benign: in the others
    about       facts on the training, kept with it
    """

    words: tuple[str, ...]
    vulnerable: tuple[int, ...]
    benign: tuple[int, ...]
    k: int
    threshold: float
    rule: Rule = "set"
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in ("set", "rank"):
            raise DataError(f"rule {self.rule!r}", expected="'set' or 'rank'")
        if not len(self.words) == len(self.vulnerable) == len(self.benign):
            raise DataError("a word without counts", expected="a line 'word vulnerable benign'")
        if len(set(self.words)) < len(self.words):
            twice = next(w for i, w in enumerate(self.words) if w in self.words[:i])
            raise DataError(
                f"the word {twice!r} is twice on the list", expected="each once",
                mend="remove the line further down",
            )
        if self.k < 0 or not np.isfinite(self.threshold):
            raise DataError(
                f"k = {self.k}, threshold = {self.threshold}", expected="k >= 0, a finite threshold"
            )

    @property
    def length(self) -> int:
        """Words that count: K, or the whole list where it is shorter."""
        return min(self.k, len(self.words))

    @cached_property
    def _rank(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words[: self.length])}

    def scores(self, names: Sequence[str]) -> Array:
        """[N] in [0, 1]."""
        bag = Bag.of(names)
        rank = np.array([self._rank.get(word, NEVER) for word in bag.vocabulary], np.int64)
        if not len(bag):
            return np.zeros(0)
        return scores(sorted_ranks(bag, rank), bag.sizes, self.length, self.rule)

    def flags(self, names: Sequence[str]) -> Array:
        """[N] bool."""
        return self.scores(names) > self.threshold

    def why(self, name: str) -> list[tuple[str, float]]:
        """The listed words of a name with what each adds to the score, the largest first."""
        found = dict.fromkeys(split(name))
        share = {
            word: (1.0 if self.rule == "set" else (self.length - self._rank[word]) / self.length)
            / len(found)
            for word in found if word in self._rank
        }
        return sorted(share.items(), key=lambda pair: (-pair[1], self._rank[pair[0]]))

    def top(self, n: int = 20) -> tuple[tuple[str, int, int], ...]:
        """(word, occurrences in vulnerable names, in benign names), the most dangerous first."""
        return tuple(zip(self.words, self.vulnerable, self.benign, strict=True))[:n]

    # ---- as a file -----------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """One line a word: "word vulnerable benign", in rank order."""
        counted = zip(self.words, self.vulnerable, self.benign, strict=True)
        return {
            "format": FORMAT, "rule": self.rule, "k": self.k, "threshold": self.threshold,
            "about": dict(self.about),
            "split": "a|B, x|1, around JPEG and TIFF, at _",
            "words": [f"{word} {danger} {benign}" for word, danger, benign in counted],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], where: str = "the model") -> DangerousWords:
        if facts.get("format") != FORMAT:
            raise CheckpointError(
                f"{where} has format {facts.get('format')!r}", expected=f"format {FORMAT}",
                mend="train again, or load it with the version of passband that wrote it",
            )
        words, danger, benign = [], [], []
        for place, line in enumerate(facts["words"]):
            parts = str(line).rsplit(" ", 2)
            if len(parts) != 3 or not (parts[1] + parts[2]).isdigit():
                raise CheckpointError(
                    f"word {place + 1} of {where} is {line!r}",
                    expected="'word vulnerable benign', such as 'alloc 7 2'",
                )
            words.append(parts[0])
            danger.append(int(parts[1]))
            benign.append(int(parts[2]))
        return cls(
            tuple(words), tuple(danger), tuple(benign), int(facts["k"]), float(facts["threshold"]),
            facts["rule"], facts.get("about", {}),
        )

    def save(self, path: str | Path) -> Path:
        """Write the model as JSON; a kill leaves the old file or the new one.

        >>> model = DangerousWords(("alloc", "copy"), (7, 5), (2, 3), k=2, threshold=0.49)
        >>> DangerousWords.open(model.save("words.json")) == model
        True
        """
        path = Path(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self.to_json(), file, indent=1, ensure_ascii=False)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path

    @classmethod
    def open(cls, path: str | Path) -> DangerousWords:
        """Read what `save` wrote, or a person has edited. Raises `CheckpointError`."""
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} can't be read: {error}", expected="JSON") from None
        return cls.from_json(facts, str(path))


def built(
    bag: Bag, vulnerable: Array, words: Ranking, choice: Choice, rule: Rule, **about: Any
) -> DangerousWords:
    """The model of a ranked list and what was chosen."""
    danger, benign = bag.counts(vulnerable), bag.counts(~vulnerable)
    return DangerousWords(
        tuple(bag.vocabulary[place] for place in words.order),
        tuple(danger[words.order].tolist()), tuple(benign[words.order].tolist()),
        choice.k, choice.threshold, rule,
        {"plus": choice.plus, "minus": choice.minus, "f2": choice.f2,
         "vulnerable": int(vulnerable.sum()), "names": len(bag), **about},
    )


def choose(
    names: Sequence[str], vulnerable: Sequence[bool] | Array,
    weights: Sequence[tuple[float, float]] = WEIGHTS, min_score: float = NO_FILTER,
    rule: Rule = "set", search: str = "coarse", thresholds: Sequence[float] = THRESHOLDS,
) -> DangerousWords:
    """Count words and choose weights, K and threshold by F2 on the same names, as the paper does.

    >>> choose(["copy_buffer", "get_size"], [True, False], weights=((2, 1),)).k
    1

    weights     pairs (plus, minus) to try
    min_score   words below are left out; `NO_FILTER` keeps all
    rule        "set", as in the paper's tables, or "rank", the released code's default
    search      "coarse": the paper's; "all": every K
    Raises `DataError` where no name is vulnerable.
    """
    labels = np.asarray(vulnerable, dtype=bool)
    if len(labels) != len(names):
        raise DataError(
            f"{len(names)} names and {len(labels)} labels", expected="one label a name"
        )
    if not labels.any():
        raise DataError("no vulnerable names", expected="at least one")
    bag = Bag.of(names)
    choice, words = best_counts(bag, labels, weights, min_score, rule, search, thresholds)
    return built(bag, labels, words, choice, rule)
