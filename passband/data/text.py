"""Text that needs no download: documents of the Python standard library, and generated lines.

>>> sums = arithmetic(n=3, digits=2, seed=0)
>>> a, b = sums.train[0].prompt.rstrip("=").split("+")
>>> int(a) + int(b) == int(sums.train[0].response)
True
>>> ids, labels = encode_pair(Pair("1+2=", "3\\n"))
>>> ids.tolist(), labels.tolist()
([49, 43, 50, 61, 51, 10], [-100, -100, -100, -100, 51, 10])
>>> windows = Windows(encode("0123456789"), length=4)
>>> len(windows), [decode(ids) for ids, _ in windows]
(3, ['0123', '3456', '6789'])

A token is a byte of UTF-8: the vocabulary is 256 and a loss in bits is bits per byte. Labels are
-100 where nothing is asked of a model. The texts of two versions of Python differ: `fingerprint`
says whether two corpora are the same.
"""

from __future__ import annotations

import random
import string
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from passband.data.cache import digest, stored_json
from passband.data.sources import bucket, parse, standard_library
from passband.errors import DataError

IGNORED = -100  # of labels, as in torch's cross_entropy
PAD = 0  # a byte that texts don't hold
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Corpus:
    """Documents in three parts; `str(corpus)` is one line of facts."""

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the texts: the same on two machines if all documents are."""
        return digest(f"{part}\n{text}" for part in SPLITS for text in getattr(self, part))

    def bytes(self, part: str) -> Tensor:
        """All documents of a part one after the other, [N] uint8."""
        return encode("".join(getattr(self, part)))

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{part} {len(getattr(self, part))} documents {self.bytes(part).numel():,} bytes"
            for part in SPLITS
        )
        return f"{self.name} {self.fingerprint}: {sizes}"


@dataclass(frozen=True)
class Pair:
    """What a model is given, and what it should answer."""

    prompt: str
    response: str


@dataclass(frozen=True)
class Pairs:
    """Questions with answers, no question of one part in another."""

    name: str
    train: tuple[Pair, ...]
    valid: tuple[Pair, ...]
    test: tuple[Pair, ...]

    @property
    def fingerprint(self) -> str:
        return digest(
            f"{part}\n{pair.prompt}\n{pair.response}"
            for part in SPLITS for pair in getattr(self, part)
        )


# ---- documents of the standard library ------------------------------------------------------


def docstrings(modules: int | None = None) -> Corpus:
    """Docstrings of the standard library, one document per module; about 1.4 MB.

    modules  only the first so many of a fixed shuffle; None: all (parsed once, about 5 s, cached)

    A module belongs to a part by the hash of its name: 90 % train, 5 % valid, 5 % test.
    """
    library = _library(modules)
    return _split("docstrings", [(name, "\n\n".join((*texts, ""))) for name, texts, _ in library])


def code(modules: int | None = None) -> Corpus:
    """Sources of the standard library without comments and docstrings; about 5.6 MB."""
    return _split("code", [(name, source) for name, _, source in _library(modules)])


def cipher(corpus: Corpus, seed: int = 0) -> Corpus:
    """The same text with letters exchanged, no letter for itself; upper case alike.

    >>> plain = Corpus("p", ("Abba",), (), ())
    >>> text = cipher(plain).train[0]
    >>> text[0].lower() == text[3] != "a", text[1] == text[2] != "b", text[0].isupper()
    (True, True, True)
    """
    letters = list(string.ascii_lowercase)
    random.Random(f"cipher {seed}").shuffle(letters)
    # One cycle through all letters leaves none in its place.
    table = dict(zip(letters, letters[1:] + letters[:1], strict=True))
    table |= {a.upper(): b.upper() for a, b in table.items()}
    exchange = str.maketrans(table)
    parts = {part: tuple(t.translate(exchange) for t in getattr(corpus, part)) for part in SPLITS}
    return replace(corpus, name=f"{corpus.name}-cipher", **parts)


@cache
def _library(modules: int | None) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """(module, docstrings, code) in the order of a fixed shuffle."""
    files = standard_library()
    if modules is not None:
        return _parsed(tuple(files[:modules]))
    if len(files) < 100:
        raise DataError(
            f"only {len(files)} source files of Python's standard library are here",
            expected="an installation with .py files (some embedded ones hold bytecode only)",
            mend="use an ordinary Python, or data of your own",
        )
    states = [(name, p.stat().st_size, p.stat().st_mtime_ns) for name, p in files]
    key = {"version": 2, "python": sys.version, "files": digest(map(str, states))}
    found = stored_json("text", key, lambda: _parsed(tuple(files)))
    return tuple((name, tuple(texts), source) for name, texts, source in found)


def _parsed(files: Iterable[tuple[str, Any]]) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    found = []
    for name, path in files:
        module = parse(path, name)
        if module is not None:
            texts = tuple(one.text for one in module.docstrings)
            found.append((name, texts, module.code()))
    return tuple(found)


def part_of(name: str) -> str:
    """train, valid or test, from the hash of a module's name: 90, 5 and 5 %."""
    place = bucket(name)
    return "test" if place < 5 else "valid" if place < 10 else "train"


def _split(name: str, documents: Iterable[tuple[str, str]]) -> Corpus:
    parts: dict[str, list[str]] = {part: [] for part in SPLITS}
    for module, text in documents:
        if text:
            parts[part_of(module)].append(text)
    return Corpus(name, *(tuple(parts[part]) for part in SPLITS))


# ---- generated lines ------------------------------------------------------------------------


def arithmetic(n: int = 4000, digits: int = 2, seed: int = 0, held_out: int = 500) -> Pairs:
    """Sums "37+45=" with answers "82\\n", both operands of `digits` digits.

    n         training lines drawn with replacement by `seed`
    held_out  distinct sums of test, and at most as many of valid; the same for all seeds

    A sum and its mirror image are on one side of the split, which is the same for every seed.
    Raises `DataError` where there are fewer sums than asked for.
    """
    _positive(n=n, digits=digits, held_out=held_out)
    if digits > 9:
        raise DataError(f"digits = {digits}", expected="1 to 9", mend="choose fewer digits")
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits
    fixed = np.random.default_rng(0)
    test = _sums(low, high, "test", fixed, held_out)
    valid = _sums(low, high, "valid", fixed, held_out)
    if len(test) < held_out:
        raise DataError(
            f"{held_out} test sums of {digits} digits are asked for",
            expected=f"at most {len(test)}", mend="ask for fewer, or for more digits",
        )
    rng, train = np.random.default_rng([seed, digits]), []
    while len(train) < n:
        train += [_sum(a, b) for a, b in _operands(rng, low, high, n) if _side(a, b) == "train"]
    return Pairs(f"arithmetic-{digits}", tuple(train[:n]), tuple(valid), tuple(test))


def _sums(low: int, high: int, side: str, rng: np.random.Generator, most: int) -> list[Pair]:
    """Up to `most` distinct sums of one side."""
    if (high - low) ** 2 <= 10_000:
        every = np.array([(a, b) for a in range(low, high) for b in range(low, high)])
        candidates = rng.permutation(every).tolist()
    else:
        # At least a tenth of all pairs is on each side, so that this is enough by far.
        candidates = _operands(rng, low, high, 20 * most + 200)
    distinct = dict.fromkeys((a, b) for a, b in candidates if _side(a, b) == side)
    return [_sum(a, b) for a, b in list(distinct)[:most]]


def _operands(rng: np.random.Generator, low: int, high: int, n: int) -> list[list[int]]:
    drawn: list[list[int]] = rng.integers(low, high, size=(n, 2)).tolist()
    return drawn


def _sum(a: int, b: int) -> Pair:
    return Pair(f"{a}+{b}=", f"{a + b}\n")


def _side(a: int, b: int) -> str:
    place = bucket(f"{min(a, b)}+{max(a, b)}")
    return "test" if place < 20 else "valid" if place < 30 else "train"


_WORDS = (
    "amber", "birch", "cobalt", "delta", "ember", "fjord", "gamma", "harbor", "indigo", "juniper",
    "kilo", "lumen", "marble", "nectar", "onyx", "pepper", "quartz", "raven", "sigma", "tundra",
    "umber", "velvet", "willow", "xenon", "yarrow", "zephyr",
)
_BRACKETS = ("()", "[]", "{}", "<>")


def json_lines(n: int = 4000, seed: int = 0, held_out: int = 500) -> Corpus:
    """Lines of generated JSON, one in four a string of balanced brackets.

    n         training lines drawn by `seed`; none of them is held out
    held_out  lines of valid, and of test; the same for all seeds
    """
    _positive(n=n, held_out=held_out)
    fixed = _lines(random.Random("json lines held out"))
    kept = list(dict.fromkeys(next(fixed) for _ in range(2 * held_out + 1000)))[: 2 * held_out]
    valid, test = tuple(kept[:held_out]), tuple(kept[held_out:])
    apart, source = set(kept), _lines(random.Random(f"json lines {seed}"))
    train = []
    while len(train) < n:
        line = next(source)
        if line not in apart:
            train.append(line)
    return Corpus("json", tuple(train), valid, test)


def _lines(rng: random.Random) -> Iterator[str]:
    import json

    while True:
        if rng.random() < 0.25:
            yield _balanced(rng, rng.randint(6, 20)) + "\n"
        else:
            record = {
                "id": rng.randint(1, 9999), "name": rng.choice(_WORDS), "value": _value(rng, 2)
            }
            yield json.dumps(record) + "\n"


def _value(rng: random.Random, depth: int) -> Any:
    kinds = {
        "number": lambda: rng.randint(0, 999),
        "word": lambda: rng.choice(_WORDS),
        "switch": lambda: rng.choice([True, False, None]),
        "list": lambda: [_value(rng, depth - 1) for _ in range(rng.randint(1, 3))],
        "object": lambda: {
            rng.choice(_WORDS): _value(rng, depth - 1) for _ in range(rng.randint(1, 3))
        },
    }
    simple = ("number", "word", "switch")
    return kinds[rng.choice(("list", "object", *simple) if depth else simple)]()


def _balanced(rng: random.Random, pairs: int) -> str:
    text, stack = [], []
    while pairs or stack:
        if pairs and (not stack or (rng.random() < 0.5 and len(stack) < 6)):
            opening, closing = rng.choice(_BRACKETS)
            text.append(opening)
            stack.append(closing)
            pairs -= 1
        else:
            text.append(stack.pop())
    return "".join(text)


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise DataError(f"{name} = {value}", expected="at least 1", mend=f"raise {name}")


# ---- bytes, windows, batches ----------------------------------------------------------------


def encode(text: str) -> Tensor:
    """UTF-8 bytes of a text, [N] uint8."""
    data = bytearray(text, "utf-8")
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def decode(ids: Tensor | Iterable[int]) -> str:
    """The text of bytes; those that are no UTF-8 become a replacement sign."""
    values = ids.tolist() if isinstance(ids, Tensor) else ids
    return bytes(values).decode("utf-8", "replace")


def encode_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    """ids [T] and labels [T] of a prompt with its response, the prompt not asked for."""
    prompt, response = encode(pair.prompt).long(), encode(pair.response).long()
    labels = torch.cat([torch.full_like(prompt, IGNORED), response])
    return torch.cat([prompt, response]), labels


class Windows(Sequence[tuple[Tensor, Tensor]]):
    """Windows of a byte sequence: (ids [L], labels [L]) with labels = ids, int64.

    stride  from one window to the next. By default length - 1: the first byte of a window is
            only context, so that every byte but the first of all is asked for exactly once.
    Raises `DataError` for a text shorter than one window.
    """

    def __init__(self, data: Tensor, length: int = 64, stride: int | None = None) -> None:
        _positive(**{"length - 1": length - 1}, stride=1 if stride is None else stride)
        if len(data) < length:
            raise DataError(
                f"a text of {len(data)} bytes", expected=f"at least one window of {length}",
                mend="give more text, or a smaller length",
            )
        self.data, self.length, self.stride = data, length, stride or length - 1

    def __len__(self) -> int:
        return (len(self.data) - self.length) // self.stride + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        start = place * self.stride
        ids = self.data[start : start + self.length].long()
        return ids, ids.clone()


def random_windows(data: Tensor, count: int, length: int = 64, seed: int = 0) -> Tensor:
    """[count, length] int64, each beginning anywhere: calibration data."""
    last = len(Windows(data, length).data) - length
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(last + 1, (count,), generator=generator)
    return data[starts[:, None] + torch.arange(length)].long()


def collate(examples: Sequence[tuple[Tensor, Tensor]], pad: int = PAD) -> tuple[Tensor, Tensor]:
    """ids [B, T] and labels [B, T], filled up on the right with `pad` and -100.

    >>> ids, labels = collate([encode_pair(Pair("a", "b")), encode_pair(Pair("a", ""))])
    >>> ids.tolist(), labels.tolist()
    ([[97, 98], [97, 0]], [[-100, 98], [-100, -100]])
    """
    fill = torch.nn.utils.rnn.pad_sequence
    return (
        fill([ids for ids, _ in examples], batch_first=True, padding_value=pad),
        fill([labels for _, labels in examples], batch_first=True, padding_value=IGNORED),
    )
