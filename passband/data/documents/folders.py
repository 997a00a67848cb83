"""The user's own documents, queries and judgements.

    DIR/corpus.jsonl, DIR/queries.jsonl, DIR/qrels/{train,dev,test}.tsv      BEIR
    DIR/corpus.tsv (or collection.tsv), DIR/queries*.tsv, DIR/qrels*, DIR/run*.tsv    MS MARCO
    DIR/*.xml with <doc>, one with <top>, DIR/qrels*                         TREC
    DIR/**/*.txt, *.md, *.py                                                 a document a file
    FILE.jsonl, .tsv, .txt                                                   a document a line
    FILE.jsonl, .json with queries and their texts                           `pairs`

>>> _ = Path("notes").mkdir(), Path("notes/ice.md").write_text("A glacier is a river of ice.")
>>> [document.id for document in read_corpus(Path("notes"))]
['ice.md']

Judgements that are split keep their split ("dev", "valid" and "validation" are one). Those that
are not are split by a hash of the queries' ids: half for training, a tenth for validation, the
rest for test. A test part alone stays a test: nothing is learned from it but the corpus.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from passband.data.documents import pairs, trec
from passband.data.documents.collection import (
    Collection,
    Corpus,
    Document,
    Example,
    Listed,
    OnDisk,
    lines_of,
    records_of,
)
from passband.data.documents.parts import Parts
from passband.data.sources import bucket
from passband.errors import DataError, PassbandWarning

LINES = (".jsonl", ".tsv", ".txt")
FILES = (".txt", ".md", ".rst", ".py", ".html")  # a document each
_SPLITS = {"train": "train", "dev": "valid", "valid": "valid", "validation": "valid",
           "test": "test"}
_CORPORA = ("corpus.jsonl", "corpus.tsv", "collection.tsv", "corpus.txt")


def read(path: Path) -> Parts:
    """Train, valid and test of a folder or file. Raises `DataError` for what it can't read.

    What is odd but can be used is warned of, with a count and the first five: judgements of
    queries or documents that are not there, empty documents, empty queries.
    """
    path = _there(path)
    if path.is_file() and pairs.is_examples(path):
        return _of_examples(pairs.examples_in(path))
    whole, splits = _whole(path)
    if not splits:
        return Parts(whole, whole.part([]), whole.part([]))
    made = {name: whole.part(queries, learn=name == "train") for name, queries in splits.items()}
    extra = _given_examples(path)
    if extra:
        made["train"] = replace(made["train"], examples=[*made["train"].examples, *extra])
    return Parts(made["train"], made["valid"], made["test"])


def read_collection(path: str | Path) -> Collection:
    """A corpus with all queries and judgements that lie beside it, not split."""
    path = _there(path)
    if path.is_file() and pairs.is_examples(path):
        examples = pairs.examples_in(path)
        corpus, queries, judgements = pairs.corpus_of(examples)
        return Collection(corpus, queries, judgements, examples)
    return _whole(path)[0]


def read_corpus(path: Path) -> Corpus:
    """The documents of a folder or file; warns of empty ones."""
    path = _there(path)
    corpus = _corpus(path)
    if not len(corpus):
        raise DataError(f"{path} has no documents", expected="at least one")
    _say(
        [d.id for d in corpus if not d.full.strip()],
        f"of the {len(corpus)} documents of {path} are empty and can hardly be found",
    )
    return corpus


def read_queries(path: Path) -> dict[str, str]:
    """Query id -> text: .jsonl {"_id", "text" or "query"}, .tsv "id, text", .txt, or <top>.

    The ids of a .txt file are the numbers of its lines, from 1. Empty queries are left out with a
    warning; an id that comes twice is a `DataError`.
    """
    path = _there(path)
    found: dict[str, str] = {}
    for id, text in _queries(path):
        if id in found:
            raise DataError(
                f"{path}: the query id {id!r} comes twice", expected="one query an id",
            )
        found[id] = text
    empty = [id for id, text in found.items() if not text.strip()]
    _say(empty, f"of the {len(found)} queries of {path} are empty and are left out")
    return {id: text for id, text in found.items() if text.strip()}


# ---- corpora and queries ---------------------------------------------------------------------


def _there(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} doesn't exist", expected="a folder or file of documents")
    return path


def _corpus(path: Path) -> Corpus:
    if path.is_file():
        if path.suffix in LINES:
            return OnDisk(path)
        if path.suffix == ".xml":
            return Listed(trec.documents_in(path))
        return Listed([Document(path.name, trec.text_of(path))])
    lines = next((path / name for name in _CORPORA if (path / name).is_file()), None)
    if lines is not None:
        return OnDisk(lines)
    tagged = [file for file in _tagged(path) if trec.kind_of(file) == "doc"]
    if tagged:
        return Listed(document for file in tagged for document in trec.documents_in(file))
    files = sorted(
        file for file in path.rglob("*") if file.suffix in FILES and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(
            f"{path} has no documents that can be read",
            expected=f"{', '.join(_CORPORA[:3])}, XML with <doc>, or files {', '.join(FILES)}",
        )
    return Listed(
        Document(file.relative_to(path).as_posix(), trec.text_of(file)) for file in files
    )


def _tagged(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix in (".xml", ".trec", ".sgml"))


def _queries(path: Path) -> Iterable[tuple[str, str]]:
    if path.suffix == ".jsonl":
        for number, record in records_of(path):
            text = record.get("text", record.get("query", record.get("question")))
            if not isinstance(text, str):
                raise DataError(
                    f"{path}, line {number}: no text, only {', '.join(record) or 'nothing'}",
                    expected='{"_id": ..., "text": ...}',
                )
            yield str(record.get("_id", record.get("id", number))), text
    elif path.suffix == ".tsv":
        for number, _, line in lines_of(path):
            id, tab, text = line.partition("\t")
            if not tab:
                raise DataError(
                    f"{path}, line {number}: {line[:60]!r} has no tabulator",
                    expected="id and text between tabs",
                )
            if number > 1 or id.strip() not in ("id", "_id", "qid", "query-id"):
                yield id.strip(), text
    elif path.suffix == ".txt":
        yield from ((str(number), line) for number, _, line in lines_of(path))
    elif trec.kind_of(path) == "top":
        yield from trec.topics_in(path).items()
    else:
        raise DataError(
            f"{path} has no queries that can be read",
            expected=".jsonl, .tsv, .txt, or a file with <top>",
        )


# ---- whole folders ---------------------------------------------------------------------------


def _whole(path: Path) -> tuple[Collection, dict[str, list[str]]]:
    """A collection, and the queries of its parts; none where nothing is judged."""
    corpus = read_corpus(path)
    if path.is_file():
        return Collection(corpus, about={"path": str(path)}), {}
    queries: dict[str, str] = {}
    for file in _query_files(path):
        queries.update(read_queries(file))
    judged = {
        file: _by_ordinal(trec.judgements_in(file), queries, file) for file in _qrel_files(path)
    }
    judgements: dict[str, dict[str, int]] = {}
    for found in judged.values():
        for query, grades in found.items():
            judgements.setdefault(query, {}).update(grades)
    judgements = _checked(judgements, queries, corpus)
    rankings: dict[str, Sequence[str]] = {}
    for file in sorted(path.glob("run*.*")):
        rankings.update(trec.rankings_in(file))
    # As BEIR's own evaluation has it: its Quora and ArguAna ask with their own documents.
    beir = (path / "corpus.jsonl").is_file() and (path / "qrels").is_dir()
    whole = Collection(
        corpus, queries, judgements, rankings=rankings, about={"path": str(path)},
        queries_are_documents=beir,
    )
    splits = _splits({file: list(found) for file, found in judged.items()})
    # A query that is in no judgement belongs to no part, but stays in the whole.
    return whole, splits if judgements else {}


def _query_files(path: Path) -> list[Path]:
    if (path / "queries.jsonl").is_file():
        return [path / "queries.jsonl"]
    found = sorted(file for file in path.glob("queries*") if file.suffix in LINES)
    return found or [file for file in _tagged(path) if trec.kind_of(file) == "top"]


def _qrel_files(path: Path) -> list[Path]:
    folder = path / "qrels"
    found = folder.iterdir() if folder.is_dir() else path.glob("qrels*")
    return sorted(file for file in found if file.suffix in (".tsv", ".txt", ".qrels", ""))


def _splits(judged: Mapping[Path, Sequence[str]]) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for file, queries in judged.items():
        words = re.split(r"[^a-z]+", file.stem.lower())
        name = next((_SPLITS[word] for word in words if word in _SPLITS), None)
        for query in queries:
            place = bucket(query)
            drawn = "train" if place < 50 else "valid" if place < 60 else "test"
            made[name or drawn].append(query)
    return made


def _by_ordinal(
    judgements: dict[str, dict[str, int]], queries: Mapping[str, str], file: Path
) -> dict[str, dict[str, int]]:
    """Judgements of queries by their order in the file, as Cranfield's are, under their own ids.

    They are taken as such where some are not ids of queries, and all are numbers of queries.
    """
    ids = list(queries)
    fits = all(q.isdigit() and 1 <= int(q) <= len(ids) for q in judgements)
    if not judgements or all(q in queries for q in judgements) or not fits:
        return judgements
    warnings.warn(
        f"{file} names queries that have no such id, and none above {len(ids)}, their number: its "
        "numbers are taken as places in the list of queries", PassbandWarning, stacklevel=2,
    )
    return {ids[int(q) - 1]: found for q, found in judgements.items()}


def _checked(
    judgements: dict[str, dict[str, int]], queries: Mapping[str, str], corpus: Corpus
) -> dict[str, dict[str, int]]:
    """Without the queries that have no text. Documents that are missing count as not found."""
    lost = [q for q in judgements if q not in queries]
    _say(lost, f"of the {len(judgements)} judged queries have no text and are left out")
    known = {q: found for q, found in judgements.items() if q in queries}
    named = dict.fromkeys(d for found in known.values() for d, grade in found.items() if grade > 0)
    missing = [d for d in named if d not in corpus]
    _say(missing, f"of the {len(named)} relevant documents are not in the corpus; they count as "
         "not found")
    return known


def _say(found: Sequence[str], what: str) -> None:
    if found:
        shown = ", ".join(map(repr, found[:5])) + (", ..." if len(found) > 5 else "")
        warnings.warn(f"{len(found)} {what}: {shown}", PassbandWarning, stacklevel=3)


def _given_examples(path: Path) -> list[Example]:
    """Training examples that lie beside a corpus: train*.jsonl or train*.json."""
    if path.is_file():
        return []
    files = [file for file in sorted(path.glob("train*.json*")) if pairs.is_examples(file)]
    return [example for file in files for example in pairs.examples_in(file)]


def _of_examples(examples: Sequence[Example]) -> Parts:
    """Texts are the corpus; queries are split by a hash of their text."""
    corpus, queries, judgements = pairs.corpus_of(examples)
    whole = Collection(corpus, queries, judgements)
    made: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for id, text in queries.items():
        place = bucket(text)
        made["train" if place < 80 else "valid" if place < 90 else "test"].append(id)
    kept = {queries[id] for id in made["train"]}
    train = replace(
        whole.part(made["train"]), examples=[e for e in examples if e.query in kept]
    )
    return Parts(train, whole.part(made["valid"]), whole.part(made["test"]))
