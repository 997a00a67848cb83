"""Numerals spelled out in eight languages, with their digits: parallel text made on the spot.

    _ 4 2 = forty two                   a line: digits in three columns, "=", words
    ? ? ? = forty two ; fifty two       text without digits: two numbers a power of ten apart
    ? ? ? = forty two                   what a task reads, in any language

>>> data = number_words()
>>> data.decode(data.line(42, "en"))
'[CLS] _ 4 2 = forty two'
>>> data.decode(data.text(42, 52, "es"))
'[CLS] [MASK] [MASK] [MASK] = cuarenta y dos ; cincuenta y dos'
>>> len(data.vocabulary), data.low
(234, ('kz', 'eo', 'vi'))

Digits are what the languages share: a masked language model that predicts digits from words and
words from digits gives words of equal meaning like representations. Of three low-resource languages
it sees one line in twenty. The words are those of the package num2words; the split of the numbers
and all draws are the same everywhere, and the fingerprint tells whether the words are.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from passband.data.cache import digest
from passband.errors import DataError, MissingExtraError, UnknownNameError

HIGH = ("en", "fr", "es", "pl", "id")
LOW = ("kz", "eo", "vi")
SHARE = 0.05  # of the lines that a low-resource language has
DIGITS = 3
NUMBERS = range(10**DIGITS)
PAD, CLS, MASK, EQUALS, NEXT = range(5)
SPECIAL = ("[PAD]", "[CLS]", "[MASK]", "=", ";", "_", *"0123456789")
FIRST_WORD = len(SPECIAL)
# Small numbers are few but tell the most: how many digits a drawn number has.
LENGTHS = (1, 1, 2, 2, 3)

Split = Literal["train", "test"]


@dataclass(frozen=True)
class NumberWords:
    """
    languages   codes of num2words, the low-resource ones last
    vocabulary  tokens by id: special ones, digits, then words
    spelled     language -> word ids of every number
    """

    languages: tuple[str, ...]
    low: tuple[str, ...]
    vocabulary: tuple[str, ...]
    spelled: dict[str, tuple[tuple[int, ...], ...]]

    @property
    def fingerprint(self) -> str:
        """Of the words in all languages: what another version of num2words may change."""
        return digest([
            *self.vocabulary,
            *(repr(self.spelled[language]) for language in self.languages),
        ])

    def numbers(self, split: Split) -> list[int]:
        """One number in five is held out, the same in all languages."""
        return [n for n in NUMBERS if (int(digest([str(n)]), 16) % 5 == 0) is (split == "test")]

    def seen(self, language: str) -> list[int]:
        """Numbers whose line in this language pretraining may show."""
        numbers = self.numbers("train")
        if language not in self.low:
            return numbers
        kept = [n for n in numbers if int(digest([language, str(n)]), 16) % 1000 < 1000 * SHARE]
        return kept

    # ---- rows of token ids -------------------------------------------------------------------

    def line(self, number: int, language: str) -> list[int]:
        columns = str(number).rjust(DIGITS, "_")
        digits = [SPECIAL.index(c) for c in columns]
        return [CLS, *digits, EQUALS, *self._words(number, language)]

    def prompt(self, number: int, language: str) -> list[int]:
        return [CLS, *[MASK] * DIGITS, EQUALS, *self._words(number, language)]

    def text(self, number: int, other: int, language: str) -> list[int]:
        return [*self.prompt(number, language), NEXT, *self._words(other, language)]

    def decode(self, row: Sequence[int]) -> str:
        return " ".join(self.vocabulary[i] for i in row)

    def _words(self, number: int, language: str) -> tuple[int, ...]:
        if language not in self.spelled:
            raise UnknownNameError("language", language, self.spelled)
        return self.spelled[language][number]

    # ---- corpora ------------------------------------------------------------------------------

    def pretraining(self, count: int, seed: int, texts: float = 0.4) -> list[list[int]]:
        """Lines in all languages, low-resource ones rarely; of the others also texts.

        texts  share of texts among the rows of the other languages, half of them with the digits
               of their first number
        """
        rng = random.Random(seed)
        weights = [SHARE if language in self.low else 1.0 for language in self.languages]
        pools = {language: self._pools(self.seen(language)) for language in self.languages}
        rows = []
        for language in rng.choices(self.languages, weights, k=count):
            number = _draw(pools[language], rng)
            row = self.line(number, language)
            if language not in self.low and rng.random() < texts:
                other = _beside(number, rng)
                if rng.random() < 0.5:
                    row = self.text(number, other, language)
                else:
                    row = [*row, NEXT, *self._words(other, language)]
            rows.append(row)
        return rows

    def texts(
        self, language: str, count: int, seed: int, split: Split = "train"
    ) -> list[list[int]]:
        """Text in one language without any digit."""
        rng = random.Random(f"{language} {seed} {split}")
        pools = self._pools(self.numbers(split))
        rows = []
        for _ in range(count):
            number = _draw(pools, rng)
            rows.append(self.text(number, _beside(number, rng), language))
        return rows

    def draws(self, count: int, seed: int, split: Split = "train") -> list[int]:
        """Numbers for a task's examples, all lengths well represented."""
        rng, pools = random.Random(seed), self._pools(self.numbers(split))
        return [_draw(pools, rng) for _ in range(count)]

    def _pools(self, numbers: Sequence[int]) -> dict[int, list[int]]:
        by_length: dict[int, list[int]] = {}
        for number in numbers:
            by_length.setdefault(len(str(number)), []).append(number)
        return by_length


def _draw(pools: dict[int, list[int]], rng: random.Random) -> int:
    length = rng.choice(LENGTHS)
    # A low-resource language may have no line of this length.
    return rng.choice(pools.get(length) or pools[max(pools)])


def _beside(number: int, rng: random.Random) -> int:
    """A power of ten more, not longer than the number; the number itself where that is too much."""
    other = number + 10 ** rng.randrange(len(str(number)))
    return other if other in NUMBERS else number


@cache
def number_words(languages: tuple[str, ...] = HIGH, low: tuple[str, ...] = LOW) -> NumberWords:
    """The numbers 0 to 999 in these languages; under a second, kept.

    Raises `MissingExtraError` without num2words, `DataError` for a language it can't spell all
    numbers in.
    """
    try:
        from num2words import num2words
    except ModuleNotFoundError:
        raise MissingExtraError("num2words", "tuning") from None
    ids = {token: i for i, token in enumerate(SPECIAL)}
    spelled = {}
    for language in (*languages, *low):
        try:
            texts = [num2words(n, lang=language) for n in NUMBERS]
        except (NotImplementedError, TypeError, IndexError, KeyError) as error:
            raise DataError(
                f"num2words can't spell 0 to {NUMBERS[-1]} in {language!r}: {error}",
                expected="a language code of num2words", mend="for example 'en', 'fr', 'vi'",
            ) from None
        words = [re.sub(r"[-,]", " ", text.lower()).split() for text in texts]
        spelled[language] = tuple(
            tuple(ids.setdefault(word, len(ids)) for word in row) for row in words
        )
    return NumberWords((*languages, *low), low, tuple(ids), spelled)
