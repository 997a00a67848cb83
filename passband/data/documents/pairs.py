"""Files of training examples: a query with texts that answer it and texts that don't.

    {"query": ..., "pos": [...], "negs": [...]}                           "pos" may be one text
    {"query": ..., "docs": [...], "scores": [...]}                        a teacher's scores
    {"question": ..., "positive_ctxs": [{"title", "text"}], "negative_ctxs", "hard_negative_ctxs"}

one a line (.jsonl), or all in one list (.json).

>>> _ = Path("pairs.jsonl").write_text('{"query": "q", "docs": ["a", "b"], "scores": [1, 3]}')
>>> examples_in(Path("pairs.jsonl"))
[Example(query='q', positives=('b',), negatives=('a',), scores=(3.0, 1.0))]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from passband.data.documents.collection import Document, Example, Listed, records_of
from passband.data.documents.trec import text_of
from passband.errors import DataError

EXPECTED = (
    '{"query", "pos", "negs"}, {"query", "docs", "scores"} or {"question", "positive_ctxs"}'
)


def is_examples(path: Path) -> bool:
    """Whether the first record of a .jsonl or .json file is an example."""
    if path.suffix not in (".jsonl", ".json"):
        return False
    first = next((record for _, record in _records(path)), {})
    return _reader(first) is not None


def examples_in(path: Path) -> list[Example]:
    """All examples of a file. Raises `DataError` with the number of the line, or of the record."""
    found = []
    for number, record in _records(path):
        read = _reader(record)
        example = read(record) if read else None
        if example is None or not example.query.strip() or not example.positives:
            raise DataError(
                f"{path}, line {number}: no example, but {', '.join(record) or 'nothing'}",
                expected=f"{EXPECTED} with a text in each",
            )
        found.append(example)
    return found


def corpus_of(examples: Sequence[Example]) -> tuple[Listed, dict[str, str], dict[str, Any]]:
    """(corpus, queries, judgements) of all texts that examples name; each text is there once."""
    texts: dict[str, str] = {}
    queries: dict[str, str] = {}  # text -> id
    relevant: dict[str, dict[str, int]] = {}
    for example in examples:
        query = queries.setdefault(example.query, f"q{len(queries)}")
        for text in chain(example.positives, example.negatives):
            texts.setdefault(text, f"d{len(texts)}")
        relevant.setdefault(query, {}).update({texts[text]: 1 for text in example.positives})
    corpus = Listed(Document(id, text) for text, id in texts.items())
    return corpus, {id: text for text, id in queries.items()}, relevant


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix == ".jsonl":
        yield from records_of(path)
        return
    try:
        found = json.loads(text_of(path))
    except ValueError as error:
        raise DataError(f"{path}: no JSON ({error})", expected="a list of objects") from None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{path}: no list of objects", expected=EXPECTED)
    yield from enumerate(found, 1)


def _reader(record: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], Example] | None:
    return next((read for names, read in _READERS if names <= record.keys()), None)


def _texts(values: Any) -> tuple[str, ...]:
    listed = [values] if isinstance(values, (str, Mapping)) else values or []
    return tuple(
        one if isinstance(one, str)
        else Document("", str(one.get("text", "")), str(one.get("title") or "")).full
        for one in listed
    )


def _pos(record: Mapping[str, Any]) -> Example:
    negatives = record.get("negs", record.get("neg"))
    return Example(str(record["query"]), _texts(record["pos"]), _texts(negatives))


def _scored(record: Mapping[str, Any]) -> Example:
    texts, scores = _texts(record["docs"]), [float(score) for score in record["scores"]]
    if len(texts) != len(scores):
        raise DataError(
            f"{len(texts)} docs and {len(scores)} scores of the query {record['query']!r}",
            expected="a score for each",
        )
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    ranked = [texts[i] for i in order]
    return Example(
        str(record["query"]), tuple(ranked[:1]), tuple(ranked[1:]),
        tuple(scores[i] for i in order),
    )


def _contexts(record: Mapping[str, Any]) -> Example:
    negatives = _texts(record.get("hard_negative_ctxs")) + _texts(record.get("negative_ctxs"))
    return Example(str(record["question"]), _texts(record["positive_ctxs"]), negatives)


_READERS: tuple[tuple[set[str], Callable[[Mapping[str, Any]], Example]], ...] = (
    ({"query", "docs", "scores"}, _scored), ({"query", "pos"}, _pos),
    ({"question", "positive_ctxs"}, _contexts),
)
