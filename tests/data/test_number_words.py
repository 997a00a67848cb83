"""Numerals in several languages: the rows, the split, who sees what."""

from __future__ import annotations

import pytest
from num2words import num2words

from passband.data.number_words import (
    FIRST_WORD,
    MASK,
    NEXT,
    SPECIAL,
    number_words,
)
from passband.errors import DataError, UnknownNameError

DATA = number_words()


@pytest.mark.parametrize("language", DATA.languages)
def test_words_are_those_of_num2words(language: str) -> None:
    for number in (0, 7, 21, 80, 100, 999):
        words = DATA.decode(DATA.prompt(number, language)).split(" = ")[1]
        spelled = num2words(number, lang=language).lower().replace("-", " ").replace(",", " ")
        assert words == " ".join(spelled.split())


def test_lines_hold_the_digits_in_three_columns() -> None:
    assert DATA.decode(DATA.line(7, "en")) == "[CLS] _ _ 7 = seven"
    assert DATA.decode(DATA.line(240, "fr")) == "[CLS] 2 4 0 = deux cent quarante"


def test_text_has_no_digit() -> None:
    digits = set(range(SPECIAL.index("_"), FIRST_WORD))
    for language in ("kz", "en"):
        rows = DATA.texts(language, 300, seed=0)
        assert not any(digits & set(row) for row in rows)
        assert all(row[1:4] == [MASK] * 3 and NEXT in row for row in rows)
    assert DATA.texts("kz", 5, seed=0) == DATA.texts("kz", 5, seed=0)
    assert DATA.texts("kz", 5, seed=0) != DATA.texts("kz", 5, seed=1)


def test_the_two_numbers_of_a_text_are_a_power_of_ten_apart() -> None:
    numbers = {tuple(DATA.prompt(n, "vi")[5:]): n for n in range(1000)}
    for row in DATA.texts("vi", 200, seed=3):
        cut = row.index(NEXT)
        first, second = numbers[tuple(row[5:cut])], numbers[tuple(row[cut + 1 :])]
        assert second - first in (0, 1, 10, 100)


def test_splits_share_no_number_and_cover_all() -> None:
    train, test = DATA.numbers("train"), DATA.numbers("test")
    assert sorted(train + test) == list(range(1000))
    assert 150 < len(test) < 250
    assert set(DATA.draws(500, seed=0)) <= set(train)
    assert set(DATA.draws(500, seed=0, split="test")) <= set(test)


def test_low_resource_languages_show_one_line_in_twenty() -> None:
    for language in DATA.low:
        assert 20 <= len(DATA.seen(language)) <= 60
        assert set(DATA.seen(language)) <= set(DATA.numbers("train"))
    assert DATA.seen("en") == DATA.numbers("train")
    rows = DATA.pretraining(4000, seed=0)
    words = {language: {w for n in range(1000) for w in DATA.spelled[language][n]}
             for language in DATA.languages}
    own = {language: words[language].difference(*(words[o] for o in DATA.languages
                                                  if o != language)) for language in DATA.low}
    of_low = sum(any(set(row) & own[language] for language in DATA.low) for row in rows)
    assert 0.01 < of_low / len(rows) < 0.05  # 3 x 0.05 of 5.15
    lines = {tuple(DATA.line(n, language)) for language in DATA.low for n in DATA.seen(language)}
    low_rows = [row for row in rows if any(set(row) & own[language] for language in DATA.low)]
    assert all(tuple(row) in lines for row in low_rows)


def test_fingerprint_depends_on_the_words() -> None:
    assert number_words().fingerprint == DATA.fingerprint
    assert number_words(("en",), ("kz",)).fingerprint != DATA.fingerprint


def test_unknown_languages() -> None:
    with pytest.raises(DataError, match="'xx'"):
        number_words(("xx",), ())
    with pytest.raises(UnknownNameError):
        DATA.line(3, "de")
