"""What is searched, what is asked, and what should be found.

>>> corpus = Listed([Document("a", "Rivers of ice.", title="Glacier"), Document("b", "Geysers.")])
>>> corpus[0].full, corpus.place("b")
('Glacier Rivers of ice.', 1)
>>> data = Collection(corpus, {"q": "cold river"}, {"q": {"a": 1}})
>>> data.pairs()[0]
Example(query='cold river', positives=('Glacier Rivers of ice.',), negatives=(), scores=None)
>>> len(data.fingerprint)
16

A corpus of any size stays on disk: `OnDisk` keeps a table of where its lines begin.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from passband.data.cache import digest, stored
from passband.errors import DataError


@dataclass(frozen=True)
class Document:
    """id: unique in its corpus; what is encoded and indexed is `full`."""

    id: str
    text: str
    title: str = ""

    @property
    def full(self) -> str:
        """The title, a blank and the text; the text alone where there is no title."""
        return f"{self.title} {self.text}" if self.title else self.text


class Corpus(ABC):
    """Documents in a fixed order; the place of a document is its number in it, from 0."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, place: int) -> Document: ...

    @abstractmethod
    def place(self, id: str) -> int:
        """Where a document is. Raises `DataError` for an id that the corpus does not have."""

    @abstractmethod
    def __contains__(self, id: object) -> bool: ...

    def __iter__(self) -> Iterator[Document]:
        return (self[place] for place in range(len(self)))

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """The ids in order of the places."""

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all ids and texts in their order."""
        return digest(part for d in self for part in (d.id, d.title, d.text))

    def __str__(self) -> str:
        return f"{len(self)} documents {self.fingerprint}"


def _unknown(id: object) -> DataError:
    return DataError(
        f"the corpus has no document {id!r}", expected="an id of one of its documents",
    )


class Listed(Corpus):
    """Documents in memory. Raises `DataError` with the id where one comes twice."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = tuple(documents)
        self._places: dict[str, int] = {}
        for place, document in enumerate(self._documents):
            before = self._places.setdefault(document.id, place)
            if before != place:
                raise twice(document.id, f"documents {before + 1} and {place + 1}")

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, place: int) -> Document:
        return self._documents[place]

    def __contains__(self, id: object) -> bool:
        return id in self._places

    @property
    def ids(self) -> Sequence[str]:
        return [document.id for document in self._documents]

    def place(self, id: str) -> int:
        try:
            return self._places[id]
        except KeyError:
            raise _unknown(id) from None


def twice(id: str, where: str) -> DataError:
    return DataError(
        f"the id {id!r} comes twice: {where}", expected="one document an id",
        mend="rename one of them, or take it out",
    )


# ---- on disk ---------------------------------------------------------------------------------


class OnDisk(Corpus):
    """A file with a document on each line; only a table of the lines is in memory.

    .jsonl  {"_id" (or "id"), "text", "title"}
    .tsv    id, text and perhaps title; a first line "id ..." is a heading
    .txt    text; the ids are numbers from 0

    The table (24 bytes a document, mapped from the cache) is made in one pass that also checks the
    file. Raises `DataError` with the number of a line that is no UTF-8, no JSON, or has no text or
    id, and with the id where one comes twice.

    >>> lines = '{"_id": "a", "text": "ice"}', '{"_id": "b", "text": ""}'
    >>> _ = Path("corpus.jsonl").write_text("\\n".join(lines))
    >>> corpus = OnDisk(Path("corpus.jsonl"))
    >>> len(corpus), corpus.place("b"), corpus[0].text, list(corpus.ids)
    (2, 1, 'ice', ['a', 'b'])
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._parse = parser_of(self.path)
        facts = self.path.stat()
        key = {"version": 1, "path": str(self.path.resolve()), "size": facts.st_size,
               "changed": facts.st_mtime_ns}
        table = stored("line-tables", key, lambda to: _write_table(self.path, to), suffix=".npy")
        # starts [N] of the lines; hashes [N] of the ids, sorted; places [N] in that order
        self._starts, self._hashes, self._order = np.load(table, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: int) -> Document:
        with self.path.open("rb") as file:
            file.seek(int(self._starts[place]))
            line = file.readline().decode("utf-8-sig").rstrip("\r\n")
        return self._parse(line, place % len(self))

    def __iter__(self) -> Iterator[Document]:
        return (document for _, _, document in documents_of(self.path))

    def _find(self, id: object) -> int | None:
        if not isinstance(id, str):
            return None
        wanted = hash_of(id)
        first = int(np.searchsorted(self._hashes, wanted))
        while first < len(self) and self._hashes[first] == wanted:
            place = int(self._order[first])
            if self[place].id == id:
                return place
            first += 1
        return None

    def __contains__(self, id: object) -> bool:
        return self._find(id) is not None

    def place(self, id: str) -> int:
        found = self._find(id)
        if found is None:
            raise _unknown(id)
        return found

    @property
    def ids(self) -> Sequence[str]:
        return _Ids(self)


class _Ids(Sequence[str]):
    """Ids read from the file when they are asked for."""

    def __init__(self, corpus: OnDisk) -> None:
        self._corpus = corpus

    def __len__(self) -> int:
        return len(self._corpus)

    def __iter__(self) -> Iterator[str]:
        return (document.id for document in self._corpus)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._corpus[i].id for i in range(*place.indices(len(self)))]
        return self._corpus[place].id


def hash_of(id: str) -> int:
    """63 bits of an id."""
    return int(digest([id]), 16) >> 1


def lines_of(path: Path) -> Iterator[tuple[int, int, str]]:
    """(number from 1, first byte, text) of the lines of a file that are not blank.

    Raises `DataError` with the number of the first line that is no UTF-8.
    """
    start = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: byte {error.start} is no UTF-8",
                        expected="text in UTF-8", mend="iconv -f latin1 -t utf-8 converts a file",
                    ) from None
                if text.strip():
                    yield number, start, text.rstrip("\r\n")
                start += len(line)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from None


def records_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, record) of the lines of a JSONL file; errors name the line."""
    for number, _, line in lines_of(path):
        with _placed(path, number):
            yield number, _record(line)


def documents_of(path: Path) -> Iterator[tuple[int, int, Document]]:
    """(number from 1, first byte, document) of the lines of a file; errors name the line."""
    parse, place = parser_of(path), 0
    for number, start, line in lines_of(path):
        if place == 0 and path.suffix == ".tsv" and line.split("\t")[0] in _HEADINGS:
            continue
        with _placed(path, number):
            document = parse(line, place)
        yield number, start, document
        place += 1


@contextmanager
def _placed(path: Path, number: int) -> Iterator[None]:
    """Puts the line's number before what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"{path}, line {number}: {error.what}", expected=error.expected, mend=error.mend
        ) from None


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"no JSON ({error})", expected="one JSON object a line") from None
    if not isinstance(record, dict):
        raise DataError(f"a JSON {type(record).__name__}", expected="one JSON object a line")
    return record


def _from_jsonl(line: str, place: int) -> Document:
    record = _record(line)
    if not isinstance(record.get("text"), str):
        raise DataError(
            f"no \"text\", only {', '.join(record) or 'nothing'}",
            expected='{"_id": ..., "title": ..., "text": ...}',
        )
    id = next((record[name] for name in ("_id", "id", "docid") if name in record), place)
    return Document(str(id), record["text"], str(record.get("title") or ""))


def _from_tsv(line: str, place: int) -> Document:
    fields = line.split("\t")
    if len(fields) < 2:
        raise DataError(
            f"{line[:60]!r} has no tabulator", expected="id, text and perhaps title between tabs",
        )
    return Document(fields[0].strip(), fields[1], fields[2] if len(fields) > 2 else "")


def _from_txt(line: str, place: int) -> Document:
    return Document(str(place), line)


_HEADINGS = ("id", "_id", "pid", "docid")
_PARSERS: dict[str, Callable[[str, int], Document]] = {
    ".jsonl": _from_jsonl, ".tsv": _from_tsv, ".txt": _from_txt,
}


def parser_of(path: Path) -> Callable[[str, int], Document]:
    """(line, place) -> document, by the suffix of a file."""
    if path.suffix not in _PARSERS:
        raise DataError(
            f"{path} has lines of an unknown kind", expected=f"one of {', '.join(_PARSERS)}",
            mend="JSONL with \"_id\" and \"text\" is the safest",
        )
    return _PARSERS[path.suffix]


def _write_table(path: Path, target: Path) -> None:
    starts, hashes, lines = array("q"), array("q"), array("q")
    for number, start, document in documents_of(path):
        starts.append(start)
        hashes.append(hash_of(document.id))
        lines.append(number)
    table = np.array([starts, hashes, hashes], dtype=np.int64).reshape(3, -1)
    order = np.argsort(table[1], kind="stable")
    table[1], table[2] = table[1][order], order
    _refuse_repeated(path, table, lines)
    with target.open("wb") as file:
        np.save(file, table, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _refuse_repeated(path: Path, table: np.ndarray, lines: array[int]) -> None:
    """Equal hashes are looked at: different ids may have the same one."""
    parse = parser_of(path)
    with path.open("rb") as file:
        def id_at(place: int) -> str:
            file.seek(int(table[0][place]))
            return parse(file.readline().decode("utf-8-sig").rstrip("\r\n"), place).id

        for i in np.flatnonzero(table[1][1:] == table[1][:-1]):
            first, second = int(table[2][i]), int(table[2][i + 1])
            if id_at(first) == id_at(second):
                where = f"lines {lines[first]} and {lines[second]} of {path}"
                raise twice(id_at(first), where)


# ---- collections -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """A query with texts that answer it, and some that don't.

    scores  of a teacher: of the positives, then of the negatives
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Collection:
    """A corpus with queries and judgements; train, valid and test differ in their queries.

    queries     query id -> text
    judgements  query id -> document id -> relevance, 0 for looked at and not relevant
    examples    texts to learn from
    rankings    query id -> document ids, best first: somebody's first search, where it is given
    about       facts for people, such as the versions of what the texts come from
    queries_are_documents  a query and the document of its id are the same thing, so that document
                is no answer to it; where False, equal ids are an accident
    """

    corpus: Corpus
    queries: Mapping[str, str] = field(default_factory=dict)
    judgements: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    rankings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    queries_are_documents: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits: the same on two machines if corpus, queries and judgements are."""
        return digest([self.corpus.fingerprint, *(
            json.dumps(part, sort_keys=True) for part in (
                dict(self.queries), {q: dict(found) for q, found in self.judgements.items()},
                [(e.query, e.positives, e.negatives, e.scores) for e in self.examples],
            )
        )])

    def pairs(self) -> Sequence[Example]:
        """An example for each judged query, its relevant documents as the positives.

        They are made when they are asked for: texts stay in the corpus. Queries without a
        relevant document in the corpus are left out.
        """
        return _Pairs(self)

    def part(self, queries: Iterable[str], *, learn: bool = False) -> Collection:
        """The same corpus with some of the queries; `learn`: their pairs are the examples."""
        chosen = [q for q in queries if q in self.queries]
        made = replace(
            self, examples=(), queries={q: self.queries[q] for q in chosen},
            judgements={q: self.judgements[q] for q in chosen if q in self.judgements},
            rankings={q: self.rankings[q] for q in chosen if q in self.rankings},
        )
        return replace(made, examples=made.pairs()) if learn else made

    def __str__(self) -> str:
        judged = sum(len(found) for found in self.judgements.values())
        return (
            f"{len(self.corpus)} documents, {len(self.queries)} queries, {judged} judgements, "
            f"{len(self.examples)} examples, {self.fingerprint}"
        )


class _Pairs(Sequence[Example]):
    def __init__(self, data: Collection) -> None:
        self._corpus, self._queries = data.corpus, data.queries
        # Only places are kept.
        self._found = [
            (query, places) for query, judged in data.judgements.items() if query in data.queries
            and (places := tuple(
                data.corpus.place(d) for d, grade in judged.items()
                if grade > 0 and d in data.corpus
            ))
        ]

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        query, places = self._found[index]
        return Example(self._queries[query], tuple(self._corpus[p].full for p in places))
