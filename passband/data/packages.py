"""Docstrings of installed packages as sentences with labels, and a retrieval test on them.

>>> data = docstring_packages(per_class=50, packages=("numpy", "scipy"))
>>> data.classes
('numpy', 'scipy')
>>> any(word in one.text.lower() for one in data.train for word in ("numpy", "scipy"))
False

Nothing is imported: sources are parsed. What is installed decides on the texts; `fingerprint`
says whether two data sets are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from passband.data.cache import digest, stored_json
from passband.data.instructions import Labelled
from passband.data.sources import bucket, installed, parse, standard_library
from passband.data.text import SPLITS
from passband.errors import DataError, UnknownNameError

# Packages that the core and the extra "tuning" bring along, each with other names it goes by.
PACKAGES: dict[str, tuple[str, ...]] = {
    "matplotlib": ("pyplot", "plt", "mpl"),
    "networkx": ("nx",),
    "numpy": ("np", "ndarray"),
    "scipy": ("sp",),
    "sklearn": ("scikit-learn", "scikit"),
    "sympy": (),
    "torch": ("pytorch",),
    "transformers": ("hugging face", "huggingface"),
}
# What modules of the standard library are for, by the first part of their names.
FAMILIES: dict[str, tuple[str, ...]] = {
    "concurrency": ("asyncio", "multiprocessing", "concurrent", "threading", "queue", "sched",
                    "subprocess", "_weakrefset", "selectors"),
    "network": ("http", "urllib", "email", "ftplib", "imaplib", "smtplib", "poplib", "nntplib",
                "socket", "socketserver", "ssl", "xmlrpc", "telnetlib", "ipaddress", "mailbox"),
    "numbers": ("decimal", "_pydecimal", "fractions", "random", "statistics", "numbers", "datetime",
                "calendar", "heapq", "bisect", "colorsys", "_strptime", "zoneinfo"),
    "files": ("pathlib", "os", "posixpath", "ntpath", "shutil", "tempfile", "zipfile", "tarfile",
              "gzip", "bz2", "lzma", "_pyio", "fileinput", "glob", "mimetypes", "netrc", "dbm"),
    "language": ("ast", "inspect", "dis", "tokenize", "typing", "importlib", "pkgutil", "types",
                 "abc", "_collections_abc", "collections", "enum", "dataclasses", "functools",
                 "contextlib", "copy", "runpy", "codeop", "code", "symtable"),
    "debugging": ("unittest", "doctest", "pdb", "bdb", "trace", "traceback", "logging", "warnings",
                  "profile", "cProfile", "pstats", "timeit", "tracemalloc", "cmd"),
}
MOST_MODULES = 300  # parsed of one package, the first of a fixed shuffle
SHORTEST, LONGEST = 20, 300  # characters of a sentence


@dataclass(frozen=True)
class LabelledText:
    """Texts with labels in three parts; `classes` in the order of their numbers."""

    name: str
    classes: tuple[str, ...]
    train: tuple[Labelled, ...]
    valid: tuple[Labelled, ...]
    test: tuple[Labelled, ...]

    @property
    def fingerprint(self) -> str:
        return digest(
            f"{part}\n{one.label}\n{one.text}" for part in SPLITS for one in getattr(self, part)
        )

    def __str__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part))}" for part in SPLITS)
        return f"{self.name} {self.fingerprint}: {len(self.classes)} classes, {sizes}"


@dataclass(frozen=True)
class Retrieval:
    """Docstrings, and the names in words of the functions that they belong to."""

    queries: tuple[str, ...]
    targets: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return digest((*self.queries, "", *self.targets))


def docstring_packages(
    per_class: int = 400, packages: Sequence[str] | None = None, kind: str = "function"
) -> LabelledText:
    """First sentences of docstrings; the label is the package, whose name is masked out.

    per_class  texts of a class for training; at most a quarter as many for valid, and for test.
               Classes have equal sizes in each part.
    packages   at least two that are installed; None: all of `PACKAGES` that are
    kind       of what is documented: "function", or "other" (classes and modules): a shift of the
               texts at the same labels

    Train, valid and test hold other modules. Parsed once, about 20 s for all, then cached.
    Raises `DataError` where a package is not installed or has too few docstrings.
    """
    if kind not in ("function", "other"):
        raise UnknownNameError("kind of docstring", kind, ("function", "other"))
    names = _chosen(packages)
    texts = {
        name: [(module, _masked(text, name)) for module, found, text in _sentences(name)
               if (found == "function") == (kind == "function")]
        for name in names
    }
    return _labelled(f"packages-{kind}", texts, per_class)


def standard_families(per_class: int = 120) -> LabelledText:
    """First sentences of the standard library's docstrings; the label is what a module is for.

    A family has few modules: here the texts, not the modules, are split.
    """
    texts: dict[str, list[tuple[str, str]]] = {name: [] for name in FAMILIES}
    places = {head: family for family, heads in FAMILIES.items() for head in heads}
    for module, _, text in _sentences(""):
        head = module.split(".")[0]
        if head in places:
            words = [part for part in module.split(".") if len(part) > 2]
            texts[places[head]].append((module, _without(text, words)))
    return _labelled("families", texts, per_class, by_text=True)


def retrieval(count: int = 200) -> Retrieval:
    """Docstrings of the standard library's functions with the functions' names in words.

    Names of two words or more, each once, and not written out in their docstrings. A fixed test
    of what a sentence encoder knows before it is adapted.
    """
    found: dict[str, str] = {}
    for name, text in _functions():
        words = re.findall(r"[a-z]+|[A-Z][a-z]+|[A-Z]+(?![a-z])", name)
        target = " ".join(word.lower() for word in words)
        if len(words) >= 2 and len(target) >= 8 and target not in found and name not in text:
            found[target] = text
    if len(found) < count:
        raise DataError(
            f"{count} functions are asked for", expected=f"at most {len(found)}",
            mend="ask for fewer",
        )
    chosen = sorted(found, key=lambda target: digest([target]))[:count]
    return Retrieval(tuple(found[target] for target in chosen), tuple(chosen))


# ---- sentences ------------------------------------------------------------------------------


def _chosen(packages: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(PACKAGES) if packages is None else tuple(dict.fromkeys(packages))
    here = {name: bool(installed(name)) for name in names}
    missing = [name for name, found in here.items() if not found]
    if packages is not None and missing:
        raise DataError(
            f"not installed: {', '.join(missing)}", expected="installed packages",
            mend=f"pip install {' '.join(missing)}, or name others",
        )
    found = tuple(name for name in names if here[name])
    if len(found) < 2:
        raise DataError(
            f"{len(found)} packages to tell apart", expected="at least two",
            mend="pip install 'passband[tuning]'",
        )
    return found


@cache
def _found(package: str) -> tuple[tuple[str, str, str, str], ...]:
    """(module, kind, name, first sentence) of a package; "" is the standard library."""
    files = (installed(package) if package else standard_library())[:MOST_MODULES]
    sizes = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in files]
    key = {"version": 1, "package": package, "files": digest(map(str, sizes))}
    rows = stored_json("sentences", key, lambda: _parsed(files))
    return tuple((module, kind, name, text) for module, kind, name, text in rows)


def _sentences(package: str) -> Iterable[tuple[str, str, str]]:
    return ((module, kind, text) for module, kind, _, text in _found(package))


def _functions() -> Iterable[tuple[str, str]]:
    """(name, first sentence) of the standard library's functions, private ones left out."""
    return (
        (name, text) for _, kind, name, text in _found("")
        if kind == "function" and not name.startswith("_")
    )


def _parsed(files: Sequence[tuple[str, Path]]) -> list[list[Any]]:
    found: list[list[Any]] = []
    for name, path in files:
        module = parse(path, name)
        for one in module.docstrings if module else ():
            text = first_sentence(one.text)
            if SHORTEST <= len(text) <= LONGEST:
                found.append([name, one.kind, one.name, text])
    return found


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line.

    >>> first_sentence("Open a file.\\n\\nIt must be there.")
    'Open a file.'
    """
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph, maxsplit=1)[0]


def _masked(text: str, package: str) -> str:
    return _without(text, (package, *PACKAGES.get(package, ())))


def _without(text: str, words: Iterable[str]) -> str:
    """The text with these words, alone or inside others, replaced by "it"."""
    for word in sorted(words, key=len, reverse=True):
        # Short names stand inside ordinary words ("sp" in "space"): only whole ones there.
        border = r"\b" if len(word) <= 3 else ""
        text = re.sub(f"{border}{re.escape(word)}{border}", "it", text, flags=re.IGNORECASE)
    return text


def _labelled(
    name: str, texts: dict[str, list[tuple[str, str]]], per_class: int, *, by_text: bool = False
) -> LabelledText:
    """Equal numbers of every class in each part; a text that is there twice is left out."""
    if per_class < 4:
        raise DataError(f"per_class = {per_class}", expected="at least 4", mend="raise it")
    owners: dict[str, set[str]] = {}
    for label, found in texts.items():
        for _, text in found:
            owners.setdefault(text, set()).add(label)
    parts: dict[str, list[Labelled]] = {part: [] for part in SPLITS}
    sorted_out: dict[str, dict[str, list[str]]] = {part: {} for part in SPLITS}
    for label, found in texts.items():
        seen = set()
        for part in SPLITS:
            sorted_out[part][label] = []
        for module, text in found:
            if text not in seen and len(owners[text]) == 1:
                seen.add(text)
                part = _wide_part(text if by_text else module)
                sorted_out[part][label].append(text)
    for part, wanted in (("train", per_class), ("valid", per_class // 4), ("test", per_class // 4)):
        least = min(sorted_out[part], key=lambda label: len(sorted_out[part][label]))
        size = min(wanted, len(sorted_out[part][least]))
        if size < 4:
            raise DataError(
                f"{least} has {size} docstrings for {part}", expected="at least 4",
                mend="leave it out",
            )
        for label, found in sorted_out[part].items():
            chosen = sorted(found, key=lambda text: digest([text]))[:size]
            parts[part] += [Labelled(text, label) for text in chosen]
    for part, rows in parts.items():
        rows.sort(key=lambda row: digest([part, row.text]))
    return LabelledText(name, tuple(texts), *(tuple(parts[part]) for part in SPLITS))


def _wide_part(name: str) -> str:
    """70 % train, 10 % valid and 20 % test: packages have few modules."""
    place = bucket(name)
    return "test" if place < 20 else "valid" if place < 30 else "train"
