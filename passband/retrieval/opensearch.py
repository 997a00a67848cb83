"""Sparse vectors as files that OpenSearch takes: maps of tokens to weights.

>>> rows = sparse.csr_array([[0.0, 2.0], [1.5, 0.5]])
>>> _ = export("export", ["ice", "fire"], [rows], ["a", "b"], name="stones")
>>> print(Path("export/documents.ndjson").read_text().splitlines()[1])
{"id": "a", "embedding": {"fire": 2.0}}
>>> tokens, ids, again = read_documents("export")
>>> tokens, ids, again.toarray().tolist()
(['ice', 'fire'], ['a', 'b'], [[0.0, 2.0], [1.5, 0.5]])

    PUT  stones                      < mapping.json          a field of the type `rank_features`
    POST stones/_bulk                < documents.ndjson
    POST stones/_msearch             < queries.ndjson        `neural_sparse` with `query_tokens`

idf.json {token: weight} is what OpenSearch's tokenizer models weigh queries by. OpenSearch keeps
weights with fewer bits than these files do: its scores are near ours, not equal.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from scipy import sparse

from passband.errors import DataError
from passband.parts.inverted_index import SparseRows, as_rows

MAPPING, DOCUMENTS, QUERIES, IDF, VOCABULARY = (
    "mapping.json", "documents.ndjson", "queries.ndjson", "idf.json", "vocabulary.json"
)
FIELD = "embedding"


def export(
    folder: str | Path, tokens: Sequence[str], blocks: Iterable[SparseRows], ids: Iterable[str], *,
    name: str = "documents", texts: Iterable[str] | None = None,
    idf: Mapping[str, float] | None = None,
) -> list[Path]:
    """Write documents, their mapping, the vocabulary and, where given, idf; the files' paths.

    tokens  V names of the columns, all different
    blocks  CSR [n, V] of weights above 0; read one after the other, nothing is held
    ids     one for each document; texts likewise, kept in the field `text`
    name    of the OpenSearch index

    Raises `DataError` for weights below 0, which `rank_features` doesn't know, and for another
    number of ids or texts than documents.
    """
    folder = Path(folder)
    _check_tokens(tokens)
    folder.mkdir(parents=True, exist_ok=True)
    properties = {"id": {"type": "keyword"}, FIELD: {"type": "rank_features"}}
    if texts is not None:
        properties["text"] = {"type": "text"}
    _write(folder / MAPPING, {"mappings": {"properties": properties}})
    _write(folder / VOCABULARY, list(tokens))
    written = [folder / MAPPING, folder / VOCABULARY, folder / DOCUMENTS]
    names, words = iter(ids), iter(texts) if texts is not None else None
    count = 0
    with _whole(folder / DOCUMENTS) as file:
        for block in blocks:
            for weights in maps(block, tokens):
                id = next(names, None)
                if id is None:
                    raise DataError(f"{count} ids for more documents", expected="one for each")
                document: dict[str, Any] = {"id": id, FIELD: weights}
                if words is not None:
                    document["text"] = next(words, None)
                    if document["text"] is None:
                        raise DataError(f"{count} texts for more documents",
                                        expected="one for each")
                _line(file, {"index": {"_index": name, "_id": id}})
                _line(file, document)
                count += 1
        if next(names, None) is not None:
            raise DataError(f"more ids than the {count} documents", expected="one for each")
    if idf is not None:
        _write(folder / IDF, {token: float(weight) for token, weight in idf.items()})
        written.append(folder / IDF)
    return written


def export_queries(
    folder: str | Path, tokens: Sequence[str], queries: SparseRows, *, name: str = "documents",
    k: int = 10,
) -> Path:
    """Write a search for each query's row [Q, V], in the format of `_msearch`."""
    folder = Path(folder)
    _check_tokens(tokens)
    folder.mkdir(parents=True, exist_ok=True)
    with _whole(folder / QUERIES) as file:
        for weights in maps(queries, tokens):
            _line(file, {"index": name})
            _line(file, {"size": k, "query": {"neural_sparse": {FIELD: {"query_tokens": weights}}}})
    return folder / QUERIES


def maps(vectors: SparseRows, tokens: Sequence[str]) -> Iterator[dict[str, float]]:
    """Each row as {token: weight}, the largest weight first.

    >>> list(maps(np.array([[1.0, 2.0], [0.0, 0.0]]), ["ice", "fire"]))
    [{'fire': 2.0, 'ice': 1.0}, {}]
    """
    rows = as_rows(vectors, len(tokens))
    if len(rows.data) and rows.data.min() < 0:
        raise DataError(f"a weight of {rows.data.min():g}", expected="weights above 0")
    for start, stop in zip(rows.indptr[:-1], rows.indptr[1:], strict=True):
        order = start + np.argsort(-rows.data[start:stop], kind="stable")
        # The shortest decimals that are the same float32.
        yield {tokens[rows.indices[i]]: float(str(rows.data[i])) for i in order}


def read_documents(folder: str | Path) -> tuple[list[str], list[str], sparse.csr_array]:
    """Tokens, ids and vectors [N, V] that `export` wrote."""
    folder = Path(folder)
    tokens = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    lines = (folder / DOCUMENTS).read_text(encoding="utf-8").splitlines()[1::2]
    documents = [json.loads(line) for line in lines]
    return tokens, [each["id"] for each in documents], _rows([d[FIELD] for d in documents], tokens)


def read_queries(folder: str | Path) -> sparse.csr_array:
    """Vectors [Q, V] that `export_queries` wrote."""
    folder = Path(folder)
    tokens = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    lines = (folder / QUERIES).read_text(encoding="utf-8").splitlines()[1::2]
    found = [json.loads(line)["query"]["neural_sparse"][FIELD]["query_tokens"] for line in lines]
    return _rows(found, tokens)


def _rows(found: Sequence[Mapping[str, float]], tokens: Sequence[str]) -> sparse.csr_array:
    columns = {token: column for column, token in enumerate(tokens)}
    unknown = next((t for weights in found for t in weights if t not in columns), None)
    if unknown is not None:
        raise DataError(f"the token {unknown!r} is not in the vocabulary")
    indptr = np.cumsum([0, *(len(weights) for weights in found)])
    terms = [columns[token] for weights in found for token in weights]
    values = [weight for weights in found for weight in weights.values()]
    return as_rows((indptr, np.array(terms, np.int64), np.array(values, np.float32)), len(tokens))


def _check_tokens(tokens: Sequence[str]) -> None:
    if len(set(tokens)) != len(tokens):
        raise DataError("the vocabulary has a token twice", expected="different tokens")
    if "" in tokens:
        raise DataError("the vocabulary has an empty token", expected="a name for each column")


def _line(file: TextIO, content: Mapping[str, Any]) -> None:
    file.write(json.dumps(content, ensure_ascii=False) + "\n")


def _write(path: Path, content: Any) -> None:
    with _whole(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=1)


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A text file that gets its name when it is complete."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
